"""The heat maps of a comparison: how large the KL divergences are, and where tokens went to other experts."""

from __future__ import annotations

import numpy as np

from calibration.judging.side_by_side import Comparison, OnText
from gguf_export.reports.compare_facts import labels
from gguf_export.reports.figures import percent, significant
from gguf_export.reports.heat_maps import Cell, HeatMap, Legend, Scale
from gguf_export.reports.pages import PagePart, Panels

__all__ = ["distribution_maps", "router_maps"]

DECADES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # bounds of KLD in nats
DECADE_NAMES = ("<10⁻⁵", "<10⁻⁴", "<10⁻³", "<.01", "<.1", "<1", "≥1")


def distribution_maps(comparison: Comparison) -> list[PagePart]:
    """One heat map for each text, model by decade of KLD: the share of the scored tokens."""
    names = labels(comparison)
    shares = [[_shares(result) for result in results] for results in comparison.results]
    scale = Scale(0.0, max(max(share) for row in shares for share in row))
    maps = [
        HeatMap(
            f"{comparison.text_name(text)}, share of tokens in percent",
            "model",
            names,
            "KLD",
            DECADE_NAMES,
            [_share_cells(label, row[text]) for label, row in zip(names, shares, strict=True)],
            scale,
            "load",
        )
        for text in range(len(comparison.texts))
    ]
    key = Legend("share of tokens", percent(scale.low, 2), percent(scale.high, 2), "load")
    return [key, Panels(maps)]


def _shares(result: OnText) -> list[float]:
    """The share of the scored tokens in each decade of KLD."""
    decades = np.searchsorted(DECADES, result.scores.kld, side="right")
    counts = np.bincount(decades, minlength=len(DECADE_NAMES))
    return [float(share) for share in counts / result.scores.kld.size]


def _share_cells(label: str, shares: list[float]) -> list[Cell]:
    return [
        Cell(share, _tenths(share), f"{label}: {percent(share)} of tokens {decade}")
        for share, decade in zip(shares, DECADE_NAMES, strict=True)
    ]


def router_maps(comparison: Comparison) -> list[PagePart]:
    """One heat map for each text, model by layer: the share of tokens that go to other experts than the base's.

    The comparison has routers.
    """
    names = labels(comparison)
    n_layer = max(_n_layer(result) for results in comparison.results for result in results)
    moved = [
        1 - float(np.nanmin(result.router.same))
        for results in comparison.results
        for result in results
        if result.router is not None
    ]
    scale = Scale(0.0, max(moved))
    maps = [
        HeatMap(
            f"{comparison.text_name(text)}, tokens sent to other experts, in percent",
            "model",
            names,
            "layer",
            [str(bid) for bid in range(n_layer)],
            [
                [_router_cell(label, results[text], bid) for bid in range(n_layer)]
                for label, results in zip(names, comparison.results, strict=True)
            ],
            scale,
            "error",
        )
        for text in range(len(comparison.texts))
    ]
    key = Legend("sent elsewhere", percent(scale.low, 2), percent(scale.high, 2), "error")
    return [key, Panels(maps, n_layer, "n-router")]


def _n_layer(result: OnText) -> int:
    return 0 if result.router is None else len(result.router.same)


def _router_cell(label: str, result: OnText, bid: int) -> Cell | None:
    """One layer of one model; None where it has no router."""
    if result.router is None or np.isnan(result.router.same[bid]):
        return None
    same = float(result.router.same[bid])
    kld = significant(float(result.router.kld[bid]))
    title = f"{label}, layer {bid}: {percent(same, 4)} same experts, router KLD {kld}"
    return Cell(1 - same, _tenths(1 - same), title)


def _tenths(share: float) -> str:
    """A share in percent, in few characters."""
    if not share:
        return "0"
    return "<.1" if share < 0.001 else f"{100 * share:.1f}" if share < 0.1 else f"{100 * share:.0f}"
