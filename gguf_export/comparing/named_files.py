"""NAME=FILE: a file, and the name under which reports show it."""

from __future__ import annotations

import os
from collections.abc import Callable

from quantize.containers.untrusted import label, quoted
from quantize.exceptions import MoeGgufError

__all__ = ["is_file", "is_there", "split_name"]


def split_name(text: str, error: type[MoeGgufError], exists: Callable[[str], bool]) -> tuple[str, str]:
    """The name, valid text, and the file of NAME=FILE; the name is empty where there is only a file.

    A file that is called so as a whole is taken. Else NAME may hold = as well as FILE: the file that is there
    tells where it begins. Where there are several, a NAME without / counts, so that `./` before FILE decides.

    Args:
        text: as it was given.
        error: what is raised.
        exists: whether a file has some name.

    Raises:
        error: there are several = and no such file, or several.
    """
    ends = [i for i, sign in enumerate(text) if sign == "=" and i]
    if not ends or exists(text):
        return "", text
    readings = [(label(text[:i]), text[i + 1 :]) for i in ends]
    if len(readings) == 1:
        return readings[0]
    found = [reading for reading in readings if exists(reading[1])]
    if len(found) > 1:
        found = [reading for reading in found if "/" not in reading[0]] or found
    if len(found) != 1:
        files = " and ".join(quoted(file) for _, file in found)
        raise error(
            text,
            f"NAME=FILE can be read in several ways, for {files} are files"
            if found
            else "NAME=FILE names no file, wherever it is cut",
            "write ./ before FILE" if found else "see to the name of the file",
        )
    return found[0]


def is_file(path: str) -> bool:
    """Whether a file is there, whatever the name holds."""
    return os.path.isfile(path)  # noqa: PTH113 - Path raises where a name is too long


def is_there(path: str) -> bool:
    """Whether a file or a folder is there, whatever the name holds."""
    return os.path.exists(path)  # noqa: PTH110 - Path raises where a name is too long
