"""Figures of comparisons read back from their JSON, which a stranger may have written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gguf_export.comparing.merging import merged
from gguf_export.comparing.results import (
    DECADES,
    FIGURES,
    BaseFacts,
    Measured,
    ModelResult,
    OnText,
    Results,
    Speed,
    SpeedTest,
    TextFacts,
    by_size,
)
from gguf_export.reports.compare_data import KIND, SCHEMA
from quantize.containers.untrusted import label, quoted, read_json
from quantize.exceptions import ChoiceError

__all__ = ["read_all", "read_results"]

MAX_COUNT = 2**63


def read_all(paths: Sequence[Path]) -> Results:
    """The figures of several comparisons as one.

    Raises:
        ChoiceError: see `read_results` and `merged`.
    """
    return merged([(str(path), read_results(path)) for path in paths])


def read_results(path: Path) -> Results:
    """The figures that `compare_data.compare_json` wrote.

    Raises:
        ChoiceError: the file cannot be read, is something else, or of another version.
    """
    content = read_json(path, ChoiceError)
    if content.get("kind") != KIND:
        raise ChoiceError(
            str(path), "holds no comparison", "give JSON that compare has written, at this version"
        )
    if content.get("schema") != SCHEMA:
        message = f"is of version {quoted(content.get('schema'))} of such files, this program reads {SCHEMA}"
        raise ChoiceError(str(path), message, "compare anew, or use the program that wrote it")
    try:
        return _results(_Fields(content, ""))
    except _WrongError as wrong:
        raise ChoiceError(str(path), f"damaged: {wrong}", "compare anew") from None


class _WrongError(Exception):
    """Something in the file is not what it should be; the text says what."""


class _Fields:
    """An object of the file, asked for its fields one by one; what is not as expected is `_WrongError`."""

    def __init__(self, content: Any, place: str) -> None:
        if not isinstance(content, Mapping):
            raise _WrongError(f"{place or 'the whole'} is {quoted(content)}, an object is expected")
        self.content, self.place = content, place

    def get(self, key: str, kinds: type | tuple[type, ...], what: str) -> Any:
        """The value of a key, of one of some types."""
        value = self.content.get(key)
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise _WrongError(f"{self.place}{key} is {quoted(value)}, {what} is expected")
        return value

    def text(self, key: str) -> str:
        """A text on one line."""
        return label(self.get(key, str, "a text"))

    def number(self, key: str) -> float:
        """A number, NaN where there is none."""
        return _number(self.content.get(key), f"{self.place}{key}")

    def count(self, key: str) -> int:
        """A whole number that is not negative."""
        value: int = self.get(key, int, "a whole number")
        if not 0 <= value < MAX_COUNT:
            raise _WrongError(f"{self.place}{key} is {quoted(value)}, an amount is expected")
        return value

    def flag(self, key: str) -> bool:
        """True or false."""
        return bool(self.get(key, bool, "true or false"))

    def measured(self, key: str) -> Measured:
        """A figure and its error."""
        return Measured(self.number(key), self.number(f"{key}_error"))

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers."""
        values = self.get(key, list, "a list of numbers")
        return tuple(_number(value, f"{self.place}{key}") for value in values)

    def objects(self, key: str) -> list[_Fields]:
        """A list of objects, at least one."""
        values = self.get(key, list, "a list")
        if not values:
            raise _WrongError(f"{self.place}{key} is empty")
        return [_Fields(value, f"{self.place}{key}[{index}].") for index, value in enumerate(values)]

    def inner(self, key: str) -> _Fields:
        """An object."""
        return _Fields(self.content.get(key), f"{self.place}{key}.")

    def has(self, key: str) -> bool:
        """Whether there is a value."""
        return self.content.get(key) is not None


def _number(value: Any, place: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise _WrongError(f"{place} is {quoted(value)}, a number is expected")
    return value


def _results(fields: _Fields) -> Results:
    base = fields.inner("base")
    texts = tuple(_text(one) for one in fields.objects("texts"))
    test = fields.inner("speed_test") if fields.has("speed_test") else None
    activations, hidden = fields.text("activations"), fields.text("hidden")
    if activations not in ("exact", "int8") or hidden not in ("f32", "bf16"):
        raise _WrongError(f"activations is {quoted(activations)}, hidden is {quoted(hidden)}")
    versions = fields.inner("versions")
    timings = fields.inner("timings") if fields.has("timings") else None
    return Results(
        BaseFacts(
            base.text("name"),
            base.count("n_bytes") if base.has("n_bytes") else None,
            base.number("bpw") if base.has("bpw") else None,
        ),
        activations,
        hidden,
        {label(name): versions.text(name) for name in versions.content},
        texts,
        by_size([_model(one, texts) for one in fields.objects("models")]),
        None if timings is None else {name: timings.number(name) for name in timings.content},
        None
        if test is None
        else SpeedTest(
            test.text("program"), test.count("n_thread"), test.count("n_prompt"), test.count("n_generated")
        ),
    )


def _text(fields: _Fields) -> TextFacts:
    return TextFacts(
        fields.text("name"),
        fields.count("n_chunk"),
        fields.count("n_ctx"),
        fields.text("tokens_sha256"),
        fields.measured("base_ppl"),
    )


def _model(fields: _Fields, texts: Sequence[TextFacts]) -> ModelResult:
    on_texts = fields.inner("texts")
    speed = fields.inner("speed") if fields.has("speed") else None
    return ModelResult(
        label=fields.text("label"),
        name=fields.text("name"),
        is_named=fields.flag("is_named"),
        is_file=fields.flag("is_file"),
        n_bytes=fields.count("n_bytes"),
        bpw=fields.number("bpw"),
        predicted_kld=fields.number("predicted_kld") if fields.has("predicted_kld") else None,
        importances=fields.text("importances"),
        imatrix=fields.inner("imatrix").content if fields.has("imatrix") else None,
        texts=tuple(_on_text(on_texts.inner(text.name)) for text in texts),
        speed=None if speed is None else Speed(speed.number("pp"), speed.number("tg")),
    )


def _on_text(fields: _Fields) -> OnText:
    shares = fields.numbers("kld_shares")
    if len(shares) != len(DECADES) + 1:
        raise _WrongError(f"{fields.place}kld_shares has {len(shares)} numbers")
    missing = next((name for name in FIGURES if name not in fields.content), None)
    if missing is not None:
        raise _WrongError(f"{fields.place}{missing} is missing")
    routers = (
        (fields.numbers("router_same_by_layer"), fields.numbers("router_kld_by_layer"))
        if fields.has("router_same_by_layer")
        else ((), ())
    )
    return OnText({name: fields.number(name) for name in FIGURES}, shares, *routers)
