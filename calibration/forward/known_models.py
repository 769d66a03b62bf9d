"""Which models a pass over a text takes: one that it cannot compute as llama.cpp does is refused before the work."""

from __future__ import annotations

from collections.abc import Sequence

from calibration.forward.graph import ModelGraph
from calibration.forward.streams import Stream
from quantize.containers.untrusted import printable
from quantize.exceptions import CheckpointError, GGUFError
from quantize.families.fit import dimension_misfits, known_tensors, tensor_misfits
from quantize.tensors import same_shape

__all__ = ["refuse_unknown"]


def refuse_unknown(streams: Sequence[Stream]) -> None:
    """Refuse models of an unknown architecture, with a tensor that it does not have, or of different shapes.

    A tensor that is not known here would change the result, so its presence is an error.

    Raises:
        CheckpointError: a model is such; names the model and the tensor.
        GGUFError: the keys of a file do not go with its tensors.
    """
    first = {spec.name: spec.shape for spec in streams[0].source.specs()}
    for stream in streams:
        hparams = stream.source.hparams
        specs = stream.source.specs()
        ModelGraph(hparams, {spec.name for spec in specs}, label=stream.name)
        if stream.source.kind == "gguf":
            _refuse_misfit(stream)
        known = known_tensors(hparams)
        for spec in specs:
            if spec.name not in known:
                raise CheckpointError(
                    stream.name, f"the forward pass does not know tensor {printable(spec.name)}"
                )
            if not same_shape(first.get(spec.name, (0,)), spec.shape):
                raise CheckpointError(
                    f"{stream.name}: {spec.name}" if stream.name else spec.name,
                    f"has shape {spec.shape} in one model and {first.get(spec.name)} in the other",
                )


def _refuse_misfit(stream: Stream) -> None:
    """Refuse a file whose keys and tensors do not go together: no pass over it would make sense."""
    source = stream.source
    keys = {kv.key: kv.value for kv in source.arch_keys()}
    misfits = (*dimension_misfits(source.hparams, keys), *tensor_misfits(source.hparams, source.specs()))
    for misfit in misfits[:1]:
        raise GGUFError(f"{source.label}: {misfit.place}", misfit.message, "convert the model again")
