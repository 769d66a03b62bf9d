"""FP8 checkpoints: the numbers that torch and llama.cpp's converter make of them, and what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest
import torch
from pico_deep import as_fp8, pico_deepseek
from safetensors.torch import load_file, save_file

from gguf_export.checking.doctor import doctor
from quantize.exceptions import CheckpointError
from quantize.sources.checkpoint import open_checkpoint
from quantize.sources.fp8 import e4m3_values
from quantize.tensors import QType

BLOCK = (16, 8)  # of neither of which the matrices are whole multiples
Tensors = dict[str, torch.Tensor]


def stored_in(folder: Path) -> Tensors:
    found: Tensors = load_file(folder / "model.safetensors")
    return found


def multiplied(codes: torch.Tensor, scales: torch.Tensor, block: tuple[int, int] | None) -> np.ndarray:
    """The bits of bfloat16 as the converter makes them (conversion/base.py: dequant_simple): a scale per number."""
    scales = scales.float()
    if block is not None:
        for axis, size in enumerate(block):
            scales = scales.repeat_interleave(size, axis)
        scales = scales[: codes.shape[0], : codes.shape[1]]
    while scales.ndim < codes.ndim:
        scales = scales.unsqueeze(-1)
    bits: np.ndarray = (codes.float() * scales).bfloat16().view(torch.int16).numpy().view(np.uint16)
    return bits


def test_all_codes_are_torchs() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(e4m3_values(), codes)
    assert np.signbit(e4m3_values()[128])


@pytest.mark.parametrize(
    ("block", "per_row"), [(BLOCK, False), ((128, 128), False), (None, True), (None, False)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_are_those_of_the_converter(
    block: tuple[int, int] | None, per_row: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    plain = pico.pico_mixtral(tmp_path / "bf16", n_layer=1, n_expert=2, n_ff=72, tokenizer=False)
    folder = as_fp8(plain, tmp_path / "fp8", block, per_row=per_row)
    tensors = stored_in(folder)
    tensors = {name: one.to(dtype) if name.endswith("_scale_inv") else one for name, one in tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    source = open_checkpoint(folder)
    specs = {spec.name: spec for spec in source.specs()}
    for step, name in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
        spec = specs[f"blk.0.ffn_{step}_exps.weight"]
        assert spec.qtype is QType.BF16
        for xid in range(2):
            name_of_expert = f"model.layers.0.block_sparse_moe.experts.{xid}.{name}.weight"
            codes, scales = tensors[name_of_expert], tensors[name_of_expert + "_scale_inv"]
            assert codes.dtype == torch.float8_e4m3fn and scales.dtype == dtype
            wanted = multiplied(codes, scales, block)
            np.testing.assert_array_equal(source.read(spec, xid), wanted)
            for rows in ((0, 1), (15, 17), (17, 40), (spec.n_row - 1, spec.n_row)):
                np.testing.assert_array_equal(source.read(spec, xid, rows), wanted[slice(*rows)])
    router = "model.layers.0.block_sparse_moe.gate.weight"
    np.testing.assert_array_equal(
        pico.to_f32(source.read(specs["blk.0.ffn_gate_inp.weight"])), tensors[router].float().numpy()
    )


def test_parts_of_a_matrix_and_permuted_rows(tmp_path: Path) -> None:
    """DeepSeek's kv_b_proj, which is parted by heads and turned, from blocks that lie across the heads."""
    folder = as_fp8(pico_deepseek(tmp_path / "bf16", n_mtp=1), tmp_path / "fp8", BLOCK)
    tensors, source = stored_in(folder), open_checkpoint(folder)
    name = "model.layers.1.self_attn.kv_b_proj.weight"
    heads = multiplied(tensors[name], tensors[name + "_scale_inv"], BLOCK).reshape(4, 11, 10)
    specs = {spec.name: spec for spec in source.specs()}
    for xid in range(4):
        np.testing.assert_array_equal(source.read(specs["blk.1.attn_k_b.weight"], xid), heads[xid, :6].T)
        np.testing.assert_array_equal(
            source.read(specs["blk.1.attn_v_b.weight"], xid, (1, 4)), heads[xid, 7:10]
        )


def test_fused_experts_have_scales_of_their_own(tmp_path: Path) -> None:
    folder = pico_deepseek(tmp_path / "m", fused=True)
    tensors = stored_in(folder)
    name = "model.layers.2.mlp.experts.gate_up_proj"
    codes = (tensors[name] * 100).to(torch.float8_e4m3fn)  # [4, 24, 32]
    scales = torch.rand(4, 2, 4)
    save_file(tensors | {name: codes, name + "_scale_inv": scales}, folder / "model.safetensors")
    quantized = {"quant_method": "fp8", "weight_block_size": list(BLOCK)}
    edit_config(folder, lambda config: config.update(quantization_config=quantized))
    source = open_checkpoint(folder)
    (spec,) = [spec for spec in source.specs() if spec.name == "blk.2.ffn_up_exps.weight"]
    for xid in range(4):
        wanted = multiplied(codes[xid], scales[xid], BLOCK)[12:]
        np.testing.assert_array_equal(source.read(spec, xid), wanted)
        np.testing.assert_array_equal(source.read(spec, xid, (3, 9)), wanted[3:9])


def test_scales_of_compressed_tensors(tmp_path: Path) -> None:
    plain = pico.pico_mixtral(tmp_path / "bf16", n_layer=1, n_expert=2, tokenizer=False)
    folder = as_fp8(plain, tmp_path / "fp8", None, per_row=True)
    before = open_checkpoint(folder)
    matrices = {
        (spec.name, xid): before.read(spec, xid) for spec in before.specs() for xid in range(spec.n_matrix)
    }
    tensors = {name.replace("_scale_inv", "_scale"): one for name, one in stored_in(folder).items()}
    save_file(tensors, folder / "model.safetensors")
    weights = {"num_bits": 8, "type": "float", "strategy": "channel"}
    told = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"weights": weights}},
    }
    edit_config(folder, lambda config: config.update(quantization_config=told))
    after = open_checkpoint(folder)
    for spec in after.specs():
        for xid in range(spec.n_matrix):
            np.testing.assert_array_equal(after.read(spec, xid), matrices[spec.name, xid])
    weights["strategy"] = "tensor"
    edit_config(folder, lambda config: config.update(quantization_config=told))
    with pytest.raises(CheckpointError, match="a scale for each channel or block"):
        open_checkpoint(folder)


def test_a_healthy_checkpoint_is_only_remarked(tmp_path: Path) -> None:
    folder = as_fp8(pico.pico_mixtral(tmp_path / "bf16", n_layer=1), tmp_path / "fp8", BLOCK)
    findings = list(doctor(folder))
    assert all(finding.severity == "info" for finding in findings), findings
    assert any("are FP8 with scales" in finding.message for finding in findings)


def test_other_scales_are_another_model(tmp_path: Path) -> None:
    folder = as_fp8(pico_deepseek(tmp_path / "bf16"), tmp_path / "fp8", BLOCK)
    source = open_checkpoint(folder)
    again: Any = pickle.loads(pickle.dumps(source))
    spec = next(spec for spec in source.specs() if spec.name == "blk.0.ffn_up.weight")
    np.testing.assert_array_equal(again.read(spec), source.read(spec))
    assert again.fingerprint() == source.fingerprint()
    edit_config(folder, lambda config: config["quantization_config"].update(fmt="other"))
    assert open_checkpoint(folder).fingerprint() != source.fingerprint()


# --- refusals --------------------------------------------------------------------------------------------------------

UP = "model.layers.0.mlp.up_proj.weight"
SCALES = UP + "_scale_inv"


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    edit(config)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("fp8")
    return as_fp8(pico_deepseek(scratch / "bf16"), scratch / "fp8", BLOCK)


def without_scales(tensors: Tensors) -> None:
    del tensors[SCALES]


def without_weights(tensors: Tensors) -> None:
    del tensors[UP]


def one_scale_less(tensors: Tensors) -> None:
    tensors[SCALES] = tensors[SCALES][:, :-1].contiguous()


def whole_scales(tensors: Tensors) -> None:
    tensors[SCALES] = tensors[SCALES].int()


def wide_weights(tensors: Tensors) -> None:
    tensors[UP] = tensors[UP].bfloat16()


def scaled_norm(tensors: Tensors) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)
    tensors["model.norm.weight_scale_inv"] = torch.ones(1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_scales, f"'{UP}': is stored as F8_E4M3, but its scales '{SCALES}' are not there"),
        (without_weights, f"'{SCALES}': are scales of '{UP}', which is not there"),
        (
            one_scale_less,
            f"'{SCALES}': has shape [2, 3], but config.json asks for blocks of 16x8 of [20, 32], which is [2, 4]",
        ),
        (whole_scales, f"'{SCALES}': scales are stored as I32; known: F32, BF16, F16"),
        (wide_weights, f"'{SCALES}': are scales of '{UP}', which is stored as BF16"),
        (scaled_norm, "is stored as F8_E4M3, but is no matrix: [32]"),
    ],
)
def test_what_has_not_its_scales_is_refused(
    damage: Callable[[Tensors], None], message: str, fp8: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(fp8, tmp_path / "m"))
    tensors = stored_in(folder)
    damage(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert message in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_block_size": [16]}, "weight_block_size must be two numbers of weights, not [16]"),
        ({"weight_block_size": [0, 8]}, "weight_block_size must be two numbers of weights"),
        ({"weight_block_size": None}, "but config.json asks for one scale for a matrix or for each row"),
        ({"quant_method": "gptq"}, "has a quantization_config; give the BF16, F16 or F32 original instead"),
        ({"quant_method": "compressed-tensors"}, "has a quantization_config"),
        (None, "is stored as F8_E4M3, but config.json has no quantization_config"),
    ],
)
def test_what_config_json_says_of_scales(
    settings: dict[str, Any] | None, message: str, fp8: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(fp8, tmp_path / "m"))

    def edit(config: dict[str, Any]) -> None:
        if settings is None:
            del config["quantization_config"]
        else:
            config["quantization_config"].update(settings)

    edit_config(folder, edit)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert message in str(caught.value) and str(caught.value).isprintable()


def test_scales_of_activations_are_ignored(fp8: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(fp8, tmp_path / "m"))
    names = [UP.replace("weight", "activation_scale"), UP.replace(".weight", "_activation_scale")]
    save_file(stored_in(folder) | {name: torch.ones(1) for name in names}, folder / "model.safetensors")
    assert len(open_checkpoint(folder).specs()) == len(open_checkpoint(fp8).specs())
