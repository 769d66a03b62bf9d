"""Gated delta nets and gated attention in plain torch, as Qwen3-Next has them by turns; shapes as in `layers`.

llama.cpp's src/models/qwen3next.cpp and delta-net-base.cpp; https://arxiv.org/abs/2412.06464.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from calibration.forward.attention import Attention, Products
from calibration.forward.layers import Norm

__all__ = ["DeltaNet", "DeltaNetWeights", "Gated"]


@dataclass(frozen=True)
class Gated(Attention):
    """Attention whose results are weighed by sigmoid gates; the rows of a head are its query, then its gate."""

    inputs: ClassVar[tuple[str, ...]] = ("attn_q", "attn_k", "attn_v")

    def mix(self, x: Tensor, products: Products, cached: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """See `Attention.mix`."""
        q, k, v = (products[name](x) for name in self.inputs)
        q, gate = q.view(len(x), self.n_head, 2, self.head_dim).unbind(2)
        mixed = self._mixed(q.reshape(len(x), -1), k, v, cached)
        return mixed * gate.reshape(len(x), -1).sigmoid()


@dataclass(frozen=True)
class DeltaNetWeights:
    """What a gated delta net has beside its matrices; `d` is the width of its heads, `S` those of values."""

    conv: (
        Tensor  # f32 [n_channel, n_kernel]: over the last tokens of each channel of queries, keys and values
    )
    dt_bias: Tensor  # f32 [S]
    decay: Tensor  # f32 [S], below 0
    norm: Norm  # over d
    n_key_heads: int
    width: int  # d

    @property
    def n_value_heads(self) -> int:
        """S, a multiple of `n_key_heads`."""
        return len(self.decay)


@dataclass(frozen=True)
class DeltaNet(Attention):
    """A layer that carries a state [d, d] for each head from token to token, instead of looking back."""

    OUTPUT: ClassVar[str] = "ssm_out"
    inputs: ClassVar[tuple[str, ...]] = ("attn_qkv", "attn_gate", "ssm_ba")

    net: DeltaNetWeights | None = None

    def mix(self, x: Tensor, products: Products, cached: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """See `Attention.mix`; `cached` is not asked, because the state is kept in float32."""
        net = self.net
        assert net is not None
        shape = (len(x) // self.rope.n_ctx, self.rope.n_ctx)
        n_group, d = net.n_value_heads // net.n_key_heads, net.width
        qkv, z, ba = (products[name](x) for name in self.inputs)
        sizes = [net.n_key_heads * d, net.n_key_heads * d, net.n_value_heads * d]
        convolved = functional.silu(_convolved(qkv.float().view(*shape, -1), net.conv))
        q, k, v = (part.view(*shape, -1, d) for part in torch.split(convolved, sizes, dim=-1))
        q, k = (_unit(one, net.norm.eps).repeat_interleave(n_group, dim=2) for one in (q, k))
        # Of each key head: the strengths of its value heads, then what their decay follows from.
        strength, step = ba.float().view(*shape, net.n_key_heads, 2, n_group).unbind(3)
        decay = (functional.softplus(step.reshape(*shape, -1) + net.dt_bias) * net.decay).exp()
        y = _recurrent(q * d**-0.5, k, v, decay, strength.reshape(*shape, -1).sigmoid())
        gate = functional.silu(z.float().view(*shape, -1, d))
        return (net.norm(y) * gate).reshape(len(x), -1).to(qkv.dtype)


def _unit(x: Tensor, eps: float) -> Tensor:
    """x [..., d] / sqrt(|x|² + eps)."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def _convolved(x: Tensor, kernel: Tensor) -> Tensor:
    """Each channel of x f32 [C, P, n] weighed over its last tokens by its row of the kernel f32 [n, n_kernel]."""
    n_kernel = kernel.shape[1]
    channels = functional.pad(x.transpose(1, 2), (n_kernel - 1, 0))
    return functional.conv1d(channels, kernel[:, None], groups=len(kernel)).transpose(1, 2)


def _recurrent(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, strength: Tensor) -> Tensor:
    """The delta rule, token by token: q, k, v f32 [C, P, S, d], decay and strength f32 [C, P, S] -> [C, P, S, d].

    The state fades by the decay; what it holds under the key is moved towards the value, by the strength; the query
    reads it.
    """
    n_chunk, n_ctx, n_head, d = v.shape
    state = v.new_zeros(n_chunk, n_head, d, d)  # [keys, values]
    found = []
    for p in range(n_ctx):
        state = state * decay[:, p, :, None, None]
        held = torch.einsum("csk,cskv->csv", k[:, p], state)
        delta = (v[:, p] - held) * strength[:, p, :, None]
        state = state + k[:, p, :, :, None] * delta[:, :, None]
        found.append(torch.einsum("csk,cskv->csv", q[:, p], state))
    return torch.stack(found, dim=1)
