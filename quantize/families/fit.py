"""Whether the dimensions that a GGUF file names and its tensors fit each other.

The questions are those of llama.cpp's loader (src/llama-model.cpp, src/models); a pass over a text asks them, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from quantize.containers.untrusted import quoted
from quantize.families import Family, families_of, graph_of
from quantize.families.binding import layers_of, nextn_range
from quantize.families.key_table import MAX_EXPERTS, MAX_LAYERS
from quantize.hparams import Hparams
from quantize.tensors import TensorSpec

__all__ = ["Misfit", "are_known", "dimension_misfits", "known_tensors", "tensor_misfits"]

ROPE_TABLES = ("rope_factors_long.weight", "rope_factors_short.weight")


class Misfit(NamedTuple):
    """A key or a tensor that does not go with the rest of its file."""

    place: str
    message: str
    is_missing: bool = False


def dimension_misfits(hparams: Hparams, keys: Mapping[str, Any]) -> Iterator[Misfit]:
    """Dimensions beyond the loader's limits, or that contradict each other; `keys` are all of the file."""
    arch = hparams.arch

    def misfit(name: str, text: str) -> Misfit:
        return Misfit(f"{arch}.{name}", text)

    if not 1 <= hparams.n_layer <= MAX_LAYERS:
        yield misfit("block_count", f"is {hparams.n_layer}, the loader takes 1 to {MAX_LAYERS}")
    if hparams.n_expert > MAX_EXPERTS:
        yield misfit("expert_count", f"is {hparams.n_expert}, the loader takes at most {MAX_EXPERTS}")
    if hparams.n_expert and not 1 <= hparams.n_expert_used <= hparams.n_expert:
        yield misfit("expert_used_count", f"is {hparams.n_expert_used}, of {hparams.n_expert} experts")
    if not hparams.n_expert and hparams.n_expert_used:
        yield misfit("expert_used_count", f"is {hparams.n_expert_used}, but there are no experts")
    groups = keys.get(f"{arch}.expert_group_count", 0)
    if hparams.n_expert and isinstance(groups, int) and groups >= hparams.n_expert:
        yield misfit("expert_group_count", f"is {groups}, of {hparams.n_expert} experts")
    if hparams.n_head_kv < 1 or hparams.n_head % hparams.n_head_kv:
        yield misfit("attention.head_count_kv", f"is {hparams.n_head_kv}, of {hparams.n_head} heads")
    rope = keys.get(f"{arch}.rope.dimension_count", hparams.head_dim)
    if arch == "llama" and rope != hparams.head_dim:
        yield misfit("rope.dimension_count", f"is {quoted(rope)}, heads have {hparams.head_dim} dimensions")
    if arch == "llama" and hparams.head_dim % 2:
        yield misfit("rope.dimension_count", f"is {hparams.head_dim}: rotary positions need pairs")
    if not 0 <= hparams.n_layer_nextn < max(1, hparams.n_layer):
        yield misfit("nextn_predict_layers", f"is {hparams.n_layer_nextn}, of {hparams.n_layer} layers")
    if hparams.norm_eps <= 0:
        graph = graph_of(arch)
        kind = "layer_norm" if graph is not None and graph.norm == "layer" else "layer_norm_rms"
        yield misfit(f"attention.{kind}_epsilon", f"is {hparams.norm_eps}")
    if hparams.rope_freq_base <= 0 or not math.isfinite(hparams.rope_freq_base):
        yield misfit("rope.freq_base", f"is {hparams.rope_freq_base}")


def are_known(hparams: Hparams) -> bool:
    """Whether the tensors of such a model are known here by name."""
    return _expected(hparams) is not None


def known_tensors(hparams: Hparams) -> set[str]:
    """The names of all tensors that a model of this architecture may have; none where it is unknown."""
    names = {*ROPE_TABLES}
    for family in families_of(hparams.arch):
        names |= {computed.name for computed in family.computed}
        for tensor in family.tensors:
            names |= {tensor.name.format(bid=bid) for bid in range(hparams.n_layer)}
    return names


def tensor_misfits(hparams: Hparams, specs: Iterable[TensorSpec]) -> Iterator[Misfit]:
    """Tensors that are missing, of another shape, or not part of the architecture; none where it is unknown."""
    expected, stored = _expected(hparams), {spec.name: spec for spec in specs}
    if expected is None:
        return
    for name, (shape, optional) in expected.items():
        spec = stored.get(name)
        if spec is None:
            if not optional:
                yield Misfit(name, "is missing", is_missing=True)
        elif _trimmed(spec.shape) != _trimmed(shape):
            yield Misfit(name, f"has shape {list(spec.shape)}, {list(shape)} is expected")
    for name in stored:
        if name not in expected:
            yield Misfit(quoted(name), f"architecture {hparams.arch} has no such tensor")


def _expected(hparams: Hparams) -> dict[str, tuple[tuple[int, ...], bool]] | None:
    """Shape, and whether the loader can do without, of every tensor by name; None for an unknown architecture."""
    families, dims = families_of(hparams.arch), hparams.dims
    fitting = [family for family in families if _has_experts(family) == (hparams.n_expert > 0)]
    if not fitting or any(family.dims for family in families) or hparams.n_layer > MAX_LAYERS:
        return None
    tensors = [tensor for family in families for tensor in family.tensors]
    if hparams.n_layer_nextn and not any("nextn." in tensor.name for tensor in tensors):
        return None  # layers that predict further tokens, of which nothing is said here
    expected: dict[str, tuple[tuple[int, ...], bool]] = {}
    for family in families:
        for tensor in family.tensors:
            if family in fitting or tensor.optional:
                sizes = tensor.sizes(dims)
                for bid in layers_of(family, tensor, dims):
                    may_lack = family.nextn_may_lack and bid in nextn_range(dims)
                    optional = tensor.optional or may_lack
                    expected[tensor.name.format(bid=bid)] = (sizes, optional)
        for name in (*(computed.name for computed in family.computed), *ROPE_TABLES):
            expected[name] = ((hparams.head_dim // 2,), True)
    return expected


def _has_experts(family: Family) -> bool:
    return any(tensor.where == "moe" for tensor in family.tensors)


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without axes of length 1 in front: for ggml a matrix of one row is a vector."""
    first = next((i for i, n in enumerate(shape) if n > 1), len(shape) - 1)
    return shape[first:]
