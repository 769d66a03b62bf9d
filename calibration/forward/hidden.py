"""The place of the hidden states of a long text: memory, or files in a scratch folder."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from calibration.forward.settings import ForwardSettings
from quantize.exceptions import NoSpaceError, OutputError, is_full

__all__ = ["Storage", "free_bytes"]

NO_ALLOCATION = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
ZEROS = bytes(2**20)


def free_bytes(device: str) -> int | None:
    """Bytes that can still be taken on a GPU of CUDA, those included that torch holds in stock; None elsewhere."""
    chosen = torch.device(device)
    if chosen.type != "cuda":
        return None
    index = torch.cuda.current_device() if chosen.index is None else chosen.index
    free, _ = torch.cuda.mem_get_info(index)
    return free + torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)


class Storage:
    """Hands out tensors [T, D] to be filled, all of them on the device, or all in the memory of the host.

    A scratch file has no name: it is gone when its tensor is, or when the process ends, in whatever way it ends. Its
    space is taken before it is mapped, because a process dies without a word that writes into a map for which the disk
    has no room.
    """

    def __init__(self, settings: ForwardSettings) -> None:
        """Take over the folder for scratch files, `settings.scratch`, where one is asked for."""
        self._device, self._folder = settings.device, settings.scratch
        self._place = settings.device

    def settle(self, n_bytes: int, n_working: int) -> None:
        """Choose the place of tensors of `n_bytes` together: the host where they do not fit beside the device's work.

        Args:
            n_bytes: what will be asked for.
            n_working: bytes of the device that must stay free for what is computed.
        """
        free = free_bytes(self._device)
        self._place = self._device if free is None or n_bytes + n_working <= free else "cpu"

    def empty(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """A tensor [T, D] of any content; in a scratch file it lives in the page cache of the system.

        Raises:
            NoSpaceError: the disk of the scratch folder has no room for it.
            OutputError: no file can be made there.
        """
        if self._folder is None:
            return torch.empty(shape, dtype=dtype, device=self._place)
        n_bytes = shape[0] * shape[1] * dtype.itemsize
        try:
            with tempfile.TemporaryFile(prefix="moe-gguf-", dir=self._folder, buffering=0) as file:
                _allocate(file, n_bytes)
                raw = np.frombuffer(mmap.mmap(file.fileno(), n_bytes), np.uint8)  # the map keeps the file
        except OSError as error:
            lacks_space = is_full(error)
            raise (NoSpaceError if lacks_space else OutputError)(
                str(self._folder),
                f"no scratch file of {n_bytes:,} bytes can be made: {error.strerror or error}",
                f"{'make space, or ' * lacks_space}choose another folder with {{setting}}",
                setting="scratch",
            ) from error
        return torch.from_numpy(raw).view(dtype).view(shape)


def _allocate(file: IO[Any], n_bytes: int) -> None:
    """Take so much of the disk; zeros are written where the system has no better way.

    Raises:
        OSError: the disk has no room for them.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, n_bytes)
            return
        except OSError as error:
            if error.errno not in NO_ALLOCATION:
                raise
    left = n_bytes
    while left:
        left -= file.write(ZEROS[:left])
