"""What of a stranger's tokenizer.json reaches the tokenizers library, and that it does there what it always did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pico import TEXT, pico_mixtral
from split_cases import awkward_texts
from tokenizer_cases import FAST, PRE, byte_level, spm_like, template, token, write_json
from tokenizers import Tokenizer

from calibration.text import tokenizer_json
from calibration.text.expressions import MAX_EXPRESSION, is_tame
from calibration.text.pretokenizers import CHECK_TEXT
from calibration.text.special_tokens import ids_around
from calibration.text.splits import SPLITS
from calibration.text.tokenizer import open_tokenizer, tokenizer_of
from gguf_export.vocab.vocab_keys import vocab_keys
from quantize.exceptions import TokenizerError
from quantize.sources.checkpoint import open_checkpoint

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
KNOWN = [
    *(LLAMA3, GPT4O, DEEPSEEK, LLAMA3.replace("{1,3}", ""), LLAMA3.replace("{1,3}", "{1}")),
    GPT4O.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", ""),  # tekken
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
    r"\d{1,3}(?=(?:\d{3})*\b)",
    "[0-9][0-9][0-9]",
    r"\s{512}(?!\S)|\s{1,2}(?!\S)|\s{1}",
    "[^\\n]+|[\\n]+",
    *(
        pattern
        for name in ("gpt-2", "qwen35", "deepseek-llm", "deepseek-coder", "falcon")
        for pattern in SPLITS[name].patterns
    ),
    " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+",
]
"""Expressions that stand in the tokenizer.json of llama.cpp's models."""

WILD = [
    *(
        "(a+)+$",
        "(a|a)*b",
        "a*a*b",
        ".*.*x",
        "[a-z]+[a-z]+b",
        "a{1,900}a{1,900}b",
        r"\s*x",
        "(?:a+)+",
        "a+b",
        "(?<=a+)b",
    ),
    *(
        r"(a)\1",
        "a?{900}",
        r"\p{N}{1,3}{900}",
        "((((a))))",
        "[[a]+b]+x",
        "a{999}{999}",
        "a?a?a?a?b",
        "",
        "(",
        "[",
        "\\",
    ),
    *("x" * (MAX_EXPRESSION + 1), "|".join(["(?i:'s)"] * 200) + "|(a+)+$", "(?i:'s|(a+)+)", r"\p{L}+|(a*)*b"),
]
"""Expressions that try a text in too many ways, or whose time nobody knows."""


def split(expression: object, **more: Any) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": expression},
        "behavior": "Isolated",
        "invert": False,
        **more,
    }


def replaced(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def sequence(inner: str, *steps: Any) -> dict[str, Any]:
    return {"type": "Sequence", inner: list(steps)}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
WORDS = BYTES | {"use_regex": True}
WITHOUT_R = split("", pattern={"String": "r"}, behavior="Removed")
ENDS = {"cls": ["<|endoftext|>", 0], "sep": ["a", 5]}
DIGITS = {"type": "Digits", "individual_digits": True}
PUNCTUATION = {"type": "Punctuation", "behavior": "Contiguous"}

GOOD: list[dict[str, Any]] = [
    {"pre_tokenizer": sequence("pretokenizers", split(LLAMA3), BYTES), "normalizer": None},
    {"pre_tokenizer": sequence("pretokenizers", split(GPT4O), BYTES), "normalizer": {"type": "NFC"}},
    {"pre_tokenizer": sequence("pretokenizers", split(r"\p{N}{1,3}"), split(DEEPSEEK), BYTES)},
    {"pre_tokenizer": sequence("pretokenizers", PUNCTUATION, WORDS, DIGITS, split("[0-9][0-9][0-9]"))},
    {"pre_tokenizer": sequence("pretokenizers", DIGITS, WORDS)},
    {"pre_tokenizer": sequence("pretokenizers", sequence("pretokenizers", WITHOUT_R), BYTES)},
    {"normalizer": sequence("normalizers")},
    {"normalizer": sequence("normalizers", {"type": "NFKD"}, {"type": "Lowercase"}, {"type": "StripAccents"})},
    {"normalizer": sequence("normalizers", {"type": "Prepend", "prepend": "▁"}, replaced(" ", "▁"))},
    {"post_processor": template("<|endoftext|>", "<|endoftext|>")},
    {"post_processor": sequence("processors", template("<|endoftext|>", None), BYTES)},
    {"post_processor": ENDS | {"type": "BertProcessing"}},
    {"post_processor": ENDS | {"type": "RobertaProcessing", "trim_offsets": True, "add_prefix_space": False}},
    {"truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}},
]  # fmt: skip

HOSTILE: dict[str, dict[str, Any]] = {
    "text that doubles": {"normalizer": sequence("normalizers", *[replaced("e", "ee")] * 28)},
    "text that doubles once": {"normalizer": replaced("e", "ee")},
    "a letter of a megabyte": {"normalizer": replaced(".", "x" * 2**20)},
    "a letter that unfolds": {"normalizer": replaced("e", "\ufdfa")},
    "an expression replaced": {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}},
    "thirty prefixes": {"normalizer": sequence("normalizers", *[{"type": "Prepend", "prepend": "x"}] * 30)},
    "two prefixes": {"normalizer": sequence("normalizers", *[{"type": "Prepend", "prepend": "x"}] * 2)},
    "an empty prefix": {"normalizer": {"type": "Prepend", "prepend": ""}},
    "a long prefix": {"normalizer": {"type": "Prepend", "prepend": "x" * 2**20}},
    "two forms": {"normalizer": sequence("normalizers", {"type": "NFKD"}, {"type": "NFKC"})},
    "bytes of bytes": {"pre_tokenizer": sequence("pretokenizers", *[BYTES] * 3000)},
    "bytes twice": {"pre_tokenizer": sequence("pretokenizers", BYTES, BYTES)},
    "a map of characters": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "A" * 1000}},
    "nobody's pre-tokenizer": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "digits of any kind": {"pre_tokenizer": sequence("pretokenizers", DIGITS | {"individual_digits": 7}, BYTES)},
    "no list": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": {"a": BYTES}}},
    "no object": {"normalizer": ["NFC"]},
    "a type that has no hash": {"normalizer": {"type": ["NFC"]}},
    "back and forth": {"pre_tokenizer": sequence("pretokenizers", split(r"(\s+|\s+\S|\S)+\d{400}"), BYTES)},
    "no expression": {"pre_tokenizer": sequence("pretokenizers", split("("), BYTES)},
    "a decoder that doubles": {"decoder": sequence("decoders", *[replaced("e", "ee")] * 28)},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_json(tmp_path, "tokenizer_config.json", FAST)
    return tmp_path


@pytest.mark.parametrize("expression", KNOWN)
def test_expressions_of_known_tokenizers(expression: str) -> None:
    assert is_tame(expression)


@pytest.mark.parametrize("expression", WILD, ids=lambda text: text[:40])
def test_expressions_of_unknown_time(expression: str) -> None:
    assert not is_tame(expression)


@pytest.mark.parametrize("change", GOOD)
def test_known_steps_do_what_they_did(folder: Path, change: dict[str, Any]) -> None:
    content = byte_level() | change
    write_json(folder, "tokenizer.json", content)
    write_json(folder, "tokenizer_config.json", FAST | {"bos_token": "<|endoftext|>"})
    library = Tokenizer.from_str(json.dumps(content))
    library.no_truncation()
    own = open_tokenizer(folder)
    before, after = ids_around(content.get("post_processor") or {})
    for text in (*awkward_texts(12), TEXT, "<|endoftext|> a"):
        want = library.encode(text, add_special_tokens=False).ids
        assert own.encode(text, parse_special=True).tolist() == want
        assert before + want + after == library.encode(text).ids


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_unknown_steps_never_reach_the_library(
    folder: Path, capfd: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    """They took gigabytes and minutes, or ended in a panic that printed where it was."""
    write_json(folder, "tokenizer.json", byte_level(token("<x y>", id=320)) | change)
    for read in (lambda: open_tokenizer(folder).encode(TEXT), lambda: vocab_keys(folder, {}, 330)):
        with pytest.raises(TokenizerError, match=r"tokenizer\.json: has ") as caught:
            read()
        assert (
            str(caught.value).isprintable() and caught.value.setting == "pre" and len(str(caught.value)) < 600
        )
    if "pre_tokenizer" not in change:  # llama.cpp cuts by the name, and has no normalizer
        keys = {kv.key: kv.value for kv in vocab_keys(folder, {}, 330, PRE)}
        assert keys["tokenizer.ggml.pre"] == PRE and keys["tokenizer.ggml.tokens"][320] == "<x y>"
    assert capfd.readouterr() == ("", "")


def test_a_pre_tokenizer_named_by_hand_stands_for_an_unknown_expression(folder: Path) -> None:
    unknown = sequence("pretokenizers", split("(a+)+$"), BYTES)
    write_json(folder, "tokenizer.json", byte_level() | {"pre_tokenizer": unknown})
    assert {kv.key: kv.value for kv in vocab_keys(folder, {}, 330, "qwen2")}["tokenizer.ggml.pre"] == "qwen2"
    pico_mixtral(folder, n_vocab=320, n_layer=1, n_embd=32, n_ff=32, n_shards=1, tokenizer=False)
    checkpoint = open_checkpoint(folder)
    library = Tokenizer.from_str(json.dumps(byte_level()))  # which cuts text as gpt-2
    assert tokenizer_of(checkpoint, "gpt-2").encode(TEXT).tolist() == library.encode(TEXT).ids
    with pytest.raises(
        TokenizerError, match=r"with a pattern that .* do not have: '\(a\+\)\+\$'; if you know"
    ):
        tokenizer_of(checkpoint)
    write_json(folder, "tokenizer.json", byte_level() | {"pre_tokenizer": split("(a+)+$")})
    with pytest.raises(TokenizerError, match="is no byte-level BPE"):
        vocab_keys(folder, {}, 330, "qwen2")


@pytest.mark.parametrize("dropout", [0.5, 1.0, "x"])
def test_nothing_random_enters_a_result(folder: Path, dropout: object) -> None:
    """The library leaves out that share of the merges, others each time."""
    write_json(folder, "tokenizer.json", byte_level())
    plain = open_tokenizer(folder).encode(TEXT).tolist()
    content = byte_level()
    content["model"]["dropout"] = dropout
    write_json(folder, "tokenizer.json", content)
    assert open_tokenizer(folder).encode(TEXT).tolist() == plain


def test_a_post_processor_without_end_stays_out(folder: Path) -> None:
    pieces = template("<|endoftext|>", None)
    pieces["single"] = [pieces["single"][0]] * 100_000 + pieces["single"][1:]
    assert ids_around(pieces)[0] == [0] * 16
    pieces["special_tokens"]["<|endoftext|>"]["ids"] = [0] * 100_000
    assert ids_around(pieces) == ([], [])
    write_json(folder, "tokenizer.json", byte_level() | {"post_processor": pieces})
    with pytest.raises(TokenizerError, match="the pre-tokenizer is unknown"):
        vocab_keys(folder, {}, 330)


def test_of_a_sentencepiece_vocabulary_the_steps_do_not_matter(folder: Path) -> None:
    """Its text is cut by llama.cpp's rules; of tokenizer.json only the tokens are read."""
    write_json(folder, "tokenizer.json", spm_like())
    plain = open_tokenizer(folder).encode(TEXT).tolist()
    write_json(folder, "tokenizer.json", spm_like() | HOSTILE["a map of characters"])
    assert open_tokenizer(folder).encode(TEXT).tolist() == plain


def test_added_tokens_have_an_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library builds an automaton of them, a hundred times as large."""
    monkeypatch.setattr(tokenizer_json, "MAX_ADDED_BYTES", 1000)
    for name, text in (("one", "x" * 1001), ("many", "")):
        added = [token(text or f"{name}{i}", id=320 + i) for i in range(1 if text else 200)]
        write_json(folder, "tokenizer.json", byte_level(*added))
        with pytest.raises(
            TokenizerError, match=r"its added tokens have .* bytes of text, the limit is 1000"
        ):
            open_tokenizer(folder)
    write_json(folder, "tokenizer.json", byte_level())
    write_json(folder, "tokenizer_config.json", FAST | {"additional_special_tokens": ["y" * 1001]})
    with pytest.raises(TokenizerError, match="its added tokens have"):
        open_tokenizer(folder)


@pytest.mark.parametrize("flags", [{}, {"single_word": True}, {"lstrip": True}], ids=str)
def test_a_normalizer_that_leaves_nothing_of_a_token(
    folder: Path, capfd: pytest.CaptureFixture[str], flags: dict[str, bool]
) -> None:
    """The library found it everywhere, and panicked."""
    strip = {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}}
    write_json(folder, "tokenizer.json", byte_level(token("  ", normalized=True, id=320) | flags) | strip)
    with pytest.raises(TokenizerError, match="has a normalizer that leaves nothing of added token '  '"):
        open_tokenizer(folder).encode(TEXT + "\u0301")
    assert {kv.key: kv.value for kv in vocab_keys(folder, {}, 330, PRE)}["tokenizer.ggml.tokens"][320] == "  "
    write_json(folder, "tokenizer.json", byte_level(token("  ", id=320) | flags) | strip)
    assert open_tokenizer(folder).encode(TEXT + "\u0301").tolist()
    assert capfd.readouterr() == ("", "")


def test_a_step_that_lacks_a_parameter(folder: Path) -> None:
    write_json(folder, "tokenizer.json", byte_level() | {"normalizer": {"type": "Strip"}})
    with pytest.raises(TokenizerError, match="is no tokenizer that can be read: missing field"):
        open_tokenizer(folder)


def test_a_normalizer_that_makes_two_tokens_alike(folder: Path) -> None:
    """Each run took another one."""
    added = [token(text, normalized=True, id=320 + i) for i, text in enumerate(("Zq", "zQ"))]
    lower = {"normalizer": {"type": "Lowercase"}}
    write_json(folder, "tokenizer.json", byte_level(*added) | lower)
    with pytest.raises(TokenizerError, match="has a normalizer that makes added tokens 'Zq' and 'zQ' alike"):
        open_tokenizer(folder)
    write_json(folder, "tokenizer.json", byte_level(added[0], token("zQ", id=321)) | lower)
    assert open_tokenizer(folder).encode("zQ ZQ").tolist()[0] == 321


@pytest.mark.parametrize("content", [byte_level(), spm_like()], ids=["byte-level", "spm-like"])
def test_two_tokens_of_one_id(folder: Path, content: dict[str, Any]) -> None:
    """Each run kept another one."""
    content["model"]["vocab"] |= {"qqq": 7}
    write_json(folder, "tokenizer.json", content)
    with pytest.raises(TokenizerError, match=r"tokens .* and 'qqq' are both number 7; fetch the file again"):
        open_tokenizer(folder)


def test_an_added_token_where_another_one_is(folder: Path) -> None:
    """With a gap in the vocabulary the library's next number is one that is taken."""
    content = byte_level()
    del content["model"]["vocab"]["q"], content["model"]["merges"]
    content["model"] |= {"merges": []}
    write_json(folder, "tokenizer.json", content)
    write_json(folder, "tokenizer_config.json", FAST | {"additional_special_tokens": ["<x>"]})
    with pytest.raises(TokenizerError, match=r"tokens .* and .* are both number 319; fetch the file again"):
        open_tokenizer(folder)


def test_sequences_in_sequences(folder: Path) -> None:
    """They were walked by recursion, as deep as the reader of JSON goes."""
    nested: dict[str, Any] = {"type": "Lowercase"}
    for _ in range(400):
        nested = sequence("normalizers", nested)
    write_json(folder, "tokenizer.json", byte_level() | {"normalizer": nested})
    with pytest.raises(TokenizerError, match="has more than 16 normalizers"):
        open_tokenizer(folder)
    assert CHECK_TEXT and vocab_keys(folder, {}, 340, PRE)
