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

A source is a Hugging Face name, or a name with words around it:

* `{bid}` in it is the layer; `{xid}` means "for each expert": one stored matrix per expert. A stack of experts
  without `{xid}` is stored in one tensor.
* `fused(source, half)`: gate and up are stored in one tensor, all rows of the gate first.
* `interleaved(source, half)`: gate and up are stored in one tensor, their rows by turns (gate 0, up 0, gate 1, ...).
* `part(source, "a:b", of="c")`: rows a to b of each stored matrix, which has c rows; either end may be left out.
* `transposed(source)`: each matrix is stored as [n_in, n_out].
* `flat(source)`: the rows of all matrices of a stack lie in one stored matrix, one matrix after the other.
* `permuted(source, heads)`: rows of q or k for rotary halves, to be turned into neighbours (arch `llama`).
* `regrouped(source, groups, parts, taken)`: the stored rows come in groups with several parts each; some of the parts
  are taken, one behind the other, each from all groups.
* `plus_one(source)`, `minus_exp(source)`: 1 + x, -exp(x), in float32.

Several sources of one tensor are alternatives: layouts that exist in the wild, of which a checkpoint has one. A tensor
may be `optional`; without a source it is one of files that others made. `each_layer`, `dense_layers` and `moe_layers`
say in which layers their tensors are; the family says which layers have experts by `n_layer_dense_lead` (dense in the
first k) and `moe_every` (one of every n). Where not all layers attend, `attending_layers` and `recurrent_layers` go by
`attention_every`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from quantize.families.expressions import evaluate
from quantize.families.graph import Graph
from quantize.families.keys import Key
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
    "part",
    "permuted",
    "plus_one",
    "recurrent_layers",
    "regrouped",
    "tensor",
    "transposed",
]

Where = Literal["model", "layer", "dense", "moe", "attending", "recurrent"]
Change = Literal["", "plus_one", "minus_exp"]

GATE, UP = 0, 1  # the halves of a fused tensor


@dataclass(frozen=True)
class Source:
    """The stored tensors that hold the numbers of a tensor, and the changes that these need.

    A stored tensor may hold more than this one: one of `n_parts` equal parts, or the range `rows` of `of` rows.
    """

    name: str
    part: int = 0
    n_parts: int = 1
    by_turns: bool = False  # the parts alternate instead of following each other
    rows: str = ""  # "a:b", both expressions
    of: str = ""  # expression
    axis: int = -2  # along which the parts lie: -2 rows, -1 columns (the biases of all experts, one row each)
    transposed: bool = False
    flat: bool = False  # a stack is stored as one matrix
    heads: str = ""  # the dimension that counts the heads whose rows are permuted
    groups: str = ""  # expression: the rows come in so many groups
    group_parts: tuple[str, ...] = ()  # expressions: the rows of each part of a group
    taken: tuple[int, ...] = ()  # the parts that are the tensor's
    change: Change = ""  # what is done to each number

    @property
    def per_expert(self) -> bool:
        """Whether each expert is stored in a tensor of its own."""
        return "{xid}" in self.name


@dataclass(frozen=True)
class Tensor:
    """One tensor of a family: GGUF name, shape as expressions, alternative sources."""

    name: str
    shape: str
    sources: tuple[Source, ...]
    optional: bool = False
    where: Where = "model"

    def __post_init__(self) -> None:
        for source in self.sources:
            if source.per_expert and not self.has_experts:
                raise ValueError(f"{self.name}: {{xid}} needs a shape of three axes with n_expert first")
            if source.flat and len(self.axes) != 3:
                raise ValueError(f"{self.name}: only a stack of matrices can be flat")

    @property
    def axes(self) -> list[str]:
        """One expression for each axis."""
        return self.shape.split()

    @property
    def has_experts(self) -> bool:
        """Whether the tensor has one matrix per expert."""
        return len(self.axes) == 3 and self.axes[0] == "n_expert"

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
    if_null: Mapping[str, str] = field(
        default_factory=dict
    )  # expressions for settings that are null or missing
    aliases: Mapping[str, str] = field(default_factory=dict)  # other spellings of settings
    dims: Mapping[str, str] = field(default_factory=dict)  # dimensions that no key holds -> their setting
    n_layer_dense_lead: str = "0"  # expression: the number of layers without experts at the start
    moe_every: str = "1"  # expression: of the others, layer bid has experts where (bid + 1) % moe_every == 0
    attention_every: str = "1"  # expression: layer bid attends where (bid + 1) % attention_every == 0
    accepted: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # setting -> supported values
    computed: tuple[Computed, ...] = ()
    ignored: tuple[str, ...] = COMMON_IGNORED  # endings of stored names that no GGUF needs
    left_out: tuple[str, ...] = ()  # beginnings of stored names that llama.cpp's converter leaves out
    rope_neox: bool = False
    graph: Graph = field(default_factory=Graph)

    @property
    def settings(self) -> list[str]:
        """The settings that config.json must have, unless transformers has a default."""
        plain = (row.config for row in self.keys if isinstance(row.config, str) and not row.optional)
        return [name for name in plain if name and "." not in name]


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


def attending_layers(prefix: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of the layers with attention, in a family where not all have it."""
    return _in_layers("attending", prefix, tensors)


def recurrent_layers(prefix: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of the layers without attention."""
    return _in_layers("recurrent", prefix, tensors)


def fused(source: str | Source, half: int, axis: int = -2) -> Source:
    """Half of a stored tensor: `half` GATE is the first half of its rows, UP the second (axis -1: of its columns)."""
    return replace(_source(source), part=half, n_parts=2, axis=axis)


def interleaved(source: str | Source, half: int, axis: int = -2) -> Source:
    """Every other row of a stored tensor: `half` GATE the even ones, UP the odd ones (axis -1: columns)."""
    return replace(_source(source), part=half, n_parts=2, by_turns=True, axis=axis)


def part(source: str | Source, rows: str, *, of: str, axis: int = -2) -> Source:
    """Some rows in a row (axis -1: columns) of each stored matrix, which has `of` of them.

    `rows` is "first:last", half open as in Python: "n_rot:", ":kv_lora_rank", "n_head:n_head+2".
    """
    if rows.count(":") != 1:
        raise ValueError(f"{rows!r} is no range of the form first:last")
    return replace(_source(source), rows=rows, of=of, axis=axis)


def transposed(source: str | Source) -> Source:
    """Each matrix is stored as [n_in, n_out]; parts and rows are counted after it is turned."""
    return replace(_source(source), transposed=True)


def flat(source: str | Source) -> Source:
    """A stack of n matrices of r rows is stored as one matrix of n*r rows; all else is said of each of the n."""
    return replace(_source(source), flat=True)


def permuted(source: str | Source, heads: str) -> Source:
    """Rows (of a bias: elements) in Hugging Face's order of rotary halves, in `heads` heads."""
    return replace(_source(source), heads=heads)


def regrouped(source: str | Source, groups: str, parts: tuple[str, ...], taken: tuple[int, ...]) -> Source:
    """Some parts of the rows, each from all groups: stored as q0 k0 q1 k1, taken as q0 q1 (or as q0 q1 k0 k1)."""
    return replace(_source(source), groups=groups, group_parts=parts, taken=taken)


def plus_one(source: str | Source) -> Source:
    """Stored without the 1 that the model's code adds: a norm."""
    return replace(_source(source), change="plus_one")


def minus_exp(source: str | Source) -> Source:
    """Stored as the logarithm of what is subtracted."""
    return replace(_source(source), change="minus_exp")


def _source(source: str | Source) -> Source:
    return Source(source) if isinstance(source, str) else source


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
