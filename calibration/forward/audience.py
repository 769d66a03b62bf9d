"""The audience of a forward pass: the observers of inputs, the reader of weights, and the watcher of the progress."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import partial

import torch
from torch import Tensor

from calibration.forward.graph import bias_of
from calibration.forward.layers import Linear, Product, Widened
from calibration.forward.routing import Routing
from calibration.forward.saved_state import PassState
from calibration.forward.stored import Matrix, to_tensor
from calibration.forward.stream_state import StreamState
from calibration.forward.streams import Given, Observer, OnWeights
from calibration.forward.timings import Stage
from quantize.telling import OnProgress, Progress
from quantize.tensors import TensorSpec

__all__ = ["Audience"]


class Audience:
    """Shows inputs to the observers, and hands out each matrix when all of its inputs have been shown."""

    def __init__(
        self,
        observers: Sequence[Observer],
        on_weights: OnWeights | None,
        progress: OnProgress,
        saved: PassState,
        n_weight: int,
    ) -> None:
        """Begin with a pass; nothing is shown or handed out yet.

        Args:
            observers: see all streams.
            on_weights: is given the matrices of the first stream; None where they are not wanted.
            progress: is told the share of weights that were handed out, in tokens of the text.
            saved: counts these weights.
            n_weight: weights of all streams together.
        """
        self.observers, self.on_weights, self._progress = observers, on_weights, progress
        self._saved, self._n_weight, self._timings = saved, n_weight, saved.timings

    # -- inputs

    def show(
        self, state: StreamState, specs: Sequence[TensorSpec], xid: int, tokens: Tensor, x: Tensor
    ) -> None:
        """Show the common input x [t, n_per_row] of some matrices."""
        with self._timings.measure(Stage.OBSERVING):
            for observer in self.observers:
                observer.inputs(state.index, specs, xid, tokens, x)

    def show_routing(self, state: StreamState, bid: int, tokens: Tensor, routing: Routing) -> None:
        """Show to which experts the tokens [t] of a group go."""
        with self._timings.measure(Stage.OBSERVING):
            for observer in self.observers:
                observer.routed(state.index, bid, tokens, routing)

    # -- weights

    def vector(self, state: StreamState, name: str) -> Tensor:
        """Read a norm, a bias or a table of factors, f32 [n]; it has no inputs, so it is handed out at once."""
        matrix = state.read(name)
        vector = state.decoded(matrix, torch.float32).reshape(-1).clone()
        self.hand_out(state, matrix)
        return vector

    def product(self, state: StreamState, matrix: Matrix, *, is_brief: bool = False) -> Product:
        """The product with a matrix and its bias: the input is rounded as the stream asks, the time is taken.

        With `is_brief` few tokens are multiplied with it, so that it need not be decoded as a whole.

        The biases of experts lie in one tensor, which is handed out with what is left when the pass is through.
        """
        bias = state.bias(matrix)
        if bias is not None and not matrix.spec.has_experts:
            bias = self.vector(state, bias_of(matrix.spec.name))
        linear: Product
        if is_brief and state.settings.widens(matrix.spec.qtype):
            linear = Widened(partial(_rows, copy(matrix)), matrix.spec.n_row, matrix.spec.n_per_row, bias)
        else:
            linear = Linear(state.decoded(matrix, state.settings.dtype), bias)
        if self._wants(state):
            matrix.to_host()
        else:
            matrix.drop()

        def multiply(x: Tensor) -> Tensor:
            x = state.rounded(matrix.spec, x)
            with self._timings.measure(Stage.PRODUCTS):
                return linear(x)

        return multiply

    def shown(self, product: Product, state: StreamState, matrix: Matrix, tokens: Tensor) -> Product:
        """A product whose input, which belongs to some tokens, is shown to the observers before."""

        def show_and_multiply(x: Tensor) -> Tensor:
            self.show(state, (matrix.spec,), matrix.xid, tokens, x)
            return product(x)

        return show_and_multiply

    def hand_out(self, state: StreamState, *matrices: Matrix) -> None:
        """Give away matrices whose inputs have all been shown, with what the observers know of them."""
        for matrix in matrices:
            self.hand_out_with(state, matrix, self.popped(state, matrix))

    def popped(self, state: StreamState, matrix: Matrix) -> Given:
        """Take from the observers what they know of a matrix of the first stream whose inputs have all been shown."""
        if state.index:
            return {}
        with self._timings.measure(Stage.OBSERVING):
            return {observer: observer.pop(matrix.spec, matrix.xid) for observer in self.observers}

    def hand_out_with(self, state: StreamState, matrix: Matrix, given: Given) -> None:
        """Give away a matrix, with what was `popped` of it."""
        spec, xid = matrix.spec, matrix.xid
        state.handed_out.add((spec.name, xid))
        if self.on_weights is not None and state.index == 0:
            with self._timings.measure(Stage.DECODING):
                weights = matrix.whole()
            with self._timings.measure(Stage.WEIGHTS):
                self.on_weights(spec, xid, weights, given)
        self._saved.n_weight += spec.n_row * spec.n_per_row
        n_token = self._timings.n_token
        done = min(n_token * self._saved.n_weight // self._n_weight, n_token)
        self._progress(Progress("calculating", done, n_token, unit="tokens"))

    def hand_out_rest(self, state: StreamState) -> None:
        """Read the tensors of a stream that the pass did not need, so that each matrix is handed out exactly once.

        After a resume that includes the layers of the earlier run, whose importances are already complete.
        """
        if self._wants(state):
            for spec in state.specs.values():
                for xid in range(spec.n_matrix):
                    if (spec.name, xid) not in state.handed_out:
                        self.hand_out(state, state.read(spec.name, xid))
        n_token = self._timings.n_token
        self._progress(Progress("calculating", n_token, n_token, unit="tokens"))

    def _wants(self, state: StreamState) -> bool:
        """Whether the weights of a stream are wanted."""
        return self.on_weights is not None and state.index == 0


def _rows(matrix: Matrix, first: int, last: int) -> Tensor:
    return to_tensor(matrix.rows(first, last))
