"""May these files be written? Asked once for all outputs of a command together, before its work."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

from gguf_export.files.opening import file_id, refuse_strange, status_of, stream_number
from gguf_export.files.replacing import is_device, partial_path
from quantize.exceptions import NoSpaceError, OutputError, OutputExistsError, is_full

__all__ = ["refuse_existing", "refuse_outputs"]


def refuse_outputs(
    outputs: Sequence[Path],
    *,
    force: bool = False,
    devices: bool = False,
    made: Sequence[Path] = (),
    own: Sequence[Path] = (),
    inputs: Iterable[Path] = (),
) -> None:
    """Refuse, before hours of work, outputs that could not be written at its end, or would destroy something.

    Args:
        outputs: files that the user named.
        force: replace those of `outputs` that exist; of a link the link and not its target.
        devices: take a device such as /dev/stdout, too; several outputs may go to one.
        made: files whose names the work derives, in folders that it makes. They may exist.
        own: files that the work keeps for itself, such as a state. They may exist, and no link is followed.
        inputs: files that are read, whether they exist or not.

    Raises:
        OutputExistsError: a file exists, and `force` is not given; everything else is in order.
        OutputError: a folder is missing or cannot be written, a name is that of a folder or of a device, two outputs
            are the same file, an output is an input, something strange lies under the name of a working file.
    """
    files = [path for path in outputs if not (devices and is_device(path) and not _is_folder(path))]
    for path in files:
        _refuse_kind(path)
    for path in set(outputs) - set(files):
        _refuse_closed(path)
    for path in made:
        status = status_of(path)
        if status is not None and not path.is_symlink():
            refuse_strange(path)
    working = [*own, *map(partial_path, (*files, *made))]
    for path in working:
        refuse_strange(path)
    places = [*files, *made, *working]
    _refuse_twins(places, set(working))
    _refuse_inputs(places, inputs)
    for folder in dict.fromkeys(path.absolute().parent for path in places):
        _refuse_folder(folder)
    if not force:
        refuse_existing(files)


def refuse_existing(outputs: Iterable[Path]) -> None:
    """Refuse files that exist, and links, wherever they lead.

    Raises:
        OutputExistsError: there is one.
    """
    for path in outputs:
        if status_of(path) is not None:
            raise OutputExistsError(
                str(path), "exists already", "pass {setting} to replace it", setting="force"
            )


def _refuse_kind(path: Path) -> None:
    """Refuse a name under which no file can be put."""
    if not _is_folder(path.absolute().parent):
        raise OutputError(str(path), "there is no such folder", "make it first")
    status_of(path)  # a name that is too long
    if _is_folder(path):
        raise OutputError(str(path), "is a folder", "name a file in it")
    if is_device(path):
        raise OutputError(str(path), "is no file, so it cannot be replaced", "choose another name")


def _refuse_closed(path: Path) -> None:
    """Refuse a name for a stream of this process that is not open."""
    number = stream_number(path)
    if number is not None:
        try:
            os.fstat(number)
        except OSError as error:
            raise OutputError(str(path), "is closed", "choose another name") from error


def _refuse_twins(places: Sequence[Path], working: Container[Path]) -> None:
    """Refuse two outputs, or an output and a working file, that are one file."""
    seen: dict[object, Path] = {}
    for name in places:
        keys = _keys(name)
        for other in (seen[key] for key in keys if key in seen):
            if name in working:
                raise OutputError(
                    str(other), "is the name of a file that the work keeps", "choose another name"
                )
            raise OutputError(str(name), "named twice", "choose a file for each")
        seen |= dict.fromkeys(keys, name)


def _refuse_inputs(places: Sequence[Path], inputs: Iterable[Path]) -> None:
    """Refuse an output or a working file that is read, too."""
    read: dict[object, Path] = {}
    for path in inputs:
        read |= dict.fromkeys(_keys(path) | _keys(Path(os.path.realpath(path))), path)
    for name in places:
        for key in _keys(name) & read.keys():
            other = read[key]
            message = "is read, too" if other == name else f"would replace {other}, which is read"
            raise OutputError(str(name), message, "choose another name for what is written")


def _keys(path: Path) -> set[object]:
    """What tells a file from others: its place, and its identity where it exists; the last name is not followed."""
    keys: set[object] = {Path(os.path.realpath(path.absolute().parent)) / path.name}
    with contextlib.suppress(OSError):
        keys.add(file_id(path.lstat()))
    return keys


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long
        return False


def _refuse_folder(folder: Path) -> None:
    """Refuse a folder into which nothing can be written; of one that is still to be made, that in which it will be."""
    while not _is_folder(folder) and folder != folder.parent:
        if status_of(folder) is not None:
            raise OutputError(str(folder), "is no folder", "choose another place")
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):  # where the system can, it never has a name
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        kind = NoSpaceError if is_full(error) else OutputError
        raise kind(str(folder), f"cannot be written into: {reason}", "choose another folder") from error
