"""Where the numbers of a tensor are stored, in the words of the families.

A source is a Hugging Face name, or a name with words around it:

* `{bid}` in it is the layer; `{xid}` means "for each expert": one stored matrix per expert. A stack of experts
  without `{xid}` is stored in one tensor.
* `fused(source, half)`: gate and up are stored in one tensor, all rows of the gate first.
* `interleaved(source, half)`: gate and up are stored in one tensor, their rows by turns (gate 0, up 0, gate 1, ...).
* `part(source, "a:b", of="c")`: rows a to b of each stored matrix, which has c rows; either end may be left out.
* `transposed(source)`: each matrix is stored as [n_in, n_out].
* `flat(source)`: the rows of all matrices of a stack lie in one stored matrix, one matrix after the other.
* `permuted(source, heads)`: rows of q or k for rotary halves, to be turned into neighbours (arch `llama`).
* `mxfp4(source)`: rows of MXFP4, the codes in the stored tensor NAME_blocks, the exponents in NAME_scales.
* `regrouped(source, groups, parts, taken)`: the stored rows come in groups with several parts each; some of the parts
  are taken, one behind the other, each from all groups.
* `plus_one(source)`, `minus_exp(source)`: 1 + x, -exp(x), in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

__all__ = [
    "GATE",
    "MXFP4_PARTS",
    "UP",
    "Source",
    "as_source",
    "flat",
    "fused",
    "interleaved",
    "minus_exp",
    "mxfp4",
    "part",
    "permuted",
    "plus_one",
    "regrouped",
    "transposed",
]

Change = Literal["", "plus_one", "minus_exp"]

GATE, UP = 0, 1  # the halves of a fused tensor

MXFP4_PARTS = ("_blocks", "_scales")
"""The ends of the names of the two tensors of which MXFP4 matrices are stored."""


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
    mxfp4: bool = False  # two stored tensors: codes [..., n_in / 32, 16] and exponents [..., n_in / 32]
    groups: str = ""  # expression: the rows come in so many groups
    group_parts: tuple[str, ...] = ()  # expressions: the rows of each part of a group
    taken: tuple[int, ...] = ()  # the parts that are the tensor's
    change: Change = ""  # what is done to each number

    @property
    def per_expert(self) -> bool:
        """Whether each expert is stored in a tensor of its own."""
        return "{xid}" in self.name


def fused(source: str | Source, half: int, axis: int = -2) -> Source:
    """Half of a stored tensor: `half` GATE is the first half of its rows, UP the second (axis -1: of its columns)."""
    return replace(as_source(source), part=half, n_parts=2, axis=axis)


def interleaved(source: str | Source, half: int, axis: int = -2) -> Source:
    """Every other row of a stored tensor: `half` GATE the even ones, UP the odd ones (axis -1: columns)."""
    return replace(as_source(source), part=half, n_parts=2, by_turns=True, axis=axis)


def part(source: str | Source, rows: str, *, of: str, axis: int = -2) -> Source:
    """Some rows in a row (axis -1: columns) of each stored matrix, which has `of` of them.

    `rows` is "first:last", half open as in Python: "n_rot:", ":kv_lora_rank", "n_head:n_head+2".
    """
    if rows.count(":") != 1:
        raise ValueError(f"{rows!r} is no range of the form first:last")
    return replace(as_source(source), rows=rows, of=of, axis=axis)


def transposed(source: str | Source) -> Source:
    """Each matrix is stored as [n_in, n_out]; parts and rows are counted after it is turned."""
    return replace(as_source(source), transposed=True)


def flat(source: str | Source) -> Source:
    """A stack of n matrices of r rows is stored as one matrix of n*r rows; all else is said of each of the n."""
    return replace(as_source(source), flat=True)


def mxfp4(source: str | Source) -> Source:
    """Rows of MXFP4 as OpenAI stores them: uint8 codes in NAME_blocks, two of neighbours in a byte, the first one low,
    and uint8 exponents in NAME_scales.
    """
    return replace(as_source(source), mxfp4=True)


def permuted(source: str | Source, heads: str) -> Source:
    """Rows (of a bias: elements) in Hugging Face's order of rotary halves, in `heads` heads."""
    return replace(as_source(source), heads=heads)


def regrouped(source: str | Source, groups: str, parts: tuple[str, ...], taken: tuple[int, ...]) -> Source:
    """Some parts of the rows, each from all groups: stored as q0 k0 q1 k1, taken as q0 q1 (or as q0 q1 k0 k1)."""
    return replace(as_source(source), groups=groups, group_parts=parts, taken=taken)


def plus_one(source: str | Source) -> Source:
    """Stored without the 1 that the model's code adds: a norm."""
    return replace(as_source(source), change="plus_one")


def minus_exp(source: str | Source) -> Source:
    """Stored as the logarithm of what is subtracted."""
    return replace(as_source(source), change="minus_exp")


def as_source(source: str | Source) -> Source:
    """A Hugging Face name, or one with words around it."""
    return Source(source) if isinstance(source, str) else source
