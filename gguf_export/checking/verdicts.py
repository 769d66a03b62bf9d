"""The faults of a tensor, told from the deviations of its matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from gguf_export.checking import origins
from gguf_export.checking.deviations import MAX_DAMAGED_SHARE, BadBlocks, Deviation, EncoderDifferences
from gguf_export.checking.file_check import FileCheck
from gguf_export.checking.findings import Finding, error, warning
from quantize.tensors import NUMPY_TYPES, TensorSpec

__all__ = ["place_of", "verdicts"]


def verdicts(
    check: FileCheck,
    spec: TensorSpec,
    deviations: Mapping[int, Deviation],
    differences: EncoderDifferences,
) -> Iterator[Finding]:
    """The faults of a tensor; experts with the same fault share a finding.

    Args:
        check: the file and its source.
        spec: the source's tensor.
        deviations: expert -> how its matrix deviates from the source's.
        differences: takes note of matrices that another encoder may have made.

    Raises:
        CheckpointError, GGUFError: the source or the file cannot be read any more.
    """
    nearest = origins.nearest_experts(check, spec)
    experts_of: dict[Finding, list[int]] = {}
    for xid, deviation in sorted(deviations.items()):
        fault: Finding | None = None
        # What few bits keep of an expert may be nearer to another one: bytes that are right have the last word.
        n_others = deviation.other_bytes.n
        has_own = check.is_encoded(spec) and n_others <= MAX_DAMAGED_SHARE * deviation.n_blocks
        if nearest[xid] != xid and not has_own:
            matrix = "expert" if spec.has_experts else "matrix"
            fault = error(spec.name, f"the weights of {matrix} {nearest[xid]} are in its place", check.again)
        elif not deviation.relative_error <= check.tolerance(spec).matrix:  # `not <=` also catches NaN
            fault = _gross_fault(check, spec, xid, deviation)
        elif deviation.other_bytes.n or deviation.beyond_tolerance.n or deviation.not_nearest.n:
            fault = _fault_in_few_blocks(check, spec, xid, deviation, differences)
        differences.n_matrices += 1
        if fault is not None:
            experts_of.setdefault(fault, []).append(xid)
    for fault, xids in experts_of.items():
        yield replace(fault, place=place_of(spec, xids))


def _gross_fault(check: FileCheck, spec: TensorSpec, xid: int, deviation: Deviation) -> Finding:
    """The fault of a matrix whose weights are not near to those of the source."""
    qtype = check.qtype(spec)
    bad = deviation.other_bytes if check.is_exact(spec) else deviation.beyond_tolerance
    if 0 < bad.n <= MAX_DAMAGED_SHARE * deviation.n_blocks:
        return _damage(check, spec, deviation, bad)
    origin = origins.origin(check, spec, xid)
    if origin is not None:
        return error(spec.name, origin, check.again)
    return error(
        spec.name,
        f"differs from the {check.word}: relative error {deviation.relative_error:.2g}, {qtype.name} explains "
        f"{check.tolerance(spec).matrix:.2g} at most",
        f"the file is damaged, or was made from another {check.word}",
    )


def _fault_in_few_blocks(
    check: FileCheck, spec: TensorSpec, xid: int, deviation: Deviation, differences: EncoderDifferences
) -> Finding | None:
    """The fault of a matrix whose weights are right but for some blocks, or but for their encoding."""
    qtype, n_blocks = check.qtype(spec), deviation.n_blocks
    other_bytes, beyond = deviation.other_bytes, deviation.beyond_tolerance
    bad = other_bytes if other_bytes.n else beyond
    if check.is_exact(spec) or (check.is_strict and bad.are_local(n_blocks)):
        return _damage(check, spec, deviation, bad)
    if check.is_strict and other_bytes.n:
        return error(
            spec.name,
            f"{bad.n} of {n_blocks} blocks are encoded in another way, the first in row {bad.first}",
            "it was made with other importances ({setting} names those of the file) or by another program",
            setting="imatrix",
        )
    for proof in (deviation.not_nearest, beyond):
        if proof.n and proof.are_local(n_blocks):
            return _damage(check, spec, deviation, proof)
    if other_bytes.n and other_bytes.are_local(n_blocks):
        damage = _damage(check, spec, deviation, other_bytes)
        differences.local.append(replace(damage, place=spec.label(xid)))
    elif other_bytes.n or deviation.not_nearest.n:
        differences.n_everywhere += 1
    if not beyond.n:
        return None
    return warning(
        spec.name,
        f"{beyond.n} of {n_blocks} blocks have larger errors than {qtype.name} explains, the first in row "
        f"{beyond.first}",
        "it was encoded in an unusual way, or damaged",
    )


def _damage(check: FileCheck, spec: TensorSpec, deviation: Deviation, bad: BadBlocks) -> Finding:
    blocks = "weights" if check.qtype(spec) in NUMPY_TYPES else "blocks"
    return error(
        spec.name,
        f"{bad.n} of {deviation.n_blocks} {blocks} are not what the {check.word} gives, the first in row "
        f"{bad.first}",
        f"the file is damaged: fetch the file again, or {check.again}",
    )


def place_of(spec: TensorSpec, xids: Sequence[int]) -> str:
    """Some matrices of a tensor, as `TensorSpec.label` calls one of them."""
    if len(xids) == 1:
        return spec.label(xids[0])
    matrices = "experts" if spec.has_experts else "matrices"
    if len(xids) == spec.n_matrix:
        return f"{spec.name}, all {matrices}"
    return f"{spec.name}, {matrices} {', '.join(map(str, xids))}"
