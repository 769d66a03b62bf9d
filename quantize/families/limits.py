"""What llama.cpp's graph of an architecture does whatever config.json says, as far as that loses something.

A graph (src/models) may take no notice of a setting, or know one value of it only. A family declares such settings;
where a checkpoint has another value, the file would answer otherwise than the checkpoint, or would not load at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from quantize.containers.untrusted import quoted
from quantize.exceptions import CheckpointError
from quantize.families.expressions import evaluate
from quantize.telling import Remark

__all__ = ["Limit", "refuse_fatal", "remarks_on_limits"]


@dataclass(frozen=True)
class Limit:
    """A setting of which llama.cpp's graph knows some values only.

    `values` are these, or an expression in other settings ("hidden_size/num_attention_heads"). `graph` says what the
    graph does, as the end of a sentence: "gives every layer experts". Where it is fatal, llama.cpp cannot load or run
    a file of such a checkpoint; else the setting is lost.
    """

    setting: str
    values: tuple[Any, ...] | str
    graph: str
    is_fatal: bool = False

    def allows(self, config: Mapping[str, Any]) -> bool:
        """Whether the graph does what a complete config.json says."""
        value = config.get(self.setting)
        if not isinstance(self.values, str):
            return value in self.values
        try:
            return value is None or value == evaluate(self.values, config)
        except (KeyError, TypeError, ZeroDivisionError):  # a damaged config.json, which is refused as such
            return True

    def remark(self, arch: str, config: Mapping[str, Any]) -> Remark:
        """What the graph does, beside what config.json says."""
        value = quoted(config.get(self.setting))
        message = f"{self.setting} is {value}, but llama.cpp's graph of {arch} {self.graph}"
        return Remark("config.json", message)


def refuse_fatal(limits: Iterable[Limit], arch: str, config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that llama.cpp cannot run.

    Raises:
        CheckpointError: a fatal limit does not allow what the complete config.json says.
    """
    for limit in limits:
        if limit.is_fatal and not limit.allows(config):
            raise CheckpointError("config.json", limit.remark(arch, config).message)


def remarks_on_limits(limits: Iterable[Limit], arch: str, config: Mapping[str, Any]) -> list[Remark]:
    """The settings of a complete config.json that a file of the architecture loses."""
    lost = (limit for limit in limits if not limit.is_fatal and not limit.allows(config))
    return [limit.remark(arch, config) for limit in lost]
