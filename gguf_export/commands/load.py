"""The tokens that each expert got, as a table, and a line for each that got too few."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_export.commands.messages import switch
from gguf_export.commands.streams import show

if TYPE_CHECKING:
    from calibration.importance.observers import Collected

MOST_COLUMNS = 16
"""Experts that the table shows side by side; beyond, it shows their extremes."""


def print_load(collected: Collected) -> None:
    """Print the routed tokens per layer and expert, and name the starved experts."""
    from gguf_export.commands.console import print_table
    from gguf_export.reports.figures import expert_place

    load = collected.load
    n_layer, n_expert = load.tokens.shape
    if not n_expert or not load.n_token:
        return
    if n_expert <= MOST_COLUMNS:
        columns = [f">expert {xid}" for xid in range(n_expert)]
        rows = [[f"{count:,}" for count in counts] for counts in load.tokens.tolist()]
    else:
        columns = [">fewest", ">median", ">most"]
        rows = [
            [f"{count:,}" for count in (min(counts), sorted(counts)[n_expert // 2], max(counts))]
            for counts in load.tokens.tolist()
        ]
    print_table(
        f"tokens routed to each expert, of {load.n_token:,}",
        ("layer", *columns, ">router entropy"),
        [
            (str(bid), *row, f"{entropy:.2f}")
            for bid, row, entropy in zip(range(n_layer), rows, load.entropy.tolist(), strict=True)
        ],
    )
    starved = load.starved()
    for bid, xid, n_token in starved:
        show(
            f"starved: {expert_place(bid, xid)}: {n_token:,} tokens, an even share is {load.even_share:,.0f}"
        )
    if starved and not collected.imatrix.prior:
        show(
            f"more text of their kind feeds them; export {switch('prior')} 8 draws them toward their layer's mean"
        )
