"""Made-up results for pages and plots: an error report and a comparison, with figures drawn by chance."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import numpy as np

from calibration.forward.timings import Timings
from calibration.judging.kld import Scores, summarize
from calibration.judging.matrix_errors import ErrorReport, Errors, LayerRouting, MatrixErrors
from calibration.judging.perplexity import perplexity
from calibration.judging.side_by_side import Comparison, Model, OnText, RouterAgreement
from calibration.text.chunks import Chunks
from gguf_export.comparing.measured import results_of
from gguf_export.comparing.results import Results

EVIL = '</title><script>alert("1")</script><img src=x onerror=y>&amp;\'"'
"""A name that would do harm where it is not escaped."""

LEVELS = {
    **{
        "Q8_0": 8.5,
        "Q6_K": 6.56,
        "Q5_K_M": 5.69,
        "Q4_K_M": 4.87,
        "Q4_K_S": 4.58,
        "IQ4_XS": 4.27,
        "Q3_K_M": 3.91,
    },
    **{"Q3_K_S": 3.5, "Q2_K": 2.96, "Q5_K_S": 5.5, "Q3_K_L": 4.2, "IQ4_NL": 4.5, "Q5_0": 5.52, "Q5_1": 6.0},
    **{"Q4_0": 4.55, "Q4_1": 5.02, "MXFP4_MOE": 4.4, "BF16": 16.0, "F16": 16.01, "Q6_K-plain": 6.55},
    **{"Q5_K_M-plain": 5.68, "Q4_K_M-plain": 4.86, "Q3_K_M-plain": 3.9, "Q2_K-plain": 2.95},
}
"""Name of a level -> its bits per weight."""


def make_comparison(
    n_model: int = 3,
    texts: tuple[str, ...] = ("prose",),
    *,
    n_layer: int = 4,
    n_weight: float = 24e9,
    base: str = "Pico-4x1M",
    kld: dict[str, float] | None = None,
) -> Comparison:
    """The first `n_model` levels, worse with fewer bits; `kld` sets the mean KLD of some."""
    rng = np.random.default_rng(0)
    n_target = 1000
    unread: Any = SimpleNamespace(kind="gguf")  # reports ask nothing else of a source
    checkpoint: Any = SimpleNamespace(kind="checkpoint")
    models, results = [], []
    for name, bpw in list(LEVELS.items())[:n_model]:
        models.append(Model(f"out/Pico-4x1M-{name}.gguf", unread, int(n_weight * bpw / 8), bpw))
        level = 1e-7 if bpw >= 16 else 10 ** (-0.55 * (bpw - 1.5)) * math.exp(0.1 * rng.normal())
        row = []
        for index in range(len(texts)):
            spread = np.exp(1.5 * rng.normal(size=n_target))
            mean = (kld or {}).get(name, level) * (1 + 0.4 * index)
            nll_base = rng.gamma(2, 1, n_target).astype(np.float32)
            nll = (nll_base + 0.3 * math.sqrt(level) * rng.normal(size=n_target)).astype(np.float32)
            scores = Scores(
                nll,
                nll_base,
                spread / spread.mean() * mean,
                np.exp(-nll) - np.exp(-nll_base),
                rng.random(n_target) > min(0.4, level),
            )
            same = 1 - rng.random(n_layer) * min(0.5, 2 * level)
            router = RouterAgreement(n_target, same, rng.random(n_layer) * level)
            row.append(OnText(summarize(scores), scores, router))
        results.append(tuple(row))
    return Comparison(
        Model(f"models/{base}", checkpoint, int(2 * n_weight), 16.0),
        tuple(models),
        tuple(Chunks((text,), np.zeros((8, 512), np.int32), 1) for text in texts),
        "exact",
        tuple(perplexity(result.scores.nll_base) for result in results[0]),
        tuple(results),
        Timings(),
    )


def make_results(*args: Any, **kwargs: Any) -> Results:
    """The figures of `make_comparison`."""
    return results_of(make_comparison(*args, **kwargs))


def make_report(n_layer: int = 3, n_expert: int = 4, model: str = "Pico-4x1M") -> ErrorReport:
    """Errors drawn by chance; expert 1 of layer 0 is unseen, expert 2 of layer 1 was not judged."""
    rng = random.Random(0)

    def line(qtype: str, bid: int, projection: str, xid: int | None) -> MatrixErrors:
        level = {"Q4_K": 2e-3, "Q8_0": 1e-5}[qtype] * math.exp(rng.gauss(0, 0.4))
        unseen, unjudged = (bid, xid) == (0, 1), (bid, xid) == (1, 2)
        nmse = None if unjudged else level
        plain = None if qtype == "Q8_0" else Errors(0.01, 0.07, None, nmse and 1.1 * nmse, 0.99)
        return MatrixErrors(
            name=f"blk.{bid}.{projection}{'_exps' if xid is not None else ''}.weight",
            xid=xid,
            qtype=qtype,
            n_elements=256,
            n_bytes=144,
            n_tokens=0 if unseen else 100 + 10 * bid,
            n_effective=90.0,
            n_held_out=0 if unjudged else 20,
            n_judged=0 if unjudged else 20,
            errors=Errors(0.01, 0.07, 0.06, nmse, None if nmse is None else 1 - nmse / 2),
            plain=plain,
        )

    places: list[tuple[str, int | None]] = [("attn_q", None), ("attn_v", None)]
    places += [(name, xid) for name in ("ffn_gate", "ffn_down") for xid in range(n_expert)]
    rows = [line(q, bid, *place) for q in ("Q4_K", "Q8_0") for bid in range(n_layer) for place in places]
    facts = (("importances fitted on", "text.txt: 200 tokens"),)
    pairs = tuple(
        tuple(100 if one == other else one + other for other in range(n_expert)) for one in range(n_expert)
    )
    routing = (LayerRouting(0.5 * math.log(n_expert), pairs),) * n_layer
    return ErrorReport(model, n_layer, n_expert, 2, ("Q4_K", "Q8_0"), tuple(rows), 200, 40, facts, routing)
