"""The error that each type makes in each expert's output, judged on text that the importances have not seen.

One pass over the weights: the text to fit on and the text to judge on run through the model together; the first gives
the importances, of the second some activations are kept. When all inputs of a matrix have passed, and while its weights
are still in memory, it is encoded and decoded as every type that was asked for, and the kept activations are multiplied
with the difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from calibration.forward.run import forward
from calibration.forward.settings import ForwardSettings, best_dtype
from calibration.forward.streams import Given, Stream
from calibration.importance.imatrix import Imatrix
from calibration.importance.observers import ImatrixObserver, RouterLoad, RouterObserver
from calibration.judging.encoding_errors import ErrorSettings, JudgedMatrix, TypesOf, measure_matrix
from calibration.judging.held_out import FirstTokens, HeldOutSampler, InputSample
from calibration.judging.matrix_errors import ErrorReport, LayerRouting, MatrixErrors
from calibration.text.chunks import Chunks
from quantize.compiling import compile_kernels
from quantize.engine import Engine, Threads
from quantize.exceptions import TextError
from quantize.families.roles import is_layer_matrix, is_router
from quantize.finite import refuse_non_finite
from quantize.sources.model_source import ModelSource
from quantize.telling import OnProgress, silent
from quantize.tensors import NUMPY_TYPES, Array, TensorSpec

__all__ = ["Fitted", "is_judged", "measure_errors"]


@dataclass(frozen=True)
class Fitted:
    """What passes over the text to fit on have found.

    Importances, where the router sent the tokens, and those that reached each matrix (name, xid).
    """

    imatrix: Imatrix
    load: RouterLoad
    counted: Mapping[tuple[str, int], InputSample]


def measure_errors(
    source: ModelSource,
    fit: Chunks,
    held_out: Chunks,
    settings: ErrorSettings,
    *,
    fitted: Fitted | None = None,
    model: str = "",
    forward_settings: ForwardSettings | None = None,
    engine: Engine | None = None,
    progress: OnProgress = silent,
) -> ErrorReport:
    """Measure what each type does to each matrix of attention and feed-forward, expert by expert.

    The activations are those of the unquantized model: every error is the matrix's own, none is handed down.

    Args:
        source: the model.
        fit: the text that the importances are fitted on.
        held_out: the text that the output errors are measured on, in chunks of the same length (see `hold_out`).
        settings: the types, and how they are measured.
        fitted: what is known of the text to fit on; by default it runs through the model beside the other one.
        model: its name, for the reader.
        forward_settings: see `forward`; default bfloat16 products where the CPU has them.
        engine: encodes; by default a thread for each processor. The figures do not depend on it.
        progress: told the tokens that are through.

    Raises:
        TextError: the chunks of the texts differ in length.
        NotFiniteError: a weight is NaN or infinity.
        ActivationError, CheckpointError, TokenizerError: see `forward`.
        RecipeError: a type that cannot be written.
    """
    if fit.n_ctx != held_out.n_ctx:
        message = f"chunks of {fit.n_ctx} and of {held_out.n_ctx} tokens cannot run side by side"
        raise TextError(", ".join(held_out.names), message)
    forward_settings = forward_settings or ForwardSettings(dtype=best_dtype())
    importances = ImatrixObserver(fit, prior=settings.prior)
    router = RouterObserver(source.hparams)
    n_fit = 0 if fitted else fit.n_token
    sampler = HeldOutSampler(is_judged, n_fit, held_out.n_token, settings.n_judged, forward_settings)
    imatrix, load = (fitted.imatrix, fitted.load) if fitted else (importances.imatrix, router.load)
    rows: list[MatrixErrors] = []
    types = settings.types(source)
    if settings.stored is None:
        _compile_kernels(source, settings, types, progress)
    with nullcontext(engine) if engine is not None else Threads() as workers:

        def judge(spec: TensorSpec, xid: int, weights: Array, given: Given) -> None:
            if not is_judged(spec):
                return
            # The pass itself does not notice it where no token reaches the expert.
            refuse_non_finite(spec, xid, (0, spec.n_row), weights)
            sample = given[sampler]
            if fitted and (spec.name, xid) in fitted.counted:
                sample = replace(sample)  # matrices with the same inputs have one in common
                sample.add(fitted.counted[spec.name, xid])
            matrix = JudgedMatrix(spec, xid, weights, imatrix.importance(spec.name, xid), sample)
            rows.extend(measure_matrix(workers, matrix, settings, types))

        forward(
            [Stream(source, name=source.label)],
            np.concatenate([fit.inputs[: n_fit // fit.n_ctx], held_out.inputs]),
            settings=forward_settings,
            observers=[FirstTokens(importances, n_fit), FirstTokens(router, n_fit), sampler],
            on_weights=judge,
            hold_down=settings.prior > 0,
            progress=progress,
        )
    hparams = source.hparams
    order = {qtype.name: index for index, qtype in enumerate(settings.qtypes)}
    return ErrorReport(
        model=model,
        n_layer=hparams.n_layer,
        n_expert=hparams.n_expert,
        n_expert_used=hparams.n_expert_used,
        qtypes=tuple(order),
        rows=tuple(sorted(rows, key=lambda row: (order[row.qtype], row.bid or 0))),
        n_fit=fit.n_token,
        n_held_out=held_out.n_token,
        routing=_routing(load) if hparams.n_expert else (),
        facts=_protocol(fit, held_out, settings, forward_settings),
    )


def is_judged(spec: TensorSpec) -> bool:
    """Whether a type can be chosen for the matrix: llama-quantize leaves routers as they are."""
    return is_layer_matrix(spec) and not is_router(spec)


def _routing(load: RouterLoad) -> tuple[LayerRouting, ...]:
    return tuple(
        LayerRouting(entropy, tuple(map(tuple, pairs)))
        for entropy, pairs in zip(load.entropy.tolist(), load.pairs.tolist(), strict=True)
    )


def _compile_kernels(
    source: ModelSource, settings: ErrorSettings, types: Mapping[str, TypesOf], progress: OnProgress
) -> None:
    """Compile every encoder that the pass will use."""
    encoders = {
        (NUMPY_TYPES.get(spec.qtype, np.dtype(np.float32)), types_of[spec.name].actual, is_weighted)
        for spec in source.specs()
        if is_judged(spec)
        for types_of in types.values()
        for is_weighted in ((True, False) if settings.baseline else (True,))
    }
    compile_kernels(sorted(encoders, key=str), progress)


def _protocol(
    fit: Chunks, held_out: Chunks, settings: ErrorSettings, forward_settings: ForwardSettings
) -> tuple[tuple[str, str], ...]:
    """How it was measured, in words; of a path only the file's name, since reports are published."""
    is_one_text = fit.names == held_out.names
    try:
        own_version = version("moe-gguf")
    except PackageNotFoundError:
        own_version = "not installed"
    is_stored = settings.stored is not None
    return (
        *((("blocks", "those of the finished files"),) if is_stored else ()),
        ("tokens counted on" if is_stored else "importances fitted on", _text_in_words(fit)),
        (
            "output errors judged on",
            _text_in_words(held_out) + (", held out of the same text" if is_one_text else ""),
        ),
        (
            "activations judged",
            f"at most {settings.n_judged:,} rows for each matrix, spread over the held-out text",
        ),
        (
            "importances of rare experts",
            f"drawn toward their layer's mean with the weight of {settings.prior:g} tokens"
            if settings.prior
            else "taken as they are",
        ),
        ("matrix products", f"{_name_of_dtype(forward_settings.dtype)} on {forward_settings.device}"),
        ("hidden states", _name_of_dtype(forward_settings.hidden_dtype)),
        ("versions", f"moe-gguf {own_version}, torch {torch.__version__}, numpy {np.__version__}"),
    )


def _text_in_words(chunks: Chunks) -> str:
    names = " + ".join(Path(name).name for name in chunks.names)
    return f"{names}: {chunks.n_token:,} tokens in {chunks.n_chunk:,} chunks of {chunks.n_ctx}"


def _name_of_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
