"""Matplotlib as the plots need it: quiet, with settings of its own, and the same bytes for the same drawing.

Everything that uses matplotlib imports it from here. Names are text and nothing else: matplotlib's mathematics is off.
The settings of the user's matplotlibrc do not count.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from quantize.exceptions import OutputError


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence matplotlib's warnings, of which a reader of these plots has no use.

    It warns where the home folder cannot be written, so that its font cache goes to a temporary folder, and of every
    character that its font lacks. On a page the browser has the fonts; in a PNG a box stands for the character.
    """
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


with _quiet():
    try:
        import matplotlib
        from matplotlib.axes import Axes
        from matplotlib.figure import Figure
        from matplotlib.font_manager import FontProperties
        from matplotlib.lines import Line2D
        from matplotlib.textpath import text_to_path
        from matplotlib.ticker import FixedFormatter, FixedLocator, LogLocator, MaxNLocator, NullLocator
    except OSError as error:  # neither the home folder nor the one for temporary files can be written
        raise OutputError(
            "plots",
            "matplotlib has no folder to write its font cache to",
            f"set MPLCONFIGDIR to one: {error}",
        ) from error

__all__ = [
    "FONT_SIZE",
    "PALETTE",
    "SERIES_COLOURS",
    "Axes",
    "Figure",
    "FixedFormatter",
    "FixedLocator",
    "Line2D",
    "LogLocator",
    "MaxNLocator",
    "NullLocator",
    "drawing",
    "save_png",
    "save_svg",
    "text_width",
]

SERIES_COLOURS = ("#0b5cad", "#b84a00", "#2c7a3f", "#8b3fa0", "#6b5b00", "#a02c4c")

PALETTE = {
    "ink": "#1b1f24",
    "soft": "#57606a",
    "line": "#d5dbe1",
    "paper": "#ffffff",
    **{f"s{index}": colour for index, colour in enumerate(SERIES_COLOURS)},
}
"""Colours of drawings by the names that the style sheet of pages has for them; on a page the style sheet decides."""

FONT_SIZE = 12.0

SETTINGS: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so that drawings are the same on every machine
    "font.size": FONT_SIZE,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": PALETTE["soft"],
    "axes.edgecolor": PALETTE["line"],
    "axes.facecolor": "none",
    "xtick.labelcolor": PALETTE["soft"],
    "ytick.labelcolor": PALETTE["soft"],
    "figure.dpi": 72,
    "figure.facecolor": PALETTE["paper"],
    "grid.color": PALETTE["line"],
}


@contextmanager
def drawing(salt: str) -> Iterator[None]:
    """Matplotlib with these settings and no others; `salt` keeps apart the ids of several drawings on one page."""
    with _quiet(), matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS | {"svg.hashsalt": salt})
        yield


def save_svg(figure: Figure) -> str:
    """The figure as an SVG document, without date or version."""
    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(out, format="svg", dpi=72, metadata=nothing)
    return out.getvalue()


def save_png(figure: Figure, dpi: float) -> bytes:
    """The figure as a PNG image, without date or version."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi, metadata={"Software": None})
    return out.getvalue()


def text_width(text: str, size: float = FONT_SIZE) -> float:
    """The width of a line of text in points; the font of a browser is seldom wider."""
    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return float(width)
