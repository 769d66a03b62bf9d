"""A GGUF file held against the checkpoint that it was made from: which tensor, which expert, is not what it should be.

Every expert of every tensor is decoded and compared with its weights. Three measures tell faults apart:

* the squared error of an expert, relative to its weights: each type stays below a limit, and foreign weights do not;
* some rows of each expert against those of all experts: experts of a frankenMoE are often fine-tunes of one model, so
  near to each other that a permuted one passes the first measure, and still each is nearest to itself;
* the largest error within a block, relative to its largest weight: a block that was damaged stands out;
* the codes of a block, which follow from its scales and the weights in most types: a changed bit of them shows.

Byte for byte, an encoding is compared where the importances are known with which it was made, or where its type asks
for none. Somebody else's arithmetic may round otherwise in places (builds with fused operations do), which is told from
damage by being everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

from calibration.importance.imatrix import Imatrix
from gguf_export.checking import origins
from gguf_export.checking.codes import misplaced
from gguf_export.checking.findings import Finding, error, info, warning
from gguf_export.checking.tolerances import MOST, TINY, Habits, Judgement, Spots, limit, wild_limit
from gguf_export.writing.slabs import Slab, in_window, slabs_of
from quantize import codec
from quantize.blocks import WRITABLE, can_encode
from quantize.guide import Guide
from quantize.sources.checkpoint import Checkpoint
from quantize.sources.gguf_file import GGUFFile
from quantize.telling import Progress, Report, silent
from quantize.tensors import NUMPY_TYPES, Array, QType, TensorSpec

__all__ = ["Comparison", "compare", "is_certain"]

FETCH = "the file is damaged: fetch it again, or export it again"
AGAIN = "convert the checkpoint again"


def compare(
    file: GGUFFile,
    checkpoint: Checkpoint,
    *,
    exact: bool | None = None,
    imatrix: Imatrix | None = None,
    jobs: int = 1,
    report: Report = silent,
) -> list[Finding]:
    """Hold all tensors of a file against a checkpoint.

    Args:
        file: the file.
        checkpoint: what it was made from.
        exact: the encoding must be the one that llama.cpp and this project make with `imatrix`, to the byte. None: so
            it is compared where the file names no importances, and other programs may have made it. False: only types
            that know no importances, and what is not quantized, are compared to the byte.
        imatrix: the importances with which the file was made.
        jobs: threads.
        report: called with the progress in tensors.

    Raises:
        CheckpointError: the checkpoint cannot be read any more.
        GGUFError: neither can the file.
        ImatrixError: the importance matrix is one of another model.
    """
    specs = {spec.name: spec for spec in checkpoint.specs()}
    findings = list(_same_tensors(file, specs))
    if imatrix is not None:
        imatrix.check(list(specs.values()))
    comparison = Comparison(file, checkpoint, exact, imatrix)
    foreign = {stored.spec.qtype.name for stored in file.tensors.values()} - {
        qtype.name for qtype in WRITABLE
    }
    if comparison.encodes and foreign:
        findings.append(
            info(str(file.path), f"compared by error only, not to the byte: {', '.join(sorted(foreign))}")
        )
    slabs = [slab for slab in slabs_of(checkpoint) if comparison.is_comparable(slab.spec)]
    judged: dict[str, dict[int, Judgement]] = {}
    done, left = 0, {spec.name: 0 for spec in specs.values()}
    for slab in slabs:
        left[slab.spec.name] += 1
    n_tensors = sum(1 for n in left.values() if n)
    for slab, judgement in in_window(comparison.judge, slabs, jobs):
        name = slab.spec.name
        judged.setdefault(name, {}).setdefault(slab.xid, Judgement()).add(judgement)
        left[name] -= 1
        if not left[name]:
            findings += _verdicts(comparison, slab.spec, judged.pop(name))
            done += 1
            report(Progress("comparing with the checkpoint", done, n_tensors, "tensors"))
    return findings + comparison.habits.findings(file.path)


def _same_tensors(file: GGUFFile, specs: dict[str, TensorSpec]) -> Iterator[Finding]:
    for name, spec in specs.items():
        stored = file.tensors.get(name)
        if stored is None:
            yield error(name, "is in the checkpoint and not in the file", AGAIN)
        elif stored.spec.n_elements != spec.n_elements or stored.spec.shape[-1] != spec.shape[-1]:
            yield error(
                name,
                f"has shape {list(stored.spec.shape)}, in the checkpoint {list(spec.shape)}",
                "the file was made from another checkpoint",
            )
        elif _decoder(stored.spec.qtype) is None:
            yield info(name, f"{stored.spec.qtype.name} cannot be decoded here: it is not compared")
    for name in file.tensors:
        if name not in specs:
            yield error(name, "is in the file and not in the checkpoint", AGAIN)


def _decoder(qtype: QType) -> str | None:
    if can_encode(qtype):
        return "ours"
    return "gguf" if qtype.name.startswith(("IQ", "TQ", "NVFP4")) else None


class Comparison:
    """Judges slabs; called from several threads."""

    def __init__(
        self, file: GGUFFile, checkpoint: Checkpoint, exact: bool | None, imatrix: Imatrix | None
    ) -> None:
        self.file, self.checkpoint, self.is_strict, self._imatrix = file, checkpoint, exact is True, imatrix
        self._has_importances = imatrix is not None or "quantize.imatrix.file" in file.keys
        known = imatrix is not None or not self._has_importances
        self.encodes = exact is True or (exact is None and known)
        self._may_have_importances = self._has_importances or (self.encodes and not self.is_strict)
        self.habits = Habits()

    def is_comparable(self, spec: TensorSpec) -> bool:
        """Whether the file has such a tensor, and it can be decoded here."""
        stored = self.file.tensors.get(spec.name)
        return (
            stored is not None
            and stored.spec.n_elements == spec.n_elements
            and stored.spec.shape[-1] == spec.shape[-1]
            and _decoder(stored.spec.qtype) is not None
        )

    def qtype(self, spec: TensorSpec) -> QType:
        """The type in which the file stores a tensor."""
        return self.file.tensors[spec.name].spec.qtype

    def limit(self, spec: TensorSpec) -> float:
        """The relative squared error that this type explains."""
        return limit(self.qtype(spec))

    def blocks(self, spec: TensorSpec, xid: int, rows: tuple[int, int]) -> Array:
        """Bytes of the file, uint8 [rows, row bytes]; `spec` is the checkpoint's."""
        return self.file.read_blocks(TensorSpec(spec.name, spec.shape, self.qtype(spec)), xid, rows)

    def decoded(self, spec: TensorSpec, xid: int, rows: tuple[int, int]) -> Array:
        """Weights of the file, float32 [rows, n_per_row]."""
        return _decode(self.blocks(spec, xid, rows), self.qtype(spec), spec.n_per_row)

    def weights(self, spec: TensorSpec, xid: int, rows: tuple[int, int]) -> Array:
        """Weights of the checkpoint, float32 [rows, n_per_row]."""
        return _as_f32(self.checkpoint.read(spec, xid, rows))

    def judge(self, slab: Slab) -> Judgement:
        """Compare one slab."""
        spec, qtype = slab.spec, self.qtype(slab.spec)
        block_size, type_size = GGML_QUANT_SIZES[qtype]
        blocks = self.blocks(spec, slab.xid, slab.rows)
        weights = self.checkpoint.read(spec, slab.xid, slab.rows)
        found = Judgement(n_blocks=blocks.size // type_size)
        if is_certain(qtype) or (self.encodes and can_encode(qtype)):
            importance = self._imatrix.importance(spec.name, slab.xid) if self._imatrix else None
            expected = codec.encode(weights, qtype, Guide.of(importance))
            changed = (blocks != expected).reshape(-1, type_size).any(axis=1)
            found.changed = Spots.of(changed, slab.rows)
            if not found.changed.n:
                return found
        want = _as_f32(weights)
        with np.errstate(all="ignore"):  # what is damaged may be infinite
            apart = _decode(blocks, qtype, spec.n_per_row) - want
            found.error = float(np.square(apart, dtype=np.float64).sum())
            found.energy = float(np.square(want, dtype=np.float64).sum())
            if qtype not in NUMPY_TYPES:
                size = block_size
                largest = np.abs(want).reshape(-1, size).max(axis=1)
                worst = np.abs(apart).reshape(-1, size).max(axis=1)
                explained = wild_limit(qtype, self._may_have_importances)
                wild = ~(worst <= explained * largest + TINY)
                found.wild = Spots.of(wild, slab.rows)
                wrong = None if self.is_strict else misplaced(blocks, want, qtype)
                found.misplaced = Spots() if wrong is None else Spots.of(wrong, slab.rows)
        return found


def is_certain(qtype: QType) -> bool:
    """Whether the bytes follow from the weights alone, whoever computed them, and with whatever importances."""
    return qtype in NUMPY_TYPES or qtype in (QType.Q8_0, QType.MXFP4)


def _decode(blocks: Array, qtype: QType, n_per_row: int) -> Array:
    if _decoder(qtype) == "ours":
        return codec.decode(blocks, qtype, n_per_row)
    found: Array = dequantize(blocks, qtype)
    return found


def _as_f32(weights: Array) -> Array:
    """Weights as a checkpoint hands them out, as float32."""
    found: Array = codec.encode(weights, QType.F32).view(np.float32)
    return found


def _verdicts(comparison: Comparison, spec: TensorSpec, judged: dict[int, Judgement]) -> Iterator[Finding]:
    """What is wrong with a tensor; experts with the same fault share a finding."""
    nearest = origins.nearest_experts(comparison, spec)
    found: dict[Finding, list[int]] = {}
    for xid, one in sorted(judged.items()):
        fault: Finding | None
        if nearest[xid] != xid:
            fault = error(spec.name, f"the weights of expert {nearest[xid]} are in its place", AGAIN)
        elif not one.relative <= limit(comparison.qtype(spec)):  # nor is a sum that is no number
            fault = _gross_fault(comparison, spec, xid, one)
        elif one.changed.n or one.wild.n or one.misplaced.n:
            fault = _small_fault(comparison, spec, xid, one)
        else:
            fault = None
        comparison.habits.n_judged += 1
        if fault is not None:
            found.setdefault(fault, []).append(xid)
    for fault, xids in found.items():
        yield replace(fault, message=_experts(spec, xids) + fault.message)


def _gross_fault(comparison: Comparison, spec: TensorSpec, xid: int, one: Judgement) -> Finding:
    """What is wrong with weights that are not near to what they should be."""
    qtype = comparison.qtype(spec)
    bad = one.changed if qtype in NUMPY_TYPES else one.wild
    if 0 < bad.n <= MOST * one.n_blocks:
        return _damage(spec, qtype, one, bad)
    origin = origins.origin(comparison, spec, xid)
    if origin is not None:
        return error(spec.name, origin, AGAIN)
    return error(
        spec.name,
        f"differs from the checkpoint: relative error {one.relative:.2g}, {qtype.name} explains "
        f"{limit(qtype):.2g} at most",
        "the file is damaged, or was made from another checkpoint",
    )


def _small_fault(comparison: Comparison, spec: TensorSpec, xid: int, one: Judgement) -> Finding | None:
    """What is wrong with weights that are right but for a few, or but for their encoding."""
    qtype = comparison.qtype(spec)
    changed = one.changed if one.changed.n else one.wild
    if is_certain(qtype) or (comparison.is_strict and changed.are_local(one.n_blocks)):
        return _damage(spec, qtype, one, changed)
    if comparison.is_strict and one.changed.n:
        return error(
            spec.name,
            f"{changed.n} of {one.n_blocks} blocks are encoded in another way, the first in row {changed.first}",
            "it was made with other importances (--imatrix names those of the file) or by another program",
        )
    for proof in (one.misplaced, one.wild):
        if proof.n and proof.are_local(one.n_blocks):
            return _damage(spec, qtype, one, proof)
    if one.changed.n and one.changed.are_local(one.n_blocks):
        comparison.habits.suspect(_damage(spec, qtype, one, one.changed), _experts(spec, [xid]))
    elif one.changed.n or one.misplaced.n:
        comparison.habits.others += 1
    if not one.wild.n:
        return None
    return warning(
        spec.name,
        f"{one.wild.n} of {one.n_blocks} blocks have larger errors than {qtype.name} explains, the first in row "
        f"{one.wild.first}",
        "it was encoded in an unusual way, or damaged",
    )


def _damage(spec: TensorSpec, qtype: QType, one: Judgement, bad: Spots) -> Finding:
    what = "weights" if qtype in NUMPY_TYPES else "blocks"
    return error(
        spec.name,
        f"{bad.n} of {one.n_blocks} {what} are not what the checkpoint gives, the first in row {bad.first}",
        FETCH,
    )


def _experts(spec: TensorSpec, xids: list[int]) -> str:
    if len(spec.shape) != 3:
        return ""
    if len(xids) == spec.n_expert:
        return "all experts: "
    return f"expert{'s' if len(xids) > 1 else ''} {', '.join(map(str, xids))}: "
