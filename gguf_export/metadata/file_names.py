"""The names of a model's files, and the folders in which LM Studio looks for them.

GGUF's naming convention (ggml's docs/gguf.md) as llama.cpp's converter applies it (gguf-py/gguf/utility.py:
naming_convention): base name, size label, fine-tune, version, type. The words come from a stranger's metadata, so
nothing of them reaches a path unfiltered.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gguf_export.metadata.model_id import is_type
from quantize.containers.keys import KeyValue
from quantize.containers.untrusted import exact_text, label
from quantize.exceptions import OutputError
from quantize.ggml_types import FileType

__all__ = [
    "find_publisher",
    "lmstudio_path",
    "lmstudio_root",
    "model_folder",
    "output_name",
    "retyped",
    "safe_name",
    "stem_of",
]

_FORBIDDEN = frozenset('/\\:*?"<>|')
_DEVICES = frozenset(
    ("CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in "0123456789¹²³"))
)
_FTYPES = frozenset(known.name.removeprefix("MOSTLY_").removeprefix("ALL_") for known in FileType)
_MAX_BYTES = 180  # leaves room for type, shard number and extension in the 255 bytes of a file name


def output_name(keys: Iterable[KeyValue], ftype: str) -> str:
    """File name of the model that `keys` describe, in the file type `ftype`: `Harmony-4x7B-Q4_K_M.gguf`."""
    return f"{stem_of(keys)}-{ftype.upper()}.gguf"


def retyped(stem: str, ftype: str) -> str:
    """File name of a model in the file type `ftype` by the name of another file of it, without suffix and part.

    `Qwen3-30B-BF16` or `Qwen3-30B.f16` becomes `Qwen3-30B-Q4_K_M.gguf`.
    """
    base, separator, word = re.fullmatch(r"(.*?)([-._]?)([^-.]*)", stem, re.DOTALL).groups()  # type: ignore[union-attr]
    is_typed = separator and base and (is_type(word) or word.upper() in _FTYPES)
    return f"{base if is_typed else stem}-{ftype.upper()}.gguf"


def model_folder(keys: Iterable[KeyValue]) -> str:
    """Name of the folder that holds all types of the model, as they are published: `Harmony-4x7B-GGUF`."""
    return f"{stem_of(keys)}-GGUF"


def stem_of(keys: Iterable[KeyValue]) -> str:
    """Base of the names of all files of the model that `keys` describe: `Harmony-4x7B`.

    Unlike the converter, drop the type (`bf16`) of a name that could not be taken to pieces, too.

    The type of the checkpoint is not that of the file.
    """
    texts = {kv.key: kv.value for kv in keys if kv.key.startswith("general.") and isinstance(kv.value, str)}
    base = texts.get("general.basename") or "-".join(
        word for word in texts.get("general.name", "").split() if not is_type(word)
    )
    rest = (texts.get(f"general.{key}", "") for key in ("size_label", "finetune", "version"))
    return safe_name("-".join(text for text in (base or "model", *rest) if text))


def safe_name(text: str) -> str:
    """`text` as one component of a path on Linux, macOS and Windows, whoever wrote it.

    No separator, no control or formatting character, no name of a device, no dot or dash at either end: characters
    that are not allowed become "-" or are dropped. Never empty.
    """
    kept = "".join(
        "-" if char in _FORBIDDEN or char.isspace() else char
        for char in text
        if char.isspace() or not unicodedata.category(char).startswith("C")
    )
    kept = kept.encode("utf-8")[:_MAX_BYTES].decode("utf-8", errors="ignore").strip(".-")
    if kept.partition(".")[0].upper() in _DEVICES:
        kept = f"model-{kept}"
    return kept or "model"


def lmstudio_root() -> Path:
    """The folder in which LM Studio keeps its models by default."""
    return Path.home() / ".lmstudio" / "models"


def find_publisher(config: Mapping[str, Any]) -> str | None:
    """Who published the model by its id, `_name_or_path` of config.json; None where that is no `publisher/model`."""
    publisher, slash, model = str(config.get("_name_or_path", "")).partition("/")
    return publisher if slash and publisher.strip(".~ ") and model and "/" not in model else None


def lmstudio_path(root: Path, publisher: str, model: str, file: str) -> Path:
    """`root/publisher/model/file`: LM Studio looks exactly two folders deep.

    Raises:
        OutputError: the publisher is empty, or not spelled in UTF-8.
    """
    try:
        publisher = exact_text(publisher)
    except UnicodeError:
        raise OutputError(
            f"publisher {label(publisher)}",
            "is not UTF-8",
            "spell {setting} in UTF-8",
            setting="publisher",
        ) from None
    if not publisher.strip():
        raise OutputError(
            file, "LM Studio wants publisher/model/file", "name a {setting}", setting="publisher"
        )
    return root / safe_name(publisher) / safe_name(model) / Path(file).name
