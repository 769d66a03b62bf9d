"""What is done of a release: for each file its SHA-256 and the checks that it passed.

While the work goes on it lies beside the files under a name of its own; at the end it is a part of recipe.json, by
which a later call knows that there is nothing to do, or which file is new.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from gguf_export.files.opening import status_of
from gguf_export.files.replacing import write_text
from gguf_export.writing.results import FileFigures
from quantize.containers.untrusted import read_json
from quantize.exceptions import ChoiceError

__all__ = [
    "KIND",
    "RECIPE",
    "SCHEMA",
    "WORKING",
    "ExpertErrors",
    "FileRecord",
    "Record",
    "recorded_files",
    "stored_recipe",
]

RECIPE = "recipe.json"
WORKING = ".release.json"
KIND = "moe-gguf release"
SCHEMA = 1


@dataclass(frozen=True)
class FileRecord:
    """One GGUF file: its file type, size in bytes and SHA-256, and what was found.

    others: size in bytes and SHA-256 of the parts behind the first, by their names; none where the file is not split.
    verified: what it was held against, empty where that is still to be done.
    smoke: the verdict of the smoke test, empty likewise.
    compared: a hash of all that decides its figures, empty likewise.
    """

    ftype: str
    n_bytes: int
    sha256: str
    verified: str = ""
    smoke: str = ""
    compared: str = ""
    others: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    def parts(self, name: str) -> dict[str, tuple[int, str]]:
        """Size and SHA-256 of each file on the disk, by its name; the first is called `name`."""
        return {name: (self.n_bytes, self.sha256), **self.others}


@dataclass(frozen=True)
class ExpertErrors:
    """The median output error of each expert, by file type; None where it is not known.

    key: a hash of all that decides them.
    """

    key: str
    medians: Mapping[str, tuple[float | None, ...]]

    @classmethod
    def of(cls, told: Any) -> ExpertErrors | None:
        """Read back what a record says; None where that is nothing of the kind."""
        try:
            medians = {str(name): tuple(each) for name, each in told["medians"].items()}
            figures = [figure for each in medians.values() for figure in each if figure is not None]
            return cls(str(told["key"]), medians) if all(type(one) is float for one in figures) else None
        except (KeyError, TypeError, AttributeError):
            return None


@dataclass
class Record:
    """The files by their names, all held against one state of the checkpoint (`source`)."""

    folder: Path
    source: str
    files: dict[str, FileRecord] = field(default_factory=dict)
    errors: ExpertErrors | None = None

    @classmethod
    def of(cls, folder: Path, source: str) -> Record:
        """The record of earlier work in a folder: of files that are those of that time.

        Args:
            folder: of the release.
            source: the fingerprint of the checkpoint.
        """
        record = cls(folder, source)
        for path in (folder / WORKING, folder / RECIPE):
            told = stored_recipe(path)
            if told is None or told.get("source") != source:
                continue
            record.errors = record.errors or ExpertErrors.of(told.get("errors"))
            written = path.stat().st_mtime_ns
            for name, entry in recorded_files(told).items():
                if all(
                    (status := status_of(folder / part))
                    and status.st_size == n_bytes
                    and status.st_mtime_ns <= written
                    for part, (n_bytes, _) in entry.parts(name).items()
                ):
                    record.files.setdefault(name, entry)
        return record

    def name_of(self, path: Path) -> str:
        """The name of a file of the folder, with / between folders."""
        return path.relative_to(self.folder).as_posix()

    def of_file(self, file: FileFigures) -> FileRecord:
        """What is known of a file."""
        return self.files[self.name_of(file.path)]

    def sums(self) -> dict[str, str]:
        """The SHA-256 of all GGUF files, of each part, by name."""
        return {
            part: digest
            for name, entry in self.files.items()
            for part, (_, digest) in entry.parts(name).items()
        }

    def note(self, file: FileFigures, **found: Any) -> None:
        """Keep what was found of a file, durably.

        Raises:
            OutputError: the disk is full or broken.
        """
        self.files[self.name_of(file.path)] = replace(self.of_file(file), **found)
        self.save()

    def save(self) -> None:
        """Write the record beside the files."""
        told = {"kind": KIND, "schema": SCHEMA, "source": self.source, "files": self.as_dict()}
        told["errors"] = self.errors_as_dict()
        write_text(self.folder / WORKING, json.dumps(told, indent=1) + "\n")

    def errors_as_dict(self) -> dict[str, Any] | None:
        """The errors by expert as JSON takes them."""
        return None if self.errors is None else asdict(self.errors)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """The files as JSON takes them."""
        return {name: asdict(entry) for name, entry in self.files.items()}


def stored_recipe(path: Path) -> dict[str, Any] | None:
    """The content of a recipe.json, None where there is none of this version."""
    try:
        told = read_json(path, ChoiceError)
    except ChoiceError:
        return None
    files = told.get("files")
    if told.get("kind") != KIND or told.get("schema") != SCHEMA or not isinstance(files, dict):
        return None
    return told if all(isinstance(entry, dict) for entry in files.values()) else None


def _is_inside(name: str) -> bool:
    """Whether a name is that of a file in the folder of a release, or in a folder there."""
    return re.fullmatch(r"([^/\\\0]*[^/\\\0.][^/\\\0]*/)?[^/\\\0]*[^/\\\0.][^/\\\0]*", name) is not None


def _parts_of(told: Any) -> dict[str, tuple[int, str]] | None:
    """The further parts that an entry tells; None where it tells something else."""
    if not isinstance(told, dict):
        return None
    parts = {}
    for name, pair in told.items():
        match pair:
            case [int(n_bytes), str(digest)]:
                parts[name] = (n_bytes, digest)
            case _:
                return None
    return parts


def recorded_files(told: Mapping[str, Any]) -> dict[str, FileRecord]:
    """The entries that hold what they should; names that lead out of the folder are passed over."""
    entries = {}
    for name, entry in told["files"].items():
        others = _parts_of(entry.get("others", {}))
        if others is None or not all(map(_is_inside, (name, *others))):
            continue
        texts = {key: entry.get(key) for key in ("ftype", "sha256", "verified", "smoke", "compared")}
        n_bytes = entry.get("n_bytes")
        if type(n_bytes) is int and all(isinstance(text, str) for text in texts.values()):
            entries[name] = FileRecord(
                n_bytes=n_bytes, others=others, **{key: str(text) for key, text in texts.items()}
            )
    return entries
