"""The files of a release made again by its recipe.json, on whatever machine, and held against its sums."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.text.built_in import expanded
from calibration.text.donors import MERGE_FILE
from calibration.text.text_settings import TextSettings
from gguf_export.checking.checksums import sha256
from gguf_export.comparing.named_files import is_file, split_name
from gguf_export.files.replacing import write_bytes
from gguf_export.releasing.recipe import shard_sums
from gguf_export.releasing.record import recorded_files, stored_recipe
from gguf_export.releasing.texts import calibration_files
from gguf_export.writing.export import export
from quantize.containers.untrusted import quoted
from quantize.exceptions import ChoiceError, TextError
from quantize.sources.hub import local_path
from quantize.telling import Note, OnProgress, discard, silent

__all__ = ["Reproduced", "reproduce"]


@dataclass(frozen=True)
class Reproduced:
    """The files that were made again: each with its SHA-256, and whether it is that of the recipe."""

    files: tuple[tuple[Path, str, bool], ...]

    @property
    def is_equal(self) -> bool:
        """Whether all files are, byte for byte, those of the recipe."""
        return all(same for _, _, same in self.files)


def reproduce(
    model: Path | str,
    recipe: Path,
    folder: Path,
    *,
    texts: Sequence[Path | str] = (),
    jobs: int | None = None,
    progress: OnProgress = silent,
    note: Note = discard,
) -> Reproduced:
    """Make the GGUF files of a recipe again.

    The importance matrix beside the recipe is taken, where it is the one that the recipe names; else the calibration
    texts are needed, unless they are built-in ones, and importances may differ in their last digits from one machine to
    another.

    Args:
        model: the checkpoint, whose shards must be those of the recipe.
        recipe: recipe.json of a release.
        folder: for the files.
        texts: the calibration texts, each perhaps as NAME=FILE, where there is no importance matrix.
        jobs: threads.
        progress: told the progress of each step.
        note: given the remarks of `export`.

    Raises:
        ChoiceError: this is no recipe, or another checkpoint.
        TextError: importances and texts are missing, or others than those of the recipe.
        MoeGgufError: see `export`.
    """
    told = _Recipe.of(recipe)
    path = local_path(model)
    _refuse_other_shards(str(model), told, shard_sums(path, progress))
    with ExitStack() as stack:
        weighed = _importances(told, path, [_file_of(text) for text in texts], folder)
        made = export(
            _by_its_name(path, told.model, stack),
            told.types,
            folder,
            name=told.name,
            chat_template=_template(told.chat_template, stack),
            split_max_size=told.split_max_size,
            split_folders=True,
            jobs=jobs,
            progress=progress,
            note=note,
            **weighed,
        )
    if "imatrix" in weighed and not (folder / weighed["imatrix"].name).exists():
        write_bytes(folder / weighed["imatrix"].name, weighed["imatrix"].read_bytes())
    found = []
    for path in (part.path for file in made.files for part in file.parts):
        digest = sha256(path, progress)
        found.append((path, digest, told.sums.get(path.relative_to(folder).as_posix()) == digest))
    return Reproduced(tuple(found))


@dataclass(frozen=True)
class _Recipe:
    """What a recipe.json says, which a stranger may have written."""

    path: Path
    types: tuple[str, ...]
    sums: dict[str, str]
    model: str
    shards: dict[str, str]
    name: str | None
    n_chunk: int | None
    split_max_size: str | None
    chat_template: str | None
    imatrix: str
    imatrix_sum: str
    texts: tuple[tuple[str, str], ...]
    """Name and SHA-256 of each calibration text."""

    @classmethod
    def of(cls, path: Path) -> _Recipe:
        """Read it.

        Raises:
            ChoiceError: it is something else, or damaged.
        """
        told = stored_recipe(path)
        if told is None:
            raise ChoiceError(
                str(path), "is no recipe.json of a release", "give the one that a release wrote"
            )
        try:
            found = cls._taken(path, told)
        except (KeyError, TypeError, AttributeError):
            found = None
        if (
            found is None
            or not re.fullmatch(r"[^/\\]+-imatrix\.gguf", found.imatrix)
            or not re.fullmatch(r"[^/\\]*[^/\\.][^/\\]*", found.model)
        ):
            raise ChoiceError(str(path), "is damaged", "give the one that a release wrote")
        return found

    @classmethod
    def _taken(cls, path: Path, told: Mapping[str, Any]) -> _Recipe:
        n_chunk, name, template = (
            told["arguments"]["n_chunk"],
            told["arguments"]["name"],
            told["chat_template"],
        )
        files, max_size = recorded_files(told), told["arguments"].get("split_max_size")
        if not isinstance(n_chunk, int | None) or not all(
            isinstance(one, str | None) for one in (name, template, max_size)
        ):
            raise TypeError
        return cls(
            path,
            tuple(entry.ftype for entry in files.values()),
            {
                part: digest
                for name, entry in files.items()
                for part, (_, digest) in entry.parts(name).items()
            },
            str(told["model"]["name"]),
            {name: str(digest) for name, digest in told["model"]["shards"].items()},
            name,
            n_chunk,
            max_size,
            template,
            str(told["imatrix"]["file"]),
            str(told["imatrix"]["sha256"]),
            tuple((str(text["name"]), str(text["sha256"])) for text in told["calibration"]),
        )


def _refuse_other_shards(place: str, told: _Recipe, found: Mapping[str, str]) -> None:
    for name in sorted({*told.shards, *found}):
        if told.shards.get(name) != found.get(name):
            message = f"its {quoted(name)} is not that of the recipe, by its SHA-256"
            raise ChoiceError(place, message, f"give the checkpoint {quoted(told.model)}")


def _by_its_name(model: Path, name: str, stack: ExitStack) -> Path:
    """The checkpoint under the name that its folder had, from which names in the files may follow."""
    if Path(os.path.abspath(model)).name == name:  # noqa: PTH100 (keeps links)
        return model
    link = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moe-gguf-"))) / name
    link.symlink_to(model.absolute(), target_is_directory=True)
    return link


def _file_of(text: Path | str) -> Path:
    return text if isinstance(text, Path) else Path(split_name(text, TextError, is_file)[1])


def _importances(told: _Recipe, model: Path, texts: Sequence[Path], folder: Path) -> dict[str, Any]:
    """The arguments of `export` that weigh the files."""
    beside = told.path.absolute().parent / told.imatrix
    if not texts and beside.is_file() and sha256(beside) == told.imatrix_sum:
        return {"imatrix": beside}
    names = [name for name, _ in told.texts]
    prompts = [path for path in (model / MERGE_FILE,) if path.is_file() and path.name in names and not texts]
    texts = expanded(texts) if texts else calibration_files(names)
    if [sha256(path) for path in (*texts, *prompts)] != [digest for _, digest in told.texts]:
        listed = ", ".join(map(quoted, dict.fromkeys(names)))
        message = (
            f"neither the importance matrix {quoted(told.imatrix)} is beside it, nor are these the texts"
        )
        raise TextError(str(told.path), message, f"give {{setting}} {listed}", setting="text")
    settings = TextSettings(tuple(texts), tuple(prompts), n_chunk=told.n_chunk)
    return {"text": settings, "save_imatrix": folder / told.imatrix}


def _template(text: str | None, stack: ExitStack) -> str | None:
    """The choice of the template: the model's own, none, or the one that the recipe holds, as a file."""
    if not text:
        return None if text is None else "none"
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moe-gguf-")))
    file = folder / "chat_template.jinja"
    file.write_bytes(text.encode("utf-8"))
    return str(file)
