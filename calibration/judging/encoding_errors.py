"""The errors that each type makes in one matrix: it is encoded, decoded and held against itself, some rows at a time.

The unit of work is some rows of the matrix with all encodings: a pure function, for any engine in any order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from calibration.judging.error_sums import ErrorSums
from calibration.judging.held_out import N_JUDGED, InputSample
from calibration.judging.matrix_errors import MatrixErrors
from quantize.blocks import WRITABLE, block_format
from quantize.codec import decode, encode, row_bytes
from quantize.containers.untrusted import quoted
from quantize.decoding import to_f32
from quantize.engine import Engine
from quantize.exceptions import RecipeError
from quantize.guide import Guide
from quantize.recipes.facts import RecipeFacts
from quantize.recipes.ftypes import FTYPES, Ftype
from quantize.recipes.recipe import Recipe, fallback, make_plan
from quantize.recipes.tensor_types import parse_qtype
from quantize.sources.model_source import ModelSource
from quantize.tensors import Array, QType, TensorSpec

__all__ = [
    "Encoding",
    "ErrorSettings",
    "JudgedMatrix",
    "MatrixRows",
    "TypesOf",
    "measure_matrix",
    "measure_rows",
]

UNIT_WEIGHTS = 1 << 21  # weights of a unit of work


@dataclass(frozen=True)
class ErrorSettings:
    """The types that every matrix is judged in, and by how much.

    qtypes: tensor types, and file types, by which each matrix is judged in the type that it has in such a file. Where
        rows do not divide into a type's blocks, llama.cpp's fallback is taken and said.
    prior: of the importances, in tokens; see `Imatrix`.
    baseline: measure each type without importances, too.
    n_judged: rows of activations that are kept for a matrix, at most, spread evenly over the held-out text
        (n_judged x n_per_row x 2 or 4 bytes); with a `prior`, those of all down projections of a layer at once.
    """

    qtypes: tuple[QType | Ftype, ...]
    prior: float = 0.0
    baseline: bool = True
    n_judged: int = N_JUDGED

    def __post_init__(self) -> None:
        """Judge in each type once, however often it is given."""
        object.__setattr__(self, "qtypes", tuple(dict.fromkeys(self.qtypes)))

    @classmethod
    def of(
        cls, types: Iterable[str], *, prior: float = 0.0, baseline: bool = True, n_judged: int = N_JUDGED
    ) -> ErrorSettings:
        """The settings with types by name, such as "Q4_K" or "Q4_K_M", in any case; of two the tensor type is meant.

        Raises:
            RecipeError: there is no such type.
        """
        return cls(tuple(map(_type_of, types)), prior, baseline, n_judged)

    def types(self, source: ModelSource) -> dict[str, TypesOf]:
        """By the name of a type: the types that the matrices of a model have in it.

        Raises:
            RecipeError: a file type cannot be made of the model.
        """
        return {qtype.name: _types_in(source, qtype) for qtype in self.qtypes}


class TensorType(NamedTuple):
    """The type of a tensor, and the one that was meant, which differs where rows do not divide into its blocks."""

    actual: QType
    intended: QType


TypesOf = Mapping[str, TensorType]
"""By the name of a tensor."""


def _type_of(name: str) -> QType | Ftype:
    """A tensor type or a file type by its name."""
    try:
        return parse_qtype(name)
    except RecipeError:
        known = next((each for each in FTYPES if each.name == name.upper()), None)
        if known is None:
            names = dict.fromkeys([*(qtype.name for qtype in WRITABLE), *(each.name for each in FTYPES)])
            raise RecipeError("", f"unknown type {quoted(name)}", f"known: {', '.join(names)}") from None
        return known


def _types_in(source: ModelSource, qtype: QType | Ftype) -> TypesOf:
    if isinstance(qtype, QType):
        return {spec.name: TensorType(fallback(spec, qtype), qtype) for spec in source.specs()}
    plan = make_plan(source.specs(), RecipeFacts.of(source.hparams), Recipe(qtype), True, keeps_blocks=True)
    return {
        planned.spec.name: TensorType(planned.qtype, planned.fallback_from or planned.qtype)
        for planned in plan.tensors
    }


@dataclass(frozen=True, eq=False)
class JudgedMatrix:
    """One matrix [n_row, n_per_row] as it was read, its importance [n_per_row], and a sample of its inputs."""

    spec: TensorSpec
    xid: int
    weights: Array
    importance: Array | None
    sample: InputSample


@dataclass(frozen=True)
class Encoding:
    """One way to encode a matrix: the type, and whether importances weigh the fit."""

    qtype: QType
    is_weighted: bool


@dataclass(frozen=True, eq=False)
class MatrixRows:
    """Some rows [n, n_per_row] of a matrix as it was read, from the row `first` on."""

    first: int
    weights: Array


def measure_matrix(
    engine: Engine, matrix: JudgedMatrix, settings: ErrorSettings, types: Mapping[str, TypesOf]
) -> list[MatrixErrors]:
    """The lines of the table for one matrix, one for each of `types`, which are those of the settings."""
    spec, sample = matrix.spec, matrix.sample
    in_type = {name: types_of[spec.name] for name, types_of in types.items()}
    actual = {name: one.actual for name, one in in_type.items()}
    has_importance = matrix.importance is not None
    fitted = {
        name: Encoding(qtype, has_importance and block_format(qtype).uses_importance)
        for name, qtype in actual.items()
    }
    plain = {
        name: Encoding(qtype, is_weighted=False)
        for name, qtype in actual.items()
        if settings.baseline and not block_format(qtype).needs_importance
    }
    encodings = list(dict.fromkeys([*fitted.values(), *plain.values()]))
    sums = _sums_of(engine, matrix, encodings)
    # llama.cpp gives experts without tokens an importance of 1 everywhere; a weighted error computed with it would only
    # repeat the unweighted one.
    known = matrix.importance if sample.n_tokens or settings.prior > 0 else None
    errors = {encoding: total.errors(known) for encoding, total in sums.items()}
    return [
        MatrixErrors(
            name=spec.name,
            xid=matrix.xid if spec.has_experts else None,
            qtype=name,
            tensor_type=qtype.name,
            n_elements=matrix.weights.size,
            n_bytes=row_bytes(qtype, spec.n_per_row) * spec.n_row,
            n_tokens=sample.n_tokens,
            n_effective=sample.n_effective,
            n_held_out=sample.n_held_out,
            n_judged=len(sample.kept),
            errors=errors[fitted[name]],
            plain=errors[plain[name]] if name in plain and plain[name] != fitted[name] else None,
            fallback=None if qtype == in_type[name].intended else qtype.name,
        )
        for name, qtype in actual.items()
    ]


def _sums_of(
    engine: Engine, matrix: JudgedMatrix, encodings: Sequence[Encoding]
) -> dict[Encoding, ErrorSums]:
    """The sums over the whole matrix in each encoding, merged in the order of the rows: digits depend on it."""
    spec, kept = matrix.spec, matrix.sample.kept
    step = max(1, UNIT_WEIGHTS // spec.n_per_row)
    units = [MatrixRows(first, matrix.weights[first : first + step]) for first in range(0, spec.n_row, step)]
    measure = partial(measure_rows, encodings=tuple(encodings), guide=Guide.of(matrix.importance), kept=kept)
    by_row = {rows.first: sums for rows, sums in engine.map(measure, units)}
    totals = {encoding: ErrorSums(spec.n_per_row, len(kept)) for encoding in encodings}
    for first in sorted(by_row):
        for encoding, sums in zip(encodings, by_row[first], strict=True):
            totals[encoding].merge(sums)
    return totals


def measure_rows(
    rows: MatrixRows, *, encodings: Sequence[Encoding], guide: Guide | None, kept: Tensor
) -> list[ErrorSums]:
    """Some rows of a matrix against themselves in each encoding; `kept` [n_judged, n_per_row] are activations."""
    weights = to_f32(rows.weights)
    n_per_row = weights.shape[1]
    measured = []
    with torch.inference_mode():  # a setting of the thread
        output = _product(kept, weights)
        for encoding in encodings:
            blocks = encode(rows.weights, encoding.qtype, guide if encoding.is_weighted else None)
            difference = weights - decode(blocks, encoding.qtype, n_per_row)
            sums = ErrorSums(n_per_row, len(kept))
            sums.weights.add(weights, difference)
            sums.outputs.add(output, _product(kept, difference))
            measured.append(sums)
    return measured


def _product(x: Tensor, weights: Array) -> Array:
    """x [t, n_per_row] times weights [n, n_per_row] -> float32 [t, n]."""
    y = functional.linear(x, torch.from_numpy(weights).to(x.device, x.dtype))
    product: Array = y.float().cpu().numpy()
    return product
