"""One slab of a GGUF file held against the same weights of its source: the unit of work of `against`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from calibration.importance.imatrix import Imatrix
from gguf_export.checking.codes import not_nearest
from gguf_export.checking.deviations import BadBlocks, Deviation
from gguf_export.checking.remedies import AGAIN, MAKE
from gguf_export.checking.tolerances import MAX_MOVED, TINY_ERROR, Tolerance, tolerance
from gguf_export.metadata.feedback_keys import has_feedback
from gguf_export.writing.slabs import Slab
from quantize import codec
from quantize.blocks import block_format
from quantize.decoding import can_decode, decode_stored, to_f32
from quantize.recipes.ftypes import NEED_IMPORTANCE
from quantize.sources.gguf_file import GGUFFile
from quantize.sources.model_source import ModelFile
from quantize.tensors import NUMPY_TYPES, Array, QType, Rows, TensorSpec

__all__ = ["IMATRIX_KEY", "FileCheck", "Level", "follows_from_weights", "measure"]

Encoder = tuple["np.dtype[Any]", QType, bool]
"""The type of the weights, that of the blocks, and whether importances weigh: a kernel of `compile_kernels`."""

Level = Literal["auto", "bytes", "errors"]
"""How strictly quantized tensors are compared: see `FileCheck.level`."""

IMATRIX_KEY = "quantize.imatrix.file"
"""Names the importance matrix in a file that was made with one (llama.cpp: src/llama-quant.cpp)."""


MANY_TIMES, BESIDE = 5.0, 0.1
"""By how much the largest error of a block stands out; in whole files it was 2.6 times the median, 5.6 times that of
Q8_0, whose errors are below 0.05 of the largest weight."""


def follows_from_weights(qtype: QType) -> bool:
    """Whether the bytes follow from the weights alone, whatever the program and the importances were."""
    return qtype in NUMPY_TYPES or not block_format(qtype).uses_importance


@dataclass(frozen=True)
class FileCheck:
    """A file, the checkpoint or GGUF file that it was made from, and how they are compared."""

    file: GGUFFile
    source: ModelFile
    level: Level = "auto"
    """bytes: they must be those that llama.cpp and this project make with `imatrix`. errors: only types that know no
    importances are compared to the byte. auto: bytes are compared where the importances are known, and may be those of
    another program."""
    imatrix: Imatrix | None = None
    """The importances with which the file was made, None where they are not known or there were none."""

    @property
    def word(self) -> str:
        """What the source is called."""
        return "checkpoint" if self.source.kind == "checkpoint" else "source"

    @property
    def again(self) -> str:
        """What to do where the file is not what the source gives."""
        return AGAIN if self.source.kind == "checkpoint" else MAKE

    @property
    def encodes(self) -> bool:
        """Whether the weights are encoded again, to compare bytes."""
        knows_importances = self.imatrix is not None or IMATRIX_KEY not in self.file.keys
        return self.level == "bytes" or (self.level == "auto" and knows_importances)

    @property
    def is_strict(self) -> bool:
        """Whether bytes of another program are a fault."""
        return self.level == "bytes"

    @property
    def may_have_importances(self) -> bool:
        """Whether the file was made with importances, or perhaps was by a program that does not say so."""
        if self.imatrix is not None or IMATRIX_KEY in self.file.keys:
            return True
        return self.level == "auto"

    def is_comparable(self, spec: TensorSpec) -> bool:
        """Whether the file has this tensor of the source, in a shape that fits, as a copy or in types that can be
        decoded.
        """
        stored = self.file.tensors.get(spec.name)
        if stored is None or not have_same_rows(stored.spec, spec):
            return False
        return self.is_copied(spec) or (can_decode(stored.spec.qtype) and can_decode(spec.qtype))

    def is_copied(self, spec: TensorSpec) -> bool:
        """Whether a tensor keeps the type that a GGUF file has given it, or its blocks: its bytes stay, too."""
        is_stored = self.source.kind == "gguf" or spec.qtype not in NUMPY_TYPES
        return is_stored and self.qtype(spec) == spec.qtype

    def is_exact(self, spec: TensorSpec) -> bool:
        """Whether the bytes of a tensor follow from the source alone."""
        return self.is_copied(spec) or (follows_from_weights(self.qtype(spec)) and not self.is_moved(spec))

    def is_moved(self, spec: TensorSpec) -> bool:
        """Whether error feedback may have chosen the codes of a tensor: away from its weights, for what its errors do
        to the model."""
        is_quantized = self.qtype(spec) not in NUMPY_TYPES
        return is_quantized and not self.is_copied(spec) and has_feedback(self.file.keys)

    def is_encoded(self, spec: TensorSpec) -> bool:
        """Whether the weights of a tensor are encoded again, and its bytes compared."""
        if self.is_copied(spec) or self.is_moved(spec):
            return False
        qtype = self.qtype(spec)
        if qtype in NEED_IMPORTANCE and not self._is_weighted(spec):
            return False
        return follows_from_weights(qtype) or self.encodes

    def encoder(self, spec: TensorSpec) -> Encoder:
        """What encodes the weights of a tensor again: their type, that of the blocks, and whether importances weigh."""
        return np.dtype(NUMPY_TYPES.get(spec.qtype, "<f4")), self.qtype(spec), self._is_weighted(spec)

    def _is_weighted(self, spec: TensorSpec) -> bool:
        return self.imatrix is not None and spec.name in self.imatrix.entries

    def qtype(self, spec: TensorSpec) -> QType:
        """The type in which the file stores a tensor."""
        return self.file.tensors[spec.name].spec.qtype

    def tolerance(self, spec: TensorSpec) -> Tolerance:
        """The errors that this type explains."""
        usual = tolerance(self.qtype(spec))
        return usual._replace(matrix=MAX_MOVED) if self.is_moved(spec) else usual

    def blocks(self, spec: TensorSpec, xid: int, rows: Rows) -> Array:
        """Bytes of the file, uint8 [rows, row bytes]; `spec` is the source's."""
        return self.file.read_blocks(replace(spec, qtype=self.qtype(spec)), xid, rows)

    def decoded(self, spec: TensorSpec, xid: int, rows: Rows) -> Array:
        """Weights of the file, float32 [rows, n_per_row]."""
        return to_f32(decode_stored(self.blocks(spec, xid, rows), self.qtype(spec), spec.n_per_row))

    def weights(self, spec: TensorSpec, xid: int, rows: Rows) -> Array:
        """Weights of the source, float32 [rows, n_per_row]."""
        return to_f32(self.source.read(spec, xid, rows))


def have_same_rows(stored: TensorSpec, spec: TensorSpec) -> bool:
    """Whether two shapes hold the same rows; ggml drops axes of length 1 in front."""
    return stored.n_elements == spec.n_elements and stored.n_per_row == spec.n_per_row


def measure(check: FileCheck, slab: Slab) -> Deviation:
    """Compare one slab.

    Raises:
        CheckpointError, GGUFError: the source or the file cannot be read any more.
        ImatrixError: the importances do not fit the rows.
    """
    spec, qtype = slab.spec, check.qtype(slab.spec)
    blocks = check.blocks(spec, slab.xid, slab.rows)
    block_size, type_size = qtype.block_size, qtype.type_size
    deviation = Deviation(n_blocks=blocks.size // type_size)
    is_copied, is_moved = check.is_copied(spec), check.is_moved(spec)
    if is_copied:
        expected: Array | None = check.source.read_blocks(spec, slab.xid, slab.rows)
    else:
        weights = check.source.read(spec, slab.xid, slab.rows)
        expected = _encoded(check, slab, weights)
    if expected is not None:
        differ = (blocks != expected).reshape(-1, type_size).any(axis=1)
        if not differ.any():
            return deviation
        deviation = replace(deviation, other_bytes=BadBlocks.of(differ, slab.rows))
    if is_copied:
        if not can_decode(qtype):
            return deviation
        weights = check.source.read(spec, slab.xid, slab.rows)
    exact = to_f32(weights)
    with np.errstate(all="ignore"):  # damaged numbers may be infinite
        errors = to_f32(decode_stored(blocks, qtype, spec.n_per_row)) - exact
        deviation = replace(
            deviation,
            squared_error=float(np.square(errors, dtype=np.float64).sum()),
            squared_weights=float(np.square(exact, dtype=np.float64).sum()),
        )
        if qtype in NUMPY_TYPES or is_copied:
            return deviation
        largest_weight = np.abs(exact).reshape(-1, block_size).max(axis=1)
        largest_error = np.abs(errors).reshape(-1, block_size).max(axis=1)
        limits = check.tolerance(spec)
        limit = limits.weight_with_importances if check.may_have_importances else limits.weight
        if is_moved:
            beyond = _stands_out(largest_error, largest_weight, limit)
        else:
            beyond = ~(largest_error <= limit * largest_weight + TINY_ERROR)  # `not <=` also catches NaN
        are_compared = check.is_strict and not is_moved
        wrong_codes = None if are_compared else not_nearest(blocks, exact, qtype, is_moved=is_moved)
    return replace(
        deviation,
        beyond_tolerance=BadBlocks.of(beyond, slab.rows),
        not_nearest=BadBlocks() if wrong_codes is None else BadBlocks.of(wrong_codes, slab.rows),
    )


def _stands_out(largest_error: Array, largest_weight: Array, limit: float) -> Array:
    """The blocks [B] with errors that are much larger than those of the others: how far all have moved is not known.

    Errors are held against the largest weight of the block, and in blocks of small weights against that of others.
    None stands out below `limit`, which the type explains where nothing was moved.
    """
    ratio = np.nan_to_num(largest_error / np.maximum(largest_weight, np.median(largest_weight)), nan=np.inf)
    beyond: Array = ratio > max(limit, MANY_TIMES * np.median(ratio) + BESIDE)
    return beyond


def _encoded(check: FileCheck, slab: Slab, weights: Array) -> Array | None:
    """The bytes that the weights give, None where they depend on importances that are not known."""
    qtype = check.qtype(slab.spec)
    if not check.is_encoded(slab.spec):
        return None
    guide = check.imatrix.guide(slab.spec.name, slab.xid) if check.imatrix else None
    return codec.encode(weights, qtype, guide)
