"""Remarks on plans and importances, made before the work begins: nothing falls back in silence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from calibration.importance.imatrix import Imatrix
from gguf_export.writing.job import ExportJob
from quantize.blocks import block_format
from quantize.containers.untrusted import printable
from quantize.families.placement import EMBEDDING, OUTPUT
from quantize.recipes.layout import Plan, PlannedTensor
from quantize.telling import Remark

__all__ = ["FEW_TOKENS", "export_remarks", "imatrix_remarks", "plan_remarks"]

FEW_TOKENS = 100
"""Experts that saw fewer tokens gain from a prior (scripts/measure_prior.py)."""


def export_remarks(job: ExportJob, *, is_counted: bool = True, fed_back: bool = False) -> list[Remark]:
    """All remarks on an export before it begins: one for each kind of fallback, with its count.

    Args:
        job: the export.
        is_counted: whether the tokens of its importances were counted already, or will be while it runs.
        fed_back: whether error feedback chooses codes, which needs no importances where it does.
    """
    plans = {output.files[0].path.name: output.plan for output in job.outputs}
    return [
        *job.remarks,
        *plan_remarks(plans),
        *imatrix_remarks(job.plans, job.imatrix, is_counted=is_counted, fed_back=fed_back),
    ]


def imatrix_remarks(
    plans: Sequence[Plan], imatrix: Imatrix | None, *, is_counted: bool = True, fed_back: bool = False
) -> list[Remark]:
    """Remarks on what importances leave out, rest on few tokens or do not weigh; see `export_remarks`."""
    if imatrix is None:
        return []
    counted = [*_thin_remarks(imatrix), *_flat_remarks(imatrix)] if is_counted else []
    return [*_missing_remarks(plans, imatrix, fed_back), *counted]


def plan_remarks(plans: Mapping[str, Plan]) -> list[Remark]:
    """Fallbacks of tensor types and patterns that match nothing, by label; what several plans share is one remark."""
    labels_of: dict[tuple[str, str], list[str]] = {}
    for label, plan in plans.items():
        names = [planned.name for planned in plan.fallbacks]
        if names:
            message = (
                f"{len(names)} tensors have rows that their type does not divide and fall back to another one "
                f"({_first(names, 2)})"
            )
            labels_of.setdefault((message, ""), []).append(label)
        for pattern in plan.unmatched:
            message = f"the tensor type pattern {pattern} matches no tensor"
            labels_of.setdefault((message, "tensor_type"), []).append(label)
    return [
        Remark(", ".join(labels), message, setting=setting)
        for (message, setting), labels in labels_of.items()
    ]


def _missing_remarks(plans: Sequence[Plan], imatrix: Imatrix, fed_back: bool) -> list[Remark]:
    """A remark where importances do not cover all that they could weigh."""
    missing = _without_importance(plans, imatrix, fed_back)
    if not missing:
        return []
    message = f"the importance matrix has nothing for {len(missing)} tensors, quantized without: {_first(missing, 4)}"
    return [Remark("", message)]


def _without_importance(plans: Sequence[Plan], imatrix: Imatrix, fed_back: bool) -> list[str]:
    """Names of tensors that are quantized although the importance matrix knows nothing of them."""
    specs = {
        planned.spec.name: planned.spec
        for plan in plans
        for planned in plan.tensors
        if planned.qtype != planned.spec.qtype
        and block_format(planned.qtype).uses_importance
        and not (fed_back and _is_fed_back(planned, plan))
    }
    return imatrix.missing(list(specs.values()))


def _is_fed_back(planned: PlannedTensor, plan: Plan) -> bool:
    """Whether error feedback encodes a tensor that has no importances: the output, or an embedding beside it."""
    from quantize.blocks.parts import part_format  # noqa: PLC0415 - numba, which a plan alone does without

    has_output = any(other.spec.name == OUTPUT for other in plan.tensors)
    return has_output and planned.spec.name in (OUTPUT, EMBEDDING) and part_format(planned.qtype) is not None


def _flat_remarks(imatrix: Imatrix) -> list[Remark]:
    """A remark where importances are zero, or make no difference between columns."""
    zero, flat = imatrix.flat()
    n_entry, anew = len(imatrix.entries), "make it anew from a text"
    if zero and len(zero) == n_entry:
        return [Remark("", "the importance matrix holds nothing but zeros: it weighs nothing", anew)]
    if flat and len(flat) == n_entry:
        return [
            Remark("", "all importances of a row are equal in the importance matrix: it weighs nothing", anew)
        ]
    if zero:
        return [
            Remark("", f"the importance matrix holds only zeros for {len(zero)} tensors: {_first(zero, 4)}")
        ]
    return []


def _thin_remarks(imatrix: Imatrix) -> list[Remark]:
    """A remark where importances rest on few tokens; with a prior, which is the remedy, there is nothing to say."""
    thin = [] if imatrix.prior else imatrix.thin(fewer_than=FEW_TOKENS)
    if not thin:
        return []
    n_none = sum(expert.n_tokens == 0 for expert in thin)
    none = f", and none for {n_none} of them, which are weighted evenly" if n_none else ""
    places = [f"{expert.name} expert {expert.xid} ({expert.n_tokens})" for expert in thin]
    message = (
        f"the importance matrix saw fewer than {FEW_TOKENS} tokens for {len(thin)} experts{none}: "
        f"{_first(places, 4)}"
    )
    return [Remark("", message, "{setting} 8 draws them toward their layer's mean", setting="prior")]


def _first(names: Sequence[str], n: int) -> str:
    return ", ".join(map(printable, names[:n])) + ", ..." * (len(names) > n)
