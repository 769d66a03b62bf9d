"""How llama.cpp cuts a text before byte-level BPE merges within the pieces, by the name of the pre-tokenizer.

The names are those of `tokenizer.ggml.pre`. A text is cut by one regular expression after the other: every match, and
every rest between two matches, becomes a piece (src/llama-vocab.cpp: llm_tokenizer_bpe; src/unicode.cpp:
unicode_regex_split). llama.cpp knows only five kinds of characters (letters, numbers, punctuation, symbols, marks), and
upper and lower case only of A to Z; the expressions here say the same in the syntax of the tokenizers library.

Not here, and so refused, are pre-tokenizers that work on text instead of bytes (gemma4, granite-embed-multi-311m,
sarvam-moe, whitespace).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["SPLITS", "Split", "of_known_characters"]


@dataclass(frozen=True)
class Split:
    """The way of splitting text that the name of a pre-tokenizer stands for."""

    patterns: tuple[str, ...]
    """Regular expressions, applied in this order."""
    ignore_merges: bool = False
    """A piece that is a token becomes that token, whether merges lead to it or not."""
    adds_bos: bool = False
    """BOS is added where the file does not say."""


_CONTRACTION = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKS = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"  # letters and marks
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_PATH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_NOT_LOWER, _NOT_UPPER = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"
_NOT_LOWER_M, _NOT_UPPER_M = r"(?:(?=[\p{L}\p{M}])[^a-z])", r"(?:(?=[\p{L}\p{M}])[^A-Z])"
_ASCII_SIGN = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_NUMBERS_FROM_RIGHT = (
    r"[^\p{N}]*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"  # in threes; the first keeps the text in front
)
_HAN_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|{_LETTERS}|\p{{N}}{{1,3}}|{_OTHERS}|{_SPACES}"
_JAIS2_SPACES = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4, "1,2"))
_JAIS2 = rf"{_CONTRACTION}|{_LETTERS}|\p{{N}}{{1,3}}|{_OTHERS}|\s*[\r\n]+|{_JAIS2_SPACES}|\s"
_UFAKZEKA = rf"{_LETTERS}|\p{{N}}|{_OTHERS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|{_UFAKZEKA}"
_QWEN35 = rf"{_CONTRACTION}|{_MARKS}|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
_BAILING = rf"{_CONTRACTION}|{_LETTERS}|\p{{N}}|{_OTHERS}|\s*[\r\n]|\s+(?!\S)|\s+"
_SEED = rf"{_CONTRACTION}|{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_MINICPM5 = rf"{_CONTRACTION}|{_LETTERS}|\p{{N}}+|{_OTHERS}|{_SPACES}"
_EXAONE_MOE = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)


def _cased(not_lower: str, not_upper: str, contraction: str, numbers: str) -> str:
    """Words with their capitals in front: "CamelCase" is two."""
    lead = r"[^\r\n\p{L}\p{N}]?"
    words = f"{lead}{not_lower}*{not_upper}+{contraction}|{lead}{not_lower}+{not_upper}*{contraction}"
    return f"{words}|{numbers}|{_PATH}|{_SPACES}"


_TEKKEN = _cased(_NOT_LOWER, _NOT_UPPER, "", r"\p{N}")
_GPT4O = _cased(_NOT_LOWER, _NOT_UPPER, _CONTRACTION + "?", r"\p{N}{1,3}")
_GRANITE = _cased(_NOT_LOWER_M, _NOT_UPPER_M, _CONTRACTION + "?", r"\p{N}{1,3}")
_HAN = (
    "\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002ebef\uf900-\ufaff\U0002f800-\U0002fa1f"
)
_KIMI = rf"[{_HAN}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{_HAN}]]+{_CONTRACTION}?|\p{{N}}{{1,3}}|{_OTHERS}|{_SPACES}"
_UNCASED = rf"{_MARKS}{_CONTRACTION}?|\p{{N}}|{_PATH}|{_SPACES}"
_UNCASED_3 = rf"{_MARKS}{_CONTRACTION}?|\p{{N}}{{1,3}}|{_PATH}|{_SPACES}"

_DEEPSEEK_WORDS = rf"{_ASCII_SIGN}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    _HAN_KANA,
    rf"{_DEEPSEEK_WORDS}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)
_SPARK = (
    *_DEEPSEEK3[:2],
    rf"{_DEEPSEEK_WORDS}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+",
    r"\p{N}",
)
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff&&\\S]+"  # white space is never matched by its code point
_DEEPSEEK_CASED = (  # most cased letters, not all
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_SIGNS = "[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3001\u3002]+"
_DEEPSEEK_LLM = (r"[\r\n]", rf"\s?[{_DEEPSEEK_CASED}]+", rf"\s?{_DEEPSEEK_SIGNS}", r"\s+$", _CJK, r"\p{N}+")
_WORDS_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_AFMOE_SCRIPTS = (
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
    "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
_YOUTU_SCRIPTS = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
    f"\ufe30-\ufe4f]+|[\u3105-\u312f]+|{_HAN_KANA}"
)

_BY_SPLIT: tuple[tuple[str, Split], ...] = (
    (
        "default",
        Split((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    ),
    (
        "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code gigachat a.x-4.0 mellum modern-bert "
        "roberta-bpe mpt olmo jais trillion granite-docling exaone4",
        Split((_GPT2,)),
    ),
    (
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        Split((_LLAMA3,), ignore_merges=True, adds_bos=True),
    ),
    ("glm4 glm5", Split((_LLAMA3,), ignore_merges=True)),
    ("dbrx smaug-bpe chatglm-bpe", Split((_LLAMA3,))),
    ("jais-2", Split((_JAIS2,))),
    (
        "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2",
        Split((_QWEN2,)),
    ),
    ("qwen35", Split((_QWEN35,))),
    ("ufakzeka", Split((_UFAKZEKA,))),
    ("laguna", Split((r"[^\n]+|[\n]+", _QWEN2))),
    ("minicpm5", Split((r"\p{N}{1,3}", _MINICPM5), ignore_merges=True)),
    ("bailingmoe bailingmoe2 llada-moe", Split((_BAILING,))),
    ("seed-coder", Split((_SEED,))),
    ("exaone-moe", Split((_EXAONE_MOE,))),
    ("tekken", Split((_TEKKEN,), ignore_merges=True, adds_bos=True)),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", Split((_GPT4O,))),
    ("kimi-k2", Split((_KIMI,))),
    ("granite-embed-multi-97m", Split((_GRANITE,), ignore_merges=True)),
    ("tiny_aya cohere2moe", Split((_NUMBERS_FROM_RIGHT, _UNCASED_3))),
    ("youtu", Split((_YOUTU_SCRIPTS, _UNCASED), ignore_merges=True)),
    (
        "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2",
        Split((r"\p{N}", _GPT2)),
    ),
    ("falcon", Split((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"))),
    (
        "chameleon",
        Split(
            (
                "<sentinel:[0-9]+>",
                "IMGIMG[A-I]{1,4}Z",
                r"[\t\n]|    |  ",
                r"\p{N}",
                r"[\p{P}!-/:-@\[-`{-~]",
                _GPT2,
            ),
            adds_bos=True,
        ),
    ),
    ("bloom gpt3-finnish poro-chat", Split((_WORDS_BLOOM,))),
    ("viking", Split((_WORDS_BLOOM, r"\p{N}"))),
    ("deepseek-llm", Split(_DEEPSEEK_LLM)),
    ("deepseek-coder", Split((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}"))),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", Split(_DEEPSEEK3)),
    ("spark2_5", Split(_SPARK)),
    (
        "afmoe",
        Split((_NUMBERS_FROM_RIGHT, _AFMOE_SCRIPTS, _DEEPSEEK3[2])),
    ),
    ("superbpe", Split((r"\p{N}+", r"(?=(?:[0-9]{3})+(?![0-9]))"))),
)

SPLITS = {name: split for names, split in _BY_SPLIT for name in names.split()}
"""Split by the name of the pre-tokenizer."""

_UNICODE_16 = (
    "\u0897\u1b4e-\u1b4f\u1b7f\u1c89-\u1c8a\u2427-\u2429\u31e4-\u31e5\ua7cb-\ua7cd\ua7da-\ua7dc"
    "\U000105c0-\U000105f3\U00010d40-\U00010d8f\U00010ec2-\U00010efc\U00011380-\U000113e2"
    "\U000116d0-\U000116e3\U00011bc0-\U00011bf9\U00011f5a\U00013460-\U000143fa\U00016100-\U00016139"
    "\U00016d40-\U00016d79\U00018cff\U0001cc00-\U0001ceb3\U0001e5d0-\U0001e5ff\U0001f8b2-\U0001f8c1"
    "\U0001fa89-\U0001fa8f\U0001fabe\U0001fac6\U0001fadc-\U0001fadf\U0001fae9\U0001fbcb-\U0001fbef"
)
"""Characters whose category the tokenizers library knows and llama.cpp does not: its tables are of Unicode 15.1
(src/unicode-data.cpp)."""


def of_known_characters(pattern: str) -> str:
    """The expression with categories that hold only the characters that llama.cpp knows."""
    return re.sub(r"\\p\{([A-Z])\}", rf"[\\p{{\1}}&&[^{_UNICODE_16}]]", pattern)
