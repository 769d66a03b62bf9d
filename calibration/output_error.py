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

from calibration.forward import Observer, Stream, forward
from calibration.hidden import Storage
from calibration.model import Arithmetic, Routing, best_dtype
from calibration.observers import ImatrixObserver
from calibration.text import Chunks
from quantize.blocks import block_format
from quantize.encode import compile_kernels, decode, encode, first_non_finite, row_bytes
from quantize.errors import ErrorReport, MatrixErrors, OutputSums, WeightSums
from quantize.exceptions import CheckpointError, TextError
from quantize.progress import Report, silent
from quantize.recipe import fallback
from quantize.tensors import NUMPY_TYPES, Array, QType, TensorSource, TensorSpec

__all__ = ["N_JUDGED", "hold_out", "measure_errors"]

N_JUDGED = 1024
"""Rows of held-out activations that are kept for each matrix; their outputs have n_row times as many numbers."""

HOLD_OUT_EVERY = 5
SLAB_WEIGHTS = 1 << 21  # weights of a matrix that one thread works on at a time


def hold_out(chunks: Chunks, every: int = HOLD_OUT_EVERY) -> tuple[Chunks, Chunks]:
    """Part a text: every fifth chunk (of less, the last) is held out, so that both parts hold all its passages.

    Returns the chunks to fit on and those to judge on.

    Raises:
        TextError: there are not two chunks.
    """
    if chunks.n_chunk < 2:
        raise TextError(
            f"{' + '.join(chunks.names)}: one chunk of {chunks.n_ctx} tokens is too little, a part of the text must "
            "be held out; give more text, or another one to judge on"
        )
    judged = np.arange(chunks.n_chunk) % every == every - 1
    judged[-1] |= not judged.any()
    return (
        Chunks(chunks.names, chunks.tokens[~judged], chunks.bos_id),
        Chunks(chunks.names, chunks.tokens[judged], chunks.bos_id),
    )


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
    arithmetic: Arithmetic | None = None,
    storage: Storage | None = None,
    jobs: int | None = None,
    report: Report = silent,
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
        arithmetic: see `forward`; default bfloat16 products where the CPU has them.
        storage: see `forward`.
        jobs: threads that encode, by default one for each processor.
        report: told the tokens that are through.

    Raises:
        TextError: the chunks of the texts differ in length.
        ActivationError, CheckpointError, TokenizerError: see `forward`; a weight that is not finite.
        RecipeError: a type that cannot be written.
    """
    if fit.n_ctx != held_out.n_ctx:
        raise TextError(f"chunks of {fit.n_ctx} and of {held_out.n_ctx} tokens cannot run side by side")
    arithmetic = arithmetic or Arithmetic(dtype=best_dtype())
    importances = ImatrixObserver(fit, prior=prior)
    sampler = _Sampler(fit.n_token, held_out.n_token, n_judged, arithmetic)
    qtypes = tuple(dict.fromkeys(qtypes))
    rows: list[MatrixErrors] = []
    _compile_kernels(source, qtypes, baseline, report)
    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:

        def judge(spec: TensorSpec, xid: int, weights: Array) -> None:
            if not _is_judged(spec):
                return
            _refuse_non_finite(spec, xid, weights)
            seen = sampler.take(spec, xid)
            importance = importances.imatrix.importance(spec.name, xid)
            rows.extend(_judge(pool, spec, xid, weights, seen, importance, prior, qtypes, baseline))

        forward(
            [Stream(source)],
            np.concatenate([fit.inputs, held_out.inputs]),
            arithmetic=arithmetic,
            storage=storage,
            observers=[_Beginning(importances, fit.n_token), sampler],
            on_weights=judge,
            hold_down=prior > 0,
            report=report,
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
        facts=_facts(fit, held_out, prior, n_judged, arithmetic),
    )


def _is_judged(spec: TensorSpec) -> bool:
    """The matrices of a layer that llama-quantize quantizes: not norms, biases and routers."""
    return (
        re.fullmatch(r"blk\.\d+\.(attn|ffn)_\w+\.weight", spec.name) is not None
        and len(spec.shape) > 1
        and "ffn_gate_inp" not in spec.name
    )


def _refuse_non_finite(spec: TensorSpec, xid: int, weights: Array) -> None:
    """The pass itself does not notice it where no token reaches the expert."""
    if first_non_finite(weights) is not None:
        place = f" of expert {xid}" if len(spec.shape) > 2 else ""
        raise CheckpointError(
            f"{spec.name}: a weight{place} is not a finite number; the checkpoint is damaged"
        )


def _compile_kernels(source: TensorSource, qtypes: Sequence[QType], baseline: bool, report: Report) -> None:
    wanted = {
        (NUMPY_TYPES.get(spec.qtype, np.dtype(np.float32)), fallback(spec, qtype), known)
        for spec in source.specs()
        if _is_judged(spec)
        for qtype in qtypes
        for known in ((True, False) if baseline else (True,))
    }
    compile_kernels(sorted(wanted, key=str), report)


class _Beginning(Observer):
    """Lets another observer see the first tokens only."""

    def __init__(self, inner: Observer, n_token: int) -> None:
        self._inner = inner
        self._n_token = n_token

    def inputs(self, stream: int, specs: Sequence[TensorSpec], xid: int, tokens: Tensor, x: Tensor) -> None:
        first = tokens < self._n_token
        if first.any():
            self._inner.inputs(stream, specs, xid, tokens[first], x[first.to(x.device)])

    def routed(self, stream: int, bid: int, tokens: Tensor, routing: Routing) -> None:
        first = tokens < self._n_token
        if first.any():
            here = first.to(routing.ids.device)
            parts = Routing(routing.ids[here], routing.weights[here], routing.probs[here])
            self._inner.routed(stream, bid, tokens[first], parts)


@dataclass
class _Seen:
    """The inputs of one matrix (or of several that share them): what was counted, and what was kept."""

    kept: Tensor  # [at most n_judged, n_per_row]
    n_tokens: int = 0
    n_held_out: int = 0
    n_kept: int = 0
    strength: float = 0.0  # Σ |x|² over the fitted tokens
    strength2: float = 0.0  # Σ |x|⁴

    @property
    def n_effective(self) -> float:
        """Kish's effective number of tokens behind the importances: as many of equal |x|² would tell as much."""
        return self.strength**2 / self.strength2 if self.strength2 > 0 else 0.0


class _Sampler(Observer):
    """Keeps, for each matrix, some rows of its held-out inputs, spread evenly over those that reach it."""

    def __init__(self, n_fit: int, n_held_out: int, limit: int, arithmetic: Arithmetic) -> None:
        self._n_fit = n_fit
        self._n_held_out = n_held_out
        self._limit = limit
        self._arithmetic = arithmetic
        self._seen: dict[tuple[str, int], _Seen] = {}
        self._bid = -1
        self._n_routed: list[int] = []  # held-out tokens that go to each expert of layer `_bid`

    def routed(self, stream: int, bid: int, tokens: Tensor, routing: Routing) -> None:
        n_expert = routing.probs.shape[-1]
        ids = routing.ids[(tokens >= self._n_fit).to(routing.ids.device)].reshape(-1)
        counts = torch.bincount(ids.cpu(), minlength=n_expert).tolist()
        if bid != self._bid:
            self._bid, self._n_routed = bid, [0] * n_expert
        self._n_routed = [a + b for a, b in zip(self._n_routed, counts, strict=True)]

    def inputs(self, stream: int, specs: Sequence[TensorSpec], xid: int, tokens: Tensor, x: Tensor) -> None:
        wanted = [spec for spec in specs if _is_judged(spec)]
        if not wanted:
            return
        n_coming = self._n_routed[xid] if len(wanted[0].shape) > 2 else self._n_held_out
        seen = self._seen.get((wanted[0].name, xid))
        if seen is None:
            shape = (min(n_coming, self._limit), wanted[0].n_per_row)
            kept = torch.empty(shape, dtype=self._arithmetic.dtype, device=self._arithmetic.device)
            seen = _Seen(kept)
            self._seen |= {(spec.name, xid): seen for spec in wanted}
        n_fit = int((tokens < self._n_fit).sum())  # they come first
        strength = x[:n_fit].double().square().sum(dim=1)
        seen.n_tokens += n_fit
        seen.strength += float(strength.sum())
        seen.strength2 += float(strength.square().sum())
        held_out = x[n_fit:]
        ranks = torch.arange(seen.n_held_out, seen.n_held_out + len(held_out))
        seen.n_held_out += len(held_out)
        if n_coming > self._limit:
            ranks = ranks[(ranks + 1) * self._limit // n_coming > ranks * self._limit // n_coming]
        chosen = held_out[(ranks - (seen.n_held_out - len(held_out))).to(x.device)]
        seen.kept[seen.n_kept : seen.n_kept + len(chosen)] = chosen
        seen.n_kept += len(chosen)

    def take(self, spec: TensorSpec, xid: int) -> _Seen:
        """What was seen of a matrix; it is forgotten here."""
        return self._seen.pop((spec.name, xid), None) or _Seen(torch.empty(0, spec.n_per_row))


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
    seen: _Seen,
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
    fit: Chunks, held_out: Chunks, prior: float, n_judged: int, arithmetic: Arithmetic
) -> tuple[tuple[str, str], ...]:
    """How it was measured, in words; of a path only the file's name, since reports are published."""

    def told(chunks: Chunks) -> str:
        names = " + ".join(Path(name).name for name in chunks.names)
        return f"{names}: {chunks.n_token:,} tokens in {chunks.n_chunk:,} chunks of {chunks.n_ctx}"

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
        ("matrix products", f"{str(arithmetic.dtype).removeprefix('torch.')} on {arithmetic.device}"),
        ("versions", f"moe-gguf {own}, torch {torch.__version__}, numpy {np.__version__}"),
    )
