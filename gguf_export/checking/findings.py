"""What `doctor` and `verify` find: how bad, where, what, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from quantize.containers.untrusted import printable

__all__ = ["SEVERITIES", "Finding", "Severity", "as_json", "error", "info", "warning", "worst"]

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or worth knowing.

    An error: the model cannot be exported, loaded or trusted. A warning: it works, and probably not as was meant. An
    info: nothing is wrong.
    """

    severity: Severity
    place: str  # file, key or tensor
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"; {self.remedy}" if self.remedy else ""
        place = f"{self.place}: " if self.place else ""
        return printable(f"{self.severity}: {place}{self.message}{remedy}")  # names come from strangers


def error(place: str, message: str, remedy: str) -> Finding:
    """A finding that makes the model useless or untrustworthy."""
    return Finding("error", place, message, remedy)


def warning(place: str, message: str, remedy: str) -> Finding:
    """A finding that was probably not meant."""
    return Finding("warning", place, message, remedy)


def info(place: str, message: str) -> Finding:
    """Something worth knowing."""
    return Finding("info", place, message)


def worst(findings: Iterable[Finding]) -> Severity | None:
    """The highest severity, None where nothing was found."""
    found = {finding.severity for finding in findings}
    return next((severity for severity in SEVERITIES if severity in found), None)


def as_json(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """The findings as JSON takes them."""
    return [asdict(finding) for finding in findings]
