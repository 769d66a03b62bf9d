"""What each type costs each tensor, in nats of KL divergence: one pass through a text and back, one encoding of each.

Costs are predictions to second order, each matrix alone, so their sum is too small where errors are large; they are
good for choosing (see `quantize.recipes.budget`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from calibration.forward.backward import forward_and_back
from calibration.forward.gradients import GradientObserver, Output
from calibration.forward.graph import EMBEDDING
from calibration.forward.settings import ForwardSettings, best_dtype
from calibration.forward.stored import Matrix
from calibration.forward.streams import Observer
from calibration.forward.timings import Timings
from calibration.importance.error_effects import (
    F64,
    changes_by_rows,
    changes_of_lookups,
    spreads_of_logits,
    sum_of_rows,
)
from calibration.importance.imatrix import Imatrix
from calibration.importance.observers import ImatrixObserver, RouterLoad, RouterObserver
from calibration.text.chunks import Chunks
from quantize.engine import Engine, Threads
from quantize.guide import Guide
from quantize.heap import give_back_freed_memory
from quantize.recipes.recipe import candidates_for
from quantize.sources.model_source import ModelSource
from quantize.telling import OnProgress, silent
from quantize.tensors import QType, TensorSpec

__all__ = ["N_TOKEN", "CostObserver", "TypeCosts", "measure_type_costs", "spread_chunks"]

N_TOKEN = 4096
"""Tokens that rank types well enough."""

N_OUTPUT = 512
"""Tokens by which the output matrix is measured, without the noise of drawn labels."""


@dataclass(frozen=True)
class TypeCosts:
    """What `measure_type_costs` found.

    `costs` are by the name of a tensor and the type that it would really have: predicted KL divergence in nats per
    token, the sum over experts. Tensors that keep their type (routers, norms, biases) are not there. `n_token` are the
    tokens whose gradients were taken; `unreached` are the matrices (name, xid) that none of them reached, whose share
    of a cost is 0. `imatrix` holds the importances that the encodings were fitted with, and `load` tells where the
    router sent the tokens of the pass.
    """

    n_token: int
    costs: Mapping[str, Mapping[QType, float]]
    imatrix: Imatrix
    load: RouterLoad
    unreached: tuple[tuple[str, int], ...]
    timings: Timings


def measure_type_costs(
    source: ModelSource,
    chunks: Chunks,
    candidates: Sequence[QType],
    *,
    n_token: int = N_TOKEN,
    imatrix: Imatrix | None = None,
    prior: float = 0.0,
    settings: ForwardSettings | None = None,
    engine: Engine | None = None,
    seed: int = 0,
    progress: OnProgress = silent,
) -> TypeCosts:
    """Predict the KL divergence that each type of each tensor brings about.

    Args:
        source: the model.
        chunks: the text.
        candidates: types; where rows do not divide into a type's blocks, llama.cpp's fallback is measured, and types
            that need importances are not measured where there are none.
        n_token: tokens whose gradients are taken: whole chunks, at least one, spread evenly over the text. Of these
            n_layer x n_token x n_embd numbers are kept, in the scratch folder if there is one.
        imatrix: importances; default is to collect them, from the whole text, on the way there.
        prior: of importances that are collected; see `Imatrix`.
        settings: see `forward`; default bfloat16 products where the CPU has them.
        engine: encodes; default all processors.
        seed: of the labels that are drawn.
        progress: is told the tokens on the way there, the layers on the way back.

    Raises:
        ActivationError, CheckpointError, OutputError, TokenizerError: see `forward`.
        ImatrixError: the importances do not fit the model, or the prior is no number of tokens.
        RecipeError: a type cannot be encoded here.
    """
    settings = settings or ForwardSettings(dtype=best_dtype())
    chosen = spread_chunks(chunks, n_token)
    router = RouterObserver(source.hparams)
    observers: list[Observer] = [router]
    kept: Sequence[int] | None = None
    if imatrix is None:
        collector = ImatrixObserver(chunks, prior=prior)
        observers.append(collector)
        imatrix, kept = collector.imatrix, chosen
        passed = chunks.inputs
    else:
        passed = chunks.inputs[chosen]
    give_back_freed_memory()  # encoding takes pieces, and the pass whole matrices, by turns
    with Threads() as threads:
        costs = CostObserver(
            engine or threads, candidates, imatrix.guide, len(chosen) * chunks.n_ctx, settings.dtype
        )
        timings = forward_and_back(
            source,
            passed,
            [costs],
            chunks=kept,
            observers=observers,
            settings=settings,
            seed=seed,
            progress=progress,
        )
    return TypeCosts(costs.n_token, costs.costs, imatrix, router.load, tuple(costs.unreached), timings)


def spread_chunks(chunks: Chunks, n_token: int) -> list[int]:
    """The chunks, spread evenly over a text, that hold about `n_token` tokens: at least one, ascending."""
    n_wanted = min(max(1, round(n_token / chunks.n_ctx)), chunks.n_chunk)
    return [(2 * index + 1) * chunks.n_chunk // (2 * n_wanted) for index in range(n_wanted)]


class CostObserver(GradientObserver):
    """Measures each matrix in all types when its products have all been shown; `costs` are complete after the pass."""

    def __init__(
        self,
        engine: Engine,
        candidates: Sequence[QType],
        guide: Callable[[str, int], Guide | None],
        n_token: int,
        dtype: torch.dtype,
    ) -> None:
        """Begin without costs.

        Args:
            engine: encodes.
            candidates: types, before fallbacks.
            guide: the importances of a matrix, by name and expert.
            n_token: tokens of the whole pass.
            dtype: of products with errors.
        """
        self.n_token = n_token
        self.costs: dict[str, dict[QType, float]] = {}
        self.unreached: list[tuple[str, int]] = []
        self._engine, self._candidates, self._guide, self._dtype = engine, candidates, guide, dtype
        self._groups: dict[tuple[str, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self._lookups: list[tuple[Tensor, Tensor]] = []
        self._outputs: list[tuple[Tensor, Tensor]] = []
        self._head = ""  # the name of the output matrix
        self._head_bias: Tensor | None = None

    def gradients(self, spec: TensorSpec, xid: int, tokens: Tensor, x: Tensor, g: Tensor) -> None:
        """Keep a group until the matrix is finished."""
        self._groups[spec.name, xid].append((x, g))

    def outputs(self, spec: TensorSpec, tokens: Tensor, x: Tensor, output: Output) -> None:
        """Keep some of the tokens, spread evenly."""
        self._head = spec.name
        step = max(1, self.n_token // N_OUTPUT)
        self._outputs.append((x[::step].clone(), output.log_total[::step].clone()))
        self._head_bias = output.bias

    def embedded(self, spec: TensorSpec, tokens: Tensor, token_ids: Tensor, g: Tensor) -> None:
        """Keep a group until the embedding is finished."""
        self._lookups.append((token_ids, g))

    def finished(self, matrix: Matrix) -> None:
        """Encode the matrix in each type, and add to the costs of its tensor."""
        spec, xid = matrix.spec, matrix.xid
        guide = self._guide(spec.name, xid)
        qtypes = candidates_for(spec, self._candidates, guide is not None)
        costs = self.costs.setdefault(spec.name, dict.fromkeys(qtypes, 0.0))
        if not qtypes:
            self._groups.pop((spec.name, xid), None)
            return
        found = np.zeros(len(qtypes))
        if spec.name == self._head:
            found += self._of_outputs(matrix, qtypes, guide)
        if spec.name == EMBEDDING:
            found += self._of_lookups(matrix, qtypes, guide)
        groups = self._groups.pop((spec.name, xid), [])
        if groups:
            x, g = (torch.cat(parts) for parts in zip(*groups, strict=True))
            del groups
            found += self._half_mean(changes_by_rows(self._engine, matrix, qtypes, guide, x, g))
        elif spec.bid is not None:
            self.unreached.append((spec.name, xid))
        for qtype, cost in zip(qtypes, found.tolist(), strict=True):
            costs[qtype] += cost

    def _of_outputs(self, matrix: Matrix, qtypes: Sequence[QType], guide: Guide | None) -> F64:
        """Half the variance of the changes of the logits under the model's own expectations, for each type."""
        x, log_total = (torch.cat(parts) for parts in zip(*self._outputs, strict=True))
        work = partial(
            spreads_of_logits,
            qtypes=qtypes,
            guide=guide,
            x=x,
            log_total=log_total,
            bias=self._head_bias,
            dtype=self._dtype,
        )
        moments = sum_of_rows(self._engine, work, matrix.whole())
        variances: F64 = moments[:, 1] - moments[:, 0] ** 2
        halves: F64 = variances.mean(-1) / 2
        return halves

    def _of_lookups(self, matrix: Matrix, qtypes: Sequence[QType], guide: Guide | None) -> F64:
        """The cost of each type in the rows that were looked up; only these are encoded."""
        token_ids, g = (torch.cat(parts) for parts in zip(*self._lookups, strict=True))
        rows, places = np.unique(token_ids.numpy(), return_inverse=True)
        work = partial(changes_of_lookups, qtypes=qtypes, guide=guide, places=torch.from_numpy(places), g=g)
        return self._half_mean(sum_of_rows(self._engine, work, matrix.picked(rows)))

    def _half_mean(self, changes: F64) -> F64:
        """Half the mean square over all tokens of changes [n_type, t]; those without a change count, too."""
        halves: F64 = np.square(changes).sum(-1) / (2 * self.n_token)
        return halves
