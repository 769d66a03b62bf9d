"""KL divergence of a model to a base, with the figures that llama-perplexity prints with --kl-divergence.

The formulas are those of llama.cpp's tools/perplexity/perplexity.cpp: `log_softmax` with a base and `kl_divergence`.
Values are float32 and sums float64 where they are there, so that the same logits give the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from calibration.judging.perplexity import Estimate

__all__ = ["BaseProbs", "Scores", "Statistics", "base_probs", "log_probs", "score", "summarize"]

FLOOR = -16.0  # tokens that the base thinks less likely than exp(-16) do not count
AT_ONCE = 1 << 20  # logits that are worked on at a time, so that they stay in the cache
QUANTILES = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BaseProbs:
    """The base's probabilities at n positions: `log` ln p f32 [n, V], `p` f32 [n, V] with the unlikely at 0, `top` [n].

    `top` int64 is the likeliest token.
    """

    log: Tensor
    p: Tensor
    top: Tensor


@dataclass(frozen=True)
class Scores:
    """One value per scored target: nll of the model and of the base, KLD, change of the target's probability."""

    nll: F32
    nll_base: F32
    kld: F64
    dp: F32
    same_top: npt.NDArray[np.bool_]

    @staticmethod
    def joined(chunks: Sequence[Scores]) -> Scores:
        """The scores of several chunks as one."""
        return Scores(
            np.concatenate([chunk.nll for chunk in chunks]),
            np.concatenate([chunk.nll_base for chunk in chunks]),
            np.concatenate([chunk.kld for chunk in chunks]),
            np.concatenate([chunk.dp for chunk in chunks]),
            np.concatenate([chunk.same_top for chunk in chunks]),
        )


@dataclass(frozen=True)
class Statistics:
    """The figures of one model on one text; probabilities and shares are fractions of 1, KLD is in nats."""

    n: int
    ppl: Estimate
    ppl_base: Estimate
    ln_ratio: Estimate  # ln(PPL / PPL of the base), with the paired error
    ppl_ratio: Estimate
    ppl_difference: Estimate
    correlation: float  # of ln PPL and ln PPL of the base
    kld: Estimate
    kld_min: float
    kld_median: float
    kld_max: float
    kld_quantiles: dict[float, float]
    mean_dp: Estimate
    rms_dp: Estimate
    dp_quantiles: dict[float, float]
    same_top: Estimate


def log_sum(logits: Tensor) -> Tensor:
    """max + ln(sum of exp(logits - max)), f32 [n] of f32 [n, V]; the sum is float64."""
    top = logits.amax(dim=-1)
    total = (logits - top[:, None]).exp_().sum(dim=-1, dtype=torch.float64)
    return top + total.log().float()


def log_probs(logits: Tensor) -> Tensor:
    """ln p of every token: f32 [n, V] of f32 [n, V]."""
    return torch.cat([group - log_sum(group)[:, None] for group in _row_groups(logits)])


def base_probs(log: Tensor) -> BaseProbs:
    """The base's probabilities as `score` takes them, from its ln p f32 [n, V]."""
    return BaseProbs(log, log.exp().masked_fill_(log <= FLOOR, 0.0), log.argmax(dim=-1))


def score(logits: Tensor, base: BaseProbs, targets: Tensor) -> Scores:
    """Compare a model's logits f32 [n, V] with the base, given the tokens that really came, int64 [n]."""
    scores = []
    for start, group in zip(range(0, len(logits), _n_row(logits)), _row_groups(logits), strict=True):
        rows = slice(start, start + len(group))
        total = log_sum(group)
        terms = (base.log[rows] - group).add_(total[:, None]).mul_(base.p[rows])
        kld = terms.sum(dim=-1, dtype=torch.float64)
        target = targets[rows, None]
        nll = total - group.gather(-1, target)[:, 0]
        nll_base = -base.log[rows].gather(-1, target)[:, 0]
        dp = (-nll).exp() - (-nll_base).exp()
        same_top = group.argmax(dim=-1) == base.top[rows]
        scores.append(Scores(*(x.cpu().numpy() for x in (nll, nll_base, kld, dp, same_top))))
    return Scores.joined(scores)


def _n_row(logits: Tensor) -> int:
    return max(1, AT_ONCE // logits.shape[-1])


def _row_groups(logits: Tensor) -> tuple[Tensor, ...]:
    """The rows of logits [n, V] in groups of about AT_ONCE logits."""
    n_row = _n_row(logits)
    return tuple(logits[start : start + n_row] for start in range(0, len(logits), n_row))


def summarize(scores: Scores) -> Statistics:
    """Means, errors and quantiles of the scores of all targets, at least one."""
    n = scores.nll.size
    q, b = mean(scores.nll), mean(scores.nll_base)
    covariance = _covariance(scores.nll, scores.nll_base)
    ppl, ppl_base = (Estimate(math.exp(x.value), math.exp(x.value) * x.error, n) for x in (q, b))
    ln_ratio = q.value - b.value
    ln_error = _root(q.error**2 + b.error**2 - 2 * covariance)
    ratio = math.exp(ln_ratio)
    difference_error = _root(ppl.error**2 + ppl_base.error**2 - 2 * ppl.value * ppl_base.value * covariance)
    kld = np.sort(scores.kld.astype(np.float32))
    dp = np.sort(scores.dp)
    squares = scores.dp * scores.dp  # float32, as in kl_divergence
    mse = mean(squares)
    rms = math.sqrt(mse.value)
    share = float(np.count_nonzero(scores.same_top)) / n
    return Statistics(
        n=n,
        ppl=ppl,
        ppl_base=ppl_base,
        ln_ratio=Estimate(ln_ratio, ln_error, n),
        ppl_ratio=Estimate(ratio, ratio * ln_error, n),
        ppl_difference=Estimate(ppl.value - ppl_base.value, difference_error, n),
        correlation=covariance / (q.error * b.error) if q.error * b.error else math.nan,
        kld=mean(scores.kld),
        kld_min=float(kld[0]),
        kld_median=quantile(kld, 0.5),
        kld_max=float(kld[-1]),
        kld_quantiles={fraction: quantile(kld, fraction) for fraction in QUANTILES},
        mean_dp=mean(scores.dp),
        rms_dp=Estimate(rms, 0.5 / rms * mse.error if rms else 0.0, n),
        dp_quantiles={fraction: quantile(dp, fraction) for fraction in QUANTILES},
        same_top=share_of(share, n),
    )


def share_of(share: float, n: int) -> Estimate:
    """A share of n with its binomial error."""
    return Estimate(share, _root(share * (1 - share) / (n - 1)) if n > 1 else 0.0, n)


def mean(values: F32 | F64) -> Estimate:
    """kl_divergence's `mean_and_uncertainty`: squares in the type of the values, sums float64; no error below 11."""
    n = values.size
    average = float(values.sum(dtype=np.float64)) / n
    spread = float((values * values).sum(dtype=np.float64)) / n - average * average
    return Estimate(average, math.sqrt(spread / (n - 1)) if spread > 0 and n > 10 else 0.0, n)


def quantile(ordered: F32, fraction: float) -> float:
    """kl_divergence's `percentile` of sorted values: float32, linear between neighbours; its median for 0.5."""
    if fraction == 0.5:
        middle = ordered.size // 2
        if ordered.size % 2:
            return float(ordered[middle])
        return float(np.float32(0.5) * (ordered[middle] + ordered[middle - 1]))
    place = np.float32(fraction) * np.float32(ordered.size - 1)
    index = int(place)
    rest = np.float32(place - np.float32(index))
    above = ordered[min(index + 1, ordered.size - 1)]
    return float((np.float32(1) - rest) * ordered[index] + rest * above)


def _covariance(a: F32, b: F32) -> float:
    """The covariance of the two means (kl_divergence's `covariance`); 0 below 10 values."""
    n = a.size
    if n < 10:
        return 0.0
    means = float(a.sum(dtype=np.float64)) / n * (float(b.sum(dtype=np.float64)) / n)
    return (float((a * b).sum(dtype=np.float64)) / n - means) / (n - 1)


def _root(x: float) -> float:
    """The square root; differences of rounded sums may come out a little below 0."""
    return math.sqrt(max(0.0, x))
