"""llama.cpp's two file forms of an importance matrix, read with suspicion and written whole.

The GGUF form holds sums and token counts. The legacy .dat form holds their quotients times a number of calls: it says
neither how many experts there are nor how many tokens each of them saw.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from gguf import GGUF_DEFAULT_ALIGNMENT, GGUFWriter
from gguf.gguf_writer import WriterState

from calibration.importance.imatrix import Entry, Imatrix, Vector
from quantize.containers.gguf import MAX_NAME, GGUFTensor, read_container
from quantize.containers.untrusted import file_name, label, quoted, regular_size
from quantize.exceptions import GGUFError, ImatrixError, NoSpaceError, OutputError
from quantize.tensors import QType

__all__ = ["COUNTS", "SUMS", "imatrix_bytes", "is_imatrix", "load_imatrix", "save_imatrix"]

SUMS, COUNTS = ".in_sum2", ".counts"
"""Ends of the names of the two tensors that the GGUF form holds of each tensor of the model."""


def load_imatrix(path: str | Path, *, prior: float = 0.0) -> Imatrix:
    """Read an importance matrix: llama.cpp's GGUF form, and anything else as its legacy .dat.

    `file` becomes the path as given (see `label`).

    Raises:
        ImatrixError: the file cannot be read, is damaged, or holds values that are negative or not finite.
    """
    regular_size(Path(path), ImatrixError)
    try:
        with Path(path).open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
            file.seek(0, 2)
            n_bytes = file.tell()
            file.seek(0)
            imatrix = _load_gguf(path) if is_gguf else _load_legacy(file, n_bytes, str(path))
    except OSError as error:
        raise ImatrixError(str(path), f"cannot be read as an imatrix: {error.strerror or error}") from error
    imatrix = replace(imatrix, file=label(path), prior=prior)
    for name, entry in imatrix.entries.items():
        if not np.isfinite(entry.sums).all():
            fault = "is not finite"
        elif (entry.sums < 0).any():
            fault = "is negative, which no sum of squares is"
        else:
            continue
        raise ImatrixError(str(path), f"{quoted(name)} holds a value that {fault}", "make the imatrix anew")
    return imatrix


def is_imatrix(path: Path) -> bool:
    """Whether a file is an importance matrix in GGUF form, by its `general.type`; False where it cannot be read."""
    try:
        return read_container(path).keys.get("general.type") == "imatrix"
    except GGUFError:
        return False


def _load_gguf(path: str | Path) -> Imatrix:
    """Mirror of common/imatrix-loader.cpp:common_imatrix_load."""
    container = read_container(Path(path), ImatrixError)
    keys, tensors = container.keys, container.tensors
    if not tensors:
        raise ImatrixError(str(path), "holds no data")
    needed = ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")
    if lacking := [key for key in needed if key not in keys]:
        raise ImatrixError(str(path), f"is not an imatrix, it lacks {', '.join(lacking)}")
    datasets, chunk_count, chunk_size = (keys[key] for key in needed)
    if not (isinstance(datasets, list) and isinstance(chunk_count, int) and isinstance(chunk_size, int)):
        raise ImatrixError(str(path), "an imatrix.* key has the wrong type")
    if not (0 <= chunk_count < 2**32 and 0 <= chunk_size < 2**32):
        raise ImatrixError(
            str(path), f"{chunk_count} chunks of {chunk_size} tokens: damaged", "fetch it again"
        )
    entries = _gguf_entries(path, tensors)
    return Imatrix(entries, [str(name) for name in datasets], chunk_count, chunk_size)


def _gguf_entries(path: str | Path, tensors: Mapping[str, GGUFTensor]) -> dict[str, Entry]:
    """The sums and counts of each tensor of the model."""
    entries = {}
    for base in sorted({name.removesuffix(SUMS).removesuffix(COUNTS) for name in tensors}):
        sums, counts = tensors.get(base + SUMS), tensors.get(base + COUNTS)
        if sums is None and counts is None:
            continue  # neither suffix: llama.cpp passes over it too
        if sums is None or counts is None:
            raise ImatrixError(str(path), f"{quoted(base)} has only one of {SUMS} and {COUNTS}")
        if sums.spec.qtype != QType.F32 or counts.spec.qtype != QType.F32:
            raise ImatrixError(str(path), f"sums and counts of {quoted(base)} must be F32")
        n_mat = counts.spec.n_elements
        if sums.spec.n_elements % n_mat:
            raise ImatrixError(
                str(path), f"{quoted(base)} has {sums.spec.n_elements} sums for {n_mat} counts"
            )
        tokens = _values(path, counts)
        if not np.isfinite(tokens).all() or (tokens < 0).any() or (tokens >= 2**62).any():
            raise ImatrixError(str(path), f"{quoted(base)} has a count that is no number of tokens")
        entries[base] = Entry(_values(path, sums).reshape(n_mat, -1), np.rint(tokens).astype(np.int64))
    if not entries:
        raise ImatrixError(str(path), "holds no importances")
    return entries


def _values(path: str | Path, stored: GGUFTensor) -> Vector:
    """All values of an F32 tensor, which `read_container` found to lie within the file."""
    values = np.fromfile(path, "<f4", stored.spec.n_elements, offset=stored.offset)
    if len(values) < stored.spec.n_elements:
        raise ImatrixError(str(path), "became shorter while it was read")
    return values.astype(np.float32, copy=False)


def _load_legacy(file: IO[bytes], n_bytes: int, label: str) -> Imatrix:
    """Mirror of common/imatrix-loader.cpp:common_imatrix_load_legacy; sizes are checked before reading."""
    neither = "is neither a GGUF nor a legacy imatrix"

    def read(size: int, what: str) -> bytes:
        if not 0 <= size <= n_bytes - file.tell():
            raise ImatrixError(label, f"{neither} ({what} does not fit the file)")
        return file.read(size)

    def read_i32(what: str) -> int:
        (value,) = struct.unpack("<i", read(4, what))
        return int(value)

    n_entries = read_i32("the number of entries")
    if n_entries < 1:
        raise ImatrixError(label, f"{neither} ({n_entries} entries)")
    entries = {}
    for index in range(n_entries):
        where = f"entry {index + 1} of {n_entries}"
        try:
            name = read(read_i32(where), where).decode("utf-8")
        except UnicodeDecodeError:
            raise ImatrixError(label, f"{neither} ({where} has no name)") from None
        n_call, n_values = read_i32(where), read_i32(where)
        if n_values < 1:
            raise ImatrixError(label, f"{where} has {n_values} values")
        values = np.frombuffer(read(4 * n_values, where), "<f4").astype(np.float32)
        entries[name] = Entry(values.reshape(1, -1), np.array([n_call], np.int64))
    chunk_count, datasets = 0, []
    if file.tell() < n_bytes:  # the trailer is optional
        chunk_count = read_i32("the number of chunks")
        if file.tell() < n_bytes:
            dataset = read(read_i32("the dataset"), "the dataset").decode("utf-8", "replace")
            datasets = [dataset] if dataset else []
    return Imatrix(entries, datasets, chunk_count, chunk_size=0, legacy=True)


def save_imatrix(file: str | Path | IO[bytes], imatrix: Imatrix, *, legacy: bool = False) -> None:
    """Write llama.cpp's GGUF form, or its legacy .dat (save_imatrix* of tools/imatrix/imatrix.cpp).

    `prior` is not written: files hold what was counted.

    Args:
        file: a new file, open for writing, which stays open; or a path, under which a file appears when it is whole.
        imatrix: the matrix.
        legacy: write the .dat form.

    Raises:
        OutputError: the folder or disk refuses.
        ImatrixError: a legacy imatrix was to be written as GGUF; it holds no token counts. Or it has a name that is too
            long for a GGUF file.
    """
    if imatrix.legacy and not legacy:
        raise ImatrixError(imatrix.file, "a legacy imatrix holds no token counts, the GGUF form needs them")
    for name in imatrix.entries if not legacy else ():
        if len((name + SUMS).encode()) > MAX_NAME:
            raise ImatrixError(imatrix.file, f"the name {quoted(name)} is too long for a GGUF file")
    label = str(file) if isinstance(file, (str, Path)) else str(file.name)
    try:
        if isinstance(file, (str, Path)):
            _save(Path(file), imatrix, legacy)
        else:
            _write(file, imatrix, legacy)
    except OSError as error:
        if error.strerror is None:  # numpy could not write all of an array
            raise NoSpaceError(label, f"cannot be written: {error}; is the disk full?") from error
        raise OutputError(label, f"cannot be written: {error.strerror}") from error


def imatrix_bytes(imatrix: Imatrix) -> int:
    """The size of the file in GGUF form that `save_imatrix` makes of a matrix."""
    front = BytesIO()
    writer = _writer(front, imatrix)
    writer.write_ti_data_to_file()
    arrays = [values for tensors in writer.tensors for values in tensors.values()]
    return sum(
        -(-n // GGUF_DEFAULT_ALIGNMENT) * GGUF_DEFAULT_ALIGNMENT
        for n in (front.tell(), *(info.nbytes for info in arrays))
    )


def _save(path: Path, imatrix: Imatrix, legacy: bool) -> None:
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    try:
        with part.open("xb") as file:
            _write(file, imatrix, legacy)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _write(file: Any, imatrix: Imatrix, legacy: bool) -> None:
    if legacy:
        for piece in _legacy_pieces(imatrix):
            file.write(piece)
        return
    _writer(file, imatrix).write_tensors_to_file()


def _writer(file: Any, imatrix: Imatrix) -> GGUFWriter:
    """A writer that has written keys, and knows the tensors."""
    writer = GGUFWriter(None, arch="")  # an empty architecture is not written: an imatrix has none
    writer.add_type("imatrix")
    writer.add_array(
        "imatrix.datasets", [file_name(name) for name in imatrix.datasets] or [""]
    )  # the key must exist
    writer.add_uint32("imatrix.chunk_count", imatrix.chunk_count)
    writer.add_uint32("imatrix.chunk_size", imatrix.chunk_size)
    for name, entry in _sorted(imatrix.entries):
        lead = (len(entry.counts),) if len(entry.counts) > 1 else ()  # the C writer drops trailing ones of ne
        writer.add_tensor(name + SUMS, np.ascontiguousarray(entry.sums).reshape(*lead, -1))
        writer.add_tensor(name + COUNTS, entry.counts.astype(np.float32).reshape(*lead, -1))
    writer.fout, writer.state = [file], WriterState.EMPTY  # the state in which a file is open and empty
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    return writer


def _legacy_pieces(imatrix: Imatrix) -> list[bytes]:
    """Value = sum/count x n_call, n_call = chunks of the busiest expert; ones where nothing was seen."""
    kept = [(name, entry) for name, entry in _sorted(imatrix.entries) if entry.counts.max() > 0]
    pieces = [struct.pack("<i", len(kept))]
    for name, entry in kept:
        raw = name.encode("utf-8")
        if imatrix.legacy:
            n_call, values = int(entry.counts[0]), entry.sums
        else:
            n_call = -(-int(entry.counts.max()) // max(1, imatrix.chunk_size))
            counts = entry.counts.astype(np.float32)[:, None]
            means = np.divide(entry.sums, counts, out=np.ones_like(entry.sums), where=counts > 0)
            values = means * np.float32(n_call)
        pieces += [struct.pack("<i", len(raw)), raw, struct.pack("<ii", n_call, values.size)]
        pieces.append(np.ascontiguousarray(values, "<f4").tobytes())
    dataset = file_name(imatrix.datasets[-1]).encode("utf-8") if imatrix.datasets else b""
    return [*pieces, struct.pack("<ii", imatrix.chunk_count, len(dataset)), dataset]


def _sorted(entries: Mapping[str, Entry]) -> Sequence[tuple[str, Entry]]:
    """By the bytes of the name, as std::sort orders std::string."""
    return sorted(entries.items(), key=lambda item: item[0].encode("utf-8"))
