"""Errors, remarks and findings of the library in the words of the command line: settings become switches."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from gguf_export.commands.exit_codes import FINDINGS
from gguf_export.commands.streams import show, show_json, tell

if TYPE_CHECKING:
    from gguf_export.checking.findings import Findings
    from quantize.exceptions import MoeGgufError
    from quantize.telling import Remark


def switch(setting: str) -> str:
    """The option that sets a parameter of the library: `tensor_type` is `--tensor-type`."""
    return "--" + setting.replace("_", "-")


def say(remark: Remark) -> None:
    """Show a remark to the person at the terminal, beside what goes to standard output."""
    tell(remark.line(switch))


@contextmanager
def saying_warnings() -> Iterator[None]:
    """Within the block, remarks that come as warnings are shown like all others."""
    from quantize.telling import RemarkWarning

    with warnings.catch_warnings():
        usual = warnings.showwarning

        def said(message: Warning | str, *details: Any, **more: Any) -> None:
            if isinstance(message, RemarkWarning):
                say(message.remark)
            else:
                usual(message, *details, **more)

        warnings.showwarning = said
        yield


def error_line(error: MoeGgufError) -> str:
    """An error as one line, and the command that lists more of the same kind."""
    from quantize.exceptions import ActivationError

    line = error.line(switch)
    if isinstance(error, ActivationError) and error.model:
        path, word = Path(error.model), quote(error.model)  # somebody will paste it into a shell
        if path.is_dir():
            line += f"; moe-gguf doctor {word} --full lists what is damaged"
        elif path.is_file():
            line += f"; moe-gguf verify {word} lists what is damaged"
    return f"moe-gguf: error: {line}"


def show_findings(findings: Findings, as_json: bool) -> None:
    """Print findings, the worst first, and exit with 1 where there is an error, so that a script knows."""
    if as_json:
        show_json(findings.as_json(switch))
    else:
        for finding in findings:
            show(finding.line(switch))
        show(findings.summary())
    if findings.worst == "error":
        sys.exit(FINDINGS)


def show_all_findings(found: Mapping[Path, Findings], as_json: bool) -> None:
    """`show_findings` for several files, each named."""
    from quantize.containers.untrusted import label, printable

    if as_json:
        show_json(
            [
                {"file": label(path), **finding}
                for path, findings in found.items()
                for finding in findings.as_json(switch)
            ]
        )
    else:
        for path, findings in found.items():
            for finding in findings:
                show(finding.line(switch))
            show(printable(f"{path}: {findings.summary()}"))
    if any(findings.worst == "error" for findings in found.values()):
        sys.exit(FINDINGS)
