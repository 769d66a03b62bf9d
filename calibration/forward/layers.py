"""The arithmetic of a layer but for attention and router, in plain torch: pure functions of activations and weights.

Nothing here reads, observes, takes the time or changes an argument, and gradients flow through all of it.

Shape alphabet: `T` tokens, `C` chunks, `P` positions of a chunk, `H` heads, `G` key heads, `d` head_dim, `D`
n_embd, `F` n_ff, `E` experts, `K` experts used. Norms, rotary tables, softmax and the router work in float32;
matrix products work in the type of the weights and accumulate in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Activation", "Linear", "Norm", "Product", "Widened", "expert", "gated", "shared_weights"]

Activation = Literal["silu", "clamped"]

CLAMPED_ALPHA, CLAMPED_LIMIT = 1.702, 7.0  # llama.cpp's src/llama-graph.cpp, LLM_FFN_SWIGLU_OAI_MOE

WIDENED = 8 << 20  # weights that `Widened` has in float32 at once
WIDENED_ROWS = 256  # MKL adds in the same order in matrices whose rows are a multiple of it

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
class Widened:
    """The product in float32 with a matrix [n_out, n_in] that is decoded some rows at a time.

    It gives what `Linear` gives with the whole matrix in float32, to the bit with MKL, in less memory; each group of
    tokens has it decoded again. `rows(first, last)` gives some rows in any float type. No gradient flows through it.
    """

    rows: Callable[[int, int], Tensor]
    n_out: int
    n_in: int
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., n_in] -> f32 [..., n_out]."""
        step = max(1, WIDENED // (WIDENED_ROWS * self.n_in)) * WIDENED_ROWS
        flat = x.reshape(-1, self.n_in).float()
        y, wide = torch.empty(len(flat), self.n_out), torch.empty(step, self.n_in)
        for first in range(0, self.n_out, step):
            last = min(first + step, self.n_out)
            rows = self.rows(first, last)
            if rows.dtype != torch.float32:
                rows = wide[: last - first].copy_(rows)
            torch.mm(flat, rows.T, out=y[:, first:last])
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], self.n_out)


@dataclass(frozen=True)
class Norm:
    """A norm over the last axis, with its weight f32 [n] and its bias f32 [n], if it has one.

    `is_centred`: a layer norm, which takes away the mean; else an RMS norm.
    """

    weight: Tensor
    eps: float
    bias: Tensor | None = None
    is_centred: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., n] -> f32 [..., n]."""
        wide = x.float()
        if self.is_centred:
            wide = wide - wide.mean(-1, keepdim=True)
        y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.weight
        return y if self.bias is None else y + self.bias


def expert(
    x: Tensor, gate: Product, up: Product, down: Product, *, activation: Activation = "silu"
) -> Tensor:
    """The feed-forward of one expert, or of a dense layer: x [t, D] -> down(act(gate(x)) * up(x)) [t, D]."""
    return down(gated(x, gate, up, activation=activation))


def gated(x: Tensor, gate: Product, up: Product, *, activation: Activation = "silu") -> Tensor:
    """What the down projection is multiplied with: x [t, D] -> act(gate(x)) * up(x) [t, F].

    `clamped` limits both, and is gate * sigmoid(1.702 gate) * (up + 1) (ggml's ggml_swiglu_oai).
    """
    gate_x, up_x = gate(x), up(x)
    if activation == "clamped":
        gate_x = gate_x.clamp(max=CLAMPED_LIMIT)
        up_x = up_x.clamp(-CLAMPED_LIMIT, CLAMPED_LIMIT)
        return gate_x * torch.sigmoid(CLAMPED_ALPHA * gate_x) * (up_x + 1.0)
    if torch.is_grad_enabled():
        return functional.silu(gate_x) * up_x
    # Where no gradient is wanted, the results of the products are overwritten: fresh memory for activations of 14336
    # columns takes longer than the operation itself (39 against 76 ms with 1024 tokens in bfloat16).
    return functional.silu(gate_x, inplace=True).mul_(up_x)


def shared_weights(x: Tensor, gate: Tensor) -> Tensor:
    """How much shared experts count for each token: x [T, D] and their gate [D] -> f32 [T, 1]."""
    return functional.linear(x.float(), gate.float()[None]).sigmoid()
