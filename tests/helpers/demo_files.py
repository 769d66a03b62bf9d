"""The files of the bundled demo model, as sums of all their bytes."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from places import DEMO_MODEL

from calibration.importance.imatrix import Entry, Imatrix
from gguf_export.writing.export import prepare, run
from quantize.recipes.ftypes import FTYPES, ftype
from quantize.recipes.recipe import Recipe
from quantize.sources.checkpoint import open_checkpoint

WEIGHTED = (
    *("Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K_S", "Q4_0", "IQ4_XS", "IQ3_M", "IQ3_XS", "IQ3_XXS"),
    *("IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"),
)
"""File types that are made with importances, too."""

REFUSED = ("Q2_K_S", "IQ3_XS", "IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")
"""File types that are not made without."""


def made_up_imatrix() -> Imatrix:
    """Importances that depend on nothing but the names of the tensors."""
    entries = {}
    for spec in open_checkpoint(DEMO_MODEL).specs():
        if spec.name.startswith("blk.") and spec.is_matrix:
            rng = np.random.default_rng(zlib.crc32(spec.name.encode()))
            sums = np.exp2(rng.integers(-8, 9, (spec.n_matrix, spec.n_per_row))).astype(np.float32)
            entries[spec.name] = Entry(sums, np.full(spec.n_matrix, 64, np.int64))
    return Imatrix(entries, datasets=["made up"], chunk_count=1, chunk_size=512, file="made-up.gguf")


def demo_sums(folder: Path) -> Iterator[tuple[str, str]]:
    """Write each file into `folder`; gives its name, with the kind of fit, and its SHA-256."""
    for kind, imatrix, names in (
        ("plain", None, [known.name for known in FTYPES if known.name not in REFUSED]),
        ("weighted", made_up_imatrix(), WEIGHTED),
    ):
        recipes = [Recipe(ftype(name)) for name in names]
        job = prepare(open_checkpoint(DEMO_MODEL), recipes, folder / kind, imatrix=imatrix)
        for file in run(job).files:
            yield f"{kind} {file.path.name}", hashlib.sha256(file.path.read_bytes()).hexdigest()
