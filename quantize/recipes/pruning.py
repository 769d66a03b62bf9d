"""Layers that are left out of a file, and the new numbers of those behind them (src/llama-quant.cpp: remap_layer)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence

from quantize.containers.untrusted import quoted
from quantize.exceptions import RecipeError

__all__ = ["parse_layers", "renumbered"]

_LAYER = re.compile(r"blk\.([0-9]+)\.")


def parse_layers(text: str) -> tuple[int, ...]:
    """The numbers of `3,5,6`, as llama-quantize's `--prune-layers` takes them, in order and each once.

    Raises:
        RecipeError: something between the commas is no number.
    """
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if not re.fullmatch(r"\+?[0-9]{1,9}", word):
            raise RecipeError(
                f"prune layers {quoted(text)}", f"{quoted(word)} is no layer", "number them as in 3,5,6"
            )
    return tuple(sorted({int(word) for word in words}))


def renumbered(names: Sequence[str], prune: Collection[int]) -> tuple[dict[str, str], int | None]:
    """The new name of each tensor that stays, and the number of layers that are left; None where none is left out.

    Args:
        names: of all tensors, in the order of the file: numbers are given in the order in which layers appear.
        prune: the layers that are left out; one that the model does not have changes nothing.

    Raises:
        RecipeError: two tensors would have the same name.
    """
    if not prune:
        return {name: name for name in names}, None
    first = min(prune)
    layers: dict[int, int | None] = {}
    kept: dict[str, str] = {}
    n_layer = 0
    for name in names:
        match = _LAYER.search(name)
        if match is None:
            kept[name] = name
            continue
        bid = int(match[1])
        if bid not in layers:
            layers[bid] = None if bid in prune else bid if bid < first else n_layer
            n_layer = n_layer if bid in prune else 1 + (layers[bid] or 0)
        number = layers[bid]
        if number is not None:
            kept[name] = f"{name[: match.start(1)]}{number}{name[match.end(1) :]}"
    twice = [name for name, count in Counter(kept.values()).items() if count > 1]
    if twice:
        raise RecipeError(
            quoted(twice[0]),
            "would stand twice in the file without these layers",
            "choose others for {setting}",
            setting="prune_layers",
        )
    return kept, n_layer
