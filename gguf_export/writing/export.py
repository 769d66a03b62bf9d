"""One read of a model becomes one or several GGUF files: `export`, and `plan`, which says what it would do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration.importance.imatrix import Imatrix
from calibration.importance.imatrix_files import imatrix_bytes
from gguf_export.cluster.connection import refuse_unreachable
from gguf_export.metadata.file_names import retyped
from gguf_export.writing.job import ExportJob, prepare
from gguf_export.writing.remarks import export_remarks
from gguf_export.writing.request import Request
from gguf_export.writing.results import ExportPlan, ExportResult, FileFigures, file_figures
from gguf_export.writing.run import run
from quantize.engine import Engine
from quantize.exceptions import RecipeError
from quantize.recipes.recipe import Recipe
from quantize.telling import Note, OnProgress, discard, silent
from quantize.tracing import span

if TYPE_CHECKING:  # these import torch, and an export without text needs no torch
    from calibration.forward.settings import ForwardSettings
    from calibration.text.text_settings import TextSettings

__all__ = [
    "ExportJob",
    "ExportPlan",
    "ExportResult",
    "FileFigures",
    "export",
    "imatrix_path",
    "plan",
    "prepare",
    "run",
]


def export(
    model: Path | str,
    types: str | Sequence[str | Recipe],
    folder: Path | str | None = None,
    *,
    imatrix: Imatrix | Path | str | None = None,
    prior: float = 0.0,
    text: TextSettings | Path | str | None = None,
    forward: ForwardSettings | None = None,
    save_imatrix: Path | None = None,
    name: str | None = None,
    override_kv: Sequence[str] = (),
    pre: str | None = None,
    lmstudio: bool = False,
    publisher: str | None = None,
    allow_requantize: bool = False,
    include_weights: Sequence[str] = (),
    exclude_weights: Sequence[str] = (),
    prune_layers: Sequence[int] = (),
    file: Path | str | None = None,
    split_max_size: str | None = None,
    split_max_tensors: int | None = None,
    keep_split: bool = False,
    split_folders: bool = False,
    feedback: bool = False,
    chat_template: str | None = None,
    jobs: int | None = None,
    engine: Engine | None = None,
    ray: str | None = None,
    force: bool = False,
    skip_existing: bool = False,
    restart: bool = False,
    progress: OnProgress = silent,
    note: Note = discard,
) -> ExportResult:
    """Quantize a model to one GGUF file for each file type, from one read of its weights.

    A file that is there already and is what would be made is left as it is: keys, types, length and some rows of each
    tensor are compared, and of texts whether they are older. Another one is refused.

    Args:
        model: the folder of a Hugging Face checkpoint, or a GGUF file of any architecture, whose files become
            llama-quantize's.
        types: the name of a file type such as "Q4_K_M", or several names; recipes where names do not suffice.
        folder: where the files go; by default the current folder, or LM Studio's with `lmstudio`.
        imatrix: importances, or the file that holds them.
        prior: draws an expert's importances toward its layer's mean with the weight of so many tokens.
        text: calibrate with this text on the way, from the same read; a file, or `TextSettings`.
        forward: how the text passes through the model.
        save_imatrix: keep the importances that the text gave in this file.
        name: `general.name`, and the base of the file names; by default found as llama.cpp's converter finds it, and
            of a GGUF file that which it has.
        override_kv: metadata to set, spelled KEY=TYPE:VALUE as llama-quantize takes it.
        pre: name of the pre-tokenizer, where it is not recognised.
        lmstudio: put the files where LM Studio looks: `folder/publisher/model/file.gguf`.
        publisher: by default from config.json.
        allow_requantize: quantize again what a GGUF file holds quantized, which adds one loss to the other.
        include_weights: use importances only of tensors whose name contains one of these texts.
        exclude_weights: use no importances of tensors whose name contains one of these texts.
        prune_layers: leave these layers out; those behind them get new numbers.
        file: the path of the one file, in the place of a name in `folder`.
        split_max_size: cut each file into parts whose tensors take no more than so much, such as "500M" or "4G", in
            units of 1000; the parts are those of llama-gguf-split.
        split_max_tensors: cut each file into parts of so many tensors.
        keep_split: cut each file as the GGUF file is cut that it is made of.
        split_folders: put the parts of a file into a folder of its name; a file that needs one part is not cut.
        feedback: choose the codes so that errors make up for each other on the text, in the same formats; the file is
            judged on a part of the text, and made plainly where that is better. One type at a time.
        chat_template: a file of Jinja, `donor:N` (of expert N in mergekit_moe_config.yml), a name such as "chatml"
            (`calibration.chat.named.template_names`), "none", or "as-is", the model's own unchecked; by default the
            model's own. Dialogues in the text are written with it, too.
        jobs: threads that read, encode and write; by default one for each processor.
        engine: reads and encodes in the place of threads, where there is no text.
        ray: the address of a Ray cluster whose nodes read, encode and write, where there is no text: "10.0.0.1:6379",
            "auto" for the one that runs here, "local" for one of this machine alone.
        force: replace files that exist.
        skip_existing: leave files that exist, whatever they are, and make the others.
        restart: use nothing of an earlier run that was stopped.
        progress: called with the progress in bytes of the model, or in tokens of the text.
        note: given remarks on fallbacks, and on what is continued or kept.

    Raises:
        RecipeError: a setting means nothing beside the others.
        ChoiceError: the Ray cluster cannot be reached, or its nodes have other versions.
        TokenizerError: the chat template does not work in llama.cpp.
        MoeGgufError: see `prepare`, `run` and `run_calibrated`.

    >>> made = export(demo_model, "Q4_K_M", folder)
    >>> made.files[0].path.name, made.files[0].ftype
    ('Demo-4x2.0M-Q4_K_M.gguf', 'Q4_K_M')
    """
    request = Request(
        model=model,
        types=types,
        folder=folder,
        imatrix=imatrix,
        prior=prior,
        text=text,
        forward=forward,
        save_imatrix=save_imatrix,
        name=name,
        override_kv=override_kv,
        pre=pre,
        lmstudio=lmstudio,
        publisher=publisher,
        allow_requantize=allow_requantize,
        include_weights=include_weights,
        exclude_weights=exclude_weights,
        prune_layers=prune_layers,
        file=file,
        split_max_size=split_max_size,
        split_max_tensors=split_max_tensors,
        keep_split=keep_split,
        split_folders=split_folders,
        feedback=feedback,
        chat_template=chat_template,
    )
    if force and skip_existing:
        raise RecipeError(
            "skip_existing", "means nothing where files are replaced", "leave {setting} out", setting="force"
        )
    _refuse_engines(ray, text, engine)
    if ray is not None and os.path.lexists(model):  # for nodes whose processes run elsewhere
        request = replace(request, model=Path(model).absolute())
    request.refuse_outputs([])  # a long text is cut before the names of the files are known
    with span("plan"):
        job, calibration = request.prepared()
    request.refuse_outputs([file.path for file in job.files])
    for remark in export_remarks(job, is_counted=calibration is None, fed_back=feedback):
        note(remark)
    running: dict[str, Any] = {
        "jobs": jobs,
        "force": force,
        "skip_existing": skip_existing,
        "restart": restart,
        "progress": progress,
        "note": note,
    }
    if calibration is None:
        return run(job, engine=engine, ray=ray, **running)
    if calibration.feedback is not None:
        from gguf_export.writing.fed_back import run_fed_back

        return run_fed_back(job, request.without_text, calibration, save_imatrix=save_imatrix, **running)
    from gguf_export.writing.calibrated import run_calibrated

    return run_calibrated(job, calibration, save_imatrix=save_imatrix, **running)


def _refuse_engines(ray: str | None, text: object, engine: Engine | None) -> None:
    """Refuse what an engine or a cluster cannot do, and one that is not there, before anything is read.

    Raises:
        RecipeError: there is a text, or there are both.
        ChoiceError: see `refuse_unreachable`.
    """
    if engine is not None and text is not None:
        raise RecipeError(
            "engine", "means nothing with a text, which threads of this process encode", "leave it out"
        )
    if ray is None:
        return
    if text is not None:
        raise RecipeError(
            "ray",
            "spreads an export over a cluster, and this one reads a text on the way",
            "make an importance matrix of the text first, and give {setting} in its place",
            setting="imatrix",
        )
    if engine is not None:
        raise RecipeError("engine", "means nothing beside ray", "leave it out")
    refuse_unreachable(ray)


def plan(
    model: Path | str,
    types: str | Sequence[str | Recipe],
    folder: Path | str | None = None,
    *,
    imatrix: Imatrix | Path | str | None = None,
    prior: float = 0.0,
    text: TextSettings | Path | str | None = None,
    forward: ForwardSettings | None = None,
    save_imatrix: Path | None = None,
    name: str | None = None,
    override_kv: Sequence[str] = (),
    pre: str | None = None,
    lmstudio: bool = False,
    publisher: str | None = None,
    allow_requantize: bool = False,
    include_weights: Sequence[str] = (),
    exclude_weights: Sequence[str] = (),
    prune_layers: Sequence[int] = (),
    file: Path | str | None = None,
    split_max_size: str | None = None,
    split_max_tensors: int | None = None,
    keep_split: bool = False,
    split_folders: bool = False,
    feedback: bool = False,
    chat_template: str | None = None,
    timed: bool = False,
    jobs: int | None = None,
) -> ExportPlan:
    """Say what `export` would write: names, types, sizes and offsets; nothing is written.

    As with llama-quantize's --dry-run, a type that needs importances is planned without them, with a remark.
    The arguments are those of `export`; `timed` reads and encodes some rows, by which the time of `jobs` threads is
    estimated (`ExportPlan.seconds`). Without it no weight is read.

    Raises:
        MoeGgufError: see `prepare`.

    >>> planned = plan(demo_model, ["Q8_0", "Q4_K_M"])
    >>> [(file.ftype, round(file.bpw, 1)) for file in planned.files]
    [('Q8_0', 8.5), ('Q4_K_M', 4.9)]
    """
    request = Request(
        model=model,
        types=types,
        folder=folder,
        imatrix=imatrix,
        prior=prior,
        text=text,
        forward=forward,
        save_imatrix=save_imatrix,
        name=name,
        override_kv=override_kv,
        pre=pre,
        lmstudio=lmstudio,
        publisher=publisher,
        allow_requantize=allow_requantize,
        include_weights=include_weights,
        exclude_weights=exclude_weights,
        prune_layers=prune_layers,
        file=file,
        split_max_size=split_max_size,
        split_max_tensors=split_max_tensors,
        keep_split=keep_split,
        split_folders=split_folders,
        feedback=feedback,
        chat_template=chat_template,
    )
    with span("plan"):
        job, calibration = request.prepared(only_planned=True)
    remarks = export_remarks(job, is_counted=calibration is None, fed_back=feedback)
    kept = None
    if save_imatrix is not None and job.imatrix is not None:
        kept = save_imatrix, imatrix_bytes(job.imatrix)
    seconds = None
    if timed:
        from gguf_export.writing.estimate import encoding_seconds

        seconds = encoding_seconds(job, jobs)
    return ExportPlan(tuple(map(file_figures, job.outputs)), tuple(remarks), kept, seconds)


def imatrix_path(model: Path | str, folder: Path | str | None = None, **naming: Any) -> Path:
    """Where the importances of a model lie beside its files: `folder/Harmony-4x7B-imatrix.gguf`.

    "imatrix" in its name tells llama.cpp, which looks for a model in a repository, that this is none.

    Args:
        model, folder: see `export`.
        naming: the arguments of `export` that decide what files are called.

    Raises:
        MoeGgufError: see `prepare`.
    """
    (copied,) = plan(model, "COPY", folder, **naming).files
    typed = retyped(copied.path.name.removesuffix("-copy.gguf"), "F32")
    return copied.path.with_name(typed.removesuffix("-F32.gguf") + "-imatrix.gguf")
