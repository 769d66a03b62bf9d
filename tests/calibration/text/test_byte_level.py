"""Byte-level BPE by a GGUF file's keys, against llama.cpp and against the tokenizers library on tokenizer.json."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from pico import TEXT
from places import GOLDEN
from split_cases import awkward_texts, pair_vocabulary, write_model
from tokenizer_cases import CASES, PRE, byte_level, write_json

from calibration.text.byte_level import ByteLevelTokenizer
from calibration.text.pretokenizers import KNOWN, hash_ids
from calibration.text.special_tokens import SpecialTokens
from calibration.text.splits import SPLITS
from calibration.text.tokenizer import tokenizer_of, vocabulary_of
from calibration.text.vocabulary import BYTE_LEVEL, Vocabulary
from gguf_export.writing.export import prepare, run
from quantize.exceptions import TokenizerError
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe
from quantize.sources.checkpoint import open_checkpoint
from quantize.sources.gguf_file import GGUFFile

LLAMA_CPP = json.loads((GOLDEN / "splits.json").read_text(encoding="utf-8"))

TEXTS = [
    "",
    " ",
    "\n\n x",
    "<|im_start|>user\nhi<|im_end|>",
    "<|endoftext|>",
    "a b c<think>  é! a\u2581b c",
    "end flag flag2 late the",
    TEXT,
]


def exported(folder: Path, pre: str) -> Path:
    """A GGUF file of the model in `folder`."""
    job = prepare(open_checkpoint(folder), [Recipe(ftype("BF16"))], folder / pre, pre=pre)
    return run(job, jobs=1).files[0].path


@pytest.fixture(scope="module")
def pairs() -> Vocabulary:
    return pair_vocabulary(LLAMA_CPP["texts"])


@pytest.mark.parametrize("pre", sorted(SPLITS))
def test_each_pre_tokenizer_cuts_as_llama_cpp_does(pairs: Vocabulary, pre: str) -> None:
    tokenizer = ByteLevelTokenizer(replace(pairs, pre=pre, special=SpecialTokens(adds={"bos": False})))
    for text, digest in zip(LLAMA_CPP["texts"], LLAMA_CPP["digests"][pre].split(), strict=True):
        assert hash_ids(tokenizer.encode(text).tolist())[:8] == digest, text


def test_names_of_pre_tokenizers() -> None:
    """A name that llama.cpp knows either has its split here or works on text instead of bytes."""
    without = {"gemma4", "granite-embed-multi-311m", "sarvam-moe", "whitespace"}
    assert set(SPLITS) == KNOWN - without


@pytest.mark.slow
@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2"])
def test_a_file_is_cut_as_llama_cpp_cuts_it(tmp_path: Path, pre: str) -> None:
    """On texts that the committed results do not hold; the whole way from tokenizer.json through the file."""
    pytest.importorskip("xllamacpp")
    from llama import serve

    texts = awkward_texts(60, seed=5)
    path = exported(write_model(tmp_path / "model", pair_vocabulary(texts)), pre)
    tokenizer = tokenizer_of(GGUFFile(path))
    with serve(path) as llama:
        for text in texts:
            want = llama.tokenize(text, add_special=False, parse_special=False)
            assert tokenizer.encode(text).tolist() == want, text


@pytest.mark.parametrize("name", ["byte-level", "byte-level-flags"])
def test_added_tokens_are_found_as_llama_cpp_finds_them(tmp_path: Path, name: str) -> None:
    pytest.importorskip("xllamacpp")
    from llama import serve

    CASES[name](tmp_path / name)
    path = exported(tmp_path / name, PRE)
    tokenizer = tokenizer_of(GGUFFile(path))
    assert tokenizer.n_vocab == 332
    with serve(path) as llama:
        for text in TEXTS:
            for parse in (False, True):
                want = llama.tokenize(text, add_special=False, parse_special=parse)
                assert tokenizer.encode(text, parse_special=parse).tolist() == want, (text, parse)


def test_a_file_is_cut_as_its_tokenizer_json(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    CASES["byte-level-template"](tmp_path / "model")
    file = GGUFFile(exported(tmp_path / "model", PRE))
    tokenizer, own = tokenizer_of(file), tokenizer_of(open_checkpoint(tmp_path / "model"))
    library = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    assert tokenizer.bos_id == own.bos_id == 0
    for text in (*TEXTS[:3], *awkward_texts(20), TEXT):
        want = library.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text).tolist() == own.encode(text).tolist() == want


def test_bos_by_default(pairs: Vocabulary) -> None:
    """Some pre-tokenizers add BOS where no key says so."""
    named = replace(pairs, special=SpecialTokens({"bos": 7}))
    assert ByteLevelTokenizer(replace(named, pre="llama-bpe")).bos_id == 7
    assert ByteLevelTokenizer(replace(named, pre="gpt-2")).bos_id is None
    with pytest.raises(TokenizerError, match="pairs: a BOS token is to be added, but nothing says which"):
        ByteLevelTokenizer(replace(pairs, pre="llama-bpe"))


def test_a_pre_tokenizer_that_is_not_known_here(pairs: Vocabulary) -> None:
    with pytest.raises(TokenizerError) as caught:
        ByteLevelTokenizer(replace(pairs, pre="sarvam-moe"))
    assert caught.value.place == "pairs" and "'sarvam-moe'" in caught.value.message
    assert "give the folder of the checkpoint" in caught.value.remedy


@pytest.mark.parametrize("merge", ["b x", "", " ", "ab", "q a"])
def test_merges_that_never_come_up(merge: str) -> None:
    vocabulary = Vocabulary("few", BYTE_LEVEL, ["a", "b", "ab"], [1, 1, 1], merges=[merge, "a b"], pre=PRE)
    assert ByteLevelTokenizer(vocabulary).encode("aabb").tolist() == [0, 2, 1]


def test_a_merge_that_makes_no_token() -> None:
    """llama.cpp merges all the same, and of what is no token it keeps the bytes that are tokens."""
    vocabulary = Vocabulary(
        "few", BYTE_LEVEL, ["a", "b", "ab"], [1, 1, 1], merges=["ab b", "b Ġ", "a b"], pre=PRE
    )
    tokenizer = ByteLevelTokenizer(vocabulary)
    assert tokenizer.encode("abb").tolist() == [0, 1, 1]
    assert tokenizer.encode("b c").tolist() == [1]


def test_of_equal_merges_the_first_counts() -> None:
    tokens = ["a", "b", "c", "ab", "bc"]
    vocabulary = Vocabulary("few", BYTE_LEVEL, tokens, [1] * 5, merges=["a b", "b c", "a b"], pre=PRE)
    assert ByteLevelTokenizer(vocabulary).encode("abc").tolist() == [3, 2]


def test_a_vocabulary_needs_no_pre_tokenizer(tmp_path: Path) -> None:
    """To compare two models by their tokens, the name of the pre-tokenizer does not matter."""
    CASES["byte-level"](tmp_path / "model")
    write_json(tmp_path / "model", "tokenizer.json", byte_level())
    vocabulary = vocabulary_of(open_checkpoint(tmp_path / "model"))
    assert vocabulary.pre is None and vocabulary.n_vocab == 332
    assert vocabulary.unused
