"""Which files belong to a model: what must not be written over."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from quantize.containers.gguf_parts import parts_by_name
from quantize.containers.shard_index import INDEX, ShardTensor
from quantize.families.binding import Binding, stored_qtype
from quantize.sources.fp8 import Fp8Tensor

__all__ = ["BESIDE_WEIGHTS", "files_of_model", "is_as_stored", "layout_of"]

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


def layout_of(stored: Mapping[str, ShardTensor]) -> bytes:
    """The places of all tensors in the shards."""
    facts = (
        (tensor.name, tensor.path.name, tensor.dtype, tensor.shape, tensor.start)
        for tensor in stored.values()
    )
    return json.dumps(sorted(facts)).encode()


def is_as_stored(binding: Binding) -> bool:
    """Whether the rows of a matrix lie in its shard byte for byte as the tensor has them, one behind the other."""
    is_plain = len(binding.spec.shape) > 1 and binding.axis == -2 and binding.cut.step == 1
    is_moved = binding.n_heads or binding.runs or binding.source.transposed
    is_changed = binding.source.mxfp4 or binding.source.change
    return (
        is_plain
        and not is_moved
        and not is_changed
        and all(
            not isinstance(stored, Fp8Tensor) and stored_qtype(stored) == binding.spec.qtype
            for stored in binding.stored
        )
    )
