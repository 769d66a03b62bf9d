"""Importance matrices made to order, the same bytes everywhere, which llama-imatrix was given once for golden data.

They are written by the gguf library and by hand: no code of this project is in them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGUFWriter

__all__ = [
    "INPUTS",
    "MERGES",
    "REFUSED",
    "SHOWN",
    "write_gguf_imatrix",
    "write_inputs",
    "write_legacy_imatrix",
]

Vector = npt.NDArray[np.float32]
Entries = Mapping[str, tuple[Vector, Sequence[int]]]
"""By tensor: sums [n_mat, n_per_row], and a count for each matrix or one for all."""

N_EXPERT, N_EMBD, N_FF = 4, 96, 160


def write_gguf_imatrix(path: Path, entries: Entries, datasets: Sequence[str], chunk_size: int = 512) -> None:
    """The form that llama-imatrix writes today."""
    writer = GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", list(datasets))
    most = max(max(counts) for _, counts in entries.values())
    writer.add_uint32("imatrix.chunk_count", most // chunk_size)
    writer.add_uint32("imatrix.chunk_size", chunk_size)
    for name, (sums, counts) in sorted(entries.items()):
        n_mat = len(counts)
        lead = (n_mat,) if n_mat > 1 else ()
        writer.add_tensor(f"{name}.in_sum2", np.ascontiguousarray(sums.reshape(*lead, -1)))
        writer.add_tensor(f"{name}.counts", np.array(counts, np.float32).reshape(*lead, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_legacy_imatrix(path: Path, entries: Entries, trailer: bytes = b"") -> None:
    """The .dat form: one count of calls for each tensor, and means times calls."""
    parts = [struct.pack("<i", len(entries))]
    for name, (sums, counts) in sorted(entries.items()):
        raw = name.encode()
        parts += [struct.pack("<i", len(raw)), raw, struct.pack("<ii", counts[0], sums.size)]
        parts.append(sums.astype("<f4").tobytes())
    path.write_bytes(b"".join(parts) + trailer)


def _sums(rng: np.random.Generator, n_mat: int, n: int) -> Vector:
    """Squares of numbers with few digits, so that no library's rounding shows; some are tiny."""
    roots = rng.integers(0, 4096, (n_mat, n)) / 64 * (rng.integers(0, 12, (n_mat, n)) > 0)
    return (roots * roots * (1 + rng.integers(0, 8, n))).astype(np.float32)


def _model(seed: int, layers: Sequence[int], tokens: int, *, one_count: bool = False) -> Entries:
    """Attention, router and experts of some layers, of which each starves one expert, and the output."""
    rng = np.random.default_rng(seed)
    entries: dict[str, tuple[Vector, Sequence[int]]] = {}
    for bid in layers:
        counts = [int(n) for n in rng.integers(3, 3 + tokens, N_EXPERT)]
        counts[bid % N_EXPERT] = 0
        for name, n_mat, n in (
            ("attn_q", 1, N_EMBD),
            ("ffn_gate_inp", 1, N_EMBD),
            ("ffn_up_exps", N_EXPERT, N_EMBD),
            ("ffn_down_exps", N_EXPERT, N_FF),
        ):
            sums = _sums(rng, n_mat, n)
            has_experts = n_mat > 1 and not one_count
            if has_experts:
                sums[bid % N_EXPERT] = 0
            entries[f"blk.{bid}.{name}.weight"] = sums, counts if has_experts else [tokens]
    entries["output.weight"] = _sums(rng, 1, N_EMBD), [tokens]
    return entries


def _other_sizes(n_expert: int, n: int) -> Entries:
    sums = np.ones((n_expert, n), np.float32)
    return {
        "blk.0.attn_q.weight": (np.ones((1, N_EMBD), np.float32), [512]),
        "blk.2.ffn_up_exps.weight": (sums, [9] * n_expert),
    }


INPUTS: Mapping[str, Callable[[Path], None]] = {
    "a.gguf": lambda path: write_gguf_imatrix(path, _model(1, (0, 1, 2, 10), 2048), ["a.txt"]),
    "b.gguf": lambda path: write_gguf_imatrix(path, _model(2, (0, 1, 2), 700), ["b.txt", "c d.txt"], 128),
    "c.gguf": lambda path: write_gguf_imatrix(path, _model(3, (0, 1, 2, 3), 1024), ["c.txt"]),
    "one.gguf": lambda path: write_gguf_imatrix(
        path, _model(4, (0, 1, 2), 1024, one_count=True), ["one.txt"]
    ),
    "l.dat": lambda path: write_legacy_imatrix(
        path, _model(5, (0, 1, 2), 7, one_count=True), struct.pack("<ii", 7, 5) + b"l.txt"
    ),
    "bare.dat": lambda path: write_legacy_imatrix(path, _model(6, (0, 1), 3, one_count=True)),
    "wide.gguf": lambda path: write_gguf_imatrix(path, _other_sizes(N_EXPERT, N_EMBD + 1), ["wide.txt"]),
    "eight.gguf": lambda path: write_gguf_imatrix(path, _other_sizes(8, N_EMBD // 2), ["eight.txt"]),
}
"""Files by name, and what writes them."""

SHOWN = ("a.gguf", "b.gguf", "one.gguf", "l.dat", "bare.dat")
"""Files of which there are statistics."""

MERGES: Sequence[tuple[Sequence[str], int, str]] = (
    (["a.gguf"], 512, "gguf"),
    (["a.gguf", "b.gguf"], 512, "gguf"),
    (["b.gguf", "a.gguf"], 512, "gguf"),
    (["a.gguf", "b.gguf", "c.gguf"], 512, "gguf"),
    (["a.gguf", "b.gguf"], 128, "gguf"),
    (["a.gguf", "a.gguf"], 512, "gguf"),
    (["one.gguf", "a.gguf"], 512, "gguf"),
    (["a.gguf", "l.dat"], 512, "gguf"),
    (["l.dat", "a.gguf"], 512, "gguf"),
    (["l.dat", "l.dat"], 512, "gguf"),
    (["bare.dat", "a.gguf"], 512, "gguf"),
    (["a.gguf", "b.gguf"], 512, "dat"),
    (["l.dat"], 512, "dat"),
    (["bare.dat"], 512, "dat"),
    (["l.dat", "b.gguf", "bare.dat"], 128, "dat"),
)
"""Files that were merged: inputs, tokens of a chunk, form of the output."""

REFUSED = (["a.gguf", "wide.gguf"], ["a.gguf", "eight.gguf"])
"""Files that llama-imatrix does not merge."""


def merge_name(files: Sequence[str], n_ctx: int, form: str) -> str:
    """A row of `MERGES` as the golden data name it."""
    return f"{' '.join(files)}: {form}, {n_ctx}"


def write_inputs(folder: Path) -> Path:
    """Write all of `INPUTS`; returns the folder."""
    for name, write in INPUTS.items():
        write(folder / name)
    return folder
