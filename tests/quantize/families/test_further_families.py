"""MiniMax-M2, ERNIE 4.5, Hunyuan, Ling and DBRX: keys and tensors as llama.cpp's converter writes them, bad configs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pico import to_f32
from pico_further import CASES, E, fused_experts, write
from places import GOLDEN

from quantize.exceptions import CheckpointError
from quantize.families.fit import dimension_misfits, tensor_misfits
from quantize.recipes.left_alone import converted_type
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.tensors import QType, TensorSpec

ABOUT: dict[str, Any] = json.loads((GOLDEN / "further_families.json").read_text(encoding="utf-8"))


def bytes_of(checkpoint: Checkpoint, spec: TensorSpec) -> bytes:
    """All matrices of a tensor in the type that the converter gives it."""
    matrices = [checkpoint.read(spec, xid) for xid in range(spec.n_matrix)]
    if converted_type(spec, checkpoint.arch) is QType.F32:
        return b"".join(to_f32(one).tobytes() for one in matrices)
    return b"".join(one.tobytes() for one in matrices)


def changed(path: Path, name: str, **changes: Any) -> Path:
    tensors, config = CASES[name]()
    for key, value in changes.items():
        outer, _, inner = key.rpartition("__")
        (config[outer] if outer else config)[inner or key] = value
    return write(path, (tensors, config))


@pytest.mark.parametrize("name", CASES)
def test_the_keys_are_llama_cpps(tmp_path: Path, name: str) -> None:
    checkpoint = open_checkpoint(write(tmp_path, CASES[name]()))
    assert checkpoint.arch == ABOUT[name]["arch"]
    found = [
        [kv.key, kv.type.name, float(np.float32(kv.value)) if kv.type.name == "FLOAT32" else kv.value]
        for kv in checkpoint.arch_keys()
    ]
    assert found == ABOUT[name]["keys"]


@pytest.mark.parametrize("layout", ["each", "fused"])
@pytest.mark.parametrize("name", CASES)
def test_every_tensor_is_llama_cpps(tmp_path: Path, name: str, layout: str) -> None:
    tensors, config = CASES[name]()
    if layout == "fused":
        tensors = fused_experts(tensors)
    checkpoint = open_checkpoint(write(tmp_path, (tensors, config)))
    specs = {spec.name: spec for spec in checkpoint.specs()}
    golden = ABOUT[name]["tensors"]
    assert specs.keys() == golden.keys()
    for spec in specs.values():
        qtype, shape, sha256 = golden[spec.name]
        assert converted_type(spec, checkpoint.arch).name == qtype, spec.name
        assert spec.shape == tuple(shape), spec.name
        assert hashlib.sha256(bytes_of(checkpoint, spec)).hexdigest() == sha256, spec.name


@pytest.mark.parametrize("name", CASES)
def test_such_a_file_fits(tmp_path: Path, name: str) -> None:
    checkpoint = open_checkpoint(write(tmp_path, CASES[name]()))
    keys = {kv.key: kv.value for kv in checkpoint.arch_keys()}
    assert not list(dimension_misfits(checkpoint.hparams, keys))
    assert not list(tensor_misfits(checkpoint.hparams, checkpoint.specs()))
    without = [spec for spec in checkpoint.specs() if spec.name != "blk.2.attn_norm.weight"]
    assert [misfit.place for misfit in tensor_misfits(checkpoint.hparams, without)] == [
        "blk.2.attn_norm.weight"
    ]


def test_what_predicts_further_tokens_is_left_out_and_said_to_be(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path, CASES["ernie4_5_moe"]()))
    assert any("2 stored tensors are ignored" in remark.message for remark in checkpoint.remarks)


def test_rotated_dimensions_may_be_said_as_a_share(tmp_path: Path) -> None:
    tensors, config = CASES["minimax_m2"]()
    del config["rotary_dim"], config["scoring_func"]
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.25}
    hparams = open_checkpoint(write(tmp_path, (tensors, config))).hparams
    assert (hparams.n_rot, hparams.head_dim) == (4, 16)
    assert hparams.expert_gating_func == 2  # the class knows nothing else than the sigmoid


def test_files_of_others_may_have_more(tmp_path: Path) -> None:
    """The first converter left the input matrix of a delta net whole; later ones write layers for further tokens."""
    checkpoint = open_checkpoint(write(tmp_path, CASES["qwen3next"]()))
    hparams = checkpoint.hparams
    whole = [
        replace(spec, name=spec.name.replace("attn_qkv", "ssm_in"), shape=(96, 64))
        if "attn_qkv" in spec.name
        else spec
        for spec in checkpoint.specs()
        if "attn_gate" not in spec.name
    ]
    assert not list(tensor_misfits(hparams, whole))
    further = [*checkpoint.specs(), TensorSpec("blk.4.nextn.eh_proj.weight", (64, 128), QType.BF16)]
    assert [misfit.place for misfit in tensor_misfits(hparams, further)] == ["'blk.4.nextn.eh_proj.weight'"]


@pytest.mark.parametrize(
    ("name", "may_lack"),
    [
        ("bailingmoe2_mtp", {"exp_probs_b.bias"}),
        ("qwen3next_mtp", {"nextn.shared_head_norm.weight"}),
    ],
)
def test_what_a_layer_for_further_tokens_must_have(tmp_path: Path, name: str, may_lack: set[str]) -> None:
    """Whatever its part in a pass, llama.cpp loads no file without one of these."""
    checkpoint = open_checkpoint(write(tmp_path, CASES[name]()))
    last = f"blk.{checkpoint.hparams.n_layer - 1}."
    for spec in checkpoint.specs():
        if spec.name.startswith(last):
            without = [one for one in checkpoint.specs() if one is not spec]
            missing = [misfit.place for misfit in tensor_misfits(checkpoint.hparams, without)]
            assert missing == ([] if spec.name.removeprefix(last) in may_lack else [spec.name])


def test_mtp_layers_of_qwen3next_are_those_that_are_stored(tmp_path: Path) -> None:
    tensors, config = CASES["qwen3next_mtp"]()
    published = open_checkpoint(write(tmp_path / "published", (tensors, config)))
    within = {f"model.{name}" if name.startswith("mtp.") else name: one for name, one in tensors.items()}
    other = open_checkpoint(write(tmp_path / "within", (within, config | {"mtp_num_hidden_layers": 1})))
    assert [kv.value for kv in other.arch_keys()] == [kv.value for kv in published.arch_keys()]
    assert other.specs() == published.specs()
    assert all(bytes_of(other, spec) == bytes_of(published, spec) for spec in other.specs())
    assert not other.remarks and not published.remarks
    kept = {name: one for name, one in tensors.items() if not name.startswith("mtp.")}
    saved = open_checkpoint(write(tmp_path / "saved", (kept, config | {"mtp_num_hidden_layers": 1})))
    plain = open_checkpoint(write(tmp_path / "plain", CASES["qwen3next"]()))
    assert [kv.value for kv in saved.arch_keys()] == [kv.value for kv in plain.arch_keys()]
    assert saved.specs() == plain.specs()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("", "model.mtp.fc.weight", "'model.mtp.fc.weight' and 'mtp.fc.weight' would both be"),
        ("", "model.layers.4.hnorm.weight", "would both be 'model.layers.4.hnorm.weight'"),
        ("", "mtp.embed_tokens.weight", "'mtp.embed_tokens.weight' would not be read"),
        ("", "mtp.layers.00.input_layernorm.weight", "layers.00.input_layernorm.weight' would not be read"),
        ("", "mtp.layers.1.input_layernorm.weight", "lacks tensor 'model.layers.5.post_attention"),
        ("", "mtp.layers.511.input_layernorm.weight", "block_count would be 516"),
        ("", "mtp.layers.512.input_layernorm.weight", "would not be read"),
        ("", f"mtp.layers.{'9' * 5000}.input_layernorm.weight", "would not be read"),
        ("mtp.norm.weight", "mtp.other.weight", "'mtp.other.weight' would not be read"),
        ("mtp.pre_fc_norm_hidden.weight", "", "lacks tensor 'model.layers.4.hnorm.weight'"),
    ],
)
def test_mtp_names_that_nobody_knows(tmp_path: Path, old: str, new: str, message: str) -> None:
    tensors, config = CASES["qwen3next_mtp"]()
    named = {name: values for name, values in tensors.items() if name != old}
    named |= {new: tensors[old or "mtp.norm.weight"]} if new else {}
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(write(tmp_path, (named, config)))


def test_layers_of_qwen3next_attend_as_the_config_says(tmp_path: Path) -> None:
    tensors, config = CASES["qwen3next"]()
    types = ["linear_attention"] * 3 + ["full_attention"]
    one = open_checkpoint(write(tmp_path / "interval", (tensors, config)))
    other = open_checkpoint(write(tmp_path / "types", (tensors, config | {"layer_types": types})))
    assert [kv.value for kv in one.arch_keys()] == [kv.value for kv in other.arch_keys()]
    assert [kv.value for kv in one.arch_keys() if kv.key.endswith("recurrent_layers")] == [
        [True, True, True, False]
    ]


def test_ernie_without_shared_experts(tmp_path: Path) -> None:
    tensors, config = CASES["ernie4_5_moe"]()
    kept = {name: values for name, values in tensors.items() if "shared_experts" not in name}
    checkpoint = open_checkpoint(write(tmp_path, (kept, config | {"moe_num_shared_experts": 0})))
    keys = {kv.key.partition(".")[2]: kv.value for kv in checkpoint.arch_keys()}
    assert keys["expert_shared_count"] == 0
    assert "expert_shared_feed_forward_length" not in keys
    assert not any("shexp" in spec.name for spec in checkpoint.specs())


def test_hunyuan_stretches_positions_by_another_base(tmp_path: Path) -> None:
    wide = {"hidden_size": 128 * 4, "max_position_embeddings": 32768, "rope_theta": 10000.0}
    tensors, config = CASES["hunyuan_moe"]()
    wider = {
        name: np.resize(
            values, [512 if n == 64 else 256 if n == 32 and "attn" in name else n for n in values.shape]
        )
        for name, values in tensors.items()
        if "layernorm" not in name
    }
    wider |= {
        name: np.ones(128 if "query" in name or "key" in name else 512, np.float32)
        for name in tensors
        if "layernorm" in name
    }
    config |= wide | {"rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}}
    keys = {kv.key: kv.value for kv in open_checkpoint(write(tmp_path, (wider, config))).arch_keys()}
    assert keys["hunyuan-moe.rope.freq_base"] == pytest.approx(11158839.9251, rel=1e-9)
    assert keys["hunyuan-moe.context_length"] == 262144
    assert list(keys.items())[-3:] == [
        ("hunyuan-moe.rope.scaling.type", "none"),
        ("hunyuan-moe.rope.scaling.factor", 1.0),
        ("hunyuan-moe.rope.scaling.original_context_length", 262144),
    ]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("minimax_m2", {"rotary_dim": "half"}, "rotary_dim must be a whole number"),
        ("minimax_m2", {"partial_rotary_factor": 0.25}, "partial_rotary_factor 0.25: 8 of the 16 dimensions"),
        (
            "minimax_m2",
            {"num_local_experts": E + 1},
            r"has shape \[4, 64\], but config.json asks for \[5, 64\]",
        ),
        ("minimax_m2", {"scoring_func": "tanh"}, "router function 'tanh' is not supported"),
        ("ernie4_5", {"use_bias": True}, "use_bias True is not supported"),
        ("ernie4_5_moe", {"moe_layer_interval": 2}, "moe_layer_interval 2 is not supported"),
        ("ernie4_5_moe", {"intermediate_size": 96}, "shared experts are 64 wide"),
        ("ernie4_5_moe", {"moe_layer_start_index": 2}, "lacks tensor 'model.layers.1.mlp.gate_proj.weight'"),
        ("hunyuan_moe", {"moe_topk": [2, 2, 1]}, r"moe_topk \[2, 2, 1\] differs by layer"),
        ("hunyuan_moe", {"moe_topk": []}, r"moe_topk \[\] differs by layer"),
        ("hunyuan_moe", {"num_shared_expert": 2.5}, "num_shared_expert must be a whole number"),
        (
            "hunyuan_moe",
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope scaling 'linear' with alpha",
        ),
        ("hunyuan_moe", {"rope_scaling": {"type": "dynamic", "alpha": 50.0}}, "is not supported"),
        ("bailingmoe", {"first_k_dense_replace": 1}, "first_k_dense_replace 1 is not supported"),
        ("bailingmoe", {"norm_head": True}, "norm_head True is not supported"),
        ("bailingmoe2", {"num_nextn_predict_layers": 1}, "counts a layer 3 that predicts further tokens"),
        (
            "bailingmoe2",
            {"num_nextn_predict_layers": "one"},
            "num_nextn_predict_layers must be a whole number",
        ),
        ("bailingmoe2", {"num_nextn_predict_layers": 510}, "block_count would be 513"),
        ("bailingmoe2_mtp", {"num_nextn_predict_layers": 1}, "tensor 'model.layers.4.*would not be read"),
        ("bailingmoe2_mtp", {"num_nextn_predict_layers": None}, "tensor 'model.layers.3.*would not be read"),
        (
            "qwen3next_mtp",
            {"mtp_num_hidden_layers": 2},
            "mtp_num_hidden_layers is 2, but 1 such layers are stored",
        ),
        ("qwen3next_mtp", {"num_hidden_layers": "four"}, "num_hidden_layers must be a whole number"),
        ("bailingmoe2", {"num_shared_experts": 2}, "has shape"),
        ("bailingmoe2", {"partial_rotary_factor": "half"}, "partial_rotary_factor must be a number"),
        ("qwen3next", {"full_attention_interval": 2}, "full_attention_interval 2 without layer_types"),
        ("qwen3next", {"layer_types": ["full_attention"] * 4}, "attention in every 4th layer"),
        ("qwen3next", {"linear_value_head_dim": 16, "linear_num_value_heads": 2}, "has shape"),
        ("qwen3next", {"linear_num_key_heads": 3}, r"attn_qkv.weight would not have \d+ rows"),
        ("qwen3next", {"norm_topk_prob": False}, "norm_topk_prob False is not supported"),
        ("dbrx", {"attn_config": None}, "attn_config must be an object, but is None"),
        ("dbrx", {"ffn_config__ffn_act_fn": {"name": "gelu"}}, "ffn_act_fn.name 'gelu' is not supported"),
        ("dbrx", {"attn_config__kv_n_heads": 3}, "4 attention heads cannot share 3"),
    ],
)
def test_a_config_that_llama_cpp_cannot_follow_is_refused(
    tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(changed(tmp_path, name, **changes))
