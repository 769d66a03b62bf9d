"""Where the hidden states of a long text are kept: memory, or files in a scratch folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quantize.exceptions import OutputError

__all__ = ["Storage"]


@dataclass(frozen=True)
class Storage:
    """How hidden states are kept: `dtype` torch.float32 or torch.bfloat16; in memory, or in files in `scratch`."""

    dtype: torch.dtype = torch.float32
    scratch: Path | None = None

    @contextmanager
    def open(self, device: str) -> Iterator[Shelf]:
        """A shelf whose tensors live as long as the context; scratch files are deleted after it.

        Raises:
            OutputError: the scratch folder cannot be written.
        """
        with ExitStack() as stack:
            folder = None
            if self.scratch is not None:
                try:
                    made = tempfile.TemporaryDirectory(
                        prefix="moe-gguf-", dir=self.scratch, ignore_cleanup_errors=True
                    )
                except OSError as error:
                    raise OutputError(
                        f"{self.scratch}: no scratch file can be made: {error.strerror}"
                    ) from error
                folder = Path(stack.enter_context(made))
            yield Shelf(folder, device)


class Shelf:
    """Hands out tensors [T, D] to be filled."""

    def __init__(self, folder: Path | None, device: str) -> None:
        self._folder = folder
        self._device = device
        self._n_file = 0

    def empty(self, n_row: int, n_column: int, dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor [n_row, n_column]; in a scratch file it lives in the page cache of the system.

        Raises:
            OutputError: the disk of the scratch folder is full.
        """
        if self._folder is None:
            return torch.empty(n_row, n_column, dtype=dtype, device=self._device)
        path = self._folder / f"hidden-{self._n_file}"
        self._n_file += 1
        n_bytes = n_row * n_column * dtype.itemsize
        try:
            with path.open("wb") as file:
                file.truncate(n_bytes)
            raw = np.memmap(path, np.uint8, "r+", shape=(n_bytes,))
        except OSError as error:
            raise OutputError(
                f"{path}: no scratch file of {n_bytes} bytes can be made: {error.strerror}"
            ) from error
        return torch.from_numpy(raw).view(dtype).view(n_row, n_column)
