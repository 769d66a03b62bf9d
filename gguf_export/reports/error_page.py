"""The page of `moe-gguf errors`: where the tokens went, and what each type costs each expert."""

from __future__ import annotations

from collections.abc import Iterator

from calibration.judging.matrix_errors import ErrorReport, totals, worst
from gguf_export.reports.error_maps import ErrorMaps, pairs_map, routing_map
from gguf_export.reports.error_plots import entropy_plot, layer_plot, size_plot
from gguf_export.reports.error_tables import projection_table, totals_table, unknown_table, worst_table
from gguf_export.reports.figures import count, expert_place, percent
from gguf_export.reports.pages import Page, PagePart, Panels, Section, Table, Terms, Tiles
from gguf_export.reports.rendering import render
from gguf_export.reports.terms import meanings

__all__ = ["error_page"]

MAX_NAMED = 6
"""Unseen experts that are named among the first figures."""

WORDS = (
    *("output error", "held-out text", "cosine", "weight error", "importances", "tokens routed"),
    *("tokens routed to both", "effective", "router entropy", "bpw of matrices"),
)
"""What is explained on the page."""


def error_page(report: ErrorReport) -> str:
    """Make the page: one HTML file without script and network."""
    title = f"{report.model}: what each type costs each {'expert' if report.n_expert else 'matrix'}"
    return render(Page(title, _lead(report), list(_sections(report)), "Made by moe-gguf errors."))


def _sections(report: ErrorReport) -> Iterator[Section]:
    yield Section("", [Tiles(list(_first_figures(report)))])
    plots = Panels([size_plot(report), layer_plot(report)])
    yield Section("Totals by type", [Table(*totals_table(report)), plots])
    if report.n_expert:
        yield _routing(report)
    for qtype in report.qtypes:
        yield _of_type(report, qtype)
    yield Section("What the numbers mean", [Terms(meanings(WORDS))])
    yield Section("How it was measured", [Terms([("model", report.model), *report.facts])])


def _lead(report: ErrorReport) -> str:
    experts = (
        f", {report.n_expert} experts in each, {report.n_expert_used} of them for each token"
        if report.n_expert
        else ""
    )
    return (
        f"{report.n_layer} layers{experts}. Every matrix was quantized alone, and its output compared with the "
        f"original's on {_n_judged(report)} tokens of text that the importances were not fitted on."
    )


def _n_judged(report: ErrorReport) -> str:
    """The number of tokens that matrices were judged on, in words: each takes only some of the held-out ones."""
    most = max((row.n_judged for row in report.rows), default=0)
    n_held_out = count(report.n_held_out)
    return n_held_out if most >= report.n_held_out else f"up to {count(most)} of the {n_held_out} held-out"


def _first_figures(report: ErrorReport) -> Iterator[tuple[str, str, str]]:
    """The figures to see first: label, figure and remark of each."""
    for qtype in report.qtypes:
        total = totals(qtype, report.of(qtype))
        yield f"{qtype}, {total.bpw:.2f} bpw", percent(total.median_nmse), "median output error"
    rows = report.of(report.qtypes[0])
    for row in worst(rows, 1):
        yield f"lost most as {row.qtype}", percent(row.errors.nmse), row.place
    total = totals("", rows)
    if total.n_compared:
        yield (
            f"importances helped {rows[0].qtype}",
            percent(total.n_helped / total.n_compared, 2),
            f"of {count(total.n_compared)} matrices: a lower output error than without",
        )
    if report.n_expert:
        n_unseen = len(report.unseen)
        names = "; ".join(expert_place(bid, xid) for bid, xid in report.unseen[:MAX_NAMED])
        yield (
            "unseen experts",
            count(n_unseen) if n_unseen else "none",
            names + (" …" if n_unseen > MAX_NAMED else ""),
        )


def _routing(report: ErrorReport) -> Section:
    """Where the tokens went, and the experts of which too little is known."""
    even = percent(report.n_expert_used / report.n_expert)
    lead = (
        f"{count(report.n_fit)} tokens of calibration text, {report.n_expert_used} of {report.n_expert} experts for "
        f"each: {even} would be an even share. An expert that sees few tokens is quantized on thin evidence."
    )
    key, heat_map = routing_map(report)
    maps: list[PagePart] = [heat_map]
    if report.n_expert_used > 1:
        maps.append(pairs_map(report))
    panels = Panels([*maps, entropy_plot(report)], max(report.n_layer, report.n_expert), "n-load")
    unknown = unknown_table(report)
    return Section("Where the tokens went", [key, panels, *([Table(*unknown)] if unknown[1] else [])], lead)


def _of_type(report: ErrorReport, qtype: str) -> Section:
    """Heat maps of the output error, the totals of each projection and the worst ten matrices."""
    rows = report.of(qtype)
    maps = ErrorMaps(report, rows)
    parts: list[PagePart] = [
        maps.legend(),
        Panels([*maps.experts(), *maps.dense()], report.n_layer, f"n-{qtype}"),
        Table(*projection_table(rows), "By projection"),
        Table(*worst_table(rows), "The worst ten"),
    ]
    fallbacks = [row for row in rows if row.fallback]
    lead = ""
    if fallbacks:
        lead = (
            f"{len(fallbacks)} matrices have rows that {qtype} does not divide; llama.cpp's fallback "
            f"({', '.join(sorted({row.fallback or '' for row in fallbacks}))}) was measured for them."
        )
    return Section(f"Output error as {qtype}", parts, lead)
