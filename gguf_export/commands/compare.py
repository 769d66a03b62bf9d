"""`moe-gguf compare`: what each quant level costs in perplexity and KL divergence, measured on the files."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_export.commands.options import (
    FILE,
    QUIET,
    RESTART,
    forward_options,
    read_forward,
    read_recipes,
    recipe_options,
    say,
    together,
)

if TYPE_CHECKING:
    from calibration.forward.settings import ForwardSettings
    from calibration.judging.side_by_side import Comparison
    from gguf_export.comparing.run import CompareJob, NamedText

output_options = together(
    click.option("--json", "json_path", type=FILE, metavar="FILE", help="Write all figures as JSON."),
    click.option("--csv", "csv_path", type=FILE, metavar="FILE", help="Write a line per model and text."),
    click.option(
        "--markdown", "markdown_path", type=FILE, metavar="FILE", help="Write a table for a model card."
    ),
    click.option("--html", "html_path", type=FILE, metavar="FILE", help="Write a page with plots."),
    click.option("--force", is_flag=True, help="Replace files that exist."),
    click.option(
        "--state",
        "state_path",
        type=FILE,
        metavar="FILE",
        help="Keep the state of the pass there, for a run that is stopped.  [default: beside the first of these files; "
        "without any, none is kept]",
    ),
    RESTART,
    click.option("--timings", is_flag=True, help="Say what the time was spent on."),
)
"""What is made of the figures; see `_write`."""


@click.command()
@click.argument("paths", nargs=-1, required=True, type=FILE, metavar="[MODEL] [GGUF]...")
@click.option(
    "--text",
    "texts",
    multiple=True,
    metavar="[NAME=]FILE",
    help="Text to judge by; may be repeated, each text gets its own figures.",
)
@click.option(
    "--base",
    type=FILE,
    metavar="FILE",
    help="Compare with this GGUF file, or with llama-perplexity's file of logits, instead of MODEL.",
)
@click.option(
    "-t",
    "--type",
    "ftypes",
    multiple=True,
    metavar="TYPE",
    help="Judge a file type without writing the file, such as Q4_K_M; may be repeated.",
)
@click.option(
    "--imatrix",
    "imatrix_path",
    type=FILE,
    metavar="FILE",
    help="Importance matrix for -t: llama.cpp's GGUF form or the legacy .dat.",
)
@click.option(
    "--prior",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="N",
    help="With --imatrix: as in export.",
)
@recipe_options
@click.option(
    "--chunks",
    "n_chunk",
    type=click.IntRange(min=1),
    metavar="N",
    help="Of each text the first N chunks only.",
)
@click.option(
    "--ctx", "n_ctx", type=click.IntRange(min=4), default=512, show_default=True, help="Tokens of a chunk."
)
@click.option(
    "--activations",
    type=click.Choice(["exact", "int8"]),
    default="exact",
    show_default=True,
    help="Judge the weights alone, or round activations as llama.cpp's CPU kernels do.",
)
@forward_options
@output_options
@QUIET
def compare(
    paths: tuple[Path, ...],
    texts: tuple[str, ...],
    base: Path | None,
    ftypes: tuple[str, ...],
    imatrix_path: Path | None,
    prior: float,
    n_chunk: int | None,
    n_ctx: int,
    activations: Any,
    quiet: bool,
    **options: Any,
) -> None:
    """Compare GGUF files with the checkpoint in folder MODEL: perplexity, KL divergence, same top token.

    The figures are llama-perplexity's, with their standard errors, and the share of tokens that still go to the same
    experts. All files are read once, together, layer by layer. A run that was stopped goes on behind the last layer
    that it kept when the same command is given again.
    """
    from calibration.importance.imatrix_files import load_imatrix
    from gguf_export.commands.console import ProgressView
    from gguf_export.comparing import run as comparing
    from gguf_export.writing.pass_state import StateFile

    if prior and not imatrix_path:
        raise click.UsageError("--prior needs importances: give --imatrix")
    if imatrix_path and not ftypes:
        raise click.UsageError("--imatrix goes with -t: finished files have their importances in them")
    outputs = {name: options.pop(f"{name}_path") for name in ("json", "csv", "markdown", "html")}
    written = [path for path in outputs.values() if path is not None]
    timings, restart, state = (options.pop(name) for name in ("timings", "restart", "state_path"))
    _refuse_outputs(written, state, force=options.pop("force"))
    settings = _exactly(options)
    prepared = comparing.prepare(
        paths,
        [_named(text) for text in texts],
        base=base,
        recipes=read_recipes(ftypes, options),
        imatrix=load_imatrix(imatrix_path, prior=prior) if imatrix_path else None,
        n_ctx=n_ctx,
        n_chunk=n_chunk,
        note=say,
    )
    with ExitStack() as stack:
        keeper = None
        if place := _state_place(state, written):
            told = comparing.fingerprint_of(prepared, activations, settings)
            keeper = stack.enter_context(StateFile(*place, told, restart=restart, note=say))
        with ProgressView(quiet=quiet) as view:
            found = comparing.run(
                prepared,
                activations=activations,
                settings=settings,
                keeper=keeper,
                progress=view,
            )
        _write(found, outputs)
    if not quiet:
        _print_tables(found)
        for path in written:
            click.echo(f"written: {path}")
    if timings:
        _print_timings(found, prepared)


def _named(text: str) -> NamedText:
    """NAME=FILE, or a file that goes by its stem."""
    from gguf_export.comparing.run import NamedText

    name, sign, path = text.partition("=")
    if not sign or not name or Path(text).exists():
        return NamedText(Path(text).stem, Path(text))
    return NamedText(name, Path(path))


def _exactly(options: dict[str, Any]) -> ForwardSettings:
    """float32 whatever the processor likes best: the differences are small."""
    import torch

    return replace(read_forward(options), dtype=torch.float32)


def _state_place(state: Path | None, written: list[Path]) -> tuple[Path, str] | None:
    """Where the state is kept, and what the notes call the output; None where it is not kept."""
    from gguf_export.files.replacing import is_device
    from gguf_export.writing.pass_state import state_path

    if state is not None:
        return state, state.name
    files = [path for path in written if not is_device(path)]
    return (state_path(files[0]), files[0].name) if files else None


def _refuse_outputs(written: list[Path], state: Path | None, *, force: bool) -> None:
    """Before hours of work; a device such as /dev/stdout takes what comes."""
    from gguf_export.files.replacing import is_device
    from gguf_export.writing.pass_state import discard_older
    from quantize.exceptions import OutputError

    paths = [*written, state] if state else written
    for path in paths:
        if not path.absolute().parent.is_dir():
            raise OutputError(f"{path}: there is no such folder; make it first")
        if path.is_dir():
            raise OutputError(f"{path}: is a folder; name a file in it")
    files = [path.resolve() for path in paths if not is_device(path)]
    for path in files:
        if files.count(path) > 1:
            raise OutputError(f"{path}: named twice; choose a file for each")
    for path in written:
        if path.is_file() and not force:
            if state is None and all(one.exists() for one in written):  # it was stopped with its work done
                discard_older(next(one for one in written if not is_device(one)))
            raise OutputError(f"{path}: exists already; pass --force to replace it")


def _write(found: Comparison, outputs: dict[str, Path | None]) -> None:
    from gguf_export.files.replacing import write_text
    from gguf_export.reports.compare_data import compare_csv, compare_json
    from gguf_export.reports.compare_page import compare_page
    from gguf_export.reports.compare_tables import compare_markdown

    forms = {"json": compare_json, "csv": compare_csv, "markdown": compare_markdown, "html": compare_page}
    for name, path in outputs.items():
        if path is not None:
            write_text(path, forms[name](found))


def _print_tables(found: Comparison) -> None:
    from gguf_export.commands.console import print_table
    from gguf_export.reports.compare_facts import protocol
    from gguf_export.reports.compare_tables import DETAILS, GLANCE, text_table
    from quantize.containers.untrusted import printable

    for index in range(len(found.texts)):
        print_table(found.text_name(index), *text_table(found, index, GLANCE, brief=True))
        print_table("", *text_table(found, index, DETAILS, brief=True))
    for name, how in protocol(found):
        click.echo(printable(f"{name}: {how}"))


def _print_timings(found: Comparison, prepared: CompareJob) -> None:
    from gguf_export.commands.console import print_table, size
    from gguf_export.reports.compare_tables import timing_table

    print_table("timings", *timing_table(found.timings))
    n_source = len(prepared.models) + (0 if hasattr(prepared.base, "tokens") else 1)
    click.echo(f"{n_source} models, {size(prepared.bytes_read)} of weights read")
