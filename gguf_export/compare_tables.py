"""The figures of a comparison as a person reads them: on the terminal, on a page, on a model card."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from calibration.compare import Comparison, Model, OnText
from calibration.logits_file import LogitsFile
from calibration.perplexity import Estimate
from calibration.streams import Timings
from gguf_export.figures import NOTHING, significant

__all__ = [
    "base_name",
    "compare_markdown",
    "gib",
    "labels",
    "protocol",
    "text_table",
    "timing_table",
    "with_error",
]

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]

ACTIVATIONS = {
    "exact": "activations exact: only the weights are judged",
    "int8": "activations rounded to 8 bits as llama.cpp's CPU kernels do",
}


def labels(comparison: Comparison) -> list[str]:
    """A short name for each model: what tells its file from the others."""
    names = [_stem(model) for model in comparison.models]
    whole = [name for model, name in zip(comparison.models, names, strict=True) if _is_file(model)]
    base = comparison.base
    if isinstance(base, Model) and _is_file(base):
        whole.append(_stem(base))
    parts = [name.split("-") for name in whole]  # names are made of parts with hyphens between
    cut = 0
    if len(set(whole)) > 1:
        while all(len(one) > cut + 1 and one[cut] == parts[0][cut] for one in parts):
            cut += 1
    shown = [
        "-".join(name.split("-")[cut:]) if _is_file(model) else name
        for model, name in zip(comparison.models, names, strict=True)
    ]
    return shown if len(set(shown)) == len(shown) else [model.name for model in comparison.models]


def _is_file(model: Model) -> bool:
    return model.name.endswith(".gguf")


def _stem(model: Model) -> str:
    return Path(model.name).name.removesuffix(".gguf") if _is_file(model) else model.name


def base_name(comparison: Comparison) -> str:
    """What the base is called."""
    base = comparison.base
    path = base.path if isinstance(base, LogitsFile) else Path(base.name)
    return path.name or path.resolve().name


def gib(n_bytes: float) -> str:
    """Bytes in GiB, three digits behind the point; small files in MiB."""
    return f"{n_bytes / 2**30:.3f} GiB" if n_bytes >= 1 << 30 else f"{n_bytes / 2**20:.2f} MiB"


def with_error(estimate: Estimate, factor: float = 1.0) -> str:
    """A value and its standard error, both to the place of the error's second digit; six places at most."""
    value, error = factor * estimate.value, factor * estimate.error
    if not math.isfinite(value):
        return NOTHING
    places = 6 if abs(value) < 1 else 2
    if error > 0 and math.isfinite(error):
        places = min(6, max(0, 1 - math.floor(math.log10(error))))
    return f"{_fixed(value, places)} ± {error:.{places}f}"


def _fixed(value: float, places: int) -> str:
    """So many places, and no minus before zeros."""
    return f"{round(value, places) + 0.0:,.{places}f}"


def ppl(estimate: Estimate) -> str:
    """A perplexity with its error: four places as llama-perplexity prints them, since levels differ by little."""
    return f"{estimate.value:,.4f} ± {estimate.error:.4f}"


def nats(value: float) -> str:
    """A KLD: three digits, six places at most."""
    return significant(value) if abs(value) >= 1e-4 else _fixed(value, 6)


def text_table(comparison: Comparison, text: int, *, full: bool = True) -> Table:
    """All figures on one text (or those that fit on a terminal): one row for each model, the base first."""
    columns: dict[str, Callable[[str, Model, OnText], str]] = {
        "model": lambda label, model, result: label,
        ">size": lambda label, model, result: gib(model.n_bytes),
        ">mean KLD": lambda label, model, result: with_error(result.statistics.kld),
        ">same top %": lambda label, model, result: with_error(result.statistics.same_top, 100),
        ">99.9 %": lambda label, model, result: nats(result.statistics.kld_quantiles[0.999]),
        ">PPL": lambda label, model, result: ppl(result.statistics.ppl),
        ">ln PPL ratio": lambda label, model, result: with_error(result.statistics.ln_ratio),
        ">RMS Δp %": lambda label, model, result: with_error(result.statistics.rms_dp, 100),
        ">same experts %": lambda label, model, result: same_experts(result),
        ">bpw": lambda label, model, result: f"{model.bpw:.2f}",
        ">median KLD": lambda label, model, result: nats(result.statistics.kld_median),
        ">99 %": lambda label, model, result: nats(result.statistics.kld_quantiles[0.99]),
        ">max": lambda label, model, result: nats(result.statistics.kld_max),
    }
    if not full:
        for name in (">RMS Δp %", ">median KLD", ">99 %", ">max"):
            del columns[name]
    if all(same_experts(results[text]) == NOTHING for results in comparison.results):
        del columns[">same experts %"]
    size, bpw = base_size(comparison)
    own = {"model": f"{base_name(comparison)} (base)", ">size": size, ">bpw": bpw}
    own[">PPL"] = ppl(comparison.base_ppl[text])
    rows = [tuple(own.get(column, NOTHING) for column in columns)]
    for label, model, results in zip(labels(comparison), comparison.models, comparison.results, strict=True):
        rows.append(tuple(show(label, model, results[text]) for show in columns.values()))
    return tuple(columns), rows


def base_size(comparison: Comparison) -> tuple[str, str]:
    """Size and bits per weight of the base, where it is a model."""
    base = comparison.base
    return (NOTHING, NOTHING) if isinstance(base, LogitsFile) else (gib(base.n_bytes), f"{base.bpw:.2f}")


def same_experts(result: OnText) -> str:
    """Share of tokens that go to the base's experts, mean over the layers, in percent."""
    if result.router is None or np.isnan(result.router.same).all():
        return NOTHING
    return f"{100 * float(np.nanmean(result.router.same)):.2f}"


def protocol(comparison: Comparison) -> list[str]:
    """How it was measured, a line each."""
    texts = ", ".join(
        f"{comparison.text_name(index)}: {text.n_chunk} chunks of {text.n_ctx} tokens"
        for index, text in enumerate(comparison.texts)
    )
    return [
        f"base: {base_name(comparison)}",
        texts,
        "protocol of llama-perplexity: the second half of each chunk is scored; ± is one standard error",
        ACTIVATIONS[comparison.activations],
    ]


def compare_markdown(comparison: Comparison) -> str:
    """A table for a model card; each text has its columns."""
    columns = ["file", "size", "bpw"]
    several = len(comparison.texts) > 1
    for index in range(len(comparison.texts)):
        of = f", {_cell(comparison.text_name(index))}" if several else ""
        columns += [f"PPL{of}", f"mean KLD{of}", f"99.9 % KLD{of}", f"same top %{of}"]
    lines = [_line(columns), _line(["---"] + ["---:"] * (len(columns) - 1))]
    cells = [[f"{base_name(comparison)} (base)", *base_size(comparison)]]
    for index in range(len(comparison.texts)):
        cells[0] += [ppl(comparison.base_ppl[index]), "", "", ""]
    for label, model, results in zip(labels(comparison), comparison.models, comparison.results, strict=True):
        row = [label, gib(model.n_bytes), f"{model.bpw:.2f}"]
        for result in results:
            s = result.statistics
            row += [
                ppl(s.ppl),
                with_error(s.kld),
                nats(s.kld_quantiles[0.999]),
                with_error(s.same_top, 100),
            ]
        cells.append(row)
    lines += [_line([_cell(cell) for cell in row]) for row in cells]
    return "\n".join([*lines, "", *(f"- {line}" for line in protocol(comparison)), ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def timing_table(timings: Timings) -> Table:
    """What the time was spent on."""
    kinds = {
        "reading": "reading, and encoding of round trips",
        "decoding": "decoding",
        "products": "matrix products",
        "attention": "attention",
        "comparing": "comparing logits",
    }
    seconds = {told: getattr(timings, kind) for kind, told in kinds.items()}
    seconds["all else"] = timings.total - sum(seconds.values())
    seconds["total"] = timings.total
    rows: list[tuple[str, ...]] = [
        (told, f"{spent:.1f}", f"{100 * spent / max(timings.total, 1e-9):.1f} %")
        for told, spent in seconds.items()
    ]
    return ("work", ">seconds", ">share"), rows
