"""GPT-OSS, Phi-MoE and Granite's mixtures: tensors, keys, MXFP4 as it is published, and logits."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import gguf.quants
import numpy as np
import pico
import pytest
import torch
from golden_keys import record
from oss_cases import CASES
from pico_oss import ARCHITECTURES, MXFP4, N_EXPERT, N_FF, longrope, pico_oss
from places import GOLDEN
from streamed import streamed_logits
from torch.nn import functional

from gguf_export.checking.doctor import doctor
from gguf_export.checking.structure import check_structure
from gguf_export.writing.export import prepare, run
from quantize.decoding import to_f32
from quantize.exceptions import CheckpointError
from quantize.families.fit import tensor_misfits
from quantize.recipes.ftypes import ftype
from quantize.recipes.left_alone import converted_type
from quantize.recipes.recipe import Recipe
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.sources.gguf_file import GGUFFile
from quantize.tensors import QType, TensorSpec

KEYS = json.loads((GOLDEN / "keys_oss.json").read_text(encoding="utf-8"))

OF_MODEL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm": "model.norm",
    "output": "lm_head",
}
IN_LAYER = {  # GGUF name -> stored name, of what is stored as it is; without suffix: weight and bias
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_sinks.weight": "self_attn.sinks",
}
E_GATE, E_UP, E_DOWN = "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"


def expected_of(name: str, stored: dict[str, Any], n_layer: int) -> dict[str, Any]:
    """All tensors by their GGUF names, from those of the usual layout."""
    found = _renamed(stored, OF_MODEL, "", "")
    post_norm = "post_attention_norm" if name == "gpt-oss" else "ffn_norm"
    for bid in range(n_layer):
        here, there = f"blk.{bid}.", f"model.layers.{bid}."
        layer = _renamed(stored, IN_LAYER | {post_norm: "post_attention_layernorm"}, here, there)
        moe = there + "block_sparse_moe."
        if name == "gpt-oss":
            layer |= _renamed(stored, {"ffn_gate_inp": "mlp.router"}, here, there)
            experts = there + "mlp.experts."
            both = stored[experts + "gate_up_proj"]
            layer[f"{here}{E_GATE}.weight"] = both.swapaxes(1, 2)[:, 0::2]
            layer[f"{here}{E_UP}.weight"] = both.swapaxes(1, 2)[:, 1::2]
            layer[f"{here}{E_DOWN}.weight"] = stored[experts + "down_proj"].swapaxes(1, 2)
            layer[f"{here}{E_GATE}.bias"] = stored[experts + "gate_up_proj_bias"][:, 0::2]
            layer[f"{here}{E_UP}.bias"] = stored[experts + "gate_up_proj_bias"][:, 1::2]
            layer[f"{here}{E_DOWN}.bias"] = stored[experts + "down_proj_bias"]
        elif name == "phimoe":
            layer[here + "ffn_gate_inp.weight"] = stored[moe + "gate.weight"]
            for part, old in ((E_GATE, "w1"), (E_UP, "w3"), (E_DOWN, "w2")):
                matrices = [stored[f"{moe}experts.{xid}.{old}.weight"] for xid in range(N_EXPERT)]
                layer[f"{here}{part}.weight"] = np.stack(matrices)
        else:
            layer = {one: _neighbours(one, values) for one, values in layer.items()}
            layer[here + "ffn_gate_inp.weight"] = stored[moe + "router.layer.weight"]
            both = stored[moe + "input_linear.weight"]
            layer[f"{here}{E_GATE}.weight"], layer[f"{here}{E_UP}.weight"] = both[:, :N_FF], both[:, N_FF:]
            layer[f"{here}{E_DOWN}.weight"] = stored[moe + "output_linear.weight"]
        if name == "granitemoeshared":
            both = stored[there + "shared_mlp.input_linear.weight"]
            gate, up = np.split(both, 2)
            layer[here + "ffn_gate_shexp.weight"], layer[here + "ffn_up_shexp.weight"] = gate, up
            layer[here + "ffn_down_shexp.weight"] = stored[there + "shared_mlp.output_linear.weight"]
        found |= layer
    return found


def _renamed(stored: dict[str, Any], names: dict[str, str], here: str, there: str) -> dict[str, Any]:
    found = {}
    for new, old in names.items():
        for suffix in ("", ".weight", ".bias"):
            if there + old + suffix in stored:
                found[here + new + suffix] = stored[there + old + suffix]
    return found


def _neighbours(name: str, values: Any) -> Any:
    """Rows of q and k as llama.cpp's rotation of neighbours wants them."""
    n_head = {"attn_q": 4, "attn_k": 2}.get(name.split(".")[-2])
    if n_head is None:
        return values
    half = len(values) // n_head // 2
    order = [head * 2 * half + s * half + i for head in range(n_head) for i in range(half) for s in range(2)]
    return values[order]


def whole(checkpoint: Checkpoint, spec: TensorSpec) -> Any:
    return np.stack([checkpoint.read(spec, xid) for xid in range(spec.n_matrix)])


LAYOUTS = [(name, layout) for name in ARCHITECTURES for layout in ("usual", "fused")]


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_each_tensor_has_its_values_in_each_layout(tmp_path: Path, name: str, layout: Any) -> None:
    truth = pico.read_checkpoint(pico_oss(tmp_path / "usual", name))
    checkpoint = open_checkpoint(pico_oss(tmp_path / "model", name, layout=layout, n_shards=2))
    expected = expected_of(name, truth, 2)
    specs = {spec.name: spec for spec in checkpoint.specs()}
    factors = {"rope_factors_long.weight", "rope_factors_short.weight"} if name == "phimoe" else set()
    assert specs.keys() == expected.keys() | factors
    for tensor, values in expected.items():
        found = whole(checkpoint, specs[tensor])
        np.testing.assert_array_equal(found, values.reshape(found.shape), tensor)
        assert specs[tensor].shape == values.shape
    assert checkpoint.n_bytes == sum(values.nbytes for values in truth.values())
    assert checkpoint.remarks == ()
    assert checkpoint.hparams.rope_neox == (name in ("gpt-oss", "phimoe"))


@pytest.mark.parametrize("case", CASES)
def test_keys_and_tensors_are_those_of_the_converter(tmp_path: Path, case: str) -> None:
    name, options = CASES[case]
    checkpoint = open_checkpoint(pico_oss(tmp_path, name, **options))
    found = [record(kv.key, kv.type, kv.sub_type, kv.value) for kv in checkpoint.arch_keys()]
    assert found == KEYS[case]["keys"]
    specs: dict[str, list[Any]] = {}
    for spec in checkpoint.specs():
        specs[spec.name] = [converted_type(spec).name, list(spec.shape)]
        if spec.qtype is QType.MXFP4:
            blocks = b"".join(checkpoint.read_blocks(spec, xid).tobytes() for xid in range(spec.n_matrix))
            specs[spec.name].append(hashlib.sha256(blocks).hexdigest())
    assert specs == KEYS[case]["tensors"]
    assert list(tensor_misfits(checkpoint.hparams, checkpoint.specs())) == []


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_file_has_the_dimensions_of_its_checkpoint(tmp_path: Path, name: str) -> None:
    model = pico_oss(tmp_path / "Pico", name, tokenizer=True)
    for qtype in ("BF16", "Q8_0"):
        (made,) = run(prepare(open_checkpoint(model), [Recipe(ftype(qtype))], tmp_path)).files
        file = GGUFFile(made.path)
        of_file, own = file.hparams, open_checkpoint(model).hparams
        for one in ("n_ff_shexp", "n_swa", "n_rot", "n_ff_exp", "n_expert_used", "head_dim", "n_head_kv"):
            assert getattr(of_file, one) == getattr(own, one), one
        for one in ("attention_scale", "embedding_scale", "residual_scale", "logit_scale", "norm_eps"):
            assert getattr(of_file, one) == pytest.approx(getattr(own, one), rel=1e-6), one
        assert of_file.rope_attn_factor == pytest.approx(own.rope_attn_factor)
        assert (own.rope_attn_factor > 1) == (name == "phimoe")
        assert list(check_structure(file)) == []


def test_the_factor_of_rotations_leads(tmp_path: Path) -> None:
    """llama.cpp's converter writes it with the tensors, which come before all other keys (conversion/phi.py)."""
    model = pico_oss(tmp_path / "Pico", "phimoe", tokenizer=True)
    (made,) = run(prepare(open_checkpoint(model), [Recipe(ftype("BF16"))], tmp_path)).files
    names = list(GGUFFile(made.path).keys)
    assert names[:3] == ["general.architecture", "phimoe.rope.scaling.attn_factor", "general.type"]


# -- MXFP4


E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def decoded(blocks: Any, scales: Any) -> Any:
    """Weights [E, n_out, n_in] as the OCP format says: E2M1 times a power of two, two codes in a byte."""
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 32)
    values = np.array([*E2M1, *(-value for value in E2M1)], np.float64)[codes]
    weights = values * 2.0 ** (scales[..., None].astype(np.float64) - 127)
    return weights.reshape(*weights.shape[:2], -1)


def mxfp4_model(path: Path, **options: Any) -> tuple[Checkpoint, dict[str, Any]]:
    """A checkpoint, and the right weights of its experts."""
    folder = pico_oss(path, "gpt-oss", layout="mxfp4", **options)
    stored = pico.read_checkpoint(folder)
    right = {}
    for bid in range(2):
        experts = f"model.layers.{bid}.mlp.experts."
        both, down = (
            decoded(stored[f"{experts}{part}_blocks"], stored[f"{experts}{part}_scales"])
            for part in ("gate_up_proj", "down_proj")
        )
        right[f"blk.{bid}.{E_GATE}.weight"], right[f"blk.{bid}.{E_UP}.weight"] = both[:, 0::2], both[:, 1::2]
        right[f"blk.{bid}.{E_DOWN}.weight"] = down
    return open_checkpoint(folder), right


def test_mxfp4_experts_are_repacked(tmp_path: Path) -> None:
    checkpoint, right = mxfp4_model(tmp_path)
    specs = {spec.name: spec for spec in checkpoint.specs()}
    assert {spec.name for spec in specs.values() if spec.qtype is QType.MXFP4} == right.keys()
    for name, weights in right.items():
        spec = specs[name]
        assert spec.shape == weights.shape
        for xid in range(N_EXPERT):
            for rows in (None, (0, 1), (7, 30), (spec.n_row - 1, spec.n_row)):
                first, last = rows or (0, spec.n_row)
                found, blocks = (read(spec, xid, rows) for read in (checkpoint.read, checkpoint.read_blocks))
                np.testing.assert_array_equal(found, weights[xid, first:last], name)
                assert blocks.shape == (last - first, spec.n_per_row // 32 * 17)
                again = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.MXFP4)
                np.testing.assert_array_equal(again, weights[xid, first:last], name)
    with pytest.raises(IndexError):
        checkpoint.read_blocks(spec, 0, (0, spec.n_row + 1))
    stored = sum(tensor.n_bytes for tensor in checkpoint.stored.values())
    assert checkpoint.n_bytes == stored


@pytest.mark.parametrize("name", ["BF16", "F16", "F32", "COPY"])
def test_floats_leave_mxfp4_as_it_is(tmp_path: Path, name: str) -> None:
    checkpoint, right = mxfp4_model(tmp_path / "Pico", tokenizer=True)
    (made,) = run(prepare(checkpoint, [Recipe(ftype(name))], tmp_path)).files
    file = GGUFFile(made.path)
    assert file.keys["general.file_type"] == 38  # MOSTLY_MXFP4_MOE, as the converter says
    for spec in file.specs():
        assert (spec.qtype is QType.MXFP4) == (spec.name in right)
        if spec.name in right:
            np.testing.assert_array_equal(file.read(spec, 1), right[spec.name][1])
    floats = {spec.qtype for spec in file.specs() if spec.name not in right}
    assert QType["BF16" if name == "COPY" else name] in floats


def test_mxfp4_becomes_other_types(tmp_path: Path) -> None:
    checkpoint, right = mxfp4_model(tmp_path / "Pico", tokenizer=True)
    for name in ("MXFP4_MOE", "Q8_0"):
        (made,) = run(prepare(checkpoint, [Recipe(ftype(name))], tmp_path)).files
        file = GGUFFile(made.path)
        spec = file.tensors[f"blk.1.{E_DOWN}.weight"].spec
        assert spec.qtype is (QType.Q8_0 if name == "Q8_0" else QType.MXFP4)
        found, weights = to_f32(file.read(spec, 2)), right[spec.name][2]
        assert np.abs(found - weights).max() <= (np.abs(weights).max() / 250 if name == "Q8_0" else 0)


def test_mxfp4_must_be_whole(tmp_path: Path) -> None:
    folder = pico_oss(tmp_path, "gpt-oss", layout="mxfp4")
    config = json.loads((folder / "config.json").read_text())
    stored = pico.read_checkpoint(folder)
    blocks, scales = (f"model.layers.1.mlp.experts.down_proj_{part}" for part in ("blocks", "scales"))

    def refused(changed: dict[str, Any], **settings: Any) -> str:
        pico.write_checkpoint(folder, changed, config | settings)
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(folder)
        return str(caught.value)

    left = {name: values for name, values in stored.items() if name != scales}
    assert refused(left).endswith(f"the checkpoint lacks tensor '{scales}'")
    shape = [N_EXPERT, 64, N_FF // 32, 16]
    assert f"config.json asks for {shape}" in refused(stored | {blocks: stored[blocks][..., :8]})
    assert "is stored as BF16, MXFP4 as U8" in refused(stored | {scales: stored[scales].astype(np.uint16)})
    assert "has a quantization_config" in refused(stored, quantization_config={"quant_method": "gptq"})
    assert "has a quantization_config" in refused(stored, quantization_config=["mxfp4"])


def test_only_families_that_have_mxfp4_take_it(tmp_path: Path) -> None:
    folder = pico_oss(tmp_path, "granitemoe", quantization_config=MXFP4)
    with pytest.raises(CheckpointError, match="has a quantization_config"):
        open_checkpoint(folder)


def test_the_doctor_takes_no_offence_at_mxfp4(tmp_path: Path) -> None:
    folder = pico_oss(tmp_path, "gpt-oss", layout="mxfp4", tokenizer=True)
    assert [str(finding) for finding in doctor(folder, full=True) if finding.severity != "info"] == []


# -- bad configs


REFUSED = [
    (
        "phimoe",
        {"rope_scaling": longrope() | {"long_factor": [1.0] * 7}},
        "long_factor has 7 numbers, 8 are needed",
    ),
    (
        "phimoe",
        {"rope_scaling": longrope() | {"short_factor": []}},
        "short_factor has 0 numbers, 8 are needed",
    ),
    (
        "phimoe",
        {"rope_scaling": longrope() | {"long_factor": [0] * 8}},
        "long_factor must be a list of numbers above 0",
    ),
    (
        "phimoe",
        {"rope_scaling": longrope() | {"long_factor": "x"}},
        "long_factor must be a list of numbers above 0",
    ),
    ("phimoe", {"sliding_window": "wide"}, "sliding_window must be a whole number, but is 'wide'"),
    ("granitemoe", {"logits_scaling": 0.0}, "logits_scaling must be a number above 0, but is 0.0"),
    ("granitemoe", {"attention_multiplier": "much"}, "attention_multiplier must be a number, but is 'much'"),
    ("granitemoe", {"residual_multiplier": True}, "residual_multiplier must be a number, but is True"),
    (
        "granitemoeshared",
        {"shared_intermediate_size": 7.5},
        "shared_intermediate_size must be a whole number, but is",
    ),
    ("gpt-oss", {"sliding_window": -1}, "sliding_window -1 is outside of"),
    ("gpt-oss", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
]


@pytest.mark.parametrize(("name", "config", "message"), REFUSED)
def test_a_bad_config_is_refused(tmp_path: Path, name: str, config: dict[str, Any], message: str) -> None:
    folder = pico_oss(tmp_path, name, **config)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert str(caught.value).startswith("config.json: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_llama_cpp_needs_of_phimoe(tmp_path: Path) -> None:
    """Its loader asks for the biases of attention and output, which transformers lets a config leave out."""
    folder = pico_oss(tmp_path, "phimoe", biases=False)
    with pytest.raises(CheckpointError, match=r"lacks tensor 'model\.layers\.0\.self_attn\.o_proj\.bias'"):
        open_checkpoint(folder)


def test_shared_experts_are_there_or_not(tmp_path: Path) -> None:
    folder = pico_oss(tmp_path, "granitemoeshared", shared_intermediate_size=0)
    with pytest.raises(CheckpointError, match=r"shared_mlp.* would not be read"):
        open_checkpoint(folder)
    folder = pico_oss(tmp_path / "without", "granitemoe", shared_intermediate_size=80)
    with pytest.raises(CheckpointError, match=r"lacks tensor .*shared_mlp"):
        open_checkpoint(folder)


# -- logits


@pytest.fixture(scope="module")
def tokens() -> Any:
    return np.random.default_rng(5).integers(0, 320, (2, 24)).astype(np.int32)


class Plain:
    """The same models as llama.cpp's graphs compute them, written out: one chunk at a time, all experts."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = {
            name: torch.from_numpy(pico.to_f32(values))
            for name, values in pico.read_checkpoint(folder).items()
        }
        self.is_oss = self.config["model_type"] == "gpt_oss"

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        y: torch.Tensor = x / (x.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"]).sqrt()
        return y * self.weights[name + ".weight"] + self.weights.get(name + ".bias", torch.zeros(()))

    def product(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, self.weights[name + ".weight"], self.weights.get(name + ".bias"))

    def rotated(self, x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        freqs, factor = self.config["rope_theta"] ** (-torch.arange(half).double() / half), 1.0
        scaling = self.config.get("rope_scaling", {})
        n_orig = scaling.get("original_max_position_embeddings", 0)
        if scaling.get("type") == "longrope":
            freqs = freqs / torch.tensor(scaling["short_factor" if len(x) <= n_orig else "long_factor"])
            stretched = self.config["max_position_embeddings"] / n_orig
            factor = math.sqrt(1 + math.log(stretched) / math.log(n_orig))
        elif scaling.get("rope_type") == "yarn":

            def pair_of(turns: float) -> float:
                return half * math.log(n_orig / (turns * 2 * math.pi)) / math.log(self.config["rope_theta"])

            low, high = max(0, math.floor(pair_of(32.0))), math.ceil(pair_of(1.0))
            kept = 1 - ((torch.arange(half) - low) / (high - low)).clamp(0, 1)
            freqs = freqs / scaling["factor"] * (1 - kept) + freqs * kept
            factor = 1 + 0.1 * math.log(scaling["factor"])
        angles = torch.arange(len(x))[:, None, None] * freqs
        cos, sin = (angles.cos() * factor).float(), (angles.sin() * factor).float()
        first, second = x[..., :half], x[..., half:]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def attention(self, x: torch.Tensor, prefix: str, bid: int) -> torch.Tensor:
        n_head, n_kv, n_pos = self.config["num_attention_heads"], self.config["num_key_value_heads"], len(x)
        q, k, v = (
            self.product(x, f"{prefix}{part}_proj").reshape(n_pos, heads, -1)
            for part, heads in (("q", n_head), ("k", n_kv), ("v", n_kv))
        )
        q, k = self.rotated(q), self.rotated(k)
        k, v = (one.repeat_interleave(n_head // n_kv, dim=1) for one in (k, v))
        scale = self.config.get("attention_multiplier") or q.shape[-1] ** -0.5
        scores = torch.einsum("phd,qhd->hpq", q, k) * scale
        hidden = torch.ones(n_pos, n_pos).triu(1).bool()
        if self.is_oss and bid % 2 == 0:
            hidden |= torch.ones(n_pos, n_pos).tril(-self.config["sliding_window"]).bool()
        scores = scores.masked_fill(hidden, -torch.inf)
        if self.is_oss:
            sinks = self.weights[prefix + "sinks"][:, None, None].expand(-1, n_pos, 1)
            probs = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
        else:
            probs = scores.softmax(-1)
        return self.product(torch.einsum("hpq,qhd->phd", probs, v).reshape(n_pos, -1), prefix + "o_proj")

    def feed_forward(self, x: torch.Tensor, layer: str) -> torch.Tensor:
        kind = self.config["model_type"]
        router = {"gpt_oss": "mlp.router", "phimoe": "block_sparse_moe.gate"}
        logits = self.product(x, layer + router.get(kind, "block_sparse_moe.router.layer"))
        best = logits.topk(self.config["num_experts_per_tok"])
        # the softmax of the chosen is that of all, divided by the sum of the chosen
        weights = torch.zeros_like(logits).scatter(-1, best.indices, best.values.softmax(-1))
        y = torch.zeros_like(x)
        for xid in range(logits.shape[-1]):
            y = y + weights[:, [xid]] * self.expert(x, layer, xid)
        if layer + "shared_mlp.input_linear.weight" in self.weights:
            gate, up = self.product(x, layer + "shared_mlp.input_linear").chunk(2, -1)
            y = y + self.product(functional.silu(gate) * up, layer + "shared_mlp.output_linear")
        return y

    def expert(self, x: torch.Tensor, layer: str, xid: int) -> torch.Tensor:
        if self.is_oss:
            experts = layer + "mlp.experts."
            both = x @ self.weights[experts + "gate_up_proj"][xid]
            both = both + self.weights[experts + "gate_up_proj_bias"][xid]
            gate, up = both[:, 0::2].clamp(max=7), both[:, 1::2].clamp(-7, 7)
            y = gate * (1.702 * gate).sigmoid() * (up + 1)
            return (
                y @ self.weights[experts + "down_proj"][xid] + self.weights[experts + "down_proj_bias"][xid]
            )
        moe = layer + "block_sparse_moe."
        if self.config["model_type"] == "phimoe":
            gate, up = (self.product(x, f"{moe}experts.{xid}.{part}") for part in ("w1", "w3"))
            return self.product(functional.silu(gate) * up, f"{moe}experts.{xid}.w2")
        gate, up = functional.linear(x, self.weights[moe + "input_linear.weight"][xid]).chunk(2, -1)
        return functional.linear(functional.silu(gate) * up, self.weights[moe + "output_linear.weight"][xid])

    def logits(self, tokens: Any) -> torch.Tensor:
        config = self.config
        embedding, residual = (
            self.weights["model.embed_tokens.weight"],
            config.get("residual_multiplier") or 1,
        )
        x = embedding[torch.from_numpy(tokens).long()] * (config.get("embedding_multiplier") or 1)
        for bid in range(config["num_hidden_layers"]):
            layer = f"model.layers.{bid}."
            y = self.norm(x, layer + "input_layernorm")
            x = x + residual * self.attention(y, layer + "self_attn.", bid)
            x = x + residual * self.feed_forward(self.norm(x, layer + "post_attention_layernorm"), layer)
        x = self.norm(x, "model.norm") / float(config.get("logits_scaling", 1))
        has_head = "lm_head.weight" in self.weights
        return self.product(x, "lm_head") if has_head else functional.linear(x, embedding)


def worst(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference as a share of the range."""
    return float((found - expected).abs().max() / (expected.max() - expected.min()))


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ARCHITECTURES),
    ("phimoe", {"rope_scaling": longrope() | {"original_max_position_embeddings": 16},
                "original_max_position_embeddings": 16}),  # the chunks are longer
    ("granitemoe", {"attention_multiplier": 0.0, "residual_multiplier": 0.0, "embedding_multiplier": 0.0}),
    ("granitemoe", {"tied": True}),
]  # fmt: skip


@pytest.mark.numeric
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_logits_are_those_of_the_model_written_out(
    tmp_path: Path, name: str, options: dict[str, Any], tokens: Any
) -> None:
    folder = pico_oss(tmp_path, name, seed=3, n_layer=3, **options)
    plain = Plain(folder)
    assert (
        worst(streamed_logits(folder, tokens), torch.stack([plain.logits(chunk) for chunk in tokens])) < 1e-5
    )


@pytest.mark.numeric
def test_mxfp4_gives_the_logits_of_its_weights(tmp_path: Path, tokens: Any) -> None:
    """The same numbers stored in BF16, which holds them exactly, give the same logits."""
    folder = pico_oss(tmp_path / "mxfp4", "gpt-oss", layout="mxfp4")
    stored = pico.read_checkpoint(folder)
    floats = {name: values for name, values in stored.items() if values.dtype != np.uint8}
    for name in [name.removesuffix("_blocks") for name in stored if name.endswith("_blocks")]:
        weights = decoded(stored[name + "_blocks"], stored[name + "_scales"]).swapaxes(1, 2)
        floats[name] = pico.bf16_bits(weights.astype(np.float32))
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    pico.write_checkpoint(tmp_path / "bf16", floats, config)
    one, other = streamed_logits(folder, tokens), streamed_logits(tmp_path / "bf16", tokens)
    assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.parametrize("name", ["gpt-oss", "granitemoe", "granitemoeshared"])
def test_logits_are_those_of_transformers(tmp_path: Path, name: str, tokens: Any) -> None:
    from transformers import AutoModelForCausalLM

    folder = pico_oss(tmp_path, name, n_layer=3)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens).long()).logits
    assert worst(streamed_logits(folder, tokens), expected) < 1e-5
