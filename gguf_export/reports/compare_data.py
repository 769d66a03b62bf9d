"""The figures of a comparison for spreadsheets and programs: CSV and JSON. `compare_read` reads the JSON again."""

from __future__ import annotations

from typing import Any

from gguf_export.comparing.results import ModelResult, OnText, Results
from gguf_export.reports.compare_facts import ranked
from gguf_export.reports.data_texts import as_data, csv_text, json_text
from gguf_export.reports.ranking import beaten_by, verdict

__all__ = ["KIND", "SCHEMA", "compare_csv", "compare_dict", "compare_json"]

KIND = "moe-gguf compare"
"""The value of `kind` in the JSON."""

SCHEMA = 1
"""The value of `schema`: it grows when what is there already gets another meaning or is no longer there."""


def compare_csv(results: Results) -> str:
    """Write a line for each model and text: sizes in bytes, shares as fractions of 1, KLD in nats.

    `all_kld`, `verdict` and `beaten_by` are those over all texts.
    """
    lines = []
    for model, beaten in zip(results.models, beaten_by(ranked(results)), strict=True):
        for text, result in zip(results.texts, model.texts, strict=True):
            place = {
                "model": model.label,
                "text": text.name,
                "n_chunk": text.n_chunk,
                "n_ctx": text.n_ctx,
                "base": results.base.name,
                "activations": results.activations,
                "n_bytes": model.n_bytes,
                "bpw": model.bpw,
            }
            routers = {"same_experts": result.mean_same_experts, "router_kld": result.mean_router_kld}
            over_all = {
                "all_kld": model.mean("kld").value,
                "verdict": verdict(model.mean("kld").value),
                "beaten_by": beaten or "",
                "pp_per_second": None if model.speed is None else model.speed.pp,
                "tg_per_second": None if model.speed is None else model.speed.tg,
            }
            lines.append(place | dict(result.figures) | routers | over_all)
    return csv_text(list(lines[0]), (line.values() for line in lines))


def compare_dict(results: Results) -> dict[str, Any]:
    """All figures but the scores of single targets, as JSON takes them; None where there is no number."""
    base, test = results.base, results.speed_test
    figures: dict[str, Any] = {
        "kind": KIND,
        "schema": SCHEMA,
        "base": {"name": base.name, "n_bytes": base.n_bytes, "bpw": base.bpw},
        "activations": results.activations,
        "hidden": results.hidden,
        "versions": results.versions,
        "texts": [
            {
                "name": text.name,
                "n_chunk": text.n_chunk,
                "n_ctx": text.n_ctx,
                "tokens_sha256": text.tokens_sha256,
                "base_ppl": text.base_ppl.value,
                "base_ppl_error": text.base_ppl.error,
            }
            for text in results.texts
        ],
        "speed_test": None if test is None else dict(vars(test)),
        "models": [
            _model(results, model, beaten)
            for model, beaten in zip(results.models, beaten_by(ranked(results)), strict=True)
        ],
        "timings": results.timings,
    }
    data: dict[str, Any] = as_data(figures)
    return data


def _model(results: Results, model: ModelResult, beaten: str | None) -> dict[str, Any]:
    kld = model.mean("kld")
    return {
        "label": model.label,
        "name": model.name,
        "is_named": model.is_named,
        "is_file": model.is_file,
        "n_bytes": model.n_bytes,
        "bpw": model.bpw,
        "predicted_kld": model.predicted_kld,
        "importances": model.importances,
        "imatrix": model.imatrix,
        "kld": kld.value,
        "kld_error": kld.error,
        "verdict": verdict(kld.value),
        "beaten_by": beaten,
        "speed": None if model.speed is None else model.speed._asdict(),
        "texts": {
            text.name: dict(result.figures) | {"kld_shares": list(result.shares)} | _routers(result)
            for text, result in zip(results.texts, model.texts, strict=True)
        },
    }


def _routers(result: OnText) -> dict[str, Any]:
    if not result.same_experts:
        return {}
    return {
        "router_same_by_layer": list(result.same_experts),
        "router_kld_by_layer": list(result.router_kld),
    }


def compare_json(results: Results) -> str:
    """Write all figures as JSON; see `compare_dict`."""
    return json_text(compare_dict(results)) + "\n"
