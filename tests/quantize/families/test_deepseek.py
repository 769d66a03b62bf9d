"""DeepSeek-V2 and -V3: every stored number at its place, the converter's keys, what is refused, and the logits."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest
import torch
from deep_cases import DEEP_CASES, FLASH, V2, YARN
from golden_keys import record
from pico_deep import FX, HEADS, HV, KV_LORA, NOPE, ROT, E, pico_deepseek
from places import GOLDEN
from torch import Tensor
from torch.nn.functional import silu

from calibration.forward.backward import BackwardPass
from calibration.forward.forward_pass import ForwardPass
from calibration.forward.gradients import GradientObserver
from calibration.forward.graph import ModelGraph
from calibration.forward.hidden import Storage
from calibration.forward.run import forward
from calibration.forward.settings import ForwardSettings
from calibration.forward.streams import Observer, Stream
from quantize.exceptions import CheckpointError
from quantize.families import deepseek2, known_keys
from quantize.families.fit import tensor_misfits
from quantize.families.keys import hparams_of
from quantize.sources.checkpoint import open_checkpoint
from quantize.tensors import QType, TensorSpec

KEYS = json.loads((GOLDEN / "deep_keys.json").read_text(encoding="utf-8"))
LAYER = "model.layers.{}."
N_CTX = 24


@pytest.mark.parametrize("name", DEEP_CASES)
def test_keys_are_those_of_the_converter(name: str, tmp_path: Path) -> None:
    source = open_checkpoint(DEEP_CASES[name](tmp_path / "m"))
    found = [record(kv.key, kv.type, None, kv.value) for kv in source.arch_keys()]
    assert [[key, kind, value] for key, kind, _, value in found] == KEYS[name]


@pytest.mark.parametrize(
    ("architecture", "q_lora_rank", "n_layer", "fused"),
    [("DeepseekV3ForCausalLM", 14, 3, False), (V2, None, 27, False), (V2, 14, 2, True)],
)
def test_every_number_is_where_llama_cpp_wants_it(
    architecture: str, q_lora_rank: int | None, n_layer: int, fused: bool, tmp_path: Path
) -> None:
    folder = pico_deepseek(
        tmp_path / "m", architecture=architecture, q_lora_rank=q_lora_rank, n_layer=n_layer, fused=fused
    )
    source, stored = open_checkpoint(folder), pico.read_checkpoint(folder)
    bid = n_layer - 1
    attention, mlp = LAYER.format(bid) + "self_attn.", LAYER.format(bid) + "mlp."
    kv_b = stored.pop(attention + "kv_b_proj.weight").reshape(HEADS, NOPE + HV, KV_LORA)
    wanted = {
        "attn_k_b.weight": kv_b[:, :NOPE].transpose(0, 2, 1),
        "attn_v_b.weight": kv_b[:, NOPE:],
        "attn_kv_a_mqa.weight": stored[attention + "kv_a_proj_with_mqa.weight"],
        "attn_kv_a_norm.weight": stored[attention + "kv_a_layernorm.weight"],
        "attn_output.weight": stored[attention + "o_proj.weight"],
        "attn_norm.weight": stored[LAYER.format(bid) + "input_layernorm.weight"],
        "ffn_norm.weight": stored[LAYER.format(bid) + "post_attention_layernorm.weight"],
        "ffn_gate_inp.weight": stored[mlp + "gate.weight"],
    }
    names = {"attn_q": "q_proj"} if q_lora_rank is None else {"attn_q_a": "q_a_proj", "attn_q_b": "q_b_proj"}
    wanted |= {f"{new}.weight": stored[f"{attention}{old}.weight"] for new, old in names.items()}
    if q_lora_rank is not None:
        wanted["attn_q_a_norm.weight"] = stored[attention + "q_a_layernorm.weight"]
    if architecture != V2:
        wanted["exp_probs_b.bias"] = stored[mlp + "gate.e_score_correction_bias"]
    for step in ("gate", "up", "down"):
        wanted[f"ffn_{step}_shexp.weight"] = stored[f"{mlp}shared_experts.{step}_proj.weight"]
        if not fused:
            matrices = [stored[f"{mlp}experts.{xid}.{step}_proj.weight"] for xid in range(E)]
            wanted[f"ffn_{step}_exps.weight"] = np.stack(matrices)
    if fused:
        gate_up = stored[mlp + "experts.gate_up_proj"]
        wanted["ffn_gate_exps.weight"], wanted["ffn_up_exps.weight"] = gate_up[:, :FX], gate_up[:, FX:]
        wanted["ffn_down_exps.weight"] = stored[mlp + "experts.down_proj"]
    specs = {spec.name: spec for spec in source.specs() if spec.bid == bid}
    assert {name.removeprefix(f"blk.{bid}.") for name in specs} == set(wanted)
    for name, values in wanted.items():
        spec = specs[f"blk.{bid}.{name}"]
        assert spec.shape == values.shape
        for xid in range(spec.n_matrix):
            matrix = values[xid] if values.ndim == 3 else np.atleast_2d(values)
            np.testing.assert_array_equal(source.read(spec, xid), matrix)
            middle = (spec.n_row // 3, spec.n_row // 3 + 1)
            np.testing.assert_array_equal(source.read(spec, xid, middle), matrix[slice(*middle)])
    dense = {spec.name for spec in source.specs() if spec.bid == 0 and ".ffn_" in spec.name}
    assert dense == {f"blk.0.ffn_{step}.weight" for step in ("gate", "up", "down", "norm")}


def test_the_layer_for_further_tokens_is_left_out(tmp_path: Path) -> None:
    source = open_checkpoint(pico_deepseek(tmp_path / "m", n_mtp=1))
    assert source.hparams.n_layer == 3 and max(spec.bid or 0 for spec in source.specs()) == 2
    (remark,) = [remark for remark in source.remarks if "ignored" in remark.message]
    assert "'model.layers.3." in remark.message


def test_glm_flash_keeps_the_layer_for_further_tokens(tmp_path: Path) -> None:
    source = open_checkpoint(pico_deepseek(tmp_path / "m", architecture=FLASH, n_mtp=1))
    names = {spec.name for spec in source.specs() if spec.bid == 3}
    assert {"blk.3.nextn.eh_proj.weight", "blk.3.attn_k_b.weight", "blk.3.ffn_up_exps.weight"} < names
    assert source.hparams.n_layer_run == 3 and not source.remarks


@pytest.mark.parametrize(("n_layer", "n_vocab", "gating"), [(47, 154880, 2), (47, 1000, 1), (61, 154880, 1)])
def test_a_file_that_does_not_name_the_router(n_layer: int, n_vocab: int, gating: int) -> None:
    """As the loader takes it (src/models/deepseek2.cpp: load_arch_hparams)."""
    table = known_keys("deepseek2").values()
    values = {row.name: 7 for row in table if row.is_required} | {"block_count": n_layer}
    assert hparams_of("deepseek2", table, values, n_vocab).expert_gating_func == gating


def test_files_from_before_the_matrices_of_keys_were_absorbed() -> None:
    """The loader takes them yet (src/models/deepseek2.cpp: is_mla)."""
    table = known_keys("deepseek2").values()
    values: dict[str, Any] = {row.name: 2 for row in table if row.is_required}
    values |= {"attention.head_count": HEADS, "attention.head_count_kv": HEADS, "expert_count": E}
    values |= {"attention.key_length": NOPE + ROT, "attention.value_length": HV, "rope.dimension_count": ROT}
    values |= {"attention.kv_lora_rank": KV_LORA, "embedding_length": 32}
    hparams = hparams_of("deepseek2", table, values, 48)
    kv_b = TensorSpec("blk.0.attn_kv_b.weight", (HEADS * (NOPE + HV), KV_LORA), QType.BF16)
    q = TensorSpec("blk.0.attn_q.weight", (HEADS * (NOPE + ROT), 32), QType.BF16)
    places = {misfit.place for misfit in tensor_misfits(hparams, [kv_b, q])}
    assert "blk.1.attn_kv_b.weight" in places and "blk.1.attn_q.weight" in places
    assert not places & {kv_b.name, q.name, "blk.1.attn_k_b.weight", "blk.1.attn_q_a.weight"}


def test_a_tied_output_is_the_embedding(tmp_path: Path) -> None:
    """The converter skips a stored lm_head where config.json ties it."""
    tied = open_checkpoint(pico_deepseek(tmp_path / "a", tied=True))
    stored_too = open_checkpoint(pico_deepseek(tmp_path / "b", tie_word_embeddings=True))
    for source in (tied, stored_too):
        assert "output.weight" not in {spec.name for spec in source.specs()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"q_lora_rank": None}, "q_lora_rank is None, but llama.cpp loads a model of 3 layers with one only"),
        ({"n_layer": 26}, "q_lora_rank is 14, but llama.cpp loads a model of 26 layers without one only"),
        ({"moe_layer_freq": 2}, "moe_layer_freq 2 is not supported"),
        ({"rope_interleave": False}, "rope_interleave False is not supported"),
        ({"n_shared_experts": 0}, "n_shared_experts 0 is outside of 1.."),
        ({"qk_rope_head_dim": 5}, "5 is odd: rotary positions need pairs"),
        ({"v_head_dim": HV + 1}, "kv_b_proj.weight': has shape [44, 10], but config.json asks for [48, 10]"),
        ({"kv_lora_rank": "many"}, "kv_lora_rank"),
        ({"rope_scaling": YARN | {"mscale_all_dim": "x"}}, "mscale_all_dim must be a number, not 'x'"),
    ],
)
def test_what_llama_cpp_cannot_run_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(pico_deepseek(tmp_path / "m", **options))
    assert message in str(caught.value) and str(caught.value).isprintable()


# --- the pass over a text --------------------------------------------------------------------------------------------


class Written:
    """DeepSeek as its authors wrote it: keys and values of each head made from the latent vector, nothing absorbed."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        stored = pico.read_checkpoint(folder)
        self.weights = {name: torch.from_numpy(pico.to_f32(one)) for name, one in stored.items()}

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.weights[name + ".weight"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[name + ".weight"].T

    def turned(self, x: Tensor) -> Tensor:
        """Neighbours of x [P, H, ROT] as complex numbers, turned by the angle of the position."""
        scaling = self.config.get("rope_scaling")
        frequencies = [10000.0 ** (-2 * i / ROT) for i in range(ROT // 2)]
        if scaling:
            n_ctx, factor = scaling["original_max_position_embeddings"], scaling["factor"]
            pair = [ROT * math.log(n_ctx / (n * 2 * math.pi)) / (2 * math.log(1e4)) for n in (32, 1)]
            low, high = max(math.floor(pair[0]), 0), min(math.ceil(pair[1]), ROT - 1)
            kept = [1 - min(max((i - low) / max(high - low, 0.001), 0), 1) for i in range(ROT // 2)]
            frequencies = [f * k + f / factor * (1 - k) for f, k in zip(frequencies, kept, strict=True)]
        angles = torch.arange(len(x), dtype=torch.float64)[:, None] * torch.tensor(frequencies)
        numbers = torch.view_as_complex(x.double().reshape(*x.shape[:-1], ROT // 2, 2))
        turned = numbers * torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.view_as_real(turned).flatten(-2).float()

    def attention(self, x: Tensor, layer: str) -> Tensor:
        n = len(x)
        if self.config["q_lora_rank"] is None:
            q = self.linear(x, layer + "q_proj")
        else:
            q = self.norm(self.linear(x, layer + "q_a_proj"), layer + "q_a_layernorm")
            q = self.linear(q, layer + "q_b_proj")
        q = q.view(n, HEADS, NOPE + ROT)
        latent = self.linear(x, layer + "kv_a_proj_with_mqa")
        kv = self.linear(self.norm(latent[:, :KV_LORA], layer + "kv_a_layernorm"), layer + "kv_b_proj")
        kv = kv.view(n, HEADS, NOPE + HV)
        k_rot = self.turned(latent[:, None, KV_LORA:]).expand(n, HEADS, ROT)
        q = torch.cat((q[..., :NOPE], self.turned(q[..., NOPE:])), -1)
        k = torch.cat((kv[..., :NOPE], k_rot), -1)
        scale = (NOPE + ROT) ** -0.5
        if scaling := self.config.get("rope_scaling"):
            scale *= (0.1 * scaling["mscale_all_dim"] * math.log(scaling["factor"]) + 1) ** 2
        scores = torch.einsum("phd,qhd->hpq", q, k) * scale
        probs = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf).softmax(-1)
        return self.linear(torch.einsum("hpq,qhd->phd", probs, kv[..., NOPE:]).flatten(1), layer + "o_proj")

    def network(self, x: Tensor, name: str) -> Tensor:
        gated = silu(self.linear(x, name + "gate_proj")) * self.linear(x, name + "up_proj")
        return self.linear(gated, name + "down_proj")

    def experts(self, x: Tensor, mlp: str) -> Tensor:
        config = self.config
        logits = self.linear(x, mlp + "gate")
        probs = logits.sigmoid() if config["scoring_func"] == "sigmoid" else logits.softmax(-1)
        scores = probs + self.weights.get(mlp + "gate.e_score_correction_bias", torch.zeros(E))
        if (n_group := config["n_group"] or 1) > 1:  # two experts each: their sum is the group's score
            best = scores.view(len(x), n_group, -1).sum(-1).argmax(-1, keepdim=True)
            scores = torch.where(torch.arange(E) // (E // n_group) == best, scores, -torch.inf)
        ids = scores.topk(2).indices
        weights = (
            torch.zeros_like(probs).scatter(1, ids, probs.gather(1, ids)) * config["routed_scaling_factor"]
        )
        if config["norm_topk_prob"]:
            weights = weights / probs.gather(1, ids).sum(-1, keepdim=True)
        of_experts = [self.network(x, f"{mlp}experts.{xid}.") for xid in range(E)]
        mixed = torch.einsum("te,etd->td", weights, torch.stack(of_experts))
        return mixed + self.network(x, mlp + "shared_experts.")

    def logits(self, tokens: np.ndarray) -> Tensor:
        x = self.weights["model.embed_tokens.weight"][torch.from_numpy(tokens).long()]
        for bid in range(self.config["num_hidden_layers"]):
            layer = LAYER.format(bid)
            x = x + self.attention(self.norm(x, layer + "input_layernorm"), layer + "self_attn.")
            h = self.norm(x, layer + "post_attention_layernorm")
            x = x + (self.experts(h, layer + "mlp.") if bid else self.network(h, layer + "mlp."))
        return self.linear(self.norm(x, "model.norm"), "lm_head")


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 48, (2, N_CTX)).astype(np.int32)


@pytest.mark.numeric
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"architecture": V2, "rope_scaling": YARN},
        {"architecture": V2, "n_layer": 2, "q_lora_rank": None},
        {"n_mtp": 1, "rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
    ],
    ids=["v3", "v2 with yarn", "v2-lite", "v3 with yarn"],
)
def test_logits_are_those_of_the_unabsorbed_model(
    options: dict[str, Any], tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deepseek2, "LITE_LAYERS", (2,))
    folder = pico_deepseek(tmp_path / "m", **options)
    found: list[Tensor] = []
    forward(
        [Stream(open_checkpoint(folder))], tokens, on_logits=lambda _chunk, logits: found.append(logits[0])
    )
    model = Written(folder)
    for chunk, logits in zip(tokens, found, strict=True):
        torch.testing.assert_close(logits, model.logits(chunk), rtol=1e-4, atol=1e-4)


def test_observers_see_the_inputs_of_each_head(tokens: np.ndarray, tmp_path: Path) -> None:
    """llama-imatrix keeps a row of sums for each matrix of a stack (tools/imatrix/imatrix.cpp: collect_imatrix)."""
    source = open_checkpoint(pico_deepseek(tmp_path / "m"))
    seen: dict[tuple[str, int], int] = {}

    class Shapes(Observer):
        def inputs(
            self, stream: int, specs: Sequence[TensorSpec], xid: int, tokens: Tensor, x: Tensor
        ) -> None:
            for spec in specs:
                assert x.shape == (len(tokens), spec.n_per_row)
                seen[spec.name, xid] = seen.get((spec.name, xid), 0) + len(tokens)

    forward([Stream(source)], tokens, observers=[Shapes()])
    for spec in source.specs():
        if spec.name.startswith("blk.1.attn_") and spec.is_matrix:
            assert [seen[spec.name, xid] for xid in range(spec.n_matrix)] == [tokens.size] * spec.n_matrix
    attention = ModelGraph(source.hparams, {spec.name for spec in source.specs()}).attention_kind
    assert attention.inner == ("attn_q_b", "attn_k_b", "attn_v_b")


@pytest.mark.numeric
def test_gradients_of_each_head_are_those_of_the_unabsorbed_matrix(
    tokens: np.ndarray, tmp_path: Path
) -> None:
    folder = pico_deepseek(tmp_path / "m")
    sums: dict[tuple[str, int], Tensor] = {}

    class Sums(GradientObserver):
        def gradients(self, spec: TensorSpec, xid: int, tokens: Tensor, x: Tensor, g: Tensor) -> None:
            sums[spec.name, xid] = sums.get((spec.name, xid), torch.zeros(())) + g.T @ x

    settings = ForwardSettings()
    there = ForwardPass(
        [Stream(open_checkpoint(folder))], tokens, settings, Storage(settings), keep_layers=True
    )
    there.run()
    back = BackwardPass(there, [Sums()])
    back.run()
    model, name = Written(folder), "model.layers.1.self_attn.kv_b_proj.weight"
    kv_b = model.weights[name].requires_grad_()
    logits = torch.cat([model.logits(chunk) for chunk in tokens])
    loss = torch.nn.functional.cross_entropy(logits, back.labels, reduction="sum")
    (wanted,) = torch.autograd.grad(loss, kv_b)
    for xid, of_head in enumerate(wanted.view(HEADS, NOPE + HV, KV_LORA)):
        keys, values = sums["blk.1.attn_k_b.weight", xid], sums["blk.1.attn_v_b.weight", xid]
        torch.testing.assert_close(keys.T, of_head[:NOPE], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(values, of_head[NOPE:], rtol=1e-3, atol=1e-3)
