"""Whole files from whole checkpoints: the bytes of llama-quantize, from one read of the shards."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import textwrap
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pico import Dtype, fuse_experts, pico_mixtral, read_checkpoint, write_checkpoint
from places import HELPERS

from gguf_export import export
from gguf_export.writing.export import plan
from quantize.exceptions import (
    MoeGgufError,
    NoSpaceError,
    NotFiniteError,
    OutputError,
    OutputExistsError,
)
from quantize.sources.gguf_file import GGUFFile
from quantize.telling import Remark

FTYPES = [
    "F16",
    "BF16",
    "Q8_0",
    "Q6_K",
    "Q5_K_M",
    "Q5_K_S",
    "Q4_K_M",
    "Q4_K_S",
    "Q2_K",
    "Q3_K_S",
    "Q3_K_M",
    "Q3_K_L",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "IQ4_NL",
    "IQ4_XS",
    "MXFP4_MOE",
]


def hashes(path: Path) -> dict[str, dict[str, str]]:
    """Per tensor its type and the SHA-256 of its bytes, in file order."""
    file = GGUFFile(path)
    data = path.read_bytes()
    return {
        name: {
            "type": stored.spec.qtype.name,
            "sha256": hashlib.sha256(data[stored.offset : stored.offset + stored.n_bytes]).hexdigest(),
        }
        for name, stored in file.tensors.items()
    }


@pytest.fixture(scope="module", params=["plain", "imatrix"])
def bench_files(request: pytest.FixtureRequest, bench: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All file types of the reference, from one read of the shards."""
    folder = tmp_path_factory.mktemp(request.param)
    with_imatrix = request.param == "imatrix"
    imatrix = bench / "reference" / "llama-imatrix.gguf" if with_imatrix else None
    names = [*FTYPES, "Q2_K_S"] if with_imatrix else FTYPES
    exported = export(bench / "harmony-nano", names, folder, imatrix=imatrix)
    return request.param, dict(zip(names, exported.files, strict=True)), exported


def test_bytes_equal_llama_quantize(bench_files: Any, bench: Path) -> None:
    reference = json.loads((bench / "reference" / "llama-quantize-sha256.json").read_text())
    column, files, _ = bench_files
    for name, file in files.items():
        assert hashes(file.path) == reference[name][column], name
        assert list(hashes(file.path)) == list(reference[name][column])
    assert {name for name in reference if column in reference[name]} == set(files)


def test_each_shard_byte_is_read_once(bench_files: Any, bench: Path) -> None:
    _, _, exported = bench_files
    index = json.loads((bench / "harmony-nano" / "model.safetensors.index.json").read_text())
    assert exported.bytes_read == index["metadata"]["total_size"]


def test_planned_size_is_the_size(bench_files: Any) -> None:
    for file in bench_files[1].values():
        assert file.path.stat().st_size == file.n_bytes


def test_file_names_follow_the_convention(bench_files: Any) -> None:
    for name, file in bench_files[1].items():
        assert file.path.name == f"Harmony-Nano-4x6.8M-{name}.gguf"


def fused(source: Path, target: Path) -> None:
    """The same model in the layout that mergekit writes since mid-2026."""
    config = json.loads((source / "config.json").read_text())
    weights = fuse_experts(
        read_checkpoint(source), config["num_hidden_layers"], config["num_local_experts"], suffix=""
    )
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("model*"))
    write_checkpoint(target, weights, config, n_shards=1)


def test_fused_layout_gives_identical_files(bench: Path, tmp_path: Path) -> None:
    fused(bench / "harmony-nano", tmp_path / "harmony-nano")
    one = export(bench / "harmony-nano", ["Q8_0", "Q4_K_M"], tmp_path / "a")
    other = export(tmp_path / "harmony-nano", ["Q8_0", "Q4_K_M"], tmp_path / "b")
    assert one.bytes_read == other.bytes_read
    for first, second in zip(one.files, other.files, strict=True):
        assert first.path.name == second.path.name
        assert first.path.read_bytes() == second.path.read_bytes()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return pico_mixtral(tmp_path / "Pico-4x1M-bf16")


def test_threads_do_not_change_bytes(model: Path, tmp_path: Path) -> None:
    one = export(model, ["Q4_K_M", "Q8_0"], tmp_path / "a", jobs=1)
    many = export(model, ["Q4_K_M", "Q8_0"], tmp_path / "b", jobs=5)
    for first, second in zip(one.files, many.files, strict=True):
        assert first.path.read_bytes() == second.path.read_bytes()


def test_existing_file_is_kept_without_force(model: Path, tmp_path: Path) -> None:
    done = export(model, ["Q8_0"], tmp_path)
    path = done.files[0].path
    path.write_bytes(b"precious")
    with pytest.raises(
        OutputExistsError, match=r"exists already, and cannot be read as a GGUF file .*; pass force"
    ):
        export(model, ["Q8_0"], tmp_path)
    assert path.read_bytes() == b"precious"
    export(model, ["Q8_0"], tmp_path, force=True)
    assert path.read_bytes()[:4] == b"GGUF"


def test_a_folder_under_the_files_name_is_refused_before_the_work(model: Path, tmp_path: Path) -> None:
    name = plan(model, "Q8_0", tmp_path).files[0].path.name
    (tmp_path / name).mkdir()
    for force in (False, True):
        with pytest.raises(OutputError, match="is a folder"):
            export(model, "Q8_0", tmp_path, force=force)
    assert [path.name for path in tmp_path.glob("*.gguf*")] == [name]


def test_a_plan_is_what_an_export_writes(model: Path, tmp_path: Path) -> None:
    notes: list[Remark] = []
    planned = plan(model, ["Q4_K_M", "Q8_0"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    done = export(model, ["Q4_K_M", "Q8_0"], tmp_path / "out", note=notes.append)
    assert done.files == planned.files
    assert [str(note) for note in notes] == [str(remark) for remark in planned.remarks]
    assert any("fall back to another one" in str(note) for note in notes)
    for file, ftype in zip(done.files, ("Q4_K_M", "Q8_0"), strict=True):
        written = GGUFFile(file.path)
        assert file.ftype == ftype
        assert file.path.stat().st_size == file.n_bytes
        assert {tensor.name: (tensor.qtype, tensor.shape, tensor.n_bytes) for tensor in file.tensors} == {
            name: (stored.spec.qtype.name, stored.spec.shape, stored.n_bytes)
            for name, stored in written.tensors.items()
        }
        n_elements = sum(stored.spec.n_elements for stored in written.tensors.values())
        assert file.bpw == pytest.approx(8 * sum(t.n_bytes for t in file.tensors) / n_elements)


def test_no_types_make_no_files(model: Path, tmp_path: Path) -> None:
    assert export(model, [], tmp_path).files == ()
    assert [path.name for path in tmp_path.iterdir()] == [model.name]


def test_one_type_needs_no_list(model: Path, tmp_path: Path) -> None:
    assert [file.ftype for file in plan(model, "Q4_K_M", tmp_path).files] == ["Q4_K_M"]


def test_same_type_twice_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="same name"):
        export(model, ["Q8_0", "Q8_0"], tmp_path)


@pytest.mark.parametrize("bits", [0x7FC0, 0x7F80, 0xFF80])
def test_non_finite_weight_is_named(model: Path, tmp_path: Path, bits: int) -> None:
    weights = read_checkpoint(model)
    weights["model.layers.1.block_sparse_moe.experts.1.w2.weight"][3, 5] = bits
    write_checkpoint(model, weights, json.loads((model / "config.json").read_text()), n_shards=2)
    with pytest.raises(NotFiniteError, match=r"ffn_down_exps.weight, expert 1: row 3, column 5"):
        export(model, ["Q8_0"], tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_too_little_space_is_said_before_the_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 0, 1000))
    with pytest.raises(NoSpaceError, match="make space"):
        export(model, ["Q8_0"], tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_disk_that_fills_midway(model: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: both fail within a write."""
    script = f"""
        import resource, signal
        from gguf_export import export
        from quantize.exceptions import OutputError
        from pathlib import Path
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            export({str(model)!r}, ["Q8_0"], {str(tmp_path / "out")!r})
        except OutputError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        cwd=HELPERS,
        check=True,
    )
    assert "no space left" in done.stdout
    assert done.stdout.count("\n") == 1
    assert not list((tmp_path / "out").iterdir())


def test_imatrix_of_another_model_is_refused(model: Path, bench: Path, tmp_path: Path) -> None:
    with pytest.raises(MoeGgufError, match="blk"):
        export(model, ["Q4_K_M"], tmp_path, imatrix=bench / "reference" / "llama-imatrix.gguf")


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_other_float_types_are_read(tmp_path: Path, dtype: Dtype) -> None:
    model = pico_mixtral(tmp_path / "Pico", dtype=dtype)
    done = export(model, ["F32", "Q8_0"], tmp_path / "out")
    exact, rounded = (GGUFFile(file.path) for file in done.files)
    for spec in rounded.specs():
        for xid in range(spec.n_matrix):
            want = exact.read(exact.tensors[spec.name].spec, xid)
            got = rounded.read(spec, xid)
            assert np.abs(want - got).max() <= np.abs(want).max() / 127


def test_type_that_needs_importances_is_refused_without(tmp_path: Path) -> None:
    wide = pico_mixtral(tmp_path / "Pico", n_embd=256, n_ff=256, n_layer=1)
    with pytest.raises(MoeGgufError, match="Q2_K_S"):
        export(wide, ["Q2_K_S"], tmp_path / "out")
