"""Files from strangers, briefly; at length by `scripts/torture --fuzz 20000`. And every input that once was a bug."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from fuzzing import TARGETS, fuzz, prepare_seeds
from gguf import GGUFValueType as Type
from gguf_files import Info

from calibration.importance.imatrix_files import load_imatrix
from calibration.judging.logits_file import LogitsFile
from calibration.text.chunks import read_prompts
from calibration.text.tokenizer import open_tokenizer, tokenizer_of
from gguf_export.checking.checksums import check_sum
from gguf_export.checking.inspect import ModelFacts, inspect
from gguf_export.cli import main
from gguf_export.vocab.vocab_keys import vocab_keys
from gguf_export.writing.header import header
from quantize.containers.gguf import read_container
from quantize.containers.keys import KeyValue
from quantize.containers.untrusted import read_json
from quantize.exceptions import (
    CheckpointError,
    ImatrixError,
    LogitsError,
    MoeGgufError,
    OutputError,
    TextError,
    TokenizerError,
)
from quantize.sources.checkpoint import open_checkpoint
from quantize.sources.gguf_file import GGUFFile


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_seeds(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_readers_succeed_or_say_why_not(folder: Path, name: str) -> None:
    fuzz(TARGETS[name], folder, 60, watch_memory=False)
    fuzz(TARGETS[name], folder, 4, seed_=1)  # and how much memory they take, which costs much time to know


# --- what fuzzing found, once ---


@pytest.fixture
def hostile(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "Hostile"))


def written(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def test_half_of_a_surrogate_pair_in_a_card(hostile: Path) -> None:
    """YAML spells it, JSON spells it, and no GGUF file can hold it."""
    written(hostile / "README.md", '---\nlicense: mit\nbase_model:\n- "\\ud800"\ntags: ["\\udfff"]\n---\n')
    assert "general.base_model.0.name" in TARGETS["card"].read(hostile).decode("utf-8", "replace")  # type: ignore[attr-defined]
    config = json.loads((hostile / "config.json").read_text())
    written(hostile / "config.json", json.dumps(config | {"_name_or_path": "\ud800"}))
    with pytest.raises(CheckpointError, match="half of a surrogate pair"):
        open_checkpoint(hostile)


@pytest.mark.parametrize(
    "change",
    [
        {"scoring_func": ["softmax"]},
        {"scoring_func": {}},
        {"n_group": 2**40},
        {"topk_group": -1},
    ],
)
def test_a_router_that_is_none(hostile: Path, change: dict[str, Any]) -> None:
    """It was looked up in a table although it has no hash, and counts did not fit their keys."""
    config = json.loads((hostile / "config.json").read_text())
    written(hostile / "config.json", json.dumps(config | change))
    with pytest.raises(CheckpointError, match=r"router function|no number of groups"):
        TARGETS["config"].read(hostile)


def test_more_than_one_architecture(hostile: Path) -> None:
    """Only the first was looked at before all were joined."""
    config = json.loads((hostile / "config.json").read_text())
    written(hostile / "config.json", json.dumps(config | {"architectures": [*config["architectures"], 7]}))
    facts = inspect(hostile)
    assert isinstance(facts, ModelFacts) and facts.name == "MixtralForCausalLM, 7"


HOSTILE_TOKENIZERS = [
    {"added_tokens": [7]},
    {"added_tokens": [{"content": "<s>", "id": "one"}]},
    {"added_tokens": [{"content": ["<s>"], "id": 1, "special": True}]},
    {"added_tokens": 7},
    {"post_processor": {"processors": 7}},
    {"post_processor": {"processors": ["ByteLevel"]}},
    {"post_processor": {"type": "TemplateProcessing", "single": [7, 7]}},
    {"post_processor": {"type": "TemplateProcessing", "single": {"a": 1, "b": 2}}},
    {"model": {"type": "BPE", "byte_fallback": True, "vocab": {"a": "0", "b": 1}}},
    {"model": {"type": "BPE", "byte_fallback": True, "vocab": {"a": None}}},
]


@pytest.mark.parametrize("change", HOSTILE_TOKENIZERS)
def test_a_tokenizer_json_of_other_types(hostile: Path, change: dict[str, Any]) -> None:
    """The reader that cuts text took the types of what it read for granted."""
    path = hostile / "spm" / "tokenizer.json"
    written(path, json.dumps(json.loads(path.read_text()) | change))
    with contextlib.suppress(TokenizerError):
        open_tokenizer(hostile / "spm").encode("the text", parse_special=True)


def test_ids_in_figures_that_are_no_decimals(hostile: Path) -> None:
    """`"\u00b2".isdigit()` is true, and int refuses it."""
    path = hostile / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"added_tokens_decoder": {"\u00b2": {"content": "x"}}}
    written(path, json.dumps(settings))
    with pytest.raises(TokenizerError, match="is no token with an id"):
        open_tokenizer(hostile)


def test_a_panic_of_the_library_is_one_line(hostile: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The other reader of tokenizer.json did not refuse a prefix of subwords."""
    path = hostile / "bpe" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["continuing_subword_prefix"] = "abcdef"
    written(path, json.dumps(content))
    with pytest.raises(TokenizerError, match="inside or end of words"):
        open_tokenizer(hostile / "bpe")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x0a\x04\x0a\x02\xc3\x28"])
def test_a_tokenizer_model_that_is_none(
    hostile: Path, capfd: pytest.CaptureFixture[str], content: bytes
) -> None:
    """The library printed lines of its own, and took an empty file for no file."""
    (hostile / "tokenizer.model").write_bytes(content)
    for read in (lambda: open_tokenizer(hostile), lambda: vocab_keys(hostile, {}, 320)):
        with pytest.raises(TokenizerError, match=r"tokenizer\.model: "):
            read()
    assert capfd.readouterr().err == ""


HOSTILE_KEYS = [
    ("tokenizer.ggml.tokens", [1, 2], Type.ARRAY, Type.INT32),
    ("tokenizer.ggml.tokens", "abc", Type.STRING, None),
    ("tokenizer.ggml.scores", "abc", Type.STRING, None),
    ("tokenizer.ggml.scores", [0.5], Type.ARRAY, Type.FLOAT32),
    ("tokenizer.ggml.token_type", [True] * 320, Type.ARRAY, Type.BOOL),
    ("tokenizer.ggml.unknown_token_id", "x", Type.STRING, None),
    ("tokenizer.ggml.bos_token_id", 10**6, Type.UINT32, None),
]


@pytest.mark.parametrize(("key", "value", "kind", "element"), HOSTILE_KEYS)
def test_the_tokenizer_of_a_file_of_other_types(
    hostile: Path, key: str, value: Any, kind: Type, element: Type | None
) -> None:
    """What cuts text by a GGUF file took the types of its keys for granted."""
    path = hostile / "model.gguf"
    container = read_container(path)
    keys = {name: KeyValue(name, found, *container.types[name]) for name, found in container.keys.items()}
    keys[key] = KeyValue(key, value, kind, element)
    start = next(iter(container.tensors.values())).offset
    infos = [
        Info(spec=one.spec, qtype=one.spec.qtype, offset=one.offset - start)
        for one in container.tensors.values()
    ]
    head = header(list(keys.values()), SimpleNamespace(tensors=infos))  # type: ignore[arg-type]
    path.write_bytes(head + path.read_bytes()[start:])
    with pytest.raises(TokenizerError, match=r"model\.gguf: "):
        tokenizer_of(GGUFFile(path)).encode("the text")


@pytest.mark.parametrize(
    "text",
    [
        "experts: [{positive_prompts: 7}]",
        "experts: [{positive_prompts: {a: b}}]",
        "experts: " + "[" * 5000,
        "a: &a [x, x]\nexperts: [{positive_prompts: *a}]",
        "a: &a {x: 1}\nb: {<<: [*a, *a]}",
        "experts: 2001-99-99",
        "experts: [{positive_prompts: [null, true, '']}]",
        "experts: !!python/object/apply:os.system [ls]",
        "x: y\n" * 300_000,
    ],
)
def test_hostile_prompts(hostile: Path, text: str) -> None:
    """Numbers where lists belong, references that unfold, nesting without end."""
    with pytest.raises(TextError, match=r"mergekit_moe_config\.yml: "):
        read_prompts(written(hostile / "mergekit_moe_config.yml", text))


@pytest.mark.parametrize("number", ["0x" + "f" * 5000, "59" + ":59" * 100_000, "2001-99-99"], ids=len)
def test_numbers_in_prompts_are_text(hostile: Path, number: str) -> None:
    """They were computed, for a minute."""
    text = f"experts: [{{positive_prompts: [{number}]}}]"
    assert read_prompts(written(hostile / "mergekit_moe_config.yml", text)).text == number


def test_a_count_of_chunks_that_no_key_holds(hostile: Path) -> None:
    """It was copied into the model, as a number of 32 bits."""
    path = hostile / "imatrix.gguf"
    content = path.read_bytes()
    key = b"imatrix.chunk_count" + struct.pack("<iI", 4, 1)
    assert key in content
    start = content.index(key)
    changed = content[: start + 19] + struct.pack("<iq", 11, -1) + content[start + len(key) :]
    shift = -(len(changed) - len(content)) % 32  # tensors begin at multiples of 32
    path.write_bytes(changed + bytes(shift))
    with pytest.raises(ImatrixError, match="damaged"):
        load_imatrix(path)


def test_scales_of_logits_that_are_no_numbers(hostile: Path) -> None:
    """They spread into every figure."""
    path = hostile / "base.kld"
    content = bytearray(path.read_bytes())
    n_head = 20 + 4 * 16
    content[n_head : n_head + 4] = struct.pack("<f", float("nan"))
    path.write_bytes(content)
    with pytest.raises(LogitsError, match="no number"):
        LogitsFile(path).log_probs(0)


def test_ids_that_no_model_has(hostile: Path) -> None:
    """The library takes ids of 32 bits without a sign, tensors of tokens have one."""
    path = hostile / "bpe" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["t"] = 2**31
    written(path, json.dumps(content))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: .*2147483648"):
        open_tokenizer(path.parent).encode("t")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_pipe_makes_nobody_wait(hostile: Path, name: str) -> None:
    path = hostile / TARGETS[name].file
    path.unlink()
    os.mkfifo(path)
    with contextlib.suppress(MoeGgufError):  # what a model can do without is left out
        TARGETS[name].read(hostile)


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.file.endswith(".json")])
@pytest.mark.parametrize("depth", [300, 480, 900, 990, 5000])
def test_nesting_of_any_depth(hostile: Path, name: str, depth: int) -> None:
    """Some depths pass the reader of JSON and break what walks over it afterwards."""
    path = hostile / TARGETS[name].file
    content = json.loads(path.read_text())
    for key in list(content)[:40]:
        deep = json.dumps(content | {key: 0}).replace(
            f'"{key}": 0', f'"{key}": {"[" * depth}{"]" * depth}', 1
        )
        path.write_text(deep)
        with contextlib.suppress(MoeGgufError):
            TARGETS[name].read(hostile)


def test_nothing_that_a_terminal_obeys_is_printed(hostile: Path) -> None:
    """Names came into tables as markup, and escapes as they were."""
    evil = "\x1b[31mred[/bold]\n[link=x]"
    tensors = SimpleNamespace(tensors=[])
    path = hostile / "evil.gguf"
    path.write_bytes(header([KeyValue.text("general.name", evil)], tensors))  # type: ignore[arg-type]
    for words in (
        ["verify", path],
        ["inspect", path],
        ["doctor", hostile / evil],
        ["inspect", hostile / evil],
    ):
        done = CliRunner().invoke(main, [str(word) for word in words])
        assert done.exit_code in (1, 3)
        assert "\x1b" not in done.output
    (hostile / "[red]x[").mkdir()
    (hostile / "model.gguf").rename(hostile / "[red]x[/nope].gguf")
    done = CliRunner().invoke(main, ["inspect", str(hostile / "[red]x[/nope].gguf"), "--tensors"])
    assert done.exit_code == 0
    assert "x[/nope].gguf" in done.output


def test_sums_are_not_written_through_a_link(hostile: Path, tmp_path: Path) -> None:
    """A stranger's folder could have had a line appended to any file."""
    (hostile / "SHA256SUMS").unlink()
    try:
        (hostile / "SHA256SUMS").symlink_to(tmp_path / "profile")
    except OSError:
        pytest.skip("this system does not let us make symbolic links")
    with pytest.raises(OutputError, match="is a symbolic link, which is not followed"):
        check_sum(hostile / "model.gguf")
    assert not (tmp_path / "profile").exists()


def test_sums_without_a_last_newline_stay_whole(hostile: Path) -> None:
    path = hostile / "SHA256SUMS"
    path.write_text(path.read_text().rstrip("\n"))
    assert check_sum(hostile / "model.gguf").severity == "info"
    assert len(path.read_text().splitlines()) == 2
    assert check_sum(hostile / "base.kld").severity == "error"


def test_reading_a_small_file_takes_little_memory(folder: Path) -> None:
    """JSON was read into a buffer as large as the largest that is allowed, 100 MB."""
    tracemalloc.start()
    try:
        read_json(folder / "config.json")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_name_with_a_newline_is_quoted(folder: Path) -> None:
    """The names in an importance matrix went into messages as they are."""
    path = folder / "hostile.gguf"
    content = (folder / "imatrix.gguf").read_bytes()
    path.write_bytes(
        content.replace(b"blk.0.ffn_down_exps.weight.in_sum2", b"\nlk.0.ffn_down_exps.weight.in_sum2")
    )
    with pytest.raises(ImatrixError, match="has only one of") as caught:
        load_imatrix(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", [0, 1, 4, 6, 8])
def test_an_array_that_claims_to_be_long_is_refused_at_once(folder: Path, kind: int) -> None:
    """The gguf library's reader makes as many empty views as the file claims to have elements."""
    path = folder / "hostile.gguf"
    key = b"imatrix.datasets"
    path.write_bytes(
        b"GGUF"
        + struct.pack("<IQQ", 3, 0, 1)
        + struct.pack("<Q", len(key))
        + key
        + struct.pack("<iiQ", 9, kind, 2**40)
    )
    with pytest.raises(ImatrixError, match="do not fit"):
        load_imatrix(path)


def test_a_prefix_of_subwords_never_reaches_the_library(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """tokenizers cut it off without looking at the length, and printed the trace of a panic."""
    hostile = Path(shutil.copytree(folder / "bpe", folder / "prefix"))
    path = hostile / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["continuing_subword_prefix"] = "abcdef"
    path.write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match="inside or end of words"):
        vocab_keys(hostile, {}, 320, "gpt-2")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", [10**400, 1e308])
def test_a_number_that_no_float_holds(folder: Path, key: str, value: float) -> None:
    """It passed as larger than 0 and less than infinity, and broke what made a float of it."""
    hostile = Path(shutil.copytree(folder, folder.with_name("huge"), dirs_exist_ok=True))
    config = json.loads((folder / "config.json").read_text())
    (hostile / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(CheckpointError, match=f"{key} must be a number above 0"):
        open_checkpoint(hostile)
