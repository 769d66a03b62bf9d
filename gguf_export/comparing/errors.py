"""The errors of every matrix of a model in each type, as one call: the model is opened, the text cut, the pass run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from calibration.forward.settings import ForwardSettings
from calibration.judging.encoding_errors import ErrorSettings
from calibration.judging.held_out import hold_out, spread
from calibration.judging.matrix_errors import ErrorReport
from calibration.judging.output_error import measure_errors
from calibration.text.chunks import Chunks
from calibration.text.text_settings import TextSettings, cut_text
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
        note: is given remarks, one by one.

    Raises:
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
    report = measure_errors(
        source,
        fit,
        judged,
        settings,
        model=label(Path(model).resolve().name),
        forward_settings=forward,
        engine=engine,
        progress=progress,
    )
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
