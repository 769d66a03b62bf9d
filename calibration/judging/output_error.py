"""What each type does to each expert's output, judged on text that the importances have not seen.

One pass over the weights: both parts of the text run through the model together; the first gives the importances, of
the second some activations are kept. When all inputs of a matrix have passed, and while its weights are still in
memory, it is encoded and decoded as every type that was asked for, and the kept activations are multiplied with the
difference.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from calibration.forward.run import forward
from calibration.forward.settings import ForwardSettings, best_dtype
from calibration.forward.streams import Given, Stream, name_of
from calibration.importance.observers import ImatrixObserver, RouterLoad, RouterObserver
from calibration.judging.held_out import N_JUDGED, Beginning, Sampler, Seen
from calibration.judging.matrix_errors import ErrorReport, LayerRouting, MatrixErrors, OutputSums, WeightSums
from calibration.text.chunks import Chunks
from quantize.blocks import block_format
from quantize.codec import compile_kernels, decode, encode, first_non_finite, row_bytes
from quantize.exceptions import CheckpointError, TextError
from quantize.recipes.recipe import fallback
from quantize.telling import OnProgress, silent
from quantize.tensors import NUMPY_TYPES, Array, QType, TensorSource, TensorSpec

__all__ = ["is_judged", "measure_errors"]

SLAB_WEIGHTS = 1 << 21  # weights of a matrix that one thread works on at a time


def measure_errors(
    source: TensorSource,
    fit: Chunks,
    held_out: Chunks,
    qtypes: Sequence[QType],
    *,
    model: str = "",
    prior: float = 0.0,
    baseline: bool = True,
    n_judged: int = N_JUDGED,
    settings: ForwardSettings | None = None,
    jobs: int | None = None,
    progress: OnProgress = silent,
) -> ErrorReport:
    """Measure what each type does to each matrix of attention and feed-forward, expert by expert.

    The activations are those of the unquantized model: every error is the matrix's own, none is handed down.

    Args:
        source: the model.
        fit: the text that the importances are fitted on.
        held_out: the text that the output errors are measured on, in chunks of the same length (see `hold_out`).
        qtypes: tensor types; where rows do not divide into a type's blocks, llama.cpp's fallback is taken and said.
        model: its name, for the reader.
        prior: see `Imatrix`.
        baseline: measure each type without importances, too.
        n_judged: at most so many rows of activations, spread evenly over the held-out text, are kept for a matrix
            (n_judged x n_per_row x 2 or 4 bytes); with a `prior`, those of all down projections of a layer at once.
        settings: see `forward`; default bfloat16 products where the CPU has them.
        jobs: threads that encode, by default one for each processor.
        progress: told the tokens that are through.

    Raises:
        TextError: the chunks of the texts differ in length.
        ActivationError, CheckpointError, TokenizerError: see `forward`; a weight that is not finite.
        RecipeError: a type that cannot be written.
    """
    if fit.n_ctx != held_out.n_ctx:
        raise TextError(f"chunks of {fit.n_ctx} and of {held_out.n_ctx} tokens cannot run side by side")
    settings = settings or ForwardSettings(dtype=best_dtype())
    importances = ImatrixObserver(fit, prior=prior)
    router = RouterObserver(source.hparams)
    sampler = Sampler(is_judged, fit.n_token, held_out.n_token, n_judged, settings)
    qtypes = tuple(dict.fromkeys(qtypes))
    rows: list[MatrixErrors] = []
    _compile_kernels(source, qtypes, baseline, progress)
    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:

        def judge(spec: TensorSpec, xid: int, weights: Array, given: Given) -> None:
            if not is_judged(spec):
                return
            _refuse_non_finite(spec, xid, weights)
            importance = importances.imatrix.importance(spec.name, xid)
            rows.extend(_judge(pool, spec, xid, weights, given[sampler], importance, prior, qtypes, baseline))

        forward(
            [Stream(source, name=name_of(source))],
            np.concatenate([fit.inputs, held_out.inputs]),
            settings=settings,
            observers=[Beginning(importances, fit.n_token), Beginning(router, fit.n_token), sampler],
            on_weights=judge,
            hold_down=prior > 0,
            progress=progress,
        )
    hparams = source.hparams
    order = {qtype.name: index for index, qtype in enumerate(qtypes)}
    return ErrorReport(
        model=model,
        n_layer=hparams.n_layer,
        n_expert=hparams.n_expert,
        n_expert_used=hparams.n_expert_used,
        qtypes=tuple(order),
        rows=tuple(sorted(rows, key=lambda row: (order[row.qtype], row.bid or 0))),
        n_fit=fit.n_token,
        n_held_out=held_out.n_token,
        routing=_routing(router.load) if hparams.n_expert else (),
        facts=_facts(fit, held_out, prior, n_judged, settings),
    )


def is_judged(spec: TensorSpec) -> bool:
    """The matrices of a layer that llama-quantize quantizes: not norms, biases and routers."""
    return (
        re.fullmatch(r"blk\.\d+\.(attn|ffn)_\w+\.weight", spec.name) is not None
        and len(spec.shape) > 1
        and "ffn_gate_inp" not in spec.name
    )


def _routing(load: RouterLoad) -> tuple[LayerRouting, ...]:
    return tuple(
        LayerRouting(entropy, tuple(map(tuple, pairs)))
        for entropy, pairs in zip(load.entropy.tolist(), load.pairs.tolist(), strict=True)
    )


def _refuse_non_finite(spec: TensorSpec, xid: int, weights: Array) -> None:
    """The pass itself does not notice it where no token reaches the expert."""
    if first_non_finite(weights) is not None:
        place = f" of expert {xid}" if len(spec.shape) > 2 else ""
        raise CheckpointError(
            f"{spec.name}: a weight{place} is not a finite number; the checkpoint is damaged"
        )


def _compile_kernels(
    source: TensorSource, qtypes: Sequence[QType], baseline: bool, progress: OnProgress
) -> None:
    wanted = {
        (NUMPY_TYPES.get(spec.qtype, np.dtype(np.float32)), fallback(spec, qtype), known)
        for spec in source.specs()
        if is_judged(spec)
        for qtype in qtypes
        for known in ((True, False) if baseline else (True,))
    }
    compile_kernels(sorted(wanted, key=str), progress)


@dataclass(frozen=True)
class _Variant:
    """One way to encode a matrix."""

    qtype: QType
    weighted: bool


def _judge(
    pool: ThreadPoolExecutor,
    spec: TensorSpec,
    xid: int,
    weights: Array,
    seen: Seen,
    importance: Array | None,
    prior: float,
    qtypes: Sequence[QType],
    baseline: bool,
) -> list[MatrixErrors]:
    """The lines of one matrix; it is worked on some rows at a time, each with all types."""

    def variant(qtype: QType, *, weighted: bool) -> _Variant:
        useful = weighted and importance is not None and block_format(qtype).uses_importance
        return _Variant(qtype, useful)

    taken = {qtype: fallback(spec, qtype) for qtype in qtypes}
    fitted = {qtype: variant(taken[qtype], weighted=True) for qtype in qtypes}
    plain = {qtype: variant(taken[qtype], weighted=False) for qtype in qtypes}
    variants = list(dict.fromkeys([*fitted.values(), *(plain.values() if baseline else ())]))
    step = max(1, SLAB_WEIGHTS // spec.n_per_row)
    slabs = [weights[row : row + step] for row in range(0, spec.n_row, step)]
    sums = {one: (WeightSums(spec.n_per_row), OutputSums(len(seen.kept))) for one in variants}
    work = partial(_judge_slab, variants=variants, importance=importance, kept=seen.kept)
    for found in pool.map(work, slabs):
        for one, (of_weights, of_output) in zip(variants, found, strict=True):
            sums[one][0].merge(of_weights)
            sums[one][1].merge(of_output)

    known = importance if seen.n_tokens or prior > 0 else None  # llama.cpp's ones are not knowledge
    errors = {
        one: replace(of_weights.errors(known), nmse=of_output.nmse(), cosine=of_output.cosine())
        if len(seen.kept)
        else of_weights.errors(known)
        for one, (of_weights, of_output) in sums.items()
    }
    return [
        MatrixErrors(
            name=spec.name,
            xid=xid if len(spec.shape) > 2 else None,
            qtype=qtype.name,
            n_elements=weights.size,
            n_bytes=row_bytes(taken[qtype], spec.n_per_row) * spec.n_row,
            n_tokens=seen.n_tokens,
            n_effective=seen.n_effective,
            n_held_out=seen.n_held_out,
            n_judged=len(seen.kept),
            errors=errors[fitted[qtype]],
            plain=errors[plain[qtype]] if baseline and plain[qtype] != fitted[qtype] else None,
            fallback=None if taken[qtype] == qtype else taken[qtype].name,
        )
        for qtype in qtypes
    ]


def _judge_slab(
    weights: Array, *, variants: Sequence[_Variant], importance: Array | None, kept: Tensor
) -> list[tuple[WeightSums, OutputSums]]:
    """Some rows [n, n_per_row] of a matrix, as read, against themselves in each variant."""
    wide = _to_f32(weights)
    n_per_row = wide.shape[1]
    found = []
    with torch.inference_mode():  # a setting of the thread
        output = _product(kept, wide)
        for one in variants:
            blocks = encode(weights, one.qtype, importance if one.weighted else None)
            difference = wide - decode(blocks, one.qtype, n_per_row)
            of_weights, of_output = WeightSums(n_per_row), OutputSums(len(kept))
            of_weights.add(wide, difference)
            of_output.add(output, _product(kept, difference))
            found.append((of_weights, of_output))
    return found


def _product(x: Tensor, weights: Array) -> Array:
    """x [t, n_per_row] times weights [n, n_per_row] -> float32 [t, n]."""
    y = functional.linear(x, torch.from_numpy(weights).to(x.device, x.dtype))
    product: Array = y.float().cpu().numpy()
    return product


def _to_f32(weights: Array) -> Array:
    if weights.dtype == np.uint16:  # the bits of bfloat16 are the upper half of those of float32
        return np.left_shift(weights, np.uint32(16), dtype=np.uint32).view(np.float32)
    return np.asarray(weights, np.float32)


def _facts(
    fit: Chunks, held_out: Chunks, prior: float, n_judged: int, settings: ForwardSettings
) -> tuple[tuple[str, str], ...]:
    """How it was measured, in words; of a path only the file's name, since reports are published."""

    def told(chunks: Chunks) -> str:
        names = " + ".join(Path(name).name for name in chunks.names)
        return f"{names}: {chunks.n_token:,} tokens in {chunks.n_chunk:,} chunks of {chunks.n_ctx}"

    def name_of_dtype(dtype: torch.dtype) -> str:
        return str(dtype).removeprefix("torch.")

    same = fit.names == held_out.names
    try:
        own = version("moe-gguf")
    except PackageNotFoundError:
        own = "not installed"
    return (
        ("importances fitted on", told(fit)),
        ("output errors judged on", told(held_out) + (", held out of the same text" if same else "")),
        ("activations judged", f"at most {n_judged:,} rows for each matrix, spread over the held-out text"),
        (
            "importances of rare experts",
            f"drawn toward their layer's mean with the weight of {prior:g} tokens"
            if prior
            else "taken as they are",
        ),
        ("matrix products", f"{name_of_dtype(settings.dtype)} on {settings.device}"),
        ("hidden states", name_of_dtype(settings.hidden_dtype)),
        ("versions", f"moe-gguf {own}, torch {torch.__version__}, numpy {np.__version__}"),
    )
