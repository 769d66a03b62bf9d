"""The findings of `doctor` and `verify`: severity, place, message and remedy of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from quantize.containers.untrusted import label, printable
from quantize.exceptions import SETTING, MoeGgufError, one_line
from quantize.telling import Remark

__all__ = ["SEVERITIES", "Finding", "Findings", "Severity", "error", "info", "warning"]

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """A fault, or a fact worth knowing; the fields after `severity` are those of an error (`MoeGgufError`).

    An error: the model cannot be exported, loaded or trusted. A warning: it works, and probably not as was meant. An
    info: nothing is wrong.
    """

    severity: Severity
    place: str  # file, key or tensor
    message: str
    remedy: str = ""
    setting: str = ""  # the parameter that `{setting}` in the remedy stands for

    @classmethod
    def of(
        cls, fault: MoeGgufError, severity: Severity = "error", *, remedy: str = "", place: str = ""
    ) -> Finding:
        """An error that was raised; `remedy` and `place` count where the error has none of its own."""
        return cls(severity, fault.place or place, fault.message, fault.remedy or remedy, fault.setting)

    @classmethod
    def of_remark(
        cls, remark: Remark, severity: Severity = "info", *, remedy: str = "", place: str = ""
    ) -> Finding:
        """A remark that was noted; `remedy` and `place` count where the remark has none of its own."""
        return cls(severity, remark.place or place, remark.message, remark.remedy or remedy, remark.setting)

    def line(self, spell: Callable[[str], str] = str) -> str:
        """The finding in one printable line; `spell` writes the name of a setting, such as `pre` as `--pre`."""
        # names come from strangers
        return printable(
            f"{self.severity}: {one_line(self.place, self.message, self.remedy, self.setting, spell)}"
        )

    def __str__(self) -> str:
        return self.line()


class Findings(tuple[Finding, ...]):
    """All findings of one check, the worst first; those of one severity stay in the order of the check."""

    __slots__ = ()

    def __new__(cls, findings: Iterable[Finding] = ()) -> Findings:
        """Sort the findings by severity."""
        return super().__new__(cls, sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))

    def count_of(self, severity: Severity) -> int:
        """Number of findings of one severity."""
        return sum(finding.severity == severity for finding in self)

    @property
    def worst(self) -> Severity | None:
        """The highest severity, None where there are no findings."""
        return self[0].severity if self else None

    def summary(self) -> str:
        """`2 errors, 1 warning`, or that nothing is wrong; infos are not counted."""
        counts = {severity: self.count_of(severity) for severity in SEVERITIES if severity != "info"}
        return (
            ", ".join(f"{n} {severity}{'s' if n > 1 else ''}" for severity, n in counts.items() if n)
            or "nothing is wrong"
        )

    def as_json(self, spell: Callable[[str], str] = str) -> list[dict[str, str]]:
        """Severity, place, message and remedy of each finding; `spell` writes the names of settings."""
        return [
            {
                "severity": finding.severity,
                "place": label(finding.place),
                "message": finding.message,
                "remedy": finding.remedy.replace(SETTING, spell(finding.setting)),
            }
            for finding in self
        ]


def error(place: str, message: str, remedy: str, *, setting: str = "") -> Finding:
    """A finding that makes the model useless or untrustworthy."""
    return Finding("error", place, message, remedy, setting)


def warning(place: str, message: str, remedy: str, *, setting: str = "") -> Finding:
    """A finding that was probably not meant."""
    return Finding("warning", place, message, remedy, setting)


def info(place: str, message: str, remedy: str = "", *, setting: str = "") -> Finding:
    """A fact worth knowing."""
    return Finding("info", place, message, remedy, setting)
