"""The vocabulary of a folder and of a GGUF file: one is what the other becomes; strangers may write anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType, TokenType
from tokenizer_cases import CASES, NAMES, PRE, byte_level, is_byte_level, spm, spm_like, template, write_json

from calibration.text.folder_vocabulary import read_vocabulary
from calibration.text.special_tokens import SpecialTokens, read_special_tokens
from calibration.text.tokenizer import open_tokenizer, tokenizer_of, vocabulary_of
from calibration.text.tokenizer_files import TokenizerFiles
from calibration.text.vocabulary import SPM, Vocabulary, refuse_other_vocabulary, vocabulary_of_keys
from gguf_export.writing.export import prepare, run
from quantize.containers.gguf import KeyType
from quantize.exceptions import TokenizerError
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe
from quantize.sources.checkpoint import open_checkpoint
from quantize.sources.gguf_file import GGUFFile

ARRAY, STRING, INT32 = GGUFValueType.ARRAY, GGUFValueType.STRING, GGUFValueType.INT32

TOKENIZERS = [name for name in CASES if name.startswith(("spm", "byte-level"))]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_file_has_the_vocabulary_of_its_folder(name: str, tmp_path: Path) -> None:
    CASES[name](tmp_path / name)
    checkpoint = open_checkpoint(tmp_path / name)
    pre = PRE if is_byte_level(name) else None
    job = prepare(checkpoint, [Recipe(ftype("BF16"))], tmp_path / "out", pre=pre)
    file = GGUFFile(run(job, jobs=1).files[0].path)
    own, its = vocabulary_of(checkpoint), vocabulary_of(file)
    assert (its.kind, its.pre) == (own.kind, pre)
    assert (its.texts, its.types, list(its.merges)) == (own.texts, own.types, list(own.merges))
    assert list(its.scores) == pytest.approx(own.scores)
    assert (its.bos_id, its.add_space_prefix) == (own.bos_id, own.add_space_prefix)
    refuse_other_vocabulary(own, its)
    text = "the small <|im_end|> model\n\treads </s>  caf\u00e9 \U0001f680"
    for parse in (False, True):
        ids = [
            tokenizer_of(source).encode(text, parse_special=parse).tolist() for source in (file, checkpoint)
        ]
        assert ids[0] == ids[1]


def test_vocabularies_that_differ() -> None:
    base = Vocabulary("base", SPM, ["a", "b", "[PAD2]"], [1, 1, 5])
    refuse_other_vocabulary(base, Vocabulary("other", SPM, ["a", "b", "<pad>"], [1, 1, 5]))
    for texts, message in (
        (["a", "b"], "2 tokens here, 3 there"),
        (["a", "c", "[PAD2]"], "token 1 is 'c' here, 'b' there"),
    ):
        other = Vocabulary("other", SPM, texts, [1, 1, 5][: len(texts)])
        with pytest.raises(TokenizerError, match=f"other: its tokenizer is not that of base, .*: {message}"):
            refuse_other_vocabulary(base, other)


# -- keys of a GGUF file


KEYS: dict[str, tuple[Any, KeyType]] = {
    "model": ("gpt2", (STRING, None)),
    "pre": ("gpt-2", (STRING, None)),
    "tokens": (["a", "b", "ab"], (ARRAY, STRING)),
    "token_type": ([1, 1, 1], (ARRAY, INT32)),
    "merges": (["a b"], (ARRAY, STRING)),
}


def of_keys(keys: Mapping[str, tuple[Any, KeyType]], n_vocab: int | None = None) -> Vocabulary:
    values = {f"tokenizer.ggml.{name}": value for name, (value, _) in keys.items()}
    types = {f"tokenizer.ggml.{name}": kind for name, (_, kind) in keys.items()}
    return vocabulary_of_keys("file", values, types, n_vocab)


def test_vocabulary_of_keys() -> None:
    found = of_keys(KEYS, 3)
    assert (found.kind, found.pre, found.texts, found.merges) == ("gpt2", "gpt-2", ["a", "b", "ab"], ["a b"])
    assert (found.scores, found.bos_id, found.unused) == ((), None, frozenset())
    spm_found = of_keys(KEYS | {"model": ("llama", (STRING, None))})
    assert (spm_found.scores, spm_found.bos_id, spm_found.pre) == ([0.0] * 3, 1, None)
    adds_bos: tuple[Any, KeyType] = (True, (GGUFValueType.BOOL, None))
    assert of_keys(KEYS | {"add_bos_token": adds_bos, "bos_token_id": (2, (INT32, None))}).bos_id == 2


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("model", ["gpt2"], (ARRAY, STRING)),
        ("model", 3, (INT32, None)),
        ("pre", ["gpt-2"], (ARRAY, STRING)),
        ("pre", 3, (INT32, None)),
        ("tokens", [], (ARRAY, STRING)),
        ("tokens", [1, 2, 3], (ARRAY, INT32)),
        ("tokens", "abc", (STRING, None)),
        ("token_type", [1, 1], (ARRAY, INT32)),
        ("token_type", ["a", "b", "c"], (ARRAY, STRING)),
        ("token_type", 1, (INT32, None)),
        ("merges", [1], (ARRAY, INT32)),
        ("merges", "a b", (STRING, None)),
        ("add_bos_token", 1, (INT32, None)),
        ("add_bos_token", [True], (ARRAY, GGUFValueType.BOOL)),
        ("add_space_prefix", "no", (STRING, None)),
        ("bos_token_id", 3, (INT32, None)),
        ("bos_token_id", -1, (INT32, None)),
        ("bos_token_id", [0], (ARRAY, INT32)),
        ("unknown_token_id", "x", (STRING, None)),
    ],
)
def test_keys_of_other_types(name: str, value: Any, kind: KeyType) -> None:
    with pytest.raises(TokenizerError, match=r"^file: ") as caught:
        of_keys(KEYS | {name: (value, kind)})
    assert "\n" not in str(caught.value)


def test_tokens_for_another_embedding() -> None:
    with pytest.raises(TokenizerError, match="file: 3 tokens for an embedding of 4 rows"):
        of_keys(KEYS, 4)


# -- files of a folder


def special(folder: Path) -> SpecialTokens:
    return read_special_tokens(TokenizerFiles(folder), 330)


def test_a_separator_that_is_written_as_an_object(tmp_path: Path) -> None:
    """The object itself was stored as the name of the token, and nothing could be looked up by it."""
    spm(tmp_path)
    processor = {"type": "RobertaProcessing", "cls": [{"content": "<s>"}, 1], "sep": [{"content": "</s>"}, 2]}
    write_json(tmp_path, "tokenizer.json", spm_like() | {"post_processor": processor})
    write_json(tmp_path, "tokenizer_config.json", {"add_prefix_space": True})
    found = special(tmp_path)
    assert (found.ids["sep"], found.ids["cls"]) == (2, 1)
    assert found.adds == {"bos": True, "eos": True, "sep": True}


ODD: list[object] = [
    None,
    True,
    -1,
    2**70,
    1.5,
    "",
    "x",
    [],
    {},
    [[]],
    [{}],
    [None, None],
    {"content": []},
    {"content": "<s>"},
]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_a_post_processor_of_other_types(tmp_path: Path, odd: object) -> None:
    """Every value on the way to a token's text or id may be of any type."""
    spm(tmp_path)
    piece = {"SpecialToken": odd}
    named = {"SpecialToken": {"id": odd}}
    for processor in (
        odd,
        {"processors": odd},
        {"processors": [odd, {"type": odd}]},
        {"type": "RobertaProcessing", "cls": odd, "sep": odd},
        {"type": "RobertaProcessing", "cls": [odd, odd], "sep": [odd]},
        {"type": "TemplateProcessing", "single": odd, "pair": odd},
        {"type": "TemplateProcessing", "single": [odd, odd], "pair": [odd, odd, odd]},
        {"type": "TemplateProcessing", "single": [piece, piece], "pair": [piece] * 4},
        {"type": "TemplateProcessing", "single": [named, named], "pair": [named] * 4},
    ):
        write_json(tmp_path, "tokenizer.json", spm_like() | {"post_processor": processor})
        assert special(tmp_path).ids["bos"] == 1


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_other_files_of_other_types(tmp_path: Path, odd: object) -> None:
    CASES["spm-like"](tmp_path)
    kinds = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
    odd_settings = {f"{kind}_token": odd for kind in kinds} | {f"add_{kind}_token": odd for kind in kinds}
    more = {"additional_special_tokens": odd, "extra_special_tokens": {"a": odd}, "add_prefix_space": odd}
    content = spm_like() | {"post_processor": template("<s>", "</s>")}
    for name, value in (
        ("tokenizer_config.json", odd_settings | more),
        (
            "config.json",
            {f"{kind}_token_id": odd for kind in kinds} | {"text_config": odd, "vocab_size": odd},
        ),
        ("tokenizer_config.json", NAMES | {"added_tokens_decoder": odd}),
        ("tokenizer_config.json", NAMES | {"added_tokens_decoder": {"5": odd}}),
        ("tokenizer.json", content | {"added_tokens": odd}),
        ("tokenizer.json", content | {"added_tokens": [odd, {"id": odd, "content": odd}]}),
        ("tokenizer.json", content | {"decoder": odd}),
        ("tokenizer.json", content | {"model": odd}),
        ("tokenizer.json", content | {"model": content["model"] | {"merges": odd}}),
        ("tokenizer.json", content | {"model": content["model"] | {"vocab": odd}}),
        ("tokenizer.json", content | {"model": content["model"] | {"byte_fallback": odd}}),
    ):
        path = tmp_path / name
        original = path.read_bytes()
        write_json(tmp_path, name, value)
        try:
            assert read_vocabulary(TokenizerFiles(tmp_path), 400).n_vocab == 400
            open_tokenizer(tmp_path).encode("the small", parse_special=True)
        except TokenizerError as failure:
            assert "\n" not in str(failure)
        path.write_bytes(original)


@pytest.mark.parametrize("odd", [odd for odd in ODD if type(odd) is not int or odd < 0], ids=repr)
@pytest.mark.parametrize("name", ["spm-added-v1.2", "spm-like", "byte-level"])
def test_ids_of_added_tokens_of_other_types(tmp_path: Path, name: str, odd: object) -> None:
    """A list or an object as an id was used as a key."""
    CASES[name](tmp_path)
    write_json(tmp_path, "added_tokens.json", {"<new>": odd})
    with pytest.raises(TokenizerError, match=r"added_tokens\.json: token '<new>' has no valid id"):
        read_vocabulary(TokenizerFiles(tmp_path), 400)


def test_a_size_that_no_vocabulary_has(tmp_path: Path) -> None:
    """Without an embedding nothing but config.json says how long the list is: it is not padded to any length."""
    CASES["byte-level"](tmp_path)
    write_json(tmp_path, "config.json", {"vocab_size": 10**12})
    assert open_tokenizer(tmp_path).n_vocab == 326
    content = byte_level()
    content["model"]["vocab"]["far"] = 2**24
    write_json(tmp_path, "tokenizer.json", content)
    with pytest.raises(TokenizerError, match="token 'far' has id 16777216, which no model has"):
        open_tokenizer(tmp_path)


def test_tokens_are_padded_to_the_rows(tmp_path: Path) -> None:
    spm(tmp_path)
    found = read_vocabulary(TokenizerFiles(tmp_path), 333)
    assert found.texts[330:] == ["[PAD330]", "[PAD331]", "[PAD332]"]
    assert found.unused == {330, 331, 332} and found.types[332] == TokenType.UNUSED
    assert read_vocabulary(TokenizerFiles(tmp_path)).n_vocab == 330
