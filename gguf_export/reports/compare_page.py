"""The page of `moe-gguf compare`: what stands on it, in which order."""

from __future__ import annotations

import math

from gguf_export.comparing.results import Results
from gguf_export.reports.compare_facts import is_lossless, protocol, size_unit
from gguf_export.reports.compare_maps import distribution_maps, router_maps, text_map
from gguf_export.reports.compare_plots import kld_by_size, ppl_by_size
from gguf_export.reports.compare_tables import (
    DIVERGENCE,
    QUALITY,
    VERDICTS,
    files_table,
    nats,
    router_table,
    text_table,
)
from gguf_export.reports.figures import percent
from gguf_export.reports.pages import Details, Page, PagePart, Section, Table, Terms, Tiles
from gguf_export.reports.rendering import render
from gguf_export.reports.terms import meanings

__all__ = ["compare_page"]

MANY_TEXTS = 2
"""More texts than this have their tables and maps behind lines that open them."""


def compare_page(results: Results) -> str:
    """Make the page: one HTML file without script and network."""
    return render(Page(_title(results), _lead(results), _sections(results), "Made by moe-gguf compare."))


def _sections(results: Results) -> list[Section]:
    has_plot = sum(not is_lossless(model.bpw, model.mean("kld").value) for model in results.models) > 1
    first = kld_by_size(results) if has_plot else Tiles(_first_figures(results))
    sections = [
        Section("", [first]),
        Section("Files", [Table(*files_table(results), is_tight=True)], f"The largest first. {VERDICTS}"),
    ]
    if len(results.texts) > 1:
        lead = "Each text counts the same in the figures over all of them."
        sections.append(Section("By text", text_map(results), lead))
    sections.append(_by_text(results))
    if has_plot:
        sections.append(Section("Perplexity by size", [ppl_by_size(results)]))
    sections.append(_distribution(results))
    if _has_routers(results):
        sections.append(_routers(results))
    sections.append(Section("What the words mean", [Terms(meanings(_words(results)))]))
    sections.append(Section("How it was measured", [Terms(protocol(results))]))
    return sections


def _title(results: Results) -> str:
    n_model = len(results.models)
    return f"{results.base.name}: quality " + (
        "by quant level" if n_model > 1 else f"as {results.models[0].label}"
    )


def _lead(results: Results) -> str:
    n_token = sum(text.n_token for text in results.texts)
    n_model = len(results.models)
    return (
        f"{n_model} model{'s' * (n_model > 1)} beside {results.base.name} on {n_token:,} tokens of text: how much "
        f"of the base's judgement {'each of them' if n_model > 1 else 'it'} keeps, and for how many bytes."
    )


def _first_figures(results: Results) -> list[tuple[str, str, str]]:
    """The figures to see first where there is nothing to plot."""
    unit = size_unit(results)
    return [
        (
            f"{model.label}, {unit.show(model.n_bytes)} {unit.name}",
            nats(model.mean("kld").value),
            f"mean KLD; same top token {percent(model.mean('same_top').value)}",
        )
        for model in results.models
    ]


def _by_text(results: Results) -> Section:
    """All figures: two tables for each text."""
    tables = [
        [Table(*text_table(results, index, headings)) for headings in (QUALITY, DIVERGENCE)]
        for index in range(len(results.texts))
    ]
    if len(tables) == 1:
        return Section(f"On {results.texts[0].name}", tables[0])
    is_open = len(tables) <= MANY_TEXTS
    named = zip(results.texts, tables, strict=True)
    return Section("Each text", [Details(text.name, both, is_open) for text, both in named])


def _distribution(results: Results) -> Section:
    lead = "Most tokens hardly change; what a reader notices is how many fall into the columns on the right."
    return Section("Distribution of KLD", _folded(results, distribution_maps(results)), lead)


def _has_routers(results: Results) -> bool:
    return any(not math.isnan(model.mean_same_experts) for model in results.models)


def _routers(results: Results) -> Section:
    lead = "Whether each token still goes to the experts that the base would ask: by layer, and on average."
    parts = [*router_maps(results), Table(*router_table(results))]
    return Section("Router agreement", _folded(results, parts), lead)


def _folded(results: Results, parts: list[PagePart]) -> list[PagePart]:
    """The parts, behind a line where each of many texts has one."""
    n_text = len(results.texts)
    return parts if n_text <= MANY_TEXTS else [Details(f"For each of the {n_text} texts", parts)]


def _words(results: Results) -> list[str]:
    """What is explained on the page: the words that stand on it."""
    words = ["mean KLD"]
    if any(model.predicted_kld is not None for model in results.models):
        words.append("predicted KLD")
    words.append("same top")
    if _has_routers(results):
        words += ["same experts", "router KLD"]
    words += ["PPL", "PPL ratio", "ln PPL ratio", "RMS Δp", "bpw"]
    if results.speed_test is not None:
        words += ["pp", "tg"]
    if any("prior" in model.importances for model in results.models):
        words.append("prior")
    return words
