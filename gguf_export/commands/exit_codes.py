"""The exit statuses of the command line, by the kind of what ended it; those of signals are a shell's: 128 + number."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantize.exceptions import MoeGgufError

__all__ = ["DEFECT", "EPILOG", "FINDINGS", "INPUT", "INTERRUPTED", "OUTPUT", "USAGE", "status_of"]

FINDINGS = 1
"""`doctor` or `verify` did its work, and found an error; `upload`: a file is not what SHA256SUMS says."""
USAGE = 2
"""What was asked for cannot be: an unknown option, type or device, or things that do not go together (click's own)."""
INPUT = 3
"""A model, text or importance matrix is missing, damaged, or does not fit the others."""
OUTPUT = 4
"""A file cannot be written: the disk is full, the folder closed, a file there already, another run at work; or the Hub
refuses what is sent, or cannot be reached."""
DEFECT = 70
"""A defect of this program, whose traceback is printed (EX_SOFTWARE of sysexits.h)."""
INTERRUPTED = 128 + 2
"""Ctrl-C."""

EPILOG = (
    "Exit status: 0 done, or nothing to do; 1 doctor or verify found an error, or a checksum differs; 2 usage; 3 a "
    "file that is read; 4 a file that is written, its disk, or the Hub; 70 a defect of this program; 130 Ctrl-C, other "
    "signals 128 + their number."
)


def status_of(error: MoeGgufError) -> int:
    """The exit status for an error of the library."""
    from quantize import exceptions

    if isinstance(error, exceptions.OutputError):
        return OUTPUT
    if isinstance(error, exceptions.ChecksumError):
        return FINDINGS
    asked = (
        exceptions.ChoiceError,
        exceptions.DeviceError,
        exceptions.NeedsImatrixError,
        exceptions.RecipeError,
    )
    return USAGE if isinstance(error, asked) else INPUT
