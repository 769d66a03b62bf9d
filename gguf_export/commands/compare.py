"""`moe-gguf compare`: what each quant level costs in perplexity and KL divergence, measured on the files."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_export.commands.options import (
    FILE,
    QUIET,
    ForwardOptions,
    chunks,
    ctx,
    force,
    forward_options,
    ftypes,
    imatrix,
    prior,
)
from gguf_export.commands.recipe_options import RecipeOptions, recipe_options
from gguf_export.commands.streams import show, summary
from gguf_export.commands.verb import Verb, group, option

if TYPE_CHECKING:
    from calibration.judging.side_by_side import Comparison
    from gguf_export.comparing.run import CompareResult, StateSettings

TYPES = ("types",)
FILES = ("json_path", "csv_path", "markdown_path", "html_path", "plot_path")
"""The parameters that ask for a file."""


@dataclass(frozen=True)
class OutputOptions:
    """What is made of the figures."""

    json_path: Path | None
    csv_path: Path | None
    markdown_path: Path | None
    html_path: Path | None
    plot_path: Path | None
    force: bool
    state: Path | None
    restart: bool

    @property
    def paths(self) -> list[Path]:
        """The files that are asked for."""
        paths = (getattr(self, name) for name in FILES)
        return [path for path in paths if path is not None]

    def check(self, inputs: Iterable[Path]) -> None:
        """Refuse outputs that could not be written, or would replace one of the inputs, before hours of work.

        Raises:
            OutputError: see `refuse_outputs`.
        """
        from gguf_export.files.outputs import refuse_outputs
        from gguf_export.files.replacing import is_device
        from gguf_export.writing.state_file import discard_older, refuse_foreign, working_files
        from quantize.exceptions import OutputExistsError

        if self.plot_path is not None and self.plot_path.suffix.lower() not in (".svg", ".png"):
            raise click.UsageError("--plot writes .svg and .png: name the file so")
        try:
            state = self.state_settings()
            own = working_files(state.path) if state else []
            refuse_outputs(self.paths, force=self.force, devices=True, own=own, inputs=inputs)
        except OutputExistsError:
            if self.state is None and all(path.exists() for path in self.paths):  # stopped with its work done
                discard_older(next(path for path in self.paths if not is_device(path)))
            raise
        if self.state is not None:
            refuse_foreign(self.state)

    def state_settings(self) -> StateSettings | None:
        """Where the state is kept, by default beside the first file; None where it is not kept."""
        from gguf_export.comparing.run import StateSettings
        from gguf_export.files.replacing import is_device

        if self.state is not None:
            return StateSettings(self.state, self.state.name, self.restart)
        files = [path for path in self.paths if not is_device(path)]
        return StateSettings.beside(files[0], restart=self.restart) if files else None

    def write(self, comparison: Comparison) -> None:
        """Write the files that are asked for.

        Raises:
            OutputError: the disk is full or broken; or `OutputExistsError`, another run has made one meanwhile.
        """
        from gguf_export.files.outputs import refuse_existing
        from gguf_export.files.replacing import is_device, write_files
        from gguf_export.reports.compare_data import compare_csv, compare_json
        from gguf_export.reports.compare_page import compare_page
        from gguf_export.reports.compare_plots import plot_file
        from gguf_export.reports.compare_tables import compare_markdown

        if not self.force:
            refuse_existing(path for path in self.paths if not is_device(path))
        contents: list[tuple[Path, bytes]] = []
        for path, make in (
            (self.json_path, compare_json),
            (self.csv_path, compare_csv),
            (self.markdown_path, compare_markdown),
            (self.html_path, compare_page),
        ):
            if path is not None:
                contents.append((path, make(comparison).encode("utf-8")))
        if self.plot_path is not None:
            contents.append((self.plot_path, plot_file(self.plot_path, comparison)))
        write_files(contents)


output_options = group(
    "output",
    OutputOptions,
    option("--json", "json_path", type=FILE, metavar="FILE", help="Write all figures as JSON."),
    option("--csv", "csv_path", type=FILE, metavar="FILE", help="Write a line per model and text."),
    option("--markdown", "markdown_path", type=FILE, metavar="FILE", help="Write a table for a model card."),
    option("--html", "html_path", type=FILE, metavar="FILE", help="Write a page with plots."),
    option(
        "--plot",
        "plot_path",
        type=FILE,
        metavar="FILE",
        help="Write size against KL divergence as .svg or .png.",
    ),
    force(FILES),
    option(
        "--state",
        type=FILE,
        metavar="FILE",
        help="Keep the state of the pass there, for a run that is stopped.  [default: beside the first of these files; "
        "without any, none is kept]",
    ),
    option(
        "--restart",
        is_flag=True,
        needs=(*FILES, "state"),
        help="Begin afresh, whatever a run that was stopped has left.",
    ),
)


@click.command(cls=Verb)
@click.argument("paths", nargs=-1, required=True, type=FILE, metavar="[MODEL] [GGUF]...")
@option(
    "--text",
    "texts",
    multiple=True,
    metavar="[NAME=]FILE",
    help="Text to judge by; may be repeated, each text gets its own figures. NAME may hold =; where that leaves a "
    "doubt, begin FILE with ./",
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
@output_options
@option("--timings", is_flag=True, help="Say what the time was spent on.")
@QUIET
def compare(
    paths: tuple[Path, ...],
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
    output: OutputOptions,
    timings: bool,
    quiet: bool,
) -> None:
    """Compare GGUF files with the checkpoint in folder MODEL: perplexity, KL divergence, same top token.

    The figures are llama-perplexity's, with their standard errors, and the share of tokens that still go to the same
    experts. All files are read once, together, layer by layer. A run that was stopped goes on behind the last layer
    that it kept when the same command is given again.
    """
    from calibration.importance.imatrix_files import load_imatrix
    from gguf_export.commands.console import ProgressView
    from gguf_export.commands.messages import say
    from gguf_export.comparing.models import ModelChoice
    from gguf_export.comparing.run import PassSettings, prepare, run
    from gguf_export.comparing.texts import TextChoice
    from quantize.sources.checkpoint_files import files_of_model

    choice = TextChoice.of(*texts, n_ctx=n_ctx, n_chunk=n_chunk)
    models = paths if base is None else (*paths, base)
    inputs = [file for path in models for file in files_of_model(path)]
    inputs += [text.path for text in choice.texts]
    inputs += [Path(path) for path in (imatrix, recipe.tensor_type_file) if path is not None]
    output.check(inputs)
    settings = PassSettings(activations, forward.settings(exact=True))
    importances = load_imatrix(imatrix, prior=prior) if imatrix else None
    job = prepare(
        ModelChoice(paths, base, tuple(recipe.recipes(types)), importances),
        choice,
        note=say,
    )
    with ExitStack() as showing:

        def write(result: CompareResult) -> None:
            showing.close()  # a file may be the terminal that the bar is drawn on
            output.write(result.comparison)

        result = run(
            job,
            settings,
            state=output.state_settings(),
            on_result=write,
            progress=showing.enter_context(ProgressView(quiet=quiet)),
            note=say,
        )
    with summary() if output.paths else nullcontext():
        if not quiet:
            _print_tables(result.comparison)
            for path in output.paths:
                show(f"written: {path}")
        if timings:
            _print_timings(result)


def _print_tables(comparison: Comparison) -> None:
    from gguf_export.commands.console import print_table
    from gguf_export.reports.compare_facts import protocol
    from gguf_export.reports.compare_tables import DETAILS, GLANCE, text_table

    for index in range(len(comparison.texts)):
        print_table(comparison.text_name(index), *text_table(comparison, index, GLANCE, brief=True))
        print_table("", *text_table(comparison, index, DETAILS, brief=True))
    for name, how in protocol(comparison):
        show(f"{name}: {how}")


def _print_timings(result: CompareResult) -> None:
    from gguf_export.commands.console import print_table
    from gguf_export.files.sizes import size_in_words
    from gguf_export.reports.compare_tables import timing_table

    print_table("timings", *timing_table(result.comparison.timings))
    show(f"{result.n_in_pass} models, {size_in_words(result.bytes_read)} of weights read")
