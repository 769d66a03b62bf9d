"""The plots of an error report: output error by size and by layer, and how sure the routers are."""

from __future__ import annotations

import math

from calibration.judging.matrix_errors import ErrorReport, totals
from gguf_export.reports.figures import plain
from gguf_export.reports.plots import Axis, Plot, Point, Series

__all__ = ["entropy_plot", "layer_plot", "size_plot"]

LAYERS = Axis("layer", whole=True, show=lambda value: f"{value:g}")

OUTPUT_ERROR = Axis("output error", log=True, show=lambda value: f"{plain(100 * value, 2)} %")


def size_plot(report: ErrorReport) -> Plot:
    """Median output error and its range over the middle 80 % of the matrices, by size; no points for a single type."""
    points = []
    for qtype in report.qtypes:
        rows = report.of(qtype)
        errors = sorted(row.errors.nmse for row in rows if row.errors.nmse is not None)
        if errors:
            low, middle, high = (errors[int(share * (len(errors) - 1) + 0.5)] for share in (0.1, 0.5, 0.9))
            points.append(Point(totals("", rows).bpw, middle, low, high, qtype))
    return Plot(
        "Median output error by size, with the middle 80 % of the matrices",
        [Series("", sorted(points, key=lambda point: point.x) if len(points) > 1 else [])],
        Axis("bits per weight", show=lambda value: f"{value:g}"),
        OUTPUT_ERROR,
    )


def layer_plot(report: ErrorReport) -> Plot:
    """Median output error of each layer, a series for each type; no points for a single layer."""
    series = []
    for qtype in report.qtypes:
        points = []
        for bid in range(report.n_layer):
            median = totals("", [row for row in report.of(qtype) if row.bid == bid]).median_nmse
            if median is not None:
                points.append(Point(bid, median))
        series.append(Series(qtype, points if report.n_layer > 1 else []))
    return Plot("Median output error by layer", series, LAYERS, OUTPUT_ERROR)


def entropy_plot(report: ErrorReport) -> Plot:
    """The entropy of the router of each layer, as a share of the highest; no points for a single layer."""
    highest = math.log(report.n_expert) or 1.0
    points = [Point(bid, layer.entropy / highest) for bid, layer in enumerate(report.routing)]
    return Plot(
        "Entropy of the router by layer: at 1 it cannot tell the experts apart",
        [Series("", points if len(points) > 1 else [])],
        LAYERS,
        Axis("entropy / ln(experts)", show=lambda value: f"{value:.2f}"),
    )
