"""How each matrix was encoded so far, kept with the state of the pass."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np

from calibration.feedback.fitting import MatrixFit
from calibration.forward.streams import Observer
from quantize.tensors import Array

__all__ = ["Records"]

NAME = "fits"


class Records(Observer):
    """A list of `fits` that survives a run that is stopped."""

    def __init__(self) -> None:
        self.fits: list[MatrixFit] = []

    def kept(self) -> dict[str, Array]:
        """The fits as JSON; nothing where there are none."""
        if not self.fits:
            return {}
        text = json.dumps([asdict(fit) for fit in self.fits])
        return {NAME: np.frombuffer(text.encode(), np.uint8)}

    def restore(self, arrays: Mapping[str, Array]) -> None:
        """Take back what was `kept`."""
        if NAME in arrays:
            self.fits = [MatrixFit(**fields) for fields in json.loads(arrays[NAME].tobytes())]
