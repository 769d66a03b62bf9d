"""How a comparison was measured, and how its sizes are written."""

from __future__ import annotations

import math

from gguf_export.comparing.results import Measured, Results
from gguf_export.reports.figures import SizeUnit
from gguf_export.reports.ranking import Ranked

__all__ = ["is_lossless", "ppl_ratio", "protocol", "ranked", "size_unit"]

ACTIVATIONS = {
    "exact": "exact, so that only the weights are judged",
    "int8": "rounded to 8 bits as llama.cpp's CPU kernels do",
}

PROTOCOL = "that of llama-perplexity: the second half of each chunk is scored; ± is one standard error"

WHOLE_BITS = 16.0
"""Bits per weight from which on a file is not quantized; norms and routers in float32 put it a little above."""


def size_unit(results: Results) -> SizeUnit:
    """The unit of all sizes of a comparison."""
    sizes = [model.n_bytes for model in results.models]
    return SizeUnit.of(max(sizes, default=0))


def ranked(results: Results) -> list[Ranked]:
    """The models as `ranking` takes them: by their mean KLD over all texts."""
    return [Ranked(model.label, model.n_bytes, model.mean("kld").value) for model in results.models]


def is_lossless(bpw: float, kld: float) -> bool:
    """Whether a file has nothing to lose: of 16 bits or more, or equal to the base but for the rounding of float32."""
    return bpw >= WHOLE_BITS or not kld >= LEAST_KLD


LEAST_KLD = 1e-6
"""Nats: below, a mean KLD is the rounding of float32."""


def ppl_ratio(ln_ratio: Measured) -> Measured:
    """The perplexity as a multiple of the base's, from its logarithm."""
    ratio = math.exp(ln_ratio.value)
    return Measured(ratio, ratio * ln_ratio.error)


def protocol(results: Results) -> list[tuple[str, str]]:
    """How it was measured, as (term, meaning) each."""
    facts = [("base", results.base.name)]
    for text in results.texts:
        amount = f"{text.n_chunk:,} chunk{'s' * (text.n_chunk != 1)} of {text.n_ctx:,} tokens"
        facts.append((f"text {text.name}", amount))
    facts += [("protocol", PROTOCOL), ("activations", ACTIVATIONS[results.activations])]
    if results.hidden != "f32":
        facts.append(("hidden states", results.hidden))
    for importances in dict.fromkeys(model.importances for model in results.models):
        if importances:
            facts.append(("importances of round trips", importances))
    test = results.speed_test
    if test is not None:
        facts.append(
            (
                "speed",
                f"{test.program}, {test.n_thread} thread{'s' * (test.n_thread != 1)} of the CPU: tokens per second of "
                f"a prompt of {test.n_prompt:,} tokens (pp), and of the {test.n_generated:,} tokens "
                "generated behind it (tg); the median of three runs",
            )
        )
    versions = ", ".join(f"{name} {number}" for name, number in results.versions.items())
    return [*facts, ("versions", versions)]
