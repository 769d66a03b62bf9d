"""The plots of a comparison: quality by size, for pages and as files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from gguf_export.comparing.results import Measured, ModelResult, Results
from gguf_export.files.outputs import refuse_outputs
from gguf_export.files.replacing import write_bytes
from gguf_export.reports.compare_facts import is_lossless, ppl_ratio, ranked, size_unit
from gguf_export.reports.compare_tables import nats
from gguf_export.reports.drawing import png_file, svg_file
from gguf_export.reports.figures import plain
from gguf_export.reports.plots import Axis, Plot, Point, Series
from gguf_export.reports.ranking import unbeaten
from quantize.exceptions import OutputError

__all__ = ["kld_by_size", "plot_file", "plot_png", "plot_svg", "ppl_by_size", "write_plot"]

LONGEST_BAR = 0.9
"""Of a value: on a logarithmic axis a bar that came near 0 would be all that one sees."""


def write_plot(results: Results, path: Path, *, force: bool = False) -> None:
    """Write size against mean KLD as .svg or .png, whole or not at all.

    Args:
        results: the figures.
        path: of the file, whose suffix decides.
        force: replace a file that exists.

    Raises:
        OutputError: the suffix names neither, or the file cannot be written; or `OutputExistsError`.
    """
    content = plot_file(path, results)
    refuse_outputs([path], force=force)
    write_bytes(path, content)


def plot_file(path: Path, results: Results) -> bytes:
    """The content of a file of size against mean KLD, as .svg or .png.

    Raises:
        OutputError: the suffix names neither.
    """
    suffix = path.suffix.lower()
    if suffix not in (".svg", ".png"):
        raise OutputError(str(path), "a plot can be written as .svg or .png", "name the file so")
    return plot_png(results) if suffix == ".png" else plot_svg(results).encode("utf-8")


def plot_svg(results: Results) -> str:
    """Draw size against mean KLD as an SVG document, on opaque ground; equal figures give equal text."""
    return svg_file(kld_by_size(results, is_titled=True))


def plot_png(results: Results) -> bytes:
    """Draw size against mean KLD as a PNG image, on opaque ground; equal figures give equal bytes."""
    return png_file(kld_by_size(results, is_titled=True))


def kld_by_size(results: Results, *, is_titled: bool = False) -> Plot:
    """Mean KLD by size, over all texts; a line joins the files that no other beats.

    Files of 16 bits, and those that lose nothing, would stretch the axes: they stand in the note.

    Args:
        results: the figures.
        is_titled: the title names the base, for a plot that stands alone.
    """
    points = _points(results, lambda model: model.mean("kld"), is_log=True)
    best = {file.name for file in unbeaten(ranked(results))}
    line = sorted((point for point in points if point.name in best), key=lambda point: point.x)
    title = "Mean KL divergence by size, ± one standard error"
    n_text = len(results.texts)
    if n_text > 1:
        title += f", over {n_text} texts"
    if is_titled:
        title = f"{results.base.name}: {title[0].lower()}{title[1:]}"
    axis = Axis("mean KLD in nats", log=True)
    return Plot(
        title, [Series("", points, line=line)], _size_axis(results), axis, _note(results), is_wide=True
    )


def ppl_by_size(results: Results) -> Plot:
    """Perplexity ratio by size, over all texts."""
    points = _points(results, lambda model: ppl_ratio(model.mean("ln_ratio")), is_log=False)
    return Plot(
        "Perplexity as a multiple of the base's, ± one paired standard error",
        [Series("", points, line=())],
        _size_axis(results),
        Axis("PPL / PPL of the base", show=lambda value: plain(value, 6)),
        is_wide=True,
    )


def _shown(results: Results) -> list[ModelResult]:
    """The models that a plot shows: those that lose something."""
    return [model for model in results.models if not is_lossless(model.bpw, model.mean("kld").value)]


def _note(results: Results) -> str:
    """Which files no point stands for, and the line."""
    shown = {model.label for model in _shown(results)}
    left_out = [
        f"{model.label} ({nats(model.mean('kld').value)})"
        for model in results.models
        if model.label not in shown
    ]
    parts = ["The line joins the files that no other beats."]
    if left_out:
        parts.append(f"Not drawn, as they lose next to nothing: {', '.join(left_out)}.")
    return " ".join(parts)


def _size_axis(results: Results) -> Axis:
    return Axis(f"size in {size_unit(results).name}", show=lambda value: plain(value, 4))


def _points(results: Results, figure: Callable[[ModelResult], Measured], *, is_log: bool) -> Sequence[Point]:
    """The points of the models, by size."""
    unit = size_unit(results).n_bytes
    points = []
    for model in _shown(results):
        value, error = figure(model)
        error = error if math.isfinite(error) else 0.0
        below = min(error, LONGEST_BAR * value) if is_log else error
        points.append(Point(model.n_bytes / unit, value, value - below, value + error, model.label))
    return sorted(points, key=lambda point: point.x)
