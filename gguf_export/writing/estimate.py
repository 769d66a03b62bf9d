"""How long an export would take here: a few rows of each kind of tensor are read and encoded, and the rest counted."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import numpy as np

from gguf_export.writing.job import ExportJob
from gguf_export.writing.slabs import Slab, compile_kernels, encode_weights
from quantize.blocks import block_format
from quantize.guide import Guide
from quantize.telling import silent
from quantize.tensors import NUMPY_TYPES, QType, TensorSpec

__all__ = ["encoding_seconds"]

SAMPLE = 2**20
"""About the weights that are tried of each kind, twice, the faster counting."""

Kind = tuple[QType, int, QType, bool]
"""The stored type, weights of a row, the type that they get, and whether importances weigh them."""


def encoding_seconds(job: ExportJob, jobs: int | None = None) -> float | None:
    """Seconds that reading and encoding would take, without a text's way through the model.

    Args:
        job: the export; some rows of its source are read.
        jobs: threads, by default one for each processor.

    Returns:
        None where nothing is encoded, and for a model that is read from afar, whose way nobody knows.

    Raises:
        MoeGgufError: the weights cannot be read, or are not finite.
    """
    if job.source.n_read > 1:
        return None
    amounts, samples = _kinds(job)
    compile_kernels(job.plans, job.weighted, silent)
    rates = {kind: _seconds_per_weight(job, spec, kind) for kind, spec in samples.items()}
    seconds = sum(rates[kind] * n for kind, n in amounts.items())
    return seconds / (jobs or os.cpu_count() or 1) if amounts else None


def _kinds(job: ExportJob) -> tuple[Mapping[Kind, int], Mapping[Kind, TensorSpec]]:
    """The weights of each kind in all files, and its largest tensor."""
    amounts: dict[Kind, int] = {}
    samples: dict[Kind, TensorSpec] = {}
    for plan in job.plans:
        for planned in plan.tensors:
            spec = planned.spec
            if planned.qtype == spec.qtype and planned.qtype not in NUMPY_TYPES:
                continue  # copied
            kind = (spec.qtype, spec.n_per_row, planned.qtype, spec.name in job.weighted)
            amounts[kind] = amounts.get(kind, 0) + spec.n_elements
            samples[kind] = max(samples.get(kind, spec), spec, key=lambda one: one.n_row)
    return amounts, samples


def _seconds_per_weight(job: ExportJob, spec: TensorSpec, kind: Kind) -> float:
    _, n_per_row, qtype, is_weighted = kind
    rows = (0, min(spec.n_row, max(1, SAMPLE // n_per_row)))
    is_guided = is_weighted or block_format(qtype).needs_importance
    guide = Guide(np.ones(n_per_row, np.float32)) if is_guided else None
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        weights = job.source.read(spec, 0, rows)
        encode_weights(Slab(spec, 0, rows), weights, [qtype], guide)
        seconds.append(time.perf_counter() - started)
    return min(seconds) / (rows[1] * n_per_row)
