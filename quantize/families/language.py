"""The words in which a model family is declared.

A family is data: which tensors the model has under which GGUF name, their shapes in the model's dimensions, and where a
Hugging Face checkpoint keeps their numbers. A family file reads like this:

    tensor("token_embd.weight", "n_vocab n_embd", "model.embed_tokens.weight")
    each_layer(
        "model.layers.{bid}.",
        tensor("attn_q.weight", "n_head*head_dim n_embd", permuted("self_attn.q_proj.weight", "n_head")),
    )
    moe_layers(
        "model.layers.{bid}.",
        tensor(
            "ffn_gate_exps.weight",
            "n_expert n_ff n_embd",
            "mlp.experts.{xid}.gate_proj.weight",
            fused("mlp.experts.gate_up_proj", GATE),
        ),
    )

Shapes are in NumPy's order. A source is a Hugging Face name, or a name with words around it:

* `{bid}` in it is the layer; `{xid}` means "for each expert": one stored matrix per expert. A shape of three axes
  without `{xid}` means that all experts are stored in one tensor.
* `fused(source, part)`: gate and up are stored in one tensor, all rows of the gate first.
* `interleaved(source, part)`: gate and up are stored in one tensor, their rows by turns (gate 0, up 0, gate 1, ...).
* `transposed(source)`: each matrix is stored as [n_in, n_out].
* `permuted(source, heads)`: rows of q or k for rotary halves, to be turned into neighbours (arch `llama`).

Several sources of one tensor are alternatives: layouts that exist in the wild, of which a checkpoint has one. A tensor
may be `optional`. `each_layer`, `dense_layers` and `moe_layers` say in which layers their tensors are; the family says
which layers have experts by `n_layer_dense_lead` (dense in the first k) and `moe_every` (one of every n).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from quantize.hparams import Hparams
from quantize.tensors import Array

__all__ = [
    "GATE",
    "UP",
    "Computed",
    "Family",
    "Source",
    "Tensor",
    "Where",
    "dense_layers",
    "each_layer",
    "evaluate",
    "fused",
    "interleaved",
    "moe_layers",
    "permuted",
    "tensor",
    "transposed",
]

Where = Literal["model", "layer", "dense", "moe"]

GATE, UP = 0, 1  # the parts of a fused tensor


@dataclass(frozen=True)
class Source:
    """Where the numbers of a tensor are stored, and what has to be done to them."""

    name: str
    part: int = 0
    n_parts: int = 1
    by_turns: bool = False  # the parts alternate instead of following each other
    axis: int = -2  # along which the parts lie: -2 rows, -1 columns (the biases of all experts, one row each)
    transposed: bool = False
    heads: str = ""  # the dimension that counts the heads whose rows are permuted

    @property
    def per_expert(self) -> bool:
        """Each expert is stored in a tensor of its own."""
        return "{xid}" in self.name


@dataclass(frozen=True)
class Tensor:
    """One tensor of a family: GGUF name, shape as an expression, alternative sources."""

    name: str
    shape: str
    sources: tuple[Source, ...]
    optional: bool = False
    where: Where = "model"

    @property
    def stacked(self) -> bool:
        """The tensor has one matrix per expert."""
        return len(self.shape.split()) == 3


@dataclass(frozen=True)
class Computed:
    """A tensor that no checkpoint stores: `make` gives its F32 values [n] from the hyper-parameters, or None."""

    name: str
    make: Callable[[Hparams], Array | None]


COMMON_HPARAMS: Mapping[str, str] = {
    "n_layer": "num_hidden_layers",
    "n_ctx_train": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_ff": "intermediate_size",
    "n_head": "num_attention_heads",
    "n_head_kv": "num_key_value_heads",
}
COMMON_IGNORED = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")


@dataclass(frozen=True)
class Family:
    """A model family: the classes of transformers it stands for, their config and their tensors."""

    architectures: tuple[str, ...]  # config.json's `architectures[0]`
    arch: str  # GGUF's `general.architecture`
    tensors: tuple[Tensor, ...]
    defaults: Mapping[str, Any]  # transformers' class defaults for keys that config.json lacks
    rope_theta: float  # transformers' default where config.json has none
    if_null: Mapping[str, str] = field(default_factory=dict)  # expressions for keys that are null or missing
    aliases: Mapping[str, str] = field(default_factory=dict)  # other spellings of keys
    hparams: Mapping[str, str] = field(default_factory=dict)  # Hparams field -> config key, beside the common
    dims: Mapping[str, str] = field(default_factory=dict)  # further dimensions for shapes -> config key
    n_layer_dense_lead: str = "0"  # expression: so many layers at the start have no experts
    moe_every: str = "1"  # expression: of the others, layer bid has experts where (bid + 1) % moe_every == 0
    accepted: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # config key -> supported values
    computed: tuple[Computed, ...] = ()
    ignored: tuple[str, ...] = COMMON_IGNORED  # endings of stored names that no GGUF needs
    rope_neox: bool = False


def tensor(name: str, shape: str, *sources: str | Source, optional: bool = False) -> Tensor:
    """A tensor by its GGUF name, its shape in NumPy's order, and where it may be stored."""
    return Tensor(name, shape, tuple(_source(source) for source in sources), optional)


def each_layer(prefix: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of every layer; `prefix` stands before their stored names, `blk.{bid}.` before their GGUF names."""
    return _in_layers("layer", prefix, tensors)


def dense_layers(prefix: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of the layers without experts."""
    return _in_layers("dense", prefix, tensors)


def moe_layers(prefix: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of the layers with experts (shared experts included)."""
    return _in_layers("moe", prefix, tensors)


def fused(source: str | Source, part: int, axis: int = -2) -> Source:
    """Half of a stored tensor: `part` GATE is the first half of its rows, UP the second (axis -1: of its columns)."""
    return replace(_source(source), part=part, n_parts=2, axis=axis)


def interleaved(source: str | Source, part: int, axis: int = -2) -> Source:
    """Every other row of a stored tensor: `part` GATE the even ones, UP the odd ones (axis -1: columns)."""
    return replace(_source(source), part=part, n_parts=2, by_turns=True, axis=axis)


def transposed(source: str | Source) -> Source:
    """Each matrix is stored as [n_in, n_out]; parts and rows are counted after it is turned."""
    return replace(_source(source), transposed=True)


def permuted(source: str | Source, heads: str) -> Source:
    """Rows (of a bias: elements) in Hugging Face's order of rotary halves, in `heads` heads."""
    return replace(_source(source), heads=heads)


def evaluate(expression: str, values: Mapping[str, Any]) -> int:
    """A product of names and whole numbers, perhaps divided: "n_head*head_dim", "hidden_size/num_attention_heads".

    Raises:
        KeyError: a name has no value.
    """
    dividend, _, divisor = expression.partition("/")
    result = math.prod(_factor(factor, values) for factor in dividend.split("*"))
    return result // _factor(divisor, values) if divisor else result


def _factor(text: str, values: Mapping[str, Any]) -> int:
    word = text.strip()
    return int(word) if word.isdecimal() else int(values[word])


def _source(source: str | Source) -> Source:
    return Source(source) if isinstance(source, str) else source


def _in_layers(where: Where, prefix: str, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(
        replace(
            one,
            name="blk.{bid}." + one.name,
            sources=tuple(replace(source, name=prefix + source.name) for source in one.sources),
            where=where,
        )
        for one in tensors
    )
