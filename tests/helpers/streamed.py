"""What the streamed pass makes of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from calibration.forward.run import forward
from calibration.forward.streams import Stream
from quantize.sources.checkpoint import open_checkpoint


def streamed_logits(folder: Path, tokens: Any) -> torch.Tensor:
    """The logits [C, P, V] of tokens int32 [C, P]."""
    found: list[torch.Tensor] = []
    forward(
        [Stream(open_checkpoint(folder))], tokens, on_logits=lambda _, logits: found.append(logits[0].clone())
    )
    return torch.stack(found)
