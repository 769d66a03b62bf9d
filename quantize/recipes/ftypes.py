"""llama.cpp's file types as tables of rules: which tensors of a mix get another type than the default.

The facts are those of llama.cpp's `src/llama-quant.cpp` (`llama_ftype_get_default_type`,
`llama_tensor_get_type_impl`, `tensor_type_fallback`); to add a file type is to add a row to `FTYPES`.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantize.containers.untrusted import quoted
from quantize.exceptions import RecipeError
from quantize.recipes.facts import RecipeFacts
from quantize.recipes.rules import (
    Category,
    Rule,
    TensorContext,
    first_2,
    first_4,
    first_8th,
    first_16th,
    middle,
    use_more_bits,
)
from quantize.tensors import QType

__all__ = ["COPY", "FALLBACKS", "FTYPES", "NEED_IMATRIX", "NEED_IMPORTANCE", "Ftype", "ftype", "is_70b"]

NEED_IMPORTANCE = frozenset({QType.IQ2_XXS, QType.IQ2_XS, QType.IQ1_S})
"""The types that ggml cannot fit without importances, whatever the tensor (`ggml_quantize_requires_imatrix`)."""

NEED_IMATRIX = NEED_IMPORTANCE | {QType.IQ3_XXS, QType.IQ2_S, QType.IQ1_M}
"""The types that no file gets without importances, but for the output and the embedding (`tensor_requires_imatrix`)."""


@dataclass(frozen=True)
class Ftype:
    """A file type (`llama_ftype`): a default type and the rules of those tensors that take another."""

    name: str
    id: int  # the number under general.file_type
    qtype: QType  # of a tensor that no rule names
    rules: tuple[Rule, ...] = ()  # the first that applies decides
    output: QType = QType.Q6_K  # of output.weight, and of a token_embd.weight that serves as output too
    needs_imatrix: frozenset[QType] = NEED_IMATRIX  # types it refuses to fit without importances
    knows_70b: bool = True  # whether attn_v of a model of that size gets more bits

    @property
    def qtypes(self) -> frozenset[QType]:
        """The types that its tensors can have, in whatever model, those of `FALLBACKS` included."""
        left = {QType.F32, QType.F16, QType.BF16}  # as which tensors are left that are not quantized
        if self.qtype in left:
            return frozenset(left)
        ruled = {rule.qtype for rule in (*self.rules, *_FALCON.get(self.name, ()))}
        chosen = {self.qtype, self.output, QType.Q8_0, *ruled}
        if self.knows_70b and chosen & {QType.Q3_K, QType.Q4_K}:
            chosen.add(QType.Q5_K)
        return frozenset(left | chosen | {FALLBACKS[qtype] for qtype in chosen if qtype in FALLBACKS})

    def choose(self, context: TensorContext) -> QType:
        """The type of a tensor that is not the output."""
        rules = _FALCON.get(self.name, self.rules) if context.arch == "falcon" else self.rules
        return next((rule.qtype for rule in rules if rule.applies(context)), self.qtype)


_V, _K, _Q, _OUT = Category.ATTN_V, Category.ATTN_K, Category.ATTN_Q, Category.ATTN_OUTPUT
_DOWN, _UP, _GATE, _EMBD = Category.FFN_DOWN, Category.FFN_UP, Category.FFN_GATE, Category.TOKEN_EMBD
_EIGHT = (Rule(_V, QType.Q8_0, eight_experts=True), Rule(_K, QType.Q8_0, eight_experts=True))
_OUT_EIGHT = Rule(_OUT, QType.Q5_K, eight_experts=True, falcon=False)

_Q5_K_M = (*_EIGHT, Rule(_V, QType.Q6_K, use_more_bits), Rule(_DOWN, QType.Q6_K, use_more_bits))
_Q5_0 = (*_EIGHT, Rule(_DOWN, QType.Q5_1, first_8th, has_imatrix=True))
_Q4_K_M = (*_Q5_K_M, _OUT_EIGHT)
_Q4_K_S = (*_EIGHT, Rule(_V, QType.Q5_K, first_4), Rule(_DOWN, QType.Q5_K, first_8th), _OUT_EIGHT)
_Q4_0 = (*_EIGHT, Rule(_DOWN, QType.Q4_1, first_8th, has_imatrix=True))
_IQ4 = (
    *_EIGHT,
    Rule(_V, QType.Q5_K, min_gqa=4),
    Rule(_DOWN, QType.Q5_K, first_8th, has_imatrix=False),
    _OUT_EIGHT,
)
_MXFP4_MOE = (Rule(None, QType.MXFP4, stacked=True), Rule(None, QType.Q8_0))
_Q3_K_L = (
    *_EIGHT,
    Rule(_V, QType.Q5_K),
    Rule(_DOWN, QType.Q5_K),
    Rule(_OUT, QType.Q5_K, eight_experts=False),  # no bump for 8, unlike its neighbours
)
_Q3_K_M = (
    *_EIGHT,
    Rule(_V, QType.Q5_K, first_2),
    Rule(_V, QType.Q4_K),
    Rule(_DOWN, QType.Q5_K, first_16th),
    Rule(_DOWN, QType.Q4_K),
    _OUT_EIGHT,
    Rule(_OUT, QType.Q4_K),
)
_Q2_K = (
    *_EIGHT,
    Rule(_V, QType.Q4_K, min_gqa=4),
    Rule(_V, QType.Q3_K),
    Rule(_DOWN, QType.Q3_K),
    _OUT_EIGHT,
    Rule(_OUT, QType.Q3_K),
)
_IQ3_M = (
    *_EIGHT,
    Rule(_V, QType.Q4_K),
    Rule(_DOWN, QType.Q4_K, first_8th),
    Rule(_DOWN, QType.Q4_K, use_more_bits, eight_experts=True),
    _OUT_EIGHT,
    Rule(_OUT, QType.Q4_K, falcon=False),
)
_IQ3_S = (*_EIGHT, Rule(_V, QType.Q4_K, min_gqa=4), _OUT_EIGHT)
_IQ3_XS = (
    *_IQ3_S,
    *(Rule(kind, QType.IQ3_XXS) for kind in (_K, _Q)),
    *(Rule(kind, QType.IQ3_XXS, middle) for kind in (_GATE, _UP)),
)
_IQ3_XXS = (
    *_EIGHT,
    Rule(_EMBD, QType.IQ3_S),
    Rule(_V, QType.Q4_K, min_gqa=4),
    Rule(_V, QType.IQ3_S, has_imatrix=False),
    Rule(_K, QType.IQ2_S),
    Rule(_Q, QType.IQ2_S),
    Rule(_DOWN, QType.Q4_K, first_8th, has_imatrix=False),
    Rule(_DOWN, QType.Q3_K, has_imatrix=False),
    _OUT_EIGHT,
    Rule(_OUT, QType.IQ3_S, falcon=False),
)


def _lowest(more: QType, out: QType | None) -> tuple[Rule, ...]:
    """The rules of the IQ2 and IQ1 types: `more` where it counts, `out` for attn_output."""
    return (
        Rule(_EMBD, more),
        Rule(_V, QType.Q4_K, min_gqa=4),
        Rule(_V, QType.Q4_K, min_experts=4),
        Rule(_V, more),
        Rule(_K, QType.Q4_K, eight_experts=True),
        Rule(_DOWN, more, first_8th, counted=True),
        Rule(_OUT, QType.Q5_K, eight_experts=True),
        *((Rule(_OUT, out),) if out else ()),
    )


_IQ2_S = _lowest(QType.IQ3_S, QType.IQ3_S)
_IQ2_XS = _lowest(QType.Q2_K, None)
_IQ1 = _lowest(QType.Q2_K, QType.IQ2_XXS)
_LINEAR = (*_EIGHT, Rule(_EMBD, QType.Q4_K))
_FALCON = {
    "Q4_K_M": (
        *_EIGHT,
        Rule(_V, QType.Q6_K, use_more_bits),
        Rule(_DOWN, QType.Q6_K, first_16th),
        Rule(_DOWN, QType.Q5_K, use_more_bits),
    ),
    "Q4_K_S": (*_EIGHT, Rule(_V, QType.Q5_K, first_4)),
    "Q3_K_L": (*_EIGHT, Rule(_V, QType.Q5_K), Rule(_DOWN, QType.Q4_K), Rule(_OUT, QType.Q4_K)),
    "Q3_K_M": (
        *_EIGHT,
        Rule(_V, QType.Q5_K, first_2),
        Rule(_V, QType.Q4_K),
        Rule(_DOWN, QType.Q5_K, first_16th),
        Rule(_DOWN, QType.Q4_K, use_more_bits),
    ),
    "Q2_K": (*_EIGHT, Rule(_V, QType.Q4_K, min_gqa=4), Rule(_V, QType.Q3_K), Rule(_DOWN, QType.Q3_K)),
}
"""The rules of one old architecture, where they are others."""

_Q2_K_S = (*_EIGHT, Rule(_V, QType.Q4_K, min_gqa=4), Rule(_DOWN, QType.Q4_K, first_8th))

FTYPES = (
    Ftype("F32", 0, QType.F32),
    Ftype("F16", 1, QType.F16),
    Ftype("BF16", 32, QType.BF16),
    Ftype("Q8_0", 7, QType.Q8_0, output=QType.Q8_0),
    Ftype("Q6_K", 18, QType.Q6_K, _EIGHT),
    Ftype("Q5_K_M", 17, QType.Q5_K, _Q5_K_M),
    Ftype("Q5_K_S", 16, QType.Q5_K, _EIGHT),
    Ftype("Q5_1", 9, QType.Q5_1, _EIGHT),
    Ftype("Q5_0", 8, QType.Q5_0, _Q5_0),
    Ftype("Q4_K_M", 15, QType.Q4_K, _Q4_K_M),
    Ftype("Q4_K_S", 14, QType.Q4_K, _Q4_K_S),
    Ftype("Q4_1", 3, QType.Q4_1, _EIGHT),
    Ftype("Q4_0", 2, QType.Q4_0, _Q4_0),
    Ftype("IQ4_NL", 25, QType.IQ4_NL, _IQ4),
    Ftype("IQ4_XS", 30, QType.IQ4_XS, _IQ4),
    Ftype("MXFP4_MOE", 38, QType.MXFP4, _MXFP4_MOE, output=QType.Q8_0),
    Ftype("Q3_K_L", 13, QType.Q3_K, _Q3_K_L),
    Ftype("Q3_K_M", 12, QType.Q3_K, _Q3_K_M),
    Ftype("Q3_K_S", 11, QType.Q3_K, (*_EIGHT, _OUT_EIGHT)),
    Ftype("IQ3_M", 27, QType.IQ3_S, _IQ3_M),
    Ftype("IQ3_S", 26, QType.IQ3_S, _IQ3_S),
    Ftype("IQ3_XS", 22, QType.IQ3_S, _IQ3_XS),
    Ftype("IQ3_XXS", 23, QType.IQ3_XXS, _IQ3_XXS, output=QType.Q5_K),
    Ftype("Q2_K", 10, QType.Q2_K, _Q2_K),
    Ftype("Q2_K_S", 21, QType.Q2_K, _Q2_K_S, needs_imatrix=NEED_IMATRIX | {QType.Q2_K}),
    Ftype("IQ2_M", 29, QType.IQ2_S, _IQ2_S, output=QType.Q5_K, knows_70b=False),
    Ftype("IQ2_S", 28, QType.IQ2_XS, _IQ2_S, output=QType.Q5_K, knows_70b=False),
    Ftype("IQ2_XS", 20, QType.IQ2_XS, _IQ2_XS, output=QType.Q5_K, knows_70b=False),
    Ftype("Q2_0", 41, QType.Q2_0, _LINEAR),
    Ftype("IQ2_XXS", 19, QType.IQ2_XXS, _IQ2_XS, output=QType.Q5_K, knows_70b=False),
    Ftype("TQ2_0", 37, QType.TQ2_0, _LINEAR),
    Ftype("IQ1_M", 31, QType.IQ1_M, _IQ1, output=QType.Q5_K, knows_70b=False),
    Ftype("TQ1_0", 36, QType.TQ1_0, _LINEAR),
    Ftype("IQ1_S", 24, QType.IQ1_S, _IQ1, output=QType.Q5_K, knows_70b=False),
    Ftype("Q1_0", 40, QType.Q1_0, _EIGHT),
)
"""All file types that can be made, from large to small."""

COPY = Ftype("COPY", 0, QType.F32)
"""No tensor changes its type; its number is that of the source (`recipes.copying`)."""

FALLBACKS = {
    **dict.fromkeys((QType.IQ4_XS, QType.IQ3_S, QType.IQ3_XXS), QType.IQ4_NL),
    **dict.fromkeys((QType.IQ2_S, QType.IQ2_XS, QType.IQ2_XXS, QType.IQ1_M, QType.IQ1_S), QType.IQ4_NL),
    **dict.fromkeys((QType.Q3_K, QType.Q2_K, QType.Q2_0, QType.TQ2_0, QType.TQ1_0), QType.Q4_0),
    QType.Q4_K: QType.Q5_0,
    QType.Q5_K: QType.Q5_1,
    QType.Q6_K: QType.Q8_0,
}
"""The types that take the place of others in rows that do not divide into their blocks."""

_70B_LAYERS = {"llama": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}


def is_70b(facts: RecipeFacts) -> bool:
    """Whether llama.cpp takes the model for a 70B (`load_arch_hparams`): attn_v gets Q5_K for Q3_K, Q4_K."""
    if facts.n_layer != _70B_LAYERS.get(facts.arch):
        return False
    return facts.arch != "llama" or (facts.n_head != facts.n_head_kv and facts.n_expert != 8)


_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_BY_NAME = {known.name: known for known in (*FTYPES, COPY)} | {str(known.id): known for known in FTYPES}


def ftype(name: str) -> Ftype:
    """The file type of that name, in any case; Q3_K, Q4_K, Q5_K and llama.cpp's numbers are understood too.

    Raises:
        RecipeError: there is none, or it cannot be made.
    """
    upper = name.upper()
    chosen = _BY_NAME.get(_ALIASES.get(upper, upper))
    if chosen is None:
        known = ", ".join(each.name for each in (*FTYPES, COPY))
        raise RecipeError("", f"unknown file type {quoted(name)}", f"known: {known}")
    return chosen
