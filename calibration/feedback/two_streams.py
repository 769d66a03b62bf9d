"""The pass of error feedback: the original model, and the one that is quantized on the way, layer after layer.

In each step the matrices that share their inputs are encoded; from there on the second stream uses what their blocks
stand for. Its target is what the first stream has: also what earlier layers have lost is made good, as far as a linear
map of its own inputs can. Tokens go to the experts to which the original's router sends them; afterwards each stream
moves on by its own router.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from calibration.feedback.fitting import Aim, Fitted, Fitter
from calibration.feedback.moments import Visit
from calibration.forward import layers
from calibration.forward.audience import Audience
from calibration.forward.hidden import Storage
from calibration.forward.layers import Linear, Product
from calibration.forward.parts import (
    ATTENTION,
    ATTENTION_NORM,
    DENSE,
    EMBEDDING,
    EXPERTS,
    FEED_FORWARD_NORM,
    OUTPUT_NORM,
    ROUTER,
    Part,
    bias_of,
)
from calibration.forward.rope import Rope, make_rope
from calibration.forward.saved_state import Keeper, PassState
from calibration.forward.settings import ForwardSettings
from calibration.forward.stored import Matrix, to_tensor
from calibration.forward.stream_state import StreamState, token_groups
from calibration.forward.streams import Observer, Stream
from calibration.forward.timings import Stage, Timings
from calibration.importance.observers import ImatrixObserver
from calibration.text.tokenizer import Tokens
from quantize.codec import decode, encode
from quantize.sources.model_source import ModelSource
from quantize.telling import OnProgress
from quantize.tensors import NUMPY_TYPES, Array, QType

__all__ = ["OnFitted", "TokenWeights", "TwoStreams"]

OnFitted = Callable[[Aim, Fitted], None]
"""Receives each matrix when it is encoded."""

TokenWeights = Callable[[str, int, Tensor], Tensor]
"""(name, xid, tokens int64 [t]) to how much each token counts at that matrix, float32 [t]."""


@dataclass(frozen=True)
class Share:
    """The tokens int64 [t] of one stream that go to an expert, and their weights f32 [t, 1]; None in a dense layer."""

    tokens: Tensor
    weights: Tensor | None


class TwoStreams:
    """One pass: `run` goes through the layers in order."""

    def __init__(
        self,
        source: ModelSource,
        tokens: Tokens,
        n_fit: int,
        qtypes: Mapping[str, QType],
        fitter: Fitter,
        settings: ForwardSettings,
        *,
        importances: ImatrixObserver,
        observers: Sequence[Observer] = (),
        on_fitted: OnFitted,
        token_weights: TokenWeights | None = None,
        progress: OnProgress,
    ) -> None:
        """Make room for the hidden states; no weight is read.

        Args:
            source: the model.
            tokens: the text, int32 [n_chunk, n_ctx]; the chunks that are held out come last.
            n_fit: tokens before them.
            qtypes: the type of each tensor, by name; others stay as they are.
            fitter: encodes.
            settings: as those of `calibration.forward.run.forward`.
            importances, observers: see the original stream.
            on_fitted: is given each encoded matrix.
            token_weights: how much each token counts; by default all count alike.
            progress: told the tokens that are through.

        Raises:
            OutputError: the scratch folder cannot hold the hidden states.
        """
        self.source, self.settings = source, settings
        self.n_fit, self.qtypes, self.fitter = n_fit, qtypes, fitter
        self.importances, self.on_fitted, self.token_weights = importances, on_fitted, token_weights
        self.n_ctx = tokens.shape[1]
        self.tokens = torch.from_numpy(tokens).long().reshape(-1)
        self.storage = Storage(settings)
        self.timings = Timings(n_token=len(self.tokens))
        self.original, self.own = (self._begin(index) for index in range(2))
        hparams = source.hparams
        self.gap = self._room(hparams.n_embd)
        self.mixed = [self._room(hparams.n_head * hparams.head_dim) for _ in range(2)]
        hidden = [self.original.hidden, self.own.hidden]
        seeing = [importances, *observers]
        self.saved = PassState(hparams.n_layer, hidden, seeing, self.timings)
        n_weight = sum(spec.n_elements for spec in self.original.specs.values())
        self.audience = Audience(seeing, None, progress, self.saved, n_weight)

    def _room(self, width: int) -> Tensor:
        return self.storage.empty((len(self.tokens), width), torch.float32)

    def _begin(self, index: int) -> StreamState:
        width = self.source.hparams.n_embd
        stream = Stream(self.source, name=self.source.label)
        return StreamState(index, stream, self.settings, self.timings, self._room(width), self._room(width))

    @property
    def states(self) -> tuple[StreamState, StreamState]:
        """The original stream and the quantized one."""
        return self.original, self.own

    def run(self, keeper: Keeper | None = None) -> None:
        """Take both streams through all layers.

        Raises:
            ActivationError, CheckpointError: see `calibration.forward.run.forward`.
        """
        with torch.no_grad():
            rope = self._rope()
            for state in self.states:
                state.rope = rope
            if keeper is not None:
                keeper.recall(self.saved)
            if self.saved.n_done == 0:
                self._embed()
            for bid in range(self.saved.n_done, self.saved.n_layer):
                self._attention(bid)
                self._feed_forward(bid)
                self.saved.n_done = bid + 1
                if keeper is not None:
                    keeper.keep(self.saved)
            if not self.original.is_tied:
                self._output()

    # -- the steps

    def _rope(self) -> Rope:
        factors = None
        for name in self.original.rope_factors(self.n_ctx):
            factors = self.audience.vector(self.original, name).cpu()
        return make_rope(self.source.hparams, self.n_ctx, factors, self.settings.device)

    def _embed(self) -> None:
        matrix = self.original.read(EMBEDDING.name())
        qtype = self.qtypes.get(matrix.spec.name)
        for tokens in token_groups(torch.arange(len(self.tokens))):
            rows = matrix.picked(self.tokens[tokens].numpy())
            self.original.hidden[tokens] = to_tensor(rows, dtype=torch.float32)
            if qtype is not None and qtype not in NUMPY_TYPES:
                rows = decode(encode(rows, qtype), qtype, matrix.spec.n_per_row)
            self.own.hidden[tokens] = to_tensor(rows, dtype=torch.float32)
        self.original.refuse_infinite(self.original.hidden, "the embedding", "token_embd.")
        self.audience.hand_out(self.original, matrix)

    def _attention(self, bid: int) -> None:
        original, own = self.states
        norm = self.audience.vector(original, ATTENTION_NORM.name(bid))
        for state in self.states:
            self._norm(state, norm, f"the attention of layer {bid}", f"blk.{bid}.attn_norm.")
        matrices = [original.read(name) for name in ATTENTION.names(bid)]
        *inputs, last = matrices
        everyone = torch.arange(len(self.tokens))
        self._show(inputs, 0, everyone, original.normed)
        fitted = self._encode(inputs, 0, everyone, self._gaps_of_normed, gap_of_inputs=True)
        weights = self._exact(inputs)
        for state, of_stream, mixed in zip(self.states, (weights, fitted), self.mixed, strict=True):
            q, k, v = (self._linear(m, w) for m, w in zip(inputs, of_stream, strict=True))
            four = layers.AttentionWeights(q, k, v, lambda y: y)
            assert state.rope is not None
            for tokens in token_groups(everyone, self.n_ctx):
                x = state.normed_rows(tokens)
                with self.timings.measure(Stage.ATTENTION):
                    mixed[tokens] = layers.attention(x, four, state.rope).float().to(mixed.device)
        self._show([last], 0, everyone, self.mixed[0])
        (through,) = self._exact([last])
        product = self._linear(last, through, with_bias=False)

        def visits(tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            for group in token_groups(tokens):
                y = self.mixed[1][group]
                lost = product(self.mixed[0][group] - y).float()
                yield y, lost + (original.hidden[group] - own.hidden[group])

        (rounded,) = self._encode([last], 0, everyone, visits, gap_of_inputs=False)
        for state, weight, mixed in zip(self.states, (through, rounded), self.mixed, strict=True):
            output = self._linear(last, weight)
            for tokens in token_groups(everyone):
                y = output(mixed[tokens])
                state.refuse_infinite(y, f"the attention of layer {bid}", f"blk.{bid}.attn_", "rope_f")
                state.add(tokens, y)

    def _feed_forward(self, bid: int) -> None:
        original, own = self.states
        norm = self.audience.vector(original, FEED_FORWARD_NORM.name(bid))
        for state in self.states:
            self._norm(state, norm, f"the feed-forward of layer {bid}", f"blk.{bid}.ffn_norm.")
        torch.sub(original.hidden, own.hidden, out=self.gap)
        shares = self._shares(bid)
        is_dense = shares[0][0].weights is None
        for xid in range(len(shares[0])):
            self._expert(bid, xid, [of_stream[xid] for of_stream in shares], DENSE if is_dense else EXPERTS)

    def _expert(self, bid: int, xid: int, shares: Sequence[Share], part: Part) -> None:
        original = self.original
        place = f"expert {xid} of layer {bid}"
        matrices = [original.read(name, xid) for name in part.names(bid)]
        *inputs, last = matrices
        tokens = shares[0].tokens
        self._show(inputs, xid, tokens, original.normed)
        rounded = self._encode(inputs, xid, tokens, self._gaps_of_normed, gap_of_inputs=True)
        exact = self._exact(matrices)
        gates = [
            [self._linear(m, w) for m, w in zip(inputs, of_stream, strict=True)]
            for of_stream in (exact[:2], rounded)
        ]
        through = self._linear(last, exact[2], with_bias=False)
        is_shown = [False, False]

        def visits(tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            is_held_out = bool(len(tokens)) and int(tokens[0]) >= self.n_fit
            for group in token_groups(tokens):
                h, y = (
                    _gated(state.normed_rows(group), *gate)
                    for state, gate in zip(self.states, gates, strict=True)
                )
                if not is_shown[is_held_out]:
                    self.audience.show(original, (last.spec,), xid, group, h)
                yield y, through(h - y).float() + self.gap[group]
            is_shown[is_held_out] = True

        (down,) = self._encode([last], xid, tokens, visits, gap_of_inputs=False)
        for state, share, gate, weight in zip(self.states, shares, gates, (exact[2], down), strict=True):
            product = self._linear(last, weight)
            for start, group in _groups(share.tokens):
                y = product(_gated(state.normed_rows(group), *gate)).float()
                state.refuse_infinite(y, place, f"blk.{bid}.ffn_", xid=xid)
                if share.weights is not None:
                    y = y * share.weights[start : start + len(group)].to(y.device)
                state.add(group, y)

    def _shares(self, bid: int) -> list[list[Share]]:
        """For each stream the share of each expert; of a dense layer a single one."""
        name = ROUTER.name(bid)
        everyone = torch.arange(len(self.tokens))
        if name not in self.original.specs:
            return [[Share(everyone, None)] for _ in self.states]
        matrix = self.original.read(name)
        router = self.original.decoded(matrix, torch.float32)
        hparams = self.source.hparams
        self._show([matrix], 0, everyone, self.original.normed)
        shares = []
        for state in self.states:
            ids, weights = [], []
            for tokens in token_groups(everyone):
                routing = layers.route(state.normed_rows(tokens), router, hparams.n_expert_used)
                state.refuse_infinite(
                    routing.probs,
                    f"the router of layer {bid}",
                    f"blk.{bid}.ffn_norm.",
                    f"blk.{bid}.ffn_gate_inp.",
                )
                if state is self.original:
                    self.audience.show_routing(state, bid, tokens, routing)
                ids.append(routing.ids.cpu())
                weights.append(routing.weights.cpu())
            shares.append(_by_expert(torch.cat(ids), torch.cat(weights), hparams.n_expert))
        self.audience.hand_out(self.original, matrix)
        return shares

    def _output(self) -> None:
        """The output matrix is the last that can make good what was lost."""
        norm = self.audience.vector(self.original, OUTPUT_NORM.name())
        for state in self.states:
            self._norm(state, norm, "the output of the model", "output_norm.")
        everyone = torch.arange(len(self.tokens))
        self._encode([self.original.read_head()], 0, everyone, self._gaps_of_normed, gap_of_inputs=True)

    # -- within a step

    def _norm(self, state: StreamState, norm: Tensor, place: str, prefix: str) -> None:
        for tokens, x in state.normed_groups(norm):
            state.refuse_infinite(x, place, prefix)
            state.normed[tokens] = x.to(state.normed.device, state.normed.dtype)

    def _show(self, matrices: Sequence[Matrix], xid: int, tokens: Tensor, inputs: Tensor) -> None:
        specs = [matrix.spec for matrix in matrices]
        for group in token_groups(tokens):
            self.audience.show(self.original, specs, xid, group, inputs[group.to(inputs.device)])

    def _gaps_of_normed(self, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for group in token_groups(tokens):
            y = self.own.normed_rows(group)
            yield y, self.original.normed_rows(group) - y

    def _encode(
        self,
        matrices: Sequence[Matrix],
        xid: int,
        tokens: Tensor,
        visits: Callable[[Tensor], Iterable[tuple[Tensor, Tensor]]],
        *,
        gap_of_inputs: bool,
    ) -> list[Tensor]:
        """Encode the matrices that have a type; returns the weights that the quantized stream goes on with."""
        parts = (tokens[tokens < self.n_fit], tokens[tokens >= self.n_fit])
        exact = [weights.float() for weights in self._exact(matrices)]
        results = dict(enumerate(exact))
        aims: dict[int, Aim] = {}
        for index, (matrix, weights) in enumerate(zip(matrices, exact, strict=True)):
            qtype = self.qtypes.get(matrix.spec.name)
            if qtype is not None and qtype not in NUMPY_TYPES:
                aims[index] = Aim(matrix.spec, xid, weights, qtype)
        if not aims:
            for part in parts:
                for _ in visits(part):  # so that the observers see them
                    pass
        groups: list[list[int]] = [list(aims)] if self.token_weights is None else [[index] for index in aims]
        for group in groups:
            name = aims[group[0]].spec.name if group else ""

            def weighted(is_held_out: bool, name: str = name) -> Iterator[Visit]:
                start = 0
                part = parts[is_held_out]
                for y, gap in visits(part):
                    own = part[start : start + len(y)]
                    start += len(y)
                    weights = None if self.token_weights is None else self.token_weights(name, xid, own)
                    yield Visit(y, gap, weights)

            if group:
                chosen = [aims[index] for index in group]
                with self.timings.measure(Stage.WEIGHTS):
                    fitted = self.fitter.fit(
                        chosen, weighted, len(parts[1]), self._guide, gap_of_inputs=gap_of_inputs
                    )
                for index, aim, one in zip(group, chosen, fitted, strict=True):
                    results[index] = one.values
                    self.on_fitted(aim, one)
        for matrix in matrices:
            self.audience.hand_out(self.original, matrix)
        return [results[index] for index in range(len(matrices))]

    def _guide(self, aim: Aim) -> Array | None:
        return self.importances.imatrix.importance(aim.spec.name, aim.xid)

    def _exact(self, matrices: Sequence[Matrix]) -> list[Tensor]:
        return [self.original.decoded(matrix, torch.float32) for matrix in matrices]

    def _linear(self, matrix: Matrix, weights: Tensor, *, with_bias: bool = True) -> Product:
        name = bias_of(matrix.spec.name)
        bias = None
        if with_bias and name in self.original.specs:
            bias = self.original.decoded(self.original.read(name), torch.float32).reshape(-1)
        linear = Linear(weights.to(self.settings.dtype), bias)

        def multiply(x: Tensor) -> Tensor:
            with self.timings.measure(Stage.PRODUCTS):
                return linear(x)

        return multiply


def _gated(x: Tensor, gate: Product, up: Product) -> Tensor:
    """silu(gate(x)) * up(x): what the down projection is multiplied with, float32."""
    return (functional.silu(gate(x)) * up(x)).float()


def _groups(tokens: Tensor) -> Iterator[tuple[int, Tensor]]:
    start = 0
    for group in token_groups(tokens):
        yield start, group
        start += len(group)


def _by_expert(ids: Tensor, weights: Tensor, n_expert: int) -> list[Share]:
    shares = []
    for xid in range(n_expert):
        tokens, slots = (ids == xid).nonzero(as_tuple=True)
        shares.append(Share(tokens, weights[tokens, slots, None]))
    return shares
