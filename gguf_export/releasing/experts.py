"""What each expert saw of the calibration text, by the importance matrix."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibration.importance.imatrix_files import load_imatrix
from gguf_export.writing.remarks import FEW_TOKENS
from quantize.tensors import layer_of

__all__ = ["ExpertLoad", "expert_load"]

SUFFIX = "ffn_down_exps.weight"
"""The tensor of a layer whose tokens are counted: all routed tensors of a layer have the same."""


@dataclass(frozen=True)
class ExpertLoad:
    """Tokens by expert: over all layers, and in the layer where they are fewest; the places of starved experts.

    few: an expert that saw fewer tokens in a layer is starved there.
    """

    n_layer: int
    totals: tuple[int, ...]
    fewest: tuple[int, ...]
    starved: tuple[str, ...]
    few: int = FEW_TOKENS


def expert_load(path: Path) -> ExpertLoad | None:
    """Count the tokens; None where the model has no experts.

    Raises:
        ImatrixError: the file cannot be read.
    """
    imatrix = load_imatrix(path)
    layers = {
        layer_of(name): entry.counts for name, entry in imatrix.entries.items() if name.endswith(SUFFIX)
    }
    if not layers:
        return None
    counts = np.stack(list(layers.values()))
    starved = [
        f"layer {bid} expert {xid} ({int(count):,})"
        for bid, row in layers.items()
        for xid, count in enumerate(row)
        if count < FEW_TOKENS
    ]
    return ExpertLoad(
        len(layers),
        tuple(int(count) for count in counts.sum(axis=0)),
        tuple(int(count) for count in counts.min(axis=0)),
        tuple(starved),
    )
