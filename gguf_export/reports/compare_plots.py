"""The plots of a comparison: quality by size, for pages and as files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from calibration.judging.perplexity import Estimate
from calibration.judging.side_by_side import Comparison, OnText
from gguf_export.reports.compare_facts import base_name, labels
from gguf_export.reports.drawing import png_file, svg_file
from gguf_export.reports.figures import plain
from gguf_export.reports.plots import Axis, Plot, Point, Series
from quantize.exceptions import OutputError

__all__ = ["kld_by_size", "plot_png", "plot_svg", "ppl_by_size", "unbeaten"]

MAX_JOINED = 8
"""Models that a line joins where it stands for nothing but their order; it would only confuse among more."""


def plot_svg(comparison: Comparison) -> str:
    """Draw size against mean KLD as an SVG document, on opaque ground; equal comparisons give equal text."""
    return svg_file(kld_by_size(comparison, is_titled=True))


def plot_png(comparison: Comparison) -> bytes:
    """Draw size against mean KLD as a PNG image, on opaque ground; equal comparisons give equal bytes."""
    return png_file(kld_by_size(comparison, is_titled=True))


def plot_file(path: Path, comparison: Comparison) -> bytes:
    """The content of a file of size against mean KLD, as .svg or .png.

    Raises:
        OutputError: the suffix names neither.
    """
    suffix = path.suffix.lower()
    if suffix not in (".svg", ".png"):
        raise OutputError(str(path), "a plot can be written as .svg or .png", "name the file so")
    return plot_png(comparison) if suffix == ".png" else plot_svg(comparison).encode("utf-8")


def kld_by_size(comparison: Comparison, *, is_titled: bool = False) -> Plot:
    """Mean KLD by size, one series for each text; a line joins the models that no other beats.

    `is_titled`: the title names the base, for a plot that stands alone.
    """
    series = [
        Series(name, points, line=unbeaten(points), named=index == 0)
        for index, (name, points) in enumerate(_points(comparison, lambda result: result.statistics.kld))
    ]
    title = "Mean KL divergence by size, ± one standard error"
    if is_titled:
        title = f"{base_name(comparison)}: {title[0].lower()}{title[1:]}"
    return Plot(title, series, _size_axis(comparison), Axis("mean KLD", log=True))


def ppl_by_size(comparison: Comparison) -> Plot:
    """Perplexity ratio by size, one series for each text."""
    series = [
        Series(name, points, line=points if len(points) <= MAX_JOINED else (), named=index == 0)
        for index, (name, points) in enumerate(
            _points(comparison, lambda result: result.statistics.ppl_ratio)
        )
    ]
    return Plot(
        "Perplexity as a multiple of the base's, ± one paired standard error",
        series,
        _size_axis(comparison),
        Axis("PPL / PPL of the base", show=lambda value: plain(value, 6)),
    )


def unbeaten(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats, from left to right: none is as far left or further, and lower."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, point.y)):
        if not kept or point.y < kept[-1].y:
            kept.append(point)
    return kept


def _unit(comparison: Comparison) -> tuple[int, str]:
    """The unit of the axis of sizes, in bytes and in words."""
    is_large = max(model.n_bytes for model in comparison.models) >= 1 << 30
    return (1 << 30, "GiB") if is_large else (1 << 20, "MiB")


def _size_axis(comparison: Comparison) -> Axis:
    return Axis(f"size in {_unit(comparison)[1]}", show=lambda value: plain(value, 4))


def _points(comparison: Comparison, figure: Callable[[OnText], Estimate]) -> list[tuple[str, list[Point]]]:
    """For each text its name (empty for the only one) and the models' points, by size."""
    unit, _ = _unit(comparison)
    texts = []
    for index in range(len(comparison.texts)):
        points = []
        for label, model, results in zip(
            labels(comparison), comparison.models, comparison.results, strict=True
        ):
            value, error = figure(results[index]).value, figure(results[index]).error
            low = value - error if value > error else None
            points.append(Point(model.n_bytes / unit, value, low, value + error, label))
        name = comparison.text_name(index) if len(comparison.texts) > 1 else ""
        texts.append((name, sorted(points, key=lambda point: point.x)))
    return texts
