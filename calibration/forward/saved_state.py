"""The state of a pass over a text between two layers, and its form in a file, from which a later run goes on.

The state is small beside the work that it saves: the hidden states of each stream, and the arrays of the observers. Its
file is a zip archive of `.npy` arrays, nothing compressed, as `numpy.savez` writes it: `numpy.load` shows it, each
member bears a CRC32, and a torn file lacks the table at its end. Hidden states are written from and read to their
place, some rows at a time, so there is no second copy of them.
"""

from __future__ import annotations

import io
import json
import struct
import tokenize
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib import format as npy
from torch import Tensor

from calibration.forward.streams import Observer
from calibration.forward.timings import Timings
from quantize.exceptions import DamagedStateError
from quantize.tensors import Array

__all__ = ["Keeper", "PassState", "opened", "read_json", "write_json"]

ROWS = 1024  # of hidden states that are written or read at once

_DAMAGE = (  # what zipfile, numpy and json raise on damaged or foreign files
    zipfile.BadZipFile,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    struct.error,
    SyntaxError,
    tokenize.TokenError,
    TypeError,
    ValueError,
)


class Keeper(Protocol):
    """Keeps the state of a pass, and decides whether and when to write it."""

    def recall(self, state: PassState) -> None:
        """Bring the state to where an earlier pass stopped, if there was one; else leave it at the beginning."""
        ...

    def keep(self, state: PassState) -> None:
        """Take note that the text has passed one layer more."""
        ...


class PassState:
    """The live state of a pass between two layers: nothing is copied before it is written.

    `n_done` layers of `n_layer` are done, and `n_weight` weights were handed out; `hidden` are the states [T, D] of
    each stream, in their place.
    """

    def __init__(
        self, n_layer: int, hidden: Sequence[Tensor], observers: Sequence[Observer], timings: Timings
    ) -> None:
        """Begin with no layer done.

        Args:
            n_layer: layers of the model.
            hidden: the hidden states of each stream.
            observers: the arrays that they have `kept` are part of the state.
            timings: are part of it, too, so that the rate of a pass that was stopped is true.
        """
        self.n_layer = n_layer
        self.n_done = 0
        self.n_weight = 0
        self.hidden, self.timings = hidden, timings
        self._observers = observers

    @property
    def n_bytes(self) -> int:
        """Bytes of the arrays; the rest is small."""
        kept = (array for observer in self._observers for array in (observer.kept() or {}).values())
        return sum(hidden.nbytes for hidden in self.hidden) + sum(array.nbytes for array in kept)

    def write(self, archive: zipfile.ZipFile) -> None:
        """Add everything to an archive.

        Raises:
            OSError: the disk is full or broken.
        """
        figures = {"n_done": self.n_done, "n_weight": self.n_weight, "timings": self.timings.as_dict()}
        write_json(archive, "pass", figures)
        for index, hidden in enumerate(self.hidden):
            _write_array(archive, f"hidden.{index}", _header_of(hidden), _as_bytes(hidden))
        for index, observer in enumerate(self._observers):
            for name, array in (observer.kept() or {}).items():
                _write_array(archive, f"observer.{index}.{name}", _header(array.dtype, array.shape), [array])

    def read(self, archive: zipfile.ZipFile) -> None:
        """Restore from an archive. On failure the hidden states are undefined; nothing else has changed.

        Raises:
            DamagedStateError: something is missing, torn, or does not fit this pass; also what `opened` turns into one.
        """
        figures = read_json(archive, "pass")
        n_done, n_weight = int(figures["n_done"]), int(figures["n_weight"])
        timings = Timings()
        timings.restore(figures["timings"])
        if not 0 < n_done <= self.n_layer or timings.n_token != self.timings.n_token:
            raise DamagedStateError("pass.json", "is the state of another pass")
        for index, hidden in enumerate(self.hidden):
            _read_rows(archive, f"hidden.{index}", hidden)
        kept = self._read_kept(archive)
        # All of it is there and fits: from here on nothing fails halfway.
        for observer, arrays in zip(self._observers, kept, strict=True):
            observer.restore(arrays)
        self.timings.restore(figures["timings"])
        self.n_done, self.n_weight = n_done, n_weight

    def _read_kept(self, archive: zipfile.ZipFile) -> list[dict[str, Array]]:
        """The arrays of each observer."""
        kept: list[dict[str, Array]] = [{} for _ in self._observers]
        for member in archive.namelist():
            kind, _, rest = member.removesuffix(".npy").partition(".")
            if kind == "observer":
                index, _, name = rest.partition(".")
                kept[int(index)][name] = _read_array(archive, member)
        for number, (observer, arrays) in enumerate(zip(self._observers, kept, strict=True)):
            for name, array in (observer.kept() or {}).items():
                if arrays[name].shape != array.shape or arrays[name].dtype != array.dtype:
                    raise DamagedStateError(f"observer.{number}.{name}", "has another shape in this pass")
        return kept


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open the archive of a state for reading.

    Raises:
        DamagedStateError: the file is no such archive; also in place of whatever reading its members raises.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            n_bytes = path.stat().st_size
            for info in archive.infolist():
                # A member that is stored plainly cannot be larger than the file, whatever its header says.
                if info.compress_type != zipfile.ZIP_STORED or info.file_size > n_bytes:
                    raise DamagedStateError(str(path), "holds a member that is compressed or too large")
            yield archive
    except _DAMAGE as error:
        raise DamagedStateError(str(path), "is damaged, or no state") from error


def write_json(archive: zipfile.ZipFile, name: str, content: Mapping[str, Any]) -> None:
    """Add a small member in JSON.

    Raises:
        OSError: the disk is full or broken.
    """
    archive.writestr(zipfile.ZipInfo(f"{name}.json"), json.dumps(content))


def read_json(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    """Read a member that `write_json` wrote; raises what `opened` turns into a `DamagedStateError`."""
    content = json.loads(archive.read(f"{name}.json"))
    if not isinstance(content, dict):
        raise DamagedStateError(f"{name}.json", "is no object")
    return content


def _as_bytes(hidden: Tensor) -> Iterator[Array]:
    """Hidden states as uint8 [t, D x bytes of a number], some rows at a time; views where the tensor is in memory."""
    for rows in _row_groups(hidden):
        yield rows.cpu().view(torch.uint8).numpy()


def _row_groups(hidden: Tensor) -> Iterator[Tensor]:
    return (hidden[first : first + ROWS] for first in range(0, len(hidden), ROWS))


def _header(dtype: npt.DTypeLike, shape: tuple[int, ...]) -> bytes:
    """The bytes before the numbers of an array, as `numpy.save` writes them."""
    file = io.BytesIO()
    descr = npy.dtype_to_descr(np.dtype(dtype))
    npy.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


def _header_of(hidden: Tensor) -> bytes:
    return _header(np.uint8, (len(hidden), hidden.shape[1] * hidden.itemsize))


def _write_array(archive: zipfile.ZipFile, name: str, header: bytes, pieces: Iterable[Array]) -> None:
    # Without a ZipInfo the archive would bear the time, and equal states would differ.
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
        file.write(header)
        for piece in pieces:
            file.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)


def _read_array(archive: zipfile.ZipFile, name: str) -> Array:
    """Read a small array; its header is parsed after the CRC32 has confirmed it."""
    content = archive.read(name)
    file = io.BytesIO(content)
    if npy.read_magic(file) != (1, 0):
        raise DamagedStateError(name, "is of another version of the npy format")
    shape, _, dtype = npy.read_array_header_1_0(file)
    array: Array = np.frombuffer(content, dtype, offset=file.tell()).reshape(shape)
    return array


def _read_rows(archive: zipfile.ZipFile, name: str, hidden: Tensor) -> None:
    """Fill hidden states; the CRC32 is compared with the last bytes."""
    header = _header_of(hidden)
    with archive.open(f"{name}.npy") as file:
        if file.read(len(header)) != header:
            raise DamagedStateError(name, "has another shape in this pass")
        for rows in _row_groups(hidden):
            data = bytearray(file.read(rows.nbytes))
            rows.copy_(torch.frombuffer(data, dtype=hidden.dtype).view(rows.shape))
        if file.read(1):  # reads on to the end, where the CRC32 is compared
            raise DamagedStateError(name, "is longer than it should be")
