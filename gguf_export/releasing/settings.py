"""What is asked of a release."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf_export.checking.fit import CONTEXTS, LEVELS, VRAM

__all__ = ["SETS", "ReleaseSettings"]

SETS: dict[str, tuple[str, ...]] = {
    "small": ("Q8_0", "Q4_K_M", "Q3_K_M"),
    "standard": LEVELS,
    "all": (
        *("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "IQ4_NL", "IQ4_XS"),
        *("Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "Q2_K", "Q2_K_S"),
        *("IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"),
    ),
}
"""File types by the name of their set. Never F16 beside BF16: the tag F16 would match both names."""


@dataclass(frozen=True)
class ReleaseSettings:
    """The arguments of a release.

    model: the folder of a checkpoint, or the name of one on the Hub.
    types: file types; those of an earlier release in the same folder stay beside them.
    folder: by default `<Model>-GGUF` in the current folder.
    repo: owner/name on the Hub where the folder will be published.
    texts: calibration text; by default the prompts of mergekit_moe_config.yml.
    judges: held-out texts, each perhaps as NAME=FILE.
    n_chunk, n_judge_chunk: of each kind of text the first so many chunks; all where it is None.
    license: by its id on the Hub, where the checkpoint's card names none, or another.
    base_model: owner/name of the checkpoint on the Hub, where it is not known.
    chat_template: as in `export`; without it the checkpoint must have one that works.
    name: as in `export`.
    vram, contexts: of the table that says which file fits: GiB, and tokens.
    jobs: threads.
    force: replace files that are others than would be made.
    """

    model: Path | str
    types: tuple[str, ...] = SETS["standard"]
    folder: Path | None = None
    repo: str | None = None
    texts: tuple[Path, ...] = ()
    judges: tuple[str, ...] = ()
    n_chunk: int | None = None
    n_judge_chunk: int | None = None
    license: str | None = None
    base_model: str | None = None
    chat_template: str | None = None
    name: str | None = None
    vram: Sequence[float] = VRAM
    contexts: Sequence[int] = CONTEXTS
    jobs: int | None = None
    force: bool = False
