"""The arithmetic of a layer in plain torch: pure functions, activations and weights in, activations out.

Nothing here reads, observes, takes the time or changes an argument, and gradients flow through all of it.

Shape alphabet: `T` tokens, `C` chunks, `P` positions of a chunk, `H` heads, `G` key heads, `d` head_dim, `D`
n_embd, `F` n_ff, `E` experts, `K` experts used. Norms, rotary tables, softmax and the router work in float32;
matrix products work in the type of the weights and accumulate in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from calibration.forward.rope import Rope, rotate
from calibration.forward.ties import best, first_equal

__all__ = [
    "AttentionWeights",
    "Linear",
    "Product",
    "Routing",
    "attend",
    "attention",
    "expert",
    "rms_norm",
    "route",
]

MIN_WEIGHT_SUM = 6.103515625e-5
"""The sum of the chosen experts' weights is at least this before it divides (llama.cpp's src/llama-graph.cpp,
build_moe_ffn; the smallest normal float16)."""

Product = Callable[[Tensor], Tensor]
"""The product of x [t, n_in] with a matrix [n_out, n_in] -> [t, n_out], a tensor of its own.

`Linear` is the plain one. The forward pass gives products that also show x to the observers, round it as llama.cpp's
kernels do, and take the time; a pass backwards could take the gradient of the result.
"""


@dataclass(frozen=True)
class Linear:
    """A matrix [n_out, n_in] and its bias [n_out], if it has one."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """x [t, n_in] -> [t, n_out], in the type of the matrix."""
        y = functional.linear(x.to(self.weight.dtype), self.weight)
        return y if self.bias is None else y + self.bias.to(y.dtype)


@dataclass(frozen=True)
class AttentionWeights:
    """The four products of attention: q [H d, D], k and v [G d, D], o [D, H d]."""

    q: Product
    k: Product
    v: Product
    o: Product


@dataclass(frozen=True)
class Routing:
    """Which experts each token goes to: `ids` int64 [T, K], their `weights` f32 [T, K], all `probs` f32 [T, E]."""

    ids: Tensor
    weights: Tensor
    probs: Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [T, D] / rms(x) * weight [D], in float32."""
    wide = x.float()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight


def attention(
    x: Tensor, weights: AttentionWeights, rope: Rope, cached: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Causal attention over whole chunks of `rope.n_ctx` tokens: normed hidden states x [C P, D] -> [C P, D].

    `cached` may change rotated keys and values [C, P, G, d], as a cache does that rounds what it holds.
    """
    shape = (len(x) // rope.n_ctx, rope.n_ctx, -1, rope.head_dim)  # [C, P, H or G, d]
    q, k, v = (product(x).view(shape) for product in (weights.q, weights.k, weights.v))
    q, k = rotate(q, rope), rotate(k, rope)
    if cached is not None:
        k, v = cached(k), cached(v)
    mixed = attend(q, k, v)  # [C, P, H, d]
    return weights.o(mixed.reshape(len(x), -1))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention within each chunk: q [C, P, H, d], k and v [C, P, G, d] -> [C, P, H, d]; H a multiple of G."""
    n_group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [C, H or G, P, d]
    if n_group > 1:
        k, v = k.repeat_interleave(n_group, dim=1), v.repeat_interleave(n_group, dim=1)
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def route(x: Tensor, router: Tensor, n_used: int) -> Routing:
    """Mixtral's router: softmax over all experts, the best `n_used`, their probabilities scaled to a sum of 1.

    x [T, D] and router [E, D] are taken in float32. Ties go to the experts to which llama.cpp's go
    (see `ties`); where the sums of two experts are next to equal, the order of additions decides here and there.
    """
    # A kernel may add up the columns of a product in different orders, so equal rows of the router get the
    # probabilities of the first of them: a tie stays a tie.
    probs = functional.linear(x.float(), router.float()).softmax(-1)[:, first_equal(router)]  # [T, E]
    ids = best(probs, n_used)
    chosen = probs.gather(-1, ids)  # [T, K]
    return Routing(ids, chosen / chosen.sum(-1, keepdim=True).clamp(min=MIN_WEIGHT_SUM), probs)


def expert(x: Tensor, gate: Product, up: Product, down: Product) -> Tensor:
    """The SwiGLU feed-forward of one expert, or of a dense layer: x [t, D] -> down(silu(gate(x)) * up(x)) [t, D]."""
    gate_x, up_x = gate(x), up(x)
    if torch.is_grad_enabled():
        return down(functional.silu(gate_x) * up_x)
    # Where no gradient is wanted, the results of the products are overwritten: fresh memory for activations of 14336
    # columns takes longer than the operation itself (39 against 76 ms with 1024 tokens in bfloat16).
    return down(functional.silu(gate_x, inplace=True).mul_(up_x))
