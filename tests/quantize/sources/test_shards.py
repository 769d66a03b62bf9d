"""Checkpoints: reading one expert at a time, and refusing what is damaged, incomplete or hostile."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import BENCH, SCRIPTS

from quantize.containers.shard_index import read_header
from quantize.exceptions import CheckpointError, ModelChangedError
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.tensors import QType, TensorSpec

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico.pico_mixtral(tmp_path_factory.mktemp("mixtral"), tokenizer=False)


@pytest.fixture
def broken(mixtral: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(mixtral, tmp_path / "model"))


def edit_json(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def edit_tensors(folder: Path, edit: Callable[[dict[str, Any]], Any], n_shards: int = 1) -> None:
    """Write the checkpoint anew with its tensors changed."""
    tensors = pico.read_checkpoint(folder)
    edit(tensors)
    for old in folder.glob("model*"):
        old.unlink()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    pico.write_checkpoint(folder, tensors, config, n_shards)


def refusal(folder: Path) -> str:
    """The message with which the checkpoint is refused: one printable line."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 1000
    return message


# --- reading ---------------------------------------------------------------------------------------------------------


def test_experts_are_the_stored_matrices(mixtral: Path) -> None:
    stored = pico.read_checkpoint(mixtral)
    checkpoint = open_checkpoint(mixtral)
    specs = {spec.name: spec for spec in checkpoint.specs()}
    for name, part in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
        for bid in range(2):
            spec = specs[f"blk.{bid}.ffn_{name}_exps.weight"]
            assert spec.qtype is QType.BF16 and spec.n_matrix == 4
            for xid in range(4):
                expected = stored[f"model.layers.{bid}.block_sparse_moe.experts.{xid}.{part}.weight"]
                found = checkpoint.read(spec, xid)
                assert found.dtype == np.uint16 and found.flags.c_contiguous and found.flags.owndata
                np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
        checkpoint.read(specs["blk.1.ffn_norm.weight"])[0],
        stored["model.layers.1.post_attention_layernorm.weight"],
    )


def test_rows_of_q_and_k_are_permuted_one_by_one(mixtral: Path) -> None:
    """LlamaModel.permute of llama.cpp's converter, written out: new_row[h*hd + 2i + s] = old_row[h*hd + s*hd/2 + i]."""
    stored = pico.read_checkpoint(mixtral)
    checkpoint = open_checkpoint(mixtral)
    specs = {spec.name: spec for spec in checkpoint.specs()}
    hd = 16
    for letter, heads in (("q", 4), ("k", 2)):
        old = stored[f"model.layers.0.self_attn.{letter}_proj.weight"]
        new = checkpoint.read(specs[f"blk.0.attn_{letter}.weight"])
        for head in range(heads):
            for i in range(hd // 2):
                for half in range(2):
                    row = head * hd + half * hd // 2 + i
                    np.testing.assert_array_equal(new[head * hd + 2 * i + half], old[row])


@pytest.mark.parametrize("layout", ["split", "fused"])
def test_some_rows_are_those_rows_of_the_whole(tmp_path: Path, layout: pico.Layout) -> None:
    checkpoint = open_checkpoint(pico.pico_mixtral(tmp_path, layout=layout, n_layer=1, tokenizer=False))
    for spec in checkpoint.specs():
        step = checkpoint.row_step(spec)
        for xid in range(spec.n_matrix):
            whole = checkpoint.read(spec, xid)
            assert whole.shape == (spec.n_row, spec.n_per_row)
            for first, last in {(0, 1), (0, spec.n_row), (spec.n_row // 3, spec.n_row // 2 + 1)}:
                np.testing.assert_array_equal(checkpoint.read(spec, xid, (first, last)), whole[first:last])
            before = checkpoint.bytes_read
            checkpoint.read(spec, xid, (0, step))
            assert checkpoint.bytes_read - before == step * spec.n_per_row * whole.itemsize
    steps = {spec.name.removeprefix("blk.0."): checkpoint.row_step(spec) for spec in checkpoint.specs()}
    assert steps["attn_q.weight"] == steps["attn_k.weight"] == 16
    assert steps["ffn_up_exps.weight"] == steps["attn_v.weight"] == 1


@pytest.mark.parametrize("layout", ["split", "fused", "fused.weight"])
def test_a_pass_reads_each_byte_once(mixtral: Path, tmp_path: Path, layout: pico.Layout) -> None:
    checkpoint = open_checkpoint(pico.pico_mixtral(tmp_path, layout=layout, tokenizer=False))
    for spec in checkpoint.specs():
        for xid in range(spec.n_matrix):
            checkpoint.read(spec, xid)
    assert checkpoint.bytes_read == checkpoint.n_bytes == open_checkpoint(mixtral).n_bytes


def test_the_layouts_hold_the_same_model(mixtral: Path, tmp_path: Path) -> None:
    split = open_checkpoint(mixtral)
    for layout in ("fused", "fused.weight"):
        folder = pico.pico_mixtral(tmp_path / layout, layout=layout, tokenizer=False)
        fused = open_checkpoint(folder)
        assert fused.hparams == split.hparams and fused.specs() == split.specs() and fused.remarks == ()
        for spec in split.specs():
            for xid in range(spec.n_matrix):
                np.testing.assert_array_equal(fused.read(spec, xid), split.read(spec, xid))


@pytest.mark.parametrize("n_expert", [1, 2, 3, 6, 64])
def test_any_number_of_experts(tmp_path: Path, n_expert: int) -> None:
    used = min(2, n_expert)
    folder = pico.pico_mixtral(
        tmp_path, n_layer=1, n_expert=n_expert, n_expert_used=used, n_embd=32, n_ff=32, tokenizer=False
    )
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.hparams.n_expert, checkpoint.hparams.n_expert_used) == (n_expert, used)
    spec = next(spec for spec in checkpoint.specs() if spec.name == "blk.0.ffn_down_exps.weight")
    assert spec.shape == (n_expert, 32, 32)


@pytest.mark.parametrize(("dtype", "qtype"), [("BF16", QType.BF16), ("F16", QType.F16), ("F32", QType.F32)])
def test_the_three_float_types(tmp_path: Path, dtype: pico.Dtype, qtype: QType) -> None:
    folder = pico.pico_mixtral(tmp_path, n_layer=1, dtype=dtype, n_shards=1, tokenizer=False)
    checkpoint = open_checkpoint(folder)
    stored = pico.read_checkpoint(folder)["model.layers.0.block_sparse_moe.experts.2.w2.weight"]
    spec = next(spec for spec in checkpoint.specs() if spec.name == "blk.0.ffn_down_exps.weight")
    assert {spec.qtype for spec in checkpoint.specs()} == {qtype}
    found = checkpoint.read(spec, 2)
    assert found.dtype == stored.dtype
    np.testing.assert_array_equal(found, stored)


def test_experts_of_different_types_are_read_as_f32_and_that_is_said(broken: Path) -> None:
    w2 = "model.layers.0.block_sparse_moe.experts.{}.w2.weight"

    def mix(tensors: dict[str, Any]) -> None:
        tensors[w2.format(1)] = pico.to_f32(tensors[w2.format(1)])
        tensors[w2.format(2)] = pico.to_f32(tensors[w2.format(2)]).astype(np.float16)

    edit_tensors(broken, mix)
    checkpoint = open_checkpoint(broken)
    stored = pico.read_checkpoint(broken)
    spec = next(spec for spec in checkpoint.specs() if spec.name == "blk.0.ffn_down_exps.weight")
    assert spec.qtype is QType.F32
    for xid in range(4):
        found = checkpoint.read(spec, xid, (3, 9))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, pico.to_f32(stored[w2.format(xid)])[3:9])
    assert any("different types" in str(remark) for remark in checkpoint.remarks)


def test_threads_read_what_one_reads(mixtral: Path) -> None:
    checkpoint = open_checkpoint(mixtral)
    units = [(spec, xid) for spec in checkpoint.specs() for xid in range(spec.n_matrix)]
    expected = [checkpoint.read(*unit).tobytes() for unit in units]
    found: list[list[bytes]] = [[] for _ in range(4)]

    def work(into: list[bytes]) -> None:
        into.extend(checkpoint.read(*unit).tobytes() for unit in units)

    threads = [threading.Thread(target=work, args=(into,)) for into in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4
    assert checkpoint.bytes_read == 5 * checkpoint.n_bytes


@pytest.mark.parametrize("layout", ["split", "fused"])
def test_reading_an_expert_allocates_an_expert(tmp_path: Path, layout: pico.Layout) -> None:
    folder = pico.pico_mixtral(tmp_path, layout=layout, n_layer=1, n_embd=256, n_ff=1024, tokenizer=False)
    checkpoint = open_checkpoint(folder)
    spec = next(spec for spec in checkpoint.specs() if spec.name == "blk.0.ffn_up_exps.weight")
    n_bytes = spec.n_row * spec.n_per_row * 2
    checkpoint.read(spec, 0)
    tracemalloc.start()
    checkpoint.read(spec, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_bytes <= peak < n_bytes + 20_000


def test_an_expert_or_row_that_is_not_there(mixtral: Path) -> None:
    checkpoint = open_checkpoint(mixtral)
    spec = next(spec for spec in checkpoint.specs() if spec.n_matrix > 1)
    for xid, rows in ((4, None), (-1, None), (0, (0, spec.n_row + 1)), (0, (5, 5))):
        with pytest.raises(IndexError, match="matrices of"):
            checkpoint.read(spec, xid, rows)
    with pytest.raises(KeyError):
        checkpoint.read(TensorSpec("no.such.weight", (4, 4), QType.BF16))


def link(path: Path, target: Path) -> None:
    try:
        path.symlink_to(target)
    except OSError:
        pytest.skip("this system does not let us make symbolic links")


def test_links_of_the_hub_cache_are_followed(mixtral: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "models--somebody--pico" / "blobs"
    snapshot, elsewhere = blobs.parent / "snapshots" / "main", tmp_path / "downloaded"
    for folder in (blobs, snapshot, elsewhere):
        folder.mkdir(parents=True)
    for i, path in enumerate(sorted(mixtral.iterdir())):
        shutil.copy(path, blobs / f"{i:064x}")
        link(snapshot / path.name, Path("..", "..", "blobs", f"{i:064x}"))
        link(elsewhere / path.name, blobs / f"{i:064x}")
    assert open_checkpoint(snapshot).specs() == open_checkpoint(mixtral).specs()
    assert open_checkpoint(elsewhere).specs() == open_checkpoint(mixtral).specs()


@pytest.mark.parametrize(
    "name", ["README.md", "tokenizer_config.json", "model-00001-of-00002.safetensors", "merges.txt"]
)
def test_a_link_that_leads_out_of_the_folder_is_refused(broken: Path, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a key")
    (broken / name).unlink(missing_ok=True)
    link(broken / name, secret)
    assert f"{name}: is a link to {secret}, outside of the folder" in refusal(broken)


def test_a_template_that_is_a_link_out_of_the_folder_is_refused(broken: Path, tmp_path: Path) -> None:
    (broken / "additional_chat_templates").mkdir()
    link(broken / "additional_chat_templates" / "tool.jinja", tmp_path / "absent")
    assert "outside of the folder" in refusal(broken)


def test_links_within_the_folder_and_links_that_nobody_reads(broken: Path, tmp_path: Path) -> None:
    (broken / "config.json").rename(broken / "config-1.json")
    link(broken / "config.json", Path("config-1.json"))
    link(broken / "pytorch_model.bin", tmp_path / "absent")
    link(tmp_path / "the model", broken)
    assert open_checkpoint(tmp_path / "the model").specs()


def test_consolidated_weights_are_ignored(broken: Path) -> None:
    (broken / "consolidated.safetensors").write_bytes(b"not read")
    assert open_checkpoint(broken).remarks == ()


def test_a_single_file_beside_an_index_is_left_aside_and_that_is_said(broken: Path) -> None:
    (broken / "model.safetensors").write_bytes(b"not read")
    (remark,) = open_checkpoint(broken).remarks
    assert remark.place == str(broken) and "not read" in remark.message


def test_known_leftovers_are_ignored_and_that_is_said(broken: Path) -> None:
    def add(tensors: dict[str, Any]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)

    edit_tensors(broken, add)
    checkpoint = open_checkpoint(broken)
    assert any("inv_freq" in str(remark) for remark in checkpoint.remarks)
    assert not any("rot" in spec.name for spec in checkpoint.specs())


def test_tied_embeddings(tmp_path: Path) -> None:
    tied = open_checkpoint(pico.pico_mixtral(tmp_path / "tied", tied=True, tokenizer=False))
    assert "output.weight" not in {spec.name for spec in tied.specs()} and tied.remarks == ()
    kept = open_checkpoint(pico.pico_mixtral(tmp_path / "kept", tokenizer=False, tie_word_embeddings=True))
    assert "output.weight" in {spec.name for spec in kept.specs()}
    silent = pico.pico_mixtral(tmp_path / "silent", tied=True, tokenizer=False, tie_word_embeddings=False)
    assert any("token embedding is used" in str(remark) for remark in open_checkpoint(silent).remarks)


# --- refusing: the folder --------------------------------------------------------------------------------------------


def test_no_folder(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "nowhere")


def test_no_config(broken: Path) -> None:
    (broken / "config.json").unlink()
    assert "config.json: file is missing" in refusal(broken)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"\xff\xfe",
        b'{"a": NaN}',
        b"[" * 100_000,
        b'{"n": ' + b"9" * 5000 + b"}",
        b'"\\ud800"',
    ],
)
def test_config_that_is_no_json_object(broken: Path, content: bytes) -> None:
    (broken / "config.json").write_bytes(content)
    assert "config.json: invalid" in refusal(broken)


def test_a_config_without_end(broken: Path) -> None:
    with (broken / "config.json").open("wb") as file:
        file.truncate(110_000_000)  # sparse: no bytes on disk
    assert "too many" in refusal(broken)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
@pytest.mark.parametrize("name", ["config.json", INDEX, "model-00001-of-00002.safetensors"])
def test_a_pipe_does_not_hang(broken: Path, name: str) -> None:
    import os

    (broken / name).unlink()
    os.mkfifo(broken / name)
    assert "not a regular file" in refusal(broken)


def test_no_weights(broken: Path) -> None:
    for path in broken.glob("model*"):
        path.unlink()
    assert "neither" in refusal(broken)


def test_only_pickles(broken: Path) -> None:
    for path in broken.glob("model*"):
        path.unlink()
    (broken / "pytorch_model.bin").write_bytes(b"\x80\x04")
    message = refusal(broken)
    assert "pickled" in message and "convert them to safetensors" in message


# --- refusing: the index ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors",
        "/etc/passwd",
        "..",
        "",
        "a/b.safetensors",
        "a\\b.safetensors",
        "C:x.safetensors",
    ],
)
def test_an_index_that_points_outside(broken: Path, shard: str) -> None:
    name = "model.norm.weight"
    edit_json(broken / INDEX, lambda index: index["weight_map"].update({name: shard}))
    message = refusal(broken)
    assert "points outside the folder" in message and name in message


@pytest.mark.parametrize(
    "shard",
    ["x\n.safetensors", "x\0.safetensors", "\u202e.safetensors", "x" * 300 + ".safetensors", 7, None, ["a"]],
)
def test_an_index_with_what_is_no_file_name(broken: Path, shard: Any) -> None:
    name = "model.norm.weight"
    edit_json(broken / INDEX, lambda index: index["weight_map"].update({name: shard}))
    message = refusal(broken)
    assert "points outside the folder" in message and name in message


def test_an_index_of_pickles(broken: Path) -> None:
    edit_json(
        broken / INDEX, lambda index: index["weight_map"].update({"model.norm.weight": "pytorch_model.bin"})
    )
    assert "no safetensors file" in refusal(broken)


def test_an_index_without_map(broken: Path) -> None:
    edit_json(broken / INDEX, lambda index: index.pop("weight_map"))
    assert "no weight_map" in refusal(broken)


def test_a_missing_shard(broken: Path) -> None:
    (broken / "model-00002-of-00002.safetensors").unlink()
    message = refusal(broken)
    assert "model-00002-of-00002.safetensors: shard is missing" in message


def test_a_tensor_in_two_shards(broken: Path) -> None:
    second = broken / "model-00002-of-00002.safetensors"
    first = pico.read_checkpoint(broken)
    inside = set(read_header(second)) | {"model.embed_tokens.weight"}
    pico.write_shard(second, {name: first[name] for name in inside})
    assert "'model.embed_tokens.weight' is in shard model-00001-of-00002.safetensors too" in refusal(broken)


# --- refusing: what the family asks for ------------------------------------------------------------------------------


def test_a_missing_expert_is_named(broken: Path) -> None:
    lost = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    edit_tensors(broken, lambda tensors: tensors.pop(lost))
    message = refusal(broken)
    assert lost in message and "expert 2 of 4" in message and "blk.1.ffn_up_exps.weight" in message


def test_a_missing_tensor_is_named(broken: Path) -> None:
    edit_tensors(broken, lambda tensors: tensors.pop("model.layers.1.self_attn.k_proj.weight"))
    message = "blk.1.attn_k.weight: the checkpoint lacks tensor 'model.layers.1.self_attn.k_proj.weight'"
    assert message in refusal(broken)


def test_a_wrong_shape_is_named(broken: Path) -> None:
    name = "model.layers.0.block_sparse_moe.experts.0.w1.weight"
    edit_tensors(broken, lambda tensors: tensors.update({name: tensors[name].T.copy()}))
    message = refusal(broken)
    assert name in message and "[64, 96]" in message and "[96, 64]" in message


def test_a_fused_tensor_with_the_wrong_number_of_experts(tmp_path: Path) -> None:
    folder = pico.pico_mixtral(tmp_path, layout="fused", tokenizer=False)
    edit_json(folder / "config.json", lambda config: config.update(num_local_experts=3))
    message = refusal(folder)
    assert "model.layers.0.mlp.gate.weight" in message and "[4, 64]" in message and "[3, 64]" in message


def test_an_unread_tensor_is_named(broken: Path) -> None:
    edit_tensors(
        broken, lambda tensors: tensors.update({"model.extra\n.weight": np.ones((2, 2), np.float32)})
    )
    assert "tensor 'model.extra\\n.weight' would not be read" in refusal(broken)


def test_more_experts_than_the_config_says_are_unread(broken: Path) -> None:
    def three(config: dict[str, Any]) -> None:
        config["num_local_experts"] = 3

    edit_json(broken / "config.json", three)
    edit_tensors(
        broken,
        lambda tensors: tensors.update(
            {name: one[:3].copy() for name, one in tensors.items() if name.endswith("moe.gate.weight")}
        ),
    )
    message = refusal(broken)
    assert "experts.3.w1.weight' and 5 more would not be read" in message


def test_integers_are_not_weights(broken: Path) -> None:
    name = "model.layers.0.block_sparse_moe.experts.0.w1.weight"
    tensors = pico.read_checkpoint(broken)
    one = tensors.pop(name)
    (broken / INDEX).unlink()
    for path in broken.glob("model-*"):
        path.unlink()
    write_raw(
        broken / "model.safetensors",
        {
            **{key: ("BF16", value.shape, value.tobytes()) for key, value in tensors.items()},
            name: ("I16", one.shape, one.tobytes()),
        },
    )
    assert f"'{name}': is stored as I16" in refusal(broken)


# --- refusing: the header --------------------------------------------------------------------------------------------


def write_raw(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    header: dict[str, Any] = {}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    write_header(path, json.dumps(header).encode(), data)


def write_header(path: Path, header: bytes, data: bytes = b"", n_header: int | None = None) -> Path:
    n_header = len(header) if n_header is None else n_header
    path.write_bytes(n_header.to_bytes(8, "little") + header + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> bytes:
    return json.dumps({"dtype": dtype, "shape": shape, "data_offsets": offsets}).encode()


def test_a_good_header_and_its_ranges(tmp_path: Path) -> None:
    content = b'{"__metadata__": {"format": "pt"}, "b": ' + entry(shape=[1], offsets=[4, 8])
    content += (
        b', "a": ' + entry("BF16", [2, 1], [0, 4]) + b', "none": ' + entry("F16", [0, 5], [4, 4]) + b"}   "
    )
    found = read_header(write_header(tmp_path / "x.safetensors", content, b"12345678"))
    start = 8 + len(content)
    assert {name: (one.dtype, one.shape, one.start, one.n_bytes) for name, one in found.items()} == {
        "a": ("BF16", (2, 1), start, 4),
        "b": ("F32", (1,), start + 4, 4),
        "none": ("F16", (0, 5), start + 4, 0),
    }


@pytest.mark.parametrize(
    ("header", "n_data", "fault"),
    [
        (b"", 0, "invalid JSON"),
        (b"{", 0, "invalid JSON"),
        (b"[]", 0, "JSON object"),
        (b'{"a":' * 50_000, 0, "nested too deeply"),
        (b'{"a": 1}', 0, "not an object"),
        (b'{"a": {}}', 0, "unknown dtype"),
        (b'{"a": ' + entry("F128") + b"}", 8, "unknown dtype"),
        (b'{"a": ' + entry(["F32"]) + b"}", 8, "unknown dtype"),
        (b'{"a": ' + entry(shape=2) + b"}", 8, "shape"),
        (b'{"a": ' + entry(shape=[True, 2]) + b"}", 8, "shape"),
        (b'{"a": ' + entry(shape=[-2]) + b"}", 8, "shape"),
        (b'{"a": ' + entry(shape=[2.0]) + b"}", 8, "shape"),
        (b'{"a": ' + entry(shape=[1] * 100) + b"}", 8, "shape"),
        (b'{"a": ' + entry(offsets=[0]) + b"}", 8, "not a range"),
        (b'{"a": ' + entry(offsets=[8, 0]) + b"}", 8, "not a range"),
        (b'{"a": ' + entry(offsets=[-8, 0]) + b"}", 8, "not a range"),
        (b'{"a": ' + entry(offsets="08") + b"}", 8, "not a range"),
        (b'{"a": ' + entry(shape=[3]) + b"}", 8, "8 bytes are stored, F32 [3] has 12"),
        (b'{"a": ' + entry("F64") + b"}", 8, "8 bytes are stored"),
        (b'{"a": ' + entry(shape=[2**60, 2**60]) + b"}", 8, "8 bytes are stored"),
        (b'{"a": ' + entry(shape=[2**61], offsets=[0, 2**63 - 1]) + b"}", 8, "are stored"),
        (b'{"a": ' + entry(shape=[2**60], offsets=[0, 2**62]) + b"}", 8, "truncated"),
        (b'{"a": ' + entry() + b"}", 7, "truncated"),
        (b'{"a": ' + entry() + b"}", 9, "1 bytes more"),
        (b'{"a": ' + entry(offsets=[4, 12]) + b"}", 12, "gap"),
        (b'{"a": ' + entry() + b', "b": ' + entry(offsets=[4, 12]) + b"}", 12, "overlaps"),
        (b'{"a": ' + entry() + b', "a": ' + entry(offsets=[8, 16]) + b"}", 16, "stands twice"),
        (b'{"a": {"dtype": "F32", "shape": [2], "shape": [2], "data_offsets": [0, 8]}}', 8, "stands twice"),
    ],
)
def test_a_header_that_lies(tmp_path: Path, header: bytes, n_data: int, fault: str) -> None:
    path = write_header(tmp_path / "x.safetensors", header, bytes(n_data))
    with pytest.raises(CheckpointError, match=r"x\.safetensors") as caught:
        read_header(path)
    assert fault in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize("n_header", [3, 10**6, 2**63, 2**64 - 1])
def test_a_header_that_lies_about_its_length(tmp_path: Path, n_header: int) -> None:
    path = write_header(tmp_path / "x.safetensors", b'{"a": ' + entry() + b"}", bytes(8), n_header)
    with pytest.raises(CheckpointError, match=r"does not fit|invalid JSON"):
        read_header(path)


def test_a_header_without_end(tmp_path: Path) -> None:
    path = write_header(tmp_path / "x.safetensors", b"{}", n_header=105_000_000)
    with path.open("r+b") as file:
        file.truncate(110_000_000)  # sparse: no bytes on disk
    with pytest.raises(CheckpointError, match="the limit is"):
        read_header(path)


@pytest.mark.parametrize("n_bytes", [0, 4, 8, 100, 5000, -1])
def test_a_truncated_shard(broken: Path, n_bytes: int) -> None:
    shard = broken / "model-00002-of-00002.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:n_bytes])
    message = refusal(broken)
    assert shard.name in message and "truncated" in message


def test_a_shard_that_shrinks_after_it_was_opened(broken: Path) -> None:
    checkpoint = Checkpoint(broken)
    for shard in broken.glob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(ModelChangedError, match=r"\.safetensors: changed while it was read"):
        checkpoint.read(checkpoint.specs()[-1])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_of_a_header_end_in_our_error_or_in_tensors_inside_the_file(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    header = b'{"__metadata__":{"format":"pt"},"a":' + entry("BF16", [2, 3], [0, 12])
    header += b',"b":' + entry("F32", [4], [12, 28]) + b"}"
    content = bytearray(len(header).to_bytes(8, "little") + header + bytes(28))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(content)
    try:
        found = read_header(path)
    except CheckpointError as refused:
        assert str(refused).isprintable()
    else:
        assert all(0 <= one.start <= one.start + one.n_bytes <= len(content) for one in found.values())


# --- the bench model, where it is there ------------------------------------------------------------------------------

needs_bench = pytest.mark.skipif(
    not (BENCH / "harmony-nano").is_dir(), reason="the bench model is not beside the repository"
)


def sha256_as(checkpoint: Checkpoint, spec: TensorSpec, qtype: str) -> str:
    """SHA-256 of a tensor's bytes in a BF16 file, where norms and routers are F32."""
    import hashlib

    digest = hashlib.sha256()
    for xid in range(spec.n_matrix):
        values = checkpoint.read(spec, xid)
        digest.update((pico.to_f32(values) if qtype == "F32" else values).tobytes())
    return digest.hexdigest()


@needs_bench
@pytest.mark.parametrize("layout", ["split", "fused"])
def test_every_tensor_is_what_llama_cpp_converts(tmp_path: Path, layout: str) -> None:
    """llama.cpp's convert_hf_to_gguf.py and llama-quantize made the reference from the split layout."""
    folder = BENCH / "harmony-nano"
    if layout == "fused":
        fused = pico.fuse_experts(pico.read_checkpoint(folder), n_layer=6, n_expert=4)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        pico.write_checkpoint(tmp_path, fused, config, n_shards=3)
        folder = tmp_path
    checkpoint = open_checkpoint(folder)
    hashes = (BENCH / "reference" / "llama-quantize-sha256.json").read_text(encoding="utf-8")
    expected = json.loads(hashes)["BF16"]["plain"]
    specs = {spec.name: spec for spec in checkpoint.specs()}
    assert specs.keys() == expected.keys()
    for name, one in expected.items():
        assert sha256_as(checkpoint, specs[name], one["type"]) == one["sha256"], name
    assert checkpoint.bytes_read == checkpoint.n_bytes


# --- scripts/make_synthetic.py ---------------------------------------------------------------------------------------


def test_the_synthetic_checkpoint_is_one(tmp_path: Path) -> None:
    import subprocess

    import sentencepiece

    script = SCRIPTS / "make_synthetic.py"
    sizes = ["--layers", "1", "--experts", "3", "--n-embd", "64", "--n-ff", "96", "--vocab", "1000"]
    heads = ["--n-head", "4", "--n-head-kv", "2"]
    for layout in ("split", "fused"):
        command = [sys.executable, str(script), str(tmp_path / layout), *sizes, *heads, "--layout", layout]
        subprocess.run(command, check=True, capture_output=True)
    split, fused = open_checkpoint(tmp_path / "split"), open_checkpoint(tmp_path / "fused")
    assert split.hparams == fused.hparams and split.remarks == fused.remarks == ()
    for spec in split.specs():
        for xid in range(spec.n_matrix):
            values = split.read(spec, xid)
            np.testing.assert_array_equal(fused.read(spec, xid), values)
            assert 0.01 < pico.to_f32(values).std() < 0.03
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "split" / "tokenizer.model"))
    assert tokenizer.vocab_size() == 1000
    assert tokenizer.decode(tokenizer.encode("the  river ü")) == "the  river ü"
