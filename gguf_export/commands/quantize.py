"""`moe-gguf quantize`: the arguments of llama-quantize, in its order, and its file at its place."""

from __future__ import annotations

import click

from gguf_export.commands.completion import file_or, written_type_names
from gguf_export.commands.importing import importing
from gguf_export.commands.options import CHAT_TEMPLATE, QUIET, imatrix
from gguf_export.commands.recipe_options import (
    RecipeOptions,
    SourceOptions,
    recipe_options,
    source_options,
)
from gguf_export.commands.streams import summary
from gguf_export.commands.trace import TRACE
from gguf_export.commands.verb import Verb, option


@click.command(cls=Verb)
@click.argument(
    "words",
    nargs=-1,
    required=True,
    metavar="IN.gguf [OUT.gguf] TYPE [NTHREADS]",
    shell_complete=file_or(written_type_names),
)
@imatrix("Importance matrix: llama.cpp's GGUF form or the legacy .dat.")
@source_options(("imatrix",))
@recipe_options()
@option(
    "--override-kv",
    multiple=True,
    metavar="KEY=TYPE:VALUE",
    help="Metadata to set; TYPE is int, float, bool or str.",
)
@CHAT_TEMPLATE
@option(
    "--keep-split",
    is_flag=True,
    help="Cut the file as IN.gguf is cut: OUT-00001-of-00003.gguf and so on.",
)
@option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@option(
    "--max-buffer-size",
    type=click.IntRange(min=1),
    metavar="MiB",
    help="Taken and without effect: memory is a few hundred megabytes for any file.",
)
@TRACE
@QUIET
def quantize(
    words: tuple[str, ...],
    imatrix: str | None,
    taken: SourceOptions,
    recipe: RecipeOptions,
    override_kv: tuple[str, ...],
    chat_template: str | None,
    keep_split: bool,
    dry_run: bool,
    max_buffer_size: int | None,
    quiet: bool,
) -> None:
    """Make llama-quantize's file with llama-quantize's arguments: a script that calls it can call this.

    IN.gguf is a GGUF file of any architecture, or the folder of a checkpoint. OUT.gguf is replaced where it exists;
    without it, the file is called ggml-model-TYPE.gguf and lies beside IN.gguf. TYPE is a name in any case or a number;
    COPY changes no tensor. A run that was stopped goes on when the same command is given again.
    """
    with importing():
        from gguf_export.commands.console import ProgressView
        from gguf_export.commands.export_output import print_plan, print_result
        from gguf_export.commands.llama_quantize import parse_words
        from gguf_export.commands.messages import say
        from gguf_export.writing import export as exporting
        from quantize.telling import Remark

    given = parse_words(words, keep_split=keep_split)
    recipes = recipe.recipes([given.ftype])
    settings = {**taken.settings(), "imatrix": imatrix, "override_kv": override_kv}
    settings |= {"file": given.out, "keep_split": keep_split}
    settings["chat_template"] = chat_template or "as-is"  # as llama-quantize, which copies it
    if dry_run:
        planned = exporting.plan(given.model, recipes, **settings)
        for remark in planned.remarks:
            say(remark)
        print_plan(planned)
        return
    is_replaced = given.out.exists()
    with ProgressView(quiet=quiet) as view:
        result = exporting.export(
            given.model, recipes, **settings, jobs=given.n_thread, force=True, progress=view, note=say
        )
    if is_replaced and not keep_split:
        say(Remark(str(given.out), "was there, and is replaced"))
    if not quiet:
        with summary():
            print_result(result)
