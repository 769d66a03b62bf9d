"""Tokens are llama.cpp's where it cuts text otherwise than the model's own files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType as Type
from places import GOLDEN
from token_cases import DECOMPOSED, TOKEN_CASES
from tokenizer_cases import write_json
from tokenizers import Regex, Tokenizer, pre_tokenizers

from calibration.text import cutting, pretokenizers, tokenizer
from calibration.text.byte_level import ByteLevelTokenizer, JsonTokenizer
from calibration.text.control_tokens import types_as_loaded
from calibration.text.special_tokens import SpecialTokens
from calibration.text.splits import SPLITS, of_known_characters
from calibration.text.tokenizer import open_tokenizer, tokenizer_of, vocabulary_of
from calibration.text.vocabulary import BYTE_LEVEL, Vocabulary, vocabulary_of_keys
from gguf_export.writing.export import prepare, run
from quantize.exceptions import TokenizerError
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe
from quantize.sources.checkpoint import open_checkpoint
from quantize.sources.gguf_file import GGUFFile

TOKENS = json.loads((GOLDEN / "tokens.json").read_text(encoding="utf-8"))
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4


@pytest.mark.parametrize("name", TOKEN_CASES)
def test_tokens_of_a_folder_and_of_its_file(tmp_path: Path, name: str) -> None:
    case = TOKEN_CASES[name]
    case.build(tmp_path / "model")
    checkpoint = open_checkpoint(tmp_path / "model")
    job = prepare(checkpoint, [Recipe(ftype("BF16"))], tmp_path / "out", pre=case.pre)
    file = GGUFFile(run(job, jobs=1).files[0].path)
    for ours in (tokenizer_of(checkpoint, case.pre), tokenizer_of(file)):
        for text, wanted in zip(case.texts, TOKENS[name], strict=True):
            found = [ours.encode(text, parse_special=parse).tolist() for parse in (False, True)]
            assert found == wanted, text


@pytest.mark.parametrize("name", ["no NFC", "marks"])
def test_the_library_itself_cuts_otherwise(tmp_path: Path, name: str) -> None:
    """What makes these cases worth their name."""
    TOKEN_CASES[name].build(tmp_path)
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = TOKEN_CASES[name].texts
    assert all(
        library.encode(text).ids != plain for text, (plain, _) in zip(texts, TOKENS[name], strict=True)
    )


@pytest.mark.parametrize("name", sorted(TOKEN_CASES.keys() - {"no NFC", "marks"}))
def test_the_types_in_the_file_say_otherwise(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = TOKEN_CASES[name]
    case.build(tmp_path)
    monkeypatch.setattr(cutting, "types_as_loaded", lambda vocabulary: vocabulary.types)
    ours = tokenizer_of(open_checkpoint(tmp_path), case.pre)
    found = [
        [ours.encode(text, parse_special=parse).tolist() for parse in (False, True)] for text in case.texts
    ]
    assert found != TOKENS[name]


def types_of(*texts: str, kind: int = NORMAL, **ids: int) -> list[int]:
    special = SpecialTokens(ids)
    return types_as_loaded(Vocabulary("few", BYTE_LEVEL, texts, [kind] * len(texts), special=special))


def test_types_by_text() -> None:
    assert types_of("a", "</s>", "<|im_end|>", "<fim_prefix>") == [NORMAL, CONTROL, CONTROL, CONTROL]
    assert types_of("<|message|>", "<|end|>", "<|return|>", kind=CONTROL) == [USER_DEFINED, CONTROL, CONTROL]
    assert types_of("<|end|>", "<|calls|>", "<|flush|>") == [USER_DEFINED, CONTROL, CONTROL]
    assert types_of("<|end|>", "<|calls|>", "<|return|>")[0] == USER_DEFINED
    assert types_of("</s>", "<|tool_response>", kind=CONTROL) == [NORMAL, CONTROL]


def test_a_key_that_names_the_token_ends_the_search() -> None:
    assert types_of("<PRE>", "x", fim_pre=1) == [NORMAL, NORMAL]
    assert types_of("<SUF>", "x", fim_pre=1) == [CONTROL, NORMAL]


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("fim_pre_token_id", 7, USER_DEFINED),
        ("prefix_token_id", 7, USER_DEFINED),
        ("fim_suf_token_id", 7, CONTROL),
        ("fim_pre_token_id", 99999, CONTROL),  # no token: not read
        ("fim_pre_token_id", "7", CONTROL),
    ],
)
def test_keys_of_infill_tokens(key: str, value: Any, kind: int) -> None:
    texts = [*"abcdefgh", "<PRE>"]
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [NORMAL] * 8 + [USER_DEFINED],
        f"tokenizer.ggml.{key}": value,
    }
    types = {
        "tokenizer.ggml.tokens": (Type.ARRAY, Type.STRING),
        "tokenizer.ggml.token_type": (Type.ARRAY, Type.INT32),
    }
    assert types_as_loaded(vocabulary_of_keys("file", keys, types))[-1] == kind


def test_a_folder_is_cut_by_the_pre_tokenizer_it_is_recognised_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by its normalizer and its expressions."""
    TOKEN_CASES["no NFC"].build(tmp_path)
    unknown = open_tokenizer(tmp_path)
    assert isinstance(unknown, JsonTokenizer)
    assert unknown.encode(DECOMPOSED[0]).tolist() != TOKENS["no NFC"][0][0]
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    digest = pretokenizers.hash_ids(library.encode(pretokenizers.CHECK_TEXT).ids)
    monkeypatch.setitem(pretokenizers._HASHES, "qwen2", (digest,))
    known = open_tokenizer(tmp_path)
    assert isinstance(known, ByteLevelTokenizer)
    assert known.encode(DECOMPOSED[0]).tolist() == TOKENS["no NFC"][0][0]


def test_bos_of_a_recognised_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama-bpe adds BOS where no file says anything, whoever asks."""
    TOKEN_CASES["no NFC"].build(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    write_json(tmp_path, "config.json", config | {"bos_token_id": 5})
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    write_json(tmp_path, "tokenizer.json", content | {"post_processor": None})
    checkpoint = open_checkpoint(tmp_path)
    assert tokenizer_of(checkpoint).bos_id is None and vocabulary_of(checkpoint).bos_id is None
    monkeypatch.setattr(tokenizer, "recognised_pre", lambda files: "llama-bpe")
    assert tokenizer_of(checkpoint).bos_id == 5 and vocabulary_of(checkpoint).bos_id == 5


def test_a_pre_tokenizer_given_by_hand(tmp_path: Path) -> None:
    TOKEN_CASES["no NFC"].build(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert isinstance(tokenizer_of(checkpoint, "qwen2"), ByteLevelTokenizer)
    assert isinstance(tokenizer_of(checkpoint, "sarvam-moe"), JsonTokenizer)  # known, its cuts are not
    with pytest.raises(TokenizerError, match=r"llama\.cpp knows no such pre-tokenizer"):
        tokenizer_of(checkpoint, "qwen-2")


@pytest.mark.parametrize("category", "LNMPS")
def test_categories_hold_what_llama_cpp_knows(category: str) -> None:
    """Its tables are of Unicode 15.1, the library's of 16: these characters were new in 15.1, in 16."""
    known = {"L": "\U0002ebf0", "N": "\u0661", "M": "\u0301", "P": "\u3001", "S": "\u2ffc"}[category]
    new = {"L": "\ua7cb", "N": "\U00010d40", "M": "\u0897", "P": "\u1b4e", "S": "\U0001cc00"}[category]
    pattern = of_known_characters(rf"\p{{{category}}}+")
    cut = pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str(
        f"{known}{known}{new}{new} {known}"
    )
    assert [text for text, _ in cut] == [known * 2, f"{new}{new} ", known]
    assert all(of_known_characters(pattern) for split in SPLITS.values() for pattern in split.patterns)
