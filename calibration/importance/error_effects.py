"""What the error of an encoding does to the model's expectations: one number for each token, type and matrix.

The error E of a matrix changes its result by E x, and the loss by gᵀ E x with the gradient g; half the mean square of
that is, to second order, the KL divergence in nats that this matrix alone brings about. Behind the output matrix no
gradient is needed: there it is half the variance of E x under the model's own expectations.

The unit of work is some rows of a matrix in all types: a pure function, for any engine in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from calibration.forward.stored import Matrix
from quantize.codec import decode, encode
from quantize.decoding import to_f32
from quantize.engine import Engine
from quantize.guide import Guide
from quantize.tensors import Array, QType

__all__ = ["Rows", "changes_by_rows", "changes_of_lookups", "changes_of_results", "spreads_of_logits"]

UNIT_WEIGHTS = 1 << 18  # weights of a unit of work; few, so that one matrix keeps many threads busy
MIN_ROWS = 64  # of a unit: products with fewer are slow

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows [n, n_per_row] of a matrix as it was read, from the row `first` on."""

    first: int
    weights: Array


def changes_by_rows(
    engine: Engine,
    matrix: Matrix,
    qtypes: Sequence[QType],
    guide: Guide | None,
    x: Tensor,
    g: Tensor,
) -> F64:
    """gᵀ E x of each type and token, [n_type, t]: inputs x [t, n_in] and gradients g [t, n_out] of the whole matrix."""
    work = partial(changes_of_results, qtypes=tuple(qtypes), guide=guide, x=x, g=g)
    return sum_of_rows(engine, work, matrix.whole())


def sum_of_rows(engine: Engine, work: Callable[[Rows], F64], weights: Array) -> F64:
    """The sum of a function over all rows [n_row, n_per_row], in the order of the rows: digits depend on it."""
    step = max(MIN_ROWS, UNIT_WEIGHTS // weights.shape[1])
    units = (Rows(first, weights[first : first + step]) for first in range(0, len(weights), step))
    by_row = {rows.first: found for rows, found in engine.map(work, units)}
    total: F64 = sum((by_row[first] for first in sorted(by_row)), np.zeros(1))
    return total


def changes_of_results(
    rows: Rows, *, qtypes: Sequence[QType], guide: Guide | None, x: Tensor, g: Tensor
) -> F64:
    """The share that some rows have in gᵀ E x, [n_type, t]."""
    with torch.inference_mode():  # a setting of the thread
        of_rows = g[:, rows.first : rows.first + len(rows.weights)].contiguous()
        found = [
            functional.linear(x, error).mul_(of_rows).sum(-1, dtype=torch.float32)
            for error in _errors(rows.weights, qtypes, guide, x)
        ]
        return torch.stack(found).double().cpu().numpy()


def spreads_of_logits(
    rows: Rows,
    *,
    qtypes: Sequence[QType],
    guide: Guide | None,
    x: Tensor,
    log_total: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> F64:
    """The share that some rows of the output matrix have in the first and second moments of E x, [n_type, 2, t].

    x f32 [t, D]; the expectations of a token are exp(logits - log_total), `log_total` f32 [t], with `bias`
    f32 [V] in the logits. Products with errors are taken in `dtype`.
    """
    with torch.inference_mode():
        weights = torch.from_numpy(to_f32(rows.weights)).to(x.device)
        of_rows = None if bias is None else bias[rows.first : rows.first + len(weights)]
        probs = functional.linear(x, weights, of_rows).sub_(log_total[:, None]).exp_()
        narrow, found = x.to(dtype), []
        for error in _errors(rows.weights, qtypes, guide, narrow):
            z = functional.linear(narrow, error).float()
            first = probs * z
            found.append(torch.stack([first.sum(-1), first.mul_(z).sum(-1)]))
        return torch.stack(found).double().cpu().numpy()


def changes_of_lookups(
    rows: Rows, *, qtypes: Sequence[QType], guide: Guide | None, places: Tensor, g: Tensor
) -> F64:
    """gᵀ e of each type and token, [n_type, t], e the error of the token's row; 0 for tokens of other rows.

    `places` int64 [t] say which of all rows a token has, g f32 [t, D].
    """
    with torch.inference_mode():
        changes = torch.zeros(len(qtypes), len(places))
        is_here = (places >= rows.first) & (places < rows.first + len(rows.weights))
        own, of_own = places[is_here] - rows.first, g[is_here.to(g.device)]
        for index, error in enumerate(_errors(rows.weights, qtypes, guide, of_own)):
            changes[index, is_here] = (error[own.to(error.device)] * of_own).sum(-1).cpu()
        return changes.double().numpy()


def _errors(weights: Array, qtypes: Sequence[QType], guide: Guide | None, like: Tensor) -> Iterable[Tensor]:
    """What encoding changes in weights [n, n_per_row], for each type, in another tensor's type and on its device."""
    wide = to_f32(weights)
    for qtype in qtypes:
        decoded = decode(encode(weights, qtype, guide), qtype, weights.shape[1])
        yield torch.from_numpy(np.subtract(decoded, wide, out=decoded)).to(like.device, like.dtype)
