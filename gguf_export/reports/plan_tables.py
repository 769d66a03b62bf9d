"""A choice of types as a person reads it: what each kind of tensor got, and what that comes to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from gguf_export.files.sizes import size_in_words
from gguf_export.planning.results import Forecast, TensorChoice, TypePlan
from gguf_export.reports.compare_tables import GIB_PLACES, nats, with_error
from gguf_export.reports.figures import NOTHING
from gguf_export.reports.pages import TableText

__all__ = ["forecast_table", "kind_of", "kinds_table", "plan_words"]

LOWER_BOUND = "not scaled, so a lower bound: the divergence measured is often half as large again"


def kind_of(name: str) -> str:
    """The kind of a tensor: its name without its layer and without `.weight`, such as ffn_down_exps."""
    return re.sub(r"^blk\.\d+\.", "", name).removesuffix(".weight")


def kinds_table(planned: TypePlan) -> TableText:
    """The table of the kinds of tensors: how many layers in which types, bytes and costs beside the file type's."""
    scale = 1.0 if planned.scale is None else planned.scale
    kinds: dict[str, list[TensorChoice]] = {}
    for tensor in planned.tensors:
        kinds.setdefault(kind_of(tensor.name), []).append(tensor)
    rows: list[tuple[str, ...]] = []
    for kind, tensors in kinds.items():
        larger = sum(tensor.n_bytes > tensor.usual_n_bytes for tensor in tensors)
        smaller = sum(tensor.n_bytes < tensor.usual_n_bytes for tensor in tensors)
        rows.append(
            (
                kind,
                _counts(tensor.qtype for tensor in tensors),
                _counts(tensor.usual_qtype for tensor in tensors),
                _moved(larger, smaller),
                size_in_words(sum(tensor.n_bytes for tensor in tensors)),
                size_in_words(sum(tensor.usual_n_bytes for tensor in tensors)),
                nats(scale * sum(tensor.cost for tensor in tensors)),
                nats(scale * sum(tensor.usual_cost for tensor in tensors)),
            )
        )
    usual = planned.ftype
    columns = ("tensor", "types", usual, "moved", ">size", f">{usual}", ">predicted KLD", f">{usual}")
    return columns, rows


def _counts(qtypes: Iterable[str]) -> str:
    """How many tensors have which type, the most frequent first: `Q6_K 20, Q4_K 10`; no number where there is one."""
    counts = Counter(qtypes)
    if counts.total() == 1:
        return next(iter(counts))
    return ", ".join(f"{qtype} {n}" for qtype, n in counts.most_common())


def _moved(larger: int, smaller: int) -> str:
    parts = [f"{n} {way}" for n, way in ((larger, "up"), (smaller, "down")) if n]
    return ", ".join(parts) or NOTHING


def forecast_table(planned: TypePlan) -> TableText:
    """The table of the whole file: the file type's own types, and the chosen ones."""
    columns = ["types", ">size", ">bpw", ">predicted KLD"]
    forecasts = [(planned.ftype, planned.usual), ("chosen", planned.chosen)]
    if planned.chosen.measured is not None:
        columns.append(">measured KLD")
    return tuple(columns), [_row(name, forecast, columns) for name, forecast in forecasts]


def _row(name: str, forecast: Forecast, columns: Sequence[str]) -> tuple[str, ...]:
    cells = (
        name,
        size_in_words(forecast.n_bytes, GIB_PLACES),
        f"{forecast.bpw:.2f}",
        nats(forecast.predicted),
        NOTHING if forecast.measured is None else with_error(forecast.measured),
    )
    return cells[: len(columns)]


def plan_words(planned: TypePlan) -> str:
    """How far the predictions can be trusted, in a sentence."""
    costs = f"costs on {planned.n_token:,} tokens"
    if planned.scale is None:
        return f"predicted: {costs}, {LOWER_BOUND}"
    return (
        f"predicted: {costs}, scaled by {planned.scale:.2f}; measured: on {planned.n_measured} "
        f"chunk{'s' * (planned.n_measured != 1)} of the text, held out for that"
    )
