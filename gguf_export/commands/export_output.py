"""What `export` shows of its plan or result: tables on standard output, or JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_export.commands.messages import say, switch
from gguf_export.commands.streams import show, summary

if TYPE_CHECKING:
    from gguf_export.writing.export import ExportPlan, ExportResult, FileFigures
    from gguf_export.writing.results import FeedbackFigures
    from quantize.telling import Remark

STDOUT = Path("-")


@dataclass
class ExportOutput:
    """Shows remarks as they come, and at the end the plan or the result, as tables or as JSON."""

    json_path: Path | None
    quiet: bool
    remarks: list[Remark] = field(default_factory=list)

    @property
    def shows_tables(self) -> bool:
        """Whether tables go to standard output."""
        return not self.quiet and self.json_path != STDOUT

    def check(self, model: Path, folder: Path | None, inputs: Sequence[Path], imatrix: Path | None) -> None:
        """Refuse files that could not be written, or would replace something that is read.

        Raises:
            OutputError: see `refuse_outputs`.
        """
        from gguf_export.files.outputs import refuse_outputs
        from quantize.sources.checkpoint_files import files_of_model

        named = [path for path in (self.json_path, imatrix) if path is not None and path != STDOUT]
        # A folder is made for the files, and for what lies beside them.
        made = [path for path in named if folder is not None and path.absolute().parent == folder.absolute()]
        others = [path for path in named if path not in made]
        read = [*inputs, *files_of_model(model)]
        refuse_outputs(others, force=True, devices=True, made=made, inputs=read)

    def note(self, remark: Remark) -> None:
        """Show a remark, and keep it."""
        say(remark)
        self.remarks.append(remark)

    def show_plan(self, planned: ExportPlan) -> None:
        """Show what would be written."""
        from gguf_export.files.disk import free_bytes
        from gguf_export.reports.export_data import export_json

        for remark in planned.remarks:
            self.note(remark)
        if self.json_path is not None:
            free = free_bytes(planned.files[0].path.parent)
            self._write(export_json(planned, self.remarks, free_bytes=free, spell=switch))
        if self.json_path != STDOUT:
            print_plan(planned)

    def show_result(self, result: ExportResult) -> None:
        """Show what was written."""
        from gguf_export.reports.export_data import export_json

        if self.json_path is not None:
            self._write(export_json(result, self.remarks, spell=switch))
        if self.shows_tables:
            with summary():
                print_result(result)

    def _write(self, text: str) -> None:
        from gguf_export.files.replacing import write_text

        if self.json_path == STDOUT:
            print(text, end="")
        elif self.json_path is not None:
            write_text(self.json_path, text)


def print_plan(planned: ExportPlan) -> None:
    """Print each file, tensor by tensor."""
    from gguf_export.commands.console import print_table
    from gguf_export.files.sizes import size_in_words

    for file in planned.files:
        for part in file.parts:
            rows = [
                (
                    tensor.name,
                    " x ".join(map(str, tensor.shape)),
                    tensor.qtype,
                    size_in_words(tensor.n_bytes),
                    str(tensor.offset),
                )
                for tensor in part.tensors
            ]
            print_table(str(part.path), ("tensor", ">shape", "type", ">size", ">offset"), rows)
            if len(file.parts) > 1:
                show(size_in_words(part.n_bytes))
        in_parts = f" in {len(file.parts)} parts" if len(file.parts) > 1 else ""
        show(f"{size_in_words(file.n_bytes)}{in_parts}, {file.bpw:.2f} bits per weight")
        show()
    show(_in_all(planned))


def _in_all(planned: ExportPlan) -> str:
    """What all files of a plan take together, and how much is free."""
    from gguf_export.files.disk import free_bytes
    from gguf_export.files.sizes import size_in_words

    n_bytes = sum(file.n_bytes for file in planned.files)
    what = _count(len(planned.files), "file")
    if planned.imatrix is not None:
        path, n_imatrix = planned.imatrix
        what += f" and {path}, {size_in_words(n_imatrix)}"
        n_bytes += n_imatrix
    folder = planned.files[0].path.parent
    line = f"{what}: {size_in_words(n_bytes)} in all, {size_in_words(free_bytes(folder))} free in {folder}"
    return line if planned.seconds is None else f"{line}; about {time_in_words(planned.seconds)} of encoding"


def time_in_words(seconds: float) -> str:
    """A time as rough as an estimate is."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = seconds / 60
    return f"{round(minutes)} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"


def print_result(result: ExportResult) -> None:
    """Print what was written, and how fast."""
    from gguf_export.commands.console import print_table
    from gguf_export.commands.load import print_load
    from gguf_export.files.sizes import size_in_words

    made = [file for file in result.files if not all(part.path in result.standing for part in file.parts)]
    n_left = len(result.files) - len(made)
    if not made and result.calibration is None:
        show("nothing to do: " + ("the file is there" if n_left == 1 else f"all {n_left} files are there"))
        return
    if result.calibration is not None:
        print_load(result.calibration)
    if result.feedback is not None:
        print_feedback(result.feedback)
    seconds = result.seconds.wall
    rows = [
        (
            _with_parts(file),
            file.ftype,
            size_in_words(file.n_bytes),
            f"{file.bpw:.2f}",
        )
        for file in made
    ]
    print_table("", ("file", "type", ">size", ">bpw"), rows)
    if n_left:
        show(f"{_count(len(made), 'file')} made, {_count(n_left, 'file')} left as they were")
    if result.imatrix is not None:
        show(f"importances: {result.imatrix}")
    rate = size_in_words(result.bytes_read / seconds) if seconds else "-"
    show(f"{size_in_words(result.bytes_read)} read once, {seconds:.1f} seconds, {rate}/s")


def print_feedback(figures: FeedbackFigures) -> None:
    """Print how error feedback fared, and each matrix that it did not reach."""
    from gguf_export.commands.console import print_table

    rows = [(name, str(xid), str(n_token)) for name, xid, n_token in figures.starved]
    if rows:
        title = "Encoded plainly, because too few tokens reached them"
        print_table(title, ("tensor", ">expert", ">tokens"), rows)
    show(
        f"error feedback: {figures.n_fed_back} of {figures.n_matrix} matrices; of the others, "
        f"{figures.n_plain_better} are better as llama.cpp encodes them, and too few tokens reached {len(rows)}"
    )
    show(figures.in_words + (", which is therefore what was written" if figures.is_worse else ""))


def _with_parts(file: FileFigures) -> str:
    """The name of a file, and how many of its parts follow."""
    more = len(file.parts) - 1
    return f"{file.path} and {more} more" if more else str(file.path)
