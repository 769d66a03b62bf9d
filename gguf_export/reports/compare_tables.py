"""The figures of a comparison as a person reads them: on the terminal, on a page, on a model card."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from calibration.forward.timings import Stage, Timings
from calibration.judging.perplexity import Estimate
from calibration.judging.side_by_side import Comparison, Model, OnText
from gguf_export.files.sizes import size_in_words
from gguf_export.reports.compare_facts import base_name, labels, predicted, protocol
from gguf_export.reports.figures import NOTHING, significant
from gguf_export.reports.markdown import markdown_text, table_line
from gguf_export.reports.pages import TableText

__all__ = [
    "DETAILS",
    "DIVERGENCE",
    "GIB_PLACES",
    "GLANCE",
    "QUALITY",
    "compare_markdown",
    "nats",
    "router_table",
    "text_table",
    "timing_table",
    "with_error",
]

GIB_PLACES = 3
"""Decimals of a size in GiB: levels of a model differ by little."""

NOISE = 1e-8
"""Differences of float32 logits: a smaller error has no digits worth showing."""


def with_error(estimate: Estimate, factor: float = 1.0) -> str:
    """Write `factor` times a value ± its standard error, both to the place of the error's second digit.

    An error below `NOISE` is rounding and says nothing of the place; then six decimals are written.
    """
    value, error = factor * estimate.value, factor * estimate.error
    if not math.isfinite(value):
        return NOTHING
    places = 6 if abs(value) < 1 else 2
    if error >= NOISE and math.isfinite(error):
        places = max(0, 1 - math.floor(math.log10(error)))
    return _fixed(value, places) + (f" ± {error:.{places}f}" if math.isfinite(error) else "")


def _fixed(value: float, places: int) -> str:
    """Write a value with `places` decimals, and no minus before zeros."""
    return f"{round(value, places) + 0.0:,.{places}f}"


def ppl(estimate: Estimate) -> str:
    """A perplexity with its error: four places as llama-perplexity prints them, since levels differ by little."""
    return f"{estimate.value:,.4f}" + (f" ± {estimate.error:.4f}" if math.isfinite(estimate.error) else "")


def nats(value: float, digits: int = 3) -> str:
    """Write a KLD with `digits` significant digits, but six decimals at most; 0 where only rounding is left."""
    if abs(value) < 5e-7:
        return "0"
    return significant(value, digits) if abs(value) >= 1e-4 else _fixed(value, 6)


Figure = Callable[[Model, OnText], str]

FIGURES: dict[str, Figure] = {
    "size": lambda model, result: size_in_words(model.n_bytes, GIB_PLACES),
    "bpw": lambda model, result: f"{model.bpw:.2f}",
    "PPL": lambda model, result: ppl(result.statistics.ppl),
    "ln PPL ratio": lambda model, result: with_error(result.statistics.ln_ratio),
    "same top %": lambda model, result: with_error(result.statistics.same_top, 100),
    "same experts %": lambda model, result: same_experts(result),
    "mean KLD": lambda model, result: with_error(result.statistics.kld),
    "predicted KLD": lambda model, result: _predicted_kld(model),
    "median KLD": lambda model, result: nats(result.statistics.kld_median),
    "99 % KLD": lambda model, result: nats(result.statistics.kld_quantiles[0.99]),
    "99.9 % KLD": lambda model, result: nats(result.statistics.kld_quantiles[0.999]),
    "max KLD": lambda model, result: nats(result.statistics.kld_max),
    "RMS Δp %": lambda model, result: with_error(result.statistics.rms_dp, 100),
}
"""Heading -> the figure under it, for one model on one text."""

BRIEF: dict[str, Figure] = {
    "PPL": lambda model, result: f"{result.statistics.ppl.value:,.4f}",
    "RMS Δp %": lambda model, result: significant(100 * result.statistics.rms_dp.value),
    "median KLD": lambda model, result: nats(result.statistics.kld_median, 2),
    "99 % KLD": lambda model, result: nats(result.statistics.kld_quantiles[0.99], 2),
    "99.9 % KLD": lambda model, result: nats(result.statistics.kld_quantiles[0.999], 2),
    "max KLD": lambda model, result: nats(result.statistics.kld_max, 2),
}
"""The same with fewer digits, and without an error that is only that of the text: a terminal has 80 columns."""

QUALITY = ("size", "bpw", "PPL", "ln PPL ratio", "same top %", "same experts %")
DIVERGENCE = ("mean KLD", "predicted KLD", "median KLD", "99 % KLD", "99.9 % KLD", "max KLD", "RMS Δp %")
"""The two tables of a page, together all figures."""

GLANCE = ("size", "mean KLD", "predicted KLD", "same top %", "PPL")
DETAILS = ("median KLD", "99 % KLD", "99.9 % KLD", "max KLD", "RMS Δp %", "ln PPL ratio", "same experts %")
"""The two tables of a terminal, together all figures but the bits per weight."""


def text_table(
    comparison: Comparison, text: int, headings: Sequence[str] = QUALITY + DIVERGENCE, *, brief: bool = False
) -> TableText:
    """The table of some figures on one text: a row for each model, before them the base's where it has such figures.

    Args:
        comparison: the models and their results.
        text: index of the text.
        headings: keys of `FIGURES`; "same experts %" is left out where no model has experts, "predicted KLD" where
            no file states one.
        brief: take the figures of `BRIEF`, for a terminal.
    """
    figures = FIGURES | (BRIEF if brief else {})
    if all(same_experts(results[text]) == NOTHING for results in comparison.results):
        headings = [heading for heading in headings if heading != "same experts %"]
    if all(predicted(model) is None for model in comparison.models):
        headings = [heading for heading in headings if heading != "predicted KLD"]
    own = _own(comparison, text)
    if brief:
        own["PPL"] = f"{comparison.base_ppl[text].value:,.4f}"
    rows = []
    if own.keys() & set(headings):
        name = "base" if brief else f"{base_name(comparison)} (base)"
        rows = [(name, *(own.get(heading, NOTHING) for heading in headings))]
    for label, model, results in zip(labels(comparison), comparison.models, comparison.results, strict=True):
        rows.append((label, *(figures[heading](model, results[text]) for heading in headings)))
    return ("model", *(f">{heading}" for heading in headings)), rows


def _predicted_kld(model: Model) -> str:
    """The mean KLD that the file states for its types, whatever the text."""
    kld = predicted(model)
    return NOTHING if kld is None else nats(kld)


def _own(comparison: Comparison, text: int) -> dict[str, str]:
    """The figures of the base itself."""
    size, bpw = base_size(comparison)
    return {"size": size, "bpw": bpw, "PPL": ppl(comparison.base_ppl[text])}


def base_size(comparison: Comparison) -> tuple[str, str]:
    """Size and bits per weight of the base; a file of logits has neither."""
    base = comparison.base
    size = NOTHING if base.n_bytes is None else size_in_words(base.n_bytes, GIB_PLACES)
    return size, NOTHING if base.bpw is None else f"{base.bpw:.2f}"


def same_experts(result: OnText) -> str:
    """Share of tokens that go to the base's experts, mean over the layers, in percent."""
    if result.router is None or np.isnan(result.router.same).all():
        return NOTHING
    return f"{100 * float(np.nanmean(result.router.same)):.2f}"


def router_table(comparison: Comparison) -> TableText:
    """The table of how far the routers agree with the base's, mean over the layers; the comparison has routers."""
    texts = [comparison.text_name(index) for index in range(len(comparison.texts))]
    columns = (
        "model",
        *(f">same experts %, {name}" for name in texts),
        *(f">router KLD, {name}" for name in texts),
    )
    rows: list[tuple[str, ...]] = []
    for label, results in zip(labels(comparison), comparison.results, strict=True):
        routers = [result.router for result in results if result.router is not None]
        klds = (significant(float(np.nanmean(router.kld))) for router in routers)
        rows.append((label, *(same_experts(result) for result in results), *klds))
    return columns, rows


MODEL_CARD = (
    "PPL",
    "ln PPL ratio",
    "mean KLD",
    "predicted KLD",
    "99.9 % KLD",
    "same top %",
    "same experts %",
)


def compare_markdown(comparison: Comparison) -> str:
    """Write a Markdown table for a model card, one for each text, and how it was measured."""
    parts = []
    for index in range(len(comparison.texts)):
        columns, rows = text_table(comparison, index, ("size", "bpw", *MODEL_CARD))
        if len(comparison.texts) > 1:
            parts += [f"**{markdown_text(comparison.text_name(index))}**", ""]
        parts.append(table_line([column.lstrip(">") for column in columns]))
        parts.append(table_line(["---", *["---:"] * (len(columns) - 1)]))
        parts += [table_line([markdown_text(cell) for cell in row]) for row in rows]
        parts.append("")
    facts = [f"- {markdown_text(name)}: {markdown_text(how)}" for name, how in protocol(comparison)]
    return "\n".join([*parts, *facts, ""])


def timing_table(timings: Timings) -> TableText:
    """The table of the seconds that each kind of work took."""
    stages = {
        Stage.READING: "reading, and encoding of round trips",
        Stage.DECODING: "decoding",
        Stage.PRODUCTS: "matrix products",
        Stage.ATTENTION: "attention",
        Stage.COMPARING: "comparing logits",
    }
    seconds = {work: timings.seconds[stage] for stage, work in stages.items()}
    seconds["all else"] = timings.total - sum(seconds.values())
    seconds["total"] = timings.total
    rows: list[tuple[str, ...]] = [
        (work, f"{spent:.1f}", f"{100 * spent / max(timings.total, 1e-9):.1f} %")
        for work, spent in seconds.items()
    ]
    return ("work", ">seconds", ">share"), rows
