"""The page of `moe-gguf compare`: what stands on it, in which order."""

from __future__ import annotations

from calibration.judging.side_by_side import Comparison
from gguf_export.files.sizes import size_in_words
from gguf_export.reports.compare_facts import base_name, labels, protocol
from gguf_export.reports.compare_maps import distribution_maps, router_maps
from gguf_export.reports.compare_plots import kld_by_size, ppl_by_size
from gguf_export.reports.compare_tables import (
    DIVERGENCE,
    GIB_PLACES,
    QUALITY,
    nats,
    router_table,
    text_table,
)
from gguf_export.reports.figures import percent
from gguf_export.reports.pages import Page, Panels, Section, Table, Terms, Tiles
from gguf_export.reports.rendering import render

__all__ = ["compare_page"]

MAX_TILES = 8

MEANINGS = (
    (
        "PPL",
        "Perplexity: how many tokens the model is torn between, on average, when it guesses the next one. It can fall "
        "by chance, so it says little of small differences.",
    ),
    (
        "ln PPL ratio",
        "The change of ln PPL from the base's, with its paired error: both models read the same text.",
    ),
    (
        "KLD",
        "Kullback-Leibler divergence in nats, from the base's probabilities of the next token to the model's; 0 is the "
        "same. The mean over all scored tokens is the best single figure; the high quantiles show the worst moments.",
    ),
    ("same top", "How often the model's first guess is the base's."),
    ("RMS Δp", "Root mean square of the change of the probability of the token that really came."),
    (
        "same experts",
        "Share of tokens that the router sends to the very set of experts to which the base sends them.",
    ),
    (
        "router KLD",
        "Mean KL divergence of the router's probabilities of all experts from the base's, in nats.",
    ),
    ("bpw", "Bits per weight, over all tensors of the file."),
)


def compare_page(comparison: Comparison) -> str:
    """Make the page: one HTML file without script and network."""
    return render(
        Page(_title(comparison), _lead(comparison), _sections(comparison), "Made by moe-gguf compare.")
    )


def _sections(comparison: Comparison) -> list[Section]:
    sections = [_first_figures(comparison), *_tables(comparison)]
    if len(comparison.models) > 1:
        plots = [kld_by_size(comparison), ppl_by_size(comparison)]
        sections.append(Section("Quality by size", [Panels(plots)]))
    sections.append(_distribution(comparison))
    if comparison.results[0][0].router is not None:
        sections.append(_routers(comparison))
    sections.append(Section("What the numbers mean", [Terms(MEANINGS)]))
    sections.append(Section("How it was measured", [Terms(protocol(comparison))]))
    return sections


def _title(comparison: Comparison) -> str:
    n_model = len(comparison.models)
    return f"{base_name(comparison)}: quality " + (
        "by quant level" if n_model > 1 else f"as {labels(comparison)[0]}"
    )


def _lead(comparison: Comparison) -> str:
    n_token = sum(text.n_token for text in comparison.texts)
    n_model = len(comparison.models)
    return (
        f"{n_model} model{'s' * (n_model > 1)} beside {base_name(comparison)} on {n_token:,} tokens of text: how much "
        f"of the base's judgement {'each of them' if n_model > 1 else 'it'} keeps, and for how many bytes."
    )


def _first_figures(comparison: Comparison) -> Section:
    """The figures to see first: those of the largest files on the first text."""
    models = list(zip(labels(comparison), comparison.models, comparison.results, strict=True))
    largest = sorted(models, key=lambda labelled: -labelled[1].n_bytes)[:MAX_TILES]
    tiles = [
        (
            f"{label}, {size_in_words(model.n_bytes, GIB_PLACES)}",
            nats(results[0].statistics.kld.value),
            f"mean KLD; same top token {percent(results[0].statistics.same_top.value)}",
        )
        for label, model, results in largest
    ]
    remarks = []
    if len(models) > len(largest):
        remarks.append(f"the largest {len(largest)} of {len(models)} models")
    if len(comparison.texts) > 1:
        remarks.append(f"on {comparison.text_name(0)}")
    lead = ", ".join(remarks)
    return Section("", [Tiles(tiles)], lead and f"{lead[0].upper()}{lead[1:]}:")


def _tables(comparison: Comparison) -> list[Section]:
    """All figures: two tables for each text."""
    sections = []
    for index in range(len(comparison.texts)):
        where = f" on {comparison.text_name(index)}" if len(comparison.texts) > 1 else ""
        for title, headings in (("Quality", QUALITY), ("KL divergence", DIVERGENCE)):
            table = Table(*text_table(comparison, index, headings))
            sections.append(Section(f"{title}{where}", [table]))
    return sections


def _distribution(comparison: Comparison) -> Section:
    lead = "Most tokens hardly change; what a reader notices is how many fall into the columns on the right."
    return Section("Distribution of KLD", distribution_maps(comparison), lead)


def _routers(comparison: Comparison) -> Section:
    lead = "Whether each token still goes to the experts that the base would ask: by layer, and on average."
    parts = [*router_maps(comparison), Table(*router_table(comparison))]
    return Section("Router agreement", parts, lead)
