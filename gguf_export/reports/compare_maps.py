"""The heat maps of a comparison: KL divergence by text, how it is spread, and where tokens went to other experts."""

from __future__ import annotations

import math

from gguf_export.comparing.results import DECADES, ModelResult, OnText, Results
from gguf_export.reports.compare_tables import nats
from gguf_export.reports.figures import percent, significant
from gguf_export.reports.heat_maps import Cell, HeatMap, Legend, Scale
from gguf_export.reports.pages import PagePart, Panels

__all__ = ["distribution_maps", "router_maps", "text_map"]

DECADE_NAMES = ("<10⁻⁵", "<10⁻⁴", "<10⁻³", "<.01", "<.1", "<1", "≥1")
assert len(DECADE_NAMES) == len(DECADES) + 1

LEAST_SHOWN = 1e-4
"""Nats: the low end of the colours, so that files that lose nothing do not use them up."""


def text_map(results: Results) -> list[PagePart]:
    """Mean KLD, model by text, and over all texts."""
    columns = [*(text.name for text in results.texts), "all"]
    cells = [[_kld_cell(model, index) for index in range(len(columns))] for model in results.models]
    klds = [cell.value for row in cells for cell in row]
    scale = Scale.over(klds, log=True)
    scale = Scale(max(scale.low, min(LEAST_SHOWN, scale.high)), scale.high, log=True)
    heat_map = HeatMap(
        "Mean KLD in nats", "model", results.labels, "text", columns, cells, scale, "error", in_words=True
    )
    key = Legend("mean KLD", f"{nats(scale.low, 2)} or less", nats(scale.high, 2), "error")
    return [key, Panels([heat_map])]


def _kld_cell(model: ModelResult, text: int) -> Cell:
    """The mean KLD on one text; behind the last text over all."""
    kld = model.texts[text].measured("kld") if text < len(model.texts) else model.mean("kld")
    if math.isnan(kld.value):
        return Cell(None, "", f"{model.label}: no number")
    return Cell(
        kld.value, nats(kld.value, 2), f"{model.label}: {significant(kld.value)} ± {significant(kld.error)}"
    )


def distribution_maps(results: Results) -> list[PagePart]:
    """One heat map for each text, model by decade of KLD: the share of the scored tokens."""
    shares = [text.shares for model in results.models for text in model.texts]
    scale = Scale(0.0, max(map(max, shares)))
    maps = [
        HeatMap(
            f"{text.name}, share of tokens in percent",
            "model",
            results.labels,
            "KLD",
            DECADE_NAMES,
            [_share_cells(model.label, model.texts[index]) for model in results.models],
            scale,
            "load",
        )
        for index, text in enumerate(results.texts)
    ]
    key = Legend("share of tokens", percent(scale.low, 2), percent(scale.high, 2), "load")
    return [key, Panels(maps)]


def _share_cells(label: str, result: OnText) -> list[Cell]:
    return [
        Cell(share, _tenths(share), f"{label}: {percent(share)} of tokens {decade}")
        for share, decade in zip(result.shares, DECADE_NAMES, strict=True)
    ]


def router_maps(results: Results) -> list[PagePart]:
    """One heat map for each text, model by layer: the share of tokens that go to other experts than the base's.

    The comparison has routers.
    """
    on_texts = [text for model in results.models for text in model.texts]
    n_layer = max(len(text.same_experts) for text in on_texts)
    moved = [1 - same for text in on_texts for same in text.same_experts if not math.isnan(same)]
    scale = Scale(0.0, max(moved, default=0.0))
    maps = [
        HeatMap(
            f"{text.name}, tokens sent to other experts, in percent",
            "model",
            results.labels,
            "layer",
            [str(bid) for bid in range(n_layer)],
            [
                [_router_cell(model.label, model.texts[index], bid) for bid in range(n_layer)]
                for model in results.models
            ],
            scale,
            "error",
        )
        for index, text in enumerate(results.texts)
    ]
    key = Legend("sent elsewhere", percent(scale.low, 2), percent(scale.high, 2), "error")
    return [key, Panels(maps, n_layer, "n-router")]


def _router_cell(label: str, result: OnText, bid: int) -> Cell | None:
    """One layer of one model; None where it has no router."""
    if bid >= len(result.same_experts) or math.isnan(result.same_experts[bid]):
        return None
    same = result.same_experts[bid]
    kld = significant(result.router_kld[bid])
    title = f"{label}, layer {bid}: {percent(same, 4)} same experts, router KLD {kld}"
    return Cell(1 - same, _tenths(1 - same), title)


def _tenths(share: float) -> str:
    """A share in percent, in few characters."""
    if not share:
        return "0"
    return "<.1" if share < 0.001 else f"{100 * share:.1f}" if share < 0.1 else f"{100 * share:.0f}"
