"""The way back: gradients of the loss through all layers, the last one first, each weight read once more.

Labels are drawn from what the model itself expects, so that the squares of the gradients are those of its Fisher
information. In memory are hidden states and their gradients (or, on request, in scratch files), the matrices of one
attention or one expert, and the activations of one group of tokens. A layer is computed again from the hidden states
with which it began.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from calibration.forward import layers
from calibration.forward.attention import Attention, stacked
from calibration.forward.feed_forward import Choice, Share, shares
from calibration.forward.forward_pass import ForwardPass
from calibration.forward.gradients import GradientObserver, Output, Watched, read_products, read_stack
from calibration.forward.graph import EMBEDDING, OUTPUT_NORM, Unit, name_in_layer
from calibration.forward.hidden import Storage
from calibration.forward.layers import Norm
from calibration.forward.settings import ForwardSettings
from calibration.forward.stored import Matrix
from calibration.forward.stream_state import token_groups
from calibration.forward.streams import Observer, Stream
from calibration.forward.timings import Stage, Timings
from calibration.text.tokenizer import Tokens
from quantize.sources.model_source import ModelSource
from quantize.telling import OnProgress, Progress, silent

__all__ = ["BackwardPass", "GradientObserver", "forward_and_back"]

LOGIT_BYTES = 256 << 20  # of the logits that are in memory at once
DRAWN = 128  # tokens whose sums are in memory at once


def forward_and_back(
    source: ModelSource,
    tokens: Tokens,
    gradient_observers: Sequence[GradientObserver],
    *,
    chunks: Sequence[int] | None = None,
    observers: Sequence[Observer] = (),
    settings: ForwardSettings | None = None,
    seed: int = 0,
    progress: OnProgress = silent,
) -> Timings:
    """Run a text through a model, and the gradients of some of its chunks back; each weight is read twice.

    Args:
        source: the model.
        tokens: the text, int32 [C, P], BOS included; a chunk sees nothing of the others.
        gradient_observers: are shown every matrix product of the chunks on the way back, but those of routers.
        chunks: the chunks that go back, ascending; default all. n_layer x n_token x n_embd numbers are kept of them.
        observers: see `calibration.forward.run.forward`; they are shown the whole text on the way there.
        settings: see `forward`; default exact float32 on the CPU.
        seed: of the labels.
        progress: is told the tokens on the way there, the layers on the way back.

    Raises:
        ActivationError, CheckpointError, OutputError, TokenizerError: see `forward`.
    """
    settings = settings or ForwardSettings()
    storage = Storage(settings)
    there = ForwardPass(
        [Stream(source, name=source.label)],
        tokens,
        settings,
        storage,
        observers=observers,
        keep_layers=True,
        kept_chunks=chunks,
        progress=progress,
    )
    there.run()
    BackwardPass(there, gradient_observers, seed=seed, progress=progress).run()
    return there.timings


class BackwardPass:
    """One pass backwards behind a `ForwardPass` that has kept the inputs of its layers; `run` goes through its steps.

    Places of tokens are here those among the T tokens that were kept, until observers are told.
    """

    def __init__(
        self,
        there: ForwardPass,
        observers: Sequence[GradientObserver],
        *,
        seed: int = 0,
        progress: OnProgress = silent,
    ) -> None:
        """Make room for the gradients of the hidden states; no weight is read.

        Args:
            there: has run with `keep_layers`; its first stream is taken, whose results must not be rounded. Its hidden
                states are used up.
            observers: see `forward_and_back`.
            seed: of the labels.
            progress: is told the layers that are done.

        Raises:
            OutputError: the scratch folder cannot hold the gradients.
        """
        self.state, self.observers, self._progress = there.states[0], observers, progress
        self.n_ctx, self.places = there.n_ctx, there.kept_places
        self.tokens = there.tokens[self.places]
        self.labels = torch.empty_like(self.tokens)
        """The tokens that were drawn from the model's own expectations, int64 [T]."""
        self._draws = torch.rand(len(self.tokens), generator=torch.Generator().manual_seed(seed))
        self.settings = there.settings
        self._hidden = there.kept_hidden(self.state)
        self.state.hidden = self.state.normed = self.state.hidden.new_empty(0)
        shape = (len(self.tokens), self.state.hparams.n_embd)
        self.gradient = there.storage.empty(shape, torch.float32)
        """The gradient of the hidden states in front of the steps that are done, f32 [T, D]."""
        self._middle = there.storage.empty(shape, torch.float32)
        self._of_normed = there.storage.empty(shape, torch.float32)
        self._normed = there.storage.empty(shape, self.settings.dtype)

    def run(self) -> None:
        """Go back from the labels to the embedding."""
        start = time.perf_counter()
        n_layer = self.state.hparams.n_layer_run
        with torch.no_grad():
            self.output()
            for bid in reversed(range(n_layer)):
                self._hidden = self.state.layer_inputs.pop()
                self.layer(bid)
                self._progress(Progress("gradients", n_layer - bid, n_layer, unit="layers"))
            self.embedding()
        self.state.timings.total += time.perf_counter() - start

    def output(self) -> None:
        """Draw labels, and begin with the gradient of their cross entropy."""
        state = self.state
        head, norm = state.read_head(), state.graph.norm(OUTPUT_NORM, state.vector)
        weight, bias = state.decoded(head, self.settings.dtype), state.bias(head)
        n_together = max(1, LOGIT_BYTES // (4 * head.spec.n_row))
        for start in range(0, len(self.tokens), n_together):
            tokens = torch.arange(start, min(start + n_together, len(self.tokens)))
            h = self._rows(tokens).requires_grad_()
            with torch.enable_grad():
                x = state.head_inputs(norm(h))
            logits = state.logits(head, x.detach())
            log_total = logits.logsumexp(-1)
            g = logits.sub_(log_total[:, None]).exp_()
            labels = _drawn(g, self._draws[tokens].to(g.device))
            g[torch.arange(len(g), device=g.device), labels] -= 1.0
            self.labels[tokens] = labels.cpu()
            output = Output(log_total, g, bias)
            with state.timings.measure(Stage.OBSERVING):
                for observer in self.observers:
                    observer.outputs(head.spec, self.places[tokens], x.detach(), output)
            with state.timings.measure(Stage.PRODUCTS):
                dx = (g.to(weight.dtype) @ weight).float()
            self._put(tokens, torch.autograd.grad(x, h, dx)[0])
        if not state.is_tied:
            self._finish(head)

    def layer(self, bid: int) -> None:
        """The gradient of what a layer began with, out of that of what it made of it."""
        graph, vector = self.state.graph, self.state.vector
        assert self.state.rope is not None
        attention = graph.attention(bid, self.state.rope, vector)
        steps = {stem: read_stack(self.state, name_in_layer(bid, stem)) for stem in attention.matrices}
        norm = graph.norm(graph.attention_norm(bid), vector)
        inputs = self._hidden
        # The feed-forward layer needs what attention adds; its graph would take more memory than to compute it again.
        self._hidden = self._middle
        for tokens in token_groups(torch.arange(len(inputs)), self.n_ctx):
            h = _of(inputs, tokens).to(self.settings.device, torch.float32, copy=True)
            y = self._attention(h, norm, attention, steps)
            _of(self._hidden, tokens).copy_(h.add_(y))
        self.feed_forward(bid)
        self._hidden = inputs
        products = [product for stack in steps.values() for product in stack]
        for tokens in token_groups(torch.arange(len(inputs)), self.n_ctx):
            h = self._rows(tokens).requires_grad_()
            with torch.enable_grad():
                y = self._attention(h, norm, attention, steps)
            dy = self._gradient_rows(tokens)
            dh = self._flow_back(y, dy, h, products, tokens)
            self._put(tokens, dy + dh)
        self._finish(*(product.matrix for product in products))

    def _attention(
        self, h: Tensor, norm: Norm, attention: Attention, steps: Mapping[str, Sequence[Watched]]
    ) -> Tensor:
        """What attention adds to the hidden states h [t, D] of whole chunks."""
        x = norm(h).to(self.settings.dtype)
        y = attention(x, {stem: stacked(products) for stem, products in steps.items()})
        return self._scaled(y)

    def _scaled(self, y: Tensor) -> Tensor:
        """What a step gives -> what it adds to the hidden states."""
        scale = self.state.hparams.residual_scale
        return y * scale if scale else y

    def feed_forward(self, bid: int) -> None:
        """From behind the feed-forward layer, or its experts, to in front of its norm."""
        graph, vector = self.state.graph, self.state.vector
        norm = graph.norm(graph.feed_forward_norm(bid), vector)
        units, name = graph.units(bid), graph.router_name(bid)
        choice = None
        if name is not None:
            gates = {unit: vector(unit.gate_name) for unit in units if unit.gate_name}
            choice = Choice(
                graph.router(bid, self.state.decoded(self.state.read(name), torch.float32), vector), gates
            )
        ids, of_units = self._route(norm, units, choice)
        self._of_normed.zero_()
        of_weights = torch.zeros(len(self.tokens), len(units))
        for index, share in enumerate(of_units):
            self._expert(share, of_weights[:, index])
        for tokens in token_groups(torch.arange(len(self.tokens))):
            h = self._rows(tokens).requires_grad_()
            with torch.enable_grad():
                x = norm(h)
                results = [x] if choice is None else [x, choice.router(x).weights, *choice.shared(x).values()]
            gradients = [_of(self._of_normed, tokens)]
            if choice is not None:
                gradients.append(of_weights[tokens].gather(1, ids[tokens]))
                gradients += [of_weights[tokens, units.index(unit), None] for unit in choice.gates]
            (dh,) = torch.autograd.grad(results, h, [g.to(h.device) for g in gradients])
            self._put(tokens, self._gradient_rows(tokens).add_(dh))

    def _route(self, norm: Norm, units: Sequence[Unit], choice: Choice | None) -> tuple[Tensor, list[Share]]:
        """Fill the normed hidden states; the experts int64 [T, K] of each token, and the share of each unit."""
        everything = torch.arange(len(self.tokens))
        ids, weights = [], []
        of_shared: dict[Unit, list[Tensor]] = {unit: [] for unit in (choice.gates if choice else ())}
        for tokens in token_groups(everything):
            x = norm(self._rows(tokens))
            _of(self._normed, tokens).copy_(x)
            if choice is not None:
                routing = choice.router(x)
                ids.append(routing.ids.cpu())
                weights.append(routing.weights.cpu())
                for unit, w in choice.shared(x).items():
                    of_shared[unit].append(w.cpu())
        if choice is None:
            return torch.zeros(len(everything), 1, dtype=torch.long), [Share(units[0], everything)]
        shared = {unit: torch.cat(parts) for unit, parts in of_shared.items()}
        return torch.cat(ids), shares(units, torch.cat(ids), torch.cat(weights), shared)

    def _expert(self, share: Share, of_weights: Tensor) -> None:
        """Add to the gradient of the normed hidden states; sets that of the unit's weights in `of_weights` [T]."""
        unit, activation = share.unit, self.state.graph.activation
        products = read_products(self.state, unit.names, unit.xid)
        device = self.settings.device
        for group in share.groups():
            places = group.tokens.to(self._normed.device)
            x = self._normed.index_select(0, places).to(device).requires_grad_()
            with torch.enable_grad():
                y = self._scaled(layers.expert(x, *products, activation=activation))
            dy = self.gradient.index_select(0, places).to(device)
            if group.weights is not None:
                of_weights[group.tokens] = (dy * y.detach()).sum(-1).cpu()
                dy.mul_(group.weights.to(device))
            dx = self._flow_back(y, dy, x, products, group.tokens)
            self._of_normed.index_add_(0, places, dx.to(self._of_normed.device, torch.float32))
        self._finish(*(product.matrix for product in products))

    def _flow_back(
        self, y: Tensor, dy: Tensor, x: Tensor, products: Sequence[Watched], tokens: Tensor
    ) -> Tensor:
        """The gradient of x from that of y, which a piece of the model made of it; shows those of its products."""
        with self.state.timings.measure(Stage.PRODUCTS):
            wanted = [x, *(product.result for product in products)]
            dx, *of_results = torch.autograd.grad(y, wanted, dy.to(y.dtype))
        for product, g in zip(products, of_results, strict=True):
            product.show(self.observers, self.places[tokens], g)
        return dx

    def embedding(self) -> None:
        """Show the gradient of the rows that were looked up."""
        matrix = self.state.read_head() if self.state.is_tied else self.state.read(EMBEDDING)
        with self.state.timings.measure(Stage.OBSERVING):
            for tokens in token_groups(torch.arange(len(self.tokens))):
                g = self.state.embedded(self._gradient_rows(tokens))
                for observer in self.observers:
                    observer.embedded(matrix.spec, self.places[tokens], self.tokens[tokens], g)
        self._finish(matrix)

    def _finish(self, *matrices: Matrix) -> None:
        with self.state.timings.measure(Stage.WEIGHTS):
            for matrix in matrices:
                for observer in self.observers:
                    observer.finished(matrix)

    # -- rows of neighbouring tokens

    def _rows(self, tokens: Tensor) -> Tensor:
        """Their hidden states f32 [t, D] on the device, a tensor of its own."""
        return _of(self._hidden, tokens).to(self.settings.device, torch.float32, copy=True)

    def _gradient_rows(self, tokens: Tensor) -> Tensor:
        """Their gradients f32 [t, D] on the device, a tensor of its own."""
        return _of(self.gradient, tokens).to(self.settings.device, copy=True)

    def _put(self, tokens: Tensor, gradient: Tensor) -> None:
        """Set their gradients f32 [t, D]."""
        _of(self.gradient, tokens).copy_(gradient)


def _of(rows: Tensor, tokens: Tensor) -> Tensor:
    """The rows of neighbouring tokens, as a view."""
    return rows[int(tokens[0]) : int(tokens[-1]) + 1]


def _drawn(probs: Tensor, draws: Tensor) -> Tensor:
    """A token for each row of probabilities f32 [t, V], by numbers f32 [t] drawn evenly from 0 to 1: int64 [t]."""
    pieces = zip(torch.split(probs, DRAWN), torch.split(draws, DRAWN), strict=True)
    found = [torch.searchsorted(s := p.cumsum(-1), d[:, None] * s[:, -1:], right=True) for p, d in pieces]
    return torch.cat(found)[:, 0].clamp_(max=probs.shape[1] - 1)
