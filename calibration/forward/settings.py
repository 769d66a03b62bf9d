"""How a forward pass computes and keeps its hidden states, and what this machine can do of it."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from quantize.exceptions import DeviceError
from quantize.tensors import QType

__all__ = ["ForwardSettings", "best_dtype", "refuse_device"]

WINDOW = 512 << 20
"""Bytes of matrices that are read ahead beside a GPU: four of the larger models' experts."""

LOGIT_BYTES = 640 << 20


def made(key: Hashable, make: Callable[[], Tensor]) -> Tensor:
    """What `make` makes, for a pass of its own."""
    return make()


@dataclass(frozen=True)
class ForwardSettings:
    """How a forward pass computes, and how it keeps the hidden states [T, D] of the text.

    Args:
        device: where matrix products run, as torch names it.
        dtype: type of the matrix products, torch.float32 or torch.bfloat16.
        hidden_dtype: type in which hidden states are kept, torch.float32 or torch.bfloat16.
        scratch: a folder for files with the hidden states; None keeps them in memory.
        window: bytes of matrices that are read ahead of their use, put on the device and decoded there; 0 reads each
            matrix when it is wanted, and decodes it on the CPU. None: `WINDOW` beside a GPU of CUDA, else 0.
        once: gives a decoded matrix by a key and a function that decodes it; passes side by side share one (see
            `convoy`).
        logit_bytes: memory for the output matrices of all models, as they are stored, and for their logits; those of
            one chunk have a place in any case.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    hidden_dtype: torch.dtype = torch.float32
    scratch: Path | None = None
    window: int | None = None
    once: Callable[[Hashable, Callable[[], Tensor]], Tensor] = made
    logit_bytes: int = LOGIT_BYTES

    @property
    def n_ahead(self) -> int:
        """The window in bytes, where none was chosen that of the device."""
        if self.window is not None:
            return self.window
        return WINDOW if torch.device(self.device).type == "cuda" else 0

    def widens(self, qtype: QType) -> bool:
        """Whether products with few tokens decode matrices of a stored type in pieces: on the CPU, into float32.

        Passes side by side take what one of them has decoded, whatever the number of their tokens.
        """
        is_wide = self.dtype == torch.float32 and qtype != QType.F32
        return self.device == "cpu" and is_wide and self.once is made

    @property
    def numerics(self) -> str:
        """The settings that change what a pass finds, in the words of every fingerprint that was written so far."""
        return f"Arithmetic(device={self.device!r}, dtype={self.dtype}) {self.hidden_dtype}"


def best_dtype(device: str = "cpu") -> torch.dtype:
    """bfloat16 where the hardware multiplies it, else float32 (emulated products are slower than exact ones)."""
    if device != "cpu":
        return torch.bfloat16
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    has = any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    return torch.bfloat16 if has else torch.float32


def refuse_device(device: str) -> None:
    """Check before hours of work that torch can compute on a device, in float64, too (mps cannot).

    Raises:
        DeviceError: it cannot; the message says why, and where it can.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that torch once knew
            torch.ones(1, dtype=torch.float64, device=device).add_(1.0).item()
    except Exception as error:  # of any kind: each backend has its own
        reason = textwrap.shorten(str(error).partition("\n")[0], 90, placeholder=" ...")
        usable = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise DeviceError(
            f"device {device}",
            f"torch cannot compute there ({reason})",
            f"it can on: {usable}",
        ) from error
