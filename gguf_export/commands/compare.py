"""`moe-gguf compare`: what each quant level costs in perplexity and KL divergence, measured on the files."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_export.commands.compare_outputs import FILES, OutputOptions, output_options
from gguf_export.commands.importing import importing
from gguf_export.commands.options import (
    FILE,
    QUIET,
    RAY,
    ForwardOptions,
    chunks,
    ctx,
    forward_options,
    ftypes,
    imatrix,
    prior,
)
from gguf_export.commands.recipe_options import RecipeOptions, recipe_options
from gguf_export.commands.streams import show, summary
from gguf_export.commands.trace import TRACE
from gguf_export.commands.verb import Verb, option

if TYPE_CHECKING:
    from gguf_export.commands.console import ProgressView
    from gguf_export.comparing.results import Results
    from gguf_export.comparing.run import CompareResult

TYPES = ("types",)
MAX_PRINTED = 3
"""Texts whose own tables a terminal shows; more are for pages and spreadsheets."""


@click.command(cls=Verb, modes={"sources": (*FILES, "force", "quiet")})
@click.argument("paths", nargs=-1, type=click.Path(path_type=str), metavar="[MODEL] [[NAME=]GGUF]...")
@option(
    "--text",
    "texts",
    multiple=True,
    metavar="[NAME=]FILE",
    help="Text to judge by; may be repeated, each text gets its own figures. NAME may hold =; where that leaves a "
    "doubt, begin FILE with ./. builtin:held-out stands for the texts of six kinds that come with moe-gguf.",
)
@option(
    "--base",
    type=FILE,
    metavar="FILE",
    help="Compare with this GGUF file, or with llama-perplexity's file of logits, instead of MODEL.",
)
@ftypes("Judge a file type without writing the file, such as Q4_K_M; may be repeated.")
@imatrix("Importance matrix for -t: llama.cpp's GGUF form or the legacy .dat.", TYPES)
@prior(("imatrix",))
@recipe_options(TYPES)
@chunks("Of each text the first N chunks only.")
@ctx(4, ("texts",))
@option(
    "--activations",
    type=click.Choice(["exact", "int8"]),
    default="exact",
    show_default=True,
    help="Judge the weights alone, or round activations as llama.cpp's CPU kernels do.",
)
@forward_options()
@RAY
@option(
    "--speed",
    is_flag=True,
    help="Measure tokens per second of each file, too, with xllamacpp: of a prompt (pp) and of what follows it (tg).",
)
@option(
    "--from",
    "sources",
    multiple=True,
    type=FILE,
    metavar="JSON",
    help="Run nothing: take the figures that --json wrote before. Repeated, several runs on the same base, texts and "
    "settings become one.",
)
@output_options
@option("--timings", is_flag=True, help="Say what the time was spent on.")
@TRACE
@QUIET
def compare(
    paths: tuple[str, ...],
    texts: tuple[str, ...],
    base: Path | None,
    types: tuple[str, ...],
    imatrix: str | None,
    prior: float,
    recipe: RecipeOptions,
    n_chunk: int | None,
    n_ctx: int,
    activations: Any,
    forward: ForwardOptions,
    ray: str | None,
    speed: bool,
    sources: tuple[Path, ...],
    output: OutputOptions,
    timings: bool,
    quiet: bool,
) -> None:
    """Compare GGUF files with the checkpoint in folder MODEL: perplexity, KL divergence, same top token.

    The figures are llama-perplexity's, with their standard errors, and the share of tokens that still go to the same
    experts. All files are read once, together, layer by layer. A run that was stopped goes on behind the last layer
    that it kept when the same command is given again. With NAME=GGUF a file goes by that name.
    """
    if sources:
        _show_again(paths, sources, output, quiet)
        return
    if not paths:
        raise click.UsageError("give MODEL and GGUF files, or with --from the JSON of earlier runs")
    with importing():
        from calibration.importance.imatrix_files import load_imatrix
        from gguf_export.commands.console import ProgressView
        from gguf_export.commands.messages import say
        from gguf_export.comparing.models import ModelChoice, named_paths
        from gguf_export.comparing.run import PassSettings, prepare, run
        from gguf_export.comparing.speed import speed_test
        from gguf_export.comparing.texts import TextChoice
        from quantize.sources.checkpoint_files import files_of_model

    choice = TextChoice.of(*texts, n_ctx=n_ctx, n_chunk=n_chunk)
    plain, names = named_paths(paths)
    models = plain if base is None else (*plain, base)
    inputs = [file for path in models for file in files_of_model(path)]
    inputs += [text.path for text in choice.texts]
    inputs += [Path(path) for path in (imatrix, recipe.tensor_type_file) if path is not None]
    output.check(inputs)
    if speed:
        speed_test()
    settings = PassSettings(activations, forward.settings(exact=True))
    importances = load_imatrix(imatrix, prior=prior) if imatrix else None
    job = prepare(
        ModelChoice(plain, base, tuple(recipe.recipes(types)), importances, names),
        choice,
        note=say,
    )
    found: list[Results] = []
    with ExitStack() as showing:
        view = showing.enter_context(ProgressView(quiet=quiet))

        def write(result: CompareResult) -> None:
            found.append(_results(result, forward.hidden, view if speed else None))
            showing.close()  # a file may be the terminal that the bar is drawn on
            output.write(found[0])

        result = run(
            job, settings, state=output.state_settings(), ray=ray, on_result=write, progress=view, note=say
        )
    with summary() if output.paths else nullcontext():
        _print(found[0], output, quiet)
        if timings:
            _print_timings(result)


def _results(result: CompareResult, hidden: str, view: ProgressView | None) -> Results:
    """The figures as plain data; with a view of its progress, the speed of the files is measured."""
    from gguf_export.commands.messages import say
    from gguf_export.comparing.measured import labels_of, results_of
    from gguf_export.comparing.speed import with_speeds

    comparison = result.comparison
    results = results_of(comparison, hidden=hidden)
    if view is None:
        return results
    labels = labels_of(comparison.base, comparison.models)
    files = {
        label: Path(model.name)
        for label, model in zip(labels, comparison.models, strict=True)
        if model.is_file
    }
    return with_speeds(results, files, progress=view, note=say)


def _show_again(
    paths: tuple[str, ...], sources: tuple[Path, ...], output: OutputOptions, quiet: bool
) -> None:
    """Write and print what earlier runs measured."""
    if paths:
        raise click.UsageError("--from takes figures that are there already: leave MODEL and GGUF files out")
    from gguf_export.reports.compare_read import read_all

    output.refuse(sources)
    results = read_all(sources)
    output.write(results)
    with summary() if output.paths else nullcontext():
        _print(results, output, quiet)


def _print(results: Results, output: OutputOptions, quiet: bool) -> None:
    if quiet:
        return
    from gguf_export.commands.console import print_table
    from gguf_export.reports.compare_facts import protocol
    from gguf_export.reports.compare_tables import DETAILS, VERDICTS, files_table, kld_by_text, text_table

    texts = results.texts
    title = texts[0].name if len(texts) == 1 else f"over {len(texts)} texts, each counting the same"
    print_table(title, *files_table(results, brief=True))
    show(VERDICTS)
    if len(texts) > 1:
        print_table("mean KLD by text", *kld_by_text(results))
    if len(texts) <= MAX_PRINTED:
        for index, text in enumerate(texts):
            print_table(text.name if len(texts) > 1 else "", *text_table(results, index, DETAILS, brief=True))
    else:
        show("The other figures of each text stand in what --html, --csv and --json write.")
    for name, how in protocol(results):
        show(f"{name}: {how}")
    for path in output.paths:
        show(f"written: {path}")


def _print_timings(result: CompareResult) -> None:
    from gguf_export.commands.console import print_table
    from gguf_export.files.sizes import size_in_words
    from gguf_export.reports.compare_tables import timing_table

    print_table("timings", *timing_table(result.comparison.timings.as_dict()))
    show(f"{result.n_in_pass} models, {size_in_words(result.bytes_read)} of weights read")
