"""A byte-level vocabulary that shows where a text was cut: every pair of the bytes in the texts is a token.

The pairs are merged in a random order, so that a cut at another place gives other tokens in nearly every text.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

from gguf import TokenType
from pico import pico_mixtral
from tokenizer_cases import FAST, byte_level, write_json

from calibration.text.pretokenizers import CHECK_TEXT
from calibration.text.vocabulary import BYTE_LEVEL, Vocabulary

_PIECES = [
    *"aBcÉé漢字かハ가ქა 1²٣४'.,!/$~`-<=>|^()[\"\n\r\t_s tmdSTrelLvV",
    *"\u00a0\u3000\u0301\u093f\u200c\u200dǅºₐ…。“、😀",
    *"\ua7cb\U0001cc00\u0897\U00010d40\u1b4e\U0002ebf0",  # all but the last are of Unicode 16
    *("'s", "'re", "'LL", " ", "  ", "   ", "    ", "\n\n", "\r\n", "123", "1234567", "ab", "Ab", "aB", "ÉA"),
    *("éa", "<sentinel:12>", "IMGIMGABZ"),
]
WHOLE = ["Ġab", "123", "Ġ1", "ĊĊĊ", "Ã©a"]
"""Tokens to which no merges lead: pre-tokenizers that ignore merges find them all the same."""


def awkward_texts(n_text: int, seed: int = 1) -> list[str]:
    """llama.cpp's check text, and texts of characters about which pre-tokenizers disagree."""
    choose = random.Random(seed)
    return [CHECK_TEXT] + ["".join(choose.choices(_PIECES, k=choose.randint(2, 25))) for _ in range(n_text)]


def pair_vocabulary(texts: Sequence[str]) -> Vocabulary:
    """The vocabulary of the pairs in `texts`, without a pre-tokenizer."""
    from tokenizers import pre_tokenizers

    byte_characters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    used = {char for text in texts for piece, _ in byte_characters.pre_tokenize_str(text) for char in piece}
    pairs = list(itertools.product(sorted(used), repeat=2))
    random.Random(2).shuffle(pairs)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = list(dict.fromkeys([*alphabet, *map("".join, pairs), *WHOLE]))
    return Vocabulary(
        "pairs",
        BYTE_LEVEL,
        tokens,
        [TokenType.NORMAL] * len(tokens),
        merges=[" ".join(pair) for pair in pairs],
    )


def write_model(folder: Path, vocabulary: Vocabulary) -> Path:
    """A tiny model with such a vocabulary."""
    pico_mixtral(
        folder,
        n_vocab=vocabulary.n_vocab,
        n_layer=1,
        n_embd=32,
        n_ff=32,
        n_shards=1,
        tokenizer=False,
    )
    content = byte_level()
    content["added_tokens"] = []
    content["model"]["vocab"] = vocabulary.ids
    content["model"]["merges"] = [merge.split(" ") for merge in vocabulary.merges]
    write_json(folder, "tokenizer.json", content)
    write_json(folder, "tokenizer_config.json", FAST)
    return folder
