"""What llama.cpp's converter does with the vocabulary of some families only (the `set_vocab` of their classes)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["ERNIE_VOCAB", "GLM_VOCAB", "LLAMA_VOCAB", "PHI_VOCAB", "VocabRules"]


@dataclass(frozen=True)
class VocabRules:
    """The defaults are what it does with most families (conversion/base.py: TextModel.set_vocab)."""

    add_space_prefix: Literal["first", "last"] | None = None
    """`add_prefix_space` of tokenizer_config.json becomes a key, the first or the last of the vocabulary's."""

    known_sizes: bool = False
    """CodeLlama and Granite are known by `vocab_size`, and corrected."""

    missing_ids: Mapping[str, str] = field(default_factory=dict)
    """Purpose of a token (bos, eot, ...) -> text of the added token that has it where the files name none."""

    flags_decide: bool = False
    """Of a SentencePiece vocabulary: an added token is a control token by its flag alone, not by its looks, its text
    is kept as it is, and tokenizer.json's are added, too."""


LLAMA_VOCAB = VocabRules(add_space_prefix="first", known_sizes=True)
"""conversion/llama.py: LlamaModel, of which Mistral, Mixtral and Granite are subclasses."""

ERNIE_VOCAB = VocabRules(add_space_prefix="last")
"""conversion/ernie.py: Ernie4_5Model."""

GLM_VOCAB = VocabRules(
    missing_ids={
        "bos": "[gMASK]",
        "eot": "<|user|>",
        "unk": "<|endoftext|>",
        "eom": "<|observation|>",
    }
)
"""conversion/base.py: TextModel._set_vocab_glm."""

PHI_VOCAB = VocabRules(flags_decide=True)
"""conversion/phi.py: Phi3MiniModel, whose subclass is PhiMoeModel."""
