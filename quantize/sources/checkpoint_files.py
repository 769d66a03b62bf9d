"""Which files belong to a model: what must not be written over."""

from __future__ import annotations

from pathlib import Path

from quantize.containers.gguf_parts import parts_by_name
from quantize.containers.shard_index import INDEX

__all__ = ["BESIDE_WEIGHTS", "files_of_model"]

BESIDE_WEIGHTS = (
    "config.json",
    INDEX,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""The files of a checkpoint that say what its weights mean; they are read once, when a run begins."""

NAMES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "README.md",
)
"""Names that mean something in the folder of a checkpoint, even where no such file is there yet."""

SUFFIXES = (".safetensors", ".index.json", ".bin", ".pt", ".pth", ".model", ".jinja", ".tiktoken", ".py")


def files_of_model(model: Path) -> list[Path]:
    """The files of a checkpoint's folder by their names, which need not be there; of a GGUF file, all its parts."""
    found = {model / name for name in NAMES}
    try:
        found |= {path for path in model.iterdir() if path.name.endswith(SUFFIXES)}
    except NotADirectoryError:
        return parts_by_name(model)
    except OSError:  # whoever opens the model says why it cannot be read
        return [model, *sorted(found)]
    return sorted(found)
