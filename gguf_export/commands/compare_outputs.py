"""What `compare` writes: the options for it, what is refused before the work, and the writing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gguf_export.commands.options import FILE, force
from gguf_export.commands.verb import group, option

if TYPE_CHECKING:
    from gguf_export.comparing.results import Results
    from gguf_export.comparing.run import StateSettings

__all__ = ["FILES", "OutputOptions", "output_options"]

FILES = ("json_path", "csv_path", "markdown_path", "html_path", "plot_paths")
"""The parameters that ask for a file."""


@dataclass(frozen=True)
class OutputOptions:
    """What is made of the figures."""

    json_path: Path | None
    csv_path: Path | None
    markdown_path: Path | None
    html_path: Path | None
    plot_paths: tuple[Path, ...]
    force: bool
    state: Path | None
    restart: bool

    @property
    def paths(self) -> list[Path]:
        """The files that are asked for."""
        paths = (self.json_path, self.csv_path, self.markdown_path, self.html_path, *self.plot_paths)
        return [path for path in paths if path is not None]

    def refuse(self, inputs: Iterable[Path]) -> None:
        """Refuse outputs as `check` does, for work that keeps no state.

        Raises:
            OutputError: see `refuse_outputs`.
        """
        from gguf_export.files.outputs import refuse_outputs

        self._refuse_plots()
        refuse_outputs(self.paths, force=self.force, devices=True, inputs=inputs)

    def _refuse_plots(self) -> None:
        if any(path.suffix.lower() not in (".svg", ".png") for path in self.plot_paths):
            raise click.UsageError("--plot writes .svg and .png: name the file so")

    def check(self, inputs: Iterable[Path]) -> None:
        """Refuse outputs that could not be written, or would replace one of the inputs, before hours of work.

        Raises:
            OutputError: see `refuse_outputs`.
        """
        from gguf_export.files.outputs import refuse_outputs
        from gguf_export.files.replacing import is_device
        from gguf_export.writing.state_file import discard_older, refuse_foreign, working_files
        from quantize.exceptions import OutputExistsError

        self._refuse_plots()
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

    def write(self, results: Results) -> None:
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
        makers: tuple[tuple[Path | None, Callable[[Results], str]], ...] = (
            (self.json_path, compare_json),
            (self.csv_path, compare_csv),
            (self.markdown_path, compare_markdown),
            (self.html_path, compare_page),
        )
        contents = [(path, make(results).encode("utf-8")) for path, make in makers if path is not None]
        contents += [(path, plot_file(path, results)) for path in self.plot_paths]
        write_files(contents)


output_options = group(
    "output",
    OutputOptions,
    option("--json", "json_path", type=FILE, metavar="FILE", help="Write all figures as JSON."),
    option("--csv", "csv_path", type=FILE, metavar="FILE", help="Write a line per model and text."),
    option("--markdown", "markdown_path", type=FILE, metavar="FILE", help="Write tables for a model card."),
    option("--html", "html_path", type=FILE, metavar="FILE", help="Write a page with plots."),
    option(
        "--plot",
        "plot_paths",
        multiple=True,
        type=FILE,
        metavar="FILE",
        help="Write size against KL divergence as .svg or .png; may be repeated.",
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
