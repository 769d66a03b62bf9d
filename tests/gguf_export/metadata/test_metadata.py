"""Model keys as the converter writes them, files' keys as llama-quantize leaves them, settings as it takes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType
from golden_keys import record
from places import GOLDEN
from tokenizer_cases import CASES, spm, write_json

from calibration.importance.imatrix import Imatrix
from calibration.importance.imatrix_files import load_imatrix
from calibration.text.chunks import read_prompts
from gguf_export.metadata.model_card import read_card
from gguf_export.metadata.model_keys import (
    ParameterCount,
    assemble,
    count_params,
    model_keys,
    parse_override,
    size_label,
)
from gguf_export.vocab.vocab_keys import vocab_keys
from quantize.containers import untrusted
from quantize.containers.keys import KeyValue
from quantize.exceptions import CheckpointError, RecipeError, TextError
from quantize.sources.checkpoint import open_checkpoint
from quantize.telling import Remark
from quantize.tensors import QType, TensorSpec

KEYS = json.loads((GOLDEN / "keys.json").read_text(encoding="utf-8"))
LATE = ("general.quantization_version", "general.file_type")


def keys_of(folder: Path, **options: Any) -> list[KeyValue]:
    return model_keys(open_checkpoint(folder), **options)


def values(keys: list[KeyValue]) -> dict[str, Any]:
    assert len({kv.key for kv in keys}) == len(keys)
    return {kv.key: kv.value for kv in keys}


@pytest.mark.parametrize("name", CASES)
def test_keys_are_the_converters(name: str, tmp_path: Path) -> None:
    CASES[name](tmp_path / name)
    found = [record(kv.key, kv.type, kv.sub_type, kv.value) for kv in keys_of(tmp_path / name)]
    # both stand in the middle of a converted file and at the end of a quantized one, where `assemble` puts them
    wanted = [row for row in KEYS[name] if not row[0].startswith("tokenizer.") and row[0] not in LATE]
    assert found == wanted


# -- llama-quantize's own files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "ftype_id"), [("Q4_K_M", 15), ("Q4_K_M-im", 15), ("BF16", 32)])
def test_files_keys_are_llama_quantizes(bench: Path, name: str, ftype_id: int) -> None:
    """All keys, types, values and their order; the reference shows of long arrays length and ends."""
    reference = json.loads((bench / "reference" / "llama-quantize-metadata.json").read_text(encoding="utf-8"))
    folder = bench / "harmony-nano"
    imatrix = None
    if name.endswith("-im"):
        imatrix = load_imatrix(bench / "reference" / "llama-imatrix.gguf")
        # llama-quantize writes the path that it was given, and was started in the folder of the file
        imatrix.file = "llama-imatrix.gguf"
    checkpoint = open_checkpoint(folder)
    keys = keys_of(folder) + vocab_keys(folder, checkpoint.config, checkpoint.hparams.n_vocab)
    assert values(keys)["general.size_label"] == "4x6.8M"
    wanted = reference[name]["keys"]
    found = assemble(keys, ftype_id, imatrix)
    assert [kv.key for kv in found] == list(wanted)
    for kv in found:
        types = [kv.type.name] + ([kv.sub_type.name] if kv.sub_type is not None else [])
        assert types == wanted[kv.key]["type"], kv.key
        value = kv.value
        if kv.type == GGUFValueType.FLOAT32:
            value = float(np.float32(value))
        if isinstance(wanted[kv.key]["value"], dict):
            value = {"length": len(value), "first": value[:16], "last": value[-4:]}
        assert value == wanted[kv.key]["value"], kv.key


# Order and types were compared with llama-quantize's own (commit 0c1e5709) on a converted file, --override-kv for each.
OVERRIDES = [
    "general.name=str:Ünï cöde",
    "tokenizer.ggml.add_bos_token=bool:false",
    "my.float=float:1e-3",
    "my.other=float:.5",
    "my.int=int:+7",
    "general.sampling.top_k=int:12",
    "general.file_type=int:99",
    "a=str:",
    "b=str:x=y:z",
    "c=float:-3.",
]


def a_file() -> list[KeyValue]:
    return [
        KeyValue.text("general.architecture", "llama"),
        KeyValue("general.sampling.top_k", 40, GGUFValueType.INT32),
        KeyValue.text("general.name", "Name"),
        KeyValue("split.no", 0, GGUFValueType.UINT16),
        KeyValue.u32("general.file_type", 32),
        KeyValue.u32("general.quantization_version", 1),
        KeyValue.flag("tokenizer.ggml.add_bos_token", True),
        KeyValue("split.count", 1, GGUFValueType.UINT16),
    ]


def test_what_is_set_again_moves_to_the_end() -> None:
    entries = {f"blk.{bid}.ffn_up.weight": None for bid in range(3)}
    imatrix = Imatrix(entries, ["text.txt", "more.txt"], 7, file="i.gguf")  # type: ignore[arg-type]
    keys = assemble(a_file(), 15, imatrix, [parse_override(text) for text in OVERRIDES])
    assert [(kv.key, kv.value, kv.type.name) for kv in keys] == [
        ("general.architecture", "llama", "STRING"),
        ("general.quantization_version", 2, "UINT32"),
        ("general.name", "Ünï cöde", "STRING"),
        ("tokenizer.ggml.add_bos_token", False, "BOOL"),
        ("my.float", 0.001, "FLOAT32"),
        ("my.other", 0.5, "FLOAT32"),
        ("my.int", 7, "UINT32"),
        ("general.sampling.top_k", 12, "UINT32"),
        ("general.file_type", 99, "UINT32"),
        ("a", "", "STRING"),
        ("b", "x=y:z", "STRING"),
        ("c", -3.0, "FLOAT32"),
        ("quantize.imatrix.file", "i.gguf", "STRING"),
        ("quantize.imatrix.dataset", "text.txt", "STRING"),
        ("quantize.imatrix.entries_count", 3, "UINT32"),
        ("quantize.imatrix.chunks_count", 7, "UINT32"),
    ]


def test_an_override_keeps_the_type() -> None:
    """llama.cpp's loader checks types exactly, but any integer passes for a sampling parameter."""
    for text in ("general.name=int:3", "tokenizer.ggml.add_bos_token=int:1", "general.file_type=float:1"):
        with pytest.raises(RecipeError, match="would not load"):
            assemble(a_file(), 15, None, [parse_override(text)])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "key",
        "key=3",
        "key=u32:3",
        "key=Int:3",
        "=int:3",
        "ke y=int:3",
        "k\u00e9y=int:3",
        f"{'k' * 128}=int:3",
        "key=int:",
        "key=int:three",
        "key=int:3.5",
        "key=int:-1",
        "key=int:4294967296",
        "key=int: 3",
        "key=int:\u0663",
        "key=float:",
        "key=float:nan",
        "key=float:inf",
        "key=float:1e39",
        "key=float:1,5",
        "key=bool:True",
        "key=bool:1",
        "key=str:\0",
        "key=str:\ud800",
        "general.alignment=int:64",
        "split.no=int:1",
    ],
)
def test_malformed_overrides(text: str) -> None:
    with pytest.raises(RecipeError) as failure:
        parse_override(text)
    assert "\n" not in str(failure.value) and str(failure.value).startswith("override '")


def test_a_setting_without_a_type_is_told_the_forms() -> None:
    with pytest.raises(RecipeError) as failure:
        parse_override("general.name=x")
    assert failure.value.message == "is no setting of a key"
    assert failure.value.remedy.startswith("spell it KEY=int:N, KEY=float:X")


@pytest.mark.parametrize(
    "text", ["k=int:4294967295", f"k=str:{'x' * 3000}", f"{'k' * 127}=bool:true", "k=float:-1E+5"]
)
def test_overrides_at_the_limits(text: str) -> None:
    assert parse_override(text).key == text.partition("=")[0]


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "label"),  # by gguf-py/gguf/utility.py: size_label
    [
        (ParameterCount(7_241_732_096, 7_241_732_096), "7.2B"),
        (ParameterCount(46_702_792_704, 1_604_943_872, 5_637_144_576, 8), "8x7.2B"),
        (ParameterCount(17_442_048, 3_286_272, 3_538_944, 4), "4x6.8M"),
        (ParameterCount(999_949_999, 999_949_999), "1000M"),
        (ParameterCount(10**9, 10**9), "1000M"),
        (ParameterCount(10**9 + 1, 10**9 + 1), "1.0B"),
        (ParameterCount(123_456, 123_456), "123K"),
        (ParameterCount(42, 42), "0.04K"),
        (ParameterCount(1_600_000_000_000, 1_600_000_000_000), "1.6T"),
    ],
)
def test_size_label(count: ParameterCount, label: str) -> None:
    assert size_label(count) == label


def test_parameters_are_counted_by_the_expert() -> None:
    specs = [
        TensorSpec("token_embd.weight", (10, 4), QType.BF16),
        TensorSpec("blk.0.ffn_up_exps.weight", (3, 5, 4), QType.BF16),
        TensorSpec("blk.0.ffn_down_exps.weight", (3, 4, 5), QType.BF16),
        TensorSpec("blk.0.ffn_up_exps.bias", (3, 5), QType.F32),
    ]
    assert count_params(specs) == ParameterCount(total=175, shared=55, expert=40, n_expert=3)


# -- what strangers write ----------------------------------------------------------------------------------------------


def test_a_given_name_replaces_all_that_follows_from_names(tmp_path: Path) -> None:
    """Unlike the converter's --model-name, which leaves the base name of the folder beside it."""
    folder = tmp_path / "other-7B-v3"
    spm(folder, _name_or_path="org/Third-13B-chat")
    (folder / "README.md").write_text("---\nname: Card\nbasename: card\nauthor: A\n---\n", encoding="utf-8")
    found = values(keys_of(folder, name="Harmony-4x7B-v0.1"))
    general = {
        key: found[f"general.{key}"] for key in ("name", "basename", "size_label", "version", "author")
    }
    assert general == {
        "name": "Harmony-4x7B-v0.1",
        "basename": "Harmony",
        "size_label": "4x7B",
        "version": "v0.1",
        "author": "A",
    }
    assert "general.finetune" not in found and "general.organization" not in found
    found = values(keys_of(folder, name="Just Words"))
    assert found["general.name"] == "Just Words" and found["general.size_label"] == "4x27K"


@pytest.mark.parametrize(
    "front",
    [
        "- a\n- list",
        "a: [",
        "a: &x [1]\nb: [*x, *x]",
        "a: !!python/object/apply:os.system [ls]",
        "a: !!int [x]",
        "a: !!omap x",
        "a: " + "[" * 5000,
        "a: x\n" * 300_000,
    ],
)
def test_bad_front_matter_is_noted(tmp_path: Path, front: str) -> None:
    folder = tmp_path / "model"
    spm(folder)
    plain = keys_of(folder)
    (folder / "README.md").write_text(f"---\n{front}\n---\n", encoding="utf-8")
    notes: list[Remark] = []
    assert keys_of(folder, note=notes.append) == plain
    assert len(notes) == 1 and "README.md: front matter" in str(notes[0]) and "\n" not in str(notes[0])


def test_front_matter_of_other_types(tmp_path: Path) -> None:
    """The converter stops at numbers and dates where it expects text; here they are written as text."""
    folder = tmp_path / "model"
    spm(folder)
    front = (
        "version: 1.5\nauthor: 2024-01-02\ntags: [a, 7, true, null, [b, c]]\nname: true\nbase_model: [true]\n"
    )
    front += 'url: "\\uD800"'
    (folder / "README.md").write_text(f"---\n{front}\n---\n", encoding="utf-8")
    notes: list[Remark] = []
    found = values(keys_of(folder, note=notes.append))
    assert found["general.version"] == "1.5" and found["general.author"] == "2024-01-02"
    assert found["general.name"] == "Model" and found["general.tags"] == ["a", "7", "b,c"]
    assert found["general.base_model.count"] == 1 and len(notes) == 1
    assert found["general.source.url"] == "?"


NUMBERS = [
    *(
        "1.50",
        "010",
        "1_000",
        "1:30",
        "0x10",
        "+5",
        ".5",
        "1e3",
        "2024-01-02",
        "2024-01-02 10:00:00",
        "2001-99-99",
    ),
    *(
        "0x" + "f" * 5000,
        "9" * 5000,
        "0b" + "1" * 50_000,
        ":".join(["59"] * 100_000),
        "1" + ":30" * 1000 + ".5",
    ),
    *("2001-01-01T00:00:00." + "1" * 50_000, ".inf", "=", "<<"),
]


@pytest.mark.parametrize("tag", ["", "!!int ", "!!float ", "!!timestamp "])
@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:20])
def test_numbers_and_dates_are_text_as_written(tmp_path: Path, tag: str, number: str) -> None:
    """Nothing is computed of them: some took a minute, and ended as numbers of more digits than Python prints."""
    (tmp_path / "README.md").write_text(
        f"---\nversion: {tag}{number}\ntags: [{tag}{number}]\n---\n", encoding="utf-8"
    )
    notes: list[Remark] = []
    card = read_card(tmp_path, {}, 0, note=notes.append)
    assert (card.texts["version"], card.tags, notes) == (number, [number], [])


def test_truth_and_nothing_are_no_text(tmp_path: Path) -> None:
    """As in YAML 1.1, which the converter reads; `- no` in a list is Norwegian to it."""
    front = "version: on\nauthor: ~\nlicense: null\nlanguage:\n- no\n- yes\ntags: [No, x, '', 'no']"
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n", encoding="utf-8")
    card = read_card(tmp_path, {}, 0)
    assert not card.texts.keys() & {"version", "author", "license"}
    assert (card.languages, card.tags) == (["no"], ["x", "no"])


def test_entries_have_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte of them took half a minute."""
    monkeypatch.setattr(untrusted, "MAX_YAML_NODES", 100)
    (tmp_path / "README.md").write_text("---\ntags:\n" + "- b\n" * 100 + "---\n", encoding="utf-8")
    notes: list[Remark] = []
    assert not read_card(tmp_path, {}, 0, note=notes.append).tags
    assert "more than 100 entries" in str(notes[0])
    (tmp_path / "prompts.yml").write_text("experts: [" + "x, " * 100 + "]", encoding="utf-8")
    with pytest.raises(TextError, match="more than 100 entries"):
        read_prompts(tmp_path / "prompts.yml")


def test_base_models_have_an_end(tmp_path: Path) -> None:
    front = "base_model:\n" + "- a/b\n" * 1001
    (tmp_path / "README.md").write_text(f"---\n{front}---\n", encoding="utf-8")
    notes: list[Remark] = []
    card = read_card(tmp_path, {}, 0, note=notes.append)
    assert len(card.base_models or []) == 1000
    assert str(notes[0]) == "README.md: base_model has 1001 entries; the first 1000 are written"


def test_bad_card_and_generation_config_are_noted(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    spm(folder)
    (folder / "README.md").write_bytes(b"---\nname: \xff\n---\n")
    bad = {
        "top_k": 1.5,
        "temperature": "hot",
        "top_p": True,
        "mirostat": 2**31,
        "sequence": 3,
        "min_p": 10**400,
    }
    write_json(folder, "generation_config.json", bad | {"repetition_penalty": 2, "penalty_last_n": 64.0})
    notes: list[Remark] = []
    keys = keys_of(folder, note=notes.append)
    sampling = [(kv.key, kv.value, kv.type.name) for kv in keys if "sampling" in kv.key]
    assert sampling == [
        ("general.sampling.penalty_last_n", 64, "INT32"),
        ("general.sampling.penalty_repeat", 2.0, "FLOAT32"),
    ]
    assert len(notes) == 7
    (folder / "generation_config.json").write_text("{", encoding="utf-8")
    notes.clear()
    assert not [key for key in values(keys_of(folder, note=notes.append)) if "sampling" in key]
    assert len(notes) == 2 and "general.sampling.* is not written" in str(notes[1])


def test_an_unknown_router_is_refused(tmp_path: Path) -> None:
    spm(tmp_path / "model", scoring_func="argmin")
    with pytest.raises(CheckpointError, match="router function 'argmin' is not supported"):
        keys_of(tmp_path / "model")
