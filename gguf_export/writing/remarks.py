"""What a careful reader is told of plans and importances before the work begins: nothing falls back in silence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from calibration.importance.imatrix import Imatrix
from quantize.blocks import block_format
from quantize.recipes.layout import Plan

__all__ = ["FEW_TOKENS", "missing_remarks", "plan_remarks", "thin_remarks"]

FEW_TOKENS = 100
"""An expert with fewer of them gains from a prior (scripts/measure_prior.py)."""


def plan_remarks(plans: Mapping[str, Plan]) -> list[str]:
    """Fallbacks of tensor types and patterns that match nothing, by label; what several plans share is one line."""
    told: dict[str, list[str]] = {}
    for label, plan in plans.items():
        names = [planned.spec.name for planned in plan.fallbacks]
        if names:
            text = (
                f"{len(names)} tensors have rows that their type does not divide and fall back to another one "
                f"({_first(names, 2)})"
            )
            told.setdefault(text, []).append(label)
        for pattern in plan.unmatched:
            told.setdefault(f"--tensor-type {pattern} matches no tensor", []).append(label)
    return [f"{', '.join(labels)}: {text}" for text, labels in told.items()]


def _without_importance(plans: Sequence[Plan], imatrix: Imatrix) -> list[str]:
    """Names of tensors that are quantized although the importance matrix knows nothing of them."""
    wanted = {
        planned.spec.name: planned.spec
        for plan in plans
        for planned in plan.tensors
        if block_format(planned.qtype).uses_importance
    }
    return imatrix.missing(list(wanted.values()))


def missing_remarks(plans: Sequence[Plan], imatrix: Imatrix | None) -> list[str]:
    """A line where importances are given and do not cover all that they could weigh."""
    missing = _without_importance(plans, imatrix) if imatrix else []
    if not missing:
        return []
    return [
        f"the importance matrix has nothing for {len(missing)} tensors, quantized without: {_first(missing, 4)}"
    ]


def thin_remarks(imatrix: Imatrix | None) -> list[str]:
    """Thin evidence is told; a prior is the remedy, and then there is nothing to say."""
    thin = imatrix.starved(fewer_than=FEW_TOKENS) if imatrix and not imatrix.prior else []
    if not thin:
        return []
    n_none = sum(found.n_tokens == 0 for found in thin)
    none = f", and none for {n_none} of them, which are weighted evenly" if n_none else ""
    places = [f"{found.name} expert {found.xid} ({found.n_tokens})" for found in thin]
    return [
        f"the importance matrix saw fewer than {FEW_TOKENS} tokens for {len(thin)} experts{none}: "
        f"{_first(places, 4)}; --prior 8 draws them toward their layer's mean"
    ]


def _first(names: Sequence[str], n: int) -> str:
    return ", ".join(names[:n]) + ", ..." * (len(names) > n)
