"""llama.cpp's file types as tables of rules: which tensors of a mix get another type than the default.

The facts are those of llama.cpp's `src/llama-quant.cpp` (`llama_ftype_get_default_type`,
`llama_tensor_get_type_impl`, `tensor_type_fallback`); to add a file type is to add a row to `FTYPES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from quantize.containers.untrusted import quoted
from quantize.exceptions import RecipeError
from quantize.recipes.facts import RecipeFacts
from quantize.tensors import QType

__all__ = [
    "COPY",
    "FALLBACKS",
    "FTYPES",
    "Category",
    "Ftype",
    "Rule",
    "TensorContext",
    "category",
    "ftype",
    "is_70b",
]


class Category(Enum):
    """The kinds of tensors that the rules distinguish, by their names alone."""

    OUTPUT = "output"
    TOKEN_EMBD = "token_embd"
    ATTN_V = "attn_v"  # also attn_qkv and attn_kv_b
    ATTN_K = "attn_k"
    ATTN_Q = "attn_q"
    ATTN_OUTPUT = "attn_output"
    FFN_UP = "ffn_up"
    FFN_GATE = "ffn_gate"
    FFN_DOWN = "ffn_down"
    OTHER = "other"


_NAMES = {
    "output.weight": Category.OUTPUT,
    "token_embd.weight": Category.TOKEN_EMBD,
    "per_layer_token_embd.weight": Category.TOKEN_EMBD,
}
_PARTS = (
    ("attn_qkv.weight", Category.ATTN_V),
    ("attn_kv_b.weight", Category.ATTN_V),
    ("attn_v.weight", Category.ATTN_V),
    ("attn_k.weight", Category.ATTN_K),
    ("attn_q.weight", Category.ATTN_Q),
    ("attn_output.weight", Category.ATTN_OUTPUT),
    ("ffn_up", Category.FFN_UP),
    ("ffn_gate", Category.FFN_GATE),
    ("ffn_down", Category.FFN_DOWN),
)


def category(name: str) -> Category:
    """The category of a tensor by its GGUF name (`tensor_get_category`)."""
    if name in _NAMES:
        return _NAMES[name]
    return next((known for part, known in _PARTS if part in name), Category.OTHER)


@dataclass(frozen=True)
class TensorContext:
    """The facts of a tensor and its model that a rule may ask for."""

    category: Category
    arch: str  # general.architecture
    stacked: bool  # holds more than one matrix, each of an expert
    i: int  # its index among the tensors of its category; the layer of a feed-forward tensor of a model with experts
    n: int  # attn_v tensors of the file for attn_v, layers of the model for the others
    n_gqa: int
    n_expert: int
    has_imatrix: bool  # one was given; whether it has data for this tensor is not asked


def every(_i: int, _n: int) -> bool:
    """All layers."""
    return True


def first_2(i: int, _n: int) -> bool:
    """The first two layers."""
    return i < 2


def first_4(i: int, _n: int) -> bool:
    """The first four layers."""
    return i < 4


def first_8th(i: int, n: int) -> bool:
    """The first eighth of the layers."""
    return i < n // 8


def first_16th(i: int, n: int) -> bool:
    """The first sixteenth of the layers."""
    return i < n // 16


def use_more_bits(i: int, n: int) -> bool:
    """The first and the last eighth of the layers and every third between them."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


@dataclass(frozen=True)
class Rule:
    """Tensors of `category` (None: of any) in `layers` take `qtype`, where all other conditions hold.

    `eight_experts` asks whether the model has exactly 8 experts, as Mixtral; 4 or 16 get none of its bumps. A
    condition that is None is not asked.
    """

    category: Category | None
    qtype: QType
    layers: Callable[[int, int], bool] = every
    min_gqa: int = 0
    eight_experts: bool | None = None
    has_imatrix: bool | None = None
    stacked: bool | None = None

    def applies(self, context: TensorContext) -> bool:
        """Whether the tensor falls under this rule."""
        return (
            self.category in (None, context.category)
            and self.layers(context.i, context.n)
            and context.n_gqa >= self.min_gqa
            and self.eight_experts in (None, context.n_expert == 8)
            and self.has_imatrix in (None, context.has_imatrix)
            and self.stacked in (None, context.stacked)
        )


@dataclass(frozen=True)
class Ftype:
    """A file type (`llama_ftype`): a default type and the rules of those tensors that take another."""

    name: str
    id: int  # the number under general.file_type
    qtype: QType  # of a tensor that no rule names
    rules: tuple[Rule, ...] = ()  # the first that applies decides
    output: QType = QType.Q6_K  # of output.weight, and of a token_embd.weight that serves as output too
    needs_imatrix: frozenset[QType] = frozenset()  # types it refuses to fit without importances

    def choose(self, context: TensorContext) -> QType:
        """The type of a tensor that is not the output."""
        rules = _FALCON.get(self.name, self.rules) if context.arch == "falcon" else self.rules
        return next((rule.qtype for rule in rules if rule.applies(context)), self.qtype)


_V, _K, _OUT, _DOWN = Category.ATTN_V, Category.ATTN_K, Category.ATTN_OUTPUT, Category.FFN_DOWN
_EIGHT = (Rule(_V, QType.Q8_0, eight_experts=True), Rule(_K, QType.Q8_0, eight_experts=True))
_OUT_EIGHT = Rule(_OUT, QType.Q5_K, eight_experts=True)

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
    Ftype("Q2_K", 10, QType.Q2_K, _Q2_K),
    Ftype("Q2_K_S", 21, QType.Q2_K, _Q2_K_S, needs_imatrix=frozenset({QType.Q2_K})),
)
"""All file types that can be made, from large to small."""

COPY = Ftype("COPY", 0, QType.F32)
"""No tensor changes its type; its number is that of the source (`recipes.copying`)."""

FALLBACKS = {
    QType.IQ4_XS: QType.IQ4_NL,
    QType.Q2_K: QType.Q4_0,
    QType.Q3_K: QType.Q4_0,
    QType.Q4_K: QType.Q5_0,
    QType.Q5_K: QType.Q5_1,
    QType.Q6_K: QType.Q8_0,
}
"""The types that take the place of those of 256-weight blocks in rows that do not divide by 256."""

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
