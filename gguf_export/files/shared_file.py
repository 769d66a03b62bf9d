"""A large file that is written in pieces by processes of several machines, which all see it under one name."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf_export.files.disk import durable
from gguf_export.files.durable import Piece, disk_errors
from quantize.exceptions import OutputError
from quantize.tensors import Array

__all__ = ["OutputNotSeenError", "SharedFile"]

_FLAGS = sum(getattr(os, name, 0) for name in ("O_WRONLY", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY", "O_DSYNC"))
"""With O_DSYNC a write is durable when it returns. It also makes Linux's client of NFS send the bytes that were
written and no others: without, it may send whole pages, and with them a neighbour's bytes as they were before
(fs/nfs/write.c: nfs_can_extend_write)."""


class OutputNotSeenError(OutputError):
    """This machine does not see the file under its name, or may not write to it."""


@dataclass(frozen=True)
class SharedFile:
    """A file that exists, with its size, and that other processes write to; it can be pickled."""

    path: Path
    """Absolute."""
    n_bytes: int
    inode: int
    """What tells it from another one of the same name. The number of the device is each machine's own."""

    def write(self, pieces: Sequence[tuple[int, Array]]) -> list[Piece]:
        """Put bytes at offsets, durably.

        Args:
            pieces: (offset, uint8 array, C-contiguous) of each, in the order of the offsets.

        Returns:
            What the journal wants to know of each piece.

        Raises:
            OutputNotSeenError: there is no such file here, or it is another one, or closed to us; nothing was written.
            OutputError: the disk is full or broken.
        """
        handle = self._opened()
        try:
            with disk_errors(self.path, self.n_bytes), open(handle, "wb", buffering=0, closefd=False) as file:
                for offset, data in _joined(pieces):
                    left = data
                    file.seek(offset)
                    while left:
                        left = left[file.write(left) :]
                if not hasattr(os, "O_DSYNC"):
                    durable(file)
        finally:
            os.close(handle)
        return [Piece(offset, data.nbytes, zlib.crc32(data.data.cast("B"))) for offset, data in pieces]

    def _opened(self) -> int:
        try:
            handle = os.open(self.path, _FLAGS)
        except OSError as error:
            raise OutputNotSeenError(str(self.path), f"is not seen: {error.strerror}") from None
        status = os.fstat(handle)
        is_it = (status.st_ino, status.st_size, status.st_nlink) == (self.inode, self.n_bytes, 1)
        if not is_it or not stat.S_ISREG(status.st_mode):
            os.close(handle)
            raise OutputNotSeenError(str(self.path), "is another file here")
        return handle


def _joined(pieces: Sequence[tuple[int, Array]]) -> list[tuple[int, memoryview]]:
    """Pieces that lie one behind the other as one: each write waits for the disk."""
    joined: list[tuple[int, bytearray | memoryview]] = []
    for offset, piece in pieces:
        data = piece.data.cast("B")
        if joined and joined[-1][0] + len(joined[-1][1]) == offset:
            first, before = joined[-1]
            if not isinstance(before, bytearray):
                before = bytearray(before)
            before += data
            joined[-1] = first, before
        else:
            joined.append((offset, data))
    return [(offset, memoryview(data)) for offset, data in joined]
