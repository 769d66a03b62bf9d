"""From the pass over the texts to plain figures: a `Comparison` becomes `Results`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibration.judging.model import Model
from calibration.judging.side_by_side import Base, Comparison
from calibration.judging.side_by_side import OnText as Scored
from calibration.text.chunks import Chunks
from gguf_export.comparing.model_names import distinct_paths, refuse_twins, short_names
from gguf_export.comparing.results import (
    DECADES,
    WITH_ERROR,
    BaseFacts,
    Measured,
    ModelResult,
    OnText,
    Results,
    TextFacts,
    by_size,
)
from gguf_export.metadata.type_keys import predicted_kld
from gguf_export.writing.fingerprint import version
from quantize.containers.untrusted import label
from quantize.sources.gguf_file import GGUFFile

__all__ = ["labels_of", "predicted_kld_of", "results_of"]


def results_of(comparison: Comparison, *, hidden: str = "f32") -> Results:
    """The figures of a comparison, without the models behind them.

    Args:
        comparison: from `comparing.run`.
        hidden: type of the hidden states between layers, "f32" or "bf16".

    Raises:
        ChoiceError: two models have one name.
    """
    base = comparison.base
    size, bpw = (None, None) if base.kind == "logits" else (base.n_bytes, base.bpw)
    texts = [
        _text_facts(comparison.text_name(index), text, Measured(ppl.value, ppl.error))
        for index, (text, ppl) in enumerate(zip(comparison.texts, comparison.base_ppl, strict=True))
    ]
    return Results(
        BaseFacts(_base_name(base), size, bpw),
        comparison.activations,
        hidden,
        {"moe-gguf": version(), "torch": str(torch.__version__)},
        tuple(texts),
        by_size(list(_models(comparison))),
        comparison.timings.as_dict(),
    )


def labels_of(base: Base, models: Sequence[Model]) -> list[str]:
    """A short name for each model: the one that a person gave it, or what tells its file from the others.

    Raises:
        ChoiceError: two models have one name.
    """
    unnamed = [model.name for model in models if model.is_file and not model.given_name]
    base_file = base.name if base.kind == "model" and base.is_file else ""
    short = dict(zip(unnamed, short_names(unnamed, _base_name(base), base_file), strict=True))
    labels = [model.given_name or label(short.get(model.name, model.name)) for model in models]
    refuse_twins(labels)
    return labels


def predicted_kld_of(model: Model) -> float | None:
    """The mean KL divergence in nats per token that a file states for its types; None where it states none."""
    return predicted_kld(model.source.keys) if isinstance(model.source, GGUFFile) else None


def _base_name(base: Base) -> str:
    if base.kind == "model" and base.given_name:
        return base.given_name
    path = base.path if base.kind == "logits" else Path(base.name)
    return label(path.name or path.resolve().name)


def _text_facts(name: str, text: Chunks, base_ppl: Measured) -> TextFacts:
    tokens = np.ascontiguousarray(text.tokens, dtype="<i4").tobytes()
    return TextFacts(name, text.n_chunk, text.n_ctx, hashlib.sha256(tokens).hexdigest(), base_ppl)


def _models(comparison: Comparison) -> Iterable[ModelResult]:
    models = comparison.models
    files = [model.name for model in models if model.is_file]
    names = dict(zip(files, distinct_paths(files), strict=True))
    labels = labels_of(comparison.base, models)
    for shown, model, results in zip(labels, models, comparison.results, strict=True):
        yield ModelResult(
            label=shown,
            name=label(names.get(model.name, model.name)),
            is_named=bool(model.given_name),
            is_file=model.is_file,
            n_bytes=model.n_bytes,
            bpw=model.bpw,
            predicted_kld=predicted_kld_of(model),
            importances=_importances(model),
            imatrix=_imatrix(model),
            texts=tuple(map(_on_text, results)),
        )


def _on_text(result: Scored) -> OnText:
    s = result.statistics
    figures: dict[str, float] = {"n_target": s.n}
    for name in WITH_ERROR:
        estimate = getattr(s, name)
        figures |= {name: estimate.value, f"{name}_error": estimate.error}
    figures |= {"correlation": s.correlation}
    figures |= {"kld_min": s.kld_min, "kld_median": s.kld_median, "kld_max": s.kld_max}
    figures |= {f"kld_q{fraction:g}": value for fraction, value in s.kld_quantiles.items() if fraction != 0.5}
    figures |= {f"dp_q{fraction:g}": value for fraction, value in s.dp_quantiles.items()}
    decades = np.searchsorted(DECADES, result.scores.kld, side="right")
    counts = np.bincount(decades, minlength=len(DECADES) + 1)
    shares = tuple(float(share) for share in counts / result.scores.kld.size)
    if result.router is None:
        return OnText(figures, shares)
    return OnText(figures, shares, tuple(result.router.same.tolist()), tuple(result.router.kld.tolist()))


def _importances(model: Model) -> str:
    """What a round trip was encoded with, in words."""
    if model.source.kind != "round trip":
        return ""
    imatrix = model.imatrix
    if imatrix is None:
        return "none"
    parts = [Path(imatrix.file).name or "an importance matrix"]
    if imatrix.chunk_count:
        parts.append(f"{imatrix.chunk_count:,} chunks of {imatrix.chunk_size:,} tokens")
    if imatrix.prior:
        parts.append(f"prior of {imatrix.prior:g} tokens")
    return ", ".join(parts)


def _imatrix(model: Model) -> dict[str, Any] | None:
    """The importances that a round trip was encoded with, by base names; None without any, and for a file."""
    imatrix = model.imatrix
    if imatrix is None:
        return None
    return {
        "file": label(Path(imatrix.file).name),
        "datasets": [label(Path(name).name) for name in imatrix.datasets],
        "n_chunk": imatrix.chunk_count,
        "n_ctx": imatrix.chunk_size,
        "prior": imatrix.prior,
    }
