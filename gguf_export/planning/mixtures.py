"""The file type whose own mixture comes nearest to given types in size: its name and number go on the file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from quantize.recipes.facts import RecipeFacts
from quantize.recipes.ftypes import FTYPES, NEED_IMATRIX, Ftype
from quantize.recipes.left_alone import converted_type
from quantize.recipes.recipe import Recipe, make_plan
from quantize.sources.model_source import ModelFile
from quantize.tensors import QType, TensorSpec

__all__ = ["CANDIDATES", "nearest_ftype"]

K_QUANTS = (QType.Q2_K, QType.Q3_K, QType.Q4_K, QType.Q5_K, QType.Q6_K, QType.Q8_0)
"""Those of the mixtures that may always give a file its name."""

CANDIDATES = tuple(sorted({*K_QUANTS, QType.IQ4_XS}))
"""The types that are chosen from by default: IQ4_XS lies between Q3_K and Q4_K, where there is nothing else."""


MIXTURES = tuple(
    known for known in FTYPES if known.qtype in K_QUANTS and known.qtype not in known.needs_imatrix
)

FEWER_BITS = NEED_IMATRIX | {QType.IQ3_S}
"""Those of the mixtures that may give a file its name where some of its tensors are, or may be, of their types."""


def nearest_ftype(
    source: ModelFile,
    tensor_types: Sequence[tuple[str, QType]],
    bpw: float | None = None,
    n_bytes: int | None = None,
    qtypes: Iterable[QType] = (),
) -> Ftype:
    """The mixture nearest in size to a file: of K-quants or Q8_0, or of types with fewer bits that it has.

    Args:
        source: the model.
        tensor_types: the types of the file, as `Recipe` takes them.
        qtypes: those that may be chosen, if they are not chosen yet.
        bpw, n_bytes: what the file's tensors shall take instead, in bits per weight or in bytes.
    """
    facts = RecipeFacts.of_keys(source.arch, source.arch_keys())

    def stored(spec: TensorSpec) -> QType:
        return converted_type(spec, source.arch) if source.kind == "checkpoint" else spec.qtype

    def away(ftype: Ftype) -> float:
        usual = Recipe(ftype)
        own = make_plan(source.specs(), facts, usual, True, left_as=stored)
        if bpw is not None:
            return abs(own.bpw - bpw)
        if n_bytes is not None:
            return abs(own.data_bytes - n_bytes)
        typed = replace(usual, tensor_types=tuple(tensor_types))
        return abs(own.n_bytes - make_plan(source.specs(), facts, typed, True, left_as=stored).n_bytes)

    chosen = {*qtypes, *(qtype for _, qtype in tensor_types)}
    named = [known for known in FTYPES if known.qtype in chosen & FEWER_BITS]
    return min((*MIXTURES, *named), key=away)
