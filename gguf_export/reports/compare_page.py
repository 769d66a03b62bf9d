"""The page of `moe-gguf compare`: one self-contained file for the model card's neighbourhood."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from calibration.judging.side_by_side import Comparison
from gguf_export.reports.compare_facts import base_name, labels, protocol
from gguf_export.reports.compare_tables import DIVERGENCE, QUALITY, gib, nats, text_table
from gguf_export.reports.figures import percent, plain, significant
from gguf_export.reports.html import (
    Cell,
    Html,
    Scale,
    Section,
    heatmap,
    join,
    legend,
    page,
    panels,
    table,
    terms,
    tiles,
)
from gguf_export.reports.plot import Axis, Point, Series, plot

__all__ = ["compare_page"]

MOST_TILES = 8
BINS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # bounds of KLD in nats
BIN_NAMES = ("<10⁻⁵", "<10⁻⁴", "<10⁻³", "<.01", "<.1", "<1", "≥1")

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
    """The whole page."""
    sections = [_glance(comparison)]
    for index in range(len(comparison.texts)):
        of = f" on {comparison.text_name(index)}" if len(comparison.texts) > 1 else ""
        for title, headings in (("Quality", QUALITY), ("KL divergence", DIVERGENCE)):
            sections.append(Section(f"{title}{of}", table(*text_table(comparison, index, headings))))
    if len(comparison.models) > 1:
        sections.append(Section("Quality by size", panels(list(_size_plots(comparison)))))
    sections.append(_distribution(comparison))
    if comparison.results[0][0].router is not None:
        sections.append(_routers(comparison))
    sections += [
        Section("What the numbers mean", terms(MEANINGS)),
        Section("How it was measured", terms(protocol(comparison))),
    ]
    n_token = sum(text.n_token for text in comparison.texts)
    n_model, base = len(comparison.models), base_name(comparison)
    lead = (
        f"{n_model} model{'s' * (n_model > 1)} beside {base} on {n_token:,} tokens of text: how much of the base's "
        f"judgement {'each of them' if n_model > 1 else 'it'} keeps, and for how many bytes."
    )
    title = f"{base}: quality " + ("by quant level" if n_model > 1 else f"as {labels(comparison)[0]}")
    return page(title, lead, sections, "Made by moe-gguf compare.")


def _glance(comparison: Comparison) -> Section:
    """The figures to see first: the largest files on the first text."""
    found = list(zip(labels(comparison), comparison.models, comparison.results, strict=True))
    shown = sorted(found, key=lambda one: -one[1].n_bytes)[:MOST_TILES]
    facts = [
        (
            f"{label}, {gib(model.n_bytes)}",
            nats(results[0].statistics.kld.value),
            f"mean KLD; same top token {percent(results[0].statistics.same_top.value)}",
        )
        for label, model, results in shown
    ]
    parts = [f"the largest {len(shown)} of {len(found)} models"] if len(found) > len(shown) else []
    parts += [f"on {comparison.text_name(0)}"] if len(comparison.texts) > 1 else []
    lead = ", ".join(parts)
    return Section("", tiles(facts), lead and f"{lead[0].upper()}{lead[1:]}:")


def _size_plots(comparison: Comparison) -> Iterable[Html]:
    names = labels(comparison)
    big = max(model.n_bytes for model in comparison.models) >= 1 << 30
    unit, name = (2**30, "GiB") if big else (2**20, "MiB")
    size = Axis(f"size in {name}", show=lambda value: plain(value, 4))

    def series(index: int, of: str) -> Series:
        points = []
        for label, model, results in zip(names, comparison.models, comparison.results, strict=True):
            s = results[index].statistics
            value = s.kld if of == "kld" else s.ppl_ratio
            points.append(
                Point(
                    model.n_bytes / unit,
                    value.value,
                    value.value - value.error if value.value > value.error else None,
                    value.value + value.error,
                    label,
                )
            )
        shown = sorted(points, key=lambda point: point.x)
        name = comparison.text_name(index) if len(comparison.texts) > 1 else ""
        return Series(name, shown, line=len(points) <= 8, named=index == 0)

    everywhere = range(len(comparison.texts))
    yield plot(
        "Mean KL divergence by size, ± one standard error",
        [series(index, "kld") for index in everywhere],
        size,
        Axis("mean KLD", log=True),
    )
    yield plot(
        "Perplexity as a multiple of the base's, ± one paired standard error",
        [series(index, "ppl") for index in everywhere],
        size,
        Axis("PPL / PPL of the base", show=lambda value: plain(value, 6)),
    )


def _distribution(comparison: Comparison) -> Section:
    """Model by decade of KLD: the share of targets."""
    names = labels(comparison)
    shares = [
        [
            np.bincount(np.searchsorted(BINS, result.scores.kld, side="right"), minlength=len(BIN_NAMES))
            / result.scores.kld.size
            for result in results
        ]
        for results in comparison.results
    ]
    scale = Scale(0.0, max(float(share.max()) for row in shares for share in row))
    drawn = [
        heatmap(
            f"{comparison.text_name(index)}, share of tokens in percent",
            "model",
            names,
            "KLD",
            BIN_NAMES,
            [
                [
                    Cell(float(share), _tenths(share), f"{label}: {percent(float(share))} of tokens {bound}")
                    for share, bound in zip(row[index], BIN_NAMES, strict=True)
                ]
                for label, row in zip(names, shares, strict=True)
            ],
            scale,
            "load",
        )
        for index in range(len(comparison.texts))
    ]
    lead = "Most tokens hardly change; what a reader notices is how many fall into the columns on the right."
    key = legend("share of tokens", scale, lambda value: percent(value, 2), "load")
    return Section("Distribution of KLD", join([key, panels(drawn)]), lead)


def _tenths(share: float) -> str:
    """A share in percent, in few characters."""
    if not share:
        return "0"
    return "<.1" if share < 0.001 else f"{100 * share:.1f}" if share < 0.1 else f"{100 * share:.0f}"


def _routers(comparison: Comparison) -> Section:
    """Model by layer: the share of tokens that go elsewhere than the base's."""
    names = labels(comparison)
    n_layer = len(comparison.results[0][0].router.same)  # type: ignore[union-attr]
    layers = [str(bid) for bid in range(n_layer)]
    moved = [
        [1 - result.router.same for result in results if result.router is not None]
        for results in comparison.results
    ]
    scale = Scale(0.0, max(float(np.nanmax(one)) for row in moved for one in row))
    drawn = []
    for index in range(len(comparison.texts)):
        cells = []
        for label, row, results in zip(names, moved, comparison.results, strict=True):
            router = results[index].router
            line: list[Cell | None] = []
            for bid in range(n_layer):
                share = float(row[index][bid])
                if np.isnan(share) or router is None:
                    line.append(None)
                    continue
                kld = significant(float(router.kld[bid]))
                told = f"{label}, layer {bid}: {percent(1 - share, 4)} same experts, router KLD {kld}"
                line.append(Cell(share, _tenths(share), told))
            cells.append(line)
        caption = f"{comparison.text_name(index)}, tokens sent to other experts, in percent"
        drawn.append(heatmap(caption, "model", names, "layer", layers, cells, scale, "error"))
    rows = [
        (
            label,
            *(f"{100 * float(np.nanmean(r.router.same)):.2f}" for r in results if r.router is not None),
            *(significant(float(np.nanmean(r.router.kld))) for r in results if r.router is not None),
        )
        for label, results in zip(names, comparison.results, strict=True)
    ]
    texts = [comparison.text_name(index) for index in range(len(comparison.texts))]
    columns = (
        "model",
        *(f">same experts %, {name}" for name in texts),
        *(f">router KLD, {name}" for name in texts),
    )
    lead = "Whether each token still goes to the experts that the base would ask: by layer, and on average."
    key = legend("sent elsewhere", scale, lambda value: percent(value, 2), "error")
    body = join([key, panels(drawn, n_layer, "n-router"), table(columns, rows)])
    return Section("Router agreement", body, lead)
