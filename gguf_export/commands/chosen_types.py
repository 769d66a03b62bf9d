"""Types for `export` that were chosen tensor by tensor: listed in a file, or chosen under a budget on the way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_export.commands.options import RunOptions
from gguf_export.commands.recipe_options import RecipeOptions, SourceOptions

if TYPE_CHECKING:
    from gguf_export.planning.results import TypePlan
    from quantize.recipes.recipe import Recipe
    from quantize.telling import OnProgress


def refuse_beside_budget(
    types: tuple[str, ...], types_file: Path | None, recipe: RecipeOptions, taken: SourceOptions
) -> None:
    """Refuse what would change the types that are chosen, or the model that they are chosen for."""
    for is_given, what in (
        (types, "-t"),
        (types_file, "--types"),
        (recipe.is_given, "another choice of tensor types"),
        (taken.include_weights or taken.exclude_weights, "a choice among the importances"),
        (taken.prune_layers, "--prune-layers"),
        (taken.allow_requantize, "--allow-requantize"),
    ):
        if is_given:
            raise click.UsageError(f"{what} means nothing beside --like, --size or --bpw")


def listed_recipes(
    model: Path, types: tuple[str, ...], types_file: Path, recipe: RecipeOptions
) -> list[Recipe]:
    """The recipes of a list of types, one for each file type, or one of the nearest."""
    from gguf_export.planning.types_file import read_types
    from quantize.sources.model_source import open_stored

    if recipe.is_given:
        raise click.UsageError("another choice of tensor types means nothing beside --types")
    listed, source = read_types(types_file), open_stored(model)
    return [listed.recipe(source, name) for name in types or (None,)]


def chosen_by_budget(
    model: Path,
    folder: Path | None,
    planning: Mapping[str, Any],
    weighed: Mapping[str, Any],
    settings: Mapping[str, Any],
    running: RunOptions,
    progress: OnProgress,
    *,
    feedback: bool,
) -> TypePlan:
    """Choose the types; files that may not be replaced are refused before the text runs through the model.

    Args:
        model, folder, settings, running: what `export` will be given.
        planning: the budget and what may be chosen.
        weighed: the text, and the importances or where they are kept.
        progress: see `plan_types`.
        feedback: whether error feedback will choose the codes; its own pass keeps importances, then.
    """
    from gguf_export.commands.messages import say
    from gguf_export.files.outputs import refuse_existing
    from gguf_export.planning.budget import Budget
    from gguf_export.planning.job import Naming, prepare_types
    from gguf_export.planning.plan_types import run_types
    from gguf_export.writing.export import plan
    from gguf_export.writing.importances import write_imatrix
    from gguf_export.writing.journal import journal_path
    from gguf_export.writing.request import CALIBRATED
    from quantize.containers.untrusted import label
    from quantize.engine import Threads
    from quantize.recipes.recipe import Recipe

    if "text" not in weighed:
        raise click.UsageError("types are chosen by a text: give --text FILE or --prompts FILE")
    saved = weighed["save_imatrix"]
    job = prepare_types(
        model,
        weighed["text"],
        Budget.of(*(planning[name] for name in ("like", "size", "bpw"))),
        candidates=planning["candidates"],
        imatrix=weighed["imatrix"],
        imatrix_label=label(saved or (CALIBRATED if feedback else "collected while exporting")),
        prior=weighed["prior"],
        n_held_out=planning["n_held_out"],
        forward=weighed["forward"],
        naming=Naming(
            settings["name"], settings["override_kv"], settings["pre"], feedback, settings["chat_template"]
        ),
    )
    files = plan(model, [Recipe(job.ftype)], folder, imatrix=job.expected, **settings).files
    paths = [part.path for file in files for part in file.parts]
    if not running.force and not any(journal_path(path).exists() for path in paths):
        refuse_existing([*paths, *([saved] if saved else [])])
    with Threads(running.jobs) as engine:
        chosen = run_types(job, n_token=planning["n_token"], engine=engine, progress=progress, note=say)
    if saved is not None and not feedback:
        write_imatrix(saved, chosen.imatrix)
    return chosen
