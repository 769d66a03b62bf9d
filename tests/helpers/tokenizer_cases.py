"""Small models whose tokenizers and cards are awkward, each a folder built on the fly.

The two vocabularies in golden/tokenizers were trained once on `pico.TEXT`: 330 SentencePiece pieces with byte fallback,
and a byte-level BPE of 320 tokens.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pico import pico_dense, pico_mixtral
from places import GOLDEN

PIECES = GOLDEN / "tokenizers" / "pieces.model"
BYTE_LEVEL = GOLDEN / "tokenizers" / "byte_level.json"
PRE = "gpt-2"  # of the byte-level cases: llama.cpp knows no hash of theirs

NAMES = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "add_bos_token": True,
    "add_eos_token": False,
    "legacy": True,
}
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}


def token(text: str, *, special: bool = False, normalized: bool = False, **more: Any) -> dict[str, Any]:
    """An added token as the two JSON files write it."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    return {**more, "content": text, **flags, "normalized": normalized, "special": special}


DECODER = {str(token_id): token(text, special=True) for token_id, text in enumerate(("<unk>", "<s>", "</s>"))}


def write_json(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def template(first: str | None, last: str | None) -> dict[str, Any]:
    """A post-processor that puts special tokens around a text, and BOS or EOS between two."""

    def special(text: str | None) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": text, "type_id": 0}}] if text else []

    a, b = ([{"Sequence": {"id": name, "type_id": 0}}] for name in "AB")
    ids = {"<s>": 1, "</s>": 2, "<|endoftext|>": 0}
    return {
        "type": "TemplateProcessing",
        "single": special(first) + a + special(last),
        "pair": special(first) + a + special(last) + special(first) + b + special(last),
        "special_tokens": {
            text: {"id": text, "ids": [ids[text]], "tokens": [text]} for text in (first, last) if text
        },
    }


def spm_like(*added: dict[str, Any]) -> dict[str, Any]:
    """The pieces as transformers' conversion writes them into tokenizer.json."""
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_proto=PIECES.read_bytes())
    vocab: dict[str, int] = {pieces.IdToPiece(token_id): token_id for token_id in range(len(pieces))}
    merges = []
    for text, token_id in vocab.items():
        splits = [(text[:i], text[i:]) for i in range(1, len(text))]
        pairs = [pair for pair in splits if pair[0] in vocab and pair[1] in vocab]
        if pairs and not pieces.IsControl(token_id) and not pieces.IsByte(token_id):
            best = max(pairs, key=lambda pair: float(pieces.GetScore(vocab[pair[0]])))
            merges.append(list(best))
    steps = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": int(token_id), **entry} for token_id, entry in DECODER.items()] + list(added),
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "post_processor": template("<s>", None),
        "decoder": {"type": "Sequence", "decoders": [*steps, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": merges,
        },
    }


def byte_level(*added: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer.json of the byte-level BPE."""
    found: dict[str, Any] = json.loads(BYTE_LEVEL.read_text(encoding="utf-8"))
    found["added_tokens"] += added
    return found


def spm(folder: Path, n_vocab: int = 330, **config: Any) -> None:
    """A model with the SentencePiece vocabulary and the usual tokenizer_config.json."""
    _mixtral(folder, n_vocab, **{"bos_token_id": 1, "eos_token_id": 2, **config})
    shutil.copy(PIECES, folder / "tokenizer.model")
    write_json(folder, "tokenizer_config.json", NAMES)


def _mixtral(folder: Path, n_vocab: int, **config: Any) -> None:
    pico_mixtral(
        folder, n_vocab=n_vocab, n_layer=1, n_embd=32, n_ff=32, n_shards=1, tokenizer=False, **config
    )


def _spm_added(folder: Path) -> None:
    """Added tokens from both files, over pieces and in gaps; a chat template; recommended sampling."""
    spm(folder, 340, pad_token_id=331, _name_or_path="Org/Some-8x7B-Instruct-v0.1")
    write_json(folder, "added_tokens.json", {"<|im_end|>": 330, "<pad>": 331, "▁foo▁bar": 332})
    decoder = {
        **DECODER,
        "330": token("<|im_end|>"),
        "333": token("▁zip▁zap"),
        "334": token("<tool>", special=True),
    }
    settings = {"add_prefix_space": True, "pad_token": "<pad>", "chat_template": "{{ 'never rendered' }}"}
    write_json(folder, "tokenizer_config.json", {**NAMES, **settings, "added_tokens_decoder": decoder})
    sampling = {"temperature": 0.7, "top_k": 40, "top_p": 0.95, "min_p": None, "repetition_penalty": 1.1}
    write_json(
        folder, "generation_config.json", {**sampling, "do_sample": True, "mirostat": 2, "sequence": "a;b"}
    )


def _end_of_turn(folder: Path) -> None:
    """A tokenizer.json beside the tokenizer.model, whose template ends in another token than is configured."""
    spm(folder, eos_token_id=[2, 3])
    write_json(folder, "tokenizer.json", spm_like() | {"post_processor": template("<s>", "</s>")})
    settings = {**NAMES, "eos_token": "<s>", "pad_token": "</s>", "add_bos_token": False}
    write_json(folder, "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text("default", encoding="utf-8")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool-use.jinja").write_text("tools", encoding="utf-8")


def _roberta(folder: Path) -> None:
    """The post-processor of RoBERTa, a normalizer that lower-cases, names under which nothing is known."""
    spm(folder)
    steps = [{"type": "Lowercase"}, {"type": "StripAccents"}]
    processor = {"type": "RobertaProcessing", "cls": ["<s>", 1], "sep": ["</s>", 2]}
    tokenizer = spm_like() | {
        "post_processor": processor | {"trim_offsets": True, "add_prefix_space": False},
        "normalizer": {"type": "Sequence", "normalizers": steps},
    }
    write_json(folder, "tokenizer.json", tokenizer)
    write_json(folder, "tokenizer_config.json", {"cls_token": "<s>", "sep_token": "</s>"})


def _no_settings(folder: Path) -> None:
    """A tokenizer.json without a tokenizer_config.json: templates are not looked for."""
    spm(folder)
    (folder / "tokenizer_config.json").unlink()
    write_json(folder, "tokenizer.json", spm_like())
    (folder / "chat_template.jinja").write_text("not read", encoding="utf-8")


def _spm_like(folder: Path) -> None:
    """No tokenizer.model: the pieces in tokenizer.json, with added tokens of all kinds."""
    _mixtral(folder, 333, bos_token_id=1, eos_token_id=2)
    added = [
        token("<|im_end|>", special=True, id=330),
        token("foo▁x", id=331),
        token("<tool>", special=True, id=332),
    ]
    write_json(folder, "tokenizer.json", spm_like(*added))
    settings = {"additional_special_tokens": ["<tool>"], "pad_token": "<tool>"}
    write_json(folder, "tokenizer_config.json", {**NAMES, **settings})


def _byte_level(folder: Path) -> None:
    """Added tokens that look special, are special, hold spaces, or are normalized; gaps after them."""
    _mixtral(folder, 332, eos_token_id=0, bos_token_id=0)
    added = [
        token("<|im_start|>", special=True, id=320),
        token("<|im_end|>", id=321),
        token("a▁b c", normalized=True, id=322),
        token("  ", normalized=True, id=323),
        token("<think>", id=324),
        token("é!", id=325),
    ]
    write_json(folder, "tokenizer.json", byte_level(*added))
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None}
    more = {"add_prefix_space": False, "additional_special_tokens": ["<think>"], "chat_template": "{{ x }}"}
    write_json(folder, "tokenizer_config.json", {**FAST, **names, **more, "add_bos_token": False})


def _byte_level_flags(folder: Path) -> None:
    """tokenizer_config.json knows tokens that tokenizer.json does not, and others by other flags."""
    _mixtral(folder, 332, eos_token_id=0)
    added = [token("end", normalized=True, id=320), token("flag", normalized=True, id=321)]
    tokenizer = byte_level(*added, token("flag2", special=True, id=322))
    tokenizer["truncation"] = {
        "direction": "Right",
        "max_length": 16,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    write_json(folder, "tokenizer.json", tokenizer)
    names = {"eos_token": "end", "unk_token": "the", "sep_token": "Ġthe"}
    decoder = {
        "321": token("flag", special=True),
        "322": token("flag2", normalized=True),
        "325": token("late", normalized=True),
    }
    write_json(folder, "tokenizer_config.json", {**FAST, **names, "added_tokens_decoder": decoder})


def _byte_level_template(folder: Path) -> None:
    """A template that adds BOS; merges as text; the class of another kind of tokenizer."""
    _mixtral(folder, 320, eos_token_id=0)
    tokenizer = byte_level() | {"post_processor": template("<|endoftext|>", None)}
    tokenizer["model"]["merges"] = [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    write_json(folder, "tokenizer.json", tokenizer)
    names = {
        "tokenizer_class": "LlamaTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
    }
    write_json(folder, "tokenizer_config.json", names)


CARD = """---
license: apache-2.0
license_name: some
license_link: https://example.com/license
language:
- en
- no
tags:
- moe
- merge
pipeline_tag: text-generation
base_model:
- mistralai/Mistral-7B-v0.1
- https://huggingface.co/teknium/OpenHermes-2.5-Mistral-7B
- http://example.com/foo
- NoOrg-13B
- name: By hand
  author: Somebody
  doi: "10.1"
datasets:
- a/b-c
- name: D
  url: u
model_name: Card Model
model_creator: Me
model_type: mixtral
url: https://example.com/source
doi: "10.2"
---
# Text
"""

CARD_2 = """---
license:
- mit
- other
base_model: foo/bar
language: en
dataset: x/y
name: Given
version: v9
author: A
organization: O
description: "long, in words"
finetune: chat
size_label: 8x1M
tags: []
---
"""


def _card(text: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        spm(folder)
        (folder / "README.md").write_text(text, encoding="utf-8")

    return build


def _config(**config: Any) -> Callable[[Path], None]:
    return lambda folder: spm(folder, **config)


def _llama3(folder: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    }
    pico_dense(
        folder,
        architecture="LlamaForCausalLM",
        n_layer=1,
        n_vocab=330,
        tokenizer=False,
        rope_scaling=scaling,
        bos_token_id=1,
        eos_token_id=2,
    )
    shutil.copy(PIECES, folder / "tokenizer.model")


def _defaults(folder: Path) -> None:
    """As little as config.json may say."""
    spm(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for key in (
        "rope_theta",
        "rope_parameters",
        "max_position_embeddings",
        "rms_norm_eps",
        "num_experts_per_tok",
    ):
        config.pop(key, None)
    write_json(folder, "config.json", config)


YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 512,
    "beta_fast": 32,
    "beta_slow": 1,
    "attention_factor": 1.2,
}

CASES: dict[str, Callable[[Path], None]] = {
    "Harmony-4x7B-bf16": spm,
    "spm-added-v1.2": _spm_added,
    "spm-end-of-turn": _end_of_turn,
    "spm-roberta": _roberta,
    "spm-no-settings": _no_settings,
    "spm-like": _spm_like,
    "byte-level": _byte_level,
    "byte-level-flags": _byte_level_flags,
    "byte-level-template": _byte_level_template,
    "Card-One-7B": _card(CARD),
    "Tiny-Mixtral-8x1M-Instruct-v0.1": _card(CARD_2),
    "harmony-128k-3.1": _card("no front matter"),
    "phi-3-mini-4k-instruct": _config(_name_or_path="microsoft/phi-3-mini-4k"),
    "head-dim": _config(head_dim=16),
    "rope-linear": _config(rope_scaling={"type": "linear", "factor": 4.0}),
    "rope-yarn": _config(rope_scaling=YARN),
    "rope-llama3": _llama3,
    "router": _config(n_group=2, topk_group=1, scoring_func="sigmoid"),
    "defaults": _defaults,
}
"""Folder name (the name heuristics see it) -> what builds it."""


def is_byte_level(name: str) -> bool:
    """Whether a case needs `PRE` given by hand."""
    return name.startswith("byte-level")
