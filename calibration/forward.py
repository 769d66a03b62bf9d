"""The forward pass, streamed layer by layer and expert by expert: each weight is read once for the whole text.

In memory are the hidden states of the text (or, on request, in scratch files), the matrices of one attention or one
expert, and the activations of one block of tokens. Several models ("streams": a checkpoint and quantized files of it)
can walk side by side, each with hidden states of its own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from calibration.hidden import Shelf, Storage
from calibration.model import (
    Arithmetic,
    Routing,
    attend,
    rms_norm,
    rope_table,
    rotate,
    route,
    swiglu,
    to_tensor,
)
from calibration.stored import StoredMatrix
from calibration.tokenizer import Tokens
from quantize.exceptions import ActivationError, CheckpointError, TokenizerError
from quantize.hparams import Hparams
from quantize.progress import Progress, Report, silent
from quantize.tensors import Array, TensorSource, TensorSpec

__all__ = ["Observer", "Stream", "Timings", "forward"]

TOKEN_BLOCK = 2048  # tokens that go through a matrix at once
VOCAB_BLOCK = 8192  # rows of the output matrix that are widened to float32 at once
ARCHITECTURES = ("llama",)
KNOWN = re.compile(
    r"(token_embd|output|output_norm|rope_freqs|rope_factors_short|rope_factors_long)\.weight"
    r"|blk\.\d+\.((attn_norm|ffn_norm|ffn_gate_inp|ffn_(gate|up|down)_exps)\.weight"
    r"|(attn_(q|k|v|output)|ffn_(gate|up|down))\.(weight|bias))"
)

OnWeights = Callable[[TensorSpec, int, Array], None]
OnLogits = Callable[[int, Sequence[Tensor]], None]


class Observer:
    """Sees what the streams compute; override what is wanted. Tensors are borrowed: copy what is to be kept."""

    def inputs(self, stream: int, specs: Sequence[TensorSpec], xid: int, tokens: Tensor, x: Tensor) -> None:
        """The rows x [t, n_per_row] that the matrices `xid` of `specs` are about to be multiplied with.

        `tokens` int64 [t] are their places in the text. Blocks come in the same order for every stream.
        """

    def routed(self, stream: int, bid: int, tokens: Tensor, routing: Routing) -> None:
        """Where the tokens [t] of a block go in layer `bid`."""


@dataclass(frozen=True)
class Stream:
    """One model on its way through the text.

    `round_inputs(spec, x)` may change the input of each matrix product, as kernels do that work on 8-bit activations.
    """

    source: TensorSource
    round_inputs: Callable[[TensorSpec, Tensor], Tensor] | None = None


@dataclass
class Timings:
    """Seconds of wall time by kind of work; `products` are the matrix products with weights."""

    n_token: int = 0
    total: float = 0.0
    reading: float = 0.0  # from disk; what a round trip encodes, too
    decoding: float = 0.0  # blocks, or narrow floats, to the arithmetic's type
    products: float = 0.0
    attention: float = 0.0
    observing: float = 0.0
    weights: float = 0.0  # in `on_weights`
    comparing: float = 0.0  # in `on_logits`

    @property
    def share_of_products(self) -> float:
        """Share of the time of the forward pass itself that was spent in matrix products."""
        own = self.total - self.weights - self.comparing
        return self.products / own if own > 0 else 0.0

    @contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Add the duration of the block to one kind."""
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, kind, getattr(self, kind) + time.perf_counter() - start)


@dataclass
class _Matrix:
    """One matrix in memory: as the arithmetic wants it and, where somebody asks for it, as it was read."""

    spec: TensorSpec
    xid: int
    raw: Array | None
    tensor: Tensor
    bias: Tensor | None = None


@dataclass
class _Routes:
    """Of all tokens: the experts they go to, int64 [T, K], and the weights of these, f32 [T, K]."""

    ids: Tensor
    weights: Tensor


@dataclass
class _Lane:
    """The state of one stream."""

    index: int
    stream: Stream
    hparams: Hparams
    specs: dict[str, TensorSpec]
    hidden: Tensor  # [T, D]
    normed: Tensor  # [T, D], the input of the feed-forward layer
    table: tuple[Tensor, Tensor]  # cosines and sines [P, d/2]
    tied: StoredMatrix | None = None  # an embedding that is needed again as output
    taken: set[str] = field(default_factory=set)

    def add(self, tokens: Tensor, y: Tensor) -> None:
        """hidden[tokens] += y, in float32 whatever the hidden states are kept in."""
        summed = self.hidden[tokens].to(y.device) + y.float()
        self.hidden[tokens] = summed.to(self.hidden.device, self.hidden.dtype)


def forward(
    streams: Sequence[Stream],
    tokens: Tokens,
    *,
    arithmetic: Arithmetic | None = None,
    storage: Storage | None = None,
    observers: Sequence[Observer] = (),
    observe_output: bool = False,
    on_weights: OnWeights | None = None,
    hold_down: bool = False,
    on_logits: OnLogits | None = None,
    first_logit: int = 0,
    follow_first: bool = False,
    report: Report = silent,
) -> Timings:
    """Run chunks of tokens [C, P] through one or several models of the same shape.

    Args:
        streams: the models; hidden states take n_token x n_embd x (4 + bytes of the arithmetic's type) each.
        tokens: what is fed, BOS included; a chunk sees nothing of the others.
        arithmetic: device and type of the matrix products, default exact float32 on the CPU.
        storage: type and place of the hidden states, default float32 in memory.
        observers: are shown the inputs of every matrix in a layer, and the routing.
        observe_output: show the inputs of the output matrix too (a tied token_embd never is).
        on_weights: is given every matrix of the first stream once, as it was read, as soon as all its inputs have been
            shown to the observers; whatever is called may keep the array.
        hold_down: keep the down projections of a layer until all its experts have passed, because their mean over the
            layer is wanted; costs their bytes (E x n_ff x n_embd x 2 in bfloat16).
        on_logits: is given a chunk's index and the logits f32 [P - first_logit, V] of each stream.
        first_logit: the first position of a chunk whose logits are computed.
        follow_first: all streams send tokens to the experts that the first stream chose, with their own weights.
        report: is told how much of the work is done, in tokens that have passed the whole model.

    Raises:
        ActivationError: a layer or expert gave a value that is not finite.
        CheckpointError: a tensor is missing, or one is there that this pass does not know.
        TokenizerError: a token has no row in the embedding.
    """
    arithmetic = arithmetic or Arithmetic()
    storage = storage or Storage()
    start = time.perf_counter()
    with storage.open(arithmetic.device) as shelf, torch.inference_mode():
        walk = _Walk(streams, tokens, arithmetic, storage, shelf, observers, on_weights, report)
        walk.embed(keep_tied=on_logits is not None or observe_output)
        for bid in range(walk.n_layer):
            for lane in walk.lanes:
                walk.attention(lane, bid)
            walk.feed_forward(bid, follow_first=follow_first, hold_down=hold_down)
        walk.output(on_logits, first_logit, observe=observe_output)
        walk.finish()
    walk.timings.total = time.perf_counter() - start
    return walk.timings


class _Walk:
    """One walk of all streams through all layers."""

    def __init__(
        self,
        streams: Sequence[Stream],
        tokens: Tokens,
        arithmetic: Arithmetic,
        storage: Storage,
        shelf: Shelf,
        observers: Sequence[Observer],
        on_weights: OnWeights | None,
        report: Report,
    ) -> None:
        self.arithmetic = arithmetic
        self.observers = observers
        self.on_weights = on_weights
        self.report = report
        self.n_ctx = tokens.shape[1]
        self.tokens = torch.from_numpy(tokens).long().reshape(-1)
        self.places = torch.arange(len(self.tokens))
        self.timings = Timings(n_token=len(self.tokens))
        self.n_layer = streams[0].source.hparams.n_layer
        self.n_passed = 0  # weights
        _refuse_unknown([stream.source for stream in streams])
        self.lanes = []
        for index, stream in enumerate(streams):
            hparams = stream.source.hparams
            shape = (len(self.tokens), hparams.n_embd)
            hidden, normed = shelf.empty(*shape, storage.dtype), shelf.empty(*shape, arithmetic.dtype)
            specs = {spec.name: spec for spec in stream.source.specs()}
            lane = _Lane(index, stream, hparams, specs, hidden, normed, (hidden[:0], hidden[:0]))
            self.lanes.append(lane)
        self.n_weight = sum(spec.n_elements for lane in self.lanes for spec in lane.specs.values())
        for lane in self.lanes:
            lane.table = self.rope(lane)

    # -- weights

    def rope(self, lane: _Lane) -> tuple[Tensor, Tensor]:
        """The rotary table, with the divisors of the frequencies that a file may bring along."""
        hparams = lane.hparams
        short = self.n_ctx <= (hparams.rope_scaling.n_ctx_orig or hparams.n_ctx_train)
        factors = None
        for name in ("rope_freqs.weight", f"rope_factors_{'short' if short else 'long'}.weight"):
            if name in lane.specs:
                factors = self.vector(lane, name).cpu()
        cos, sin = rope_table(hparams, self.n_ctx, factors)
        return cos.to(self.arithmetic.device), sin.to(self.arithmetic.device)

    def stored(self, lane: _Lane, name: str, xid: int = 0) -> StoredMatrix:
        """Read one matrix and keep it as it is stored."""
        spec = lane.specs.get(name)
        if spec is None:
            raise CheckpointError(f"tensor {name} is missing, the forward pass needs it")
        lane.taken.add(name)
        with self.timings.measure("reading"):
            return StoredMatrix(lane.stream.source, spec, xid)

    def matrix(self, lane: _Lane, name: str, xid: int = 0, dtype: torch.dtype | None = None) -> _Matrix:
        """Read one matrix, in the arithmetic's type or another."""
        stored = self.stored(lane, name, xid)
        with self.timings.measure("decoding"):
            raw = stored.whole()
            tensor = to_tensor(raw, self.arithmetic.device, dtype or self.arithmetic.dtype)
        bias = name.removesuffix(".weight") + ".bias"
        return _Matrix(
            stored.spec,
            xid,
            raw if self.is_passed_on(lane) else None,
            tensor,
            self.vector(lane, bias) if bias in lane.specs else None,
        )

    def vector(self, lane: _Lane, name: str) -> Tensor:
        """A norm, a bias or a table of factors, f32 [n]; no importance belongs to it, so it is passed on at once."""
        matrix = self.matrix(lane, name, dtype=torch.float32)
        vector = matrix.tensor.reshape(-1).clone()
        self.pass_on(lane, matrix)
        return vector

    def is_passed_on(self, lane: _Lane) -> bool:
        """Whether somebody wants the weights of this stream as they were read."""
        return self.on_weights is not None and lane.index == 0

    def pass_on(self, lane: _Lane, *matrices: _Matrix | StoredMatrix) -> None:
        """All inputs of these matrices have been seen."""
        for matrix in matrices:
            if self.on_weights is not None and self.is_passed_on(lane):
                raw = matrix.whole() if isinstance(matrix, StoredMatrix) else matrix.raw
                with self.timings.measure("weights"):
                    self.on_weights(matrix.spec, matrix.xid, cast(Array, raw))
            self.n_passed += matrix.spec.n_row * matrix.spec.n_per_row
        n_token = self.timings.n_token
        self.report(Progress("calculating", n_token * self.n_passed // self.n_weight, n_token, unit="tokens"))

    # -- arithmetic

    def product(self, lane: _Lane, matrix: _Matrix, x: Tensor) -> Tensor:
        """x [t, n_in] times the matrix [n_out, n_in], plus its bias -> [t, n_out]."""
        if lane.stream.round_inputs is not None:
            x = lane.stream.round_inputs(matrix.spec, x)
        with self.timings.measure("products"):
            y = functional.linear(x.to(matrix.tensor.dtype), matrix.tensor)
        return y if matrix.bias is None else y + matrix.bias.to(y.dtype)

    def show(
        self, lane: _Lane, matrices: Sequence[_Matrix | StoredMatrix], tokens: Tensor, x: Tensor
    ) -> None:
        """Let the observers see the common input of some matrices."""
        with self.timings.measure("observing"):
            for observer in self.observers:
                specs = [matrix.spec for matrix in matrices]
                observer.inputs(lane.index, specs, matrices[0].xid, tokens, x)

    def hidden_norm(self, lane: _Lane, tokens: Tensor, norm: Tensor) -> Tensor:
        """norm(hidden) of some tokens in a row, f32 [t, D]."""
        h = lane.hidden[tokens[0] : tokens[-1] + 1].to(self.arithmetic.device)
        return rms_norm(h, norm, lane.hparams.rms_norm_eps)

    # -- the walk

    def embed(self, *, keep_tied: bool) -> None:
        """hidden = the embedding's row of each token."""
        for lane in self.lanes:
            matrix = self.stored(lane, "token_embd.weight")
            worst = int(self.tokens.max())
            if worst >= matrix.spec.n_row:
                raise TokenizerError(
                    f"token {worst} has no row in token_embd.weight ({matrix.spec.n_row} rows)"
                )
            for block in _blocks(self.places, TOKEN_BLOCK):
                with self.timings.measure("decoding"):
                    rows = to_tensor(matrix.picked(self.tokens[block].numpy()))
                lane.hidden[block] = rows.to(lane.hidden.device, lane.hidden.dtype)
            self.pass_on(lane, matrix)
            if keep_tied and "output.weight" not in lane.specs:
                lane.tied = matrix

    def attention(self, lane: _Lane, bid: int) -> None:
        """hidden += attention(norm(hidden)), some chunks at a time."""
        hparams, (cos, sin) = lane.hparams, lane.table
        norm = self.vector(lane, f"blk.{bid}.attn_norm.weight")
        q, k, v, o = (
            self.matrix(lane, f"blk.{bid}.attn_{name}.weight") for name in ("q", "k", "v", "output")
        )
        for tokens in _blocks(self.places, max(1, TOKEN_BLOCK // self.n_ctx) * self.n_ctx):
            x = self.hidden_norm(lane, tokens, norm)
            self.show(lane, (q, k, v), tokens, x)
            heads = (len(tokens) // self.n_ctx, self.n_ctx, -1, hparams.head_dim)  # [C, P, H or G, d]
            qx, kx, vx = (self.product(lane, matrix, x).view(heads) for matrix in (q, k, v))
            with self.timings.measure("attention"):
                qx, kx = (
                    rotate(qx, cos, sin, neox=hparams.rope_neox),
                    rotate(kx, cos, sin, neox=hparams.rope_neox),
                )
                mixed = attend(qx, kx, vx).reshape(len(tokens), -1)  # [t, H d]
            self.show(lane, (o,), tokens, mixed)
            y = self.product(lane, o, mixed)
            _refuse_infinite(y, f"the attention of layer {bid}")
            lane.add(tokens, y)
        self.pass_on(lane, q, k, v, o)

    def feed_forward(self, bid: int, *, follow_first: bool, hold_down: bool) -> None:
        """hidden += feed-forward(norm(hidden)): the router and one expert after the other, or the one dense layer."""
        routes: list[_Routes | None] = []
        for lane in self.lanes:
            leader = routes[0] if follow_first and routes else None
            routes.append(self.norm_and_route(lane, bid, leader))
        held = []
        for xid in range(self.lanes[0].hparams.n_expert if routes[0] else 1):
            for lane, route_of in zip(self.lanes, routes, strict=True):
                down = self.expert(lane, bid, xid, route_of)
                if hold_down and lane.index == 0:
                    held.append(down)
                else:
                    self.pass_on(lane, down)
        self.pass_on(self.lanes[0], *held)

    def norm_and_route(self, lane: _Lane, bid: int, leader: _Routes | None) -> _Routes | None:
        """Fill lane.normed; returns where the tokens go, or None where the layer is dense."""
        norm = self.vector(lane, f"blk.{bid}.ffn_norm.weight")
        name = f"blk.{bid}.ffn_gate_inp.weight"
        router = self.matrix(lane, name, dtype=torch.float32) if name in lane.specs else None
        parts = []
        for tokens in _blocks(self.places, TOKEN_BLOCK):
            x = self.hidden_norm(lane, tokens, norm)
            lane.normed[tokens] = x.to(lane.normed.device, lane.normed.dtype)
            if router is None:
                continue
            self.show(lane, (router,), tokens, x)
            ids = None if leader is None else leader.ids[tokens].to(x.device)
            with self.timings.measure("products"):
                part = route(x, router.tensor, lane.hparams.n_expert_used, ids)
            for observer in self.observers:
                observer.routed(lane.index, bid, tokens, part)
            parts.append(part)
        if router is None:
            return None
        self.pass_on(lane, router)
        return _Routes(
            torch.cat([part.ids for part in parts]).cpu(), torch.cat([part.weights for part in parts]).cpu()
        )

    def expert(self, lane: _Lane, bid: int, xid: int, routes: _Routes | None) -> _Matrix:
        """One expert over the tokens routed to it; returns its down projection, which is not yet passed on."""
        kind, place = (
            ("_exps", f"expert {xid} of layer {bid}") if routes else ("", f"the feed-forward of layer {bid}")
        )
        names = (f"blk.{bid}.ffn_{name}{kind}.weight" for name in ("gate", "up", "down"))
        gate, up, down = (self.matrix(lane, name, xid) for name in names)
        tokens, weights = self.places, None
        if routes is not None:
            tokens, slots = (routes.ids == xid).nonzero(as_tuple=True)
            weights = routes.weights[tokens, slots, None]  # [t, 1]
        for start in range(0, len(tokens), TOKEN_BLOCK):
            block = tokens[start : start + TOKEN_BLOCK]
            x = lane.normed[block].to(self.arithmetic.device)
            self.show(lane, (gate, up), block, x)
            inner = swiglu(self.product(lane, gate, x), self.product(lane, up, x))  # [t, F]
            self.show(lane, (down,), block, inner)
            y = self.product(lane, down, inner)  # [t, D]
            _refuse_infinite(y, place)
            if weights is not None:
                y = y.float() * weights[start : start + TOKEN_BLOCK].to(y.device)
            lane.add(block, y)
        self.pass_on(lane, gate, up)
        return down

    def output(self, on_logits: OnLogits | None, first: int, *, observe: bool) -> None:
        """The final norm and, if they are wanted, the logits, always in float32."""
        if on_logits is None and not observe:
            return
        norms = [self.vector(lane, "output_norm.weight") for lane in self.lanes]
        heads = [lane.tied or self.stored(lane, "output.weight") for lane in self.lanes]
        for chunk, tokens in enumerate(_blocks(self.places, self.n_ctx)):
            logits = []
            for lane, norm, head in zip(self.lanes, norms, heads, strict=True):
                x = self.hidden_norm(lane, tokens, norm)
                if observe and lane.tied is None:
                    self.show(lane, (head,), tokens, x)
                if on_logits is not None:
                    logits.append(self.logits(lane, head, x[first:]))
            if on_logits is not None:
                with self.timings.measure("comparing"):
                    on_logits(chunk, logits)
        for lane, head in zip(self.lanes, heads, strict=True):
            if lane.tied is None:
                self.pass_on(lane, head)

    def logits(self, lane: _Lane, head: StoredMatrix, x: Tensor) -> Tensor:
        """x [t, D] -> f32 [t, V]; the matrix is decoded some rows at a time, because those of all streams stay."""
        if lane.stream.round_inputs is not None:
            x = lane.stream.round_inputs(head.spec, x)
        n_row = head.spec.n_row
        found = torch.empty(len(x), n_row, device=x.device)
        for first in range(0, n_row, VOCAB_BLOCK):
            last = min(first + VOCAB_BLOCK, n_row)
            with self.timings.measure("decoding"):
                rows = to_tensor(head.rows(first, last), self.arithmetic.device, torch.float32)
            with self.timings.measure("products"):
                found[:, first:last] = functional.linear(x, rows)
        return found

    def finish(self) -> None:
        """Pass on what this pass had no use for, so that a reader of weights has seen them all."""
        lane = self.lanes[0]
        if self.on_weights is not None:
            for spec in lane.specs.values():
                if spec.name not in lane.taken:
                    for xid in range(spec.n_expert):
                        self.pass_on(lane, self.stored(lane, spec.name, xid))
        self.report(Progress("calculating", self.timings.n_token, self.timings.n_token, unit="tokens"))


def _blocks(rows: Tensor, size: int) -> Iterator[Tensor]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _refuse_infinite(y: Tensor, place: str) -> None:
    if not torch.isfinite(y.sum(dtype=torch.float32)):
        raise ActivationError(f"{place}: a value is not finite (NaN or infinity); are its weights damaged?")


def _refuse_unknown(sources: Sequence[TensorSource]) -> None:
    """A tensor that is not known here would change the result, so its presence is an error."""
    shapes = [{spec.name: spec.shape for spec in source.specs()} for source in sources]
    for source, names in zip(sources, shapes, strict=True):
        arch = source.hparams.arch
        if arch not in ARCHITECTURES:
            raise CheckpointError(
                f"the forward pass does not know arch {arch!r}; known: {', '.join(ARCHITECTURES)}"
            )
        for name, shape in names.items():
            if not KNOWN.fullmatch(name):
                raise CheckpointError(f"the forward pass does not know tensor {name}")
            if shapes[0].get(name) != shape:
                raise CheckpointError(
                    f"{name} has shape {shape} in one model and {shapes[0].get(name)} in the other"
                )
