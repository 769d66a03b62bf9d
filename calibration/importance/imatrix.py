"""The importance matrix, and llama.cpp's two file forms of it, in and out.

For every weight matrix (and every expert of it) llama-imatrix keeps the sum over tokens of the squared input
activations of each column, and the number of tokens. llama-quantize divides one by the other and weighs the
rounding error of each column with the result. This module knows files and arithmetic only;
`calibration.importance.observers` fills the sums.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from gguf import GGUFWriter

from quantize.containers.gguf import GGUFTensor, read_container
from quantize.containers.untrusted import quoted, regular_size
from quantize.exceptions import ImatrixError, OutputError
from quantize.guide import Guide
from quantize.tensors import QType, TensorSpec

__all__ = ["Entry", "Imatrix", "Starved", "load_imatrix", "save_imatrix"]

Vector = npt.NDArray[np.float32]

SUMS, COUNTS = ".in_sum2", ".counts"
MAX_STRING = 127  # bytes that llama-quantize keeps of a string override (llama_model_kv_override.val_str)


@dataclass
class Entry:
    """What is known of one tensor: per matrix the sums of squares [n_mat, n_per_row] and the tokens [n_mat].

    `n_mat` is the number of experts, 1 where there are none. Legacy files do not say it: until
    `Imatrix.check` has seen the model, their entries hold all experts in one row, and `counts` are
    llama-imatrix's calls, not tokens.
    """

    sums: Vector
    counts: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Starved:
    """An expert that fewer tokens reached than were asked for."""

    name: str
    xid: int
    n_tokens: int


@dataclass
class Imatrix:
    """The importances of a model's tensors: `importance(name, xid)`.

    `prior` is a number of tokens: an expert's importance is shrunk toward the mean over the tensor's experts
    (all tokens of the layer together) as if that many tokens of the mean kind had reached it besides its own.
    0 is llama.cpp's behaviour to the byte: an expert without tokens gets ones, one with three tokens is
    trusted fully.
    """

    entries: dict[str, Entry]
    datasets: list[str] = field(default_factory=list)
    chunk_count: int = 0
    chunk_size: int = 512
    file: str = ""
    legacy: bool = False
    prior: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a prior that weighs nothing or everything.

        Raises:
            ImatrixError: it is negative, NaN or infinite.
        """
        if not (math.isfinite(self.prior) and self.prior >= 0):
            raise ImatrixError(f"--prior {self.prior:g}: is not a number of tokens; give 0 or more")

    def guide(self, name: str, xid: int = 0) -> Guide | None:
        """The importances of one expert as `quantize.encode` takes them; raises as `importance`."""
        return Guide.of(self.importance(name, xid))

    def importance(self, name: str, xid: int = 0) -> Vector | None:
        """The importances [n_per_row] of one expert, or None where nothing is known of the tensor.

        The mean square sum/count in float32, as `load_imatrix` of llama.cpp's tools/quantize/quantize.cpp
        computes it.

        Raises:
            ImatrixError: the entry has no such expert, or `prior` was asked of a file without token counts.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        n_mat = len(entry.counts)
        if not 0 <= xid < n_mat:
            raise ImatrixError(f"{self._label}: {name} has {n_mat} expert(s), expert {xid} was asked for")
        if self.prior > 0:
            if self.legacy:
                raise ImatrixError(
                    f"{self._label}: a legacy .dat file holds no token counts, so --prior cannot be applied; "
                    "use the GGUF form or --prior 0"
                )
            return self._shrunk(entry, xid)
        sums: Vector = entry.sums[xid]
        count = entry.counts[xid]
        if count > 0:
            return np.asarray(sums / np.float32(count), np.float32)
        # for a legacy file quantize.cpp takes the values as they are where ncall is not positive
        return sums.copy() if self.legacy else np.ones_like(sums)

    def _shrunk(self, entry: Entry, xid: int) -> Vector:
        total = int(entry.counts.sum())
        if total == 0:
            return np.ones(entry.sums.shape[1], np.float32)
        mean = entry.sums.sum(axis=0, dtype=np.float64) / total
        blend = (entry.sums[xid] + self.prior * mean) / (int(entry.counts[xid]) + self.prior)
        return np.asarray(blend, np.float32)

    def starved(self, fewer_than: int = 1) -> list[Starved]:
        """The experts that fewer than so many tokens reached; with `prior` 0 those without any weigh nothing.

        Dense tensors are not experts and never named; a legacy file does not know (an empty list).
        """
        if self.legacy:
            return []
        return [
            Starved(name, xid, int(count))
            for name, entry in self.entries.items()
            if len(entry.counts) > 1
            for xid, count in enumerate(entry.counts)
            if count < fewer_than
        ]

    def check(self, specs: Iterable[TensorSpec]) -> list[str]:
        """Hold the entries against a model's tensors, and give legacy entries their expert count.

        Returns warnings: a `token_embd` entry that does not fit is dropped, as in llama-quantize.

        Raises:
            ImatrixError: an entry does not have n_per_row x n_expert values, or not one count per expert.
        """
        warnings = []
        for spec in specs:
            entry = self.entries.get(spec.name)
            if entry is None:
                continue
            want = spec.n_per_row * spec.n_matrix
            n_mat = len(entry.counts)
            if entry.sums.size != want:
                told = f"{spec.name} has {entry.sums.size} values there and needs {want} in this model"
                if "token_embd" not in spec.name:
                    raise ImatrixError(f"{self._label}: {told}; it was made for another model")
                warnings.append(f"{self._label}: {told}; ignored")
                del self.entries[spec.name]
            elif n_mat != spec.n_matrix:
                # one count for all experts: .dat files, and GGUF files made from them
                if n_mat != 1:
                    raise ImatrixError(
                        f"{self._label}: {spec.name} has counts of {n_mat} experts and the model has "
                        f"{spec.n_matrix}; it was made for another model"
                    )
                entry.sums = entry.sums.reshape(spec.n_matrix, spec.n_per_row)
                entry.counts = np.repeat(entry.counts, spec.n_matrix)
        return warnings

    def missing(self, specs: Iterable[TensorSpec]) -> list[str]:
        """Names of the given tensors (those that are to be quantized) of which nothing is known."""
        return [spec.name for spec in specs if spec.name not in self.entries]

    def metadata(self) -> dict[str, str | int | float]:
        """The keys that llama-quantize writes into the model, in its order (tools/quantize/quantize.cpp).

        Strings are cut to 127 bytes as there, the counts are u32; only the first dataset is named; the number
        of chunks is left out where it is not known. One key is ours, `quantize.imatrix.prior`, where there is one: what
        llama.cpp would have done otherwise is named in the file.
        """
        keys: dict[str, str | int | float] = {"quantize.imatrix.file": _cut(self.file)}
        if self.datasets:
            keys["quantize.imatrix.dataset"] = _cut(self.datasets[0])
        keys["quantize.imatrix.entries_count"] = len(self.entries)
        if self.chunk_count > 0:
            keys["quantize.imatrix.chunks_count"] = self.chunk_count
        if self.prior > 0:
            keys["quantize.imatrix.prior"] = float(self.prior)
        return keys

    @property
    def _label(self) -> str:
        return self.file or "imatrix"


def load_imatrix(path: str | Path, *, prior: float = 0.0) -> Imatrix:
    """Read an importance matrix: llama.cpp's GGUF form, and anything else as its legacy .dat.

    `file` becomes the path as given, which is what llama-quantize writes into the model's metadata.

    Raises:
        ImatrixError: it cannot be read, is damaged, or holds values that are not finite.
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
        raise ImatrixError(f"{path}: cannot be read as an imatrix: {error.strerror or error}") from error
    imatrix = replace(imatrix, file=str(path), prior=prior)
    for name, entry in imatrix.entries.items():
        if not np.isfinite(entry.sums).all():
            raise ImatrixError(
                f"{path}: {quoted(name)} holds a value that is not finite; make the imatrix anew"
            )
    return imatrix


def _load_gguf(path: str | Path) -> Imatrix:
    """Mirror of common/imatrix-loader.cpp:common_imatrix_load."""
    container = read_container(Path(path), ImatrixError)
    keys, tensors = container.keys, container.tensors
    if not tensors:
        raise ImatrixError(f"{path}: holds no data")
    needed = ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")
    if lacking := [key for key in needed if key not in keys]:
        raise ImatrixError(f"{path}: is not an imatrix, it lacks {', '.join(lacking)}")
    datasets, chunk_count, chunk_size = (keys[key] for key in needed)
    if not (isinstance(datasets, list) and isinstance(chunk_count, int) and isinstance(chunk_size, int)):
        raise ImatrixError(f"{path}: an imatrix.* key has the wrong type")
    if not (0 <= chunk_count < 2**32 and 0 <= chunk_size < 2**32):
        raise ImatrixError(f"{path}: {chunk_count} chunks of {chunk_size} tokens: damaged; fetch it again")

    entries = {}
    for base in sorted({name.removesuffix(SUMS).removesuffix(COUNTS) for name in tensors}):
        sums, counts = tensors.get(base + SUMS), tensors.get(base + COUNTS)
        if sums is None and counts is None:
            continue  # neither suffix: llama.cpp passes over it too
        if sums is None or counts is None:
            raise ImatrixError(f"{path}: {quoted(base)} has only one of {SUMS} and {COUNTS}")
        if sums.spec.qtype != QType.F32 or counts.spec.qtype != QType.F32:
            raise ImatrixError(f"{path}: sums and counts of {quoted(base)} must be F32")
        n_mat = counts.spec.n_elements
        if sums.spec.n_elements % n_mat:
            raise ImatrixError(f"{path}: {quoted(base)} has {sums.spec.n_elements} sums for {n_mat} counts")
        tokens = _values(path, counts)
        if not np.isfinite(tokens).all() or (tokens < 0).any() or (tokens >= 2**62).any():
            raise ImatrixError(f"{path}: {quoted(base)} has a count that is no number of tokens")
        entries[base] = Entry(_values(path, sums).reshape(n_mat, -1), np.rint(tokens).astype(np.int64))
    if not entries:
        raise ImatrixError(f"{path}: holds no importances")
    return Imatrix(entries, [str(name) for name in datasets], chunk_count, chunk_size)


def _values(path: str | Path, stored: GGUFTensor) -> Vector:
    """All values of an F32 tensor, which `read_container` found to lie within the file."""
    found = np.fromfile(path, "<f4", stored.spec.n_elements, offset=stored.offset)
    if len(found) < stored.spec.n_elements:
        raise ImatrixError(f"{path}: became shorter while it was read")
    return found.astype(np.float32, copy=False)


def _load_legacy(file: IO[bytes], n_bytes: int, label: str) -> Imatrix:
    """Mirror of common/imatrix-loader.cpp:common_imatrix_load_legacy; sizes are checked before reading."""
    neither = "is neither a GGUF nor a legacy imatrix"

    def read(size: int, what: str) -> bytes:
        if not 0 <= size <= n_bytes - file.tell():
            raise ImatrixError(f"{label}: {neither} ({what} does not fit the file)")
        return file.read(size)

    def read_i32(what: str) -> int:
        (value,) = struct.unpack("<i", read(4, what))
        return int(value)

    n_entries = read_i32("the number of entries")
    if n_entries < 1:
        raise ImatrixError(f"{label}: {neither} ({n_entries} entries)")
    entries = {}
    for index in range(n_entries):
        where = f"entry {index + 1} of {n_entries}"
        try:
            name = read(read_i32(where), where).decode("utf-8")
        except UnicodeDecodeError:
            raise ImatrixError(f"{label}: {neither} ({where} has no name)") from None
        n_call, n_values = read_i32(where), read_i32(where)
        if n_values < 1:
            raise ImatrixError(f"{label}: {where} has {n_values} values")
        values = np.frombuffer(read(4 * n_values, where), "<f4").astype(np.float32)
        entries[name] = Entry(values.reshape(1, -1), np.array([n_call], np.int64))
    chunk_count, datasets = 0, []
    if file.tell() < n_bytes:  # the trailer is optional
        chunk_count = read_i32("the number of chunks")
        if file.tell() < n_bytes:
            dataset = read(read_i32("the dataset"), "the dataset").decode("utf-8", "replace")
            datasets = [dataset] if dataset else []
    return Imatrix(entries, datasets, chunk_count, chunk_size=0, legacy=True)


def save_imatrix(path: str | Path, imatrix: Imatrix, *, legacy: bool = False) -> None:
    """Write llama.cpp's GGUF form, or its legacy .dat (save_imatrix* of tools/imatrix/imatrix.cpp).

    The file appears under its name only when it is whole. `prior` is not written: files hold what was
    counted.

    Raises:
        OutputError: the folder or disk refuses.
        ImatrixError: a legacy imatrix was to be written as GGUF; it holds no token counts.
    """
    target = Path(path)
    part = target.with_name(target.name + ".part")
    if imatrix.legacy and not legacy:
        raise ImatrixError(
            f"{imatrix.file}: a legacy imatrix holds no token counts, the GGUF form needs them"
        )
    try:
        if legacy:
            part.write_bytes(b"".join(_legacy_pieces(imatrix)))
        else:
            _write_gguf(part, imatrix)
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        # What numpy could not write in full has no errno.
        told = error.strerror or f"{error}; is the disk full?"
        raise OutputError(f"{path}: cannot be written: {told}") from error


def _write_gguf(path: Path, imatrix: Imatrix) -> None:
    writer = GGUFWriter(path, arch="")  # an empty architecture is not written: an imatrix has none
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", imatrix.datasets or [""])  # the key must exist
    writer.add_uint32("imatrix.chunk_count", imatrix.chunk_count)
    writer.add_uint32("imatrix.chunk_size", imatrix.chunk_size)
    for name, entry in _sorted(imatrix.entries):
        lead = (len(entry.counts),) if len(entry.counts) > 1 else ()  # the C writer drops trailing ones of ne
        writer.add_tensor(name + SUMS, np.ascontiguousarray(entry.sums).reshape(*lead, -1))
        writer.add_tensor(name + COUNTS, entry.counts.astype(np.float32).reshape(*lead, -1))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


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
    dataset = (imatrix.datasets[-1] if imatrix.datasets else "").encode("utf-8")
    return [*pieces, struct.pack("<ii", imatrix.chunk_count, len(dataset)), dataset]


def _sorted(entries: Mapping[str, Entry]) -> Sequence[tuple[str, Entry]]:
    """By the bytes of the name, as std::sort orders std::string."""
    return sorted(entries.items(), key=lambda item: item[0].encode("utf-8"))


def _cut(text: str) -> str:
    return text.encode("utf-8", "replace")[:MAX_STRING].decode("utf-8", "ignore")
