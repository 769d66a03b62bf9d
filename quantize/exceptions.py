"""The errors that a user can cause, in one tree.

Every message is one line that names the file or tensor and says what to do about it; the command line prints it as it
is and exits with status 1. Anything else that is raised is a defect of this project.
"""


class MoeGgufError(Exception):
    """Base of all errors that this project raises on purpose."""


class CheckpointError(MoeGgufError):
    """A Hugging Face folder that cannot be read: missing, damaged, unsupported or inconsistent."""


class TokenizerError(MoeGgufError):
    """A tokenizer that is missing, unknown or does not fit the embedding."""


class RecipeError(MoeGgufError):
    """A file type, tensor type or override that does not exist or cannot be applied."""


class DecodeError(MoeGgufError):
    """Stored blocks that cannot be decoded: of a type that is not known here, or of another size than their rows."""


class ImatrixError(MoeGgufError):
    """An importance matrix that cannot be read or does not fit the model."""


class TextError(MoeGgufError):
    """A calibration text that cannot be used."""


class DeviceError(MoeGgufError):
    """A device on which torch cannot compute here."""


class ActivationError(MoeGgufError):
    """A layer or expert whose output is not finite."""


class GGUFError(MoeGgufError):
    """A GGUF file that cannot be read."""


class OutputError(MoeGgufError):
    """An output that cannot be written: it exists, the disk is full, the folder is not writable."""


class LogitsError(MoeGgufError):
    """A file of logits that cannot be read or does not fit the model."""
