"""A mixture of one expert: ggml's writer leaves the axis of its experts out, and every reader here puts it back."""

from __future__ import annotations

import ctypes
import json
import struct
from pathlib import Path
from typing import Any

import ggml
import gguf
import numpy as np
import pytest
from command_line import TEXT, invoke
from pico import pico_mixtral

from calibration.importance.imatrix_files import load_imatrix
from gguf_export import export
from gguf_export.checking.verify import verify
from gguf_export.writing.export import prepare, run
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe
from quantize.sources.checkpoint import open_checkpoint
from quantize.sources.gguf_file import GGUFFile
from quantize.sources.model_source import open_source

TYPES = ("BF16", "Q8_0", "Q4_K_M")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "Pico"
    return pico_mixtral(folder, n_layer=1, n_expert=1, n_expert_used=1, n_embd=256, n_ff=256)


@pytest.fixture(scope="module")
def files(model: Path) -> dict[str, Path]:
    return dict(zip(TYPES, (file.path for file in export(model, TYPES, model.parent).files), strict=True))


@pytest.fixture(scope="module")
def converted(files: dict[str, Path]) -> Path:
    """As llama.cpp's converter writes it, in Python and with all axes, before llama-quantize goes over it."""
    target = files["BF16"].with_name("converted.gguf")
    reader, writer = gguf.GGUFReader(files["BF16"]), gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            element = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], element)
    for tensor in reader.tensors:
        if "_exps" in tensor.name or "ffn_gate_inp" in tensor.name:
            assert len(tensor.data) == 1
        writer.add_tensor(tensor.name, np.ascontiguousarray(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def stored_axes(path: Path) -> dict[str, int]:
    return {tensor.name: len(tensor.shape) for tensor in gguf.GGUFReader(path).tensors}


def test_ggml_leaves_the_axis_out(converted: Path, files: dict[str, Path], tmp_path: Path) -> None:
    """Its reader and its writer, through which llama-quantize goes."""
    ggml.require()
    lib = ggml.library()

    class Params(ctypes.Structure):
        _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))

    lib.gguf_init_from_file.restype = ctypes.c_void_p
    lib.gguf_init_from_file.argtypes = [ctypes.c_char_p, Params]
    lib.gguf_write_to_file.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_bool]
    context = ctypes.c_void_p()
    params = Params(True, ctypes.cast(ctypes.pointer(context), ctypes.c_void_p))
    opened = lib.gguf_init_from_file(str(converted).encode(), params)
    assert opened and lib.gguf_write_to_file(opened, str(tmp_path / "meta.gguf").encode(), True)
    meta = (tmp_path / "meta.gguf").read_bytes()
    axes = {}
    for name in stored_axes(converted):
        counted = struct.pack("<Q", len(name)) + name.encode()
        axes[name] = int.from_bytes(meta[meta.index(counted) + len(counted) :][:4], "little")
    assert axes == stored_axes(files["Q8_0"])
    assert axes["blk.0.ffn_up_exps.weight"] == 2 and axes["blk.0.ffn_gate_inp.weight"] == 1
    assert stored_axes(converted) == stored_axes(files["BF16"])
    assert stored_axes(converted)["blk.0.ffn_up_exps.weight"] == 3


def test_sources_have_the_axis(model: Path, files: dict[str, Path], converted: Path) -> None:
    shapes = {spec.name: spec.shape for spec in open_checkpoint(model).specs()}
    for path in (*files.values(), converted):
        file = GGUFFile(path)
        assert {spec.name: spec.shape for spec in file.specs()} == shapes
        (up,) = (spec for spec in file.specs() if "ffn_up_exps" in spec.name)
        assert up.has_experts and up.n_matrix == 1 and up.label() == "blk.0.ffn_up_exps.weight, expert 0"
        assert file.read(up).shape == (256, 256)


def test_nothing_is_wrong_with_either(model: Path, files: dict[str, Path], converted: Path) -> None:
    for path in (*files.values(), converted):
        assert verify(path, against=model).summary() == "nothing is wrong"


def test_a_file_as_source_gives_the_same_file(
    files: dict[str, Path], converted: Path, tmp_path: Path
) -> None:
    for path in (files["BF16"], converted):
        job = prepare(open_source(path), [Recipe(ftype("Q8_0"))], tmp_path / path.stem)
        assert run(job).files[0].path.read_bytes() == files["Q8_0"].read_bytes()


def test_every_pass_takes_either(
    model: Path, files: dict[str, Path], converted: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    text: list[Any] = ["--text", tmp_path / "text.txt", "--ctx", 16, "--quiet"]
    sums = []
    for path in (model, files["BF16"], converted):
        output = tmp_path / f"{path.stem}.imatrix.gguf"
        assert invoke("imatrix", path, *text, "-o", output).exit_code == 0
        entry = load_imatrix(output).entries["blk.0.ffn_down_exps.weight"]
        assert entry.sums.shape == (1, 256) and entry.counts.shape == (1,) and entry.counts[0] > 0
        sums.append(entry.sums)
        report = tmp_path / f"{path.stem}.json"
        assert invoke("errors", path, *text, "-t", "Q4_K", "-o", report).exit_code == 0
        experts = [row for row in json.loads(report.read_text())["rows"] if "exps" in row["name"]]
        assert len(experts) == 3 and all(row["xid"] == 0 for row in experts)
    pages = ["-t", "Q8_0", "-o", tmp_path / "errors.html"]
    assert (
        invoke("errors", files["Q8_0"], *text, *pages).exit_code == 0
    )  # its plots divide by the highest entropy
    np.testing.assert_allclose(sums[1], sums[0], rtol=1e-6)
    np.testing.assert_array_equal(sums[2], sums[1])
    imatrix = tmp_path / "Pico.imatrix.gguf"
    done = invoke(
        *("compare", model, *files.values(), converted, "-t", "Q5_K_M", "--imatrix", imatrix, *text),
        *("--json", tmp_path / "compare.json"),
    )
    assert done.exit_code == 0, done.stderr
    done = invoke("export", model, "-t", "Q4_K_M", "--imatrix", imatrix, "-o", tmp_path, "--quiet")
    assert done.exit_code == 0, done.stderr
    (made,) = tmp_path.glob("*Q4_K_M.gguf")
    assert verify(made, against=model, imatrix=imatrix).summary() == "nothing is wrong"
