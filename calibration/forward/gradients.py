"""Those who watch the gradients of a pass backwards, and the products that they watch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from calibration.forward.layers import Linear
from calibration.forward.stored import Matrix
from calibration.forward.stream_state import StreamState
from calibration.forward.timings import Stage
from quantize.tensors import TensorSpec

__all__ = ["GradientObserver", "Output", "Watched", "read_products"]


class Output(NamedTuple):
    """What the output matrix makes of a group of tokens.

    `log_total` f32 [t] is ln(sum of exp(logits)), `g` f32 [t, V] the gradient of the logits, and `bias` f32 [V] what is
    added to each of them, if there is such.
    """

    log_total: Tensor
    g: Tensor
    bias: Tensor | None = None


class GradientObserver:
    """Sees each matrix product with the gradient of the loss; override the methods that are wanted.

    The loss is the sum over all tokens of their cross entropy. Tensors are never written into after they were shown, so
    they may be kept; `tokens` int64 [t] are places in the text, ascending, on the CPU.
    """

    def gradients(self, spec: TensorSpec, xid: int, tokens: Tensor, x: Tensor, g: Tensor) -> None:
        """A group of inputs x [t, n_per_row] of a matrix in a layer, and the gradient g [t, n_row] of its results."""

    def outputs(self, spec: TensorSpec, tokens: Tensor, x: Tensor, output: Output) -> None:
        """A group of inputs x f32 [t, D] of the output matrix, and what it makes of them; its gradient is borrowed."""

    def embedded(self, spec: TensorSpec, tokens: Tensor, token_ids: Tensor, g: Tensor) -> None:
        """A group of tokens int64 [t], and the gradient g f32 [t, D] of the rows that were looked up for them."""

    def finished(self, matrix: Matrix) -> None:
        """All products with this matrix have been shown; the embedding comes last, even where it is the output, too."""


class Watched:
    """The product with one matrix, whose gradients are shown to observers."""

    def __init__(self, matrix: Matrix, linear: Linear, state: StreamState) -> None:
        self.matrix, self._linear, self._timings = matrix, linear, state.timings
        self._x = self.result = torch.empty(0)
        """The last input, and the last result."""

    def __call__(self, x: Tensor) -> Tensor:
        """x [t, n_in] -> [t, n_out]; both are remembered until the next call."""
        self._x = x.detach()
        with self._timings.measure(Stage.PRODUCTS):
            self.result = self._linear(x)
        return self.result

    def show(self, observers: Sequence[GradientObserver], tokens: Tensor, g: Tensor) -> None:
        """Show the last input, and the gradient g of the last result, of some tokens."""
        with self._timings.measure(Stage.OBSERVING):
            for observer in observers:
                observer.gradients(self.matrix.spec, self.matrix.xid, tokens, self._x, g)
        self._x = self.result = torch.empty(0)  # it holds the graph of a piece of the model


def read_products(state: StreamState, names: Sequence[str], xid: int = 0) -> list[Watched]:
    """Read some matrices and their biases."""
    products = []
    for name in names:
        matrix = state.read(name, xid)
        linear = Linear(state.decoded(matrix, state.settings.dtype), state.bias(matrix))
        products.append(Watched(matrix, linear, state))
    return products
