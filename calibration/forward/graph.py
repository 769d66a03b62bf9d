"""The steps of one model: which tensors each of them uses, by the graph of its architecture and the tensors it has."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from calibration.forward.attention import Attention, Fused, Grouped, Latent, LatentQueries
from calibration.forward.delta_net import DeltaNet, DeltaNetWeights, Gated
from calibration.forward.layers import Activation, Norm
from calibration.forward.rope import Rope, latent_scale
from calibration.forward.routing import Router
from quantize.exceptions import CheckpointError
from quantize.families import graph_of, known_archs
from quantize.families.graph import Gating
from quantize.hparams import Hparams

__all__ = [
    "EMBEDDING",
    "OUTPUT",
    "OUTPUT_NORM",
    "ROPE_FACTORS",
    "ModelGraph",
    "Unit",
    "Vector",
    "bias_of",
    "name_in_layer",
]

EMBEDDING, OUTPUT, OUTPUT_NORM = "token_embd.weight", "output.weight", "output_norm.weight"
ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")

WEIGHT, BIAS = ".weight", ".bias"

KINDS: dict[str, type[Attention]] = {
    "grouped": Grouped,
    "fused": Fused,
    "latent": Latent,
    "delta": Gated,
}
GATINGS: dict[int, Gating] = {0: "softmax", 1: "softmax", 2: "sigmoid", 3: "softmax_weight"}
"""llama_expert_gating_func_type (llama.cpp's src/llama-hparams.h); a file without the key means softmax."""

Vector = Callable[[str], Tensor]
"""Reads a norm, a bias or the like by its name, f32 [n] on the device."""


@dataclass(frozen=True)
class Unit:
    """One feed-forward network: a dense layer, an expert, or the shared experts of a layer, which are one network.

    `names` are those of gate, up and down; the vector `gate_name` weighs the shared experts, where there is one.
    """

    kind: Literal["dense", "expert", "shared"]
    bid: int
    xid: int = 0
    gate_name: str = ""

    @property
    def names(self) -> tuple[str, str, str]:
        """The matrices gate, up and down."""
        suffix = {"dense": "", "expert": "_exps", "shared": "_shexp"}[self.kind]
        gate, up, down = (name_in_layer(self.bid, f"ffn_{step}{suffix}") for step in ("gate", "up", "down"))
        return gate, up, down

    @property
    def place(self) -> str:
        """What messages call it."""
        whose = {"dense": "the feed-forward", "expert": f"expert {self.xid}", "shared": "the shared experts"}
        return f"{whose[self.kind]} of layer {self.bid}"


class ModelGraph:
    """The steps of a model, in the order of llama.cpp's graph of its architecture."""

    def __init__(self, hparams: Hparams, names: Collection[str], *, label: str = "") -> None:
        """Take a model by its dimensions and the names of its tensors.

        Raises:
            CheckpointError: no pass over such a model is known.
        """
        graph = graph_of(hparams.arch)
        if graph is None or graph.attention not in KINDS:
            message = f"the forward pass does not know arch {hparams.arch!r}"
            raise CheckpointError(label, message, f"known: {', '.join(_archs())}")
        self.hparams, self.names, self.graph, self.label = hparams, names, graph, label

    # -- norms

    def attention_norm(self, bid: int) -> str:
        """The name of the norm in front of attention."""
        return name_in_layer(bid, "attn_norm")

    def feed_forward_norm(self, bid: int) -> str:
        """The name of the norm in front of the feed-forward layer."""
        return name_in_layer(bid, self.graph.feed_forward_norm)

    def norm(self, name: str, vector: Vector) -> Norm:
        """A norm by the name of its weight."""
        bias = vector(bias_of(name)) if bias_of(name) in self.names else None
        return Norm(vector(name), self.hparams.norm_eps, bias, self.graph.norm == "layer")

    # -- attention

    @property
    def attention_kind(self) -> type[Attention]:
        """How queries, keys and values are made."""
        if self.graph.attention == "latent" and name_in_layer(0, "attn_q_a") in self.names:
            return LatentQueries
        return KINDS[self.graph.attention]

    def attention_matrices(self, bid: int) -> tuple[str, ...]:
        """The names of the matrices of a layer's attention, in the order in which they are used."""
        has_net = name_in_layer(bid, DeltaNet.OUTPUT) in self.names
        kind = DeltaNet if has_net else self.attention_kind
        return tuple(name_in_layer(bid, stem) for stem in (*kind.inputs, *kind.inner, kind.OUTPUT))

    def attention(self, bid: int, rope: Rope, vector: Vector) -> Attention:
        """The attention of a layer, with its norms and sinks."""
        hparams = self.hparams

        def found(stem: str) -> str | None:
            name = name_in_layer(bid, stem)
            return name if name in self.names else None

        kind = self.attention_kind
        if issubclass(kind, Latent):
            q_norm = found("attn_q_a_norm")
            return kind(
                rope=rope,
                n_head=hparams.n_head,
                n_head_kv=1,
                head_dim=hparams.dims["head_dim_mla"],
                head_dim_v=hparams.dims["head_dim_v_mla"],
                scale=latent_scale(hparams),
                q_norm=None if q_norm is None else self.norm(q_norm, vector),
                k_norm=self.norm(name_in_layer(bid, "attn_kv_a_norm"), vector),
            )
        q_norm, k_norm, sinks = (found(stem) for stem in ("attn_q_norm", "attn_k_norm", "attn_sinks"))
        has_net = name_in_layer(bid, DeltaNet.OUTPUT) in self.names
        make = partial(DeltaNet, net=self._delta_net(bid, vector)) if has_net else kind
        return make(
            rope=rope,
            n_head=hparams.n_head,
            n_head_kv=hparams.n_head_kv,
            head_dim=hparams.head_dim,
            head_dim_v=hparams.head_dim_v,
            scale=hparams.attention_scale or hparams.head_dim**-0.5,
            window=hparams.n_swa if self._sees_window(bid) else 0,
            sinks=None if sinks is None else vector(sinks),
            q_norm=None if q_norm is None else self.norm(q_norm, vector),
            k_norm=None if k_norm is None else self.norm(k_norm, vector),
            norm_behind_rotation=self.graph.norm_behind_rotation,
            clamp=hparams.clamp_kqv,
        )

    def _delta_net(self, bid: int, vector: Vector) -> DeltaNetWeights:
        """What a layer of a gated delta net has beside its matrices.

        Raises:
            CheckpointError: the matrices lie as llama.cpp's converter first wrote them.
        """
        old = name_in_layer(bid, "ssm_in")
        if old in self.names:
            message = f"{old} is of a layout that the forward pass does not know"
            raise CheckpointError(self.label, message, "convert the model again")
        extra = self.hparams.extra
        return DeltaNetWeights(
            conv=vector(name_in_layer(bid, "ssm_conv1d")).view(-1, int(extra["ssm_d_conv"])),
            dt_bias=vector(f"blk.{bid}.ssm_dt{BIAS}"),
            decay=vector(f"blk.{bid}.ssm_a"),
            norm=self.norm(name_in_layer(bid, "ssm_norm"), vector),
            n_key_heads=int(extra["ssm_n_group"]),
            width=int(extra["ssm_d_state"]),
        )

    def _sees_window(self, bid: int) -> bool:
        """Whether a layer attends to the sliding window only (llama.cpp: llama_hparams::set_swa_pattern)."""
        every = self.graph.window_every
        if not every:
            return False
        return bid % every != (0 if self.graph.window_first else every - 1)

    # -- feed-forward

    @property
    def activation(self) -> Activation:
        """Of the gates."""
        return self.graph.activation

    def router_name(self, bid: int) -> str | None:
        """The router's matrix; None in a dense layer."""
        name = name_in_layer(bid, "ffn_gate_inp")
        return name if name in self.names else None

    def router(self, bid: int, weight: Tensor, vector: Vector) -> Router:
        """The router of a layer; `weight` is its matrix f32 [E, D]."""
        hparams, graph = self.hparams, self.graph
        bias, selection = (f"blk.{bid}.{stem}{BIAS}" for stem in ("ffn_gate_inp", "exp_probs_b"))
        normalized = hparams.expert_weights_norm if graph.normalized is None else graph.normalized
        return Router(
            weight,
            hparams.n_expert_used,
            bias=vector(bias) if bias in self.names else None,
            selection_bias=vector(selection) if selection in self.names else None,
            gating=graph.gating or GATINGS.get(hparams.expert_gating_func, "softmax"),
            is_normalized=normalized,
            scale=hparams.expert_weights_scale if graph.scaled else 0.0,
            n_groups=hparams.n_expert_groups,
            n_group_used=hparams.n_group_used,
        )

    def units(self, bid: int) -> Sequence[Unit]:
        """The networks of a layer: one that is dense, or the experts by their numbers, then the shared ones."""
        if self.router_name(bid) is None:
            return [Unit("dense", bid)]
        units = [Unit("expert", bid, xid) for xid in range(self.hparams.n_expert)]
        gate = name_in_layer(bid, "ffn_gate_inp_shexp")
        shared = Unit("shared", bid, gate_name=gate if gate in self.names else "")
        return [*units, shared] if shared.names[0] in self.names else units


def _archs() -> list[str]:
    """The architectures that a pass can compute."""
    return [arch for arch in known_archs() if (graph := graph_of(arch)) and graph.attention in KINDS]


def name_in_layer(bid: int, stem: str) -> str:
    """The name of a weight in a layer."""
    return f"blk.{bid}.{stem}{WEIGHT}"


def bias_of(name: str) -> str:
    """The name of the bias that belongs to a matrix or a norm."""
    return name.removesuffix(WEIGHT) + BIAS
