"""`moe-gguf export`: a checkpoint becomes GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_export.commands.options import (
    FILE,
    JOBS,
    MODEL,
    QUIET,
    RESTART,
    forward_options,
    read_chunks,
    read_forward,
    read_recipes,
    recipe_options,
    say,
    text_options,
)

if TYPE_CHECKING:
    from calibration.importance.imatrix import Imatrix
    from gguf_export.writing.export import ExportJob, ExportResult


@click.command()
@MODEL
@click.option(
    "-t",
    "--type",
    "ftypes",
    multiple=True,
    required=True,
    metavar="TYPE",
    help="File type, such as Q4_K_M; give it several times for several files from one read.",
)
@click.option(
    "-o",
    "--output",
    "folder",
    type=FILE,
    metavar="DIR",
    help="Folder for the files.  [default: the current one; with --lmstudio, LM Studio's]",
)
@click.option(
    "--imatrix",
    "imatrix_path",
    type=FILE,
    metavar="FILE",
    help="Importance matrix: llama.cpp's GGUF form or the legacy .dat.",
)
@text_options
@click.option(
    "--save-imatrix", type=FILE, metavar="FILE", help="Keep the importance matrix that the text gave."
)
@click.option(
    "--prior",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="N",
    help="Shrink an expert's importances toward its layer's mean with the weight of N tokens, for experts that see "
    "few; 0 is llama.cpp's behaviour.",
)
@forward_options
@recipe_options
@click.option("--name", help="general.name, and the base of the file names.")
@click.option(
    "--override-kv",
    multiple=True,
    metavar="KEY=TYPE:VALUE",
    help="Metadata to set; TYPE is int, float, bool or str.",
)
@click.option("--pre", metavar="NAME", help="Pre-tokenizer (tokenizer.ggml.pre), where it is not recognised.")
@click.option("--lmstudio", is_flag=True, help="Write DIR/publisher/model/file.gguf, where LM Studio looks.")
@click.option(
    "--publisher", metavar="NAME", help="The publisher for --lmstudio.  [default: from config.json]"
)
@JOBS
@click.option("--force", is_flag=True, help="Replace files that exist.")
@RESTART
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@QUIET
def export(
    model: Path,
    ftypes: tuple[str, ...],
    folder: Path | None,
    imatrix_path: Path | None,
    save_imatrix: Path | None,
    prior: float,
    name: str | None,
    override_kv: tuple[str, ...],
    pre: str | None,
    lmstudio: bool,
    publisher: str | None,
    jobs: int | None,
    force: bool,
    restart: bool,
    dry_run: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Quantize the checkpoint in folder MODEL to one GGUF file for each TYPE.

    With --text the model reads the text first, layer by layer, and each expert is weighed with what it saw, all from
    one read of the shards. A run that was stopped goes on when the same command is given again.
    """
    from gguf_export.commands.console import ProgressView
    from gguf_export.metadata import file_names as names
    from gguf_export.writing import export as exporting
    from quantize.sources.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(model)
    if lmstudio:
        folder = folder or names.lmstudio_root()
        publisher = publisher or names.find_publisher(checkpoint.config)
        if publisher is None:
            raise click.UsageError(
                "--lmstudio needs --publisher NAME: config.json does not say who made the model"
            )
    chunks = read_chunks(checkpoint, options)
    if chunks is not None and imatrix_path:
        raise click.UsageError("give --imatrix or text to calibrate with, not both")
    if chunks is None and save_imatrix:
        raise click.UsageError("--save-imatrix needs --text")
    imatrix: Imatrix | None = None
    if imatrix_path:
        from calibration.importance.imatrix_files import load_imatrix

        imatrix = load_imatrix(imatrix_path, prior=prior)
    elif chunks is not None:
        from gguf_export.writing.calibrated import expected_imatrix

        file = str(save_imatrix or "calibrated while exporting")
        imatrix = expected_imatrix(checkpoint.specs(), chunks, prior=prior, file=file)
    elif prior:
        raise click.UsageError("--prior needs importances: give --imatrix or --text")
    prepared = exporting.prepare(
        checkpoint,
        read_recipes(ftypes, options),
        folder or Path(),
        imatrix=imatrix,
        name=name,
        override_kv=override_kv,
        pre=pre,
        publisher=publisher if lmstudio else None,
    )
    _say_remarks(prepared, imatrix if imatrix_path else None)
    if dry_run:
        _print_plan(prepared)
        return
    with ProgressView(quiet=quiet) as view:
        if chunks is None:
            exported = exporting.run(
                prepared, jobs=jobs, force=force, restart=restart, progress=view, note=say
            )
        else:
            from gguf_export.writing.calibrated import run_calibrated

            settings = read_forward(options)
            done = run_calibrated(
                prepared,
                chunks,
                jobs=jobs,
                force=force,
                restart=restart,
                settings=settings,
                progress=view,
                note=say,
            )
            exported = done.exported
    if chunks is not None and save_imatrix:
        from gguf_export.commands.imatrix import save

        save(save_imatrix, done.collected.imatrix)
    if quiet:
        return
    if chunks is not None:
        from gguf_export.commands.imatrix import print_load

        print_load(done.collected)
    _print_exported(exported)


def _say_remarks(prepared: ExportJob, imatrix: Imatrix | None) -> None:
    """A fallback is never silent: each kind gets one line, with its count; `imatrix` is one that was counted."""
    from gguf_export.writing.remarks import missing_remarks, plan_remarks, thin_remarks

    plans = {file.path.name: file.plan for file in prepared.files}
    for line in (
        *prepared.remarks,
        *plan_remarks(plans),
        *missing_remarks(list(plans.values()), prepared.imatrix),
        *thin_remarks(imatrix),
    ):
        say(line)


def _print_plan(prepared: ExportJob) -> None:
    from gguf_export.commands.console import print_table, size

    for file in prepared.files:
        rows = [
            (
                planned.spec.name,
                " x ".join(map(str, planned.spec.shape)),
                planned.qtype.name,
                size(planned.n_bytes),
                str(planned.offset),
            )
            for planned in file.plan.tensors
        ]
        print_table(str(file.path), ("tensor", ">shape", "type", ">size", ">offset"), rows)
        click.echo(f"{size(file.n_bytes)}, {file.plan.bpw:.2f} bits per weight\n")


def _print_exported(exported: ExportResult) -> None:
    from gguf_export.commands.console import print_table, size

    seconds = exported.seconds.wall
    rows = [
        (str(file.path), file.plan.ftype.name, size(file.n_bytes), f"{file.plan.bpw:.2f}")
        for file in exported.files
    ]
    print_table("", ("file", "type", ">size", ">bpw"), rows)
    rate = size(exported.bytes_read / seconds) if seconds else "-"
    click.echo(f"{size(exported.bytes_read)} read once, {seconds:.1f} seconds, {rate}/s")
