"""Tokenizer files -> tokenizer.* keys: what llama.cpp's converter writes, and what it does not survive."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType, TokenType
from golden_keys import record
from places import GOLDEN
from tokenizer_cases import (
    CASES,
    DECODER,
    FAST,
    NAMES,
    PIECES,
    PRE,
    byte_level,
    is_byte_level,
    spm_like,
    template,
    token,
    write_json,
)

from calibration.text import chat_templates, pretokenizers
from gguf_export.vocab.vocab_keys import vocab_keys
from quantize.containers.keys import KeyValue
from quantize.exceptions import TokenizerError
from quantize.telling import Remark

KEYS = json.loads((GOLDEN / "keys.json").read_text(encoding="utf-8"))


def as_dict(keys: list[KeyValue]) -> dict[str, Any]:
    found = {kv.key.removeprefix("tokenizer.").removeprefix("ggml."): kv.value for kv in keys}
    assert len(found) == len(keys)
    return found


def read(folder: Path, n_vocab: int = 330, pre: str | None = None) -> dict[str, Any]:
    return as_dict(vocab_keys(folder, {}, n_vocab, pre))


def refused(folder: Path, n_vocab: int = 330, pre: str | None = None) -> str:
    with pytest.raises(TokenizerError) as failure:
        vocab_keys(folder, {}, n_vocab, pre)
    message = failure.value.line(lambda setting: f"--{setting}")
    assert "\n" not in message
    return message


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    """A folder with a tokenizer.model of 330 pieces and its usual settings."""
    shutil.copy(PIECES, tmp_path / "tokenizer.model")
    write_json(tmp_path, "tokenizer_config.json", NAMES)
    return tmp_path


@pytest.fixture
def bytes_only(tmp_path: Path) -> Path:
    """A folder with a byte-level BPE of 320 tokens."""
    write_json(tmp_path, "tokenizer.json", byte_level())
    write_json(tmp_path, "tokenizer_config.json", FAST)
    return tmp_path


@pytest.mark.parametrize("name", CASES)
def test_keys_are_the_converters(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    CASES[name](folder)
    wanted = [row for row in KEYS[name] if row[0].startswith("tokenizer.")]
    n_vocab = next(row[3]["length"] for row in wanted if row[0] == "tokenizer.ggml.tokens")
    keys = vocab_keys(folder, {}, n_vocab, PRE if is_byte_level(name) else None)
    assert [record(kv.key, kv.type, kv.sub_type, kv.value) for kv in keys] == wanted


# -- as many tokens as the embedding has rows, each once ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tokenizer.model", "spm-like", "byte-level"])
def test_list_is_padded_to_the_rows(kind: str, tmp_path: Path) -> None:
    """The converter pads to config.json's vocab_size, or not at all; the loader wants the rows."""
    write_json(tmp_path, "tokenizer_config.json", NAMES if kind != "byte-level" else FAST)
    if kind == "tokenizer.model":
        shutil.copy(PIECES, tmp_path / "tokenizer.model")
    else:
        write_json(tmp_path, "tokenizer.json", spm_like() if kind == "spm-like" else byte_level())
    found = read(tmp_path, 400, PRE if kind == "byte-level" else None)
    assert len(found["tokens"]) == len(found["token_type"]) == 400
    assert found["tokens"][-1] == "[PAD399]"
    assert found["token_type"][-1] == TokenType.UNUSED
    if kind != "byte-level":
        assert found["scores"][-1] == -10000.0 and len(found["scores"]) == 400


def test_padding_does_not_collide(pieces: Path) -> None:
    write_json(pieces, "added_tokens.json", {"[PAD331]": 330, "[[PAD331]]": 332})
    tokens = read(pieces, 334)["tokens"]
    assert tokens[330:] == ["[PAD331]", "[[[PAD331]]]", "[[PAD331]]", "[PAD333]"]


def test_empty_tokens_get_the_loaders_name(pieces: Path) -> None:
    write_json(pieces, "added_tokens.json", {"": 330, "\0x": 331})
    assert read(pieces, 332)["tokens"][330:] == ["[EMPTY_330]", "[EMPTY_331]"]


@pytest.mark.parametrize("text", ["</s>", "</s>\0 and what a C string does not see"])
def test_a_token_twice_is_refused(pieces: Path, text: str) -> None:
    write_json(pieces, "added_tokens.json", {text: 330})
    assert "tokens 2 and 330 are both '</s>" in refused(pieces, 331)


def test_more_tokens_than_rows(pieces: Path, bytes_only: Path) -> None:
    message = refused(pieces, 300)
    assert "tokenizer.model: the tokenizer has 330 tokens, the embedding has 300 rows" in message
    assert "remove the tokens from id 300 on" in message
    write_json(pieces, "added_tokens.json", {"<pad>": 330})
    assert "added_tokens.json: the tokenizer has 331 tokens, the embedding has 330 rows" in refused(pieces)
    (pieces / "tokenizer.model").unlink()
    assert "tokenizer.json: the tokenizer has 321 tokens, the embedding has 319 rows" in refused(
        bytes_only, 319, PRE
    )


@pytest.mark.parametrize("name", ["spm-added-v1.2", "byte-level"])
def test_llama_cpp_loads_the_list(name: str, tmp_path: Path) -> None:
    """The real loader counts the tokens, wants each once, and splits text as the original tokenizer does."""
    pytest.importorskip("xllamacpp")
    from llama import serve
    from pico import TEXT

    from gguf_export.writing.export import prepare, run
    from quantize.recipes.ftypes import ftype
    from quantize.recipes.recipe import Recipe
    from quantize.sources.checkpoint import open_checkpoint

    CASES[name](tmp_path / name)
    checkpoint = open_checkpoint(tmp_path / name)
    pre = PRE if is_byte_level(name) else None
    export = prepare(checkpoint, [Recipe(ftype("BF16"))], tmp_path / "out", pre=pre)
    run(export, jobs=1)
    text = "naïve 🚀 x  y\n\t" + TEXT
    with serve(export.files[0].path) as llama:
        assert llama.n_vocab == checkpoint.hparams.n_vocab
        ids = llama.tokenize(text)
        added = llama.tokenize("<|im_end|>", add_special=False)
    if is_byte_level(name):
        from tokenizers import Tokenizer

        assert ids == Tokenizer.from_file(str(tmp_path / name / "tokenizer.json")).encode(text).ids
        assert added == [321]
    else:
        from sentencepiece import SentencePieceProcessor

        pieces = SentencePieceProcessor(model_proto=PIECES.read_bytes())
        assert ids == [1, *pieces.encode(text)]
        assert added == [330]


# -- which tokenizer it is ---------------------------------------------------------------------------------------------


def test_unknown_pre_tokenizer_is_not_guessed(bytes_only: Path) -> None:
    message = refused(bytes_only)
    assert "name it with --pre" in message
    digest = message.partition("(hash ")[2][:64]
    assert len(digest) == 64 and digest not in str(pretokenizers._HASHES)
    assert read(bytes_only, pre="llama-bpe")["pre"] == "llama-bpe"
    assert "knows no such pre-tokenizer; it knows a.x-4.0, afmoe" in refused(bytes_only, pre="mine")


@pytest.mark.parametrize("added_by", ["post-processor", "nobody", "settings"])
def test_pre_tokenizer_is_recognised_by_hash(
    bytes_only: Path, monkeypatch: pytest.MonkeyPatch, added_by: str
) -> None:
    """llama.cpp's hash includes the BOS that the tokenizer adds; models are saved with it switched on or off."""
    from tokenizers import Tokenizer

    tokenizer = byte_level()
    if added_by == "post-processor":
        tokenizer["post_processor"] = template("<|endoftext|>", None)
    write_json(bytes_only, "tokenizer.json", tokenizer)
    write_json(bytes_only, "tokenizer_config.json", FAST | {"bos_token": "<|endoftext|>"})
    plain = Tokenizer.from_str(json.dumps(byte_level())).encode(pretokenizers.CHECK_TEXT).ids
    known = plain if added_by == "nobody" else [0, *plain]
    monkeypatch.setitem(pretokenizers._HASHES, "viking", (pretokenizers.hash_ids(known),))
    assert read(bytes_only)["pre"] == "viking"
    remarks: list[Remark] = []
    overruled = as_dict(vocab_keys(bytes_only, {}, 330, PRE, remarks.append))
    assert overruled["pre"] == PRE
    assert "was recognised as viking; gpt-2 is written, as pre asks" in str(remarks[0])


def test_hash_table() -> None:
    """The check text and some hashes of models that everybody knows, by llama.cpp's conversion/base.py."""
    from hashlib import sha256

    text = pretokenizers.CHECK_TEXT
    digest = "a36179c1e2b1cfcfbfad1dc779addad2ffc778201e4cf0d538bddeafa2c526da"
    assert len(text) == 350 and sha256(text.encode()).hexdigest() == digest
    hashes = [digest for digests in pretokenizers._HASHES.values() for digest in digests]
    assert len(hashes) == len(set(hashes)) == 93
    assert pretokenizers._HASHES["gpt-2"][-1].startswith("3ce83efda565")  # openai-community/gpt2
    assert pretokenizers._HASHES["llama-bpe"][0].startswith("0ef9807a4087")  # meta-llama/Meta-Llama-3-8B
    assert "mpt" in pretokenizers.KNOWN and "bert-bge" not in pretokenizers.KNOWN


@pytest.mark.parametrize("pre", [["gpt-2"], {}, 3, "", "gpt-2\n\x1b[31m"])
def test_a_pre_tokenizer_that_a_stranger_named(bytes_only: Path, pre: Any) -> None:
    """`verify` hands over the key of a file; a list was looked up in a set."""
    message = refused(bytes_only, pre=pre)
    assert "llama.cpp knows no such pre-tokenizer" in message and message.isprintable()


def test_pre_is_for_byte_level_only(pieces: Path) -> None:
    assert "only a byte-level BPE" in refused(pieces, pre="gpt-2")


def _model(**model: Any) -> dict[str, Any]:
    tokenizer = byte_level()
    tokenizer["model"] |= model
    return tokenizer


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "has neither tokenizer.model nor tokenizer.json"),
        ({"tekken.json": "{}"}, "has only a tekken.json"),
        ({"hy.tiktoken": "IQ== 0"}, "has only a hy.tiktoken"),
        ({"vocab.json": "{}", "merges.txt": ""}, "has only a vocab.json"),
        ({"tokenizer.model": "no protobuf"}, "tokenizer.model: is no SentencePiece model"),
        ({"tokenizer.json": "{"}, "tokenizer.json: invalid JSON"),
        ({"tokenizer.json": "[]"}, "tokenizer.json: invalid content"),
        ({"tokenizer.json": '{"a": "\\ud800"}'}, "tokenizer.json: invalid content: half of a surrogate pair"),
        ({"tokenizer.json": '{"a": ' + "[" * 100_000}, "tokenizer.json: invalid JSON"),
        ({"tokenizer.json": '{"model": {"type": "WordPiece"}}'}, "type 'WordPiece' is not supported"),
        ({"tokenizer.json": '{"model": {"type": "Unigram"}}'}, "SentencePiece as tokenizer.model"),
        ({"tokenizer.json": '{"model": 3}'}, "type None is not supported"),
        ({"tokenizer.json": '{"model": {"type": "BPE"}}'}, "is no tokenizer that can be read"),
        ({"tokenizer.json": _model(continuing_subword_prefix="##")}, "marks the inside or end of words"),
        ({"tokenizer.json": _model(merges=[])}, "has no merges"),
        (
            {"tokenizer.json": byte_level() | {"pre_tokenizer": {"type": "Whitespace"}}},
            "is no byte-level BPE",
        ),
        ({"tokenizer_config.json": "{", "tokenizer.model": ""}, "tokenizer_config.json: invalid JSON"),
    ],
)
def test_bad_files_make_one_clear_line(tmp_path: Path, files: dict[str, Any], expected: str) -> None:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert expected in refused(tmp_path, pre=PRE)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("added_tokens.json", {"x": "330"}, "token 'x' has no valid id"),
        ("added_tokens.json", {"x": -1}, "token 'x' has no valid id"),
        ("added_tokens.json", {"x": True}, "token 'x' has no valid id"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"-1": token("x")}}, "is no token with an id"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"3": "x"}}, "is no token with an id"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"9" * 5000: token("x")}},
            "is no token with an id",
        ),
    ],
)
def test_bad_added_tokens(pieces: Path, name: str, content: Any, expected: str) -> None:
    write_json(pieces, name, content)
    assert expected in refused(pieces, 340)


def test_merges_with_spaces_and_from_merges_txt(bytes_only: Path) -> None:
    """tokenizer.json may write pairs, whose parts may hold spaces; a space is written as U+0120."""
    tokenizer = byte_level()
    pairs = tokenizer["model"]["merges"]
    tokenizer["model"]["vocab"] |= {" ": 320, "  ": 321}
    tokenizer["model"]["merges"] = [*pairs, [" ", " "]]
    write_json(bytes_only, "tokenizer.json", tokenizer)
    assert read(bytes_only, pre=PRE)["merges"] == [*map(" ".join, pairs), "Ġ Ġ"]
    write_json(bytes_only, "tokenizer.json", _model(merges=[]))
    lines = ["#version: 0.2", *map(" ".join, pairs), ""]
    (bytes_only / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    assert read(bytes_only, pre=PRE)["merges"] == [*map(" ".join, pairs)]


# -- special tokens and templates --------------------------------------------------------------------------------------


def test_ids_that_do_not_fit_are_noted(pieces: Path) -> None:
    config = {
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "pad_token_id": -1,
        "unk_token_id": 330,
        "mask_token_id": True,
    }
    write_json(pieces, "config.json", config)
    remarks: list[Remark] = []
    found = as_dict(vocab_keys(pieces, {}, 330, note=remarks.append))
    assert {key: found[key] for key in found if key.endswith("_id")} == {"bos_token_id": 1}
    assert remarks == [
        Remark("config.json", "unk_token_id 330 is not written: the vocabulary has 330 tokens"),
        Remark("config.json", "pad_token_id -1 is not written: the vocabulary has 330 tokens"),
    ]


def test_named_templates_keep_their_order(pieces: Path) -> None:
    """llama.cpp's converter lists the names in the random order of a set."""
    templates = [{"name": name, "template": name.upper()} for name in ("rag", "default", "tool use", "a-b")]
    bad = [{"name": "none"}, {"template": "x"}, "text", {"name": "list", "template": []}]
    write_json(pieces, "tokenizer_config.json", NAMES | {"chat_template": templates + bad})
    remarks: list[Remark] = []
    keys = vocab_keys(pieces, {}, 330, note=remarks.append)
    assert [(kv.key, kv.value) for kv in keys if "chat_template" in kv.key] == [
        ("tokenizer.chat_template.rag", "RAG"),
        ("tokenizer.chat_template.tool_use", "TOOL USE"),
        ("tokenizer.chat_template.a_b", "A-B"),
        ("tokenizer.chat_templates", ["rag", "tool_use", "a_b"]),
        ("tokenizer.chat_template", "DEFAULT"),
    ]
    assert len(remarks) == 3


def test_template_files(pieces: Path) -> None:
    write_json(pieces, "chat_template.json", {"chat_template": "from json"})
    assert read(pieces)["chat_template"] == "from json"
    (pieces / "chat_template.jinja").write_text("from jinja", encoding="utf-8")
    assert read(pieces)["chat_template"] == "from jinja"
    (pieces / "additional_chat_templates").mkdir()
    for name in ("z", "b", "m"):
        (pieces / "additional_chat_templates" / f"{name}.jinja").write_text(name, encoding="utf-8")
    assert read(pieces)["chat_templates"] == ["b", "m", "z"]
    write_json(pieces, "tokenizer_config.json", NAMES | {"chat_template": None})
    assert "chat_template" not in read(pieces)  # said to have none
    (pieces / "additional_chat_templates" / "bad.jinja").write_bytes(b"\xff")
    write_json(pieces, "tokenizer_config.json", NAMES)
    assert "bad.jinja: is not UTF-8 text" in refused(pieces)


def test_templates_have_an_end(pieces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of links made any number of one file."""
    monkeypatch.setattr(chat_templates, "MAX_CHARS", 1000)
    (pieces / "chat_template.jinja").write_text("x" * 400, encoding="utf-8")
    (pieces / "additional_chat_templates").mkdir()
    (pieces / "additional_chat_templates" / "a.jinja").symlink_to(pieces / "chat_template.jinja")
    assert read(pieces)["chat_templates"] == ["a"]
    (pieces / "additional_chat_templates" / "b.jinja").symlink_to(pieces / "chat_template.jinja")
    assert "additional_chat_templates: its templates have more than 1000 characters" in refused(pieces)


def test_token_objects_count_as_their_text(pieces: Path) -> None:
    """The old form `{"__type": "AddedToken", "content": "</s>"}` names the same token as its text."""
    write_json(pieces, "tokenizer.json", spm_like() | {"post_processor": template("<s>", "</s>")})
    plain = read(pieces)
    objects = {f"{kind}_token": DECODER[str(token_id)] for token_id, kind in enumerate(("unk", "bos", "eos"))}
    write_json(pieces, "tokenizer_config.json", NAMES | objects)
    assert read(pieces) == plain
    assert plain["add_eos_token"] is True and "eot_token_id" not in plain


@pytest.mark.parametrize(
    ("vocab_size", "key", "value"), [(32016, "eot_token_id", 32010), (49152, "add_bos_token", False)]
)
def test_models_known_by_their_size(pieces: Path, vocab_size: int, key: str, value: object) -> None:
    """conversion/llama.py knows CodeLlama and Granite by vocab_size; its writer has no keys for the infill ids."""
    found = as_dict(vocab_keys(pieces, {"vocab_size": vocab_size}, 32016))
    assert found[key] == value
    assert found.keys() ^ read(pieces, 32016).keys() <= {"eot_token_id"}


# -- strangers ---------------------------------------------------------------------------------------------------------

HOSTILE: list[object] = [
    None,
    True,
    -1,
    10**12,
    1.5,
    "",
    "x",
    "<s>",
    "a/../b",
    "\0",
    [],
    {},
    [1],
    [None],
    {"content": 5},
    {"a": []},
]


def _mutant(value: Any, choose: random.Random) -> Any:
    """`value` with something else in the place of one of its nodes."""
    if isinstance(value, dict | list) and value and choose.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = choose.choice(keys)
        changed = dict(value) if isinstance(value, dict) else list(value)
        changed[key] = _mutant(value[key], choose)
        return changed
    return choose.choice(HOSTILE)


@pytest.mark.parametrize("name", ["spm-end-of-turn", "spm-added-v1.2", "spm-like", "byte-level-flags"])
def test_mutated_files_never_raise_anything_else(name: str, tmp_path: Path) -> None:
    CASES[name](tmp_path)
    choose = random.Random(name)
    files = sorted(tmp_path.glob("*.json"))
    outcomes = set()
    for _ in range(60):
        file = choose.choice(files)
        original = file.read_text(encoding="utf-8")
        file.write_text(json.dumps(_mutant(json.loads(original), choose)), encoding="utf-8")
        try:
            keys = vocab_keys(tmp_path, {}, 345, PRE if is_byte_level(name) else None)
            assert all(kv.type != GGUFValueType.STRING or isinstance(kv.value, str) for kv in keys)
            outcomes.add("read")
        except TokenizerError as failure:
            assert "\n" not in str(failure)
            outcomes.add("refused")
        file.write_text(original, encoding="utf-8")
    assert outcomes == {"read", "refused"}
