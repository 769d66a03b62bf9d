"""The feed-forward half of a layer: the router, and one expert after the other over the tokens routed to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calibration.forward import layers
from calibration.forward.audience import Audience
from calibration.forward.parts import DENSE, EXPERTS, FEED_FORWARD_NORM, ROUTER
from calibration.forward.stored import Matrix
from calibration.forward.stream_state import StreamState, token_groups
from calibration.forward.streams import Given
from calibration.forward.timings import Stage

__all__ = ["Share", "feed_forward", "shares"]


@dataclass(frozen=True)
class Share:
    """The tokens int64 [t] that go to one expert, and the expert's weights f32 [t, 1] in the sum.

    A dense layer gets all tokens, without weights.
    """

    tokens: Tensor
    weights: Tensor | None = None

    def groups(self) -> Iterator[Share]:
        """The share in groups of tokens that go through a matrix at once."""
        start = 0
        for tokens in token_groups(self.tokens):
            end = start + len(tokens)
            yield Share(tokens, None if self.weights is None else self.weights[start:end])
            start = end


def feed_forward(states: Sequence[StreamState], audience: Audience, bid: int, *, hold_down: bool) -> None:
    """hidden += feed-forward(norm(hidden)) of layer `bid`, in all streams expert by expert.

    The inputs of gate and up are shown as soon as the tokens are routed, those of down when its expert computes them.
    With `hold_down` the down projections of the first stream are handed out when the inputs of all of them have been
    shown; what the observers know of one they give away before the next expert, as without.
    """
    routed = [_norm_and_route(state, audience, bid) for state in states]
    for state, of_experts in zip(states, routed, strict=True):
        for xid, share in enumerate(of_experts):
            _show_gate_and_up(state, audience, bid, xid, share)
    held: list[tuple[Matrix, Given]] = []
    for xid in range(len(routed[0])):
        for state, of_experts in zip(states, routed, strict=True):
            down = _expert(state, audience, bid, xid, of_experts[xid])
            if hold_down and state.index == 0:
                held.append((down, audience.popped(state, down)))
            else:
                audience.hand_out(state, down)
    for down, given in held:
        audience.hand_out_with(states[0], down, given)


def _norm_and_route(state: StreamState, audience: Audience, bid: int) -> list[Share]:
    """Fill `state.normed`; returns the share of each expert, or the single share of a dense layer."""
    norm = audience.vector(state, FEED_FORWARD_NORM.name(bid))
    name = ROUTER.name(bid)
    if name not in state.specs:
        for tokens, x in state.normed_groups(norm):
            state.refuse_infinite(x, f"the feed-forward of layer {bid}", f"blk.{bid}.ffn_norm.")
            state.normed[tokens] = x.to(state.normed.device, state.normed.dtype)
        return [Share(torch.arange(len(state.hidden)))]
    matrix = state.read(name)
    router = state.decoded(matrix, torch.float32)
    ids, weights = [], []
    for tokens, x in state.normed_groups(norm):
        state.normed[tokens] = x.to(state.normed.device, state.normed.dtype)
        audience.show(state, (matrix.spec,), 0, tokens, x)
        with state.timings.measure(Stage.PRODUCTS):
            routing = layers.route(x, router, state.hparams.n_expert_used)
        place = f"the router of layer {bid}"
        state.refuse_infinite(routing.probs, place, f"blk.{bid}.ffn_norm.", f"blk.{bid}.ffn_gate_inp.")
        audience.show_routing(state, bid, tokens, routing)
        ids.append(routing.ids.cpu())
        weights.append(routing.weights.cpu())
    audience.hand_out(state, matrix)
    return shares(torch.cat(ids), torch.cat(weights), state.hparams.n_expert)


def shares(ids: Tensor, weights: Tensor, n_expert: int) -> list[Share]:
    """The share of each expert, of the experts `ids` int64 [T, K] and their weights f32 [T, K]."""
    of_experts = []
    for xid in range(n_expert):
        tokens, slots = (ids == xid).nonzero(as_tuple=True)
        of_experts.append(Share(tokens, weights[tokens, slots, None]))
    return of_experts


def _show_gate_and_up(state: StreamState, audience: Audience, bid: int, xid: int, share: Share) -> None:
    gate, up, _ = (DENSE if share.weights is None else EXPERTS).names(bid)
    specs = [state.spec(gate), state.spec(up)]
    for group in share.groups():
        audience.show(state, specs, xid, group.tokens, state.normed_rows(group.tokens))


def _expert(state: StreamState, audience: Audience, bid: int, xid: int, share: Share) -> Matrix:
    """hidden += weights * expert(normed) of the tokens in its share; returns down, which is not yet handed out."""
    is_dense = share.weights is None
    place = f"the feed-forward of layer {bid}" if is_dense else f"expert {xid} of layer {bid}"
    matrices = [state.read(name, xid) for name in (DENSE if is_dense else EXPERTS).names(bid)]
    gate, up, down = (audience.product(state, matrix) for matrix in matrices)
    for group in share.groups():
        x = state.normed_rows(group.tokens)
        y = layers.expert(x, gate, up, audience.shown(down, state, matrices[2], group.tokens))
        state.refuse_infinite(y, place, f"blk.{bid}.ffn_", xid=xid)
        if group.weights is not None:
            y = y.float() * group.weights.to(y.device)
        state.add(group.tokens, y)
    audience.hand_out(state, *matrices[:2])
    return matrices[2]
