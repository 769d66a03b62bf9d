"""The page of `moe-gguf errors`: where the tokens went, and what each type costs each expert."""

from __future__ import annotations

import math
from collections.abc import Iterable

from calibration.judging.matrix_errors import ErrorReport, totals, worst
from gguf_export.reports.error_maps import ErrorMaps, pairs_map, routing_map
from gguf_export.reports.error_tables import projection_table, totals_table, worst_table
from gguf_export.reports.figures import count, percent, plain
from gguf_export.reports.html import (
    Html,
    Section,
    join,
    legend,
    page,
    panels,
    table,
    terms,
    tiles,
)
from gguf_export.reports.plot import Axis, Point, Series, plot

__all__ = ["error_page"]

MOST_NAMED = 20
"""Experts of which too little is known that are named; the rest are counted."""

MEANINGS = (
    (
        "output error",
        "Normalised mean squared error of a matrix's output: the energy of the difference between the outputs of the "
        "quantized and the original matrix, as a share of the energy of the original's output. It is measured on "
        "activations of the unquantized model, matrix by matrix, so that no error is inherited from another matrix. "
        "1 ppm is 0.0001 %.",
    ),
    (
        "held-out text",
        "Text that the importances were not fitted on. All output errors are judged on it.",
    ),
    (
        "cosine",
        "Mean over the held-out tokens of the cosine between the outputs of the original and the quantized matrix; "
        "1 is no error.",
    ),
    (
        "weight error",
        "Root-mean-square error of the weights themselves, as a share of their root mean square.",
    ),
    (
        "importances",
        "The mean square of each input column over the calibration tokens that reach the matrix (llama.cpp's imatrix). "
        "“Without importances” is the same type, fitted without them.",
    ),
    (
        "tokens routed",
        "The calibration tokens that the router sent to an expert, as a share of all. A starved expert got none: "
        "nothing is known of its inputs.",
    ),
    (
        "tokens routed to both",
        "The share of tokens, over all layers, that the router sent to both experts of a pair: pairs that are often "
        "chosen together share their work.",
    ),
    (
        "effective tokens",
        "How many equally strong tokens would tell as much about the importances (Kish's effective sample size of the "
        "squared lengths of the inputs). Far fewer than routed: a few extreme tokens decide.",
    ),
    (
        "bpw",
        "Bits per weight of the matrices measured here; embeddings and the output matrix are not among them.",
    ),
)


def error_page(report: ErrorReport) -> str:
    """The whole page."""
    sections = [Section("Totals by type", _totals(report))]
    if report.n_expert:
        sections.append(_routing(report))
    for qtype in report.qtypes:
        sections.append(_type_section(report, qtype))
    sections += [
        Section("What the numbers mean", terms(MEANINGS)),
        Section("How it was measured", terms([("model", report.model), *report.facts])),
    ]
    experts = (
        f", {report.n_expert} experts in each, {report.n_expert_used} of them for each token"
        if report.n_expert
        else ""
    )
    lead = (
        f"{report.n_layer} layers{experts}. Every matrix was quantized alone, and its output compared with the "
        f"original's on {_judged_on(report)} tokens of text that the importances were not fitted on."
    )
    sections.insert(0, Section("", tiles(_glance(report))))
    title = f"{report.model}: what each type costs each {'expert' if report.n_expert else 'matrix'}"
    return page(title, lead, sections, "Made by moe-gguf errors.")


def _judged_on(report: ErrorReport) -> str:
    """How many tokens: of the held-out ones each matrix takes so many at most."""
    most = max((row.n_judged for row in report.rows), default=0)
    all_of_them = count(report.n_held_out)
    return all_of_them if most >= report.n_held_out else f"up to {count(most)} of the {all_of_them} held-out"


def _glance(report: ErrorReport) -> Iterable[tuple[str, str, str]]:
    for qtype in report.qtypes:
        found = totals(qtype, report.of(qtype))
        yield f"{qtype}, {found.bpw:.2f} bpw", percent(found.median_nmse), "median output error"
    first = report.of(report.qtypes[0])
    for row in worst(first, 1):
        yield f"lost most as {row.qtype}", percent(row.errors.nmse), row.place
    helped = totals("", first)
    if helped.n_compared:
        yield (
            f"importances helped {first[0].qtype}",
            percent(helped.n_helped / helped.n_compared, 2),
            f"of {count(helped.n_compared)} matrices: a lower output error than without",
        )
    if report.n_expert:
        n_starved = len(report.starved)
        remark = ", ".join(f"layer {bid} expert {xid}" for bid, xid in report.starved[:6])
        yield (
            "starved experts",
            count(n_starved) if n_starved else "none",
            remark + (" …" if n_starved > 6 else ""),
        )


def _totals(report: ErrorReport) -> Html:
    columns, lines = totals_table(report)
    return join([table(columns, lines), panels([_size_plot(report), _layer_plot(report)])])


def _size_plot(report: ErrorReport) -> Html:
    """Median output error and its range over the middle 80 % of the matrices, by size."""
    points = []
    for qtype in report.qtypes:
        rows = report.of(qtype)
        found = sorted(row.errors.nmse for row in rows if row.errors.nmse is not None)
        if found:
            low, middle, high = (found[int(share * (len(found) - 1) + 0.5)] for share in (0.1, 0.5, 0.9))
            points.append(Point(totals("", rows).bpw, middle, low, high, qtype))
    if len(points) < 2:
        return Html("")
    return plot(
        "Median output error by size, with the middle 80 % of the matrices",
        [Series("", sorted(points, key=lambda point: point.x))],
        Axis("bits per weight", show=lambda value: f"{value:g}"),
        Axis("output error", log=True, show=lambda value: f"{plain(100 * value, 2)} %"),
    )


def _layer_plot(report: ErrorReport) -> Html:
    """Median output error of each layer, by type."""
    lines = []
    for qtype in report.qtypes:
        by_layer = (
            (bid, [row for row in report.of(qtype) if row.bid == bid]) for bid in range(report.n_layer)
        )
        medians = [(bid, totals("", rows).median_nmse) for bid, rows in by_layer]
        lines.append(Series(qtype, [Point(bid, value) for bid, value in medians if value is not None]))
    if report.n_layer < 2:
        return Html("")
    return plot(
        "Median output error by layer",
        lines,
        Axis("layer", show=lambda value: f"{value:g}"),
        Axis("output error", log=True, show=lambda value: f"{plain(100 * value, 2)} %"),
    )


def _routing(report: ErrorReport) -> Section:
    """Layer by expert: the share of tokens."""
    scale, drawn = routing_map(report)
    warnings = ["starved: no token"] if report.starved else []
    even = percent(report.n_expert_used / report.n_expert)
    lead = (
        f"{count(report.n_fit)} tokens of calibration text, {report.n_expert_used} of {report.n_expert} experts for "
        f"each: {even} would be an even share. An expert that sees few tokens is quantized on thin evidence."
    )
    key = legend("tokens routed", scale, lambda value: percent(value, 2), "load", *warnings)
    pieces = [drawn]
    if report.n_expert_used > 1:
        pieces.append(pairs_map(report))
    maps = panels([*pieces, _entropy_plot(report)], max(report.n_layer, report.n_expert), "n-load")
    return Section("Where the tokens went", join([key, maps, _starved(report)]), lead)


def _entropy_plot(report: ErrorReport) -> Html:
    """How sure the router of each layer is."""
    highest = math.log(report.n_expert)
    points = [Point(bid, layer.entropy / highest) for bid, layer in enumerate(report.routing)]
    if len(points) < 2:
        return Html("")
    return plot(
        "Entropy of the router by layer: at 1 it cannot tell the experts apart",
        [Series("", points)],
        Axis("layer", show=lambda value: f"{value:g}"),
        Axis("entropy / ln(experts)", show=lambda value: f"{value:.2f}"),
    )


def _starved(report: ErrorReport) -> Html:
    """Experts of which too little is known, by name."""
    lacks = (
        (report.starved, "no calibration token: quantized without knowing its inputs"),
        (report.unjudged, "no held-out token: output error not known"),
    )
    places = sorted({place for places, _ in lacks for place in places})
    lines = [
        (f"layer {bid}, expert {xid}", "; ".join(told for lacking, told in lacks if (bid, xid) in lacking))
        for bid, xid in places[:MOST_NAMED]
    ]
    if len(places) > MOST_NAMED:
        lines.append((f"… and {count(len(places) - MOST_NAMED)} more", "see the hatched cells"))
    return table(("expert", "what is not known"), lines) if lines else Html("")


def _type_section(report: ErrorReport, qtype: str) -> Section:
    """Heatmaps of the output error, the totals of each projection and the worst ten."""
    rows = report.of(qtype)
    maps = ErrorMaps(report, rows)
    pieces = [
        maps.legend(),
        panels([*maps.experts(), *maps.dense()], report.n_layer, f"n-{qtype}"),
        table(*projection_table(rows), "By projection"),
        table(*worst_table(rows), "The worst ten"),
    ]
    fallbacks = [row for row in rows if row.fallback]
    lead = ""
    if fallbacks:
        lead = (
            f"{len(fallbacks)} matrices have rows that {qtype} does not divide; llama.cpp's fallback "
            f"({', '.join(sorted({row.fallback or '' for row in fallbacks}))}) was measured for them."
        )
    return Section(f"Output error as {qtype}", join(pieces), lead)
