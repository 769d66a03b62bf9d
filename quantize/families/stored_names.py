"""The names under which a checkpoint keeps its tensors -> those that the families declare.

A model that sees or hears is stored with its text model under a prefix. llama.cpp's converter strips the prefix and
leaves the tensors of the other senses out (conversion/base.py: `filter_tensors` of ModelBase and TextModel;
conversion/llama.py: LlamaModel.filter_tensors); so is it done here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantize.containers.shard_index import ShardTensor
from quantize.containers.untrusted import quoted
from quantize.exceptions import CheckpointError

__all__ = ["BASE_CLASSES", "text_tensors"]

WRAPPERS = ("language_model.", "text_model.")
"""Parts of a name that only say that it belongs to the text model."""

BASE_CLASSES = ("LlamaModel",)
"""Classes without a head that the converter takes for the model as a whole; there the embedding is the head."""

BASE = "model."
"""What a model with a head puts before the names of its base class."""

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"

OTHER_BEGINNINGS = (
    *("mlp", "vit.", "vpm.", "siglip2.", "conformer.", "merger.", "resampler."),
    *("sound_encoder.", "sound_projection.", "speech_embeddings."),
)
OTHER_WORDS = (
    *(
        "visual.",
        "vision.",
        "audio.",
        "talker.",
        "vision_",
        "audio_",
        "token2wav.",
        "code2wav.",
        "projector.",
    ),
    *("pre_mm_projector_norm", "image_newline", "view_seperator", "patch_embed", "patch_merger."),
    *("patch_merge_mlp.", "model.connector."),
)
"""How names of tensors begin, or what is in them, that belong to other senses than text."""


def text_tensors(
    stored: Mapping[str, ShardTensor], config: Mapping[str, Any]
) -> tuple[dict[str, ShardTensor], list[str]]:
    """The tensors of the text model by the names that families know, and the stored names of all others.

    Raises:
        CheckpointError: two stored tensors would have one name; the model was saved without its head, and needs one.
    """
    found: dict[str, ShardTensor] = {}
    others = []
    for name, tensor in stored.items():
        if name.startswith(OTHER_BEGINNINGS) or any(word in name for word in OTHER_WORDS):
            others.append(name)
            continue
        plain = name
        for wrapper in WRAPPERS:
            plain = plain.replace(wrapper, "")
        if plain in found:
            message = f"tensors {quoted(found[plain].name)} and {quoted(name)} would both be {quoted(plain)}"
            raise CheckpointError(
                str(tensor.path), message, "remove the one that does not belong to the model"
            )
        found[plain] = tensor
    if EMBEDDING not in found or BASE + EMBEDDING in found:
        return found, others
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else ""
    if HEAD not in found and not config.get("tie_word_embeddings") and architecture not in BASE_CLASSES:
        raise CheckpointError(
            str(found[EMBEDDING].path),
            f"saved from the base class, without its head: names lack {BASE!r}, and {HEAD!r} is not there",
            f"save the whole model, as {quoted(architecture)}",
        )
    return {name if name == HEAD else BASE + name: tensor for name, tensor in found.items()}, others
