"""The figures of a comparison as a person reads them: on the terminal, on a page, on a model card."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from gguf_export.comparing.results import ModelResult, OnText, Results
from gguf_export.reports.compare_facts import ppl_ratio, protocol, ranked, size_unit
from gguf_export.reports.figures import NOTHING, significant
from gguf_export.reports.markdown import markdown_text, table_line
from gguf_export.reports.pages import TableText
from gguf_export.reports.ranking import BEATEN, RULE, beaten_by, verdict

__all__ = [
    "DETAILS",
    "DIVERGENCE",
    "GIB_PLACES",
    "QUALITY",
    "VERDICTS",
    "compare_markdown",
    "files_table",
    "kld_by_text",
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

NOTHING_LOST = 5e-7
"""Nats: a smaller mean KLD would be written with six zeros."""

VERDICTS = f"Verdict by mean KLD: {RULE}. Beaten by X: {BEATEN}."
"""The rules that stand beside every table of files."""


class Estimate(Protocol):
    """A figure with its standard error."""

    @property
    def value(self) -> float:
        """The figure."""
        ...

    @property
    def error(self) -> float:
        """Its standard error."""
        ...


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
    if not math.isfinite(value):
        return NOTHING
    if abs(value) < NOTHING_LOST:
        return "0"
    return significant(value, digits) if abs(value) >= 1e-4 else _fixed(value, 6)


# -- the table of files: one line for each, over all texts


FilesFigure = Callable[[ModelResult], str]

FILES: dict[str, FilesFigure] = {
    "verdict": lambda model: verdict(model.mean("kld").value),
    "mean KLD": lambda model: _mean_kld(model.mean("kld")),
    "beaten by": lambda model: NOTHING,  # which takes all files to know
    "bpw": lambda model: f"{model.bpw:.2f}",
    "predicted KLD": lambda model: NOTHING if model.predicted_kld is None else nats(model.predicted_kld),
    "99.9 % KLD": lambda model: nats(model.texts[0].figures["kld_q0.999"]),
    "same top %": lambda model: with_error(model.mean("same_top"), 100),
    "same experts %": lambda model: share(model.mean_same_experts),
    "PPL ratio": lambda model: _ratio(ppl_ratio(model.mean("ln_ratio"))),
    "pp t/s": lambda model: NOTHING if model.speed is None else significant(model.speed.pp),
    "tg t/s": lambda model: NOTHING if model.speed is None else significant(model.speed.tg),
}
"""Heading -> the figure under it; the size stands before them."""

WORDS = ("verdict", "beaten by")
"""The headings under which words stand, and no numbers."""

FILES_BRIEF: dict[str, FilesFigure] = {
    **{name: FILES[name] for name in ("verdict", "mean KLD", "beaten by", "predicted KLD")},
    "same top %": lambda model: share(model.mean("same_top").value),
    "pp t/s": FILES["pp t/s"],
    "tg t/s": FILES["tg t/s"],
}
"""The same for a terminal of 80 columns."""


def files_table(results: Results, *, brief: bool = False) -> TableText:
    """The table of the files, the largest first: size, quality over all texts, verdict, and what beats each.

    Args:
        results: the models and their figures.
        brief: for a terminal.
    """
    figures = {
        name: figure for name, figure in (FILES_BRIEF if brief else FILES).items() if _has(results, name)
    }
    unit = size_unit(results)
    columns = ("model", f">{unit.name}", *(name if name in WORDS else f">{name}" for name in figures))
    rows: list[tuple[str, ...]] = []
    base = results.base
    if not brief and base.n_bytes is not None:
        own = {"bpw": NOTHING if base.bpw is None else f"{base.bpw:.2f}"}
        cells = (own.get(name, NOTHING) for name in figures)
        rows.append((f"{base.name} (base)", unit.show(base.n_bytes), *cells))
    for model, beaten in zip(results.models, beaten_by(ranked(results)), strict=True):
        shown = {name: figure(model) for name, figure in figures.items()}
        shown["beaten by"] = beaten or NOTHING
        rows.append((model.label, unit.show(model.n_bytes), *shown.values()))
    return columns, rows


def _mean_kld(kld: Estimate) -> str:
    """A mean KLD with its error; 0 where only rounding is left."""
    return "0" if abs(kld.value) < NOTHING_LOST else with_error(kld)


def _has(results: Results, heading: str) -> bool:
    """Whether there is anything to show under a heading."""
    if heading == "same experts %":
        return any(not math.isnan(model.mean_same_experts) for model in results.models)
    if heading == "predicted KLD":
        return any(model.predicted_kld is not None for model in results.models)
    if heading == "99.9 % KLD":
        return len(results.texts) == 1
    if heading in ("pp t/s", "tg t/s"):
        return results.speed_test is not None
    return True


def share(value: float) -> str:
    """A share in percent, to the second decimal."""
    return NOTHING if math.isnan(value) else f"{100 * value:.2f}"


def kld_by_text(results: Results) -> TableText:
    """The table of the mean KLD on each text, and over all of them."""
    rows: list[tuple[str, ...]] = []
    for model in results.models:
        klds = [text.figures["kld"] for text in model.texts]
        rows.append((model.label, *map(nats, klds), nats(model.mean("kld").value)))
    return ("model", *(f">{text.name}" for text in results.texts), ">all"), rows


def _ratio(ratio: Estimate) -> str:
    """A PPL ratio with its error, to the fifth decimal at most."""
    if not ratio.error >= LEAST_RATIO_ERROR:
        return f"{ratio.value:.5f} ± {ratio.error:.5f}" if math.isfinite(ratio.value) else NOTHING
    return with_error(ratio)


LEAST_RATIO_ERROR = 1e-4


# -- the tables of one text


Figure = Callable[[OnText], str]

FIGURES: dict[str, Figure] = {
    "PPL": lambda result: ppl(result.measured("ppl")),
    "PPL ratio": lambda result: with_error(result.measured("ppl_ratio")),
    "ln PPL ratio": lambda result: with_error(result.measured("ln_ratio")),
    "same top %": lambda result: with_error(result.measured("same_top"), 100),
    "same experts %": lambda result: share(result.mean_same_experts),
    "mean KLD": lambda result: with_error(result.measured("kld")),
    "median KLD": lambda result: nats(result.figures["kld_median"]),
    "99 % KLD": lambda result: nats(result.figures["kld_q0.99"]),
    "99.9 % KLD": lambda result: nats(result.figures["kld_q0.999"]),
    "max KLD": lambda result: nats(result.figures["kld_max"]),
    "RMS Δp %": lambda result: with_error(result.measured("rms_dp"), 100),
}
"""Heading -> the figure under it, for one model on one text."""

BRIEF: dict[str, Figure] = {
    "PPL": lambda result: f"{result.figures['ppl']:,.4f}",
    "PPL ratio": lambda result: f"{result.figures['ppl_ratio']:.5f}",
    "RMS Δp %": lambda result: significant(100 * result.figures["rms_dp"]),
    "median KLD": lambda result: nats(result.figures["kld_median"], 2),
    "99 % KLD": lambda result: nats(result.figures["kld_q0.99"], 2),
    "99.9 % KLD": lambda result: nats(result.figures["kld_q0.999"], 2),
    "max KLD": lambda result: nats(result.figures["kld_max"], 2),
}
"""The same with fewer digits, and without an error that is only that of the text: a terminal has 80 columns."""

QUALITY = ("PPL", "ln PPL ratio", "same top %", "same experts %")
DIVERGENCE = ("mean KLD", "median KLD", "99 % KLD", "99.9 % KLD", "max KLD", "RMS Δp %")
"""The two tables of a text on a page, together all figures."""

DETAILS = (
    *("PPL", "PPL ratio", "median KLD", "99 % KLD", "99.9 % KLD", "max KLD", "RMS Δp %"),
    "same experts %",
)
"""The table of a text on a terminal, beside that of the files."""


def text_table(
    results: Results, text: int, headings: Sequence[str] = QUALITY + DIVERGENCE, *, brief: bool = False
) -> TableText:
    """The table of some figures on one text: a row for each model, before them the base's where it has such figures.

    Args:
        results: the models and their figures.
        text: index of the text.
        headings: keys of `FIGURES`; "same experts %" is left out where no model has experts.
        brief: take the figures of `BRIEF`, for a terminal.
    """
    figures = FIGURES | (BRIEF if brief else {})
    headings = [heading for heading in headings if heading != "same experts %" or _has(results, heading)]
    rows: list[tuple[str, ...]] = []
    if "PPL" in headings:
        own = results.texts[text].base_ppl
        shown = f"{own.value:,.4f}" if brief else ppl(own)
        name = "base" if brief else f"{results.base.name} (base)"
        rows.append((name, *(shown if heading == "PPL" else NOTHING for heading in headings)))
    for model in results.models:
        rows.append((model.label, *(figures[heading](model.texts[text]) for heading in headings)))
    return ("model", *(f">{heading}" for heading in headings)), rows


def router_table(results: Results) -> TableText:
    """The table of how far the routers agree with the base's, mean over the layers; the comparison has routers."""
    texts = [text.name for text in results.texts]
    columns = (
        "model",
        *(f">same experts %, {name}" for name in texts),
        *(f">router KLD, {name}" for name in texts),
    )
    rows: list[tuple[str, ...]] = []
    for model in results.models:
        klds = (significant(text.mean_router_kld) for text in model.texts)
        rows.append((model.label, *(share(text.mean_same_experts) for text in model.texts), *klds))
    return columns, rows


def compare_markdown(results: Results) -> str:
    """Write Markdown for a model card: the table of the files, their KLD on each text, and how it was measured."""
    parts = [*_markdown_table(files_table(results)), VERDICTS, ""]
    if len(results.texts) > 1:
        parts += ["Mean KLD by text:", "", *_markdown_table(kld_by_text(results))]
    facts = [f"- {markdown_text(name)}: {markdown_text(how)}" for name, how in protocol(results)]
    return "\n".join([*parts, *facts, ""])


def _markdown_table(table: TableText) -> list[str]:
    columns, rows = table
    rule = ["---:" if column.startswith(">") else "---" for column in columns]
    head = [markdown_text(column.removeprefix(">")) for column in columns]
    lines = [[markdown_text(cell) for cell in row] for row in rows]
    return [*map(table_line, (head, rule, *lines)), ""]


STAGES = {
    "reading": "reading, and encoding of round trips",
    "decoding": "decoding",
    "products": "matrix products",
    "attention": "attention",
    "comparing": "comparing logits",
}
"""Kind of work, as `calibration.forward.timings.Stage` calls it -> in words."""


def timing_table(timings: Mapping[str, float]) -> TableText:
    """The table of the seconds that each kind of work took."""
    total = timings["total"]
    seconds = {words: timings[stage] for stage, words in STAGES.items()}
    seconds["all else"] = total - sum(seconds.values())
    seconds["total"] = total
    rows: list[tuple[str, ...]] = [
        (work, f"{spent:.1f}", f"{100 * spent / max(total, 1e-9):.1f} %") for work, spent in seconds.items()
    ]
    return ("work", ">seconds", ">share"), rows
