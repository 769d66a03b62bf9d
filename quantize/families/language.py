"""The words in which a model family is declared.

A family is data: the keys of its files (`keys`), its tensors under their GGUF names, their shapes in the model's
dimensions, and where a Hugging Face checkpoint keeps their numbers. A family file reads like this:

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

Shapes are in NumPy's order; an axis is a sum of products of dimensions (`expressions`). Dimensions are the whole
numbers among the hyper-parameters, to which the family's table of keys adds its own, and `Family.dims`. Three axes are
a stack of matrices: of experts where the first is `n_expert`, else of heads or the like.

A source is a Hugging Face name, or a name with words around it (`stored`).

Several sources of one tensor are alternatives: layouts that exist in the wild, of which a checkpoint has one. A tensor
may be `optional` (without a source it is one of files that others made), or be there only `when` an expression is not 0
("q_lora_rank", "not q_lora_rank"). `each_layer`, `dense_layers`, `moe_layers` and `nextn_layers` say in which layers
their tensors are; the family says which layers have experts by `n_layer_dense_lead` (dense in the first k) and
`moe_every` (one of every n). Layers that predict further tokens (`n_layer_nextn` of the hyper-parameters, the last
ones) are whole layers with `nextn_layers` tensors on top, which attend. A checkpoint may lack such a layer as a whole
where `nextn_may_lack`; where it keeps them apart from the others, `nextn_apart` has their names. Where not all layers
attend, `attending_layers` and `recurrent_layers` go by `attention_every`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from quantize.families.expressions import evaluate
from quantize.families.graph import Graph
from quantize.families.keys import Key
from quantize.families.limits import Limit
from quantize.families.nextn import StoredApart
from quantize.families.stored import (
    GATE,
    UP,
    Source,
    as_source,
    flat,
    fused,
    interleaved,
    minus_exp,
    mxfp4,
    part,
    permuted,
    plus_one,
    regrouped,
    transposed,
)
from quantize.families.vocab_rules import VocabRules
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
    "attending_layers",
    "dense_layers",
    "each_layer",
    "evaluate",
    "flat",
    "fused",
    "interleaved",
    "minus_exp",
    "moe_layers",
    "mxfp4",
    "nextn_layers",
    "part",
    "permuted",
    "plus_one",
    "recurrent_layers",
    "regrouped",
    "tensor",
    "transposed",
]

Where = Literal["model", "layer", "dense", "moe", "nextn", "attending", "recurrent"]


@dataclass(frozen=True)
class Tensor:
    """One tensor of a family: GGUF name, shape as expressions, alternative sources."""

    name: str
    shape: str
    sources: tuple[Source, ...]
    optional: bool = False
    where: Where = "model"
    when: str = ""  # expression, or "not" and one: the tensor is there where it is not 0

    def __post_init__(self) -> None:
        for source in self.sources:
            if source.per_expert and not self.has_experts:
                raise ValueError(f"{self.name}: {{xid}} needs a shape of three axes with n_expert first")
            if source.flat and len(self.axes) != 3:
                raise ValueError(f"{self.name}: only a stack of matrices can be flat")
            if source.mxfp4 and (source.per_expert or source.transposed or source.flat or source.heads):
                raise ValueError(f"{self.name}: of MXFP4 only parts can be taken")

    @property
    def axes(self) -> list[str]:
        """One expression for each axis."""
        return self.shape.split()

    @property
    def has_experts(self) -> bool:
        """Whether the tensor has one matrix per expert."""
        return len(self.axes) == 3 and self.axes[0] == "n_expert"

    def exists(self, dims: Mapping[str, int]) -> bool:
        """Whether a model of these dimensions has such a tensor."""
        if not self.when:
            return True
        expression = self.when.removeprefix("not ")
        return (evaluate(expression, dims) == 0) == (expression != self.when)

    def sizes(self, dims: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of a model of these dimensions.

        Raises:
            KeyError: it names a dimension that the model does not have.
        """
        return tuple(evaluate(axis, dims) for axis in self.axes)


@dataclass(frozen=True)
class Computed:
    """A tensor that no checkpoint stores: `make` gives its F32 values [n] from the hyper-parameters, or None."""

    name: str
    make: Callable[[Hparams], Array | None]


COMMON_IGNORED = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")


@dataclass(frozen=True)
class Family:
    """A model family: the classes of transformers it stands for, their config, keys and tensors."""

    architectures: tuple[str, ...]  # config.json's `architectures[0]`
    arch: str  # GGUF's `general.architecture`
    keys: tuple[Key, ...]  # of its files, in the order of llama.cpp's converter
    tensors: tuple[Tensor, ...]
    defaults: Mapping[str, Any]  # transformers' class defaults for settings that config.json lacks
    rope_theta: float  # transformers' default where config.json has none
    rope_default: Mapping[str, Any] = field(default_factory=dict)  # its `rope_parameters`, likewise
    if_null: Mapping[str, str] = field(
        default_factory=dict
    )  # expressions for settings that are null or missing
    aliases: Mapping[str, str] = field(default_factory=dict)  # other spellings of settings
    dims: Mapping[str, str] = field(default_factory=dict)  # dimensions that no key holds -> their setting
    vocab: VocabRules = field(default_factory=VocabRules)  # of its tokenizer's files
    n_layer_dense_lead: str = "0"  # expression: the number of layers without experts at the start
    moe_every: str = "1"  # expression: of the others, layer bid has experts where (bid + 1) % moe_every == 0
    attention_every: str = "1"  # expression: layer bid attends where (bid + 1) % attention_every == 0
    accepted: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # setting -> supported values
    limits: tuple[Limit, ...] = ()  # settings that llama.cpp's graph does not follow
    computed: tuple[Computed, ...] = ()
    ignored: tuple[str, ...] = COMMON_IGNORED  # endings of stored names that no GGUF needs
    left_out: tuple[str, ...] = ()  # beginnings of stored names that llama.cpp's converter leaves out
    ignored_layers: str = (
        ""  # prefix with {bid}: layers behind the last one, which llama.cpp's converter leaves out
    )
    nextn_may_lack: bool = True  # llama.cpp loads a file that lacks a layer for further tokens
    nextn_apart: StoredApart | None = None  # names of these layers where they are not stored as others are
    ignored_when_tied: tuple[str, ...] = ()  # stored names that tie_word_embeddings makes superfluous
    rope_neox: bool = False
    graph: Graph = field(default_factory=Graph)

    @property
    def has_mxfp4(self) -> bool:
        """Whether its checkpoints may hold MXFP4 matrices."""
        return any(source.mxfp4 for tensor in self.tensors for source in tensor.sources)

    @property
    def settings(self) -> list[str]:
        """The settings that config.json must have, unless transformers has a default."""
        plain = (row.config for row in self.keys if isinstance(row.config, str) and not row.optional)
        return [name for name in plain if name and "." not in name]


def tensor(name: str, shape: str, *sources: str | Source, optional: bool = False, when: str = "") -> Tensor:
    """A tensor by its GGUF name, its shape in NumPy's order, and where it may be stored."""
    return Tensor(name, shape, tuple(as_source(source) for source in sources), optional, when=when)


def each_layer(prefix: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of every layer; `prefix` stands before their stored names, `blk.{bid}.` before their GGUF names."""
    return _in_layers("layer", prefix, tensors)


def dense_layers(prefix: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of the layers without experts."""
    return _in_layers("dense", prefix, tensors)


def moe_layers(prefix: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of the layers with experts (shared experts included)."""
    return _in_layers("moe", prefix, tensors)


def nextn_layers(prefix: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors that layers which predict further tokens (MTP) have beside those of any layer."""
    return _in_layers("nextn", prefix, tensors)


def attending_layers(prefix: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of the layers with attention, in a family where not all have it."""
    return _in_layers("attending", prefix, tensors)


def recurrent_layers(prefix: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of the layers without attention."""
    return _in_layers("recurrent", prefix, tensors)


def _in_layers(where: Where, prefix: str, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(
        replace(
            declared,
            name="blk.{bid}." + declared.name,
            sources=tuple(replace(source, name=prefix + source.name) for source in declared.sources),
            where=where,
        )
        for declared in tensors
    )
