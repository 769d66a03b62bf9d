"""The order in which a pass reads its matrices, and the memory that it needs on the device besides hidden states.

Norms, biases and routers are not named: they are small, and are read when they are wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from calibration.forward.graph import EMBEDDING, OUTPUT, ModelGraph
from calibration.forward.reading import Wanted
from calibration.forward.settings import ForwardSettings
from calibration.forward.stream_state import StreamState
from calibration.forward.streams import Stream
from quantize.tensors import TensorSpec

__all__ = ["of_embeddings", "of_heads", "of_layers", "of_way_back", "working_bytes"]

SPARE = 2 << 30
"""Bytes for logits, for the activations of a group of tokens, and for what lies between blocks and weights."""


def of_embeddings(states: Sequence[StreamState]) -> Iterator[Wanted]:
    """The embedding of each stream."""
    for state in states:
        yield _wanted(state, EMBEDDING)


def of_layers(states: Sequence[StreamState], bids: Iterable[int]) -> Iterator[Wanted]:
    """The matrices of some layers: attention stream by stream, then expert by expert in all streams."""
    for bid in bids:
        for state in states:
            for name in state.graph.attention_matrices(bid):
                for xid in range(state.spec(name).n_matrix):
                    yield _wanted(state, name, xid)
        for units in zip(*(state.graph.units(bid) for state in states), strict=True):
            for state, unit in zip(states, units, strict=True):
                for name in unit.names:
                    yield _wanted(state, name, unit.xid)


def of_heads(states: Sequence[StreamState], *, keeps_tied: bool = False) -> Iterator[Wanted]:
    """The output matrix of each stream, but none that is the embedding where that is kept."""
    for state in states:
        if not (state.is_tied and keeps_tied):
            yield _wanted(state, EMBEDDING if state.is_tied else OUTPUT)


def of_way_back(state: StreamState) -> Iterator[Wanted]:
    """All matrices of a stream, as a pass backwards reads them."""
    yield from of_heads([state])
    yield from of_layers([state], reversed(range(state.hparams.n_layer_run)))
    yield from of_embeddings([state])


def _wanted(state: StreamState, name: str, xid: int = 0) -> Wanted:
    return Wanted(state.index, state.stream.source, state.spec(name), xid)


def working_bytes(streams: Sequence[Stream], settings: ForwardSettings) -> int:
    """Bytes that a pass takes on the device besides hidden states.

    These are the weights of the largest attention or expert, as blocks and decoded, the output matrices as blocks, the
    window, and `SPARE`.
    """
    largest = heads = 0
    for stream in streams:
        hparams, specs = stream.source.hparams, {spec.name: spec for spec in stream.source.specs()}
        graph = ModelGraph(hparams, specs, label=stream.name)
        heads += sum(specs[name].n_bytes for name in (OUTPUT, EMBEDDING) if name in specs)
        for bid in range(hparams.n_layer_run):
            whole = [specs[name] for name in graph.attention_matrices(bid) if name in specs]
            largest = max(largest, sum(spec.n_matrix * _bytes_of_one(spec, settings) for spec in whole))
            for unit in graph.units(bid):
                one = [specs[name] for name in unit.names if name in specs]
                largest = max(largest, sum(_bytes_of_one(spec, settings) for spec in one))
    return largest + heads + settings.n_ahead + SPARE


def _bytes_of_one(spec: TensorSpec, settings: ForwardSettings) -> int:
    """A matrix of a tensor, as blocks and decoded."""
    return spec.n_row * (spec.row_bytes + spec.n_per_row * settings.dtype.itemsize)
