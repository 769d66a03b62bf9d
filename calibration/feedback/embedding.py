"""The embedding's blocks: nothing is multiplied with its rows, so what counts is what the loss makes of their errors.

The change of the loss by an error e of a row is g e, with g the gradient of the loss by the hidden states that begin
there. Its mean square, e E[g gᵀ] eᵀ, has the form that error feedback lowers: gradients stand where elsewhere inputs
stand.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from calibration.feedback.fitting import PIECE_WEIGHTS, Aim, Fitted, MatrixFit, encoded_rows
from calibration.feedback.moments import Moments, Visit
from calibration.forward.backward import forward_and_back
from calibration.forward.gradients import GradientObserver
from calibration.forward.parts import EMBEDDING, OUTPUT
from calibration.forward.settings import ForwardSettings
from calibration.forward.stored import Matrix, to_tensor
from calibration.importance.type_costs import spread_chunks
from calibration.judging.held_out import hold_out
from calibration.text.chunks import Chunks
from quantize.blocks.parts import part_format
from quantize.codec import decode
from quantize.feedback.encoder import encode_with_feedback
from quantize.sources.model_source import ModelSource
from quantize.telling import OnProgress
from quantize.tensors import QType, TensorSpec

__all__ = ["encode_embedding", "encodes_embedding"]

N_TOKEN = 4096  # whose gradients are taken
DAMPING = 0.3
"""Gradients lie in few directions, and those of few tokens are known."""


class _Lookups(GradientObserver):
    """The gradients by rows that were looked up: of the first `n_fit` tokens their moments, the others as they are."""

    def __init__(self, n_embd: int, n_fit: int, device: str) -> None:
        self.moments = Moments(n_embd, 1, device, of_inputs=False)
        self.held_out: list[tuple[Tensor, Tensor]] = []
        self._n_fit = n_fit

    def embedded(self, spec: TensorSpec, tokens: Tensor, token_ids: Tensor, g: Tensor) -> None:
        """Add a group."""
        n = int((tokens < self._n_fit).sum())
        self.moments.add(Visit(g[:n], torch.zeros(n, 1, device=g.device)))
        if n < len(g):
            self.held_out.append((token_ids[n:].cpu(), g[n:].float().cpu()))

    def cost(self, difference: Tensor) -> float:
        """The summed squared change of the loss on held-out tokens, by errors of the rows [V, D]."""
        return sum(
            float((difference[ids] * g).sum(1).square().sum(dtype=torch.float64)) for ids, g in self.held_out
        )


def encodes_embedding(source: ModelSource, qtype: QType | None) -> bool:
    """Whether an embedding that gets a type is encoded here: it is not the output matrix, too, and the type has parts.

    Args:
        source: the model.
        qtype: the type; None where it stays as it is.
    """
    has_output = any(spec.name == OUTPUT.name() for spec in source.specs())
    return has_output and qtype is not None and part_format(qtype) is not None


def encode_embedding(
    source: ModelSource,
    chunks: Chunks,
    qtype: QType | None,
    settings: ForwardSettings,
    *,
    rounds: int,
    workers: ThreadPoolExecutor,
    progress: OnProgress,
) -> tuple[Aim, Fitted] | None:
    """The blocks of an embedding that is not the output matrix, too; None where it is, or its type has no parts.

    Args:
        source: the model.
        chunks: a text, of which some thousand tokens go through the model and back.
        qtype: the type of the embedding; None where it stays as it is.
        settings: see `forward`.
        rounds: of coordinate descent.
        workers: threads.
        progress: see `forward_and_back`.

    Raises:
        ActivationError, CheckpointError, OutputError, TokenizerError: see `calibration.forward.run.forward`.
    """
    if qtype is None or not encodes_embedding(source, qtype) or chunks.n_chunk < 2:
        return None
    specs = {spec.name: spec for spec in source.specs()}
    few = Chunks(chunks.names, chunks.tokens[spread_chunks(chunks, N_TOKEN)], chunks.bos_id)
    if few.n_chunk < 2:
        few = chunks.part(0, 2)
    fit, held_out = hold_out(few)
    seen = np.concatenate([fit.inputs, held_out.inputs])
    spec = specs[EMBEDDING.name()]
    lookups = _Lookups(spec.n_per_row, fit.n_token, settings.device)
    forward_and_back(source, seen, [lookups], settings=settings, progress=progress)
    weights = to_tensor(Matrix.read(source, spec).whole(), dtype=torch.float32)
    aim = Aim(spec, 0, weights, qtype)
    damped = lookups.moments.damped(DAMPING)
    step = max(1, PIECE_WEIGHTS // spec.n_per_row)
    pieces = (weights[first : first + step] for first in range(0, len(weights), step))
    made = [
        encode_with_feedback(rows.numpy(), qtype, damped.known, rounds=rounds, workers=workers)
        for rows in pieces
    ]
    candidates = (np.concatenate(made), encoded_rows(weights.numpy(), qtype, None, workers))
    values = [torch.from_numpy(decode(blocks, qtype, spec.n_per_row)) for blocks in candidates]
    cost, plain_cost = (lookups.cost(of_rows - weights) for of_rows in values)
    counts = (fit.n_token, held_out.n_token)
    if cost < plain_cost:
        found = MatrixFit(spec.name, 0, qtype.name, *counts, DAMPING, cost / plain_cost)
        return aim, Fitted(candidates[0], values[0], found)
    found = MatrixFit(spec.name, 0, qtype.name, *counts, None, 1.0, "held out")
    return aim, Fitted(candidates[1], values[1], found)
