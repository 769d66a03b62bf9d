"""A release before its work: the settings are held against each other and against the model, and nothing is read twice.

What is cheap comes first: a release that stands is known by names, sizes and one hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gguf_export.checking.llama_process import program
from gguf_export.comparing.named_files import is_file
from gguf_export.comparing.texts import NamedText, TextChoice
from gguf_export.releasing.about import About, about, refuse_no_repo
from gguf_export.releasing.record import RECIPE, recorded_files, stored_recipe
from gguf_export.releasing.settings import ReleaseSettings
from gguf_export.releasing.smoke import has_failed
from gguf_export.releasing.sums import stands
from gguf_export.releasing.texts import TextFile, sum_of_file, texts_of
from gguf_export.writing.export import imatrix_path
from gguf_export.writing.fingerprint import version
from quantize.exceptions import ChoiceError
from quantize.recipes.ftypes import ftype
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.sources.hub import local_path
from quantize.telling import Note, discard

__all__ = ["ReleaseJob", "prepare"]

IMATRIX = "-imatrix.gguf"


@dataclass(frozen=True)
class ReleaseJob:
    """All that is known before the work.

    model: the folder of the checkpoint.
    stem: with which the names of all files begin.
    types: those that are asked for, and those that an earlier release left.
    prompts: mergekit's file, where no text was given.
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
        TextError: a text cannot be read, or one both calibrates and judges.
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
    chosen = texts_of(model, settings.texts, settings.judges, note)
    types = dict.fromkeys((*wanted, *_left_by_earlier(folder)))
    return ReleaseJob(
        settings,
        model,
        checkpoint,
        facts,
        folder,
        stem,
        tuple(types),
        chosen.texts,
        chosen.prompts,
        chosen.judges,
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


def _template_hash(choice: str | None) -> str:
    """The choice of a template, and the content of a file."""
    is_a_file = choice is not None and is_file(choice)
    return f"{'file' if is_a_file else choice} {sum_of_file(Path(str(choice))) if is_a_file else ''}"


def _hash(told: Any) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
