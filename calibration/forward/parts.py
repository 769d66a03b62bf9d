"""The parts of a model and the tensors that each of them uses; a model with any other tensor is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantize.containers.untrusted import printable
from quantize.exceptions import CheckpointError, GGUFError
from quantize.families.fit import dimension_misfits, tensor_misfits

if TYPE_CHECKING:
    from calibration.forward.streams import Stream

__all__ = [
    "ATTENTION",
    "ATTENTION_NORM",
    "DENSE",
    "EMBEDDING",
    "EXPERTS",
    "FEED_FORWARD_NORM",
    "OUTPUT",
    "OUTPUT_NORM",
    "ROPE_FACTORS",
    "ROUTER",
    "Part",
    "bias_of",
    "refuse_unknown",
]

WEIGHT, BIAS = ".weight", ".bias"


@dataclass(frozen=True)
class Part:
    """A step of the forward pass: the tensors that it uses, in the order in which it takes them.

    `stems` are their names without layer and suffix; a part outside the layers has `in_layer` False.
    """

    stems: tuple[str, ...]
    in_layer: bool = True
    may_have_biases: bool = False

    def names(self, bid: int = 0) -> tuple[str, ...]:
        """The names of the weights in layer `bid`."""
        return tuple(f"blk.{bid}.{stem}{WEIGHT}" if self.in_layer else stem + WEIGHT for stem in self.stems)

    def name(self, bid: int = 0) -> str:
        """The name of the weight, in a part that has a single one."""
        (name,) = self.names(bid)
        return name

    def known(self, n_layer: int) -> set[str]:
        """All names that a model of `n_layer` layers may have because of this part."""
        weights = {name for bid in range(n_layer if self.in_layer else 1) for name in self.names(bid)}
        return weights | {bias_of(name) for name in weights if self.may_have_biases}


EMBEDDING = Part(("token_embd",), in_layer=False)
ROPE_FACTORS = Part(("rope_freqs", "rope_factors_short", "rope_factors_long"), in_layer=False)
ATTENTION_NORM = Part(("attn_norm",))
ATTENTION = Part(("attn_q", "attn_k", "attn_v", "attn_output"), may_have_biases=True)
FEED_FORWARD_NORM = Part(("ffn_norm",))
ROUTER = Part(("ffn_gate_inp",))
EXPERTS = Part(("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"))
DENSE = Part(("ffn_gate", "ffn_up", "ffn_down"), may_have_biases=True)
OUTPUT_NORM = Part(("output_norm",), in_layer=False)
OUTPUT = Part(("output",), in_layer=False)

PARTS: dict[str, tuple[Part, ...]] = {
    "llama": (
        EMBEDDING,
        ROPE_FACTORS,
        ATTENTION_NORM,
        ATTENTION,
        FEED_FORWARD_NORM,
        ROUTER,
        EXPERTS,
        DENSE,
        OUTPUT_NORM,
        OUTPUT,
    ),
}
"""The parts of each architecture that the forward pass can compute."""


def bias_of(name: str) -> str:
    """The name of the bias that belongs to a matrix."""
    return name.removesuffix(WEIGHT) + BIAS


def refuse_unknown(streams: Sequence[Stream]) -> None:
    """Refuse models of an unknown architecture, with a tensor that no part uses, or of different shapes.

    A tensor that is not known here would change the result, so its presence is an error.

    Raises:
        CheckpointError: a model is such; names the model and the tensor.
        GGUFError: the keys of a file do not go with its tensors.
    """
    first = {spec.name: spec.shape for spec in streams[0].source.specs()}
    for stream in streams:
        hparams = stream.source.hparams
        if hparams.arch not in PARTS:
            raise CheckpointError(
                stream.name,
                f"the forward pass does not know arch {hparams.arch!r}",
                f"known: {', '.join(PARTS)}",
            )
        if stream.source.kind == "gguf":
            _refuse_misfit(stream)
        known = set().union(*(part.known(hparams.n_layer) for part in PARTS[hparams.arch]))
        for spec in stream.source.specs():
            if spec.name not in known:
                raise CheckpointError(
                    stream.name, f"the forward pass does not know tensor {printable(spec.name)}"
                )
            if first.get(spec.name) != spec.shape:
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
