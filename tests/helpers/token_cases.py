"""Models in which llama.cpp cuts text otherwise than their tokenizer.json says, and texts that show it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from split_cases import pair_vocabulary, write_model
from tokenizer_cases import FAST, byte_level, spm, token, write_json

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

DECOMPOSED = [
    "cafe\u0301 e\u0301 \u00e9",
    "A\u030angstro\u0308m \u212b",
    "\u304b\u3099",
    "\u0958 \u0915\u093c",
]
MARKED = [
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u092e\u0947\u0902",
    "e\u0301te\u0301 E\u0301TE\u0301s",
    "\u0e17\u0e35\u0e48\u0e19\u0e35\u0e48 12\u0301 \u0301x",
]
ENDS = [
    "a</s>b</s>",
    "<PRE>x <SUF>y<MID> z<EOT>",
    "[PAD] [EOS] [e~[ <reponame>r",
    "<|start|>system<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>y<|return|>",
    "<|call|> <|constrain|> <|end|> <think>",
    "<s><unk><tool> \u2581<PRE> <PRE>",
]


@dataclass(frozen=True)
class TokenCase:
    """A folder to be built, its pre-tokenizer (None: SentencePiece), and texts."""

    build: Callable[[Path], object]
    pre: str | None
    texts: list[str]


def _with_parts(
    folder: Path, texts: list[str], pattern: str, normalizer: dict[str, Any] | None = None
) -> None:
    """A vocabulary of byte pairs whose tokenizer.json cuts and normalizes as the original of a family does."""
    write_model(folder, pair_vocabulary(texts))
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    as_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    content |= {
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, as_bytes]},
    }
    write_json(folder, "tokenizer.json", content)


def _added(folder: Path, flags: Mapping[str, bool]) -> None:
    """A byte-level BPE with added tokens, text -> whether the files call it special."""
    spm(folder, 320 + len(flags))
    (folder / "tokenizer.model").unlink()
    added = [
        token(text, special=special, id=320 + index) for index, (text, special) in enumerate(flags.items())
    ]
    write_json(folder, "tokenizer.json", byte_level(*added))
    write_json(folder, "tokenizer_config.json", FAST)


def _plain(*texts: str) -> dict[str, bool]:
    return dict.fromkeys(texts, False)


def _special(*texts: str) -> dict[str, bool]:
    return dict.fromkeys(texts, True)


_INFILL = _plain(
    "</s>", "<PRE>", "<SUF>", "<MID>", "<EOT>", "[PAD]", "[EOS]", "[e~[", "<reponame>", "<think>"
)
_HARMONY = _special("<|start|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|end|>", "<|return|>")


def _spm_added(folder: Path) -> None:
    spm(folder, 335)
    write_json(folder, "added_tokens.json", {"<EOT>": 330, "\u2581<PRE>": 331, "<tool>": 332, "[EOS]": 333})


def _normal(folder: Path) -> None:
    """Tokens of llama.cpp's texts that merges lead to, and that the file does not call added."""
    texts = ["</s>", "<EOT>"]
    vocabulary = pair_vocabulary([*texts, "ab "])
    write_model(folder, vocabulary)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for text in texts:
        content["model"]["vocab"].pop(text[:2])  # so that the number of tokens stays
        content["model"]["merges"] = [
            merge for merge in content["model"]["merges"] if "".join(merge) != text[:2]
        ]
    vocab = content["model"]["vocab"]
    vocab.update(dict(zip(texts, _free(vocab), strict=False)))
    write_json(folder, "tokenizer.json", content)


def _free(vocab: Mapping[str, int]) -> list[int]:
    return sorted(set(range(max(vocab.values()) + 1)) - set(vocab.values()))


TOKEN_CASES: dict[str, TokenCase] = {
    "no NFC": TokenCase(
        lambda folder: _with_parts(folder, [*DECOMPOSED, "\u00e5\u00c5\u00f6\u304c"], QWEN2, {"type": "NFC"}),
        "qwen2",
        DECOMPOSED,
    ),
    "marks": TokenCase(lambda folder: _with_parts(folder, MARKED, GPT4O), "gpt-4o", MARKED),
    "infill": TokenCase(lambda folder: _added(folder, _INFILL), "gpt-2", ENDS),
    "harmony": TokenCase(lambda folder: _added(folder, _HARMONY | _special("<|call|>")), "gpt-4o", ENDS),
    "no calls": TokenCase(lambda folder: _added(folder, _HARMONY), "gpt-4o", ENDS),
    "no end": TokenCase(
        lambda folder: _added(folder, _plain("</s>", "<|tool_response>")),
        "gpt-2",
        [*ENDS[:1], "<|tool_response>x"],
    ),
    "normal": TokenCase(_normal, "qwen2", ["a</s>b</s>", "<EOT> a"]),
    "pieces": TokenCase(_spm_added, None, ENDS),
}
"""Each differs from what the files say, in all texts or in some."""
