"""Attention in plain torch; shapes as in `layers`.

An `Attention` knows how the queries, keys and values of one layer are made and mixed. It is given the products with
its matrices, by the names of these without layer and suffix, so that whoever calls can watch or replace each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from calibration.forward.layers import Norm, Product
from calibration.forward.rope import Rope, rotate

__all__ = ["Attention", "Fused", "Grouped", "Latent", "LatentQueries", "attend", "stacked"]

Products = Mapping[str, Product]


@dataclass(frozen=True)
class Attention:
    """Causal attention of one layer over whole chunks of `rope.n_ctx` tokens.

    `inputs` are the matrices that the normed hidden states are multiplied with, `inner` those within `mix`, `OUTPUT`
    the one that is multiplied with what `mix` gives. A stack with a matrix per head is given as one product of
    x [t, H, n_in] (see `stacked`).
    """

    OUTPUT: ClassVar[str] = "attn_output"
    inputs: ClassVar[tuple[str, ...]] = ()
    inner: ClassVar[tuple[str, ...]] = ()

    rope: Rope
    n_head: int
    n_head_kv: int
    head_dim: int  # of queries and keys
    head_dim_v: int
    scale: float
    window: int = 0  # tokens, counted with the one that looks; 0: all
    sinks: Tensor | None = None  # f32 [H]: a logit that takes its share of each softmax, for nothing
    q_norm: Norm | None = None  # over each head, or over the whole row
    k_norm: Norm | None = None
    norm_behind_rotation: bool = False
    clamp: float = 0.0  # the limit of queries, keys and values; 0: none

    @property
    def matrices(self) -> tuple[str, ...]:
        """The names of all matrices, in the order in which they are used."""
        return (*self.inputs, *self.inner, self.OUTPUT)

    def mix(self, x: Tensor, products: Products, cached: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Normed hidden states x [C P, D] -> [C P, H d]: what the output matrix is multiplied with.

        `cached` may change rotated keys and values [C, P, G, d], as a cache does that rounds what it holds.
        """
        raise NotImplementedError

    def __call__(
        self, x: Tensor, products: Products, cached: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Normed hidden states x [C P, D] -> [C P, D]; `cached`: see `mix`."""
        return products[self.OUTPUT](self.mix(x, products, cached))

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor, cached: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Queries [C P, H d], keys and values [C P, G d] as the products give them -> [C P, H d]."""
        if self.clamp:
            q, k, v = (x.clamp(-self.clamp, self.clamp) for x in (q, k, v))
        shape = (len(q) // self.rope.n_ctx, self.rope.n_ctx)
        q = self._rotated(q, self.q_norm, (*shape, self.n_head, self.head_dim))
        k = self._rotated(k, self.k_norm, (*shape, self.n_head_kv, self.head_dim))
        v = v.view(*shape, self.n_head_kv, self.head_dim_v)
        if cached is not None:
            k, v = cached(k), cached(v)
        mixed = attend(q, k, v, self.scale, window=self.window, sinks=self.sinks)
        return mixed.reshape(len(mixed) * self.rope.n_ctx, -1)

    def _rotated(self, x: Tensor, norm: Norm | None, shape: tuple[int, ...]) -> Tensor:
        dtype = x.dtype
        if norm is not None and not self.norm_behind_rotation:
            if len(norm.weight) == self.head_dim:
                x = x.view(shape)
            x = norm(x).to(dtype)
        x = rotate(x.view(shape), self.rope)
        return norm(x).to(dtype) if norm is not None and self.norm_behind_rotation else x


@dataclass(frozen=True)
class Grouped(Attention):
    """Queries, keys and values by a matrix each."""

    inputs: ClassVar[tuple[str, ...]] = ("attn_q", "attn_k", "attn_v")

    def mix(self, x: Tensor, products: Products, cached: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """See `Attention.mix`."""
        q, k, v = (products[name](x) for name in self.inputs)
        return self._mixed(q, k, v, cached)


@dataclass(frozen=True)
class Fused(Attention):
    """Queries, keys and values by one matrix, their rows in this order."""

    inputs: ClassVar[tuple[str, ...]] = ("attn_qkv",)

    def mix(self, x: Tensor, products: Products, cached: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """See `Attention.mix`."""
        sizes = [
            self.n_head * self.head_dim,
            self.n_head_kv * self.head_dim,
            self.n_head_kv * self.head_dim_v,
        ]
        q, k, v = torch.split(products["attn_qkv"](x), sizes, dim=-1)
        return self._mixed(q, k, v, cached)


@dataclass(frozen=True)
class Latent(Attention):
    """DeepSeek's latent attention (MLA) with the matrices of keys absorbed (llama.cpp's src/models/deepseek2.cpp).

    All heads share one key, the normed latent vector [L] followed by a rotated part, and one value, the latent vector
    itself. A query's part that is not rotated is taken into the latent space by its head's `attn_k_b`, the mixture of
    latent vectors out of it by `attn_v_b`. `head_dim` and `head_dim_v` are those of heads as they were trained, rotated
    part last; `k_norm` is over the latent vector, `q_norm` over that of queries.
    """

    inputs: ClassVar[tuple[str, ...]] = ("attn_q", "attn_kv_a_mqa")
    inner: ClassVar[tuple[str, ...]] = ("attn_k_b", "attn_v_b")

    def mix(self, x: Tensor, products: Products, cached: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """See `Attention.mix`."""
        assert self.k_norm is not None
        n_latent, n_rot = len(self.k_norm.weight), self.rope.n_rot
        shape = (len(x) // self.rope.n_ctx, self.rope.n_ctx)
        q = self._queries(x, products).view(len(x), self.n_head, self.head_dim)
        plain, rotated = torch.split(q, [self.head_dim - n_rot, n_rot], dim=-1)
        absorbed = products["attn_k_b"](plain).view(*shape, self.n_head, n_latent)
        q = torch.cat((absorbed, rotate(rotated.reshape(*shape, self.n_head, n_rot), self.rope)), dim=-1)
        latent, rotated = torch.split(products["attn_kv_a_mqa"](x), [n_latent, n_rot], dim=-1)
        latent = self.k_norm(latent).to(q.dtype).view(*shape, 1, n_latent)
        k = torch.cat((latent, rotate(rotated.reshape(*shape, 1, n_rot), self.rope)), dim=-1)
        if cached is not None:
            k = cached(k)
        mixed = attend(q, k, k[..., :n_latent], self.scale)
        return products["attn_v_b"](mixed.reshape(len(x), self.n_head, n_latent)).flatten(1)

    def _queries(self, x: Tensor, products: Products) -> Tensor:
        """x [t, D] -> [t, H head_dim]."""
        return products["attn_q"](x)


@dataclass(frozen=True)
class LatentQueries(Latent):
    """The same with a latent vector of queries, too."""

    inputs: ClassVar[tuple[str, ...]] = ("attn_q_a", "attn_kv_a_mqa")
    inner: ClassVar[tuple[str, ...]] = ("attn_q_b", "attn_k_b", "attn_v_b")

    def _queries(self, x: Tensor, products: Products) -> Tensor:
        """See `Latent`."""
        assert self.q_norm is not None
        latent = products["attn_q_a"](x)
        return products["attn_q_b"](self.q_norm(latent).to(latent.dtype))


def stacked(products: Sequence[Product]) -> Product:
    """The product with a stack of matrices, one per head: x [t, H, n_in] -> [t, H, n_out]; a lone one is itself."""
    if len(products) == 1:
        return products[0]

    def multiply(x: Tensor) -> Tensor:
        heads = x.unbind(dim=1)
        return torch.stack(
            [product(head.contiguous()) for product, head in zip(products, heads, strict=True)], dim=1
        )

    return multiply


def attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, *, window: int = 0, sinks: Tensor | None = None
) -> Tensor:
    """Causal attention within each chunk: q [C, P, H, d], k [C, P, G, d], v [C, P, G, e] -> [C, P, H, e].

    H is a multiple of G. With a window a token sees itself and the `window` - 1 before it. A sink is one more logit of
    each head's softmax, whose share of the values is nothing (ggml's ggml_soft_max_add_sinks).
    """
    n_group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [C, H or G, P, d]
    if n_group > 1 and k.shape[1] == 1:
        k, v = (x.expand(-1, n_group, -1, -1) for x in (k, v))
    elif n_group > 1:
        k, v = k.repeat_interleave(n_group, dim=1), v.repeat_interleave(n_group, dim=1)
    n_ctx = q.shape[2]
    if sinks is None and not 0 < window < n_ctx:
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        return y.transpose(1, 2)
    bias = _mask(n_ctx, window, q.device).to(q.dtype)[None]
    if sinks is not None:
        k, v = (torch.cat((x, torch.zeros_like(x[:, :, :1])), dim=2) for x in (k, v))
        of_sink = sinks.to(q.dtype)[:, None, None].expand(-1, n_ctx, 1)
        bias = torch.cat((bias.expand(len(sinks), -1, -1), of_sink), dim=-1)
    y = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    return y.transpose(1, 2)


def _mask(n_ctx: int, window: int, device: torch.device) -> Tensor:
    """f32 [P, P]: 0 where the token of the row sees that of the column, else -inf."""
    places = torch.arange(n_ctx, device=device)
    distance = places[:, None] - places
    seen = (distance >= 0) & (distance < window) if window else distance >= 0
    return torch.zeros(n_ctx, n_ctx, device=device).masked_fill_(~seen, -torch.inf)
