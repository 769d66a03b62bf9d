"""Texts that come with the package, by names that stand for their files in `calibration/texts`.

A name never means a file of the same name, so that it means the same bytes everywhere; such a file is given by a path
with a folder in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from quantize.containers.untrusted import quoted
from quantize.exceptions import TextError

__all__ = ["CALIBRATION", "HELD_OUT", "built_in_files", "expanded", "is_built_in"]

CALIBRATION, HELD_OUT = "builtin:calibration", "builtin:held-out"
_PREFIX = "builtin:"
_FOLDER = Path(__file__).parents[1] / "texts"


def built_in_files(name: str) -> dict[str, Path] | None:
    """The files of a built-in text by what they hold, None where the name is that of a file.

    `builtin:calibration` is one mixture of all kinds of text, and dialogues; `builtin:held-out` has a file per kind.

    Raises:
        TextError: there is no such built-in text.
    """
    if not name.startswith(_PREFIX):
        return None
    if name not in (CALIBRATION, HELD_OUT):
        raise TextError(
            name, "is no built-in text", f"these are {quoted(CALIBRATION)} and {quoted(HELD_OUT)}"
        )
    stem = f"moe-gguf-{name.removeprefix(_PREFIX)}"
    files = sorted(_FOLDER.glob(f"{stem}*"), key=lambda path: (path.suffix == ".jsonl", path.name))
    return {path.stem.removeprefix(stem).removeprefix("-") or "mixture": path for path in files}


def expanded(paths: Iterable[Path]) -> tuple[Path, ...]:
    """The paths, with the files of a built-in text in the place of its name.

    Raises:
        TextError: there is no such built-in text.
    """
    files: list[Path] = []
    for path in paths:
        found = built_in_files(str(path))
        files += [path] if found is None else found.values()
    return tuple(files)


def is_built_in(path: Path) -> bool:
    """Whether a file is one of a built-in text."""
    return path.parent == _FOLDER
