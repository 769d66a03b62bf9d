"""The place of the hidden states of a long text: memory, or files in a scratch folder."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from calibration.forward.settings import ForwardSettings
from quantize.exceptions import NoSpaceError, OutputError

__all__ = ["Storage"]


class Storage:
    """Hands out tensors [T, D] to be filled; a context manager, and its scratch files are deleted with it."""

    def __init__(self, settings: ForwardSettings) -> None:
        """Make a folder for scratch files in `settings.scratch`, where one is asked for.

        Raises:
            OutputError: the folder cannot be written.
        """
        self._device = settings.device
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._n_file = 0
        if settings.scratch is not None:
            try:
                self._folder = tempfile.TemporaryDirectory(
                    prefix="moe-gguf-", dir=settings.scratch, ignore_cleanup_errors=True
                )
            except OSError as error:
                raise OutputError(
                    str(settings.scratch), f"no scratch file can be made: {error.strerror}"
                ) from error

    def empty(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor [T, D]; in a scratch file it lives in the page cache of the system.

        Raises:
            NoSpaceError: the disk of the scratch folder has no room for it.
        """
        if self._folder is None:
            return torch.empty(shape, dtype=dtype, device=self._device)
        path = Path(self._folder.name) / f"hidden-{self._n_file}"
        self._n_file += 1
        n_bytes = shape[0] * shape[1] * dtype.itemsize
        try:
            with path.open("wb") as file:
                file.truncate(n_bytes)
            raw = np.memmap(path, np.uint8, "r+", shape=(n_bytes,))
        except OSError as error:
            raise NoSpaceError(
                str(path), f"no scratch file of {n_bytes} bytes can be made: {error.strerror}"
            ) from error
        return torch.from_numpy(raw).view(dtype).view(shape)

    def __enter__(self) -> Storage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()
