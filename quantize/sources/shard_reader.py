"""Numbers out of the shards of a checkpoint, exactly the bytes that are asked for."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from quantize.containers.shard_index import ShardTensor
from quantize.exceptions import CheckpointError
from quantize.families.binding import QTYPES
from quantize.sources.fingerprint import SeenFiles
from quantize.sources.fp8 import Fp8Tensor, decoded
from quantize.tensors import NUMPY_TYPES, Array

__all__ = ["ShardReader"]

STORED_TYPES: dict[str, np.dtype[Any]] = {
    **{name: NUMPY_TYPES[qtype] for name, qtype in QTYPES.items()},
    "U8": np.dtype(np.uint8),
}


class ShardReader:
    """Reads into fresh arrays: nothing is mapped, nothing is kept; from several threads, too."""

    n_read = 1
    """Reads that go best at once."""

    def __init__(self) -> None:
        self.bytes_read = 0
        """Bytes of weights read so far, by all threads."""

        self._lock = threading.Lock()

    def identity(self, shards: SeenFiles) -> Iterable[bytes]:
        """What decides whether shards are those of an earlier run."""
        return shards.fingerprint()

    def load(self, stored: ShardTensor, start: int, shape: tuple[int, ...], shards: SeenFiles) -> Array:
        """The elements from `start` on, counted in elements of the stored tensor; of FP8 whole rows, as bfloat16.

        Raises:
            CheckpointError: the shard cannot be read any more.
            ModelChangedError: it is no longer the one that was opened.
        """
        if isinstance(stored, Fp8Tensor):
            return self._load_fp8(stored, start, shape, shards)
        values: Array = np.empty(shape, STORED_TYPES[stored.dtype])
        self.fill(values, stored.path, stored.start + start * values.itemsize, shards)
        return values

    def _load_fp8(self, stored: Fp8Tensor, start: int, shape: tuple[int, ...], shards: SeenFiles) -> Array:
        n_col = stored.shape[-1]
        first, n_row = start // n_col, math.prod(shape) // n_col
        codes: Array = np.empty((n_row, n_col), np.uint8)
        self.fill(codes, stored.path, stored.start + start, shards)
        low, high = stored.scale_row(first), stored.scale_row(first + n_row - 1) + 1
        scales = self.load(stored.scales, low * stored.n_scale, (high - low, stored.n_scale), shards)
        return decoded(stored, codes, scales, first).reshape(shape)

    def fill(self, values: Array, path: Path, start: int, shards: SeenFiles) -> None:
        """Read the bytes of a file from `start` on into C-contiguous `values`, with a handle of its own; see `load`."""
        left = values.data.cast("B")
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(start)
                while left and (n_bytes := file.readinto(left)):
                    left = left[n_bytes:]
                shards.confirm(path, file.fileno())
        except OSError as failure:
            raise CheckpointError(str(path), f"cannot be read: {failure.strerror}") from None
        if left:
            raise CheckpointError(str(path), "ends before its size says", "see to the disk")
        with self._lock:
            self.bytes_read += values.nbytes
