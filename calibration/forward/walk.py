"""The order of the forward pass: which stream does what, when, and who is told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from calibration.forward.hidden import Shelf, Storage
from calibration.forward.lanes import Lane, Matrix, Routes, refuse_unknown
from calibration.forward.layers import Arithmetic, attend, rotate, route, swiglu, to_tensor
from calibration.forward.saved_state import PassState
from calibration.forward.streams import Observer, OnLogits, OnWeights, Stream, Timings
from calibration.text.tokenizer import Tokens
from quantize.exceptions import TokenizerError
from quantize.telling import OnProgress, Progress
from quantize.tensors import Array, TensorSpec

__all__ = ["Walk"]

TOKEN_BLOCK = 1024  # tokens that go through a matrix at once; larger blocks are no faster on a CPU

LOGIT_BYTES = (
    768 << 20
)  # of all streams' logits at once: as many chunks as fit share one decoding of the matrices
MAX_GROUP = 8  # chunks


class Walk:
    """One walk of all streams through all layers; `forward` calls its steps in order."""

    def __init__(
        self,
        streams: Sequence[Stream],
        tokens: Tokens,
        arithmetic: Arithmetic,
        storage: Storage,
        shelf: Shelf,
        observers: Sequence[Observer],
        on_weights: OnWeights | None,
        progress: OnProgress,
    ) -> None:
        refuse_unknown([stream.source for stream in streams])
        self.device = arithmetic.device
        self.observers = observers
        self.on_weights = on_weights
        self.progress = progress
        self.n_ctx = tokens.shape[1]
        self.tokens = torch.from_numpy(tokens).long().reshape(-1)
        self.places = torch.arange(len(self.tokens))
        self.timings = Timings(n_token=len(self.tokens))
        self.state = PassState(streams[0].source.hparams.n_layer, observers, self.timings)
        self.n_weight = sum(spec.n_elements for stream in streams for spec in stream.source.specs())
        self.lanes = []
        for index, stream in enumerate(streams):
            shape = (len(self.tokens), stream.source.hparams.n_embd)
            self.lanes.append(
                Lane(
                    index,
                    stream,
                    self.n_ctx,
                    hidden=shelf.empty(*shape, storage.dtype),
                    normed=shelf.empty(*shape, arithmetic.dtype),
                    arithmetic=arithmetic,
                    timings=self.timings,
                    wants_raw=on_weights is not None and index == 0,
                    pass_on=self.pass_on,
                )
            )
            self.state.hidden.append(self.lanes[-1].hidden)

    def pass_on(self, spec: TensorSpec, xid: int, raw: Array | None) -> None:
        """The last input of a matrix was seen; `raw` are its weights where somebody wants them."""
        if self.on_weights is not None and raw is not None:
            with self.timings.measure("weights"):
                self.on_weights(spec, xid, raw)
        self.state.n_weight += spec.n_row * spec.n_per_row
        n_token = self.timings.n_token
        done = min(n_token * self.state.n_weight // self.n_weight, n_token)
        self.progress(Progress("calculating", done, n_token, unit="tokens"))

    def show(self, lane: Lane, specs: Sequence[TensorSpec], xid: int, tokens: Tensor, x: Tensor) -> None:
        """Let the observers see the common input of some matrices."""
        with self.timings.measure("observing"):
            for observer in self.observers:
                observer.inputs(lane.index, specs, xid, tokens, x)

    def embed(self, *, keep_tied: bool) -> None:
        """hidden = the embedding's row of each token, unless an earlier pass has taken them further."""
        for lane in self.lanes:
            is_tied = keep_tied and "output.weight" not in lane.specs
            if self.state.n_done and not is_tied:
                continue
            matrix = lane.stored("token_embd.weight")
            worst = int(self.tokens.max())
            if worst >= matrix.spec.n_row:
                raise TokenizerError(
                    f"token {worst} has no row in token_embd.weight ({matrix.spec.n_row} rows)"
                )
            if is_tied:
                lane.tied = matrix
            for block in _blocks(self.places, TOKEN_BLOCK) if not self.state.n_done else ():
                with self.timings.measure("decoding"):
                    rows = to_tensor(matrix.picked(self.tokens[block].numpy()))
                lane.refuse_infinite(rows, "the embedding", "token_embd.")
                lane.hidden[block] = rows.to(lane.hidden.device, lane.hidden.dtype)
            lane.release(matrix)

    def attention(self, lane: Lane, bid: int) -> None:
        """hidden += attention(norm(hidden)), some chunks at a time."""
        hparams, (cos, sin) = lane.hparams, lane.table
        norm = lane.vector(f"blk.{bid}.attn_norm.weight")
        q, k, v, o = (lane.matrix(f"blk.{bid}.attn_{name}.weight") for name in ("q", "k", "v", "output"))
        for tokens in _blocks(self.places, max(1, TOKEN_BLOCK // self.n_ctx) * self.n_ctx):
            x = lane.hidden_norm(tokens, norm)
            self.show(lane, (q.spec, k.spec, v.spec), 0, tokens, x)
            shape = (len(tokens) // self.n_ctx, self.n_ctx, -1, hparams.head_dim)  # [C, P, H or G, d]
            qx, kx, vx = (lane.product(matrix, x).view(shape) for matrix in (q, k, v))
            with self.timings.measure("attention"):
                qx, kx = (rotate(heads, cos, sin, neox=hparams.rope_neox) for heads in (qx, kx))
                mixed = attend(qx, kx, vx).reshape(len(tokens), -1)  # [t, H d]
            self.show(lane, (o.spec,), 0, tokens, mixed)
            y = lane.product(o, mixed)
            lane.refuse_infinite(y, f"the attention of layer {bid}", f"blk.{bid}.attn_", "rope_f")
            lane.add(tokens, y)
        lane.release(q, k, v, o)

    def feed_forward(self, bid: int, *, follow_first: bool, hold_down: bool) -> None:
        """hidden += feed-forward(norm(hidden)): the router and one expert after the other, or the one dense layer."""
        routes: list[Routes | None] = []
        for lane in self.lanes:
            leader = routes[0] if follow_first and routes else None
            routes.append(self.norm_and_route(lane, bid, leader))
        held = []
        n_expert = self.lanes[0].hparams.n_expert if routes[0] else 1
        if hold_down:
            for lane, one in zip(self.lanes, routes, strict=True):
                for xid in range(n_expert):
                    self.show_early(lane, bid, xid, one)
        for xid in range(n_expert):
            for lane, one in zip(self.lanes, routes, strict=True):
                down = self.expert(lane, bid, xid, one, shown=hold_down)
                if hold_down and lane.index == 0:
                    held.append(replace(down, tensor=torch.empty(0)))  # as it was read is enough
                else:
                    lane.release(down)
        self.lanes[0].release(*held)

    def norm_and_route(self, lane: Lane, bid: int, leader: Routes | None) -> Routes | None:
        """Fill lane.normed; returns where the tokens go, or None where the layer is dense."""
        norm = lane.vector(f"blk.{bid}.ffn_norm.weight")
        name = f"blk.{bid}.ffn_gate_inp.weight"
        router = lane.matrix(name, dtype=torch.float32) if name in lane.specs else None
        parts = []
        for tokens in _blocks(self.places, TOKEN_BLOCK):
            x = lane.hidden_norm(tokens, norm)
            lane.normed[tokens] = x.to(lane.normed.device, lane.normed.dtype)
            if router is None:
                lane.refuse_infinite(x, f"the feed-forward of layer {bid}", f"blk.{bid}.ffn_norm.")
                continue
            self.show(lane, (router.spec,), 0, tokens, x)
            ids = None if leader is None else leader.ids[tokens].to(x.device)
            with self.timings.measure("products"):
                part = route(x, router.tensor, lane.hparams.n_expert_used, ids)
            place = f"the router of layer {bid}"
            lane.refuse_infinite(part.probs, place, f"blk.{bid}.ffn_norm.", f"blk.{bid}.ffn_gate_inp.")
            for observer in self.observers:
                observer.routed(lane.index, bid, tokens, part)
            parts.append(part)
        if router is None:
            return None
        lane.release(router)
        return Routes(
            torch.cat([part.ids for part in parts]).cpu(), torch.cat([part.weights for part in parts]).cpu()
        )

    def routed(self, xid: int, routes: Routes | None) -> tuple[Tensor, Tensor | None]:
        """The tokens [t] of one expert and their weights [t, 1]; all of them, unweighted, in a dense layer."""
        if routes is None:
            return self.places, None
        tokens, slots = (routes.ids == xid).nonzero(as_tuple=True)
        return tokens, routes.weights[tokens, slots, None]

    def show_early(self, lane: Lane, bid: int, xid: int, routes: Routes | None) -> None:
        """Show the inputs of gate and up before any expert works: they are known when the tokens are routed."""
        kind = "_exps" if routes else ""
        specs = [lane.spec(f"blk.{bid}.ffn_{name}{kind}.weight") for name in ("gate", "up")]
        tokens, _ = self.routed(xid, routes)
        for block in _blocks(tokens, TOKEN_BLOCK):
            self.show(lane, specs, xid, block, lane.normed[block].to(self.device))

    def expert(self, lane: Lane, bid: int, xid: int, routes: Routes | None, *, shown: bool) -> Matrix:
        """One expert over the tokens routed to it; returns its down projection, which is not yet passed on."""
        kind = "_exps" if routes else ""
        place = f"expert {xid} of layer {bid}" if routes else f"the feed-forward of layer {bid}"
        names = (f"blk.{bid}.ffn_{name}{kind}.weight" for name in ("gate", "up", "down"))
        gate, up, down = (lane.matrix(name, xid) for name in names)
        tokens, weights = self.routed(xid, routes)
        for start in range(0, len(tokens), TOKEN_BLOCK):
            block = tokens[start : start + TOKEN_BLOCK]
            x = lane.normed[block].to(self.device)
            if not shown:
                self.show(lane, (gate.spec, up.spec), xid, block, x)
            inner = swiglu(lane.product(gate, x), lane.product(up, x))  # [t, F]
            self.show(lane, (down.spec,), xid, block, inner)
            y = lane.product(down, inner)  # [t, D]
            lane.refuse_infinite(y, place, f"blk.{bid}.ffn_", xid=xid)
            if weights is not None:
                y = y.float() * weights[start : start + TOKEN_BLOCK].to(y.device)
            lane.add(block, y)
        lane.release(gate, up)
        return down

    def output(self, on_logits: OnLogits | None, first: int, *, observe: bool) -> None:
        """The final norm and, if they are wanted, the logits, always in float32."""
        if on_logits is None and not observe:
            return
        norms = [lane.vector("output_norm.weight") for lane in self.lanes]
        heads = [lane.tied or lane.stored("output.weight") for lane in self.lanes]
        for lane in self.lanes:
            lane.normed = lane.normed.new_empty(0)  # makes room for logits
        n_scored = self.n_ctx - first
        n_bytes = sum(4 * n_scored * head.spec.n_row for head in heads)  # of a chunk's logits
        n_group = max(1, min(LOGIT_BYTES // n_bytes, MAX_GROUP)) if on_logits is not None else MAX_GROUP
        for group, tokens in enumerate(_blocks(self.places, n_group * self.n_ctx)):
            logits = []
            for lane, norm, head in zip(self.lanes, norms, heads, strict=True):
                x = lane.hidden_norm(tokens, norm)
                lane.refuse_infinite(x, "the output of the model", "output_norm.")
                if observe and lane.tied is None:
                    self.show(lane, (head.spec,), 0, tokens, x)
                if on_logits is not None:
                    scored = x.view(-1, self.n_ctx, x.shape[-1])[:, first:].flatten(0, 1)
                    y = lane.logits(head, scored)
                    lane.refuse_infinite(y, "the output of the model", head.spec.name)
                    logits.append(y.view(-1, n_scored, head.spec.n_row))
            if on_logits is not None:
                with self.timings.measure("comparing"):
                    for chunk in range(len(logits[0])):
                        on_logits(group * n_group + chunk, [one[chunk] for one in logits])
        for lane, head in zip(self.lanes, heads, strict=True):
            if lane.tied is None:
                lane.release(head)

    def finish(self) -> None:
        """Pass on what this pass had no use for, so that a reader of weights has seen them all.

        That is more where an earlier pass has done the first layers: what the observers know of them is complete.
        """
        lane = self.lanes[0]
        if self.on_weights is not None:
            for spec in lane.specs.values():
                if spec.name not in lane.taken:
                    for xid in range(spec.n_matrix):
                        lane.release(lane.stored(spec.name, xid))
        self.progress(Progress("calculating", self.timings.n_token, self.timings.n_token, unit="tokens"))


def _blocks(rows: Tensor, size: int) -> Iterator[Tensor]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
