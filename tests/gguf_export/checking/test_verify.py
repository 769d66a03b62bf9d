"""Faults planted into finished files, each of which `verify` names; and healthy files, of which it says nothing."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGUFValueType as Type
from gguf_files import Info
from pico import pico_dense, pico_mixtral, read_checkpoint, write_checkpoint

from calibration.importance.imatrix import Entry, Imatrix
from calibration.importance.imatrix_files import load_imatrix, save_imatrix
from gguf_export.checking import checksums
from gguf_export.checking.codes import CODES, not_nearest
from gguf_export.checking.file_check import Level
from gguf_export.checking.findings import Finding
from gguf_export.checking.remedies import FETCH
from gguf_export.checking.verify import verify
from gguf_export.cli import main
from gguf_export.writing.export import prepare, run
from gguf_export.writing.header import header
from quantize.codec import encode
from quantize.containers.gguf import read_container
from quantize.containers.keys import KeyValue
from quantize.exceptions import GGUFError, OutputError
from quantize.guide import Guide
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe
from quantize.sources.checkpoint import open_checkpoint
from quantize.sources.gguf_file import GGUFFile
from quantize.tensors import Array, QType


def make_model(folder: Path, seed: int = 0) -> Path:
    return pico_mixtral(folder, n_embd=256, n_ff=256, n_head=4, n_head_kv=2, n_expert=4, n_layer=2, seed=seed)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "Pico-4x1M-bf16")


def export(model: Path, folder: Path, name: str, imatrix: Imatrix | None = None) -> Path:
    prepared = prepare(open_checkpoint(model), [Recipe(ftype(name))], folder, imatrix=imatrix)
    return run(prepared).files[0].path


@pytest.fixture(scope="module")
def exported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A healthy file of each type, made once."""
    folder = tmp_path_factory.mktemp("exported")
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = export(model, folder, name)
        return made[name]

    return of


@pytest.fixture
def copy(exported: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copy(exported(name), tmp_path / f"{name}.gguf"))


def faults(findings: Sequence[Finding]) -> list[str]:
    return [str(finding) for finding in findings if finding.severity != "info"]


def compared(path: Path, model: Path, **options: Any) -> list[str]:
    return faults(verify(path, against=open_checkpoint(model), **options))


CODE_BYTES = [
    *(("Q2_K", slice(16, 80)), ("Q3_K_S", slice(0, 96)), ("Q4_K_S", slice(16, 144))),
    *(("Q5_K_S", slice(16, 176)), ("Q6_K", slice(0, 192)), ("IQ4_XS", slice(8, 136))),
]

TYPES = [
    "Q8_0",
    "Q6_K",
    "Q5_K_M",
    "Q4_K_M",
    "Q3_K_M",
    "Q2_K",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "IQ4_XS",
    "Q1_0",
    "Q2_0",
    "TQ1_0",
    "BF16",
    "F16",
]


@pytest.mark.parametrize("name", TYPES)
def test_nothing_is_found_in_a_healthy_file(exported: Callable[[str], Path], model: Path, name: str) -> None:
    assert compared(exported(name), model) == []
    assert compared(exported(name), model, level="bytes") == []


def test_nothing_is_found_in_a_healthy_dense_file(tmp_path: Path) -> None:
    model = pico_dense(tmp_path / "Pico", architecture="LlamaForCausalLM", biases=True, tied=True)
    assert compared(export(model, tmp_path / "out", "Q8_0"), model, level="bytes") == []


def test_another_engine_compares_as_well(
    copy: Callable[[str], Path], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever offers `map` is given every slab, and may answer in any order."""

    class Backwards:
        n_units = 0

        def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
            for item in reversed(list(items)):
                self.n_units += 1
                yield item, function(item)

    monkeypatch.setattr("gguf_export.checking.verify.Threads", None)  # no threads are started beside it
    path, engine = copy("Q4_K_M"), Backwards()
    assert compared(path, model, engine=engine) == []
    assert engine.n_units >= sum(spec.n_matrix for spec in open_checkpoint(model).specs())
    told = flip(path, 0)
    (found,) = compared(path, model, engine=Backwards())
    assert found.startswith(told)


def test_folders_and_files_are_opened_by_their_paths(model: Path, tmp_path: Path) -> None:
    save_imatrix(tmp_path / "imatrix.gguf", importances(model))
    imatrix = load_imatrix(tmp_path / "imatrix.gguf", prior=2.0)
    path = export(model, tmp_path, "Q4_K_M", imatrix)
    options: dict[str, Any] = {"against": str(model), "level": "bytes", "imatrix": tmp_path / "imatrix.gguf"}
    assert faults(verify(str(path), **options, prior=2.0)) == []
    assert faults(verify(str(path), **options)) != []  # another prior makes other bytes


def importances(model: Path) -> Imatrix:
    rng = np.random.default_rng(3)
    return Imatrix(
        {
            spec.name: Entry(
                np.exp(2 * rng.standard_normal((spec.n_matrix, spec.n_per_row))).astype(np.float32),
                np.full(spec.n_matrix, 10, np.int64),
            )
            for spec in open_checkpoint(model).specs()
            if spec.name.startswith("blk.") and len(spec.shape) > 1
        },
        ["text"],
        1,
    )


def test_importances_are_part_of_exactness(model: Path, tmp_path: Path) -> None:
    imatrix = importances(model)
    path = export(model, tmp_path, "Q4_K_M", imatrix)
    assert compared(path, model) == []
    assert compared(path, model, level="bytes", imatrix=imatrix) == []
    found = compared(path, model, level="bytes")
    assert any("encoded in another way" in one and "(imatrix names" in one for one in found)


# --- bytes ---


def change(path: Path, name: str, at: int, change: Callable[[int], int] = lambda byte: byte ^ 0x10) -> None:
    """Change the byte `at` of a tensor."""
    with path.open("r+b") as file:
        file.seek(GGUFFile(path).tensors[name].offset + at)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([change(byte) & 0xFF]))


def rewrite(path: Path, name: str, edit: Callable[[np.ndarray], np.ndarray | None]) -> None:
    """Edit the bytes of a tensor, uint8 [experts, rows, row bytes]."""
    stored = GGUFFile(path).tensors[name]
    content = np.fromfile(path, np.uint8)
    part = content[stored.offset : stored.offset + stored.n_bytes]
    shaped = part.reshape(stored.spec.n_matrix, stored.spec.n_row, -1).copy()
    edited = edit(shaped)
    part[:] = (shaped if edited is None else edited).reshape(-1)
    content.tofile(path)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K_M", "Q6_K", "Q2_K", "BF16"])
def test_a_single_changed_byte_is_named(copy: Callable[[str], Path], model: Path, name: str) -> None:
    """Expert 2, row 100: any byte, changed in any way, is found where exactness is asked for."""
    path = copy(name)
    stored = GGUFFile(path).tensors["blk.1.ffn_up_exps.weight"]
    row_bytes = stored.n_bytes // (4 * 256)
    change(
        path, "blk.1.ffn_up_exps.weight", (2 * 256 + 100) * row_bytes + row_bytes // 2, lambda byte: byte ^ 1
    )
    (found,) = compared(path, model, level="bytes")
    assert found.startswith("error: blk.1.ffn_up_exps.weight, expert 2: 1 of ")
    assert "the first in row 100" in found


def flip(path: Path, seed: int, reach: slice | None = None) -> str:
    """Change one bit of any tensor of experts; returns how the finding begins. `reach`: of each block these bytes."""
    rng = np.random.default_rng(seed)
    tensors = [one for one in GGUFFile(path).tensors.values() if one.spec.n_matrix > 1]
    stored = tensors[rng.integers(len(tensors))]
    at = int(rng.integers(stored.n_bytes))
    if reach is not None:
        type_size = stored.spec.qtype.type_size
        at += int(rng.integers(reach.start, reach.stop)) - at % type_size
    change(path, stored.spec.name, at, lambda byte: byte ^ 1 << int(rng.integers(8)))
    return f"error: {stored.spec.name}, expert {at * stored.spec.n_matrix // stored.n_bytes}: 1 of "


@pytest.mark.parametrize("name", TYPES)
def test_any_bit_that_changed_is_named(copy: Callable[[str], Path], model: Path, name: str) -> None:
    """Nothing has to be asked for where the file names no importances: the lowest bit of any code or scale is found."""
    for seed in range(4):
        path = copy(name)
        told = flip(path, seed)
        assert [one for one in compared(path, model) if one.startswith(told)], (told, compared(path, model))


@pytest.mark.parametrize(("name", "codes"), CODE_BYTES)
def test_a_bit_of_a_code_is_named_whatever_the_importances(
    model: Path, tmp_path: Path, name: str, codes: slice
) -> None:
    path = export(model, tmp_path, name, importances(model))
    content = path.read_bytes()
    assert compared(path, model) == []
    for seed in range(4):
        path.write_bytes(content)
        told = flip(path, seed, codes)
        (found,) = compared(path, model)
        assert found.startswith(told)
    (hint,) = [one for one in verify(path, against=open_checkpoint(model)) if one.severity == "info"]
    assert "name that file as imatrix to compare every byte" in str(hint)


def test_another_encoder_is_no_fault(model: Path, tmp_path: Path) -> None:
    """Importances of which the file says nothing stand for a program that encodes in another way."""
    path = export(model, tmp_path, "Q4_K_M", importances(model))
    remade(path, lambda keys: [keys.pop(key) for key in list(keys) if key.startswith("quantize.imatrix")])
    assert compared(path, model) == []
    (hint,) = [one for one in verify(path, against=open_checkpoint(model)) if one.severity == "info"]
    assert "matrices are encoded by another program or build" in str(hint)
    told = flip(path, 0, slice(16, 144))
    (found,) = compared(path, model)
    assert found.startswith(told)
    assert any("encoded in another way" in one for one in compared(path, model, level="bytes"))


def test_quick_compares_codes(copy: Callable[[str], Path], model: Path) -> None:
    path = copy("Q4_K_M")
    assert compared(path, model, level="errors") == []
    told = flip(path, 0, slice(16, 144))
    (found,) = compared(path, model, level="errors")
    assert found.startswith(told)


@pytest.mark.parametrize("qtype", CODES)
@pytest.mark.parametrize("kind", ["normal", "heavy", "sparse", "one-signed", "scaled", "tiny"])
def test_codes_are_the_nearest_with_any_importances(qtype: QType, kind: str) -> None:
    """What the encoders make of any weights passes; it is theirs that llama.cpp's bytes are equal to."""
    rng = np.random.default_rng(7)
    kinds: dict[str, Callable[[], Array]] = {
        "normal": lambda: 0.02 * rng.standard_normal((8, 1024)),
        "heavy": lambda: rng.standard_t(2, (8, 1024)),
        "sparse": lambda: rng.standard_normal((8, 1024)) * (rng.random((8, 1024)) < 0.05),
        "one-signed": lambda: 3 + np.abs(rng.standard_normal((8, 1024))),
        "scaled": lambda: rng.standard_normal((8, 1024)) * np.exp(3 * rng.standard_normal(1024)),
        "tiny": lambda: 1e-6 * rng.standard_normal((8, 1024)),
    }
    weights = kinds[kind]()
    wide = (weights.astype(np.float32).view(np.uint32) >> 16 << 16).view(np.float32)
    for importance in (None, np.exp(2 * rng.standard_normal(1024)).astype(np.float32)):
        found = not_nearest(encode(wide, qtype, Guide.of(importance)), wide, qtype)
        assert found is not None and not found.any()


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K_M", "Q6_K", "Q5_0", "IQ4_XS"])
def test_a_damaged_block_stands_out_without_exactness(
    copy: Callable[[str], Path], model: Path, name: str
) -> None:
    path = copy(name)

    def edit(rows: np.ndarray) -> None:
        rows[3, 17] = np.random.default_rng(0).permutation(rows[3, 17])

    rewrite(path, "blk.0.ffn_gate_exps.weight", edit)
    (found,) = [one for one in compared(path, model) if "number" not in one]
    assert "blk.0.ffn_gate_exps.weight, expert 3: " in found
    assert "the first in row 17" in found


def test_a_hole_of_zeros_is_named(copy: Callable[[str], Path], model: Path) -> None:
    """What an interrupted download leaves."""
    path = copy("Q4_K_M")
    rewrite(path, "blk.0.ffn_up_exps.weight", lambda rows: rows[1, 50:60].fill(0))
    (found,) = compared(path, model)
    assert "expert 1: 10 of 256 blocks" in found
    assert "row 50" in found


@pytest.mark.parametrize("level", ["auto", "errors", "bytes"])
def test_a_tensor_of_noise_is_named(copy: Callable[[str], Path], model: Path, level: Level) -> None:
    """Among random scales there are some that are no numbers, and so are the sums of errors."""
    path = copy("Q4_K_M")
    noise = np.random.default_rng(0)
    rewrite(path, "blk.1.attn_v.weight", lambda rows: noise.integers(0, 256, rows.shape, np.uint8))
    found = [one for one in compared(path, model, level=level) if "number" not in one]
    assert len(found) == 1
    assert found[0].startswith("error: blk.1.attn_v.weight: differs from the checkpoint")


def test_an_expert_of_zeros_is_named_without_a_checkpoint(copy: Callable[[str], Path]) -> None:
    path = copy("Q4_K_M")
    rewrite(path, "blk.0.ffn_up_exps.weight", lambda rows: rows[1].fill(0))
    assert faults(verify(path)) == [
        "warning: blk.0.ffn_up_exps.weight, expert 1: all zeros; fetch the file again, or look at its checkpoint"
    ]


SCALES = {
    "Q8_0": (0, 34),
    "Q4_K_M": (2, 144),
    "Q6_K": (208, 210),
    "Q3_K_S": (108, 110),
    "Q2_K": (82, 84),
    "Q5_1": (2, 24),
    "IQ4_XS": (0, 136),
}


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("bits", [0x7C00, 0xFE00])
def test_a_scale_that_is_no_number(copy: Callable[[str], Path], name: str, bits: int) -> None:
    path = copy(name)
    place, size = SCALES[name]

    def edit(rows: np.ndarray) -> None:
        rows[2, 9].reshape(-1, size)[-1, place : place + 2] = np.frombuffer(struct.pack("<H", bits), np.uint8)

    rewrite(path, "blk.0.ffn_gate_exps.weight", edit)
    (found,) = faults(verify(path))
    assert found.startswith("error: blk.0.ffn_gate_exps.weight, expert 2: row 9 holds a number that is NaN")


def test_a_float_that_is_no_number(copy: Callable[[str], Path]) -> None:
    path = copy("BF16")
    rewrite(path, "blk.1.attn_norm.weight", lambda rows: rows[0, 0, 4:8].fill(0xFF))
    (found,) = faults(verify(path))
    assert "blk.1.attn_norm.weight: row 0 holds a number that is NaN" in found


def test_a_damaged_norm_is_named(copy: Callable[[str], Path], model: Path) -> None:
    path = copy("Q4_K_M")
    change(path, "blk.1.ffn_norm.weight", 41)
    (found,) = compared(path, model)
    assert "blk.1.ffn_norm.weight: 1 of 256 weights are not what the checkpoint gives" in found


# --- places ---


@pytest.mark.parametrize("name", ["BF16", "Q8_0", "Q4_K_M", "Q2_K"])
def test_permuted_experts_are_named(copy: Callable[[str], Path], model: Path, name: str) -> None:
    path = copy(name)
    rewrite(path, "blk.1.ffn_down_exps.weight", lambda rows: rows[[0, 2, 3, 1]])
    found = compared(path, model)
    assert [one.partition("weight, ")[2].partition(";")[0] for one in found] == [
        "expert 1: the weights of expert 2 are in its place",
        "expert 2: the weights of expert 3 are in its place",
        "expert 3: the weights of expert 1 are in its place",
    ]


def test_permuted_experts_that_are_nearly_the_same(model: Path, tmp_path: Path) -> None:
    """Fine-tunes of one model differ by less than a type's rounding, and still each is nearest to itself."""
    weights = read_checkpoint(model)
    rng = np.random.default_rng(0)
    for key in [key for key in weights if ".experts." in key and ".experts.0." not in key]:
        base = weights[_first_of(key)]
        wide = (base.astype(np.uint32) << 16).view(np.float32)
        moved = wide * (1 + 0.03 * rng.standard_normal(wide.shape, np.float32))
        weights[key] = (moved.view(np.uint32) >> 16).astype(np.uint16)
    near = tmp_path / "Near-4x1M-bf16"
    shutil.copytree(model, near)
    write_checkpoint(near, weights, json.loads((model / "config.json").read_text()), n_shards=2)
    path = export(near, tmp_path / "out", "Q4_K_M")
    assert compared(path, near) == []
    rewrite(path, "blk.0.ffn_up_exps.weight", lambda rows: rows[[1, 0, 2, 3]])
    found = compared(path, near)
    assert len(found) == 2
    assert "expert 0: the weights of expert 1 are in its place" in found[0]


@pytest.mark.parametrize("name", ["Q1_0", "Q2_0", "TQ1_0"])
def test_types_that_keep_little_of_an_expert(model: Path, tmp_path: Path, name: str) -> None:
    """What they keep of one is nearer to another that has the same signs and is smaller; the bytes tell."""
    weights = read_checkpoint(model)
    for key in [key for key in weights if ".experts." in key and ".experts.0." not in key]:
        wide = (weights[_first_of(key)].astype(np.uint32) << 16).view(np.float32)
        weights[key] = ((wide * np.float32(0.75)).view(np.uint32) >> 16).astype(np.uint16)
    small = tmp_path / "Small-4x1M-bf16"
    shutil.copytree(model, small)
    write_checkpoint(small, weights, json.loads((model / "config.json").read_text()), n_shards=2)
    path = export(small, tmp_path / "out", name)
    assert compared(path, small) == []
    told = flip(path, 0)
    (found,) = compared(path, small)
    assert found.startswith(told)


def _first_of(key: str) -> str:
    head, _, tail = key.partition(".experts.")
    return f"{head}.experts.0.{tail.partition('.')[2]}"


@pytest.mark.parametrize("name", ["BF16", "Q4_K_M"])
def test_swapped_w1_and_w3_are_named(copy: Callable[[str], Path], model: Path, name: str) -> None:
    path = copy(name)
    file, content = GGUFFile(path), bytearray(path.read_bytes())
    gate, up = (file.tensors[f"blk.0.ffn_{kind}_exps.weight"] for kind in ("gate", "up"))
    first, second = (content[one.offset : one.offset + one.n_bytes] for one in (gate, up))
    content[gate.offset : gate.offset + gate.n_bytes] = second
    content[up.offset : up.offset + up.n_bytes] = first
    path.write_bytes(content)
    found = compared(path, model)
    assert [one.partition("; ")[0] for one in found] == [
        "error: blk.0.ffn_gate_exps.weight, all experts: the weights of blk.0.ffn_up_exps.weight are in its place",
        "error: blk.0.ffn_up_exps.weight, all experts: the weights of blk.0.ffn_gate_exps.weight are in its place",
    ]


def test_swapped_layers_are_named(copy: Callable[[str], Path], model: Path) -> None:
    path = copy("Q8_0")
    other = GGUFFile(path)
    rows = other.read_blocks(other.tensors["blk.1.attn_v.weight"].spec, 0, (0, 128))
    rewrite(path, "blk.0.attn_v.weight", lambda _: rows)
    (found,) = compared(path, model)
    assert "blk.0.attn_v.weight: the weights of blk.1.attn_v.weight are in its place" in found


def unpermuted(rows: np.ndarray, n_heads: int) -> np.ndarray:
    return rows.reshape(n_heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def permuted(rows: np.ndarray, n_heads: int) -> np.ndarray:
    return rows.reshape(n_heads, 2, -1, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda rows: unpermuted(rows, 2), "they were not permuted"),
        (lambda rows: permuted(rows, 2), "permuted twice"),
        (lambda rows: permuted(unpermuted(rows, 2), 4), "permuted in 4 heads instead of 2"),
    ],
)
def test_a_wrong_order_of_heads_is_named(
    copy: Callable[[str], Path], model: Path, edit: Callable[[np.ndarray], np.ndarray], said: str
) -> None:
    path = copy("Q4_K_M")
    rewrite(path, "blk.1.attn_k.weight", edit)
    (found,) = compared(path, model)
    assert "blk.1.attn_k.weight: " in found
    assert said in found


def test_a_transposed_matrix_is_named(copy: Callable[[str], Path], model: Path) -> None:
    path = copy("BF16")
    rewrite(
        path,
        "blk.1.attn_output.weight",
        lambda rows: np.ascontiguousarray(np.swapaxes(rows.view(np.uint16), 1, 2)).view(np.uint8),
    )
    (found,) = compared(path, model)
    assert "blk.1.attn_output.weight: is transposed" in found


def test_another_checkpoint_is_noticed(exported: Callable[[str], Path], tmp_path: Path) -> None:
    other = make_model(tmp_path / "Other-4x1M-bf16", seed=1)
    found = compared(exported("Q4_K_M"), other)
    assert any("differs from the checkpoint: relative error 2" in one for one in found)


# --- keys and tensors ---


def remade(path: Path, edit: Callable[[dict[str, KeyValue]], Any]) -> None:
    """The same file with other keys."""
    container = read_container(path)
    keys = {key: KeyValue(key, value, *container.types[key]) for key, value in container.keys.items()}
    edit(keys)
    data = path.read_bytes()[next(iter(container.tensors.values())).offset :]

    first = next(iter(container.tensors.values())).offset
    infos = [
        Info(spec=stored.spec, qtype=stored.spec.qtype, offset=stored.offset - first)
        for stored in container.tensors.values()
    ]
    path.write_bytes(header(list(keys.values()), SimpleNamespace(tensors=infos)) + data)  # type: ignore[arg-type]


def set_to(key: str, value: Any, kind: Type | None = None) -> Callable[[dict[str, KeyValue]], Any]:
    def edit(keys: dict[str, KeyValue]) -> None:
        keys[key] = replace(keys[key], value=value, type=keys[key].type if kind is None else kind)

    return edit


def put(key: str, value: Any, kind: Type) -> Callable[[dict[str, KeyValue]], Any]:
    return lambda keys: keys.update({key: KeyValue(key, value, kind)})


def without(key: str) -> Callable[[dict[str, KeyValue]], Any]:
    return lambda keys: keys.pop(key)


def double_token(keys: dict[str, KeyValue]) -> None:
    keys["tokenizer.ggml.tokens"].value[5] = keys["tokenizer.ggml.tokens"].value[6]


def short_scores(keys: dict[str, KeyValue]) -> None:
    scores = keys["tokenizer.ggml.scores"]
    keys[scores.key] = replace(scores, value=list(scores.value[:-1]))


def token_ids(keys: dict[str, KeyValue]) -> None:
    keys["tokenizer.ggml.tokens"].value.append("one more")


KEY_FAULTS = [
    (without("general.architecture"), "general.architecture: is missing"),
    (without("llama.context_length"), "llama.context_length: is missing"),
    (without("llama.attention.layer_norm_rms_epsilon"), "layer_norm_rms_epsilon: is missing"),
    (without("llama.attention.head_count"), "head_count: is missing"),
    (without("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens: is missing"),
    (set_to("llama.expert_count", 4, Type.INT32), "llama.expert_count: is of type INT32"),
    (set_to("llama.attention.layer_norm_rms_epsilon", 1e-5, Type.FLOAT64), "is of type FLOAT64"),
    (put("llama.rope.scaling.yarn_beta_fast", 32, Type.UINT32), "yarn_beta_fast: is of type UINT32"),
    (put("llama.rope.scaling.type", "su", Type.STRING), "llama.rope.scaling.type: 'su' is unknown"),
    (put("split.count", 1, Type.UINT32), "split.count: is of type UINT32, the loader wants UINT16"),
    (set_to("general.name", 7, Type.UINT32), "general.name: is of type UINT32"),
    (set_to("general.architecture", "mixtral"), "general.architecture: 'mixtral' is unknown"),
    (set_to("llama.block_count", 0), "llama.block_count: is 0"),
    (set_to("llama.block_count", 1), "blk.1.attn_k.weight': architecture llama has no such tensor"),
    (set_to("llama.block_count", 3), "blk.2.attn_norm.weight: is missing"),
    (set_to("llama.expert_used_count", 5), "llama.expert_used_count: is 5, of 4 experts"),
    (set_to("llama.expert_used_count", 0), "llama.expert_used_count: is 0, of 4 experts"),
    (set_to("llama.expert_count", 3), "blk.0.ffn_down_exps.weight: has shape"),
    (set_to("llama.rope.dimension_count", 32), "llama.rope.dimension_count: is 32"),
    (set_to("llama.attention.head_count_kv", 3), "llama.attention.head_count_kv: is 3, of 4 heads"),
    (set_to("llama.feed_forward_length", 128), "blk.0.ffn_gate_exps.weight: has shape"),
    (set_to("tokenizer.ggml.bos_token_id", 999), "tokenizer.ggml.bos_token_id: is 999"),
    (set_to("tokenizer.ggml.bos_token_id", 1, Type.INT32), "tokenizer.ggml.bos_token_id: is of a type"),
    (double_token, "tokenizer.ggml.tokens: "),
    (short_scores, "tokenizer.ggml.scores: has 319 entries for 320 tokens"),
    (token_ids, "tokenizer.ggml.tokens: 321 tokens for an embedding of 320 rows"),
]


@pytest.mark.parametrize(("edit", "said"), KEY_FAULTS)
def test_what_the_loader_refuses_is_named(
    copy: Callable[[str], Path], edit: Callable[[dict[str, KeyValue]], Any], said: str
) -> None:
    path = copy("Q8_0")
    remade(path, edit)
    assert any(said in one for one in faults(verify(path))), faults(verify(path))


def test_sizes_that_differ_by_layer_are_let_be(copy: Callable[[str], Path]) -> None:
    """The loader takes them, for architectures of which the names of the tensors are not known here."""
    path = copy("Q8_0")
    remade(
        path,
        lambda keys: keys.update(
            {
                "llama.attention.head_count_kv": KeyValue.array(
                    "llama.attention.head_count_kv", [2, 2], Type.INT32
                )
            }
        ),
    )
    assert faults(verify(path)) == []
    remade(
        path,
        lambda keys: keys.update(
            {
                "llama.attention.head_count_kv": KeyValue.array(
                    "llama.attention.head_count_kv", [2], Type.INT32
                )
            }
        ),
    )
    assert "head_count_kv: is no array of one u32 or i32 for each layer" in faults(verify(path))[0]


def test_remaking_changes_nothing_of_itself(copy: Callable[[str], Path], model: Path) -> None:
    path = copy("Q8_0")
    before = path.read_bytes()
    remade(path, lambda keys: None)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            set_to("llama.rope.freq_base", 1e6),
            "llama.rope.freq_base: is 1000000.0, the checkpoint says 10000.0",
        ),
        (set_to("llama.expert_used_count", 1), "llama.expert_used_count: is 1, the checkpoint says 2"),
        (set_to("llama.context_length", 4096), "llama.context_length: is 4096"),
        (without("tokenizer.ggml.bos_token_id"), "tokenizer.ggml.bos_token_id: is missing"),
        (
            set_to("tokenizer.ggml.eos_token_id", 3),
            "tokenizer.ggml.eos_token_id: is not that of the checkpoint",
        ),
    ],
)
def test_keys_that_are_not_the_checkpoints(
    copy: Callable[[str], Path], model: Path, edit: Callable[[dict[str, KeyValue]], Any], said: str
) -> None:
    path = copy("Q8_0")
    remade(path, edit)
    (found,) = compared(path, model)
    assert said in found


@pytest.mark.parametrize("n_bytes", [3, 100, 5000, -40, -1000])
def test_truncation_is_named(copy: Callable[[str], Path], n_bytes: int) -> None:
    path = copy("Q8_0")
    path.write_bytes(path.read_bytes()[:n_bytes])
    (found,) = faults(verify(path))
    assert "truncated" in found


def test_bytes_behind_the_last_tensor(copy: Callable[[str], Path]) -> None:
    path = copy("Q8_0")
    path.write_bytes(path.read_bytes() + bytes(100))
    assert "100 bytes lie behind the last tensor" in faults(verify(path))[0]


def test_findings_outlive_a_read_that_fails(
    copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: GGUFFile, *place: Any) -> Array:
        raise GGUFError(str(file.path), "cannot be read: the disk is gone")

    path = copy("Q8_0")
    path.write_bytes(path.read_bytes() + bytes(100))
    monkeypatch.setattr(GGUFFile, "read_blocks", fail)
    unreadable, tail = faults(verify(path))
    assert unreadable == f"error: {path}: cannot be read: the disk is gone; {FETCH}"
    assert "100 bytes lie behind the last tensor" in tail


# --- the command ---


def invoke(*words: Any) -> Any:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_the_command_says_it_and_exits_so(copy: Callable[[str], Path], model: Path, tmp_path: Path) -> None:
    path = copy("Q4_K_M")
    done = invoke("verify", path, "--against", model, "--imatrix", "none", "--quiet")
    assert (done.exit_code, done.stdout) == (0, "nothing is wrong\n")
    change(path, "blk.1.ffn_up_exps.weight", 70_000)
    done = invoke("verify", path, "--against", model, "--imatrix", "none", "--quiet", "--json")
    assert done.exit_code == 1
    (found,) = json.loads(done.stdout)
    assert found["place"] == "blk.1.ffn_up_exps.weight, expert 1"
    assert found["message"].startswith("1 of 256 blocks are not what the checkpoint gives")
    assert invoke("verify", tmp_path / "absent.gguf").exit_code == 1
    assert invoke("verify", path, "--imatrix", "none").exit_code == 2
    assert invoke("verify", path, "--quick").exit_code == 2
    done = invoke("verify", path, "--against", model, "--quick", "--quiet")
    assert done.exit_code == 1


def test_the_command_spells_settings_as_options(model: Path, tmp_path: Path) -> None:
    path = export(model, tmp_path, "Q4_K_M", importances(model))
    told = "name that file as --imatrix to compare every byte"
    assert told in invoke("verify", path, "--against", model, "--quiet").stdout
    (found,) = json.loads(invoke("verify", path, "--against", model, "--quiet", "--json").stdout)
    assert (found["severity"], found["remedy"]) == ("info", told)


def test_the_command_takes_an_imatrix_file(model: Path, tmp_path: Path) -> None:
    save_imatrix(tmp_path / "imatrix.gguf", importances(model))
    path = export(model, tmp_path, "Q4_K_M", load_imatrix(tmp_path / "imatrix.gguf"))
    done = invoke("verify", path, "--against", model, "--imatrix", tmp_path / "imatrix.gguf", "--quiet")
    assert (done.exit_code, done.stdout) == (0, "nothing is wrong\n")


def test_sha256sums_are_written_and_checked(copy: Callable[[str], Path]) -> None:
    path = copy("Q8_0")
    assert invoke("verify", path, "--sha256").exit_code == 0
    line = path.with_name("SHA256SUMS").read_text()
    assert line.endswith(f"  {path.name}\n")
    done = invoke("verify", path, "--sha256", "--quiet")
    assert done.exit_code == 0
    assert "as SHA256SUMS says" in done.stdout
    change(path, "blk.1.ffn_up_exps.weight", 70_000)
    done = invoke("verify", path, "--sha256", "--quiet")
    assert done.exit_code == 1
    assert path.with_name("SHA256SUMS").read_text() == line


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege, and there are no pipes")
def test_sums_are_written_into_a_plain_file_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before the file is hashed, which may take minutes."""
    path, sums, victim = tmp_path / "m.gguf", tmp_path / "SHA256SUMS", tmp_path / "victim"
    path.write_bytes(b"x")
    victim.write_text("precious")
    plants: list[tuple[Callable[[], Any], str]] = [
        (lambda: sums.symlink_to(victim), "is a symbolic link, which is not followed; remove it"),
        (lambda: sums.symlink_to(tmp_path / "absent"), "is a symbolic link"),
        (lambda: os.mkfifo(sums), "is a pipe"),
        (lambda: sums.hardlink_to(victim), "has a second name"),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(checksums, "sha256", lambda *_: 1 / 0)
        for plant, message in plants:
            plant()
            with pytest.raises(OutputError, match=f"SHA256SUMS: {message}"):
                checksums.check_sum(path)
            sums.unlink()
        with pytest.raises(ZeroDivisionError):
            checksums.check_sum(path)
    assert victim.read_text() == "precious"
    assert {found.name for found in tmp_path.iterdir()} == {"m.gguf", "victim"}
    assert checksums.check_sum(path).severity == "info"
    assert sums.read_text() == f"{checksums.sha256(path)}  m.gguf\n"


def test_a_first_run_says_that_it_compiles(exported: Callable[[str], Path], model: Path) -> None:
    stages: list[str] = []
    verify(exported("Q4_K_M"), against=model, progress=lambda moment: stages.append(moment.stage))
    assert list(dict.fromkeys(stages)) == [
        "checking numbers",
        "compiling kernels",
        "comparing with the checkpoint",
    ]
