"""What the forward pass is asked to do and what it tells: streams, observers, timings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from calibration.forward.layers import Routing
from quantize.sources.model_source import ModelSource
from quantize.tensors import Array, TensorSpec

__all__ = ["Observer", "OnLogits", "OnWeights", "Stream", "Timings"]

OnWeights = Callable[[TensorSpec, int, Array], None]
OnLogits = Callable[[int, Sequence[Tensor]], None]


class Observer:
    """Sees what the streams compute; override what is wanted. Tensors are borrowed: copy what is to be kept."""

    def inputs(self, stream: int, specs: Sequence[TensorSpec], xid: int, tokens: Tensor, x: Tensor) -> None:
        """The rows x [t, n_per_row] that the matrices `xid` of `specs` are about to be multiplied with.

        `tokens` int64 [t] are their places in the text. Blocks come in the same order for every stream.
        """

    def routed(self, stream: int, bid: int, tokens: Tensor, routing: Routing) -> None:
        """Where the tokens [t] of a block go in layer `bid`."""

    def kept(self) -> Mapping[str, Array]:
        """The arrays that hold what was seen so far, by any names: all that a pass needs that goes on behind a layer.

        An observer that does not say what it keeps cannot see a pass whose state is kept.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what it keeps")

    def restore(self, arrays: Mapping[str, Array]) -> None:
        """Take back what `kept` gave in an earlier pass; nothing was seen in this one yet."""
        raise NotImplementedError(f"{type(self).__name__} does not take back what it kept")


@dataclass(frozen=True)
class Stream:
    """One model on its way through the text.

    `round_inputs(spec, x)` may change the input of each matrix product, as kernels do that work on 8-bit activations.
    `name` is what messages call the model: its path, where it has one.
    """

    source: ModelSource
    round_inputs: Callable[[TensorSpec, Tensor], Tensor] | None = None
    name: str = ""


@dataclass
class Timings:
    """Seconds of wall time by kind of work; `products` are the matrix products with weights.

    A GPU works on after a call returns: there `total` is true, and the kinds are where the CPU waited for it.
    """

    n_token: int = 0
    total: float = 0.0
    reading: float = 0.0  # from disk; what a round trip encodes, too
    decoding: float = 0.0  # blocks, or narrow floats, to the arithmetic's type
    products: float = 0.0
    attention: float = 0.0
    observing: float = 0.0
    weights: float = 0.0  # in `on_weights`
    comparing: float = 0.0  # in `on_logits`

    @property
    def share_of_products(self) -> float:
        """Share of the time of the forward pass itself that was spent in matrix products."""
        own = self.total - self.weights - self.comparing
        return self.products / own if own > 0 else 0.0

    @contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Add the duration of the block to one kind."""
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, kind, getattr(self, kind) + time.perf_counter() - start)
