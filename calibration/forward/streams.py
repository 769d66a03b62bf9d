"""The arguments of the forward pass: the models, and the observers and readers that it tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from calibration.forward.routing import Routing
from quantize.sources.model_source import ModelSource
from quantize.tensors import Array, TensorSpec

__all__ = ["Given", "Observer", "OnLogits", "OnWeights", "Stream", "refuse_not_resumable"]


class Observer:
    """Sees the inputs and routes of the streams; override the methods that are wanted.

    Tensors are borrowed: copy those that are to be kept.
    """

    def inputs(self, stream: int, specs: Sequence[TensorSpec], xid: int, tokens: Tensor, x: Tensor) -> None:
        """The rows x [t, n_per_row] that the matrices `xid` of `specs` are multiplied with.

        `tokens` int64 [t] are their places in the text, ascending. Groups of tokens come in the same order for
        every stream.
        """

    def routed(self, stream: int, bid: int, tokens: Tensor, routing: Routing) -> None:
        """The experts to which the tokens [t] of a group go in layer `bid`."""

    def pop(self, spec: TensorSpec, xid: int) -> Any:
        """Give away the statistics of one matrix of the first stream; None where there are none.

        The driver calls it once for each matrix, as soon as all its inputs have been shown, and `on_weights` gets the
        result. An observer of large statistics forgets them here, so that it never holds those of all down projections
        of a layer; with `hold_down` the results of a layer wait together. After a resume nothing is known of the layers
        of the earlier run but what was `kept`.
        """
        return None

    def kept(self) -> Mapping[str, Array] | None:
        """The arrays, by any names, with which a later pass can go on behind a layer.

        None, the default, means that the observer cannot go on: it is refused in a pass whose state is kept.
        """
        return None

    def restore(self, arrays: Mapping[str, Array]) -> None:
        """Take back the arrays that an earlier pass has `kept`, before anything is seen in this one."""


Given = Mapping[Observer, Any]
"""The statistics that each observer gave away of a matrix (see `Observer.pop`)."""

OnWeights = Callable[[TensorSpec, int, Array, Given], None]
"""Receives one matrix `xid` of a tensor, its weights as they were read, and what the observers gave away."""

OnLogits = Callable[[int, Sequence[Tensor]], None]
"""Receives the index of a chunk and the logits of each stream."""


@dataclass(frozen=True)
class Stream:
    """One model on its way through the text.

    `round_inputs(spec, x)` may change the input of each matrix product, as kernels do that work on 8-bit activations;
    `round_cache(x)` the keys and values of attention, as a cache does that holds them in float16.
    `name` is what messages call the model: its path, where it has one.
    """

    source: ModelSource
    round_inputs: Callable[[TensorSpec, Tensor], Tensor] | None = None
    round_cache: Callable[[Tensor], Tensor] | None = None
    name: str = ""


def refuse_not_resumable(observers: Sequence[Observer]) -> None:
    """Refuse to keep the state of a pass with an observer that could not go on.

    Raises:
        TypeError: there is one.
    """
    for observer in observers:
        if observer.kept() is None:
            raise TypeError(
                f"{type(observer).__name__} keeps nothing, so this pass cannot go on in another run"
            )
