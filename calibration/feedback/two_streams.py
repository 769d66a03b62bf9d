"""The pass of error feedback: the original model, and the one that is quantized on the way, layer after layer.

In each step the matrices that share their inputs are encoded; from there on the second stream uses what their blocks
stand for. Its target is what the first stream has: also what earlier layers have lost is made good, as far as a linear
map of its own inputs can. Tokens go to the experts to which the original's router sends them; afterwards each stream
moves on by its own router.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from calibration.feedback.pair import Pair
from calibration.forward import layers
from calibration.forward.feed_forward import Share, shares
from calibration.forward.layers import Product
from calibration.forward.parts import (
    ATTENTION,
    ATTENTION_NORM,
    DENSE,
    EXPERTS,
    FEED_FORWARD_NORM,
    OUTPUT_NORM,
    ROUTER,
    Part,
)
from calibration.forward.saved_state import Keeper
from calibration.forward.stored import Matrix
from calibration.forward.stream_state import token_groups
from calibration.forward.timings import Stage

__all__ = ["FeedbackPass"]


class FeedbackPass:
    """One pass over a pair of streams; `run` goes through the layers in order."""

    def __init__(self, pair: Pair) -> None:
        """Begin with streams that have passed nothing yet."""
        self.pair, self.original, self.own = pair, pair.original, pair.own

    def run(self, begin: Callable[[], Tensor | None], keeper: Keeper | None = None) -> None:
        """Take both streams through all layers, or through those that an earlier run has left.

        Args:
            begin: called where the pass begins; gives the second stream's embedding [V, D], None where it is plain.
            keeper: keeps the state behind a layer.

        Raises:
            ActivationError, CheckpointError, TokenizerError: see `calibration.forward.run.forward`.
        """
        pair = self.pair
        with torch.no_grad():
            pair.load_rope()
            if keeper is not None:
                keeper.recall(pair.saved)
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

    def attention(self, bid: int) -> None:
        """hidden += attention(norm(hidden)), in both streams."""
        pair = self.pair
        pair.norm(ATTENTION_NORM.name(bid), f"the attention of layer {bid}")
        matrices = [self.original.read(name) for name in ATTENTION.names(bid)]
        *inputs, last = matrices
        pair.show(inputs, 0, pair.everyone, self.original.normed)
        rounded = pair.encode(inputs, 0, pair.everyone, pair.gaps_of_inputs)
        for state, weights, mixed in zip(pair.states, (pair.exact(inputs), rounded), pair.mixed, strict=True):
            q, k, v = (pair.linear(m, w) for m, w in zip(inputs, weights, strict=True))
            products = layers.AttentionWeights(q, k, v, lambda y: y)
            assert state.rope is not None
            for tokens in token_groups(pair.everyone, pair.n_ctx):
                x = state.normed_rows(tokens)
                with pair.timings.measure(Stage.ATTENTION):
                    mixed[tokens] = layers.attention(x, products, state.rope).float().to(mixed.device)
        pair.show([last], 0, pair.everyone, pair.mixed[0])
        (exact,) = pair.exact([last])
        product = pair.linear(last, exact, with_bias=False)

        def gaps(tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            for group in token_groups(tokens):
                x, y = (mixed[group] for mixed in pair.mixed)
                yield y, product(x - y).float() + pair.lost(group)

        (own,) = pair.encode([last], 0, pair.everyone, gaps, of_inputs=False)
        for state, weight, mixed in zip(pair.states, (exact, own), pair.mixed, strict=True):
            output = pair.linear(last, weight)
            for tokens in token_groups(pair.everyone):
                y = output(mixed[tokens])
                state.refuse_infinite(y, f"the attention of layer {bid}", f"blk.{bid}.attn_", "rope_f")
                state.add(tokens, y)

    def feed_forward(self, bid: int) -> None:
        """hidden += feed-forward(norm(hidden)), in both streams expert by expert."""
        pair = self.pair
        pair.norm(FEED_FORWARD_NORM.name(bid), f"the feed-forward of layer {bid}")
        pair.keep_lost()
        name = ROUTER.name(bid)
        if name in self.original.specs:
            of_streams = self._routed(bid, self.original.read(name))
            part = EXPERTS
        else:
            of_streams = [[Share(pair.everyone)] for _ in pair.states]
            part = DENSE
        for xid, of_expert in enumerate(zip(*of_streams, strict=True)):
            self._expert(bid, xid, of_expert, part)

    def output(self) -> None:
        """Encode the output matrix, the last that can make good what was lost."""
        self.pair.norm(OUTPUT_NORM.name(), "the output of the model")
        self.pair.encode([self.original.read_head()], 0, self.pair.everyone, self.pair.gaps_of_inputs)

    def _routed(self, bid: int, matrix: Matrix) -> list[list[Share]]:
        """The share of each expert in each stream, by the stream's own inputs."""
        pair = self.pair
        router = self.original.decoded(matrix, torch.float32)
        n_expert, n_used = self.original.hparams.n_expert, self.original.hparams.n_expert_used
        pair.show([matrix], 0, pair.everyone, self.original.normed)
        place, names = f"the router of layer {bid}", (f"blk.{bid}.ffn_norm.", f"blk.{bid}.ffn_gate_inp.")
        of_streams = []
        for state in pair.states:
            ids, weights = [], []
            for tokens in token_groups(pair.everyone):
                routing = layers.route(state.normed_rows(tokens), router, n_used)
                state.refuse_infinite(routing.probs, place, *names)
                if state is self.original:
                    pair.audience.show_routing(state, bid, tokens, routing)
                ids.append(routing.ids.cpu())
                weights.append(routing.weights.cpu())
            of_streams.append(shares(torch.cat(ids), torch.cat(weights), n_expert))
        pair.audience.hand_out(self.original, matrix)
        return of_streams

    def _expert(self, bid: int, xid: int, of_streams: Sequence[Share], part: Part) -> None:
        pair = self.pair
        *inputs, last = (self.original.read(name, xid) for name in part.names(bid))
        tokens = of_streams[0].tokens
        others = None if of_streams[0].weights is None else pair.some_others(tokens)
        pair.show(inputs, xid, tokens, self.original.normed)
        gates = [[pair.linear(m, w) for m, w in zip(inputs, pair.exact(inputs), strict=True)]]
        rounded = pair.encode(inputs, xid, tokens, pair.gaps_of_inputs, others=others)
        gates.append([pair.linear(m, w) for m, w in zip(inputs, rounded, strict=True)])
        (exact,) = pair.exact([last])
        product = pair.linear(last, exact, with_bias=False)

        def move_on(stream: int, weights: Tensor) -> None:
            state, output = pair.states[stream], pair.linear(last, weights)
            for group in of_streams[stream].groups():
                h = _gated(state.normed_rows(group.tokens), *gates[stream])
                if state is self.original:
                    pair.audience.show(state, (last.spec,), xid, group.tokens, h)
                y = output(h).float()
                state.refuse_infinite(y, _place(bid, xid, part), f"blk.{bid}.ffn_", xid=xid)
                state.add(group.tokens, y if group.weights is None else y * group.weights.to(y.device))

        def gaps(tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            for group in token_groups(tokens):
                x, y = (
                    _gated(state.normed_rows(group), *gate)
                    for state, gate in zip(pair.states, gates, strict=True)
                )
                yield y, product(x - y).float() + pair.lost(group)

        move_on(0, exact)  # the inputs of the last matrix must have been seen before it is encoded
        (own,) = pair.encode([last], xid, tokens, gaps, of_inputs=False, others=others)
        move_on(1, own)


def _place(bid: int, xid: int, part: Part) -> str:
    return f"the feed-forward of layer {bid}" if part is DENSE else f"expert {xid} of layer {bid}"


def _gated(x: Tensor, gate: Product, up: Product) -> Tensor:
    """silu(gate(x)) * up(x): what the down projection is multiplied with, float32."""
    return (functional.silu(gate(x)) * up(x)).float()
