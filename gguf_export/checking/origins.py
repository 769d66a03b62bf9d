"""Where misplaced weights come from: another expert, another tensor, heads in a wrong order, a matrix turned."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gguf_export.checking.file_check import FileCheck
from quantize.decoding import can_decode
from quantize.sources.model_source import ModelFile
from quantize.tensors import Array, Rows, TensorSpec

__all__ = ["nearest_experts", "origin"]

SAMPLED = 8  # rows of each expert
NEARER = 0.995
"""Another expert counts as nearer when its distance is below this share of the distance to the expert itself. The
distances to two experts differ by chance by some thousandths at most over thousands of weights, and truly by the
distance of the two from each other."""


def nearest_experts(check: FileCheck, spec: TensorSpec) -> list[int]:
    """For each expert of a tensor of the file, the expert of the source whose weights it holds.

    It is itself unless another one is clearly nearer and explains the weights as well as the type can.
    """
    if spec.n_matrix == 1 or not can_decode(spec.qtype):
        return list(range(spec.n_matrix))
    rows = _middle(spec)
    here, there = (
        np.stack([np.nan_to_num(side(spec, xid, rows)).reshape(-1) for xid in range(spec.n_matrix)]).astype(
            np.float64
        )
        for side in (check.decoded, check.weights)
    )
    energy = np.square(there).sum(axis=1)
    distance = np.square(here).sum(axis=1)[:, None] + energy[None, :] - 2 * here @ there.T  # [here, there]
    nearest = []
    for xid, distances in enumerate(distance):
        near = int(distances.argmin())
        is_other = (
            distances[near] < NEARER * distances[xid] - 1e-9 * energy[xid]
            and distances[near] <= check.tolerance(spec).matrix * energy[near]
        )
        nearest.append(near if is_other else xid)
    return nearest


def origin(check: FileCheck, spec: TensorSpec, xid: int) -> str | None:
    """Where the weights of an expert of the file come from in truth, in words; None where they resemble nothing."""
    return next(_origins(check, spec, xid), None)


def _origins(check: FileCheck, spec: TensorSpec, xid: int) -> Iterator[str]:
    rows = _middle(spec)
    here = check.decoded(spec, xid, rows)
    for other in _look_alikes(check.source, spec):
        if _is_near(check, spec, here, check.weights(other, min(xid, other.n_matrix - 1), rows)):
            yield f"the weights of {other.name} are in its place"
    for text, weights in _turned(check, spec):
        if _is_near(check, spec, check.decoded(spec, xid, (0, spec.n_row)), weights):
            yield text
    if spec.n_row == spec.n_per_row:
        whole = check.weights(spec, xid, (0, spec.n_row))
        if _is_near(check, spec, here, np.ascontiguousarray(whole.T)[rows[0] : rows[1]]):
            yield "is transposed"


def _look_alikes(source: ModelFile, spec: TensorSpec) -> list[TensorSpec]:
    """Tensors of the same shape: those of the same layer first, then those of the same name in other layers."""
    same_shape = [
        other
        for other in source.specs()
        if other.shape == spec.shape and other.name != spec.name and can_decode(other.qtype)
    ]
    if spec.bid is None:
        return same_shape
    near = [other for other in same_shape if other.bid == spec.bid]
    # Vectors are small: the norms of all layers are tried, of whatever name.
    far = [
        other
        for other in same_shape
        if other.bid != spec.bid and (_kind(other) == _kind(spec) or not spec.is_matrix)
    ]
    return near + far


def _kind(spec: TensorSpec) -> str:
    """The name of a tensor without its layer: `attn_q.weight`."""
    return spec.name if spec.bid is None else spec.name.removeprefix(f"blk.{spec.bid}.")


def _turned(check: FileCheck, spec: TensorSpec) -> Iterator[tuple[str, Array]]:
    """The ways in which rows of q and k for rotary positions are in a wrong order (LlamaModel.permute), in words, each
    with the weights of the source in that order."""
    if check.source.kind == "gguf":  # it has them in llama.cpp's order already
        return
    hparams = check.source.hparams
    projection = _kind(spec).partition(".")[0]
    if projection == "attn_q":
        n_heads, n_others = hparams.n_head, hparams.n_head_kv
    elif projection == "attn_k":
        n_heads, n_others = hparams.n_head_kv, hparams.n_head
    else:
        return
    right = check.weights(spec, 0, (0, spec.n_row))
    shape = right.shape
    if not spec.is_matrix:
        right = right.reshape(-1, 1)

    def pairs(values: Array, n: int) -> Array:
        """Rotary halves to neighbours."""
        return values.reshape(n, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)

    def halves(values: Array, n: int) -> Array:
        """Neighbours to rotary halves."""
        return values.reshape(n, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)

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


def _is_near(check: FileCheck, spec: TensorSpec, here: Array, there: Array) -> bool:
    with np.errstate(all="ignore"):
        apart = float(np.square(here - there, dtype=np.float64).sum())
        return apart <= check.tolerance(spec).matrix * float(np.square(there, dtype=np.float64).sum())
