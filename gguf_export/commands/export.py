"""`moe-gguf export`: a checkpoint or a GGUF file becomes GGUF files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from gguf_export.commands.completion import written_type_names
from gguf_export.commands.importing import importing
from gguf_export.commands.options import (
    CHAT_TEMPLATE,
    FILE,
    MODEL,
    PRE,
    QUIET,
    RAY,
    RESTART,
    SKIP_EXISTING,
    TEXT,
    ForwardOptions,
    RunOptions,
    TextOptions,
    force,
    forward_options,
    ftypes,
    imatrix,
    jobs,
    prior,
    text_options,
)
from gguf_export.commands.planning_options import BUDGET, PlanningOptions, planning_options
from gguf_export.commands.recipe_options import (
    RecipeOptions,
    SourceOptions,
    recipe_options,
    source_options,
)
from gguf_export.commands.trace import TRACE
from gguf_export.commands.verb import Verb, group, option


@dataclass(frozen=True)
class NamingOptions:
    """What the files are called, and what they say of themselves."""

    name: str | None
    override_kv: tuple[str, ...]
    pre: str | None
    chat_template: str | None
    lmstudio: bool
    publisher: str | None


naming_options = group(
    "naming",
    NamingOptions,
    option("--name", help="general.name, and the base of the file names."),
    option(
        "--override-kv",
        multiple=True,
        metavar="KEY=TYPE:VALUE",
        help="Metadata to set; TYPE is int, float, bool or str.",
    ),
    PRE,
    CHAT_TEMPLATE,
    option("--lmstudio", is_flag=True, help="Write DIR/publisher/model/file.gguf, where LM Studio looks."),
    option(
        "--publisher",
        metavar="NAME",
        needs=("lmstudio",),
        help="The publisher for --lmstudio.  [default: from config.json]",
    ),
)


@dataclass(frozen=True)
class SplitOptions:
    """Into which parts the files are cut."""

    split_max_size: str | None
    split_max_tensors: int | None
    keep_split: bool


split_options = group(
    "splitting",
    SplitOptions,
    option(
        "--split-max-size",
        metavar="N(M|G)",
        help="Cut each file into parts of at most so much, as llama-gguf-split does.",
    ),
    option(
        "--split-max-tensors",
        type=click.IntRange(min=1),
        metavar="N",
        help="Cut each file into parts of N tensors.",
    ),
    option("--keep-split", is_flag=True, help="Cut each file as the GGUF file MODEL is cut."),
)


run_options = group("running", RunOptions, jobs(), RAY, force(), SKIP_EXISTING, RESTART)


@click.command(cls=Verb)
@MODEL
@ftypes(
    "File type, such as Q4_K_M; give it several times for several files from one read.",
    names=written_type_names,
)
@option(
    "--types",
    "types_file",
    type=FILE,
    metavar="FILE",
    help="The types that plan chose, as it wrote them; names and what it leaves open are those of -t.  "
    "[default for -t: the mixture nearest in size]",
)
@planning_options(needs=BUDGET)
@option(
    "-o",
    "--output",
    "folder",
    type=FILE,
    metavar="DIR",
    help="Folder for the files.  [default: the current one; with --lmstudio, LM Studio's]",
)
@imatrix("Importance matrix: llama.cpp's GGUF form or the legacy .dat.")
@text_options
@option(
    "--save-imatrix",
    type=FILE,
    metavar="FILE",
    needs=TEXT,
    help="Keep the importance matrix that the text gave there.  [default: MODEL-imatrix.gguf beside the files; with "
    "--feedback or a budget, which hold text back, nowhere]",
)
@option("--no-save-imatrix", is_flag=True, needs=TEXT, help="Keep no importance matrix.")
@option(
    "--feedback",
    is_flag=True,
    needs=TEXT,
    help="Choose the codes so that errors make up for each other on the text; judged on a part of it.",
)
@prior(("imatrix", *TEXT))
@forward_options(TEXT)
@recipe_options()
@source_options(("imatrix", *TEXT))
@naming_options
@split_options
@run_options
@option("--keep", is_flag=True, help="Download the shards of a model of the Hub to the Hub's cache, too.")
@option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@option(
    "--json",
    "json_path",
    type=FILE,
    metavar="FILE|-",
    help="Write plan or result as JSON; FILE is replaced where it exists, - is standard output.",
)
@TRACE
@QUIET
def export(
    model: Path,
    types: tuple[str, ...],
    types_file: Path | None,
    planning: PlanningOptions,
    folder: Path | None,
    imatrix: str | None,
    text: TextOptions,
    save_imatrix: Path | None,
    no_save_imatrix: bool,
    feedback: bool,
    prior: float,
    forward: ForwardOptions,
    recipe: RecipeOptions,
    taken: SourceOptions,
    naming: NamingOptions,
    splitting: SplitOptions,
    running: RunOptions,
    keep: bool,
    dry_run: bool,
    json_path: Path | None,
    quiet: bool,
) -> None:
    """Quantize MODEL, the folder of a checkpoint or a GGUF file, to one GGUF file for each TYPE.

    A MODEL owner/name, or hf://owner/name@revision, is read from the Hugging Face Hub without storing its weights.

    A GGUF may be of any architecture: its files are those of llama-quantize. TYPE COPY changes no tensor.

    With --like, --size or --bpw the types of the tensors are chosen, too, as plan chooses them by the same text.

    With --feedback the codes are chosen so that the errors of the weights make up for each other on the text: the same
    formats and bytes, nearer to the original. The file is judged on a part of the text, and made plainly where that is
    better.

    With --text the model reads the text first, layer by layer, and each expert is weighed with what it saw, all from
    one read of the weights. A run that was stopped goes on when the same command is given again.
    """
    with importing():
        from gguf_export.commands.chosen_types import chosen_by_budget, listed_recipes, refuse_beside_budget
        from gguf_export.commands.console import ProgressView
        from gguf_export.commands.export_output import ExportOutput
        from gguf_export.commands.plan import print_types
        from gguf_export.writing import export as exporting
        from quantize.sources.hub import local_path

    model = local_path(model, keep=keep)
    _refuse_contradictions(imatrix, text, save_imatrix, no_save_imatrix, planning, running, feedback=feedback)
    settings: dict[str, Any] = {**taken.settings(), **vars(naming), **vars(splitting)}
    lists = [path for path in (recipe.tensor_type_file, types_file) if path is not None]
    output = ExportOutput(json_path, quiet)
    output.check(model, folder, [*lists, *text.texts, *text.prompts], save_imatrix)
    weighed: dict[str, Any] = {"imatrix": imatrix, "prior": prior}
    if text.is_given:
        if not (save_imatrix or no_save_imatrix or feedback or planning.is_given):
            save_imatrix = exporting.imatrix_path(model, folder, **vars(naming))
        weighed |= {"text": text.settings(), "forward": forward.settings(), "save_imatrix": save_imatrix}
    with ProgressView(quiet=quiet) as view:
        if planning.is_given:
            refuse_beside_budget(types, types_file, recipe, taken)
            chosen = chosen_by_budget(
                model, folder, planning.settings(), weighed, settings, running, view, feedback=feedback
            )
            recipes = [chosen.recipe]
            weighed = weighed if feedback else {"imatrix": chosen.imatrix}
        elif types_file is not None:
            recipes = listed_recipes(model, types, types_file, recipe)
        elif types:
            recipes = recipe.recipes(types)
        else:
            raise click.UsageError("give -t TYPE, --types FILE, or a budget with --like, --size or --bpw")
        settings |= {**weighed, "feedback": feedback}
        if not dry_run:
            result = exporting.export(
                model, recipes, folder, **settings, **vars(running), progress=view, note=output.note
            )
    if planning.is_given and output.shows_tables:
        print_types(chosen)
    if dry_run:
        planned = exporting.plan(model, recipes, folder, **settings, timed=True, jobs=running.jobs)
        output.show_plan(planned)
    else:
        output.show_result(result)


def _refuse_contradictions(
    imatrix: str | None,
    text: TextOptions,
    save_imatrix: Path | None,
    no_save_imatrix: bool,
    planning: PlanningOptions,
    running: RunOptions,
    *,
    feedback: bool,
) -> None:
    """Refuse options of which one says the opposite of the other."""
    if text.is_given and imatrix and (feedback or not planning.is_given):
        raise click.UsageError("give --imatrix or text to calibrate with, not both")
    if save_imatrix and no_save_imatrix:
        raise click.UsageError("give --save-imatrix or --no-save-imatrix, not both")
    if running.force and running.skip_existing:
        raise click.UsageError("give --force or --skip-existing, not both")
    if running.skip_existing and planning.is_given:
        raise click.UsageError("--skip-existing means nothing beside --like, --size or --bpw")
