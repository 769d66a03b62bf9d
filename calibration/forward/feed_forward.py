"""The feed-forward half of a layer: the router, and one expert after the other over the tokens routed to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from calibration.forward import layers
from calibration.forward.audience import Audience
from calibration.forward.graph import Unit
from calibration.forward.routing import Router
from calibration.forward.stored import Matrix
from calibration.forward.stream_state import TOKEN_GROUP, StreamState, token_groups
from calibration.forward.streams import Given
from calibration.forward.timings import Stage

__all__ = ["Choice", "Share", "feed_forward", "shares"]

BRIEF = 2 * TOKEN_GROUP
"""Tokens of an expert for which float32 decodes its matrices in pieces; with more that takes longer than at once."""


@dataclass(frozen=True)
class Share:
    """The tokens int64 [t] that go to one unit of a layer, and its weights f32 [t, 1] in the sum.

    A dense layer gets all tokens, without weights; so do shared experts that no gate weighs.
    """

    unit: Unit
    tokens: Tensor
    weights: Tensor | None = None

    def groups(self) -> Iterator[Share]:
        """The share in groups of tokens that go through a matrix at once."""
        start = 0
        for tokens in token_groups(self.tokens):
            end = start + len(tokens)
            weights = None if self.weights is None else self.weights[start:end]
            yield replace(self, tokens=tokens, weights=weights)
            start = end


@dataclass(frozen=True)
class Choice:
    """How the units of a layer with experts are weighed: by its router, and by the gates f32 [D] of shared experts."""

    router: Router
    gates: Mapping[Unit, Tensor]

    def shared(self, x: Tensor) -> dict[Unit, Tensor]:
        """The weights f32 [T, 1] of the shared experts that a gate weighs, from normed hidden states x [T, D]."""
        return {unit: layers.shared_weights(x, gate) for unit, gate in self.gates.items()}


def feed_forward(states: Sequence[StreamState], audience: Audience, bid: int, *, hold_down: bool) -> None:
    """hidden += feed-forward(norm(hidden)) of layer `bid`, in all streams expert by expert.

    The inputs of gate and up are shown as soon as the tokens are routed, those of down when its expert computes them.
    With `hold_down` the down projections of the first stream are handed out when the inputs of all of them have been
    shown; what the observers know of one they give away before the next expert, as without.
    """
    routed = [_norm_and_route(state, audience, bid) for state in states]
    for state, of_units in zip(states, routed, strict=True):
        for share in of_units:
            _show_gate_and_up(state, audience, share)
    held: list[tuple[Matrix, Given]] = []
    for of_streams in zip(*routed, strict=True):
        for state, share in zip(states, of_streams, strict=True):
            down = _expert(state, audience, share)
            if hold_down and state.index == 0:
                held.append((down, audience.popped(state, down)))
            else:
                audience.hand_out(state, down)
            del down  # its bytes would stay beside those of the next expert
    for down, given in held:
        audience.hand_out_with(states[0], down, given)


def _norm_and_route(state: StreamState, audience: Audience, bid: int) -> list[Share]:
    """Fill `state.normed`; returns the share of each unit of the layer, in their order."""
    graph, vector = state.graph, partial(audience.vector, state)
    norm_name = graph.feed_forward_norm(bid)
    norm, norm_stem = graph.norm(norm_name, vector), norm_name.removesuffix("weight")
    name, units = graph.router_name(bid), graph.units(bid)
    if name is None:
        for tokens, x in state.normed_groups(norm):
            state.refuse_infinite(x, units[0].place, norm_stem)
            state.normed[tokens] = x.to(state.normed.device, state.normed.dtype)
        return [Share(unit, torch.arange(len(state.hidden))) for unit in units]
    matrix = state.read(name)
    gates = {unit: state.read(unit.gate_name) for unit in units if unit.gate_name}
    choice = Choice(
        graph.router(bid, state.decoded(matrix, torch.float32), vector),
        {unit: state.decoded(gate, torch.float32).reshape(-1) for unit, gate in gates.items()},
    )
    ids, weights = [], []
    shared: dict[Unit, list[Tensor]] = {unit: [] for unit in gates}
    for tokens, x in state.normed_groups(norm):
        state.normed[tokens] = x.to(state.normed.device, state.normed.dtype)
        audience.show(state, [matrix.spec, *(gate.spec for gate in gates.values())], 0, tokens, x)
        with state.timings.measure(Stage.PRODUCTS):
            routing = choice.router(x)
        place = f"the router of layer {bid}"
        state.refuse_infinite(
            routing.probs, place, norm_stem, f"blk.{bid}.ffn_gate_inp", f"blk.{bid}.exp_probs"
        )
        audience.show_routing(state, bid, tokens, routing)
        ids.append(routing.ids.cpu())
        weights.append(routing.weights.cpu())
        for unit, of_gate in choice.shared(x).items():
            shared[unit].append(of_gate.cpu())
    audience.hand_out(state, matrix, *gates.values())
    of_shared = {unit: torch.cat(parts) for unit, parts in shared.items()}
    return shares(units, torch.cat(ids), torch.cat(weights), of_shared)


def shares(
    units: Sequence[Unit], ids: Tensor, weights: Tensor, of_shared: Mapping[Unit, Tensor]
) -> list[Share]:
    """The share of each unit of a layer with experts.

    Args:
        units: experts, and shared ones behind them.
        ids: the experts of each token, int64 [T, K].
        weights: theirs, f32 [T, K].
        of_shared: the weights f32 [T, 1] of shared experts that a gate weighs.
    """
    of_units = []
    for unit in units:
        if unit.kind == "expert":
            tokens, slots = (ids == unit.xid).nonzero(as_tuple=True)
            of_units.append(Share(unit, tokens, weights[tokens, slots, None]))
        else:
            of_units.append(Share(unit, torch.arange(len(ids)), of_shared.get(unit)))
    return of_units


def _show_gate_and_up(state: StreamState, audience: Audience, share: Share) -> None:
    gate, up, _ = share.unit.names
    specs = [state.spec(gate), state.spec(up)]
    for group in share.groups():
        audience.show(state, specs, share.unit.xid, group.tokens, state.normed_rows(group.tokens))


def _expert(state: StreamState, audience: Audience, share: Share) -> Matrix:
    """hidden += weights * expert(normed) of the tokens in its share; returns down, which is not yet handed out."""
    unit, is_brief = share.unit, len(share.tokens) <= BRIEF
    products = []
    for name in unit.names[:2]:
        matrix = state.read(name, unit.xid)
        products.append(audience.product(state, matrix, is_brief=is_brief))
        # All its inputs have been shown: its stored form is given away before the next one is read.
        audience.hand_out(state, matrix)
        matrix.drop()
    gate, up = products
    last = state.read(unit.names[2], unit.xid)
    down = audience.product(state, last, is_brief=is_brief)
    for group in share.groups():
        x = state.normed_rows(group.tokens)
        watched = audience.shown(down, state, last, group.tokens)
        y = layers.expert(x, gate, up, watched, activation=state.graph.activation)
        state.refuse_infinite(y, unit.place, f"blk.{unit.bid}.ffn_", xid=unit.xid)
        if group.weights is not None:
            y = y.float() * group.weights.to(y.device)
        state.add(group.tokens, y)
    return last
