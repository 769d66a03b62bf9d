"""The driver of the forward pass: it reads weights, shows inputs to observers, and adds up what `layers` computes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial

import torch
from torch import Tensor

from calibration.forward import order
from calibration.forward.attention import stacked
from calibration.forward.audience import Audience
from calibration.forward.feed_forward import feed_forward
from calibration.forward.graph import EMBEDDING, OUTPUT_NORM, name_in_layer
from calibration.forward.hidden import Storage
from calibration.forward.known_models import refuse_unknown
from calibration.forward.reading import Wanted, make_reader
from calibration.forward.rope import make_rope
from calibration.forward.saved_state import Keeper, PassState
from calibration.forward.settings import ForwardSettings
from calibration.forward.stream_state import StreamState, token_groups
from calibration.forward.streams import Observer, OnLogits, OnWeights, Stream, refuse_not_resumable
from calibration.forward.timings import Stage, Timings
from calibration.text.tokenizer import Tokens
from quantize.exceptions import TokenizerError
from quantize.telling import OnProgress, silent

__all__ = ["ForwardPass"]

FLOAT32 = 4  # bytes
MAX_GROUP = 8  # chunks whose logits are in memory at once; the output matrix is decoded once for all of them


class ForwardPass:
    """One pass of all streams through all layers; `run` goes through its steps in order.

    A matrix is handed out when all its inputs have been shown to the observers.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        tokens: Tokens,
        settings: ForwardSettings,
        storage: Storage,
        *,
        observers: Sequence[Observer] = (),
        on_weights: OnWeights | None = None,
        hold_down: bool = False,
        keep_layers: bool = False,
        kept_chunks: Sequence[int] | None = None,
        progress: OnProgress = silent,
    ) -> None:
        """Make room for the hidden states; no weight is read.

        Args:
            streams, tokens, settings: see `calibration.forward.run.forward`.
            observers, on_weights, hold_down, progress: see there, too.
            storage: hands out the place of the hidden states.
            keep_layers: keep the hidden states with which each layer begins, in `StreamState.layer_inputs`, so that a
                pass backwards can compute the layer once more: n_token x n_embd numbers for each layer and stream.
            kept_chunks: the chunks whose hidden states are kept so, in ascending order; default all.

        Raises:
            CheckpointError: a tensor is there that no part of the pass uses, or models differ in shape.
            OutputError: the scratch folder cannot hold the hidden states.
        """
        refuse_unknown(streams)
        self.settings, self.storage = settings, storage
        self.hold_down, self.keep_layers = hold_down, keep_layers
        self.n_ctx = tokens.shape[1]
        self.tokens = torch.from_numpy(tokens).long().reshape(-1)
        self.places = torch.arange(len(self.tokens))
        by_chunk = self.places.view(-1, self.n_ctx)
        self.kept_places = (by_chunk if kept_chunks is None else by_chunk[list(kept_chunks)]).reshape(-1)
        self.timings = Timings(n_token=len(self.tokens))
        self.reader = make_reader(settings)
        storage.settle(self._text_bytes(streams), order.working_bytes(streams, settings))
        self.states = [self._begin(index, stream) for index, stream in enumerate(streams)]
        n_layer = streams[0].source.hparams.n_layer_run
        self.saved = PassState(n_layer, [state.hidden for state in self.states], observers, self.timings)
        n_weight = sum(spec.n_elements for state in self.states for spec in state.specs.values())
        self.audience = Audience(observers, on_weights, progress, self.saved, n_weight)

    def _text_bytes(self, streams: Sequence[Stream]) -> int:
        """Bytes of the hidden states, and of what a pass backwards keeps beside those of its layers."""
        settings, hparams = self.settings, streams[0].source.hparams
        per_number = len(streams) * (settings.hidden_dtype.itemsize + settings.dtype.itemsize)
        n_bytes = len(self.tokens) * hparams.n_embd * per_number
        if self.keep_layers:
            kept = len(streams) * hparams.n_layer_run * settings.hidden_dtype.itemsize
            way_back = settings.hidden_dtype.itemsize + settings.dtype.itemsize + 3 * FLOAT32
            n_bytes += len(self.kept_places) * hparams.n_embd * (kept + way_back)
        return n_bytes

    def _begin(self, index: int, stream: Stream) -> StreamState:
        shape = (len(self.tokens), stream.source.hparams.n_embd)
        hidden = self.storage.empty(shape, self.settings.hidden_dtype)
        normed = self.storage.empty(shape, self.settings.dtype)
        return StreamState(index, stream, self.settings, self.timings, hidden, normed, reader=self.reader)

    def run(
        self,
        *,
        on_logits: OnLogits | None = None,
        first_logit: int = 0,
        observe_output: bool = False,
        keeper: Keeper | None = None,
    ) -> None:
        """Take the text through the model, without gradients; see `calibration.forward.run.forward`."""
        if keeper is not None:
            refuse_not_resumable(self.audience.observers)
            if self.keep_layers:
                raise ValueError("the inputs of layers that an earlier run has done cannot be kept")
        start, earlier = time.perf_counter(), 0.0
        has_output = on_logits is not None or observe_output
        with torch.no_grad(), closing(self.reader):
            for state in self.states:
                self.load_rope(state)
            if keeper is not None:
                keeper.recall(self.saved)
                earlier = self.timings.total
            self.reader.expect(self._order(has_output))
            if self.saved.n_done == 0:
                for state in self.states:
                    self.embed(state, keep_tied=has_output)
            for bid in range(self.saved.n_done, self.saved.n_layer):
                self.layer(bid)
                self.saved.n_done = bid + 1
                if keeper is not None:
                    self.timings.total = earlier + time.perf_counter() - start
                    keeper.keep(self.saved)
            if has_output:
                self.output(on_logits, first_logit, observe=observe_output)
            self.audience.hand_out_rest(self.states[0])
        self.timings.total = earlier + time.perf_counter() - start

    def _order(self, has_output: bool) -> Iterator[Wanted]:
        """The matrices that are left to be read."""
        begins = self.saved.n_done == 0
        if begins:
            yield from order.of_embeddings(self.states)
        yield from order.of_layers(self.states, range(self.saved.n_done, self.saved.n_layer))
        if has_output:
            yield from order.of_heads(self.states, keeps_tied=begins)

    def load_rope(self, state: StreamState) -> None:
        """Make the table of rotations, with the divisors of the frequencies that a file may bring along."""
        factors = None
        for name in state.rope_factors(self.n_ctx):
            factors = self.audience.vector(state, name).cpu()
        state.rope = make_rope(state.hparams, self.n_ctx, factors, self.settings.device)

    def embed(self, state: StreamState, *, keep_tied: bool) -> None:
        """hidden = the embedding's row of each token; an embedding that is needed as output matrix may be kept."""
        matrix = state.read(EMBEDDING)
        highest = int(self.tokens.max())
        if highest >= matrix.spec.n_row:
            raise TokenizerError(
                state.stream.name,
                f"token {highest} has no row in {matrix.spec.name} ({matrix.spec.n_row} rows)",
            )
        for tokens in token_groups(self.places):
            with self.timings.measure(Stage.DECODING):
                rows = matrix.tensor("cpu", rows=self.tokens[tokens].numpy())
            state.refuse_infinite(rows, "the embedding", "token_embd.")
            state.hidden[tokens] = state.embedded(rows).to(state.hidden.device, state.hidden.dtype)
        if keep_tied and state.is_tied:
            state.tied = matrix
        self.audience.hand_out(state, matrix)

    def layer(self, bid: int) -> None:
        """All streams through one layer."""
        for state in self.states:
            if self.keep_layers:
                state.layer_inputs.append(self.kept_hidden(state))
            self.attention(state, bid)
        self.feed_forward(bid)

    def kept_hidden(self, state: StreamState) -> Tensor:
        """A copy of the hidden states of the chunks that are kept, [T, D]."""
        kept = self.storage.empty((len(self.kept_places), state.hparams.n_embd), state.hidden.dtype)
        for tokens in token_groups(torch.arange(len(kept))):
            kept[tokens] = state.hidden[self.kept_places[tokens]]
        return kept

    def feed_forward(self, bid: int) -> None:
        """hidden += feed-forward(norm(hidden)), in all streams expert by expert."""
        feed_forward(self.states, self.audience, bid, hold_down=self.hold_down)

    def attention(self, state: StreamState, bid: int) -> None:
        """hidden += attention(norm(hidden)), some chunks at a time."""
        assert state.rope is not None
        vector = partial(self.audience.vector, state)
        norm = state.graph.norm(state.graph.attention_norm(bid), vector)
        attention = state.graph.attention(bid, state.rope, vector)
        matrices = {stem: state.read_stack(name_in_layer(bid, stem)) for stem in attention.matrices}
        steps = {
            stem: [(matrix, self.audience.product(state, matrix)) for matrix in stack]
            for stem, stack in matrices.items()
        }
        plain = {stem: stacked([product for _, product in steps[stem]]) for stem in attention.inputs}
        inputs = [matrix.spec for stem in attention.inputs for matrix in matrices[stem]]
        for tokens, x in state.normed_groups(norm, self.n_ctx):
            self.audience.show(state, inputs, 0, tokens, x)
            watched = {
                stem: stacked(
                    [self.audience.shown(product, state, matrix, tokens) for matrix, product in steps[stem]]
                )
                for stem in (*attention.inner, attention.OUTPUT)
            }
            with self.timings.measure(Stage.ATTENTION):
                y = attention(x, {**plain, **watched}, state.stream.round_cache)
            state.refuse_infinite(y, f"the attention of layer {bid}", f"blk.{bid}.attn_", "rope_f")
            state.add(tokens, y)
        self.audience.hand_out(state, *(matrix for stack in matrices.values() for matrix in stack))

    def output(self, on_logits: OnLogits | None, first: int, *, observe: bool) -> None:
        """The final norm and, if they are wanted, the logits, always in float32."""
        norms = [state.graph.norm(OUTPUT_NORM, partial(self.audience.vector, state)) for state in self.states]
        heads = [state.read_head() for state in self.states]
        for state in self.states:
            state.normed = state.normed.new_empty(0)  # makes room for logits
        n_scored = self.n_ctx - first
        n_bytes = sum(4 * n_scored * head.spec.n_row for head in heads)  # of a chunk's logits
        of_heads = sum(head.spec.n_row * head.spec.row_bytes for head in heads)
        is_host = self.settings.device == "cpu"  # else they lie on the device, see `order.working_bytes`
        n_free = self.settings.logit_bytes - of_heads * is_host
        n_group = max(1, min(n_free // n_bytes, MAX_GROUP)) if on_logits is not None else MAX_GROUP
        for first_chunk in range(0, len(self.tokens) // self.n_ctx, n_group):
            tokens = self.places[first_chunk * self.n_ctx : (first_chunk + n_group) * self.n_ctx]
            logits = []
            for state, norm, head in zip(self.states, norms, heads, strict=True):
                x = state.hidden_norm(tokens, norm)
                state.refuse_infinite(x, "the output of the model", "output_norm.")
                if observe and not state.is_tied:
                    self.audience.show(state, (head.spec,), 0, tokens, x)
                if on_logits is not None:
                    scored = x.view(-1, self.n_ctx, x.shape[-1])[:, first:].flatten(0, 1)
                    scored = state.head_inputs(scored)
                    y = state.logits(head, scored)
                    state.refuse_infinite(y, "the output of the model", head.spec.name)
                    logits.append(y.view(-1, n_scored, head.spec.n_row))
            if on_logits is not None:
                with self.timings.measure(Stage.COMPARING):
                    for chunk in range(len(logits[0])):
                        on_logits(first_chunk + chunk, [of_stream[chunk] for of_stream in logits])
        for state, head in zip(self.states, heads, strict=True):
            if head is not state.tied:
                self.audience.hand_out(state, head)
