"""What a person should know who leaves layers out of a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quantize.containers.keys import KeyValue, elements
from quantize.containers.untrusted import printable
from quantize.recipes.layout import Plan
from quantize.recipes.recipe import RecipeFacts
from quantize.telling import Remark

__all__ = ["pruning_remarks"]


def pruning_remarks(
    facts: RecipeFacts, keys: Iterable[KeyValue], plan: Plan, prune: Sequence[int]
) -> list[Remark]:
    """Layers that are not there, and keys that llama-quantize leaves as they are although they tell of each layer."""
    remarks = []
    strange = [str(bid) for bid in prune if bid >= facts.n_layer]
    if strange:
        message = f"the model has {facts.n_layer} layers, none with the number {', '.join(strange)}"
        remarks.append(Remark("", message, setting="prune_layers"))
    by_layer = [
        kv.key
        for kv in keys
        if kv.key.startswith(f"{facts.arch}.")
        and len(elements(kv.value) or ()) == facts.n_layer != plan.n_layer
    ]
    if by_layer:
        message = (
            f"{printable(', '.join(by_layer))} still tell of {facts.n_layer} layers, and {plan.n_layer} are left: "
            "llama.cpp will not load the file"
        )
        remarks.append(Remark("", message, setting="prune_layers"))
    leading = next((kv.value for kv in keys if kv.key == f"{facts.arch}.leading_dense_block_count"), 0)
    if isinstance(leading, int) and any(bid < leading for bid in prune):
        message = (
            f"{facts.arch}.leading_dense_block_count is still {leading}: llama.cpp will not load the file"
        )
        remarks.append(Remark("", message, setting="prune_layers"))
    return remarks
