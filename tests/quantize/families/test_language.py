"""The words that a family with latent attention and experts of their own width needs, on an invented one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest

import quantize.families
from gguf_export.checking.structure import check_structure
from gguf_export.writing.header import header
from quantize.containers.keys import KeyValue
from quantize.exceptions import CheckpointError
from quantize.families import FAMILIES, Family, family_of, supported_architectures
from quantize.families.expressions import evaluate
from quantize.families.key_table import BASE, KNOWN, known
from quantize.families.keys import Key, derived
from quantize.families.language import (
    Tensor,
    dense_layers,
    each_layer,
    flat,
    moe_layers,
    part,
    tensor,
    transposed,
)
from quantize.families.roles import is_layer_matrix, is_router
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe, RecipeFacts, make_plan
from quantize.sources.checkpoint import Checkpoint
from quantize.sources.gguf_file import GGUFFile
from quantize.tensors import QType, TensorSpec

V, D, F, FX, E, H = 16, 32, 24, 10, 3, 4  # tokens, width, dense and expert width, experts, heads
LORA, NOPE, ROT, HV = 12, 6, 4, 5  # rank of the latent, the two parts of a key, a value

LAYER = "layers.{bid}."
KV_B = flat("attn.kv_b")
ROWS_OF_KV_B = "head_dim-n_rot+head_dim_v"

LATENT = Family(
    architectures=("LatentForCausalLM",),
    arch="latent",
    rope_theta=10000.0,
    rope_neox=True,
    defaults={},
    if_null={"num_key_value_heads": "num_attention_heads"},
    keys=(
        *BASE,
        Key("leading_dense_block_count", "n_layer_dense_lead", config="first_k_dense", minimum=0),
        Key("vocab_size", made="n_vocab"),
        Key("attention.kv_lora_rank", "kv_lora_rank", config="kv_lora_rank"),
        known("attention.key_length", config=derived("qk_nope_head_dim+qk_rope_head_dim")),
        known("attention.value_length", config="v_head_dim"),
        known("expert_feed_forward_length", config="moe_width"),
        known("expert_count", config="n_routed"),
        known("expert_used_count", config="per_token"),
        known("expert_shared_count", config="n_shared"),
        known("expert_weights_scale", config="routed_scale"),
        known("expert_weights_norm", config="norm_topk", optional=True),
        Key("rope.dimension_count", "n_rot", config="qk_rope_head_dim"),
    ),
    n_layer_dense_lead="n_layer_dense_lead",
    tensors=(
        tensor("token_embd.weight", "n_vocab n_embd", "embed"),
        tensor("output_norm.weight", "n_embd", "norm"),
        *each_layer(
            LAYER,
            tensor("attn_q.weight", "n_head*head_dim n_embd", "attn.q"),
            tensor(
                "attn_q.bias",
                "n_head*head_dim",
                part("attn.bias", ":n_head*head_dim", of="n_head*head_dim+9"),
            ),
            tensor("attn_k.bias", "9", part("attn.bias", "n_head*head_dim:", of="n_head*head_dim+9")),
            tensor("attn_kv_a_mqa.weight", "kv_lora_rank+n_rot n_embd", "attn.kv_a"),
            tensor("attn_kv_a_norm.weight", "kv_lora_rank", "attn.kv_a_norm"),
            tensor(
                "attn_k_b.weight",
                "n_head kv_lora_rank head_dim-n_rot",
                transposed(part(KV_B, ":head_dim-n_rot", of=ROWS_OF_KV_B, axis=-1)),
            ),
            tensor(
                "attn_v_b.weight",
                "n_head head_dim_v kv_lora_rank",
                part(KV_B, "head_dim-n_rot:", of=ROWS_OF_KV_B),
            ),
            tensor("attn_output.weight", "n_embd n_head*head_dim_v", "attn.o"),
        ),
        *dense_layers(LAYER, tensor("ffn_up.weight", "n_ff n_embd", "mlp.up")),
        *moe_layers(
            LAYER,
            tensor("ffn_gate_inp.weight", "n_expert n_embd", "mlp.gate"),
            tensor("ffn_up_exps.weight", "n_expert n_ff_exp n_embd", "mlp.experts.{xid}.up"),
            tensor("ffn_down_exps.weight", "n_expert n_embd n_ff_exp", flat("mlp.experts.down")),
            tensor("ffn_up_shexp.weight", "n_expert_shared*n_ff_exp n_embd", "mlp.shared.up"),
        ),
    ),
)

CONFIG: dict[str, Any] = {
    "architectures": ["LatentForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": D,
    "intermediate_size": F,
    "num_attention_heads": H,
    "max_position_embeddings": 64,
    "rms_norm_eps": 2.0**-17,
    "vocab_size": V,
    "first_k_dense": 1,
    "kv_lora_rank": LORA,
    "qk_nope_head_dim": NOPE,
    "qk_rope_head_dim": ROT,
    "v_head_dim": HV,
    "moe_width": FX,
    "n_routed": E,
    "per_token": 2,
    "n_shared": 2,
    "routed_scale": 2.5,
}


def stored_tensors() -> dict[str, Any]:
    rng = np.random.default_rng(3)

    def some(*shape: int) -> Any:
        return rng.standard_normal(shape, dtype=np.float32)

    stored = {"embed": some(V, D), "norm": some(D)}
    for bid in range(2):
        layer = {
            "attn.q": some(H * (NOPE + ROT), D),
            "attn.bias": some(H * (NOPE + ROT) + 9),
            "attn.kv_a": some(LORA + ROT, D),
            "attn.kv_a_norm": some(LORA),
            "attn.kv_b": some(H * (NOPE + HV), LORA),
            "attn.o": some(D, H * HV),
        }
        if bid == 0:
            layer["mlp.up"] = some(F, D)
        else:
            layer |= {"mlp.gate": some(E, D), "mlp.experts.down": some(E * D, FX)}
            layer |= {f"mlp.experts.{xid}.up": some(FX, D) for xid in range(E)}
            layer["mlp.shared.up"] = some(2 * FX, D)
        stored |= {f"layers.{bid}.{name}": values for name, values in layer.items()}
    return stored


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pico.write_checkpoint(tmp_path / "latent", stored_tensors(), CONFIG)
    return tmp_path / "latent"


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The invented family is one of those that are known."""
    monkeypatch.setattr(quantize.families, "_families", lambda: (LATENT,))


def test_a_stack_of_heads_is_cut_out_of_one_matrix(folder: Path) -> None:
    checkpoint = Checkpoint(folder, LATENT)
    specs = {spec.name: spec for spec in checkpoint.specs()}
    stored = pico.read_checkpoint(folder)
    heads = stored["layers.1.attn.kv_b"].reshape(H, NOPE + HV, LORA)
    k_b, v_b = specs["blk.1.attn_k_b.weight"], specs["blk.1.attn_v_b.weight"]
    assert (k_b.shape, v_b.shape) == ((H, LORA, NOPE), (H, HV, LORA))
    for head in range(H):
        np.testing.assert_array_equal(checkpoint.read(k_b, head), heads[head, :NOPE].T)
        np.testing.assert_array_equal(checkpoint.read(v_b, head), heads[head, NOPE:])
        np.testing.assert_array_equal(checkpoint.read(v_b, head, (1, 3)), heads[head, NOPE + 1 : NOPE + 3])
        np.testing.assert_array_equal(checkpoint.read(k_b, head, (2, 5)), heads[head, :NOPE].T[2:5])
    assert not k_b.has_experts and k_b.n_matrix == H and "expert" not in k_b.label(1)
    assert (checkpoint.row_step(k_b), checkpoint.row_step(v_b)) == (LORA, 1)
    before = checkpoint.bytes_read
    checkpoint.read(v_b, 0)
    assert checkpoint.bytes_read - before == 4 * HV * LORA  # and not its neighbours


def test_experts_have_a_width_of_their_own(folder: Path) -> None:
    checkpoint = Checkpoint(folder, LATENT)
    specs = {spec.name: spec for spec in checkpoint.specs()}
    stored = pico.read_checkpoint(folder)
    up, down = specs["blk.1.ffn_up_exps.weight"], specs["blk.1.ffn_down_exps.weight"]
    assert (up.shape, down.shape) == ((E, FX, D), (E, D, FX))
    assert specs["blk.0.ffn_up.weight"].shape == (F, D) and specs["blk.1.ffn_up_shexp.weight"].shape == (
        2 * FX,
        D,
    )
    for xid in range(E):
        np.testing.assert_array_equal(checkpoint.read(up, xid), stored[f"layers.1.mlp.experts.{xid}.up"])
        np.testing.assert_array_equal(
            checkpoint.read(down, xid), stored["layers.1.mlp.experts.down"][xid * D : (xid + 1) * D]
        )
    bias = stored["layers.0.attn.bias"]
    n_q = H * (NOPE + ROT)
    np.testing.assert_array_equal(checkpoint.read(specs["blk.0.attn_q.bias"]), bias[None, :n_q])
    np.testing.assert_array_equal(checkpoint.read(specs["blk.0.attn_k.bias"]), bias[None, n_q:])
    assert checkpoint.n_bytes == sum(values.nbytes for values in stored.values())


def test_keys_stand_in_the_order_of_the_family(folder: Path) -> None:
    checkpoint = Checkpoint(folder, LATENT)
    keys = {kv.key.removeprefix("latent."): kv for kv in checkpoint.arch_keys()}
    assert list(keys)[8:] == [
        "leading_dense_block_count",
        "vocab_size",
        "attention.kv_lora_rank",
        "attention.key_length",
        "attention.value_length",
        "expert_feed_forward_length",
        "expert_count",
        "expert_used_count",
        "expert_shared_count",
        "expert_weights_scale",
        "rope.dimension_count",
    ]
    assert keys["attention.key_length"] == KeyValue.u32("latent.attention.key_length", NOPE + ROT)
    assert keys["expert_weights_scale"] == KeyValue.f32("latent.expert_weights_scale", 2.5)
    hparams = checkpoint.hparams
    assert (hparams.head_dim, hparams.head_dim_v) == (NOPE + ROT, HV)
    assert (hparams.n_ff, hparams.n_ff_exp) == (F, FX)
    assert (hparams.n_layer_dense_lead, hparams.n_expert_shared, hparams.n_rot) == (1, 2, ROT)
    assert hparams.extra == {"kv_lora_rank": LORA}


def test_config_json_and_the_file_mean_the_same(folder: Path, declared: None) -> None:
    """config.json -> keys -> hyper-parameters -> tensors, and a file of these keys back again."""
    checkpoint = Checkpoint(folder)
    plan = make_plan(checkpoint.specs(), RecipeFacts.of(checkpoint.hparams), Recipe(ftype("F32")), False)
    keys = [KeyValue.text("general.architecture", "latent"), *checkpoint.arch_keys()]
    path = folder / "latent.gguf"
    path.write_bytes(header(keys, plan) + bytes(plan.data_bytes))
    file = GGUFFile(path)
    assert file.hparams == checkpoint.hparams and file.hparams.rope_neox
    assert list(file.arch_keys()) == list(checkpoint.arch_keys())
    findings = [finding for finding in check_structure(file) if not finding.place.startswith("tokenizer.")]
    assert [finding for finding in findings if finding.severity == "error"] == []

    path.write_bytes(header(keys[:-1], plan) + bytes(plan.data_bytes))
    told = [str(finding) for finding in check_structure(GGUFFile(path))]
    assert any("latent.rope.dimension_count: is missing" in line for line in told)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"kv_lora_rank": None}, "kv_lora_rank must be a whole number"),
        ({"routed_scale": True}, "routed_scale must be a number above 0"),
        ({"norm_topk": 1}, "norm_topk must be true or false, but is 1"),
        ({"v_head_dim": 7}, r"attn\.kv_b': has shape \[44, 12\], but config\.json asks for \[52, 12\]"),
        ({"qk_nope_head_dim": "4"}, r"qk_nope_head_dim\+qk_rope_head_dim cannot be computed"),
        ({"qk_nope_head_dim": 2**31}, r"attention\.key_length would be 2147483652, outside of 1\.\."),
    ],
)
def test_a_config_that_does_not_fit(folder: Path, change: dict[str, Any], fault: str) -> None:
    pico.write_checkpoint(folder, stored_tensors(), CONFIG | change)
    with pytest.raises(CheckpointError, match=fault):
        Checkpoint(folder, LATENT)


def test_a_part_must_be_as_large_as_the_tensor(folder: Path) -> None:
    wrong = tensor("token_embd.weight", "n_vocab n_embd", part("embed", "1:n_vocab", of="n_vocab"))
    family = Family(**{**vars(LATENT), "tensors": (wrong, *LATENT.tensors[1:])})
    with pytest.raises(CheckpointError, match=r"would be 16 of 16 rows, but 1:n_vocab are 1 to 16"):
        Checkpoint(folder, family)


def test_a_declaration_that_means_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="n_expert first"):
        tensor("ffn_up_exps.weight", "n_head n_ff n_embd", "experts.{xid}.up")
    with pytest.raises(ValueError, match="n_expert first"):
        tensor("ffn_up_exps.bias", "n_expert n_ff", "experts.{xid}.bias")
    with pytest.raises(ValueError, match="only a stack"):
        tensor("attn_q.weight", "n_embd n_embd", flat("q"))
    with pytest.raises(ValueError, match="no range"):
        part("q", "3", of="9")


def test_sums_and_differences() -> None:
    values = {"a": 7, "b": 3, "c": 2}
    assert evaluate("a+b", values) == 10
    assert evaluate("a-b-c", values) == 2
    assert evaluate("2*a + b*c - 1", values) == 19
    assert evaluate("a/c*b", values) == 9
    for hostile in ("a**b", "a.real", "f(a)", "a b", "", "-a", "__import__"):
        with pytest.raises((KeyError, ValueError)):
            evaluate(hostile, values)


# --- all families ----------------------------------------------------------------------------------------------------


def families() -> list[Family]:
    names = supported_architectures()
    assert len(names) >= len(FAMILIES)
    return [*(family_of({"architectures": [name]}) for name in names), LATENT]


def declared_tensors() -> list[Tensor]:
    return [tensor for family in families() for tensor in family.tensors]


def test_a_stack_of_experts_is_called_so() -> None:
    """What the language says by the axis n_expert, `TensorSpec` says by the name."""
    for declaration in declared_tensors():
        shape = tuple(2 for _ in declaration.axes)
        spec = TensorSpec(declaration.name.format(bid=0), shape, QType.F32)
        assert spec.has_experts == declaration.has_experts, declaration.name
        assert declaration.has_experts == (len(shape) == 3 and "n_expert" in declaration.axes)


def test_matrices_of_a_layer() -> None:
    told = {
        declaration.name: (is_layer_matrix(spec), is_router(spec))
        for declaration in declared_tensors()
        for spec in [
            TensorSpec(declaration.name.format(bid=3), tuple(2 for _ in declaration.axes), QType.F32)
        ]
    }
    assert told["blk.{bid}.ffn_up_exps.weight"] == told["blk.{bid}.attn_k_b.weight"] == (True, False)
    assert told["blk.{bid}.ffn_gate_inp.weight"] == (True, True)
    for name in ("token_embd.weight", "output.weight", "blk.{bid}.attn_norm.weight", "blk.{bid}.attn_q.bias"):
        assert told[name] == (False, False)
    assert not is_layer_matrix(TensorSpec("blk.0.attn_q_norm.weight", (4, 8), QType.F32))
    assert not is_layer_matrix(TensorSpec("blk.0.ffn_up_exps.bias", (4, 8), QType.F32))


def test_every_key_of_a_family_is_said_once() -> None:
    for family in families():
        names = [row.name for row in family.keys]
        fields = [row.field for row in family.keys if row.field]
        assert len(set(names)) == len(names) and len(set(fields)) == len(fields)
        for row in family.keys:
            assert [bool(row.config), bool(row.made), row.flags is not None].count(True) == 1, row.name
            assert row.name not in KNOWN or row.type == KNOWN[row.name].type
