"""How the errors of a matrix add up: sums in float64 over some rows at a time, merged in the order of the rows."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from calibration.judging.matrix_errors import Errors
from quantize.tensors import Array

__all__ = ["ErrorSums", "OutputSums", "WeightSums"]


class WeightSums:
    """Squared errors and squared weights of a matrix by column, summed in float64, some rows at a time."""

    def __init__(self, n_per_row: int) -> None:
        self._error = np.zeros(n_per_row)
        self._energy = np.zeros(n_per_row)
        self._n_row = 0

    def add(self, weights: Array, difference: Array) -> None:
        """Add some rows [n_row, n_per_row] of the weights, and of weights minus decoded weights; float32."""
        self._energy += np.square(weights).sum(axis=0, dtype=np.float64)
        self._error += np.square(difference).sum(axis=0, dtype=np.float64)
        self._n_row += len(weights)

    def merge(self, other: WeightSums) -> None:
        """Add the sums of further rows."""
        self._energy += other._energy
        self._error += other._error
        self._n_row += other._n_row

    def errors(self, importance: Array | None = None) -> Errors:
        """`rms`, `relative` and, with importances [n_per_row], `weighted`."""
        error, energy = float(self._error.sum()), float(self._energy.sum())
        weighted = None
        if importance is not None:
            wide = importance.astype(np.float64)
            weighted = _root(_ratio(float(wide @ self._error), float(wide @ self._energy)))
        rms = math.sqrt(error / max(1, self._n_row * len(self._error)))
        return Errors(rms, _root(_ratio(error, energy)) or 0.0, weighted)


class OutputSums:
    """Products of outputs and their errors, row by row of the activations, summed in float64 over output columns."""

    def __init__(self, n_judged: int) -> None:
        self._output = np.zeros(n_judged)  # y·y for each row
        self._error = np.zeros(n_judged)  # e·e
        self._both = np.zeros(n_judged)  # y·e

    def add(self, output: Array, error: Array) -> None:
        """Add some output columns: y = x Wᵀ and e = x (W - V)ᵀ, [n_judged, n] each, float32."""
        self._output += _row_sums(output, output)
        self._error += _row_sums(error, error)
        self._both += _row_sums(output, error)

    def merge(self, other: OutputSums) -> None:
        """Add the sums of further output columns of the same rows."""
        self._output += other._output
        self._error += other._error
        self._both += other._both

    def nmse(self) -> float | None:
        """Normalised mean squared error, None where the output is nothing but zero."""
        return _ratio(float(self._error.sum()), float(self._output.sum()))

    def cosine(self) -> float | None:
        """Mean cosine of y and y - e over the rows whose output is not zero; None where there are none."""
        decoded = np.maximum(self._output - 2 * self._both + self._error, 0)
        lengths = np.sqrt(self._output * decoded)
        live = lengths > 0
        if not live.any():
            return None
        return float(np.clip((self._output - self._both)[live] / lengths[live], -1, 1).mean())


class ErrorSums:
    """The sums over weights and over outputs of one matrix in one encoding; `n_judged` rows of activations."""

    def __init__(self, n_per_row: int, n_judged: int) -> None:
        self.weights = WeightSums(n_per_row)
        self.outputs = OutputSums(n_judged)
        self._has_outputs = n_judged > 0

    def merge(self, other: ErrorSums) -> None:
        """Add the sums of further rows of the matrix."""
        self.weights.merge(other.weights)
        self.outputs.merge(other.outputs)

    def errors(self, importance: Array | None = None) -> Errors:
        """All measures, those of the output None where no activations were kept."""
        errors = self.weights.errors(importance)
        if not self._has_outputs:
            return errors
        return replace(errors, nmse=self.outputs.nmse(), cosine=self.outputs.cosine())


def _row_sums(a: Array, b: Array) -> Array:
    """Sum of a * b over each row [t, n] -> float64 [t]."""
    sums: Array = np.multiply(a, b).sum(axis=1, dtype=np.float64)
    return sums


def _ratio(numerator: float, denominator: float) -> float | None:
    if denominator > 0:
        return numerator / denominator
    return 0.0 if numerator == 0 else None


def _root(square: float | None) -> float | None:
    return None if square is None else math.sqrt(square)
