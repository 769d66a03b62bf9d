"""Standard output and error, whatever became of them: closed, full, a broken pipe, an encoding that lacks characters.

While the command line works they take every text, and nothing that is printed raises an error. What standard output
could not take is known at the end: it costs the exit status where the text was the result, and a remark where files
are. What standard error could not take is lost: no work ends because nobody can be told of it.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from gguf_export.commands.exit_codes import OUTPUT

__all__ = ["show", "show_json", "standard_streams", "summary", "tell"]

BROKEN_PIPE = 128 + 13
"""The exit status that a shell gives to a program which SIGPIPE ended, as it ends the tools of Unix."""


class _Sink(io.RawIOBase):
    """Takes all bytes and hands them on until that fails once; `failure` is the reason."""

    def __init__(self, inner: io.RawIOBase | None) -> None:
        """Hand on to `inner`; None: there is no such stream, as every write will find."""
        super().__init__()
        self._inner = inner
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Take all bytes, or such a number of them as the stream below takes at once."""
        if self.failure is None:
            try:
                return self._handed_on(data)
            except OSError as failure:
                self.failure = failure
        return len(data)

    def _handed_on(self, data: Any) -> int:
        if self._inner is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        while (n_bytes := self._inner.write(data)) is None:  # set not to block by whoever else has it open
            select.select([], [self._inner], [])
        return n_bytes

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._inner is not None and self._inner.isatty()

    def fileno(self) -> int:
        if self._inner is None:
            raise io.UnsupportedOperation("fileno")
        return self._inner.fileno()


@contextmanager
def standard_streams() -> Iterator[None]:
    """Put streams that never fail in the places of sys.stdout and sys.stderr, as long as the block lasts.

    Raises:
        SystemExit: all went well, but standard output could not take what was printed.
    """
    _fill_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _unfailing(sys.stdout), _unfailing(sys.stderr, at_once=True)
    left: SystemExit | None = None
    try:
        try:
            yield
        except SystemExit as leaving:
            left = leaving
        failure = _lost()
        if failure is not None and failure.errno != errno.EPIPE:
            tell(f"moe-gguf: error: standard output: {_cause(failure)}")
        if failure is not None and not (left and left.code):
            raise SystemExit(BROKEN_PIPE if failure.errno == errno.EPIPE else OUTPUT)
        if left is not None:
            raise left
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _fill_descriptors() -> None:
    """Open the null device under the numbers of standard streams that are closed.

    The next file that is opened would get such a number, and everything that is printed there, be it by a library in
    C, would go into the file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.set_inheritable(
                    os.open(os.devnull, os.O_RDWR), True
                )  # it gets the lowest number that is free


def _unfailing(stream: Any, *, at_once: bool = False) -> Any:
    """A text stream that takes everything, `at_once` line by line, and hands it on to the same place as `stream`."""
    if stream is None:
        return io.TextIOWrapper(io.BufferedWriter(_Sink(None)), encoding="utf-8", errors="backslashreplace")
    buffer = getattr(stream, "buffer", None)
    inner = getattr(buffer, "raw", buffer)
    if not isinstance(inner, io.RawIOBase):
        return stream  # held in memory, by a notebook or a test
    with suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Sink(inner)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=at_once or stream.line_buffering or stream.write_through,
    )


def _lost() -> OSError | None:
    """Why some of what was printed did not reach standard output; told once. None where all did."""
    if sys.stdout is None:
        return None
    sys.stdout.flush()
    sink = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if not isinstance(sink, _Sink):
        return None
    failure, sink.failure = sink.failure, None
    return failure


def _cause(failure: OSError) -> str:
    return f"cannot be written: {failure.strerror or failure}"


@contextmanager
def summary() -> Iterator[None]:
    """Print what may be lost, because the result is in files that are whole: a failure is said and forgotten."""
    yield
    failure = _lost()
    if failure is not None and failure.errno != errno.EPIPE:
        tell(f"standard output: {_cause(failure)}; the files are whole")


def show(line: str = "") -> None:
    """Print a line on standard output; what a terminal would obey is escaped."""
    _print(line, sys.stdout)


def show_json(value: Any) -> None:
    """Print a value as JSON, in ASCII, on standard output."""
    from gguf_export.reports.data_texts import json_text

    print(json_text(value))


def tell(line: str) -> None:
    """Print a line on standard error; what a terminal would obey is escaped."""
    _print(line, sys.stderr)


def _print(line: str, stream: IO[str] | None) -> None:
    from quantize.containers.untrusted import printable

    if stream is not None:  # print(file=None) would take the other stream
        print(printable(line), file=stream)
