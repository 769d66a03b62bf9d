"""The errors of every matrix of a model in each type, as one call: the model is opened, the text cut, the pass run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from calibration.forward.settings import ForwardSettings, best_dtype
from calibration.judging.encoding_errors import ErrorSettings
from calibration.judging.error_shares import fit_shares, fitted_of
from calibration.judging.held_out import hold_out, spread
from calibration.judging.matrix_errors import ErrorReport
from calibration.judging.output_error import measure_errors
from calibration.text.chunks import Chunks
from calibration.text.text_settings import TextSettings, cut_text
from gguf_export.writing.spread_text import spread_encoding, spread_shares
from quantize.containers.untrusted import label
from quantize.engine import Engine
from quantize.exceptions import TextError
from quantize.sources.model_source import ModelFile, open_source
from quantize.telling import Note, OnProgress, discard, silent

__all__ = ["cut_fit_and_held_out", "errors"]


def errors(
    model: str | Path,
    text: TextSettings | str | Path,
    types: ErrorSettings | str | Sequence[str],
    *,
    held_out: Sequence[Path] = (),
    forward: ForwardSettings | None = None,
    engine: Engine | None = None,
    ray: str | None = None,
    progress: OnProgress = silent,
    note: Note = discard,
) -> ErrorReport:
    """Measure what each type costs every layer, projection and expert of a model, on text that is held out.

    Args:
        model: the folder of a checkpoint, or a GGUF file.
        text: the calibration text: a file, or `TextSettings`.
        types: tensor types and file types by name; or `ErrorSettings`, which also say how they are measured.
        held_out: text files to judge on, of which as many chunks are taken as of `text`, evenly spread; by default
            every fifth chunk of `text` is held out.
        forward, engine, progress: see `measure_errors`.
        ray: the address of a Ray cluster, "local" for one of this machine (see `cluster.connection.connected`): shares
            of the text to fit on are spread over its nodes, and then the encodings, while the held-out text runs
            through the model here. The figures are the same whatever nodes there are, and differ from those of a run
            without by rounding.
        note: is given remarks, one by one.

    Raises:
        ChoiceError: the cluster cannot be reached, or does not work.
        TextError: there is no text, or it is too short.
        ModelChangedError: a file of the model changed while it was read.
        MoeGgufError: see `open_source` and `measure_errors`.

    >>> report = errors(demo_model, TextSettings((text,), n_ctx=128, n_chunk=5), ["Q4_K"])
    >>> len(report.rows), report.qtypes
    (48, ('Q4_K',))
    """
    types = [types] if isinstance(types, str) else types
    settings = types if isinstance(types, ErrorSettings) else ErrorSettings.of(types)
    text = TextSettings.of(text)
    source = open_source(model)
    fit, judged = cut_fit_and_held_out(source, text, held_out)
    measure = partial(
        measure_errors,
        source,
        fit,
        judged,
        settings,
        model=label(Path(model).resolve().name),
        progress=progress,
    )
    if ray is None:
        report = measure(forward_settings=forward, engine=engine)
    else:
        forward = forward or ForwardSettings(dtype=best_dtype())
        work = partial(fit_shares, source, fit, settings=forward, prior=settings.prior)
        with spread_encoding(ray, note) as nodes:
            fitted = fitted_of(fit, spread_shares(ray, work, [fit], progress=progress, note=note))
            report = measure(fitted=fitted, forward_settings=forward, engine=nodes)
    source.refuse_changed()
    return report


def cut_fit_and_held_out(
    source: ModelFile, text: TextSettings, held_out: Sequence[Path]
) -> tuple[Chunks, Chunks]:
    """The chunks to fit on and those to judge on.

    Raises:
        TextError: there is no text, or it is too short.
    """
    if not text.is_given:
        raise TextError("", "there is no calibration text", "give one")
    fit = cut_text(source, text)
    if not held_out:
        return hold_out(fit)
    judged = cut_text(source, replace(text, paths=tuple(held_out), prompts=(), n_chunk=None))
    return fit, spread(judged, text.n_chunk)
