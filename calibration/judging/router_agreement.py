"""How often the router of a quantized model still chooses the experts that the base chooses; llama.cpp has no such."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from calibration.forward.routing import Routing
from calibration.forward.run import Observer
from quantize.tensors import Array

__all__ = ["RouterAgreement", "RouterComparer"]


@dataclass(frozen=True)
class RouterAgreement:
    """By layer, f64 [n_layer]; NaN where a layer has no router.

    `same`: share of all tokens that go to the very experts to which the base sends them. `kld`: mean KL divergence in
    nats of the router's probabilities to the base's.
    """

    n_token: int
    same: npt.NDArray[np.float64]
    kld: npt.NDArray[np.float64]


class RouterComparer(Observer):
    """Holds the routing of every stream against that of the first; groups of tokens come in the same order for all.

    `starts` int64 [n_text + 1] are the first tokens of the texts, and behind the last one their number.
    """

    def __init__(self, n_stream: int, n_layer: int, starts: npt.NDArray[np.int64]) -> None:
        shape = (n_stream, len(starts) - 1, n_layer)
        self.starts = starts
        self.text_of = np.searchsorted(starts, np.arange(starts[-1]), side="right") - 1
        self.same = np.zeros(shape)
        self.kld = np.zeros(shape)
        self.seen = np.zeros(shape, np.int64)
        self.base: dict[int, Routing] = {}  # first token of a group -> the base's routing

    def routed(self, stream: int, bid: int, tokens: Tensor, routing: Routing) -> None:
        """Remember the base's routing, or compare with it."""
        first = int(tokens[0])
        if stream == 0:
            self.base[first] = routing
            return
        base = self.base[first]
        same = (base.ids.sort(dim=-1).values == routing.ids.sort(dim=-1).values).all(dim=-1)
        p, q = base.probs.double(), routing.probs.double()
        kld = torch.special.xlogy(p, p / q.clamp(min=1e-300)).sum(dim=-1)
        texts = self.text_of[tokens.cpu().numpy()]
        np.add.at(self.same[stream, :, bid], texts, same.cpu().numpy())
        np.add.at(self.kld[stream, :, bid], texts, kld.cpu().numpy())
        np.add.at(self.seen[stream, :, bid], texts, 1)

    def kept(self) -> dict[str, Array]:
        """The sums; the base's routing is of use within a layer only."""
        return {"same": self.same, "kld": self.kld, "seen": self.seen}

    def restore(self, arrays: Mapping[str, Array]) -> None:
        """See `kept`."""
        for name, array in self.kept().items():
            array[...] = arrays[name]

    def add(self, other: RouterComparer) -> None:
        """Add the sums of another part of the same texts."""
        for own, added in zip(self.kept().values(), other.kept().values(), strict=True):
            np.add(own, added, out=own)

    def agreement(self, stream: int, text: int) -> RouterAgreement:
        """The shares and means of one stream on one text."""
        seen = self.seen[stream, text].astype(np.float64)
        with np.errstate(invalid="ignore"):
            same, kld = self.same[stream, text] / seen, self.kld[stream, text] / seen
        return RouterAgreement(int(self.starts[text + 1] - self.starts[text]), same, kld)
