"""The embedding's blocks: nothing is multiplied with its rows, so what counts is what the loss makes of their errors.

The change of the loss by an error e of a row is g e, with g the gradient of the loss by the hidden states that begin
there. Its mean square, e E[g gᵀ] eᵀ, has the form that error feedback lowers: gradients stand where elsewhere inputs
stand.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from calibration.feedback.fisher import Lookups
from calibration.feedback.fitting import PIECE_WEIGHTS, Aim, Fitted, MatrixFit, encoded_rows
from calibration.forward.graph import EMBEDDING, OUTPUT
from calibration.forward.stored import Matrix, to_tensor
from quantize.blocks.parts import part_format
from quantize.codec import decode
from quantize.feedback.encoder import encode_with_feedback
from quantize.sources.model_source import ModelSource
from quantize.tensors import QType

__all__ = ["encode_embedding", "encodes_embedding"]

DAMPING = 0.3
"""Gradients lie in few directions, and those of few tokens are known."""


def encodes_embedding(source: ModelSource, qtype: QType | None) -> bool:
    """Whether an embedding that gets a type is encoded here: it is not the output matrix, too, and the type has parts.

    Args:
        source: the model.
        qtype: the type; None where it stays as it is.
    """
    has_output = any(spec.name == OUTPUT for spec in source.specs())
    return has_output and qtype is not None and part_format(qtype) is not None


def encode_embedding(
    source: ModelSource,
    qtype: QType | None,
    lookups: Lookups,
    n_fit: int,
    rounds: int,
    workers: ThreadPoolExecutor,
) -> tuple[Aim, Fitted] | None:
    """The blocks of an embedding that is not the output matrix, too; None where it is, or its type has no parts.

    Args:
        source: the model.
        qtype: the type of the embedding.
        lookups: the gradients of a text.
        n_fit: tokens of which these are the moments.
        rounds: of coordinate descent.
        workers: threads.
    """
    if qtype is None or not encodes_embedding(source, qtype) or not lookups.n_held_out:
        return None
    spec = next(spec for spec in source.specs() if spec.name == EMBEDDING)
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
    counts = (n_fit, lookups.n_held_out)
    if cost < plain_cost:
        found = MatrixFit(spec.name, 0, qtype.name, *counts, DAMPING, cost / plain_cost)
        return aim, Fitted(candidates[0], values[0], found)
    found = MatrixFit(spec.name, 0, qtype.name, *counts, None, 1.0, "held out")
    return aim, Fitted(candidates[1], values[1], found)
