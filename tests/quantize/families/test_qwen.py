"""Qwen2, Qwen3, their mixtures of experts and OLMoE: tensors, keys, what their graphs do not follow, and logits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest
import torch
from golden_keys import record
from pico_qwen import ARCHITECTURES, N_EXPERT, WITH_EXPERTS, pico_qwen
from places import GOLDEN
from qwen_cases import CASES, YARN
from streamed import streamed_logits
from torch.nn import functional

from gguf_export.checking.doctor import doctor
from gguf_export.checking.structure import check_structure
from gguf_export.writing.export import prepare, run
from quantize.exceptions import CheckpointError
from quantize.families import families_of
from quantize.families.fit import tensor_misfits
from quantize.recipes.ftypes import ftype
from quantize.recipes.left_alone import converted_type
from quantize.recipes.recipe import Recipe
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.sources.gguf_file import GGUFFile

KEYS = json.loads((GOLDEN / "keys_qwen.json").read_text(encoding="utf-8"))

IN_LAYER = {  # GGUF name -> stored name, of what is stored as it is
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "ffn_gate_inp.weight": "mlp.gate.weight",
    "ffn_gate_shexp.weight": "mlp.shared_expert.gate_proj.weight",
    "ffn_up_shexp.weight": "mlp.shared_expert.up_proj.weight",
    "ffn_down_shexp.weight": "mlp.shared_expert.down_proj.weight",
    "ffn_gate_inp_shexp.weight": "mlp.shared_expert_gate.weight",
}
OF_MODEL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def values_of(checkpoint: Checkpoint) -> dict[str, list[Any]]:
    """All tensors as they are read, a matrix per expert."""
    return {
        spec.name: [checkpoint.read(spec, xid) for xid in range(spec.n_matrix)] for spec in checkpoint.specs()
    }


def expected_of(stored: dict[str, Any], n_layer: int, n_expert: int) -> dict[str, list[Any]]:
    """The same, from the stored tensors of the layout of one matrix per expert."""
    found = {name: [stored[old]] for name, old in OF_MODEL.items() if old in stored}
    for bid in range(n_layer):
        for name, old in IN_LAYER.items():
            whole = f"model.layers.{bid}.{old}"
            if whole in stored:
                found[f"blk.{bid}.{name}"] = [stored[whole]]
        for part in ("gate", "up", "down") if n_expert else ():
            found[f"blk.{bid}.ffn_{part}_exps.weight"] = [
                stored[f"model.layers.{bid}.mlp.experts.{xid}.{part}_proj.weight"] for xid in range(n_expert)
            ]
    return found


@pytest.mark.parametrize("layout", ["split", "fused", "fused.weight"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_tensor_has_its_values_in_each_layout(tmp_path: Path, name: str, layout: Any) -> None:
    truth = pico.read_checkpoint(pico_qwen(tmp_path / "split", name))
    checkpoint = open_checkpoint(pico_qwen(tmp_path / "model", name, layout=layout, n_shards=2))
    found = values_of(checkpoint)
    expected = expected_of(truth, 2, N_EXPERT if name in WITH_EXPERTS else 0)
    assert found.keys() == expected.keys()
    for tensor, matrices in expected.items():
        assert len(found[tensor]) == len(matrices), tensor
        for mine, other in zip(found[tensor], matrices, strict=True):
            np.testing.assert_array_equal(mine, other.reshape(mine.shape), tensor)
    n_stored = sum(values.nbytes for values in truth.values())
    assert checkpoint.bytes_read == checkpoint.n_bytes == n_stored and checkpoint.hparams.rope_neox


@pytest.mark.parametrize("case", CASES)
def test_keys_and_tensors_are_those_of_the_converter(tmp_path: Path, case: str) -> None:
    name, options = CASES[case]
    checkpoint = open_checkpoint(pico_qwen(tmp_path, name, **options))
    found = [record(kv.key, kv.type, kv.sub_type, kv.value) for kv in checkpoint.arch_keys()]
    assert found == KEYS[case]["keys"]
    specs = {spec.name: [converted_type(spec).name, list(spec.shape)] for spec in checkpoint.specs()}
    assert specs == KEYS[case]["tensors"]
    assert list(tensor_misfits(checkpoint.hparams, checkpoint.specs())) == []


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_file_has_the_dimensions_of_its_checkpoint(tmp_path: Path, name: str) -> None:
    model = pico_qwen(tmp_path / "Pico", name, tokenizer=True)
    for qtype in ("BF16", "Q8_0"):
        (made,) = run(prepare(open_checkpoint(model), [Recipe(ftype(qtype))], tmp_path)).files
        file = GGUFFile(made.path)
        hparams = open_checkpoint(model).hparams
        eps = float(np.float32(hparams.rms_norm_eps))
        assert file.hparams == replace(hparams, rms_norm_eps=eps)
        shapes = {spec.name: spec.shape for spec in open_checkpoint(model).specs()}
        assert {spec.name: spec.shape for spec in file.specs()} == shapes
        assert list(check_structure(file)) == []


def test_old_files_lack_the_width_of_experts(tmp_path: Path) -> None:
    """llama.cpp then takes n_ff / n_expert_used for experts, n_ff for the shared one (src/models/qwen2moe.cpp)."""
    model = pico_qwen(tmp_path / "Pico", "qwen2moe", tokenizer=True)
    (made,) = run(prepare(open_checkpoint(model), [Recipe(ftype("F16"))], tmp_path)).files
    file = GGUFFile(made.path)
    for key in ("expert_feed_forward_length", "expert_shared_feed_forward_length"):
        file.keys.pop(f"qwen2moe.{key}")
    assert (file.hparams.n_ff_exp, file.hparams.n_ff_shexp) == (96 // 2, 96)


# -- what the graphs do not follow


def warnings(path: Path) -> list[str]:
    return [str(finding) for finding in doctor(path) if finding.severity != "info"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_of_a_usual_checkpoint_nothing_is_said(tmp_path: Path, name: str) -> None:
    model = pico_qwen(tmp_path, name, tokenizer=True)
    assert open_checkpoint(model).remarks == () and warnings(model) == []


LOST = [
    (
        "qwen2moe",
        {"norm_topk_prob": True},
        "norm_topk_prob is True, but llama.cpp's graph of qwen2moe does not",
    ),
    (
        "qwen3moe",
        {"norm_topk_prob": False},
        "norm_topk_prob is False, but llama.cpp's graph of qwen3moe divides",
    ),
    ("olmoe", {"norm_topk_prob": True}, "norm_topk_prob is True, but llama.cpp's graph of olmoe does not"),
    (
        "olmoe",
        {"rms_norm_eps": 1e-6},
        "rms_norm_eps is 1e-06, but llama.cpp's graph of olmoe norms with 1e-05",
    ),
    ("olmoe", {"clip_qkv": 8.0}, "clip_qkv is 8.0, but llama.cpp's graph of olmoe does not limit queries"),
]


@pytest.mark.parametrize(("name", "config", "message"), LOST)
def test_a_lost_setting_is_said(tmp_path: Path, name: str, config: dict[str, Any], message: str) -> None:
    model = pico_qwen(tmp_path, name, tokenizer=True, **config)
    (remark,) = open_checkpoint(model).remarks
    assert remark.message.startswith(message) and remark.place == "config.json"
    (said,) = warnings(model)
    assert said.startswith(f"warning: config.json: {message}")


def test_a_sliding_window_counts_where_it_is_used(tmp_path: Path) -> None:
    (remark,) = open_checkpoint(pico_qwen(tmp_path, "qwen2", use_sliding_window=True)).remarks
    assert "sliding window of 128 tokens is left out" in remark.message


FATAL = [
    (
        "qwen2moe",
        {"mlp_only_layers": [0]},
        "mlp_only_layers is [0], but llama.cpp's graph of qwen2moe has experts",
    ),
    (
        "qwen3moe",
        {"mlp_only_layers": [1]},
        "mlp_only_layers is [1], but llama.cpp's graph of qwen3moe has experts",
    ),
    (
        "qwen3moe",
        {"decoder_sparse_step": 2},
        "decoder_sparse_step is 2, but llama.cpp's graph of qwen3moe has",
    ),
    ("qwen3", {"attention_bias": True}, "attention_bias is True, but llama.cpp's graph of qwen3 has no bias"),
    ("olmoe", {"attention_bias": True}, "attention_bias is True, but llama.cpp's graph of olmoe has no bias"),
    (
        "olmoe",
        {"num_key_value_heads": 2},
        "num_key_value_heads is 2, but llama.cpp's graph of olmoe has a key",
    ),
    (
        "qwen2",
        {"head_dim": 8},
        "head_dim is 8, but llama.cpp's graph of qwen2 divides the width among the heads",
    ),
    ("qwen2", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
]


@pytest.mark.parametrize(("name", "config", "message"), FATAL)
def test_what_llama_cpp_cannot_run_is_refused(
    tmp_path: Path, name: str, config: dict[str, Any], message: str
) -> None:
    model = pico_qwen(tmp_path, name, tokenizer=True, **config)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(model)
    said = str(caught.value)
    assert said.startswith("config.json: " + message) and said.isprintable()
    assert warnings(model) == [f"error: {said}"]


@pytest.mark.parametrize("name", ["qwen2moe", "olmoe"])
def test_an_output_matrix_is_needed(tmp_path: Path, name: str) -> None:
    model = pico_qwen(tmp_path, name, tied=True, tokenizer=True)
    with pytest.raises(
        CheckpointError, match=r"output\.weight: .*lacks tensor 'lm_head\.weight'.*store a copy"
    ):
        open_checkpoint(model)
    assert len(warnings(model)) == 1 and "store a copy of the token embedding" in warnings(model)[0]


def test_a_broken_config_is_refused_as_such(tmp_path: Path) -> None:
    model = pico_qwen(tmp_path, "qwen2", hidden_size="wide", head_dim=16)
    with pytest.raises(CheckpointError, match="hidden_size must be a whole number, but is 'wide'"):
        open_checkpoint(model)


@pytest.mark.parametrize("name", WITH_EXPERTS)
def test_a_missing_expert_is_named(tmp_path: Path, name: str) -> None:
    model = pico_qwen(tmp_path, name)
    left = {
        stored: values
        for stored, values in pico.read_checkpoint(model).items()
        if ".experts.3." not in stored
    }
    pico.write_checkpoint(model, left, json.loads((model / "config.json").read_text()))
    with pytest.raises(CheckpointError, match=r"lacks tensor 'model\.layers\.0\..*experts\.3.*expert 3 of 5"):
        open_checkpoint(model)


def test_graphs_normalize_as_their_limits_say() -> None:
    """One fact is said twice, for the pass and for people."""
    for arch in WITH_EXPERTS:
        (family,) = families_of(arch)
        (limit,) = (limit for limit in family.limits if limit.setting == "norm_topk_prob")
        assert limit.values == (family.graph.normalized,)


# -- wrapped in a model that sees


SENSES = {
    "vision_model.embeddings.patch_embedding.weight": np.ones((4, 4), np.float32),
    "mlp1.0.weight": np.ones(4, np.float32),
    "model.visual.blocks.0.attn.qkv.weight": np.ones((4, 4), np.float32),
}


@pytest.mark.parametrize("prefix", ["language_model.", "model.language_model."])
@pytest.mark.parametrize("name", ["qwen2", "qwen3moe"])
def test_the_text_model_of_a_wrapper(tmp_path: Path, name: str, prefix: str) -> None:
    """InternVL keeps it under `language_model.`, its config as `llm_config`."""
    plain = pico_qwen(tmp_path / "plain", name, layout="fused")
    config = json.loads((plain / "config.json").read_text())
    tensors = {
        name if prefix.startswith("model.") and name == "lm_head.weight"
        else prefix + (name.removeprefix("model.") if prefix.startswith("model.") else name): values
        for name, values in pico.read_checkpoint(plain).items()
    }  # fmt: skip
    whole = {"architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "llm_config": config}
    pico.write_checkpoint(tmp_path / "whole", tensors | SENSES, whole)
    one, other = open_checkpoint(plain), open_checkpoint(tmp_path / "whole")
    assert one.specs() == other.specs() and one.arch_keys() == other.arch_keys()
    for spec in one.specs():
        np.testing.assert_array_equal(one.read(spec, spec.n_matrix - 1), other.read(spec, spec.n_matrix - 1))
    (remark,) = other.remarks
    assert remark.message.startswith("3 stored tensors are ignored")


# -- logits


@pytest.fixture(scope="module")
def tokens() -> Any:
    return np.random.default_rng(5).integers(0, 320, (2, 24)).astype(np.int32)


class Plain:
    """The same models, written out: no streams, no cache, one chunk at a time, all experts computed."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = {
            name: torch.from_numpy(pico.to_f32(values))
            for name, values in pico.read_checkpoint(folder).items()
        }

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        eps = self.config["rms_norm_eps"]
        normed: torch.Tensor = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
        return normed * self.weights[name]

    def product(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self.weights[name + ".weight"], self.weights.get(name + ".bias")
        y: torch.Tensor = functional.linear(x, weight, bias)
        return y

    def network(self, x: torch.Tensor, prefix: str) -> torch.Tensor:
        gate, up = self.product(x, prefix + "gate_proj"), self.product(x, prefix + "up_proj")
        return self.product(gate * gate.sigmoid() * up, prefix + "down_proj")

    def attention(self, x: torch.Tensor, prefix: str) -> torch.Tensor:
        n_head, n_kv = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        n_pos = len(x)
        parts = []
        for part, heads in (("q", n_head), ("k", n_kv), ("v", n_kv)):
            y = self.product(x, f"{prefix}{part}_proj")
            norm = f"{prefix}{part}_norm.weight"
            over_heads = norm in self.weights and len(self.weights[norm]) == y.shape[-1]  # OLMoE
            y = self.norm(y, norm) if over_heads else y
            y = y.reshape(n_pos, heads, -1)
            y = self.norm(y, norm) if norm in self.weights and not over_heads else y
            parts.append(y if part == "v" else self.rotated(y))
        q, k, v = parts
        k, v = (one.repeat_interleave(n_head // n_kv, dim=1) for one in (k, v))
        scores = torch.einsum("phd,qhd->hpq", q, k) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(torch.ones(n_pos, n_pos).triu(1).bool(), -torch.inf)
        return self.product(
            torch.einsum("hpq,qhd->phd", scores.softmax(-1), v).reshape(n_pos, -1), prefix + "o_proj"
        )

    def rotated(self, x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        freqs = self.config["rope_theta"] ** (-torch.arange(half) / half)
        angles = torch.arange(len(x))[:, None, None] * freqs
        first, second = x[..., :half], x[..., half:]
        return torch.cat(
            [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1
        )

    def feed_forward(self, x: torch.Tensor, prefix: str) -> torch.Tensor:
        if prefix + "gate.weight" not in self.weights:
            return self.network(x, prefix)
        probs = self.product(x, prefix + "gate").softmax(-1)
        best = probs.topk(self.config["num_experts_per_tok"])
        weights = torch.zeros_like(probs).scatter(-1, best.indices, best.values)
        if self.config["norm_topk_prob"]:
            weights = weights / weights.sum(-1, keepdim=True)
        y = sum(
            (
                weights[:, [xid]] * self.network(x, f"{prefix}experts.{xid}.")
                for xid in range(probs.shape[-1])
            ),
            torch.zeros_like(x),
        )
        if prefix + "shared_expert_gate.weight" in self.weights:
            y = y + self.product(x, prefix + "shared_expert_gate").sigmoid() * self.network(
                x, prefix + "shared_expert."
            )
        return y

    def logits(self, tokens: Any) -> torch.Tensor:
        embedding = self.weights["model.embed_tokens.weight"]
        x = embedding[torch.from_numpy(tokens).long()]
        for bid in range(self.config["num_hidden_layers"]):
            layer = f"model.layers.{bid}."
            x = x + self.attention(self.norm(x, layer + "input_layernorm.weight"), layer + "self_attn.")
            x = x + self.feed_forward(self.norm(x, layer + "post_attention_layernorm.weight"), layer + "mlp.")
        return functional.linear(
            self.norm(x, "model.norm.weight"), self.weights.get("lm_head.weight", embedding)
        )


def worst(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference as a share of the range."""
    return float((found - expected).abs().max() / (expected.max() - expected.min()))


@pytest.mark.numeric
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_those_of_the_model_written_out(tmp_path: Path, name: str, tokens: Any) -> None:
    folder = pico_qwen(tmp_path, name, seed=3)
    plain = Plain(folder)
    assert (
        worst(streamed_logits(folder, tokens), torch.stack([plain.logits(chunk) for chunk in tokens])) < 1e-5
    )


@pytest.mark.numeric
def test_the_graph_counts_and_not_the_config(tmp_path: Path, tokens: Any) -> None:
    """What is lost in the file is lost in the pass, too: it judges what llama.cpp will compute."""
    followed = streamed_logits(pico_qwen(tmp_path / "one", "qwen3moe"), tokens)
    lost = streamed_logits(pico_qwen(tmp_path / "other", "qwen3moe", norm_topk_prob=False), tokens)
    assert torch.equal(followed, lost)


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.parametrize("case", [*ARCHITECTURES, "qwen3moe-tied", "qwen3-yarn", "qwen2moe-yarn"])
def test_logits_are_those_of_transformers(tmp_path: Path, case: str, tokens: Any) -> None:
    from transformers import AutoModelForCausalLM

    name, options = CASES[case]
    options = {key: value for key, value in options.items() if key not in ("layout", "rms_norm_eps")}
    if "rope_scaling" in options:
        options["rope_scaling"] = YARN
    folder = pico_qwen(tmp_path, name, **options)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens).long()).logits
    assert worst(streamed_logits(folder, tokens), expected) < 1e-5
