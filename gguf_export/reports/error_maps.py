"""The heat maps of an error report: tokens routed and output errors, layer by expert or projection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from calibration.judging.matrix_errors import ErrorReport, MatrixErrors
from gguf_export.reports.figures import NOTHING, count, expert_place, percent, significant
from gguf_export.reports.heat_maps import Cell, HeatMap, Legend, Scale

__all__ = ["ErrorMaps", "pairs_map", "routing_map"]

PPM_BELOW = 1e-3
"""Where the largest output error of a type is below this, its heat maps show parts per million."""


def routing_map(report: ErrorReport) -> tuple[Legend, HeatMap]:
    """Layer by expert: the share of the calibration tokens that the router sent there."""
    rows = {
        (row.bid, row.xid): row
        for row in report.of(report.qtypes[0])
        if row.xid is not None and row.bid is not None
    }

    def cell(bid: int, xid: int) -> Cell | None:
        row = rows.get((bid, xid))
        if row is None:
            return None
        share = row.n_tokens / max(1, report.n_fit)
        title = f"{expert_place(bid, xid)}: {count(row.n_tokens)} tokens, {percent(share)}"
        return Cell(share, f"{100 * share:.0f}", title, warn=row.unseen)

    scale = Scale.over([row.n_tokens / max(1, report.n_fit) for row in rows.values()], low=0.0)
    layers, experts = range(report.n_layer), range(report.n_expert)
    heat_map = HeatMap(
        "Tokens routed, in percent of all",
        "expert",
        [str(xid) for xid in experts],
        "layer",
        [str(bid) for bid in layers],
        [[cell(bid, xid) for bid in layers] for xid in experts],
        scale,
        "load",
    )
    warnings = ["unseen: no token"] if report.unseen else []
    key = Legend("tokens routed", percent(scale.low, 2), percent(scale.high, 2), "load", warnings)
    return key, heat_map


def pairs_map(report: ErrorReport) -> HeatMap:
    """Expert by expert: the share of the calibration tokens, over all layers, that went to both."""
    experts = range(report.n_expert)
    n_token = max(1, report.n_fit * len(report.routing))
    shares = {
        (one, other): sum(layer.pairs[one][other] for layer in report.routing) / n_token
        for one in experts
        for other in experts
        if one != other
    }

    def cell(one: int, other: int) -> Cell | None:
        if one == other:
            return None
        share = shares[one, other]
        return Cell(share, f"{100 * share:.0f}", f"experts {one} and {other} together: {percent(share)}")

    return HeatMap(
        "Tokens routed to both, in percent of all",
        "expert",
        [str(xid) for xid in experts],
        "expert",
        [str(xid) for xid in experts],
        [[cell(one, other) for other in experts] for one in experts],
        Scale.over(shares.values(), low=0.0),
        "load",
    )


class ErrorMaps:
    """The heat maps of one type: one scale for all of them, and numbers short enough for their cells."""

    def __init__(self, report: ErrorReport, rows: Sequence[MatrixErrors]) -> None:
        self._report = report
        self._rows = rows
        self._layers = range(report.n_layer)
        self._scale = Scale.over((row.errors.nmse for row in rows), log=True)
        self._is_ppm = self._scale.high < PPM_BELOW
        self._unit = "ppm" if self._is_ppm else "%"

    def legend(self) -> Legend:
        """The colours of all of these maps, and the meaning of hatched cells."""
        warnings = ["no token, so no output error"] if self._report.unjudged else []
        low, high = self._with_unit(self._scale.low), self._with_unit(self._scale.high)
        return Legend("output error", low, high, "error", warnings)

    def experts(self) -> Iterator[HeatMap]:
        """One heat map for each projection of the experts: layer by expert."""
        for projection in dict.fromkeys(row.projection for row in self._rows if row.xid is not None):
            by_place = {(row.bid, row.xid): row for row in self._rows if row.projection == projection}
            experts = range(self._report.n_expert)
            rows = [[by_place.get((bid, xid)) for bid in self._layers] for xid in experts]
            yield self._heat_map(projection, "expert", [str(xid) for xid in experts], rows)

    def dense(self) -> Iterator[HeatMap]:
        """One heat map, if any, for the matrices that all tokens pass: layer by projection."""
        names = list(dict.fromkeys(row.projection for row in self._rows if row.xid is None))
        by_place = {(row.bid, row.projection): row for row in self._rows if row.xid is None}
        if names:
            only_attention = all(name.startswith("attn_") for name in names)
            labels = [name.removeprefix("attn_") if only_attention else name for name in names]
            caption = "attention" if only_attention else "matrices without experts"
            rows = [[by_place.get((bid, name)) for bid in self._layers] for name in names]
            yield self._heat_map(caption, "projection", labels, rows)

    def _heat_map(
        self,
        caption: str,
        row_label: str,
        labels: Sequence[str],
        rows: Sequence[Sequence[MatrixErrors | None]],
    ) -> HeatMap:
        return HeatMap(
            f"{caption}, output error in {self._unit}",
            row_label,
            labels,
            "layer",
            [str(bid) for bid in self._layers],
            [[self._cell(row) for row in line] for line in rows],
            self._scale,
            "error",
        )

    def _cell(self, row: MatrixErrors | None) -> Cell | None:
        if row is None:
            return None
        nmse = row.errors.nmse
        if nmse is None:
            return Cell(None, NOTHING, f"{row.place}: no held-out token", warn=True)
        title = f"{row.place}: {percent(nmse)}"
        if row.plain and row.plain.nmse is not None:
            title += f", without importances {percent(row.plain.nmse)}"
        return Cell(nmse, self._short(nmse), f"{title}; {count(row.n_tokens)} tokens")

    def _short(self, nmse: float) -> str:
        short = significant(nmse * (1e6 if self._is_ppm else 100), 2)
        return short.removeprefix("0") or "0"

    def _with_unit(self, nmse: float) -> str:
        return f"{significant(nmse * 1e6, 3)} ppm" if self._is_ppm else percent(nmse)
