"""The kinds of routers, attention, norms and gates that families have, against the same thing written out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from calibration.forward import layers
from calibration.forward.attention import Fused, Grouped, attend
from calibration.forward.graph import ModelGraph
from calibration.forward.layers import Linear, Norm
from calibration.forward.rope import Rope, make_rope, rotate
from calibration.forward.routing import Router
from quantize.exceptions import CheckpointError
from quantize.families.graph import Gating
from quantize.hparams import Hparams

T, D, E = 40, 16, 8
HPARAMS = Hparams("llama", 4, 64, D, 32, 4, 2, 32, 8, 1e4, 1e-5, n_expert=E, n_expert_used=2)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- routers ---------------------------------------------------------------------------------------------------------


def best_of(row: list[float], ids: Iterable[int]) -> list[int]:
    return sorted(ids, key=lambda xid: -row[xid])


def chosen_by(scores: Tensor, n_used: int) -> list[list[int]]:
    return [best_of(row, range(E))[:n_used] for row in scores.tolist()]


def test_sigmoid_router_with_a_selection_bias() -> None:
    x, weight, bias = numbers(T, D), numbers(E, D, seed=1), 0.3 * numbers(E, seed=2)
    routing = Router(weight, 3, gating="sigmoid", selection_bias=bias, scale=2.5)(x)
    probs = 1 / (1 + torch.exp(-(x @ weight.T)))
    assert routing.ids.tolist() == chosen_by(probs + bias, 3) != chosen_by(probs, 3)
    for row, ids, weights in zip(probs, routing.ids, routing.weights, strict=True):
        torch.testing.assert_close(weights, 2.5 * row[ids] / row[ids].sum())
    torch.testing.assert_close(routing.probs.sum(-1), torch.ones(T))


def test_weights_need_not_be_normalized() -> None:
    x, weight = numbers(T, D), numbers(E, D, seed=1)
    plain, normalized = Router(weight, 2, is_normalized=False)(x), Router(weight, 2)(x)
    probs = (x @ weight.T).softmax(-1)
    torch.testing.assert_close(plain.weights, probs.gather(-1, plain.ids))
    torch.testing.assert_close(normalized.weights, plain.weights / plain.weights.sum(-1, keepdim=True))


def test_softmax_over_the_chosen_experts() -> None:
    x, weight, bias = numbers(T, D), numbers(E, D, seed=1), numbers(E, seed=2)
    routing = Router(weight, 3, bias=bias, gating="softmax_weight", is_normalized=False)(x)
    logits = x @ weight.T + bias
    assert routing.ids.tolist() == chosen_by(logits, 3)
    torch.testing.assert_close(routing.weights, logits.gather(-1, routing.ids).softmax(-1))
    torch.testing.assert_close(routing.probs, logits.softmax(-1))


def test_experts_of_the_best_groups_only() -> None:
    """Deepseek-V3: the score of a group is the sum of its two best, and two of four groups are asked."""
    x, weight, bias = numbers(T, D), numbers(E, D, seed=1), 0.3 * numbers(E, seed=2)
    router = Router(weight, 3, gating="sigmoid", selection_bias=bias, n_groups=4, n_group_used=2)
    scores = (x @ weight.T).sigmoid() + bias
    for row, ids in zip(scores.tolist(), router(x).ids.tolist(), strict=True):
        groups = best_of([row[2 * group] + row[2 * group + 1] for group in range(4)], range(4))[:2]
        allowed = [xid for xid in range(E) if xid // 2 in groups]
        assert ids == best_of(row, allowed)[:3]
    assert router(x).ids.tolist() != replace(router, n_groups=0)(x).ids.tolist()


def test_equal_experts_with_unequal_biases_are_not_equal() -> None:
    weight, bias = numbers(1, D).repeat(4, 1), torch.tensor([0.0, 0.0, 1.0, 0.0])
    routing = Router(weight, 2, bias=bias)(numbers(T, D, seed=1))
    assert (routing.ids == torch.tensor([2, 0])).all()


@pytest.mark.parametrize("gating", ["softmax", "sigmoid", "softmax_weight"])
def test_gradients_flow_through_every_router(gating: Gating) -> None:
    weight, bias = numbers(E, D, seed=1), 0.1 * numbers(E, seed=2)
    router = Router(weight, 3, gating=gating, selection_bias=bias, scale=1.5)
    ours, theirs = numbers(T, D).requires_grad_(), numbers(T, D).requires_grad_()
    routing, direction = router(ours), numbers(T, 3, seed=3)
    logits = theirs @ weight.T
    of_all = {"softmax": logits.exp(), "sigmoid": 1 / (1 + (-logits).exp()), "softmax_weight": logits.exp()}
    chosen = of_all[gating].gather(-1, routing.ids)
    wanted = 1.5 * chosen / chosen.sum(-1, keepdim=True)
    (found,) = torch.autograd.grad((routing.weights * direction).sum(), ours)
    torch.testing.assert_close(found, torch.autograd.grad((wanted * direction).sum(), theirs)[0])


# --- norms and gates -------------------------------------------------------------------------------------------------


def test_layer_norms_are_torchs() -> None:
    x, weight, bias = numbers(T, D), numbers(D, seed=1), numbers(D, seed=2)
    found = Norm(weight, 1e-5, bias, is_centred=True)(x)
    torch.testing.assert_close(found, torch.nn.functional.layer_norm(x, (D,), weight, bias, 1e-5))
    rms = Norm(weight, 1e-5)(x)
    torch.testing.assert_close(rms, torch.nn.functional.rms_norm(x, (D,), weight, 1e-5))


def test_clamped_gates_are_those_of_gpt_oss() -> None:
    x, gate, up = 4 * numbers(T, D), Linear(numbers(8, D, seed=1)), Linear(numbers(8, D, seed=2))
    g, u = gate(x), up(x)
    assert g.max() > 7 and u.abs().max() > 7
    g, u = g.clamp(max=7.0), u.clamp(-7.0, 7.0)
    wanted = g / (1 + torch.exp(-1.702 * g)) * (u + 1)
    torch.testing.assert_close(layers.gated(x, gate, up, activation="clamped"), wanted)


def test_weights_of_shared_experts() -> None:
    x, gate = numbers(T, D), numbers(D, seed=1)
    torch.testing.assert_close(
        layers.shared_weights(x, gate)[:, 0],
        torch.tensor([1 / (1 + math.exp(-float(row @ gate))) for row in x]),
    )


# --- attention -------------------------------------------------------------------------------------------------------


def written_out(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int, sinks: Tensor | None) -> Tensor:
    """Attention token by token and head by head; q [C, P, H, d], k and v [C, P, G, d]."""
    mixed = torch.zeros(*q.shape[:3], v.shape[3])
    n_group = q.shape[2] // k.shape[2]
    for chunk in range(q.shape[0]):
        for place in range(q.shape[1]):
            first = max(0, place - window + 1) if window else 0
            for head in range(q.shape[2]):
                keys = k[chunk, first : place + 1, head // n_group]
                logits = keys @ q[chunk, place, head] * scale
                exps = torch.exp(logits)
                total = exps.sum() + (0.0 if sinks is None else torch.exp(sinks[head]))
                mixed[chunk, place, head] = exps / total @ v[chunk, first : place + 1, head // n_group]
    return mixed


@pytest.mark.parametrize("window", [0, 1, 5, 12, 100])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_windows_and_sinks(window: int, with_sinks: bool) -> None:
    q, k, v = numbers(2, 12, 4, 8), numbers(2, 12, 2, 8, seed=1), numbers(2, 12, 2, 6, seed=2)
    sinks = numbers(4, seed=3) if with_sinks else None
    found = attend(q, k, v, 0.4, window=window, sinks=sinks)
    torch.testing.assert_close(found, written_out(q, k, v, 0.4, window, sinks), rtol=1e-4, atol=1e-5)


def products(names: tuple[str, ...], *sizes: tuple[int, int]) -> dict[str, Linear]:
    return {
        name: Linear(0.3 * numbers(*size, seed=seed))
        for seed, (name, size) in enumerate(zip(names, sizes, strict=True))
    }


def rope_of(**changes: object) -> Rope:
    return make_rope(replace(HPARAMS, **changes), 10)  # type: ignore[arg-type]


def grouped(rope: Rope, **changes: object) -> Grouped:
    plain = Grouped(rope, n_head=4, n_head_kv=2, head_dim=8, head_dim_v=8, scale=8**-0.5)
    return replace(plain, **changes)  # type: ignore[arg-type]


MATRICES = ((32, D), (16, D), (16, D), (D, 32))


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("of_row", [False, True])
def test_norms_of_queries_and_keys(behind: bool, of_row: bool) -> None:
    rope = rope_of(rope_neox=True)
    norms = [Norm(1 + 0.3 * numbers(n, seed=n), 1e-5) for n in ((32, 16) if of_row else (8, 8))]
    if behind and of_row:
        return  # llama.cpp has no such graph
    attention = grouped(rope, q_norm=norms[0], k_norm=norms[1], norm_behind_rotation=behind)
    of_names, x = products(attention.matrices, *MATRICES), numbers(20, D, seed=9)
    q, k, v, o = of_names.values()

    def turned(y: Tensor, norm: Norm, n_head: int) -> Tensor:
        y = norm(y) if of_row else y
        y = y.view(2, 10, n_head, 8)
        if of_row:
            return rotate(y, rope)
        return norm(rotate(y, rope)) if behind else rotate(norm(y), rope)

    mixed = attend(turned(q(x), norms[0], 4), turned(k(x), norms[1], 2), v(x).view(2, 10, 2, 8), 8**-0.5)
    torch.testing.assert_close(attention(x, of_names), o(mixed.reshape(20, 32)))


def test_only_the_first_dimensions_of_a_head_may_be_rotated() -> None:
    rope, x = rope_of(rope_neox=True, n_rot=4), numbers(1, 10, 2, 8)
    found = rotate(x, rope)
    torch.testing.assert_close(found[..., 4:], x[..., 4:])
    for place in range(10):
        for pair in range(2):
            angle = place * 1e4 ** -(2 * pair / 4)
            a, b = x[0, place, :, pair], x[0, place, :, pair + 2]
            torch.testing.assert_close(found[0, place, :, pair], a * math.cos(angle) - b * math.sin(angle))
            torch.testing.assert_close(
                found[0, place, :, pair + 2], a * math.sin(angle) + b * math.cos(angle)
            )


def test_one_matrix_may_hold_queries_keys_and_values() -> None:
    rope = rope_of()
    parted = grouped(rope, clamp=0.5)
    of_names, x = products(parted.matrices, *MATRICES), numbers(20, D, seed=9)
    q, k, v, o = of_names.values()
    assert q(x).abs().max() > 0.5
    fused = Fused(rope, n_head=4, n_head_kv=2, head_dim=8, head_dim_v=8, scale=8**-0.5, clamp=0.5)
    together = {"attn_qkv": Linear(torch.cat((q.weight, k.weight, v.weight))), "attn_output": o}
    assert fused.matrices == ("attn_qkv", "attn_output")
    torch.testing.assert_close(fused(x, together), parted(x, of_names))
    clamped = [y.clamp(-0.5, 0.5).view(2, 10, -1, 8) for y in (q(x), k(x), v(x))]
    mixed = attend(rotate(clamped[0], rope), rotate(clamped[1], rope), clamped[2], 8**-0.5)
    torch.testing.assert_close(parted(x, of_names), o(mixed.reshape(20, 32)))


# --- the graph of a model --------------------------------------------------------------------------------------------


def test_which_layers_see_the_window() -> None:
    graph = ModelGraph(replace(HPARAMS, n_swa=5), set())
    rope = rope_of()

    def windows(every: int, first: bool) -> list[int]:
        graph.graph = replace(graph.graph, window_every=every, window_first=first)
        return [graph.attention(bid, rope, torch.zeros).window for bid in range(4)]  # type: ignore[arg-type]

    assert windows(0, False) == [0, 0, 0, 0]
    assert windows(2, False) == [5, 0, 5, 0]
    assert windows(2, True) == [0, 5, 0, 5]
    assert windows(4, False) == [5, 5, 5, 0]


def test_how_a_router_is_told() -> None:
    graph = ModelGraph(
        replace(HPARAMS, expert_gating_func=2, expert_weights_scale=2.0, n_expert_groups=4, n_group_used=2),
        {"blk.0.exp_probs_b.bias"},
    )
    weight = numbers(E, D)
    fixed = graph.router(0, weight, lambda name: torch.ones(E))
    assert (fixed.gating, fixed.is_normalized, fixed.scale) == ("softmax", True, 0.0)
    assert fixed.bias is None and fixed.selection_bias is not None and fixed.n_groups == 4
    graph.graph = replace(graph.graph, gating=None, normalized=None, scaled=True)
    asked = graph.router(0, weight, lambda name: torch.ones(E))
    assert (asked.gating, asked.is_normalized, asked.scale) == ("sigmoid", False, 2.0)


def test_an_unknown_architecture_has_no_graph() -> None:
    with pytest.raises(CheckpointError, match=r"does not know arch 'rwkv7'; known: .*llama"):
        ModelGraph(replace(HPARAMS, arch="rwkv7"), set(), label="m.gguf")
