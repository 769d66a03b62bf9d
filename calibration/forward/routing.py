"""The router of a layer in plain torch: which experts a token goes to, with which weights. Shapes as in `layers`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from calibration.forward.ties import best, first_equal
from quantize.families.graph import Gating

__all__ = ["Router", "Routing"]

MIN_WEIGHT_SUM = 6.103515625e-5
"""The sum of the chosen experts' weights is at least this before it divides (llama.cpp's src/llama-graph.cpp,
build_moe_ffn; the smallest normal float16)."""

BEST_OF_GROUP = 2  # experts whose scores are the score of their group


@dataclass(frozen=True)
class Routing:
    """Which experts each token goes to: `ids` int64 [T, K], and their `weights` f32 [T, K].

    `probs` f32 [T, E] are what the router finds of all experts, with a sum of 1 for each token whatever its function.
    """

    ids: Tensor
    weights: Tensor
    probs: Tensor


@dataclass(frozen=True)
class Router:
    """llama.cpp's build_moe_ffn (src/llama-graph.cpp) up to the weights of the experts; the defaults are Mixtral's.

    `weight` [E, D] and x are taken in float32. With `softmax_weight` experts are chosen by their logits, of which the
    softmax is taken over the chosen ones.
    """

    weight: Tensor
    n_used: int
    bias: Tensor | None = None  # f32 [E], of the logits
    selection_bias: Tensor | None = None  # f32 [E]: counts where experts are chosen, not in their weights
    gating: Gating = "softmax"
    is_normalized: bool = True  # the weights of a token are divided by their sum
    scale: float = 0.0  # the factor of all weights; 0: none
    n_groups: int = 0  # experts come in so many groups, of which the best `n_group_used` are asked
    n_group_used: int = 0

    def __call__(self, x: Tensor) -> Routing:
        """x [T, D] to the experts of each token, best first.

        Ties go to the experts to which llama.cpp's go (see `ties`); where the sums of two experts are next to equal,
        the order of additions decides here and there.
        """
        logits = functional.linear(x.float(), self.weight.float(), self.bias)
        probs = logits
        if self.gating == "softmax":
            probs = logits.softmax(-1)
        elif self.gating == "sigmoid":
            probs = logits.sigmoid()
        # A kernel may add up the columns of a product in different orders, so equal rows of the router get the
        # probabilities of the first of them: a tie stays a tie.
        probs = probs[:, self._first_equal()]  # [T, E]
        ids = best(self._scores(probs), self.n_used)
        weights = probs.gather(-1, ids)  # [T, K]
        if self.gating == "softmax_weight":
            weights = weights.softmax(-1)
        if self.is_normalized:
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=MIN_WEIGHT_SUM)
        return Routing(ids, weights * self.scale if self.scale else weights, self._distribution(probs))

    def _distribution(self, probs: Tensor) -> Tensor:
        if self.gating == "softmax":
            return probs
        return probs.softmax(-1) if self.gating == "softmax_weight" else probs / probs.sum(-1, keepdim=True)

    def _first_equal(self) -> Tensor:
        if self.bias is None:
            return first_equal(self.weight)
        return first_equal(torch.cat((self.weight.float(), self.bias[:, None]), dim=-1))

    def _scores(self, probs: Tensor) -> Tensor:
        """What experts are chosen by, f32 [T, E]; those of other groups than the best are never chosen."""
        scores = probs.detach()
        if self.selection_bias is not None:
            scores = scores + self.selection_bias
        if self.n_groups <= 1:
            return scores
        grouped = scores.view(len(scores), self.n_groups, -1)
        of_groups = grouped.topk(min(BEST_OF_GROUP, grouped.shape[-1]), dim=-1).values.sum(-1)
        chosen = torch.zeros_like(of_groups, dtype=torch.bool).scatter_(
            1, best(of_groups, self.n_group_used), True
        )
        return grouped.masked_fill(~chosen[:, :, None], -torch.inf).flatten(1)
