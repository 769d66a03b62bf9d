"""How the `{arch}.*` keys of a GGUF file are declared: name, type, the setting of config.json, the field of `Hparams`.

One table serves to write a file (config.json -> keys), to read one (keys -> `Hparams`), to verify it, and to examine a
config.json. A family lists its keys in the order of llama.cpp's converter; to add a key is to add a row:

    Key("attention.q_lora_rank", "q_lora_rank", config="q_lora_rank")
    known("expert_count", config="n_routed_experts")

The second is a row of `key_table.KNOWN`, with the setting of this family's config.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from gguf import GGUFValueType

from quantize.containers.keys import KeyValue
from quantize.containers.untrusted import F32_MAX, quoted
from quantize.exceptions import CheckpointError
from quantize.families.expressions import evaluate
from quantize.hparams import Hparams, RopeScaling

__all__ = [
    "Config",
    "Key",
    "Value",
    "config_values",
    "derived",
    "hparams_of",
    "key_values",
    "number",
    "setting",
    "unless_zero",
    "whole_number",
]

Config = Mapping[str, Any]
Value = int | float | str | bool

U32, F32 = GGUFValueType.UINT32, GGUFValueType.FLOAT32
STRING, BOOL = GGUFValueType.STRING, GGUFValueType.BOOL

MAX_SIZE = 2**31 - 1
HPARAMS_FIELDS = frozenset(field.name for field in fields(Hparams))


@dataclass(frozen=True)
class Key:
    """One key of an architecture.

    `config` is the setting of config.json, with a dot where it lies within another ("rope_parameters.rope_theta"), or
    a function of the whole config that gives None where nothing is to be written. `made` is an expression in the
    model's dimensions, for a key that only repeats them; `flags` gives a switch for each layer.

    A file that lacks the key means `default`: a value, or an expression in dimensions that stand before it in the
    table, or a function of these. Without one the key is required, unless it is `optional`: then `Hparams` has a
    default itself.
    """

    name: str  # behind "{arch}."
    field: str = ""  # of `Hparams`, or a further dimension (`Hparams.extra`); empty where it is written only
    type: GGUFValueType = U32
    config: str | Callable[[Config], Value | None] = ""
    made: str = ""
    flags: Callable[[Hparams], list[bool]] | None = None
    default: int | float | str | Callable[[Mapping[str, Any]], Value] | None = None
    optional: bool = False  # config.json may leave it out
    per_layer: bool = False  # llama.cpp takes an array of one number for each layer, too
    leads: bool = False  # written with the tensors, and so right behind general.architecture
    minimum: int = 1
    maximum: int = MAX_SIZE

    @property
    def is_required(self) -> bool:
        """Whether no model can do without: a file that lacks it cannot be read."""
        return bool(self.field) and self.default is None and not self.optional


def derived(expression: str) -> Callable[[Config], Value | None]:
    """A value that config.json says only in pieces: "qk_nope_head_dim+qk_rope_head_dim"."""
    return partial(_derived, expression)


def _derived(expression: str, config: Config) -> Value | None:
    try:
        return evaluate(expression, config)
    except (KeyError, TypeError, ValueError, ArithmeticError):
        raise CheckpointError("config.json", f"{expression} cannot be computed") from None


def unless_zero(setting: str) -> Callable[[Config], Value | None]:
    """A factor of config.json that is written only where it is not zero; zero and null mean that there is none."""
    return partial(_unless_zero, setting)


def _unless_zero(setting: str, config: Config) -> Value | None:
    value = config.get(setting)
    if value is None:
        return None
    if type(value) not in (int, float) or not abs(value) <= F32_MAX:
        raise CheckpointError("config.json", f"{setting} must be a number, but is {quoted(value)}")
    return float(value) or None


def config_values(keys: Iterable[Key], config: Config) -> dict[str, Value]:
    """The values of a complete config.json by the names of the keys, in the order of the table.

    Raises:
        CheckpointError: a value is missing, of another type, or out of range.
    """
    values = {row.name: _config_value(row, config) for row in keys if row.config}
    return {name: value for name, value in values.items() if value is not None}


def _config_value(row: Key, config: Config) -> Value | None:
    if callable(row.config):
        value = row.config(config)
        if type(value) is int and not row.minimum <= value <= row.maximum:
            message = f"{row.name} would be {value}, outside of {row.minimum}..{row.maximum}"
            raise CheckpointError("config.json", message)
        return value
    outer, _, name = row.config.rpartition(".")
    if outer:
        config = setting(config, outer)
        if not isinstance(config, dict):
            raise CheckpointError("config.json", f"{outer} must be an object, but is {quoted(config)}")
    value = config.get(name)
    if value is None and row.optional:
        return None
    if row.type == U32:
        return whole_number(config, name, row.minimum, row.maximum)
    if row.type == F32:
        return number(config, name)
    expected, words = (bool, "true or false") if row.type == BOOL else (str, "a text")
    if not isinstance(value, expected):
        raise CheckpointError("config.json", f"{name} must be {words}, but is {quoted(value)}")
    return value


def setting(config: Config, name: str) -> Any:
    """A setting of config.json, with dots where it lies within others; None where there is none."""
    value: Any = config
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def whole_number(config: Config, name: str, minimum: int, maximum: int = MAX_SIZE) -> int:
    """A setting of config.json that must be a whole number from `minimum` to `maximum`.

    Raises:
        CheckpointError: it is none.
    """
    value = config.get(name)
    if type(value) is not int:
        given = quoted(value) if name in config else "missing"
        raise CheckpointError("config.json", f"{name} must be a whole number, but is {given}")
    if not minimum <= value <= maximum:
        raise CheckpointError("config.json", f"{name} {quoted(value)} is outside of {minimum}..{maximum}")
    return value


def number(config: Config, name: str) -> float:
    """A setting of config.json that must be a number above 0.

    Raises:
        CheckpointError: it is none.
    """
    value: Any = config.get(name)
    if type(value) not in (int, float) or not 0 < value <= F32_MAX:
        raise CheckpointError("config.json", f"{name} must be a number above 0, but is {quoted(value)}")
    return float(value)


def hparams_of(
    arch: str, keys: Iterable[Key], values: Mapping[str, Value], n_vocab: int, *, rope_neox: bool = False
) -> Hparams:
    """The hyper-parameters that the values of some keys mean.

    Args:
        arch: general.architecture.
        keys: the table; a key that is required must have a value.
        values: by the name of the key, from a file or from config.json.
        n_vocab: rows of the token embedding, which no key says for certain.
        rope_neox: see `Hparams`.

    Raises:
        KeyError: a key that is required has no value.
        ZeroDivisionError: n_head is 0.
    """
    known_fields: dict[str, Any] = {"arch": arch, "n_vocab": n_vocab, "rope_neox": rope_neox}
    scaling: dict[str, Any] = {}
    for row in keys:
        value = values.get(row.name)
        if value is None and row.is_required:
            raise KeyError(row.name)
        if value is None:
            value = _meant(row, known_fields)
        outer, _, field = row.field.rpartition(".")
        if field and value is not None:
            (scaling if outer else known_fields)[field] = value
    known_fields.setdefault("head_dim", known_fields["n_embd"] // known_fields["n_head"])
    extra = {name: known_fields.pop(name) for name in [*known_fields] if name not in HPARAMS_FIELDS}
    return Hparams(**known_fields, rope_scaling=RopeScaling(**scaling), extra=extra)


def _meant(row: Key, known_fields: Mapping[str, Any]) -> Value | None:
    """The value that a file without this key means, by the dimensions that are known before it."""
    if callable(row.default):
        return row.default(known_fields)
    return evaluate(row.default, known_fields) if isinstance(row.default, str) else row.default


def key_values(keys: Iterable[Key], values: Mapping[str, Value], hparams: Hparams) -> list[KeyValue]:
    """The keys of a file in the order of the table: those that have a value, and those that repeat a dimension."""
    said = dict(values)
    said |= {row.name: evaluate(row.made, hparams.dims) for row in keys if row.made}
    found = []
    for row in keys:
        name = f"{hparams.arch}.{row.name}"
        if row.flags is not None:
            found.append(KeyValue.array(name, row.flags(hparams), BOOL))
        elif row.name in said:
            found.append(KeyValue(name, said[row.name], row.type))
    return found
