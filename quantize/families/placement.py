"""The place of each tensor where llama.cpp has all layers on one GPU.

Source: src/llama-arch.cpp (LLM_TENSOR_INFOS), src/llama-model.cpp (load_tensors), src/llama-model-loader.cpp
(create_tensor), common/common.h (LLM_FFN_EXPS_REGEX).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from quantize.hparams import Hparams
from quantize.tensors import TensorSpec

__all__ = ["Placement", "placement"]

INPUT = ("token_embd.weight", "position_embd.weight", "token_types.weight", "per_layer_token_embd.weight")
"""Tensors of the input layer, which is computed on the CPU."""

EMBEDDING, OUTPUT = INPUT[0], "output.weight"

EXPERTS = re.compile(r"\.ffn_(up|down|gate|gate_up)_(ch|)exps")
"""The tensors that stay in RAM where the experts do (--cpu-moe)."""


@dataclass(frozen=True)
class Placement:
    """Bytes of the tensors of a model, by where they lie."""

    dense: int
    """On the GPU in any case."""
    experts: int
    """On the GPU, or in RAM where the experts are kept there."""
    largest_stack: int
    """The largest tensor among the experts; a GPU has a copy of it for prompts where the experts are in RAM."""
    ram: int
    """In RAM in any case: the token embedding."""


def placement(hparams: Hparams, specs: Iterable[TensorSpec]) -> Placement:
    """Sum the bytes of the tensors of a model by their place.

    A token embedding that is the output matrix, too, is in both places. Layers that predict further tokens are not
    loaded unless they are asked for.
    """
    loaded = {spec.name: spec for spec in specs if spec.bid is None or spec.bid < hparams.n_layer_run}
    experts = [spec.n_bytes for name, spec in loaded.items() if EXPERTS.search(name)]
    ram = sum(loaded[name].n_bytes for name in INPUT if name in loaded)
    is_tied = OUTPUT not in loaded and EMBEDDING in loaded
    output = loaded[EMBEDDING].n_bytes if is_tied else 0
    return Placement(
        dense=sum(spec.n_bytes for spec in loaded.values()) - sum(experts) - ram + output,
        experts=sum(experts),
        largest_stack=max(experts, default=0),
        ram=ram,
    )
