"""The arguments of a filter or method, by place or by name (common/jinja/value.h: func_args)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from calibration.chat.faults import TemplateFault
from calibration.chat.values import type_name

__all__ = ["MISSING", "Arguments"]

MISSING = object()


class Arguments:
    """What stands behind the value that a filter or method works on."""

    def __init__(self, name: str, given: Sequence[Any], named: Mapping[str, Any]) -> None:
        self.name, self.given, self.named = name, list(given), dict(named)

    def __len__(self) -> int:
        return len(self.given) + len(self.named)

    def at(self, place: int, name: str = "", default: Any = MISSING) -> Any:
        """One argument; `MISSING` where it is not given.

        Raises:
            TemplateFault: it is not given and has no default.
        """
        if name in self.named:
            return self.named[name]
        if place < len(self.given):
            return self.given[place]
        return default

    def need(self, place: int, *kinds: type) -> Any:
        """An argument that must be there, of one of some types.

        Raises:
            TemplateFault: it is missing, or of another type.
        """
        if place >= len(self.given):
            raise TemplateFault(f"{self.name} wants {place + 1} arguments and gets {len(self)}")
        value = self.given[place]
        if kinds and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            raise TemplateFault(f"{self.name} gets an argument of type {type_name(value)}")
        return value

    def flag(self, place: int, name: str) -> bool:
        """An argument that is true or false, false where it is not given."""
        value = self.at(place, name, None)
        return bool(value)
