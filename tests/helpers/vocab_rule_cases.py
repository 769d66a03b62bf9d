"""Folders whose vocabulary llama.cpp's converter treats by the rules of a family."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizer_cases import DECODER, FAST, NAMES, PIECES, PRE, byte_level, spm_like, token, write_json

from quantize.families.vocab_rules import (
    ERNIE_VOCAB,
    GLM_VOCAB,
    LLAMA_VOCAB,
    PHI_VOCAB,
    VocabRules,
)

CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "original_max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "moe_num_experts": 2,
    "moe_k": 1,
    "moe_num_shared_experts": 1,
    "moe_intermediate_size": 64,
    "moe_layer_start_index": 0,
    "moe_layer_interval": 1,
}
"""As much of a config.json as the converter wants of any of these families."""

GLM_TOKENS = (
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "</think>",
)


@dataclass(frozen=True)
class VocabCase:
    """A folder to be built, the class and the settings in its config.json, its family's rules."""

    build: Callable[[Path], None]
    architecture: str
    rules: VocabRules
    pre: str | None = PRE
    config: Mapping[str, Any] = field(default_factory=dict)

    def make(self, folder: Path) -> dict[str, Any]:
        """Make the folder; returns its config."""
        folder.mkdir()
        self.build(folder)
        config = {**CONFIG, "vocab_size": 340, "architectures": [self.architecture], **self.config}
        write_json(folder, "config.json", config)
        return config


def _byte_level(folder: Path, *texts: str) -> None:
    added = [token(text, special=True, id=320 + index) for index, text in enumerate(texts)]
    write_json(folder, "tokenizer.json", byte_level(*added))
    names = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "add_prefix_space": False}
    write_json(folder, "tokenizer_config.json", FAST | names)


def _pieces(folder: Path, **settings: Any) -> None:
    shutil.copy(PIECES, folder / "tokenizer.model")
    write_json(folder, "tokenizer_config.json", NAMES | settings)


def _phi(folder: Path) -> None:
    decoder = {
        **DECODER,
        "331": token("<|user|>"),
        "332": token("<|end|>", special=True),
        "333": token("\u2581zip\u2581zap"),
    }
    _pieces(folder, add_prefix_space=True, added_tokens_decoder=decoder, eos_token="<|end|>")
    write_json(folder, "added_tokens.json", {"<pad>": 330, "<|user|>": 331})
    own = [token("<|system|>", id=334), token("\u2581x", special=True, id=335), token("<|user|>", id=331)]
    write_json(folder, "tokenizer.json", spm_like(*own))


VOCAB_CASES: dict[str, VocabCase] = {
    "plain": VocabCase(lambda folder: _byte_level(folder, "<|im_end|>"), "Qwen3MoeForCausalLM", VocabRules()),
    "llama": VocabCase(lambda folder: _byte_level(folder, "<|im_end|>"), "MixtralForCausalLM", LLAMA_VOCAB),
    "granite": VocabCase(
        lambda folder: _byte_level(folder, "<|im_end|>"),
        "GraniteMoeForCausalLM",
        LLAMA_VOCAB,
        config={"vocab_size": 49152, "bos_token_id": 0},
    ),
    "granite's size": VocabCase(
        lambda folder: _byte_level(folder, "<|im_end|>"),
        "OlmoeForCausalLM",
        VocabRules(),
        config={"vocab_size": 49152},
    ),
    "glm": VocabCase(lambda folder: _byte_level(folder, *GLM_TOKENS), "Glm4MoeForCausalLM", GLM_VOCAB),
    "glm, named": VocabCase(
        lambda folder: _byte_level(folder, *GLM_TOKENS),
        "Glm4MoeForCausalLM",
        GLM_VOCAB,
        config={"bos_token_id": 3, "unk_token_id": 5, "pad_token_id": 0},
    ),
    "ernie": VocabCase(
        lambda folder: _pieces(folder, add_prefix_space=False, chat_template="{{ x }}"),
        "Ernie4_5_MoeForCausalLM",
        ERNIE_VOCAB,
        pre=None,
    ),
    "pieces": VocabCase(
        lambda folder: _pieces(folder, add_prefix_space=False), "Qwen2ForCausalLM", VocabRules(), pre=None
    ),
    "phi": VocabCase(_phi, "PhiMoEForCausalLM", PHI_VOCAB, pre=None),
}
