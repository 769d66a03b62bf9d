"""What the command line shows while it works and when it is done: progress and tables; nothing else prints."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from gguf_export.commands.streams import tell
from gguf_export.files.sizes import size_in_words
from quantize.containers.untrusted import printable
from quantize.telling import Progress as Moment

if TYPE_CHECKING:  # a run that shows no bar does not wait for it
    from rich.progress import Progress, TaskID
    from rich.table import Table

MIN_TEXT = 8  # characters of a column of text, however narrow the terminal is
BAR = 20  # characters; lines that fill the terminal would be left behind by the ^C that it echoes
LOG_SECONDS = 10.0  # between two lines of the same stage where there is no terminal


def amount(number: float, unit: str) -> str:
    """An amount of work with its unit."""
    return size_in_words(number) if unit == "B" else f"{number:,.0f} {unit}"


class ProgressView:
    """Shows `quantize.telling` moments: a bar on a terminal, plain lines in a log, nothing when quiet.

    Used as a context manager; the instance is the callback that library calls take.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, tuple[float, int]] = {}
        self._logged: dict[str, float] = {}
        self._seen: dict[str, Moment] = {}

    def __enter__(self) -> ProgressView:
        if not self._quiet:
            self._bars = _bars()
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def __call__(self, moment: Moment) -> None:
        """Show one moment."""
        if self._quiet:
            return
        now = time.monotonic()
        seen = self._seen.get(moment.stage)
        if seen == moment:
            return
        self._seen[moment.stage] = moment
        if seen is not None and moment.done < seen.done:  # the stage begins once more, for another file
            self._started.pop(moment.stage)
            self._logged.pop(moment.stage, None)
        # What was done before the first moment, by a run that this one continues, took no time of this one.
        started, before = self._started.setdefault(moment.stage, (now, moment.done))
        rate = (moment.done - before) / (now - started) if now > started else 0.0
        rate_text = f"{amount(rate, moment.unit)}/s" if rate >= 1 else ""
        if self._bars:
            if moment.stage not in self._tasks:
                self._tasks[moment.stage] = self._bars.add_task(
                    moment.stage, total=moment.total, completed=moment.done, rate=""
                )
            self._bars.update(
                self._tasks[moment.stage], completed=moment.done, total=moment.total, rate=rate_text
            )
            return
        finished = moment.done >= moment.total
        if not finished and now - self._logged.get(moment.stage, 0.0) < LOG_SECONDS:
            return
        self._logged[moment.stage] = now
        left = f", {(moment.total - moment.done) / rate:.0f} s left" if rate and not finished else ""
        done, total = amount(moment.done, moment.unit), amount(moment.total, moment.unit)
        if moment.unit != "B":
            done = f"{moment.done:,}"
        tell(f"{moment.stage}: {done} of {total}{', ' + rate_text if rate_text else ''}{left}")


def _bars() -> Progress | None:
    """Bars on standard error, None where that is no terminal."""
    from rich.console import Console

    console = Console(file=sys.stderr, stderr=True)
    if not console.is_terminal:
        return None
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=BAR),
        TextColumn("{task.percentage:>3.0f}%  {task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
    )


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output; columns whose name begins with '>' hold numbers and are aligned to the right.

    What stands in it is text as it is, no markup; what a terminal would obey is escaped: names come from strangers.
    A file or a pipe gets plain columns, as wide as they need to be, for programs and for mails.
    """
    if not sys.stdout.isatty():
        for line in plain_table(title, columns, rows, sys.stdout.encoding or "utf-8"):
            print(line)
        return
    from rich.console import Console

    console = Console()
    table = make_table(title, columns, rows, console.width, console.encoding)
    console.print(table, crop=False, overflow="ignore")


def plain_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], encoding: str = "utf-8"
) -> list[str]:
    """The lines of a table without rules: the title, the headings, the rows, two spaces between columns."""
    from rich.cells import cell_len

    heads = [column.lstrip(">") for column in columns]
    lines = [[_sayable(cell, encoding) for cell in row] for row in ([heads] if any(heads) else [])]
    lines += [[_sayable(cell, encoding) for cell in row] for row in rows]
    widths = [max(cell_len(row[i]) for row in lines) if lines else 0 for i in range(len(columns))]
    shown = [_sayable(title, encoding)] if title else []
    for line in lines:
        cells = []
        for column, cell, width in zip(columns, line, widths, strict=True):
            room = " " * (width - cell_len(cell))
            cells.append(room + cell if column.startswith(">") else cell + room)
        shown.append("  ".join(cells).rstrip())
    return [*shown, ""]


def make_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, encoding: str = "utf-8"
) -> Table:
    """The table for a terminal of some width: where it is narrow, headings wrap and lines go; numbers never wrap.

    Characters that `encoding` lacks are escaped before columns are measured; the lines are rich's affair.
    """
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    cells = [[_sayable(cell, encoding) for cell in row] for row in rows]
    heads = [_sayable(column.lstrip(">"), encoding) for column in columns]
    is_text = [not column.startswith(">") for column in columns]
    room = [max([cell_len(row[i]) for row in cells], default=0) for i in range(len(columns))]
    widths = [max(one, cell_len(head)) for one, head in zip(room, heads, strict=True)]
    table = Table(title=Text(_sayable(title, encoding), "bold") if title else None, title_justify="left")
    if sum(widths) + 3 * len(columns) + 1 > width:
        table.box, table.show_edge, table.pad_edge, table.padding = SIMPLE_HEAD, False, False, (0, 1, 0, 0)
        least = [max([one, *map(cell_len, head.split())]) for one, head in zip(room, heads, strict=True)]
        numbers = sum(one for one, text in zip(least, is_text, strict=True) if not text)
        left = (width - numbers - 2 * (len(columns) - 1)) // max(1, sum(is_text))
        widths = [
            min(one, max(MIN_TEXT, left)) if text else one for one, text in zip(least, is_text, strict=True)
        ]
        needed = sum(widths) + 2 * (len(columns) - 1)
        table.width = needed if needed > width else None
    for head, text, fitting in zip(heads, is_text, widths, strict=True):
        table.add_column(Text(head), justify="left" if text else "right", overflow="fold", width=fitting)
    for row in cells:
        table.add_row(*map(Text, row))
    return table


def _sayable(text: str, encoding: str) -> str:
    return printable(text).encode(encoding, "backslashreplace").decode(encoding)
