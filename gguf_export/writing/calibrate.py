"""Calibration text runs through a model, and what each expert saw is kept in an importance matrix."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from calibration.forward.settings import ForwardSettings, best_dtype
from calibration.importance.observers import Collected, collect_imatrix
from calibration.text.text_settings import TextSettings, cut_text
from gguf_export.files.outputs import refuse_existing, refuse_outputs
from gguf_export.writing import fingerprint
from gguf_export.writing.importances import write_imatrix
from gguf_export.writing.spread_text import spread_imatrix
from gguf_export.writing.state_file import StateFile, discard_older, state_path, working_files
from quantize.exceptions import OutputExistsError
from quantize.sources.checkpoint_files import files_of_model
from quantize.sources.model_source import open_source
from quantize.telling import Note, OnProgress, discard, silent

__all__ = ["calibrate"]


def calibrate(
    model: Path | str,
    text: TextSettings | Path | str,
    output: Path | str | None = None,
    *,
    process_output: bool = False,
    forward: ForwardSettings | None = None,
    force: bool = False,
    restart: bool = False,
    ray: str | None = None,
    progress: OnProgress = silent,
    note: Note = discard,
) -> Collected:
    """Run a text through a model and collect llama.cpp's importance matrix.

    Args:
        model: the folder of a checkpoint, or a GGUF file.
        text: a file, or `TextSettings`.
        output: the file that is written, in the legacy form where its name ends in .dat; a run that was stopped goes
            on behind the last layer whose state it kept beside it. None writes nothing.
        process_output: collect output.weight, too.
        forward: how the text passes through the model; by default bfloat16 products where the CPU has them.
        force: replace a file that exists.
        restart: use nothing of an earlier run that was stopped.
        ray: the address of a Ray cluster over which the shares of the text are spread, "local" for one of this machine
            (see `cluster.connection.connected`); such a run keeps no state. The sums are the same whatever nodes there
            are, and differ from those of a run without by rounding.
        progress: told the tokens that are through.
        note: given remarks on what is continued or kept.

    Returns:
        The importances, the tokens that each expert got, and the seconds.

    Raises:
        ChoiceError: the cluster cannot be reached, or does not work.
        OutputError: the file exists (`OutputExistsError`) or cannot be written.
        TextError, TokenizerError: the text cannot be used.
        ActivationError, CheckpointError, GGUFError: the model is damaged.
        ModelChangedError: a file of the model changed while it was read.

    >>> collected = calibrate(demo_model, TextSettings((text,), n_chunk=2))
    >>> collected.load.n_token
    1024
    """
    path = None if output is None else Path(output)
    text = TextSettings.of(text)
    if path is not None:
        try:
            refuse_outputs(
                [path],
                force=force,
                own=working_files(state_path(path)),
                inputs=[*files_of_model(Path(model)), *text.files],
            )
        except OutputExistsError:
            discard_older(path)
            raise
    source = open_source(model)
    chunks = cut_text(source, text)
    settings = forward or ForwardSettings(dtype=best_dtype())
    with ExitStack() as stack:
        keeper = None
        if path is not None:
            prints = fingerprint.of_pass([chunks], settings) | {
                "checkpoint": source.fingerprint(),
                "choice of tensors": "with output.weight" if process_output else "",
            }
            keeper = stack.enter_context(
                StateFile(state_path(path), path.name, prints, restart=restart, note=note)
            )
            if not force:
                refuse_existing([path])  # another run may have ended before the lock was ours
        if ray is not None:
            collected = spread_imatrix(
                ray, source, chunks, settings, process_output=process_output, progress=progress, note=note
            )
        else:
            collected = collect_imatrix(
                source,
                chunks,
                process_output=process_output,
                settings=settings,
                keeper=keeper,
                progress=progress,
            )
        source.refuse_changed()
        if path is not None:
            write_imatrix(path, collected.imatrix)
    return collected
