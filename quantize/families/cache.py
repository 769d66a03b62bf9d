"""The bytes that llama.cpp keeps of a text: keys and values of its attention, states of its recurrent layers.

Source: src/llama-model.cpp (create_memory), src/llama-kv-cache.cpp, src/llama-kv-cache-iswa.cpp,
src/llama-memory-recurrent.cpp and src/llama-hparams.cpp, for one sequence.
"""

from __future__ import annotations

from typing import Literal

from quantize.families import Family, families_of
from quantize.families.graph import Graph
from quantize.families.language import evaluate
from quantize.hparams import Hparams
from quantize.tensors import QType

__all__ = ["CacheType", "cache_bytes"]

CacheType = Literal["f16", "q8_0"]
"""The type of keys and values, by the names that --cache-type-k and --cache-type-v take."""

CELLS = 256
"""llama.cpp makes contexts, and caches of sliding windows, a multiple of so many tokens."""

N_UBATCH = 512
"""Tokens that pass the model at a time (--ubatch-size); a sliding window keeps them besides."""

STATE_BYTES = 4  # a state is stored in F32


def cache_bytes(hparams: Hparams, n_ctx: int, cache_type: CacheType = "f16") -> int:
    """The bytes of the cache of one sequence of `n_ctx` tokens.

    Layers that predict further tokens have none. An architecture that is not declared here is taken for one in which
    each layer attends to everything, which may be too much, never too little.
    """
    family = next(iter(families_of(hparams.arch)), None)
    graph = family.graph if family else Graph()
    widths = _widths(hparams, graph)
    cell = sum(_row_bytes(width, QType[cache_type.upper()]) for width in widths)
    total = 0
    for bid in range(hparams.n_layer_run):
        if family is not None and _is_recurrent(family, hparams, bid):
            total += _state_bytes(hparams)
        else:
            total += cell * _n_cell(hparams, graph, bid, n_ctx)
    return total


def _widths(hparams: Hparams, graph: Graph) -> tuple[int, ...]:
    """Numbers that a layer keeps of a token: keys and values; of latent attention (MLA) the latent vector alone.

    Files of DeepSeek's models from before 2025-04 have as many heads of keys as of queries, and keep both.
    """
    keys = hparams.n_head_kv * hparams.head_dim
    if graph.attention == "latent" and hparams.n_head_kv == 1:
        return (keys,)
    return keys, hparams.n_head_kv * hparams.head_dim_v


def _row_bytes(width: int, qtype: QType) -> int:
    return -(-width // qtype.block_size) * qtype.type_size


def _n_cell(hparams: Hparams, graph: Graph, bid: int, n_ctx: int) -> int:
    """Tokens that an attending layer keeps."""
    n_all = _padded(n_ctx)
    every = graph.window_every
    if not every or not hparams.n_swa or bid % every == (0 if graph.window_first else every - 1):
        return n_all
    return _padded(min(n_all, hparams.n_swa + N_UBATCH))


def _padded(n_cell: int) -> int:
    return -(-n_cell // CELLS) * CELLS


def _is_recurrent(family: Family, hparams: Hparams, bid: int) -> bool:
    """Whether a layer has a state in the place of attention."""
    every = max(1, evaluate(family.attention_every, hparams.dims))
    return (bid + 1) % every != 0


def _state_bytes(hparams: Hparams) -> int:
    """The state of a delta net and of the convolution in front of it (llama_hparams: n_embd_s, n_embd_r)."""
    size = hparams.dims
    d_state, n_group, d_conv = size["ssm_d_state"], size["ssm_n_group"], size["ssm_d_conv"]
    d_inner = d_state * size["ssm_dt_rank"]
    n_conv = max(0, d_conv - 1) * (d_inner + 2 * n_group * d_state)
    return STATE_BYTES * (n_conv + d_state * d_inner)
