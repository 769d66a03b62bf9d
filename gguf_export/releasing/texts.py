"""The texts of a release: which calibrate, which judge, and that these are not the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from calibration.text.built_in import CALIBRATION, HELD_OUT, built_in_files
from calibration.text.chunks import read_prompts
from calibration.text.dialogue_texts import SUFFIX
from calibration.text.donors import MERGE_FILE
from gguf_export.checking.checksums import sha256
from gguf_export.comparing.named_files import is_file, split_name
from gguf_export.comparing.texts import NamedText, TextChoice
from quantize.containers.untrusted import label
from quantize.exceptions import TextError
from quantize.telling import Note, Remark, discard

__all__ = ["ReleaseTexts", "TextFile", "calibration_files", "sum_of_file", "texts_of"]

LEAST_LINE = 60  # bytes; shorter lines occur in many texts
MOST_SHARED = 0.1


@dataclass(frozen=True)
class TextFile:
    """A text, the name under which it is reported, and its SHA-256; a built-in one goes by its built-in name."""

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
class ReleaseTexts:
    """What calibrates, mergekit's prompts apart, and what judges."""

    texts: tuple[TextFile, ...]
    prompts: tuple[TextFile, ...]
    judges: tuple[TextFile, ...]


def texts_of(
    model: Path, texts: Sequence[Path | str], judges: Sequence[str], note: Note = discard
) -> ReleaseTexts:
    """The texts that are given, else the prompts of mergekit and the built-in ones.

    Args:
        model: the folder of the checkpoint.
        texts: files, each perhaps as NAME=FILE, or names of built-in texts.
        judges: likewise.
        note: told of a file of mergekit's without prompts.

    Raises:
        TextError: a file cannot be read, two that judge have one name, or one that judges is one that calibrates, or
            shares much with it.
    """
    chosen = ReleaseTexts(
        tuple(_named(texts or (CALIBRATION,))),
        () if texts else tuple(_prompts(model, note)),
        tuple(
            TextFile(one.name, one.path, sum_of_file(one.path))
            for judge in judges or (HELD_OUT,)
            for one in NamedText.parse_all(judge)
        ),
    )
    TextChoice(tuple(NamedText(judge.name, judge.path) for judge in chosen.judges)).refuse_twins()
    _refuse_seen(chosen.judges, (*chosen.texts, *chosen.prompts))
    return chosen


def calibration_files(names: Iterable[str]) -> list[Path]:
    """The files of the built-in texts among the names of a recipe's texts."""
    files = [built_in_files(name) for name in dict.fromkeys(names) if name in (CALIBRATION, HELD_OUT)]
    return [path for found in files if found for path in found.values()]


def sum_of_file(path: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        TextError: there is none.
    """
    if not is_file(str(path)):
        raise TextError(str(path), "there is no such file")
    return sha256(path)


def _named(texts: Iterable[Path | str]) -> Iterable[TextFile]:
    for given in texts:
        built_in = built_in_files(str(given))
        if built_in is not None:
            yield from (TextFile(str(given), path, sum_of_file(path)) for path in built_in.values())
            continue
        name, file = split_name(given, TextError, is_file) if isinstance(given, str) else ("", str(given))
        yield TextFile(name or label(Path(file).name), Path(file), sum_of_file(Path(file)))


def _prompts(model: Path, note: Note) -> Iterable[TextFile]:
    """mergekit's file, where it holds prompts."""
    path = model / MERGE_FILE
    if path.is_file():
        try:
            read_prompts(path)
        except TextError as error:  # a merge whose router was made without any
            note(Remark(str(path), error.message, "only the built-in text calibrates"))
            return
        yield TextFile(label(path.name), path, sum_of_file(path))


def _refuse_seen(judges: Sequence[TextFile], texts: Sequence[TextFile]) -> None:
    """Files are judged on text that has chosen nothing.

    Raises:
        TextError: a text that judges is one that calibrates, or a tenth of its longer lines stand there, too.
    """
    remedy = "give another file as {setting}"
    for text in texts:
        seen = _lines(text.path)
        for judge in judges:
            if judge.sha256 == text.sha256:
                message = "is the calibration text, too: a file is judged on text that it has not seen"
                raise TextError(str(judge.path), message, remedy, setting="judge")
            lines = _lines(judge.path)
            if len(lines & seen) > MOST_SHARED * len(lines):
                message = (
                    f"shares {len(lines & seen):,} of {len(lines):,} longer lines with {text.path.name}, "
                )
                message += "which calibrates: a file is judged on text that it has not seen"
                raise TextError(str(judge.path), message, remedy, setting="judge")


def _lines(path: Path) -> set[bytes]:
    return {line for line in map(bytes.strip, path.read_bytes().split(b"\n")) if len(line) >= LEAST_LINE}
