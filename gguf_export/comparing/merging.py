"""Several comparisons as one: the same base, texts and settings, other models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from gguf_export.comparing.model_names import short_names
from gguf_export.comparing.results import ModelResult, Results, by_size
from quantize.containers.untrusted import quoted
from quantize.exceptions import ChoiceError

__all__ = ["merged"]

PPL_APART = 1e-4
"""Perplexities of one base on one text, relative: machines round differently, models differ by more."""

KLD_APART = 1e-3
"""Mean KL divergences of one file, relative."""

ROUNDING = 1e-6  # nats


def merged(parts: Sequence[tuple[str, Results]]) -> Results:
    """The models of several comparisons side by side; what two of them measured is taken once.

    Names of files are shortened anew; models that still share one bear the name of their comparison, too.

    Args:
        parts: name (as a path) and figures of each, at least one.

    Raises:
        ChoiceError: bases, texts or settings differ, the message says in what; or two models have one name.
    """
    (first_name, first), *others = parts
    for name, other in others:
        _refuse_different(first_name, first, name, other)
        if other.speed_test is not None and first.speed_test not in (None, other.speed_test):
            raise ChoiceError(
                name, f"speed was measured otherwise than in {first_name}", "measure it in one run"
            )
        first = replace(first, speed_test=first.speed_test or other.speed_test)
    if not others:
        return first
    found: list[tuple[str, ModelResult]] = []
    for name, part in parts:
        for model in part.models:
            twin = next((i for i, (_, known) in enumerate(found) if _is_same(known, model)), None)
            if twin is None:
                found.append((name, model))
            elif found[twin][1].speed is None and model.speed is not None:
                found[twin] = (found[twin][0], replace(found[twin][1], speed=model.speed))
    labels = _labels([name for name, _ in found], [model for _, model in found], first.base.name)
    models = [replace(model, label=label) for label, (_, model) in zip(labels, found, strict=True)]
    return replace(
        first,
        versions=_versions([part.versions for _, part in parts]),
        models=by_size(models),
        timings=None,
    )


def _refuse_different(one_name: str, one: Results, other_name: str, other: Results) -> None:
    for what, here, there in _differences(other, one):
        raise ChoiceError(
            other_name,
            f"{what} is {quoted(here)} here, {quoted(there)} in {one_name}",
            "only figures of the same base, texts and settings can be shown together",
        )


def _differences(one: Results, other: Results) -> Iterator[tuple[str, object, object]]:
    """What differs between two comparisons, and its values."""
    if one.base.n_bytes != other.base.n_bytes:
        yield "the size of the base", one.base.n_bytes, other.base.n_bytes
    for name in ("activations", "hidden"):
        here, there = getattr(one, name), getattr(other, name)
        if here != there:
            yield name, here, there
    here, there = ([text.name for text in part.texts] for part in (one, other))
    if here != there:
        yield "the list of texts", ", ".join(here), ", ".join(there)
    for text, known in zip(one.texts, other.texts, strict=True):
        place = f"of text {quoted(text.name)}"
        if text.n_ctx != known.n_ctx:
            yield f"the length of the chunks {place}", text.n_ctx, known.n_ctx
        if text.n_chunk != known.n_chunk:
            yield f"the number of chunks {place}", text.n_chunk, known.n_chunk
        if text.tokens_sha256 != known.tokens_sha256:
            yield f"the SHA-256 of the tokens {place}", text.tokens_sha256, known.tokens_sha256
        ppl, known_ppl = text.base_ppl.value, known.base_ppl.value
        if not math.isclose(ppl, known_ppl, rel_tol=PPL_APART):
            yield f"the base's perplexity {place}", round(ppl, 5), round(known_ppl, 5)


def _is_same(one: ModelResult, other: ModelResult) -> bool:
    """Whether two results are of one file: name, size and divergences are the same."""
    if (one.n_bytes, one.is_file, one.importances) != (other.n_bytes, other.is_file, other.importances):
        return False
    if Path(one.name).name != Path(other.name).name or (
        (one.is_named or other.is_named) and one.label != other.label
    ):
        return False
    return all(
        math.isclose(a.figures["kld"], b.figures["kld"], rel_tol=KLD_APART, abs_tol=ROUNDING)
        for a, b in zip(one.texts, other.texts, strict=True)
    )


def _labels(parts: Sequence[str], models: Sequence[ModelResult], base: str) -> list[str]:
    """A name for each model, behind which its comparison stands where that alone tells it from another.

    Raises:
        ChoiceError: two models of one comparison cannot be told apart.
    """
    own = [i for i, model in enumerate(models) if model.is_file and not model.is_named]
    short = dict(zip(own, short_names([models[i].name for i in own], base), strict=True))
    labels = [short.get(i, model.label) for i, model in enumerate(models)]
    stems = dict(zip(dict.fromkeys(parts), short_names(list(dict.fromkeys(parts)), ""), strict=True))
    told = [
        f"{label} ({stems[part].removesuffix('.json')})" if labels.count(label) > 1 else label
        for label, part in zip(labels, parts, strict=True)
    ]
    twin = next((label for label in told if told.count(label) > 1), None)
    if twin is not None:
        raise ChoiceError("", f"two models are called {quoted(twin)}", "name them apart, as in NAME=FILE")
    return told


def _versions(parts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The versions of each program, in words where they differ."""
    names = dict.fromkeys(name for versions in parts for name in versions)
    return {
        name: " and ".join(dict.fromkeys(versions[name] for versions in parts if name in versions))
        for name in names
    }
