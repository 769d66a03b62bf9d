"""Families: the words of the language on an invented model, configs as transformers completes them, rotary scaling."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.containers.keys import KeyValue
from quantize.exceptions import CheckpointError
from quantize.families import FAMILIES, Family, family_of, supported_architectures
from quantize.families.config import ConfigFacts, complete_config, read_config
from quantize.families.key_table import BASE, SIZES, known
from quantize.families.keys import Key
from quantize.families.language import (
    GATE,
    UP,
    Computed,
    dense_layers,
    each_layer,
    evaluate,
    fused,
    interleaved,
    moe_layers,
    permuted,
    tensor,
    transposed,
)
from quantize.families.rope import rope_freqs
from quantize.hparams import Hparams, RopeScaling
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.tensors import QType

E, D, V, HD = 3, 8, 16, 4  # experts, width, tokens, head_dim
F, FX, FS = 12, 6, 4  # width of a dense feed-forward, of an expert, of a shared expert
FIELDS: dict[str, object] = {
    "num_hidden_layers": 5,
    "hidden_size": D,
    "intermediate_size": F,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "vocab_size": V,
}
INVENTED: dict[str, object] = {
    "architectures": ["InventedForCausalLM"],
    "n_routed": E,
    "n_used": 1,
    "expert_width": FX,
    "lead": 0,
    "step": 2,
}

LAYER = "layers.{bid}."
FAMILY = Family(
    architectures=("InventedForCausalLM",),
    arch="invented",
    defaults={},
    rope_theta=10000.0,
    keys=(
        *BASE,
        known("expert_count", config="n_routed"),
        known("expert_used_count", config="n_used"),
        known("expert_feed_forward_length", config="expert_width"),
        Key("leading_dense_block_count", "n_layer_dense_lead", config="lead", minimum=0),
        *SIZES,
    ),
    dims={"moe_step": "step"},
    n_layer_dense_lead="n_layer_dense_lead",
    moe_every="moe_step",
    computed=(Computed("half.weight", lambda hparams: np.full(hparams.head_dim // 2, 0.5, np.float32)),),
    tensors=(
        tensor("token_embd.weight", "n_vocab n_embd", "embed"),
        *each_layer(
            LAYER,
            tensor("attn_q.weight", "n_head*head_dim n_embd", permuted("q", "n_head")),
            tensor("attn_q.bias", "n_head*head_dim", permuted("q_bias", "n_head"), optional=True),
            tensor("attn_v.weight", "n_embd n_head_kv*head_dim", transposed("v")),
        ),
        *dense_layers(LAYER, tensor("ffn_up.weight", "n_ff n_embd", "up")),
        *moe_layers(
            LAYER,
            tensor("ffn_gate_inp.weight", "n_expert n_embd", "router"),
            tensor("ffn_up_shexp.weight", "4 n_embd", "shared.up"),  # a shared expert
            tensor(  # every layout of gate and up of all experts
                "ffn_gate_exps.weight",
                "n_expert n_ff_exp n_embd",
                "experts.{xid}.gate",
                fused("experts.gate_up", GATE),
                transposed(fused("experts.gate_up_turned", GATE)),
                interleaved("experts.gate_up_by_turns", GATE),
                transposed(interleaved("experts.gate_up_by_turns_turned", GATE)),
            ),
            tensor(
                "ffn_up_exps.weight",
                "n_expert n_ff_exp n_embd",
                "experts.{xid}.up",
                fused("experts.gate_up", UP),
                fused(transposed("experts.gate_up_turned"), UP),
                interleaved("experts.gate_up_by_turns", UP),
                interleaved(transposed("experts.gate_up_by_turns_turned"), UP),
            ),
            tensor(
                "ffn_down_exps.weight",
                "n_expert n_embd n_ff_exp",
                "experts.down",
                transposed("experts.down_turned"),
            ),
            tensor(
                "ffn_gate_exps.bias", "n_expert n_ff_exp", interleaved("bias", GATE, axis=-1), optional=True
            ),
            tensor("ffn_up_exps.bias", "n_expert n_ff_exp", interleaved("bias", UP, axis=-1), optional=True),
        ),
    ),
)


def random(*shape: int) -> Any:
    return np.random.default_rng(len(shape) * 7 + sum(shape)).standard_normal(shape, dtype=np.float32)


TRUTH = {
    "gate": random(E, FX, D),
    "up": random(E, FX, D) + 1,
    "down": random(E, D, FX),
    "gate_bias": random(E, FX),
    "up_bias": random(E, FX) + 1,
}


def by_turns(gate: Any, up: Any) -> Any:
    """[..., 2F]: gate 0, up 0, gate 1, up 1, ..."""
    found = np.empty((*gate.shape[:-1], 2 * gate.shape[-1]), np.float32)
    found[..., 0::2], found[..., 1::2] = gate, up
    return found


def gate_up_stored(layout: str) -> dict[str, Any]:
    gate, up = TRUTH["gate"], TRUTH["up"]
    turned_gate, turned_up = gate.transpose(0, 2, 1), up.transpose(0, 2, 1)  # [E, D, F]
    if layout == "each":
        return {f"experts.{xid}.gate": gate[xid] for xid in range(E)} | {
            f"experts.{xid}.up": up[xid] for xid in range(E)
        }
    return {
        "fused": {"experts.gate_up": np.concatenate([gate, up], axis=1)},
        "turned": {"experts.gate_up_turned": np.concatenate([turned_gate, turned_up], axis=2)},  # Llama 4
        "by_turns": {"experts.gate_up_by_turns": by_turns(turned_gate, turned_up).transpose(0, 2, 1)},
        "by_turns_turned": {"experts.gate_up_by_turns_turned": by_turns(turned_gate, turned_up)},  # GPT-OSS
    }[layout]


def write_invented(
    folder: Path, layout: str = "turned", moe: tuple[int, ...] = (1, 3), **config: Any
) -> Path:
    stored = {"embed": random(V, D)}
    for bid in range(5):
        layer = {"q": random(2 * HD, D), "q_bias": random(2 * HD), "v": random(HD, D)}
        if bid in moe:
            layer |= {"router": random(E, D), "shared.up": random(FS, D)} | gate_up_stored(layout)
            layer |= {"experts.down_turned": TRUTH["down"].transpose(0, 2, 1)} if "turned" in layout else {}
            layer |= {} if "turned" in layout else {"experts.down": TRUTH["down"]}
            layer |= {"bias": by_turns(TRUTH["gate_bias"], TRUTH["up_bias"])}
        else:
            layer |= {"up": random(F, D)}
        stored |= {f"layers.{bid}.{name}": one for name, one in layer.items()}
    pico.write_checkpoint(folder, stored, FIELDS | INVENTED | config, n_shards=2)
    return folder


# --- the language ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["each", "fused", "turned", "by_turns", "by_turns_turned"])
def test_every_layout_gives_the_same_experts(tmp_path: Path, layout: str) -> None:
    checkpoint = Checkpoint(write_invented(tmp_path, layout), FAMILY)
    specs = {spec.name: spec for spec in checkpoint.specs()}
    for bid in (1, 3):
        for name in ("gate", "up", "down"):
            spec = specs[f"blk.{bid}.ffn_{name}_exps.weight"]
            assert spec.shape == TRUTH[name].shape and spec.qtype is QType.F32
            for xid in range(E):
                whole = checkpoint.read(spec, xid)
                np.testing.assert_array_equal(whole, TRUTH[name][xid])
                assert whole.flags.c_contiguous
                np.testing.assert_array_equal(checkpoint.read(spec, xid, (1, 5)), TRUTH[name][xid, 1:5])
        for name in ("gate", "up"):
            bias = specs[f"blk.{bid}.ffn_{name}_exps.bias"]
            np.testing.assert_array_equal(checkpoint.read(bias), TRUTH[f"{name}_bias"])
        np.testing.assert_array_equal(checkpoint.read(specs[f"blk.{bid}.ffn_up_shexp.weight"]), random(FS, D))
    steps = {name: checkpoint.row_step(specs[f"blk.1.ffn_{name}_exps.weight"]) for name in ("gate", "down")}
    assert steps == ({"gate": FX, "down": D} if "turned" in layout else {"gate": 1, "down": 1})


def test_turned_permuted_and_computed(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_invented(tmp_path), FAMILY)
    specs = {spec.name: spec for spec in checkpoint.specs()}
    np.testing.assert_array_equal(checkpoint.read(specs["blk.2.attn_v.weight"]), random(HD, D).T)
    old, old_bias = random(2 * HD, D), random(2 * HD)
    order = [head * HD + half * HD // 2 + i for head in range(2) for i in range(HD // 2) for half in range(2)]
    np.testing.assert_array_equal(checkpoint.read(specs["blk.0.attn_q.weight"]), old[order])
    np.testing.assert_array_equal(checkpoint.read(specs["blk.0.attn_q.weight"], rows=(3, 6)), old[order][3:6])
    np.testing.assert_array_equal(checkpoint.read(specs["blk.0.attn_q.bias"]), old_bias[order][None])
    assert checkpoint.row_step(specs["blk.0.attn_q.weight"]) == HD
    assert checkpoint.row_step(specs["blk.0.attn_q.bias"]) == 1
    before = checkpoint.bytes_read
    computed = checkpoint.read(specs["half.weight"])
    np.testing.assert_array_equal(computed, np.full((1, 2), 0.5, np.float32))
    computed[:] = 0  # the caller's own
    assert checkpoint.read(specs["half.weight"])[0, 0] == 0.5
    assert checkpoint.bytes_read == before and checkpoint.row_step(specs["half.weight"]) == 1


@pytest.mark.parametrize(
    ("lead", "step", "moe"),
    [(0, 1, (0, 1, 2, 3, 4)), (0, 2, (1, 3)), (1, 1, (1, 2, 3, 4)), (3, 1, (3, 4)), (2, 2, (3,)), (5, 1, ())],
)
def test_which_layers_have_experts(tmp_path: Path, lead: int, step: int, moe: tuple[int, ...]) -> None:
    checkpoint = Checkpoint(write_invented(tmp_path, moe=moe, lead=lead, step=step), FAMILY)
    names = {spec.name for spec in checkpoint.specs()}
    assert {bid for bid in range(5) if f"blk.{bid}.ffn_gate_inp.weight" in names} == set(moe)
    assert {bid for bid in range(5) if f"blk.{bid}.ffn_up.weight" in names} == set(range(5)) - set(moe)


def test_layers_laid_out_otherwise_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"layers\.2\.router"):
        Checkpoint(write_invented(tmp_path, moe=(1, 3), lead=1, step=1), FAMILY)


def test_two_layouts_at_once_are_refused(tmp_path: Path) -> None:
    folder = write_invented(tmp_path, "fused")
    tensors = pico.read_checkpoint(folder) | {"layers.1.experts.0.gate": TRUTH["gate"][0]}
    pico.write_checkpoint(folder, tensors, FIELDS | INVENTED, n_shards=2)
    with pytest.raises(CheckpointError, match=r"'layers\.1\.experts\.0\.gate' would not be read"):
        Checkpoint(folder, FAMILY)


@pytest.mark.parametrize("config", [{"expert_width": 0}, {"expert_width": None}, {"lead": -1}, {"step": "2"}])
def test_dimensions_of_a_family_are_checked(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"^config\.json: "):
        Checkpoint(write_invented(tmp_path, **config), FAMILY)


def test_expressions() -> None:
    values = {"n_head": 4, "head_dim": 16, "hidden_size": 100}
    assert evaluate("n_head*head_dim", values) == 64
    assert evaluate("2*n_head * head_dim", values) == 128
    assert evaluate("hidden_size/n_head", values) == 25
    with pytest.raises(KeyError):
        evaluate("n_ff", values)


# --- the families that are declared ----------------------------------------------------------------------------------


NEED_SETTINGS = (
    "BailingMoeForCausalLM",
    "BailingMoeV2ForCausalLM",
    "DbrxForCausalLM",
)
"""Classes without defaults for all settings that a GGUF needs."""

NO_DEFAULTS = {
    "DeepseekV2ForCausalLM": {"num_experts_per_tok": 2},
    "Glm4MoeForCausalLM": {"head_dim": 128},
}
"""Settings for which transformers has no default, or none that fits the others."""


def test_every_family_says_what_it_needs() -> None:
    import pkgutil

    import quantize.families as package

    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert modules == set(FAMILIES) | {
        "language",
        "stored",
        "limits",
        "usual",
        "expressions",
        "graph",
        "keys",
        "key_table",
        "cache",
        "placement",
        "config",
        "binding",
        "rope",
        "roles",
        "fit",
        "nextn",
        "stored_names",
        "vocab_rules",
    }
    assert "MixtralForCausalLM" in supported_architectures()
    for name in supported_architectures():
        family = family_of({"architectures": [name]})
        assert name in family.architectures
        if name in NEED_SETTINGS:
            continue
        hparams = read_config(family, complete_config(family, NO_DEFAULTS.get(name, {})), 32000).hparams
        assert hparams.arch == family.arch and hparams.n_layer >= 16
        assert bool(hparams.n_expert) == any(tensor.where == "moe" for tensor in family.tensors)


@pytest.mark.parametrize(
    "architectures", [None, [], "MixtralForCausalLM", ["Gemma3ForCausalLM"], [7], ["x\n"]]
)
def test_an_unsupported_architecture(architectures: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        family_of({"architectures": architectures})
    assert "supported: LlamaForCausalLM" in str(caught.value) and "MixtralForCausalLM" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("architecture", ["MistralForCausalLM", "LlamaForCausalLM"])
@pytest.mark.parametrize("head_dim", [None, 8])
def test_dense_donors(tmp_path: Path, architecture: str, head_dim: int | None) -> None:
    folder = pico.pico_dense(tmp_path, architecture=architecture, head_dim=head_dim, tokenizer=False)
    checkpoint = open_checkpoint(folder)
    stored = pico.read_checkpoint(folder)
    specs = {spec.name: spec for spec in checkpoint.specs()}
    assert checkpoint.hparams.arch == "llama" and checkpoint.hparams.n_expert == 0
    # transformers fills head_dim in for these two classes, so that the converter writes key_length
    assert checkpoint.hparams.head_dim == (head_dim or 16)
    assert KeyValue.u32("llama.attention.key_length", head_dim or 16) in checkpoint.arch_keys()
    assert len(specs) == 3 + 2 * 9
    for name in ("gate", "up", "down"):
        expected = stored[f"model.layers.1.mlp.{name}_proj.weight"]
        np.testing.assert_array_equal(checkpoint.read(specs[f"blk.1.ffn_{name}.weight"]), expected)
    assert checkpoint.bytes_read < checkpoint.n_bytes == sum(one.nbytes for one in stored.values())


def test_biases_of_llama(tmp_path: Path) -> None:
    folder = pico.pico_dense(tmp_path, architecture="LlamaForCausalLM", biases=True, tokenizer=False)
    checkpoint = open_checkpoint(folder)
    stored = pico.read_checkpoint(folder)
    specs = {spec.name: spec for spec in checkpoint.specs()}
    assert len(specs) == 3 + 2 * (9 + 7)
    for letter, heads in (("q", 4), ("k", 2), ("v", 0)):
        old = stored[f"model.layers.0.self_attn.{letter}_proj.bias"]
        order = [head * 16 + half * 8 + i for head in range(heads) for i in range(8) for half in range(2)]
        expected = old[order] if order else old
        np.testing.assert_array_equal(checkpoint.read(specs[f"blk.0.attn_{letter}.bias"]), expected[None])
    assert specs["blk.1.ffn_down.bias"].shape == (64,)


def test_biases_of_mistral_are_unread(tmp_path: Path) -> None:
    folder = pico.pico_dense(tmp_path, biases=True, tokenizer=False)
    with pytest.raises(CheckpointError, match=r"proj\.bias' and 13 more would not be read"):
        open_checkpoint(folder)


# --- config.json -----------------------------------------------------------------------------------------------------

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CONFIGS: list[dict[str, Any]] = [
    {},
    {"num_hidden_layers": 2, "rope_theta": 500000.0, "num_key_value_heads": 32, "head_dim": 64},
    {"hidden_size": 256, "num_attention_heads": 4, "rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "max_position_embeddings": 131072},
    {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e5, "beta_fast": 16.0}},
    {"rope_theta": 3e5, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 123.0}, "sliding_window": 77},
    {"num_experts": 4},
]


WITHOUT_CLASS = ("bailingmoe", "bailingmoe2", "dbrx")
"""Families that have no class in transformers, or one with settings of other names."""


@pytest.mark.parametrize("raw", CONFIGS, ids=lambda raw: "-".join(raw) or "empty")
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in WITHOUT_CLASS])
def test_config_is_completed_as_transformers_does(tmp_path: Path, name: str, raw: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    declared: Family = import_module(f"quantize.families.{name}").FAMILY
    family = replace(declared, limits=())  # of some, llama.cpp could not run the model
    if name == "phimoe":  # whose class wants these two, and nobody else
        scales = {"short_mscale": 1.25, "long_mscale": 1.25}
        raw = {key: {**value, **scales} if isinstance(value, dict) else value for key, value in raw.items()}
    config = {"architectures": [family.architectures[0]], "model_type": family.defaults["model_type"]} | raw
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    expected = transformers.AutoConfig.from_pretrained(tmp_path).to_dict()
    if expected.get("sliding_window") == 0:  # Qwen2-MoE's word for none
        expected["sliding_window"] = None
    found = complete_config(family, config)
    assert {key: found[key] for key in raw if key in expected} == {
        key: expected[key] for key in raw if key in expected
    }
    expected = expected["rope_parameters"] | expected  # the part of heads that is rotated is only there
    for key in [*family.defaults, *family.if_null, "rope_parameters"]:
        assert found[key] == expected[key], key


def facts_of(**raw: Any) -> ConfigFacts:
    family = family_of({"architectures": ["MixtralForCausalLM"]})
    return read_config(family, complete_config(family, raw), 32000)


def hparams_of(**raw: Any) -> tuple[Hparams, list[str]]:
    facts = facts_of(**raw)
    return facts.hparams, [str(remark) for remark in facts.remarks]


def test_hparams_of_an_empty_mixtral_config() -> None:
    found, remarks = hparams_of()
    expected = Hparams(
        arch="llama",
        n_layer=32,
        n_ctx_train=131072,
        n_embd=4096,
        n_ff=14336,
        n_head=32,
        n_head_kv=8,
        n_vocab=32000,
        head_dim=128,
        rms_norm_eps=1e-5,
        rope_freq_base=1e6,
        n_expert=8,
        n_expert_used=2,
    )
    assert found == expected and remarks == []


def test_head_dim_may_be_null_or_given() -> None:
    lengths = {"llama.attention.key_length", "llama.attention.value_length"}
    assert not lengths & {kv.key for kv in facts_of(head_dim=None).keys}
    found = facts_of(head_dim=64)
    assert found.hparams.head_dim == found.hparams.head_dim_v == 64
    assert {kv.key: kv.value for kv in found.keys if kv.key in lengths} == dict.fromkeys(lengths, 64)


def test_a_sliding_window_is_left_out_and_that_is_said() -> None:
    assert "4096 tokens" in hparams_of(sliding_window=4096)[1][0]
    assert hparams_of(sliding_window=131072)[1] == []


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "default"}, RopeScaling()),
        ({"type": "linear", "factor": 2}, RopeScaling(kind="linear", factor=2.0)),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096},
            RopeScaling(kind="yarn", factor=4.0, n_ctx_orig=4096),
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "extrapolation_factor": 0.5, "attn_factor": 1.5}
            | {"beta_fast": 16, "beta_slow": 2},
            RopeScaling("yarn", 4.0, 131072, ext_factor=0.5, attn_factor=1.5, beta_fast=16.0, beta_slow=2.0),
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "attention_factor": 2.0},
            RopeScaling("yarn", 4.0, 131072, None, 2.0),
        ),
        ({"rope_type": "longrope", "factor": 4.0}, RopeScaling(kind="longrope", n_ctx_orig=131072)),
        (
            {"type": "su", "original_max_position_embeddings": 4096},
            RopeScaling(kind="longrope", n_ctx_orig=4096),
        ),
        (
            {"rope_type": "llama3", **LLAMA3},
            RopeScaling("llama3", 8.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0),
        ),
    ],
)
def test_rope_scaling(rope: dict[str, Any], expected: RopeScaling) -> None:
    for key in ("rope_scaling", "rope_parameters"):
        found, remarks = hparams_of(**{key: rope})
        assert found.rope_scaling == expected and remarks == []


def test_dynamic_scaling_is_left_out_and_that_is_said() -> None:
    found, remarks = hparams_of(rope_scaling={"type": "dynamic", "factor": 2.0})
    assert found.rope_scaling == RopeScaling() and "dynamic" in remarks[0]


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"hidden_act": None}, "hidden_act None is not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, "original"),
        ({"num_local_experts": 0}, "num_local_experts"),
        ({"num_local_experts": 1025}, "outside of 1..1024"),
        ({"num_local_experts": 4, "num_experts_per_tok": 5}, "5 experts per token, but there are only 4"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok"),
        ({"num_hidden_layers": 513}, "outside of 1..512"),
        ({"num_hidden_layers": True}, "whole number"),
        ({"hidden_size": "4096"}, "hidden_size must be a whole number, but is '4096'"),
        ({"hidden_size": 4096.0}, "whole number"),
        ({"hidden_size": None}, "whole number"),
        ({"hidden_size": 10**400}, "outside"),
        ({"hidden_size": -1}, "outside"),
        ({"hidden_size": 4097}, "no multiple of 32 heads"),
        ({"num_attention_heads": 30}, "30 attention heads cannot share 8"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"head_dim": 63}, "odd"),
        ({"head_dim": [64]}, "head_dim"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
        ({"rms_norm_eps": True}, "rms_norm_eps"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_theta": "x\ny"}, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": "linear"}, "one object"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "one object"),
        ({"rope_scaling": {"type": "mystery"}}, "'mystery' is not supported"),
        ({"rope_scaling": {"type": ["yarn"]}}, "is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "factor must be a number above 0"),
        ({"rope_scaling": {"type": "yarn", "factor": 1e400}}, "factor must be"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": "x"}}, "beta_fast must be"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "original_max_position_embeddings": 0.5}}, "tokens"),
        ({"rope_scaling": {"type": "llama3", **LLAMA3, "low_freq_factor": 4.0}}, "equals"),
    ],
)
def test_a_config_that_cannot_be(raw: dict[str, Any], fault: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        hparams_of(**raw)
    message = str(caught.value)
    assert (
        fault in message
        and message.startswith("config.json: ")
        and message.isprintable()
        and len(message) < 400
    )


def test_null_key_value_heads_in_mixtral() -> None:
    assert hparams_of(num_key_value_heads=None)[0].n_head_kv == 32


def test_heads_that_cannot_be_derived() -> None:
    family = family_of({"architectures": ["LlamaForCausalLM"]})
    with pytest.raises(CheckpointError, match="head_dim is missing and cannot be derived"):
        complete_config(family, {"num_attention_heads": 0})


# --- llama3's tensor -------------------------------------------------------------------------------------------------


def converter_rope_factors(base: float, dim: int, rope: RopeScaling) -> Any:
    """In torch, element by element, what llama.cpp's converter computes (`conversion/llama.py`)."""
    import torch

    found: list[Any] = []
    for freq in 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)):
        wavelen = 2 * math.pi / freq
        if wavelen < rope.n_ctx_orig / rope.high_freq_factor:
            found.append(1)
        elif wavelen > rope.n_ctx_orig / rope.low_freq_factor:
            found.append(rope.factor)
        else:
            band = rope.high_freq_factor - rope.low_freq_factor
            smooth = (rope.n_ctx_orig / wavelen - rope.low_freq_factor) / band
            found.append(1 / ((1 - smooth) / rope.factor + smooth))
    return torch.tensor(found, dtype=torch.float32).numpy()


@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("base", [10000.0, 500000.0])
def test_rope_freqs_are_the_converters(base: float, head_dim: int, factor: float) -> None:
    rope = RopeScaling("llama3", factor, 8192, low_freq_factor=1.0, high_freq_factor=4.0)
    hparams = replace(hparams_of()[0], head_dim=head_dim, rope_freq_base=base, rope_scaling=rope)
    found = rope_freqs(hparams)
    assert found is not None and found.dtype == np.float32
    assert found[0] == 1.0 and found[-1] == factor and len(set(found.tolist())) > 2
    # torch's power may be one unit in the last place off on another machine
    np.testing.assert_array_max_ulp(found, converter_rope_factors(base, head_dim, rope), maxulp=8)


def test_rope_freqs_is_a_tensor_of_llama3_alone(tmp_path: Path) -> None:
    plain = open_checkpoint(pico.pico_mixtral(tmp_path / "plain", tokenizer=False))
    assert "rope_freqs.weight" not in {spec.name for spec in plain.specs()}
    scaling = {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 64}
    folder = pico.pico_mixtral(tmp_path / "llama3", tokenizer=False, rope_scaling=scaling)
    checkpoint = open_checkpoint(folder)
    spec = next(spec for spec in checkpoint.specs() if spec.name == "rope_freqs.weight")
    assert spec.shape == (8,) and spec.qtype is QType.F32
    found = checkpoint.read(spec)
    assert found.shape == (1, 8) and found[0, 0] == 1.0 and found[0, -1] == 8.0
    assert checkpoint.n_bytes == plain.n_bytes


# --- configs of strangers --------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = sorted(set(family_of({"architectures": ["MixtralForCausalLM"]}).defaults) | {"rope_theta", "head_dim"})
ROPE_KEYS = (
    "type",
    "rope_type",
    "factor",
    "rope_theta",
    "low_freq_factor",
    "original_max_position_embeddings",
)
ROPES = st.dictionaries(
    st.sampled_from(ROPE_KEYS), SCALARS | st.sampled_from(["llama3", "yarn", "linear", "su"]), max_size=4
)


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(supported_architectures()),
    raw=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3),
    rope=st.none()
    | st.fixed_dictionaries({"rope_scaling": ROPES})
    | st.fixed_dictionaries({"rope_parameters": VALUES}),
)
def test_any_config_ends_in_hparams_or_in_our_error(
    name: str, raw: dict[str, Any], rope: dict[str, Any] | None
) -> None:
    family = family_of({"architectures": [name]})
    try:
        facts = read_config(family, complete_config(family, raw | (rope or {})), 32000)
        rope_freqs(facts.hparams)
    except CheckpointError as refused:
        assert str(refused).isprintable() and len(str(refused)) < 500
    else:
        assert facts.hparams.n_head * facts.hparams.head_dim > 0
        assert all(str(remark).isprintable() for remark in facts.remarks)
