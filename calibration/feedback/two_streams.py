"""The pass of error feedback: the original model, and the one that is quantized on the way, layer after layer.

In each step the matrices that share their inputs are encoded; from there on the second stream uses what their blocks
stand for. Its target is what the first stream has: also what earlier layers have lost is made good, as far as a linear
map of its own inputs can. Tokens go to the experts to which the original's router sends them; afterwards each stream
moves on by its own router.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial

import torch
from torch import Tensor

from calibration.feedback.pair import Pair
from calibration.forward import order
from calibration.forward.feed_forward import Choice, Share, shares
from calibration.forward.graph import OUTPUT_NORM, Unit, name_in_layer
from calibration.forward.layers import gated
from calibration.forward.reading import Wanted
from calibration.forward.saved_state import Keeper
from calibration.forward.stream_state import token_groups
from calibration.forward.timings import Stage
from quantize.exceptions import CheckpointError

__all__ = ["FeedbackPass"]


class FeedbackPass:
    """One pass over a pair of streams; `run` goes through the layers in order."""

    def __init__(self, pair: Pair) -> None:
        """Begin with streams that have passed nothing yet.

        Raises:
            CheckpointError: attention has matrices within, whose inputs are not yet those of one step.
        """
        self.pair, self.original, self.own = pair, pair.original, pair.own
        if self.original.graph.attention_kind.inner:
            message = f"error feedback does not know the attention of arch {self.original.hparams.arch!r}"
            raise CheckpointError(pair.source.label, message, "export it without error feedback")

    def run(self, begin: Callable[[], Tensor | None], keeper: Keeper | None = None) -> None:
        """Take both streams through all layers, or through those that an earlier run has left.

        Args:
            begin: called where the pass begins; gives the second stream's embedding [V, D], None where it is plain.
            keeper: keeps the state behind a layer.

        Raises:
            ActivationError, CheckpointError, TokenizerError: see `calibration.forward.run.forward`.
        """
        pair = self.pair
        with torch.no_grad(), closing(self.original.reader) as reader:
            pair.load_rope()
            if keeper is not None:
                keeper.recall(pair.saved)
            reader.expect(self._order())
            if pair.saved.n_done == 0:
                pair.embed(begin())
            for bid in range(pair.saved.n_done, pair.saved.n_layer):
                self.attention(bid)
                self.feed_forward(bid)
                pair.saved.n_done = bid + 1
                if keeper is not None:
                    keeper.keep(pair.saved)
            if not self.original.is_tied:
                self.output()

    def _order(self) -> Iterator[Wanted]:
        """The matrices of the original that are left to be read."""
        saved, states = self.pair.saved, [self.original]
        if saved.n_done == 0:
            yield from order.of_embeddings(states)
        yield from order.of_layers(states, range(saved.n_done, saved.n_layer))
        if not self.original.is_tied:
            yield from order.of_heads(states)

    def attention(self, bid: int) -> None:
        """hidden += attention(norm(hidden)), in both streams."""
        pair, device = self.pair, self.pair.settings.device
        graph, vector = self.original.graph, partial(pair.audience.vector, self.original)
        pair.norm(graph.attention_norm(bid), f"the attention of layer {bid}")
        assert self.original.rope is not None
        attention = graph.attention(bid, self.original.rope, vector)
        *inputs, last = (self.original.read(name_in_layer(bid, stem)) for stem in attention.matrices)
        pair.show(inputs, 0, pair.everyone, self.original.normed)
        rounded = pair.encode(inputs, 0, pair.everyone, pair.gaps_of_inputs)
        for state, weights, mixed in zip(pair.states, (pair.exact(inputs), rounded), pair.mixed, strict=True):
            products = {
                stem: pair.linear(m, w) for stem, m, w in zip(attention.inputs, inputs, weights, strict=True)
            }
            for tokens in token_groups(pair.everyone, pair.n_ctx):
                x = state.normed_rows(tokens)
                with pair.timings.measure(Stage.ATTENTION):
                    mixed[tokens] = attention.mix(x, products).float().to(mixed.device)
        pair.show([last], 0, pair.everyone, pair.mixed[0])
        (exact,) = pair.exact([last])
        product = pair.linear(last, exact, with_bias=False)

        def gaps(tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            for group in token_groups(tokens):
                x, y = (mixed[group].to(device) for mixed in pair.mixed)
                yield y, product(x - y).float() + pair.lost(group)

        (own,) = pair.encode([last], 0, pair.everyone, gaps, of_inputs=False)
        for state, weight, mixed in zip(pair.states, (exact, own), pair.mixed, strict=True):
            output = pair.linear(last, weight)
            for tokens in token_groups(pair.everyone):
                y = output(mixed[tokens].to(device))
                state.refuse_infinite(y, f"the attention of layer {bid}", f"blk.{bid}.attn_", "rope_f")
                state.add(tokens, y)

    def feed_forward(self, bid: int) -> None:
        """hidden += feed-forward(norm(hidden)), in both streams expert by expert."""
        pair = self.pair
        graph = self.original.graph
        pair.norm(graph.feed_forward_norm(bid), f"the feed-forward of layer {bid}")
        pair.keep_lost()
        if graph.router_name(bid) is None:
            of_streams = [[Share(unit, pair.everyone) for unit in graph.units(bid)] for _ in pair.states]
        else:
            of_streams = self._routed(bid)
        totals = _totals(of_streams[0], len(pair.everyone))
        for of_unit in zip(*of_streams, strict=True):
            self._expert(of_unit, totals)

    def output(self) -> None:
        """Encode the output matrix, the last that can make good what was lost."""
        self.pair.norm(OUTPUT_NORM, "the output of the model")
        self.pair.encode([self.original.read_head()], 0, self.pair.everyone, self.pair.gaps_of_inputs)

    def _routed(self, bid: int) -> list[list[Share]]:
        """The share of each unit in each stream, by the stream's own inputs."""
        pair, graph, units = self.pair, self.original.graph, self.original.graph.units(bid)
        name = graph.router_name(bid)
        assert name is not None
        read = [self.original.read(n) for n in (name, *(unit.gate_name for unit in units if unit.gate_name))]
        weight, *gates = (self.original.decoded(matrix, torch.float32) for matrix in read)
        vector = partial(pair.audience.vector, self.original)
        gated_units = [unit for unit in units if unit.gate_name]
        choice = Choice(
            graph.router(bid, weight, vector),
            {unit: gate.reshape(-1) for unit, gate in zip(gated_units, gates, strict=True)},
        )
        pair.show(read, 0, pair.everyone, self.original.normed)
        place, names = f"the router of layer {bid}", (f"blk.{bid}.ffn_norm.", f"blk.{bid}.ffn_gate_inp.")
        of_streams = []
        for state in pair.states:
            ids, weights = [], []
            of_shared: dict[Unit, list[Tensor]] = {unit: [] for unit in choice.gates}
            for tokens in token_groups(pair.everyone):
                x = state.normed_rows(tokens)
                routing = choice.router(x)
                state.refuse_infinite(routing.probs, place, *names)
                if state is self.original:
                    pair.audience.show_routing(state, bid, tokens, routing)
                ids.append(routing.ids.cpu())
                weights.append(routing.weights.cpu())
                for unit, w in choice.shared(x).items():
                    of_shared[unit].append(w.cpu())
            shared = {unit: torch.cat(parts) for unit, parts in of_shared.items()}
            of_streams.append(shares(units, torch.cat(ids), torch.cat(weights), shared))
        pair.audience.hand_out(self.original, *read)
        return of_streams

    def _expert(self, of_streams: Sequence[Share], totals: Tensor) -> None:
        pair, unit = self.pair, of_streams[0].unit
        xid, activation = unit.xid, self.original.graph.activation
        *inputs, last = (self.original.read(name, xid) for name in unit.names)
        tokens = of_streams[0].tokens
        others = pair.some_others(tokens) if unit.kind == "expert" else None
        pair.show(inputs, xid, tokens, self.original.normed)
        gates = [[pair.linear(m, w) for m, w in zip(inputs, pair.exact(inputs), strict=True)]]
        rounded = pair.encode(inputs, xid, tokens, pair.gaps_of_inputs, others=others)
        gates.append([pair.linear(m, w) for m, w in zip(inputs, rounded, strict=True)])
        (exact,) = pair.exact([last])
        product = pair.linear(last, exact, with_bias=False)

        def move_on(stream: int, weights: Tensor) -> None:
            state, output = pair.states[stream], pair.linear(last, weights)
            for group in of_streams[stream].groups():
                h = gated(state.normed_rows(group.tokens), *gates[stream], activation=activation).float()
                if state is self.original:
                    pair.audience.show(state, (last.spec,), xid, group.tokens, h)
                y = output(h).float()
                state.refuse_infinite(y, unit.place, f"blk.{unit.bid}.ffn_", xid=xid)
                state.add(group.tokens, y if group.weights is None else y * group.weights.to(y.device))

        def gaps(tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            for group in token_groups(tokens):
                x, y = (
                    gated(state.normed_rows(group), *gate, activation=activation).float()
                    for state, gate in zip(pair.states, gates, strict=True)
                )
                gap = product(x - y).float()
                if unit.kind != "shared":
                    gap = gap + pair.lost(group) / totals[group, None].to(gap.device)
                yield y, gap

        move_on(0, exact)  # the inputs of the last matrix must have been seen before it is encoded
        (own,) = pair.encode([last], xid, tokens, gaps, of_inputs=False, others=others)
        move_on(1, own)


def _totals(of_units: Sequence[Share], n_token: int) -> Tensor:
    """How often each token counts what makes good what was lost: its experts' weights together, at least 1, f32 [T].

    Shared experts do not: what all tokens lack is left to the experts that the tokens go to.
    """
    totals = torch.zeros(n_token)
    for share in of_units:
        if share.weights is not None and share.unit.kind == "expert":
            totals.index_add_(0, share.tokens, share.weights[:, 0])
    return totals.clamp_(min=1.0)
