"""What a choice of types comes to: a type for each tensor, bytes, and the KL divergence predicted and measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from calibration.importance.imatrix import Imatrix
from calibration.judging.perplexity import Estimate
from quantize.recipes.recipe import Recipe
from quantize.recipes.tensor_types import tensor_types_text

if TYPE_CHECKING:
    from calibration.forward.timings import Timings
    from calibration.importance.observers import RouterLoad

__all__ = ["Forecast", "TensorChoice", "TypePlan"]


@dataclass(frozen=True)
class TensorChoice:
    """One tensor whose type was chosen, beside the type that the file type gives it.

    Costs are KL divergences in nats per token as they were predicted, before any scale; bytes are without padding.
    """

    name: str
    qtype: str
    n_bytes: int
    cost: float
    usual_qtype: str
    usual_n_bytes: int
    usual_cost: float


@dataclass(frozen=True)
class Forecast:
    """What types come to in a whole file: bytes of the file, bits per weight, mean KL divergence in nats per token.

    `unscaled` is the sum of the costs, a lower bound. `measured` is None where nothing was held out.
    """

    n_bytes: int
    bpw: float
    unscaled: float
    scale: float | None = None
    measured: Estimate | None = None

    @property
    def predicted(self) -> float:
        """The prediction: scaled, where a scale is known."""
        return self.unscaled * (1.0 if self.scale is None else self.scale)


@dataclass(frozen=True)
class TypePlan:
    """Types chosen under a budget.

    Attributes:
        ftype: the file type whose name and number the file bears, and whose own types are the `usual` ones.
        tensors: those whose type was chosen, in the order of the file.
        usual, chosen: what the file type's own types come to, and the chosen ones.
        candidates: the types that were allowed.
        n_token: tokens on which the costs were measured.
        n_measured: chunks that were held out and measured on.
        recipe: with which `export` makes the file.
        imatrix: the importances with which it is to be made, and was measured.
        types: name -> type of each tensor that was chosen.
    """

    ftype: str
    tensors: tuple[TensorChoice, ...]
    usual: Forecast
    chosen: Forecast
    candidates: tuple[str, ...]
    n_token: int
    n_measured: int
    recipe: Recipe = field(repr=False)
    imatrix: Imatrix = field(repr=False, compare=False)
    load: RouterLoad | None = field(default=None, repr=False, compare=False)
    timings: Timings | None = field(default=None, repr=False, compare=False)

    @property
    def scale(self) -> float | None:
        """What the costs were multiplied with, measured over predicted; None where nothing was measured."""
        return self.chosen.scale

    @property
    def types(self) -> Mapping[str, str]:
        """See `TypePlan`."""
        return {tensor.name: tensor.qtype for tensor in self.tensors}

    def types_text(self) -> str:
        """The file of tensor types, one `PATTERN=TYPE` a line, as llama-quantize takes it, too."""
        return tensor_types_text(self.recipe.tensor_types)
