"""A choice of types for programs: JSON, from which `export` takes the types, too."""

from __future__ import annotations

from typing import Any

from gguf_export.metadata.type_keys import FISHER
from gguf_export.planning.results import Forecast, TypePlan
from gguf_export.reports.data_texts import json_text

__all__ = ["plan_dict", "plan_json"]


def plan_dict(planned: TypePlan) -> dict[str, Any]:
    """All figures: bytes, KL divergences in nats per token, costs before any scale; None where there is no number."""
    return {
        "ftype": planned.ftype,
        "method": FISHER,
        "n_token": planned.n_token,
        "n_measured": planned.n_measured,
        "scale": planned.scale,
        "candidates": list(planned.candidates),
        "usual": _forecast(planned.usual),
        "chosen": _forecast(planned.chosen),
        "types": dict(planned.types),
        "tensors": [vars(tensor) for tensor in planned.tensors],
    }


def _forecast(forecast: Forecast) -> dict[str, Any]:
    measured = forecast.measured
    return {
        "n_bytes": forecast.n_bytes,
        "bpw": forecast.bpw,
        "predicted_kld": forecast.predicted,
        "unscaled_kld": forecast.unscaled,
        "measured_kld": None if measured is None else measured.value,
        "measured_kld_error": None if measured is None else measured.error,
    }


def plan_json(planned: TypePlan) -> str:
    """Write a choice of types as JSON; see `plan_dict`."""
    return json_text(plan_dict(planned)) + "\n"
