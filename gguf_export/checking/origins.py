"""Where weights come from that are not where they should be: another expert, another tensor, heads turned wrongly."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from quantize.sources.checkpoint import Checkpoint
from quantize.tensors import Array, Rows, TensorSpec

__all__ = ["Decoded", "nearest_experts", "origin"]

SAMPLED = 8  # rows of each expert
NEARER = 0.995
"""To be another expert, one must be nearer to it than to itself by so much. The distances to two experts differ by
chance by some thousandths at most over thousands of weights, and truly by their own distance."""


class Decoded(Protocol):
    """Both sides of a comparison, as float32 [rows, n_per_row]."""

    checkpoint: Checkpoint

    def decoded(self, spec: TensorSpec, xid: int, rows: Rows) -> Array:
        """Weights of the file."""
        ...

    def weights(self, spec: TensorSpec, xid: int, rows: Rows) -> Array:
        """Weights of the checkpoint."""
        ...

    def limit(self, spec: TensorSpec) -> float:
        """The relative squared error that the type of the file's tensor explains."""
        ...


def nearest_experts(sides: Decoded, spec: TensorSpec) -> list[int]:
    """For each expert of a tensor of the file, the expert of the checkpoint whose weights it holds.

    It is itself unless another one is clearly nearer and explains the weights as well as the type can.
    """
    if spec.n_matrix == 1:
        return [0]
    rows = _middle(spec)
    here, there = (
        np.stack([np.nan_to_num(side(spec, xid, rows)).reshape(-1) for xid in range(spec.n_matrix)]).astype(
            np.float64
        )
        for side in (sides.decoded, sides.weights)
    )
    energy = np.square(there).sum(axis=1)
    apart = np.square(here).sum(axis=1)[:, None] + energy[None, :] - 2 * here @ there.T  # [here, there]
    found = []
    for xid, distances in enumerate(apart):
        near = int(distances.argmin())
        is_other = (
            distances[near] < NEARER * distances[xid] - 1e-9 * energy[xid]
            and distances[near] <= sides.limit(spec) * energy[near]
        )
        found.append(near if is_other else xid)
    return found


def origin(sides: Decoded, spec: TensorSpec, xid: int) -> str | None:
    """What the weights of an expert of the file are, where they are not its own; None where nobody knows."""
    return next(_origins(sides, spec, xid), None)


def _origins(sides: Decoded, spec: TensorSpec, xid: int) -> Iterator[str]:
    rows = _middle(spec)
    here = sides.decoded(spec, xid, rows)
    for other in _look_alikes(sides.checkpoint, spec):
        if _is_near(sides, spec, here, sides.weights(other, min(xid, other.n_matrix - 1), rows)):
            yield f"the weights of {other.name} are in its place"
    for text, weights in _turned(sides, spec):
        if _is_near(sides, spec, sides.decoded(spec, xid, (0, spec.n_row)), weights):
            yield text
    if spec.n_row == spec.n_per_row:
        whole = sides.weights(spec, xid, (0, spec.n_row))
        if _is_near(sides, spec, here, np.ascontiguousarray(whole.T)[rows[0] : rows[1]]):
            yield "is transposed"


def _look_alikes(checkpoint: Checkpoint, spec: TensorSpec) -> list[TensorSpec]:
    """Tensors of the same shape: those of the same layer first, then those of the same name in other layers."""
    layer, _, kind = spec.name.rpartition(".ffn_") if ".ffn_" in spec.name else spec.name.rpartition(".attn_")
    same_shape = [
        other for other in checkpoint.specs() if other.shape == spec.shape and other.name != spec.name
    ]
    near = [other for other in same_shape if layer and other.name.startswith(f"{layer}.")]
    far = [other for other in same_shape if kind and other not in near and other.name.endswith(kind)]
    return near + far + [other for other in same_shape if not layer]


def _turned(sides: Decoded, spec: TensorSpec) -> Iterator[tuple[str, Array]]:
    """The ways in which rows of q and k for rotary positions are in a wrong order (LlamaModel.permute)."""
    found = re.search(r"\.attn_([qk])\.(weight|bias)$", spec.name)
    if not found:
        return
    hparams = sides.checkpoint.hparams
    heads = {"q": hparams.n_head, "k": hparams.n_head_kv}
    n_heads = heads.pop(found[1])
    (n_others,) = heads.values()
    right = sides.weights(spec, 0, (0, spec.n_row))
    if len(spec.shape) == 1:
        right = right.reshape(-1, 1)

    def pairs(values: Array, n: int) -> Array:
        """Rotary halves to neighbours."""
        return values.reshape(n, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)

    def halves(values: Array, n: int) -> Array:
        """Neighbours to rotary halves."""
        return values.reshape(n, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)

    shape = (1, -1) if len(spec.shape) == 1 else right.shape
    if hparams.rope_neox:
        yield (
            "its rows are permuted, which this architecture does not want",
            pairs(right, n_heads).reshape(shape),
        )
        return
    plain = halves(right, n_heads)
    yield "its rows are in Hugging Face's order: they were not permuted", plain.reshape(shape)
    yield "its rows were permuted twice", pairs(right, n_heads).reshape(shape)
    if n_others != n_heads and len(plain) % (2 * n_others) == 0:
        yield (
            f"its rows were permuted in {n_others} heads instead of {n_heads}",
            pairs(plain, n_others).reshape(shape),
        )


def _middle(spec: TensorSpec) -> Rows:
    """Some rows that lie together, so that one read fetches them."""
    first = max(0, spec.n_row // 2 - SAMPLED // 2)
    return first, min(spec.n_row, first + SAMPLED)


def _is_near(sides: Decoded, spec: TensorSpec, here: Array, there: Array) -> bool:
    with np.errstate(all="ignore"):
        apart = float(np.square(here - there, dtype=np.float64).sum())
        return apart <= sides.limit(spec) * float(np.square(there, dtype=np.float64).sum())
