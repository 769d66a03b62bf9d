"""A release before its work: the settings are held against each other and against the model, and nothing is read twice.

What is cheap comes first: a release that stands is known by names, sizes and one hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from calibration.text.dialogue_texts import SUFFIX
from calibration.text.donors import MERGE_FILE
from gguf_export.checking.checksums import sha256
from gguf_export.checking.llama_process import program
from gguf_export.comparing.named_files import is_file, split_name
from gguf_export.comparing.texts import NamedText, TextChoice
from gguf_export.releasing.about import About, about, refuse_no_repo
from gguf_export.releasing.record import RECIPE, recorded_files, stored_recipe
from gguf_export.releasing.settings import ReleaseSettings
from gguf_export.releasing.smoke import has_failed
from gguf_export.releasing.sums import stands
from gguf_export.writing.export import imatrix_path
from gguf_export.writing.fingerprint import version
from quantize.containers.untrusted import label
from quantize.exceptions import ChoiceError, TextError
from quantize.recipes.ftypes import ftype
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.sources.hub import local_path
from quantize.telling import Note, discard

__all__ = ["ReleaseJob", "TextFile", "prepare"]

IMATRIX = "-imatrix.gguf"


@dataclass(frozen=True)
class TextFile:
    """A text, the name under which it is reported, and its SHA-256."""

    name: str
    path: Path
    sha256: str

    @property
    def is_dialogues(self) -> bool:
        """Whether a chat template writes it."""
        return self.path.suffix.lower() == SUFFIX

    def as_dict(self) -> dict[str, str]:
        """The text as it is told to others: without its folder."""
        return {"name": self.name, "file": label(self.path.name), "sha256": self.sha256}


@dataclass(frozen=True)
class ReleaseJob:
    """All that is known before the work.

    model: the folder of the checkpoint.
    stem: with which the names of all files begin.
    types: those that are asked for, and those that an earlier release left.
    prompts: mergekit's file, where it stands for a text.
    """

    settings: ReleaseSettings
    model: Path
    checkpoint: Checkpoint
    about: About
    folder: Path
    stem: str
    types: tuple[str, ...]
    texts: tuple[TextFile, ...]
    prompts: tuple[TextFile, ...]
    judges: tuple[TextFile, ...]

    @property
    def imatrix(self) -> Path:
        """The file that keeps the importances."""
        return self.folder / f"{self.stem}{IMATRIX}"

    @cached_property
    def source(self) -> str:
        """The fingerprint of the checkpoint."""
        return self.checkpoint.fingerprint()

    @cached_property
    def request(self) -> str:
        """One hash of all that decides the folder but its types."""
        given = self.settings
        return _hash(
            {
                "versions": [version(), program()],
                "source": self.source,
                "texts": [text.as_dict() for text in (*self.texts, *self.prompts)],
                "judges": [text.as_dict() for text in self.judges],
                "chunks": [given.n_chunk, given.n_judge_chunk],
                "template": _template_hash(given.chat_template),
                "words": [given.repo, given.name, self.about.license, self.about.base_model],
                "split": given.split_max_size,
                "fit": [list(given.vram), list(given.contexts)],
            }
        )

    @property
    def held_out(self) -> TextChoice:
        """The texts that the files are judged by."""
        return TextChoice(
            tuple(NamedText(text.name, text.path) for text in self.judges),
            n_chunk=self.settings.n_judge_chunk,
            chat_template=self.settings.chat_template,
        )

    @property
    def judged_by(self) -> str:
        """One hash of all that decides the figures of a file but the file."""
        told = [[text.as_dict() for text in self.judges], self.settings.n_judge_chunk, self.source, version()]
        dialogues = [text for text in self.judges if text.is_dialogues]
        return _hash([*told, *([_template_hash(self.settings.chat_template)] if dialogues else [])])

    def is_done(self) -> bool:
        """Whether the release stands: what is asked for is there, and nothing changed since it was written."""
        told = stored_recipe(self.folder / RECIPE)
        if told is None or told.get("request") != self.request:
            return False
        files = recorded_files(told)
        ftypes = {entry.ftype for entry in files.values()}
        if not set(self.types) <= ftypes or any(has_failed(entry.smoke) for entry in files.values()):
            return False
        parts = [part for name, entry in files.items() for part in entry.parts(name).items()]
        return stands(self.folder, {name: n_bytes for name, (n_bytes, _) in parts})


def prepare(settings: ReleaseSettings, note: Note = discard) -> ReleaseJob:
    """Open the model and hold the settings against it; no weight is read.

    Raises:
        ChoiceError: the model is no checkpoint's folder, has no licence, or a name is no owner/name.
        RecipeError: there is no such type.
        TextError: there is no text to calibrate with or to judge by, or one is both.
        CheckpointError: the model cannot be read.
    """
    refuse_no_repo(settings.repo, "repo")
    wanted = [ftype(name).name for name in settings.types]
    model = local_path(settings.model)
    if model.is_file():
        raise ChoiceError(str(model), "is a file", "give the folder of the checkpoint")
    checkpoint = open_checkpoint(model)
    facts = about(
        checkpoint, settings.model, license=settings.license, base_model=settings.base_model, note=note
    )
    stem = imatrix_path(model, name=settings.name).name.removesuffix(IMATRIX)
    folder = settings.folder if settings.folder is not None else Path(folder_name(stem))
    prompts = [] if settings.texts else [path for path in (model / MERGE_FILE,) if path.is_file()]
    if not settings.texts and not prompts:
        raise TextError("", "there is no text to calibrate with", "give {setting} FILE", setting="text")
    texts = tuple(_text_file(text, lambda path: path.name) for text in settings.texts)
    judges = tuple(_text_file(text, lambda path: path.stem) for text in settings.judges)
    _refuse_judges(judges, texts)
    types = dict.fromkeys((*wanted, *_left_by_earlier(folder)))
    return ReleaseJob(
        settings,
        model,
        checkpoint,
        facts,
        folder,
        stem,
        tuple(types),
        texts,
        tuple(TextFile(label(path.name), path, _sha256(path)) for path in prompts),
        judges,
    )


def folder_name(stem: str) -> str:
    """The name of the folder of a release: `Harmony-4x7B-GGUF`."""
    return f"{stem}-GGUF"


def _left_by_earlier(folder: Path) -> Iterator[str]:
    """The types of the files that an earlier release wrote, and that are still there."""
    told = stored_recipe(folder / RECIPE)
    for name, entry in (recorded_files(told) if told is not None else {}).items():
        if (folder / name).exists():
            yield ftype(entry.ftype).name


def _text_file(given: Path | str, usual_name: Callable[[Path], str]) -> TextFile:
    name, file = split_name(given, TextError, is_file) if isinstance(given, str) else ("", given)
    path = Path(file)
    return TextFile(name or label(usual_name(path)), path, _sha256(path))


def _refuse_judges(judges: tuple[TextFile, ...], texts: tuple[TextFile, ...]) -> None:
    """Files are judged on text that has chosen nothing.

    Raises:
        TextError: there is none, it is the calibration text, or two have one name.
    """
    if not judges:
        message = "there is no text to judge by, which must not be the calibration text"
        raise TextError("", message, "give {setting} FILE", setting="judge")
    TextChoice(tuple(NamedText(judge.name, judge.path) for judge in judges)).refuse_twins()
    for judge in judges:
        for text in texts:
            if judge.sha256 == text.sha256:
                message = "is the calibration text, too: a file is judged on text that it has not seen"
                raise TextError(str(judge.path), message, "give another file as {setting}", setting="judge")


def _template_hash(choice: str | None) -> str:
    """The choice of a template, and the content of a file."""
    is_a_file = choice is not None and is_file(choice)
    return f"{'file' if is_a_file else choice} {_sha256(Path(str(choice))) if is_a_file else ''}"


def _sha256(path: Path) -> str:
    if not is_file(str(path)):
        raise TextError(str(path), "there is no such file")
    return sha256(path)


def _hash(told: Any) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
