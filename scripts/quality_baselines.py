"""Types that people give a Mixture of Experts by rule, brought to the bytes of a file type: baselines of bench_quality.

Both pay in the feed-forward part. A tensor is lowered by one step of LADDER; nothing goes below its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from quantize.recipes.facts import RecipeFacts
from quantize.recipes.ftypes import Ftype
from quantize.recipes.layout import Plan
from quantize.recipes.recipe import Recipe, make_plan
from quantize.recipes.rules import Category, category
from quantize.recipes.tensor_types import anchored
from quantize.sources.model_source import ModelFile
from quantize.tensors import QType, TensorSpec

LADDER = (QType.Q8_0, QType.Q6_K, QType.Q5_K, QType.Q4_K, QType.Q3_K, QType.Q2_K)
ATTENTION = (Category.ATTN_Q, Category.ATTN_K, Category.ATTN_V, Category.ATTN_OUTPUT)
FEED_FORWARD = (Category.FFN_UP, Category.FFN_GATE, Category.FFN_DOWN)

Types = dict[str, QType]


def eight_experts(source: ModelFile, ftype: Ftype) -> Recipe | None:
    """llama.cpp's mixture for exactly 8 experts, whatever number the model has: attn_k and attn_v at Q8_0, in some
    file types attn_output at Q5_K.

    For that the feed-forward tensors go down a step each: those of the largest type first, of these ffn_down before
    gate and up, of these the last layer first.
    """

    def next_lower(types: Types) -> str | None:
        names = [name for name in feed_forward(source, types) if types[name] in LADDER[:-1]]
        return min(names, key=lambda name: _large_first(source, types, name), default=None)

    facts = replace(RecipeFacts.of(source.hparams), n_expert=8)
    return _fitted(source, ftype, types_of(make_plan(source.specs(), facts, Recipe(ftype), True)), next_lower)


def active_first(source: ModelFile, ftype: Ftype) -> Recipe | None:
    """The recipe for Mixtures of Experts that is best regarded: what every token passes keeps eight bits, ffn_down is
    one type above gate and up. Embedding and output stay as in the file type's mixture.

    Attention is Q8_0, gate and up have the file type's default type, ffn_down the next larger one. Then layers go down
    a step, from the last to the first and again from the last: gate and up, then ffn_down.
    """
    types = types_of(_mixture(source, ftype))
    base = LADDER.index(ftype.qtype)
    for name in types:
        kind = category(name)
        if kind in ATTENTION:
            types[name] = QType.Q8_0
        elif kind in FEED_FORWARD:
            types[name] = LADDER[max(0, base - (kind is Category.FFN_DOWN))]

    def sweeps() -> Iterator[str]:
        names = sorted(feed_forward(source, types), key=lambda name: _last_first(source, name))
        while any(types[name] is not LADDER[-1] for name in names):
            yield from (name for name in names if types[name] is not LADDER[-1])

    lower = sweeps()
    return _fitted(source, ftype, types, lambda _types: next(lower, None))


def types_of(plan: Plan) -> Types:
    """The types of the tensors that a plan quantizes."""
    return {planned.name: planned.qtype for planned in plan.tensors if planned.qtype in LADDER}


def feed_forward(source: ModelFile, types: Types) -> list[str]:
    """Names of the feed-forward tensors among those of `types`."""
    return [
        spec.name for spec in source.specs() if spec.name in types and category(spec.name) in FEED_FORWARD
    ]


def _fitted(
    source: ModelFile, ftype: Ftype, types: Types, next_lower: Callable[[Types], str | None]
) -> Recipe | None:
    """The recipe of types that were lowered until they fit the bytes of the file type; None where they never do."""
    specs = {spec.name: spec for spec in source.specs()}
    mixture = _mixture(source, ftype)
    budget = sum(planned.n_bytes for planned in mixture.tensors if planned.name in types)

    def n_bytes(name: str) -> int:
        return replace(specs[name], qtype=types[name]).n_bytes

    total = sum(map(n_bytes, types))
    while total > budget:
        name = next_lower(types)
        if name is None:
            return None
        total -= n_bytes(name)
        types[name] = LADDER[LADDER.index(types[name]) + 1]
        total += n_bytes(name)
    return Recipe(ftype, tensor_types=anchored(types))


def _mixture(source: ModelFile, ftype: Ftype) -> Plan:
    return make_plan(source.specs(), RecipeFacts.of(source.hparams), Recipe(ftype), True)


def _spec(source: ModelFile, name: str) -> TensorSpec:
    return next(spec for spec in source.specs() if spec.name == name)


def _large_first(source: ModelFile, types: Types, name: str) -> tuple[int, bool, int]:
    is_down = category(name) is Category.FFN_DOWN
    return LADDER.index(types[name]), not is_down, -(_spec(source, name).bid or 0)


def _last_first(source: ModelFile, name: str) -> tuple[int, bool]:
    return -(_spec(source, name).bid or 0), category(name) is Category.FFN_DOWN
