"""GLM-4.5: every stored number at its place, the layer for further tokens, partial rotation, and the logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest
import torch
from pico_deep import GLM_HEAD_DIM, GLM_HEADS, GLM_KV_HEADS, E, pico_glm
from torch import Tensor
from torch.nn.functional import silu

from calibration.forward.run import forward
from calibration.forward.streams import Stream
from quantize.containers.keys import KeyValue
from quantize.exceptions import CheckpointError
from quantize.families.fit import tensor_misfits
from quantize.sources.checkpoint import open_checkpoint

LAYER = "model.layers.{}."
ROT = GLM_HEAD_DIM // 2
ATTENTION = {
    **{
        f"attn_{letter}.{kind}": f"self_attn.{letter}_proj.{kind}"
        for letter in "qkv"
        for kind in ("weight", "bias")
    },
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
}
EXPERTS = {
    "ffn_gate_inp.weight": "mlp.gate.weight",
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    **{
        f"ffn_{step}_shexp.weight": f"mlp.shared_experts.{step}_proj.weight"
        for step in ("gate", "up", "down")
    },
}
NEXTN = {
    "nextn.eh_proj.weight": "eh_proj.weight",
    "nextn.enorm.weight": "enorm.weight",
    "nextn.hnorm.weight": "hnorm.weight",
    "nextn.embed_tokens.weight": "embed_tokens.weight",
    "nextn.shared_head_head.weight": "shared_head.head.weight",
    "nextn.shared_head_norm.weight": "shared_head.norm.weight",
}
DENSE = {f"ffn_{step}.weight": f"mlp.{step}_proj.weight" for step in ("gate", "up", "down")}


@pytest.mark.parametrize(
    ("bid", "names"), [(0, ATTENTION | DENSE), (2, ATTENTION | EXPERTS), (3, ATTENTION | EXPERTS | NEXTN)]
)
def test_every_number_is_where_llama_cpp_wants_it(bid: int, names: dict[str, str], tmp_path: Path) -> None:
    folder = pico_glm(tmp_path / "m")
    source, stored = open_checkpoint(folder), pico.read_checkpoint(folder)
    layer = LAYER.format(bid)
    wanted = {new: stored[layer + old] for new, old in names.items()}
    if bid > 0:
        for step in ("gate", "up", "down"):
            matrices = [stored[f"{layer}mlp.experts.{xid}.{step}_proj.weight"] for xid in range(E)]
            wanted[f"ffn_{step}_exps.weight"] = np.stack(matrices)
    specs = {spec.name.removeprefix(f"blk.{bid}."): spec for spec in source.specs() if spec.bid == bid}
    assert set(specs) == set(wanted)
    for name, values in wanted.items():
        for xid in range(specs[name].n_matrix):
            matrix = values[xid] if values.ndim == 3 else np.atleast_2d(values)
            np.testing.assert_array_equal(source.read(specs[name], xid), matrix)
    assert not list(tensor_misfits(source.hparams, source.specs()))


def test_a_layer_for_further_tokens_may_be_missing_as_a_whole(tmp_path: Path) -> None:
    """transformers does not save it; the converter counts it all the same, and the loader goes without it."""
    source = open_checkpoint(pico_glm(tmp_path / "m", stored_mtp=False))
    assert KeyValue.u32("glm4moe.block_count", 4) in source.arch_keys()
    assert max(spec.bid or 0 for spec in source.specs()) == 2
    assert not list(tensor_misfits(source.hparams, source.specs()))
    assert (source.hparams.n_layer, source.hparams.n_layer_run) == (4, 3)


def test_a_layer_for_further_tokens_may_not_be_missing_in_part(tmp_path: Path) -> None:
    folder = pico_glm(tmp_path / "m")
    stored, config = pico.read_checkpoint(folder), json.loads((folder / "config.json").read_text())
    del stored["model.layers.3.eh_proj.weight"]
    pico.write_checkpoint(folder, stored, config)
    with pytest.raises(CheckpointError, match=r"blk\.3\.nextn\.eh_proj\.weight: the checkpoint lacks tensor"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor must be a number up to 1, not 1.5"),
        ({"partial_rotary_factor": 0.7}, "the rotated part of a head 5 is odd: rotary positions need pairs"),
        (
            {"num_nextn_predict_layers": "one"},
            "num_hidden_layers+num_nextn_predict_layers cannot be computed",
        ),
        ({"n_shared_experts": 0}, "n_shared_experts 0 is outside of 1.."),
        ({"first_k_dense_replace": 0}, "the checkpoint lacks tensor 'model.layers.0.mlp"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(pico_glm(tmp_path / "m", **options))
    assert message in str(caught.value) and str(caught.value).isprintable()


# --- the pass over a text --------------------------------------------------------------------------------------------


def written_logits(folder: Path, tokens: np.ndarray) -> Tensor:
    """GLM-4.5 written out in plain torch for one chunk."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    w = {name: torch.from_numpy(pico.to_f32(one)) for name, one in pico.read_checkpoint(folder).items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[name + ".weight"]

    def turned(x: Tensor) -> Tensor:
        """The first ROT dimensions of x [P, H, d], pairs half of ROT apart."""
        angles = torch.arange(len(x))[:, None] * 10000.0 ** (-torch.arange(0, ROT, 2) / ROT)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        a, b, rest = x.split([ROT // 2, ROT // 2, GLM_HEAD_DIM - ROT], dim=-1)  # type: ignore[no-untyped-call]
        return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)

    def heads(x: Tensor, name: str, n_head: int) -> Tensor:
        bias = w.get(f"{name}_proj.bias", torch.zeros(()))
        y = (x @ w[f"{name}_proj.weight"].T + bias).view(len(x), n_head, GLM_HEAD_DIM)
        return norm(y, name + "_norm") if f"{name}_norm.weight" in w else y

    def network(x: Tensor, name: str) -> Tensor:
        up = silu(x @ w[name + "gate_proj.weight"].T) * (x @ w[name + "up_proj.weight"].T)
        return up @ w[name + "down_proj.weight"].T

    x = w["model.embed_tokens.weight"][torch.from_numpy(tokens).long()]
    mask = torch.ones(len(x), len(x)).triu(1).bool()
    for bid in range(config["num_hidden_layers"]):
        layer = LAYER.format(bid)
        h, attention = norm(x, layer + "input_layernorm"), layer + "self_attn."
        q = turned(heads(h, attention + "q", GLM_HEADS))
        k = turned(heads(h, attention + "k", GLM_KV_HEADS)).repeat_interleave(GLM_HEADS // GLM_KV_HEADS, 1)
        v = heads(h, attention + "v", GLM_KV_HEADS).repeat_interleave(GLM_HEADS // GLM_KV_HEADS, 1)
        scores = torch.einsum("phd,qhd->hpq", q, k) / GLM_HEAD_DIM**0.5
        mixed = torch.einsum("hpq,qhd->phd", scores.masked_fill(mask, -torch.inf).softmax(-1), v)
        x = x + mixed.flatten(1) @ w[attention + "o_proj.weight"].T
        h, mlp = norm(x, layer + "post_attention_layernorm"), layer + "mlp."
        if bid == 0:
            x = x + network(h, mlp)
            continue
        probs = (h @ w[mlp + "gate.weight"].T).sigmoid()
        ids = (probs + w[mlp + "gate.e_score_correction_bias"]).topk(2).indices
        weights = torch.zeros_like(probs).scatter(1, ids, probs.gather(1, ids))
        weights = weights / weights.sum(-1, keepdim=True) * config["routed_scaling_factor"]
        of_experts = torch.stack([network(h, f"{mlp}experts.{xid}.") for xid in range(E)])
        x = x + torch.einsum("te,etd->td", weights, of_experts) + network(h, mlp + "shared_experts.")
    return norm(x, "model.norm") @ w["lm_head.weight"].T


@pytest.mark.numeric
@pytest.mark.parametrize(
    "options", [{}, {"qk_norm": False, "biases": False, "n_mtp": 0}], ids=["355B", "Air"]
)
def test_logits(options: dict[str, Any], tmp_path: Path) -> None:
    folder = pico_glm(tmp_path / "m", **options)
    tokens = np.random.default_rng(1).integers(0, 48, (2, 24)).astype(np.int32)
    found: list[Tensor] = []
    forward(
        [Stream(open_checkpoint(folder))], tokens, on_logits=lambda _chunk, logits: found.append(logits[0])
    )
    for chunk, logits in zip(tokens, found, strict=True):
        torch.testing.assert_close(logits, written_logits(folder, chunk), rtol=1e-4, atol=1e-4)
