"""May these files be written? Asked once for all outputs of a command, before its work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from gguf_export.files.replacing import is_device
from quantize.exceptions import OutputError, OutputExistsError

__all__ = ["refuse_existing", "refuse_outputs"]


def refuse_outputs(
    outputs: Sequence[Path], *, force: bool = False, devices: bool = False, own: Sequence[Path] = ()
) -> None:
    """Refuse, before hours of work, outputs that could not be written at its end.

    Args:
        outputs: all files that the work will make.
        force: replace files that exist.
        devices: take a device such as /dev/stdout, too; several outputs may go to one.
        own: further files that the work keeps for itself, such as a state; they may exist.

    Raises:
        OutputExistsError: a file exists, and `force` is not given; everything else is in order.
        OutputError: a folder is missing, a name is that of a folder or of a device, or two outputs are the same file.
    """
    for path in (*outputs, *own):
        if not path.absolute().parent.is_dir():
            raise OutputError(str(path), "there is no such folder", "make it first")
        if path.is_dir():
            raise OutputError(str(path), "is a folder", "name a file in it")
        if is_device(path) and not devices:
            raise OutputError(str(path), "is no file, so it cannot be replaced", "choose another name")
    files = [path.resolve() for path in (*outputs, *own) if not is_device(path)]
    for path in files:
        if files.count(path) > 1:
            raise OutputError(str(path), "named twice", "choose a file for each")
    if not force:
        refuse_existing(path for path in outputs if not is_device(path))


def refuse_existing(outputs: Iterable[Path]) -> None:
    """Refuse files that exist.

    Raises:
        OutputExistsError: there is one.
    """
    for path in outputs:
        if path.exists():
            raise OutputExistsError(
                str(path), "exists already", "pass {setting} to replace it", setting="force"
            )
