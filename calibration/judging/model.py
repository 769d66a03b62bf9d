"""A model that is judged, and whether another one can be held against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from calibration.importance.imatrix import Imatrix
from quantize.containers.untrusted import printable, quoted
from quantize.exceptions import GGUFError
from quantize.sources.model_source import ModelSource
from quantize.tensors import same_shape

__all__ = ["Model", "refuse_other_model"]

SAME_HPARAMS = (
    "arch",
    "n_layer",
    "n_embd",
    "n_ff",
    "n_head",
    "n_head_kv",
    "n_vocab",
    "head_dim",
    "n_expert",
    "n_expert_used",
)


@dataclass(frozen=True)
class Model:
    """A model and what it costs: `n_bytes` of its file (of its weights, where there is no file), bits per weight.

    Messages call it `name`, its path where it has one; reports call it `given_name`, where a person gave it one.
    """

    kind: ClassVar[Literal["model"]] = "model"

    name: str
    source: ModelSource
    n_bytes: int
    bpw: float
    imatrix: Imatrix | None = None  # importances of a round trip; those of a file are not known
    given_name: str = ""

    @property
    def is_file(self) -> bool:
        """Whether the weights come from a GGUF file."""
        return self.source.kind == "gguf"


def refuse_other_model(base: Model, model: Model) -> None:
    """Two models can be compared where they have the same dimensions and tensors.

    Raises:
        GGUFError: they have not; the message says what differs first.
    """
    message = f"another model than {base.name}"
    for field in SAME_HPARAMS:
        there, here = getattr(base.source.hparams, field), getattr(model.source.hparams, field)
        if there != here:
            raise GGUFError(model.name, f"{message}: {field} is {quoted(here)} here, {quoted(there)} there")
    base_shapes = {spec.name: spec.shape for spec in base.source.specs()}
    shapes = {spec.name: spec.shape for spec in model.source.specs()}
    for name in sorted(base_shapes.keys() ^ shapes.keys()):
        if name.startswith("rope_f"):
            continue  # a table that a file may carry or leave out
        place = "only there" if name in base_shapes else "only here"
        raise GGUFError(model.name, f"{message}: tensor {printable(name)} is {place}")
    for name, shape in shapes.items():
        if not same_shape(base_shapes.get(name, shape), shape):
            shapes_differ = f"has shape {shape} here, {base_shapes[name]} there"
            raise GGUFError(model.name, f"{message}: {printable(name)} {shapes_differ}")
