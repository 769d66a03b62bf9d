"""Two streams of one model side by side, and the step in which matrices of the second are encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from calibration.feedback.fitting import Aim, Fitted, Fitter
from calibration.feedback.moments import Visit
from calibration.forward import order
from calibration.forward.audience import Audience
from calibration.forward.graph import EMBEDDING
from calibration.forward.hidden import Storage
from calibration.forward.layers import Linear, Product
from calibration.forward.reading import make_reader
from calibration.forward.rope import make_rope
from calibration.forward.saved_state import PassState
from calibration.forward.settings import ForwardSettings
from calibration.forward.stored import Matrix, to_tensor
from calibration.forward.stream_state import StreamState, token_groups
from calibration.forward.streams import Observer, Stream
from calibration.forward.timings import Stage, Timings
from calibration.importance.observers import ImatrixObserver
from calibration.text.tokenizer import Tokens
from quantize.codec import decode, encode
from quantize.exceptions import TokenizerError
from quantize.sources.model_source import ModelSource
from quantize.telling import OnProgress
from quantize.tensors import NUMPY_TYPES, QType

MIN_OTHERS = 512
OTHERS_PER_PRIOR = 4
"""Tokens of the layer that stand for all, at least, and for each token that they count as."""

__all__ = ["Gaps", "OnFitted", "Pair", "TokenWeights"]

OnFitted = Callable[[Aim, Fitted], None]
"""Receives each matrix when it is encoded."""

TokenWeights = Callable[[str, int, Tensor], Tensor | None]
"""(name, xid, tokens int64 [t]) to how much each token counts at that matrix, float32 [t]; None: all alike."""

Gaps = Callable[[Tensor], Iterable[tuple[Tensor, Tensor]]]
"""(tokens int64 [t]) to groups of them: their inputs y in the quantized stream, and what these lack (see `Visit`)."""


class Pair:
    """The original stream and the one that is quantized on the way, between two steps of a pass."""

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
        self.reader = make_reader(settings)
        widths = 5 * source.hparams.n_embd + 2 * source.hparams.n_head * source.hparams.head_dim_v
        stream = Stream(source, name=source.label)
        self.storage.settle(4 * len(self.tokens) * widths, order.working_bytes([stream], settings))
        self.original, self.own = (self._begin(index) for index in range(2))
        hparams = source.hparams
        self.everyone = torch.arange(len(self.tokens))
        """The places of all tokens."""
        self._lost = self._room(hparams.n_embd)
        self._is_kept = False  # whether `_lost` holds what is lost
        self.mixed = tuple(self._room(hparams.n_head * hparams.head_dim_v) for _ in range(2))
        """What each stream gives to the output of its attention, [T, n_head x head_dim_v]."""
        hidden = [self.original.hidden, self.own.hidden]
        seeing = [importances, *observers]
        self.saved = PassState(hparams.n_layer_run, hidden, seeing, self.timings)
        n_weight = sum(spec.n_elements for spec in self.original.specs.values())
        self.audience = Audience(seeing, None, progress, self.saved, n_weight)

    def _room(self, width: int) -> Tensor:
        return self.storage.empty((len(self.tokens), width), torch.float32)

    def _begin(self, index: int) -> StreamState:
        width = self.source.hparams.n_embd
        stream = Stream(self.source, name=self.source.label)
        hidden, normed = self._room(width), self._room(width)
        return StreamState(index, stream, self.settings, self.timings, hidden, normed, reader=self.reader)

    @property
    def states(self) -> tuple[StreamState, StreamState]:
        """The original stream and the quantized one."""
        return self.original, self.own

    # -- hidden states

    def load_rope(self) -> None:
        """Make the table of rotations; see `ForwardPass.load_rope`."""
        factors = None
        for name in self.original.rope_factors(self.n_ctx):
            factors = self.audience.vector(self.original, name).cpu()
        rope = make_rope(self.source.hparams, self.n_ctx, factors, self.settings.device)
        self.original.rope = self.own.rope = rope

    def embed(self, own: Tensor | None = None) -> None:
        """hidden = the embedding's row of each token, in the second stream as its type stores it.

        Args:
            own: the second stream's embedding [V, D]; by default what plain blocks stand for.

        Raises:
            TokenizerError: a token has no row.
        """
        matrix = self.original.read(EMBEDDING)
        highest = int(self.tokens.max())
        if highest >= matrix.spec.n_row:
            raise TokenizerError(
                self.source.label,
                f"token {highest} has no row in {matrix.spec.name} ({matrix.spec.n_row} rows)",
            )
        qtype = self.qtypes.get(matrix.spec.name)
        for tokens in token_groups(self.everyone):
            rows = matrix.picked(self.tokens[tokens].numpy())
            exact = self.original.embedded(to_tensor(rows, dtype=torch.float32))
            self.original.refuse_infinite(exact, "the embedding", "token_embd.")
            self.original.hidden[tokens] = exact.to(self.original.hidden.device)
            if own is not None:
                picked = self.own.embedded(own[self.tokens[tokens]])
                self.own.hidden[tokens] = picked.to(self.own.hidden.device)
                continue
            if qtype is not None and qtype not in NUMPY_TYPES:
                rows = decode(encode(rows, qtype), qtype, matrix.spec.n_per_row)
            picked = self.own.embedded(to_tensor(rows, dtype=torch.float32))
            self.own.hidden[tokens] = picked.to(self.own.hidden.device)
        self.audience.hand_out(self.original, matrix)

    def norm(self, name: str, place: str) -> None:
        """normed = norm(hidden) in both streams; `name` is the norm's, `place` is told where it is not finite."""
        norm = self.original.graph.norm(name, partial(self.audience.vector, self.original))
        for state in self.states:
            for tokens, x in state.normed_groups(norm):
                state.refuse_infinite(x, place, name.removesuffix("weight"))
                state.normed[tokens] = x.to(state.normed.device)
        self._is_kept = False

    def keep_lost(self) -> None:
        """Keep what the second stream lacks now: until the next norm `lost` tells of this moment."""
        torch.sub(self.original.hidden, self.own.hidden, out=self._lost)
        self._is_kept = True

    def lost(self, tokens: Tensor) -> Tensor:
        """What a step would have to give to make good what the hidden states of some tokens lack, [t, D]."""
        lost = self._lost[tokens] if self._is_kept else self.original.hidden[tokens] - self.own.hidden[tokens]
        return lost.to(self.settings.device) / (self.source.hparams.residual_scale or 1.0)

    def gaps_of_inputs(self, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The gaps of matrices that are multiplied with `normed`; see `Gaps`."""
        for group in token_groups(tokens):
            y = self.own.normed_rows(group)
            yield y, self.original.normed_rows(group) - y

    def show(self, matrices: Sequence[Matrix], xid: int, tokens: Tensor, inputs: Tensor) -> None:
        """Show the original's inputs [T, n_per_row] of some tokens to the observers."""
        specs = [matrix.spec for matrix in matrices]
        for group in token_groups(tokens):
            self.audience.show(self.original, specs, xid, group, inputs[group.to(inputs.device)])

    # -- matrices

    def exact(self, matrices: Sequence[Matrix]) -> list[Tensor]:
        """The weights as they are, float32 [n_row, n_per_row]."""
        return [self.original.decoded(matrix, torch.float32) for matrix in matrices]

    def linear(self, matrix: Matrix, weights: Tensor, *, with_bias: bool = True) -> Product:
        """The product with weights in the place of a matrix's own, and with its bias, if there is one."""
        bias = self.original.bias(matrix) if with_bias else None
        product = Linear(weights.to(self.settings.dtype), bias)

        def multiply(x: Tensor) -> Tensor:
            with self.timings.measure(Stage.PRODUCTS):
                return product(x)

        return multiply

    def some_others(self, tokens: Tensor) -> Tensor | None:
        """Tokens of the layer that do not go to an expert, to whose moments its own are drawn; None without a prior."""
        prior = self.fitter.settings.prior
        if not prior:
            return None
        is_other = torch.ones(self.n_fit, dtype=torch.bool)
        is_other[tokens[tokens < self.n_fit]] = False
        others = is_other.nonzero()[:, 0]
        step = max(1, len(others) // max(MIN_OTHERS, int(OTHERS_PER_PRIOR * prior)))
        return others[::step]

    def encode(
        self,
        matrices: Sequence[Matrix],
        xid: int,
        tokens: Tensor,
        gaps: Gaps,
        *,
        of_inputs: bool = True,
        others: Tensor | None = None,
    ) -> list[Tensor]:
        """Encode the matrices that have a type; returns the weights that the quantized stream goes on with.

        Args:
            matrices: share their inputs.
            xid: the expert.
            tokens: those that reach it in the original.
            gaps: gives their inputs and what these lack.
            of_inputs: whether gaps are those of the inputs; else those of the output of the one matrix.
            others: tokens that count together as many as the settings' `prior` says.
        """
        parts = (tokens[tokens < self.n_fit], tokens[tokens >= self.n_fit])
        results = self.exact(matrices)
        aims = {
            index: Aim(matrix.spec, xid, weights, self.qtypes[matrix.spec.name])
            for index, (matrix, weights) in enumerate(zip(matrices, results, strict=True))
            if self.qtypes.get(matrix.spec.name, QType.F32) not in NUMPY_TYPES
        }
        together = [list(aims)] if self.token_weights is None else [[index] for index in aims]
        for indices in together:
            chosen = [aims[index] for index in indices]
            if chosen:
                visits = partial(self._visits, chosen[0], parts, gaps, others)
                with self.timings.measure(Stage.WEIGHTS):
                    fitted = self.fitter.fit(
                        chosen,
                        visits,
                        (len(parts[0]), len(parts[1])),
                        lambda aim: self.importances.imatrix.importance(aim.spec.name, aim.xid),
                        gap_of_inputs=of_inputs,
                    )
                for index, aim, one in zip(indices, chosen, fitted, strict=True):
                    results[index] = one.values
                    self.on_fitted(aim, one)
        self.audience.hand_out(self.original, *matrices)
        return results

    def _visits(
        self, aim: Aim, parts: tuple[Tensor, Tensor], gaps: Gaps, others: Tensor | None, is_held_out: bool
    ) -> Iterator[Visit]:
        tokens = parts[is_held_out]
        start = 0
        for y, gap in gaps(tokens):
            own = tokens[start : start + len(y)]
            start += len(y)
            weights = None if self.token_weights is None else self.token_weights(aim.spec.name, aim.xid, own)
            yield Visit(y, gap, None if weights is None else weights.to(y.device))
        if others is not None and len(others) and not is_held_out:
            each = self.fitter.settings.prior / len(others)
            for y, gap in gaps(others):
                yield Visit(y, gap, torch.full((len(y),), each, device=y.device))
