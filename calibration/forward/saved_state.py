"""What a pass over a text must remember to go on behind a layer, and its form in a file.

Between two layers that is little beside the work that it holds: the hidden states of each stream, and the arrays of the
observers. A state is a zip archive of `.npy` arrays, nothing compressed, as `numpy.savez` writes it: `numpy.load` shows
it, each part bears a CRC32, and the table at its end is missing where it is torn. Hidden states go from and to where
they lie, some rows at a time, so that there is no second copy of them.
"""

from __future__ import annotations

import io
import json
import struct
import tokenize
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib import format as npy
from torch import Tensor

from calibration.forward.streams import Observer, Timings
from quantize.tensors import Array

__all__ = ["DamagedStateError", "Keeper", "PassState", "opened", "read_json", "write_json"]

ROWS = 1024  # of hidden states that are written or read at once

# What reading an archive raises that is not one, or not one any more.
_DAMAGE = (
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


class DamagedStateError(Exception):
    """A state that is torn, changed, or of another pass."""


class Keeper(Protocol):
    """Where states are kept; whether and when is its own decision."""

    def recall(self, state: PassState) -> None:
        """Bring the state to where an earlier pass was, if there was one; else it stays as it is, at the beginning."""
        ...

    def keep(self, state: PassState) -> None:
        """The text has passed one layer more."""
        ...


class PassState:
    """The state of a pass between two layers, live: nothing is copied before it is written.

    `n_done` layers of `n_layer` are done, and `n_weight` weights were passed on; `hidden` are the states [T, D] of each
    stream, where they lie.
    """

    def __init__(self, n_layer: int, observers: Sequence[Observer], timings: Timings) -> None:
        """At the beginning.

        Args:
            n_layer: layers of the model.
            observers: what they have `kept` is part of the state.
            timings: these, too, so that the rate of a pass that was stopped is true.
        """
        self.n_layer = n_layer
        self.n_done = 0
        self.n_weight = 0
        self.hidden: list[Tensor] = []
        self._observers, self._timings = observers, timings

    @property
    def n_bytes(self) -> int:
        """Of the arrays; the rest is small."""
        kept = (array for observer in self._observers for array in observer.kept().values())
        return sum(hidden.nbytes for hidden in self.hidden) + sum(array.nbytes for array in kept)

    def write(self, archive: zipfile.ZipFile) -> None:
        """Add everything to an archive.

        Raises:
            OSError: the disk is full or broken.
        """
        told = {"n_done": self.n_done, "n_weight": self.n_weight, "timings": asdict(self._timings)}
        write_json(archive, "pass", told)
        for index, hidden in enumerate(self.hidden):
            _write_array(archive, f"hidden.{index}", _header_of(hidden), _as_bytes(hidden))
        for index, observer in enumerate(self._observers):
            for name, array in observer.kept().items():
                _write_array(archive, f"observer.{index}.{name}", _header(array.dtype, array.shape), [array])

    def read(self, archive: zipfile.ZipFile) -> None:
        """Become what was written; where that fails, only the hidden states are worth nothing any more.

        Raises:
            DamagedStateError: something is missing, torn, or does not fit this pass.
        """
        told = read_json(archive, "pass")
        n_done, n_weight = int(told["n_done"]), int(told["n_weight"])
        timings = Timings(
            **{name: type(value)(told["timings"][name]) for name, value in asdict(self._timings).items()}
        )
        if not 0 < n_done <= self.n_layer or timings.n_token != self._timings.n_token:
            raise DamagedStateError
        for index, hidden in enumerate(self.hidden):
            _read_rows(archive, f"hidden.{index}", hidden)
        found: list[dict[str, Array]] = [{} for _ in self._observers]
        for name in archive.namelist():
            kind, _, rest = name.removesuffix(".npy").partition(".")
            if kind == "observer":
                owner, _, name_there = rest.partition(".")
                found[int(owner)][name_there] = _read_array(archive, name)
        for observer, arrays in zip(self._observers, found, strict=True):
            for name, array in observer.kept().items():
                if arrays[name].shape != array.shape or arrays[name].dtype != array.dtype:
                    raise DamagedStateError
        # All of it is there and fits: from here on nothing fails halfway.
        for observer, arrays in zip(self._observers, found, strict=True):
            observer.restore(arrays)
        for name, value in asdict(timings).items():
            setattr(self._timings, name, value)
        self.n_done, self.n_weight = n_done, n_weight


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive of a state, to be read.

    Raises:
        DamagedStateError: it is none; also in place of what reading its parts raises.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            n_bytes = path.stat().st_size
            for info in archive.infolist():
                # What is stored plainly within the file cannot be larger than the file, whatever its header says.
                if info.compress_type != zipfile.ZIP_STORED or info.file_size > n_bytes:
                    raise DamagedStateError
            yield archive
    except _DAMAGE as error:
        raise DamagedStateError from error


def write_json(archive: zipfile.ZipFile, name: str, told: Mapping[str, Any]) -> None:
    """Add a small part in JSON.

    Raises:
        OSError: the disk is full or broken.
    """
    archive.writestr(zipfile.ZipInfo(f"{name}.json"), json.dumps(told))


def read_json(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    """A part that `write_json` wrote; raises what `opened` turns into a `DamagedStateError`."""
    found = json.loads(archive.read(f"{name}.json"))
    if not isinstance(found, dict):
        raise DamagedStateError
    return found


def _as_bytes(hidden: Tensor) -> Iterator[Array]:
    """uint8 [t, D x bytes of a number], some rows at a time: views, where the tensor is in memory."""
    for rows in _in_parts(hidden):
        yield rows.cpu().view(torch.uint8).numpy()


def _in_parts(hidden: Tensor) -> Iterator[Tensor]:
    return (hidden[first : first + ROWS] for first in range(0, len(hidden), ROWS))


def _header(dtype: npt.DTypeLike, shape: tuple[int, ...]) -> bytes:
    """What stands before the numbers, as `numpy.save` writes it."""
    file = io.BytesIO()
    descr = npy.dtype_to_descr(np.dtype(dtype))
    npy.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


def _header_of(hidden: Tensor) -> bytes:
    return _header(np.uint8, (len(hidden), hidden.shape[1] * hidden.itemsize))


def _write_array(archive: zipfile.ZipFile, name: str, header: bytes, parts: Iterable[Array]) -> None:
    # Without a ZipInfo the archive would bear the time, and equal states would differ.
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
        file.write(header)
        for part in parts:
            file.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)


def _read_array(archive: zipfile.ZipFile, name: str) -> Array:
    """A small array; its header is read when the CRC32 has confirmed it."""
    content = archive.read(name)
    file = io.BytesIO(content)
    if npy.read_magic(file) != (1, 0):
        raise DamagedStateError
    shape, _, dtype = npy.read_array_header_1_0(file)
    found: Array = np.frombuffer(content, dtype, offset=file.tell()).reshape(shape)
    return found


def _read_rows(archive: zipfile.ZipFile, name: str, hidden: Tensor) -> None:
    """Fill hidden states; the CRC32 is compared with the last bytes."""
    header = _header_of(hidden)
    with archive.open(f"{name}.npy") as file:
        if file.read(len(header)) != header:
            raise DamagedStateError
        for rows in _in_parts(hidden):
            data = bytearray(file.read(rows.nbytes))
            rows.copy_(torch.frombuffer(data, dtype=hidden.dtype).view(rows.shape))
        if file.read(1):
            raise DamagedStateError
