"""The errors that a user can cause, in one tree, sorted by what failed.

    MoeGgufError
    ├── ChoiceError              files, models or types that do not go together, or are given twice
    ├── CheckpointError          a Hugging Face folder: missing, damaged, unsupported, inconsistent
    │   └── NotFiniteError       a weight is NaN or infinity
    ├── GGUFError                a GGUF file that cannot be read
    ├── ModelChangedError        files of a model are no longer those that were opened
    ├── TokenizerError           missing, unknown, or not that of the embedding
    ├── DecodeError              blocks of a type that nothing here can decode
    ├── RecipeError              a file type, tensor type or override that cannot be applied
    ├── ImatrixError             an importance matrix that cannot be read or does not fit the model
    │   └── NeedsImatrixError    a type that is of no use without importances
    ├── TextError                a text that cannot be used
    ├── LogitsError              a file of logits that cannot be read or does not fit the model
    ├── DeviceError              a device on which torch cannot compute here
    ├── ActivationError          a layer or expert whose output is not finite
    ├── DamagedStateError        a saved state from which a pass cannot go on
    ├── ChecksumError            a file, here or where it was sent, is not what SHA256SUMS says
    └── OutputError              an output that cannot be written
        ├── OutputExistsError    it is there already
        ├── OutputBusyError      another run is writing it
        ├── NoSpaceError         the disk has no room for it
        └── UploadError          the Hub refuses what is sent, or cannot be reached

An error has fields: the place (file, key or tensor), the message, the remedy, and the setting that the remedy is about.
Settings are named as the library names them; whoever shows the line may spell them otherwise (`line`). Anything else
that is raised is a defect of this project.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

SETTING = "{setting}"
"""Stands in a remedy for the name of the setting."""


def one_line(
    place: str, message: str, remedy: str = "", setting: str = "", spell: Callable[[str], str] = str
) -> str:
    """`place: message; remedy`, without the parts that are empty; `spell` writes the setting's name."""
    line = f"{place}: {message}" if place else message
    return f"{line}; {remedy.replace(SETTING, spell(setting))}" if remedy else line


class MoeGgufError(Exception):
    """Base of all errors that this project raises on purpose."""

    def __init__(self, place: str, message: str, remedy: str = "", *, setting: str = "") -> None:
        """Take the fields apart, as `one_line` puts them together.

        Args:
            place: the file, key or tensor; several are joined with ": ". May be empty.
            message: the fault.
            remedy: what to do about it; `{setting}` in it stands for the setting's name.
            setting: the parameter that the remedy is about, such as "force".
        """
        super().__init__(place, message, remedy)
        self.place, self.message, self.remedy, self.setting = place, message, remedy, setting

    def line(self, spell: Callable[[str], str] = str) -> str:
        """The error in one line; `spell` writes the name of a setting, such as `force` as `--force`."""
        return one_line(self.place, self.message, self.remedy, self.setting, spell)

    def __str__(self) -> str:
        return self.line()

    def __reduce__(self) -> Any:
        return _rebuilt, (type(self), self.place, self.message, self.remedy, self.setting), vars(self)


def _rebuilt(kind: type[MoeGgufError], place: str, message: str, remedy: str, setting: str) -> MoeGgufError:
    """An error that was pickled."""
    return kind(place, message, remedy, setting=setting)


class ChoiceError(MoeGgufError):
    """Files, models or types that do not go together, or are given twice."""


class CheckpointError(MoeGgufError):
    """A Hugging Face folder that cannot be read: missing, damaged, unsupported or inconsistent."""


class NotFiniteError(CheckpointError):
    """A weight is NaN or infinity: nothing that was made from this model is worth keeping."""


class GGUFError(MoeGgufError):
    """A GGUF file that cannot be read."""


class ModelChangedError(MoeGgufError):
    """Files of a model are no longer those that were opened: what was made may be of two models."""


class TokenizerError(MoeGgufError):
    """A tokenizer that is missing, unknown or does not fit the embedding."""


class RecipeError(MoeGgufError):
    """A file type, tensor type or override that does not exist or cannot be applied."""


class DecodeError(MoeGgufError):
    """Stored blocks that cannot be decoded: of a type that is not known here, or of another size than their rows."""


class ImatrixError(MoeGgufError):
    """An importance matrix that cannot be read or does not fit the model."""


class NeedsImatrixError(ImatrixError):
    """A tensor type that is of no use without importances, and there are none."""


class TextError(MoeGgufError):
    """A calibration text that cannot be used."""


class LogitsError(MoeGgufError):
    """A file of logits that cannot be read or does not fit the model."""


class DeviceError(MoeGgufError):
    """A device on which torch cannot compute here."""


class ActivationError(MoeGgufError):
    """A layer or expert whose output is not finite; `model` is the path of the model, or its name, or empty."""

    def __init__(
        self, place: str, message: str, remedy: str = "", *, setting: str = "", model: str = ""
    ) -> None:
        super().__init__(place, message, remedy, setting=setting)
        self.model = model


class DamagedStateError(MoeGgufError):
    """A state that is torn, changed, or of another pass; whoever reads one begins afresh instead."""


class ChecksumError(MoeGgufError):
    """A file that is not what SHA256SUMS says, in its folder or in the repository to which it was sent."""


class OutputError(MoeGgufError):
    """An output that cannot be written: the folder or the disk does not allow it."""


class OutputExistsError(OutputError):
    """An output that is there already, and was not to be replaced."""


class OutputBusyError(OutputError):
    """An output that another run is writing."""


class NoSpaceError(OutputError):
    """An output for which the disk has no room."""


class UploadError(OutputError):
    """A repository on the Hugging Face Hub that cannot be written: the Hub refuses, or cannot be reached."""


def is_full(error: OSError) -> bool:
    """Whether a write failed for lack of space: the disk's, a quota's, or that of the largest file."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
