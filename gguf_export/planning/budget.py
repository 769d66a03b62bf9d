"""How large a file may be: as large as a file type, so many bytes, or so many bits per weight."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from quantize.containers.untrusted import quoted
from quantize.exceptions import RecipeError
from quantize.recipes.ftypes import COPY, Ftype, ftype
from quantize.recipes.left_alone import FLOATS

__all__ = ["Budget"]

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{prefix}{end}": 1000**n for n, prefix in enumerate("KMGT", 1) for end in ("", "B")}
_UNITS |= {f"{prefix}iB": 1024**n for n, prefix in enumerate("KMGT", 1)}


@dataclass(frozen=True)
class Budget:
    """What a file may take: one of the three.

    like: as many bytes as the file of this file type.
    size: bytes of the whole file.
    bpw: bits per weight, of all tensors together, without header and padding, as `Plan.bpw` counts.
    """

    like: Ftype | None = None
    size: int | None = None
    bpw: float | None = None

    @property
    def setting(self) -> str:
        """The name of the one that is given."""
        return "like" if self.like else "size" if self.size is not None else "bpw"

    @classmethod
    def of(cls, like: str | None, size: str | int | None, bpw: float | None) -> Budget:
        """The budget as a person gives it.

        Args:
            like: the name of a file type.
            size: bytes; or a text such as "13.5GiB", "14.2GB" or "500M" (of 1000).
            bpw: above 0.

        Raises:
            RecipeError: none or several are given, or one is not of that form.
        """
        given = {"like": like, "size": size, "bpw": bpw}
        names = [name for name, value in given.items() if value is not None]
        if not names:
            raise RecipeError("", "no budget is given", "give a size, or {setting}", setting="like")
        if len(names) > 1:
            raise RecipeError(
                names[1], "means nothing beside another budget", "leave {setting} out", setting=names[0]
            )
        if like is not None:
            known = ftype(like)
            if known is COPY or known.qtype in FLOATS:
                raise RecipeError(
                    known.name, "chooses no types", "give {setting} such as Q4_K_M", setting="like"
                )
            return cls(like=known)
        if size is not None:
            return cls(size=size if isinstance(size, int) else _bytes_of(size))
        if bpw is None or not (math.isfinite(bpw) and bpw > 0):
            raise RecipeError(
                f"{bpw} bits per weight", "are none", "give {setting} such as 4.5", setting="bpw"
            )
        return cls(bpw=bpw)


def _bytes_of(size: str) -> int:
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?([A-Za-z]{0,3})", size)
    unit = next((n for name, n in _UNITS.items() if match and name.lower() == match[2].lower()), None)
    if match is None or unit is None or float(match[1]) <= 0:
        raise RecipeError(
            f"size {quoted(size)}", "is none such as 13.5GiB or 500M", "give {setting} so", setting="size"
        )
    return int(float(match[1]) * unit)
