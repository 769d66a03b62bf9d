"""The rules of a file type: which kind of tensor, in which layers and models, takes another type than the default.

The kinds and conditions are those of llama.cpp's `src/llama-quant.cpp` (`tensor_get_category`,
`llama_tensor_get_type_impl`); `ftypes` holds the rules themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from quantize.tensors import QType

__all__ = [
    "Category",
    "Rule",
    "TensorContext",
    "category",
    "every",
    "first_2",
    "first_4",
    "first_8th",
    "first_16th",
    "middle",
    "use_more_bits",
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
    nth: int  # its index among the tensors of its category
    i: int  # the same, but the layer of a feed-forward tensor of a model with experts
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


def middle(i: int, n: int) -> bool:
    """All layers but the first and the last eighth."""
    return n // 8 <= i < 7 * n // 8


def use_more_bits(i: int, n: int) -> bool:
    """The first and the last eighth of the layers and every third between them."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


@dataclass(frozen=True)
class Rule:
    """Tensors of `category` (None: of any) in `layers` take `qtype`, where all other conditions hold.

    `eight_experts` asks whether the model has exactly 8 experts, as Mixtral; 4 or 16 get none of its bumps. `counted`
    asks `layers` for the tensor's index in its category even where the model has experts. A condition that is None is
    not asked.
    """

    category: Category | None
    qtype: QType
    layers: Callable[[int, int], bool] = every
    counted: bool = False
    min_gqa: int = 0
    min_experts: int = 0
    eight_experts: bool | None = None
    has_imatrix: bool | None = None
    stacked: bool | None = None
    falcon: bool | None = None

    def applies(self, context: TensorContext) -> bool:
        """Whether the tensor falls under this rule."""
        return (
            self.category in (None, context.category)
            and self.layers(context.nth if self.counted else context.i, context.n)
            and context.n_gqa >= self.min_gqa
            and context.n_expert >= self.min_experts
            and self.eight_experts in (None, context.n_expert == 8)
            and self.has_imatrix in (None, context.has_imatrix)
            and self.stacked in (None, context.stacked)
            and self.falcon in (None, context.arch == "falcon")
        )
