"""The figures of a comparison for spreadsheets and programs: CSV and JSON."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from calibration.judging.perplexity import Estimate
from calibration.judging.side_by_side import Comparison, Model, OnText
from gguf_export.reports.compare_facts import base_name, labels, predicted, versions
from gguf_export.reports.data_texts import as_data, csv_text, json_text
from quantize.containers.untrusted import file_name

__all__ = ["compare_csv", "compare_dict", "compare_json"]


def _figures(result: OnText) -> dict[str, float]:
    """The flat figures of one model on one text."""
    s = result.statistics
    figures: dict[str, float] = {"n_target": s.n}
    for name in (
        "ppl",
        "ppl_base",
        "ln_ratio",
        "ppl_ratio",
        "ppl_difference",
        "kld",
        "mean_dp",
        "rms_dp",
        "same_top",
    ):
        estimate: Estimate = getattr(s, name)
        figures |= {name: estimate.value, f"{name}_error": estimate.error}
    figures |= {"correlation": s.correlation}
    figures |= {"kld_min": s.kld_min, "kld_median": s.kld_median, "kld_max": s.kld_max}
    figures |= {f"kld_q{fraction:g}": value for fraction, value in s.kld_quantiles.items() if fraction != 0.5}
    figures |= {f"dp_q{fraction:g}": value for fraction, value in s.dp_quantiles.items()}
    return figures


def compare_csv(comparison: Comparison) -> str:
    """Write a line for each model and text: sizes in bytes, shares as fractions of 1, KLD in nats."""
    lines = []
    for label, model, results in zip(labels(comparison), comparison.models, comparison.results, strict=True):
        for index, result in enumerate(results):
            place = {
                "model": label,
                "text": comparison.text_name(index),
                "n_chunk": comparison.texts[index].n_chunk,
                "n_ctx": comparison.texts[index].n_ctx,
                "base": base_name(comparison),
                "activations": comparison.activations,
                "n_bytes": model.n_bytes,
                "bpw": model.bpw,
            }
            routers = {"same_experts": math.nan, "router_kld": math.nan}
            if result.router is not None:
                routers = {
                    "same_experts": float(np.nanmean(result.router.same)),
                    "router_kld": float(np.nanmean(result.router.kld)),
                }
            lines.append(place | _figures(result) | routers)
    return csv_text(list(lines[0]), (line.values() for line in lines))


def compare_dict(comparison: Comparison) -> dict[str, Any]:
    """All figures but the scores of single targets, as JSON takes them; None where there is no number."""
    base = comparison.base
    figures: dict[str, Any] = {
        "base": {
            "name": base_name(comparison),
            "n_bytes": base.n_bytes,
            "bpw": base.bpw,
        },
        "activations": comparison.activations,
        "versions": versions(),
        "texts": [
            {
                "name": comparison.text_name(index),
                "n_chunk": text.n_chunk,
                "n_ctx": text.n_ctx,
                "base_ppl": comparison.base_ppl[index].value,
                "base_ppl_error": comparison.base_ppl[index].error,
            }
            for index, text in enumerate(comparison.texts)
        ],
        "models": [
            {
                "label": label,
                "name": file_name(model.name),
                "n_bytes": model.n_bytes,
                "bpw": model.bpw,
                "predicted_kld": predicted(model),
                "imatrix": _imatrix(model),
                "texts": {
                    comparison.text_name(index): _figures(result) | _routers(result)
                    for index, result in enumerate(results)
                },
            }
            for label, model, results in zip(
                labels(comparison), comparison.models, comparison.results, strict=True
            )
        ],
        "timings": comparison.timings.as_dict(),
    }
    data: dict[str, Any] = as_data(figures)
    return data


def _imatrix(model: Model) -> dict[str, Any] | None:
    """The importances that a round trip was encoded with; None without any, and for a file."""
    imatrix = model.imatrix
    if imatrix is None:
        return None
    return {
        "file": file_name(imatrix.file),
        "datasets": [file_name(name) for name in imatrix.datasets],
        "n_chunk": imatrix.chunk_count,
        "n_ctx": imatrix.chunk_size,
        "prior": imatrix.prior,
    }


def _routers(result: OnText) -> dict[str, Any]:
    if result.router is None:
        return {}
    return {
        "router_same_by_layer": result.router.same.tolist(),
        "router_kld_by_layer": result.router.kld.tolist(),
    }


def compare_json(comparison: Comparison) -> str:
    """Write all figures as JSON; see `compare_dict`."""
    return json_text(compare_dict(comparison)) + "\n"
