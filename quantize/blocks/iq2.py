"""The search for the scales and the codes of IQ2_XXS, IQ2_XS and IQ2_S: value = scale * (2 * level + 1), with a sign.

A sub-block of 16 or 32 weights is split into magnitudes and signs. A number of scales is tried; at each, the groups of
8 magnitudes are rounded to levels 0..2 and snapped onto the codebook (`neighbours`), and what is best by least squares
is kept. Then groups that were not in the codebook are rounded once more, with the best scale.

In IQ2_XXS and IQ2_XS a group has seven signs, the eighth makes their number even: where it does not, the weight that
matters least changes its sign, so that its magnitude is negative.

Source: ggml-quants.c, quantize_row_iq2_xxs_impl, quantize_row_iq2_xs_impl, quantize_row_iq2_s_impl.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quantize.blocks.error_weights import load_importance, spread
from quantize.blocks.jit import inlined, kernel, leaf
from quantize.blocks.lanes import HALF, MAGIC, MAGIC_FIELD, ONE, ZERO
from quantize.blocks.magnitudes import find_max, fold, multiply, weigh_plain
from quantize.blocks.neighbour_lines import GROUP
from quantize.blocks.neighbour_lists import Lists
from quantize.blocks.neighbours import SnapRoom, carry_over, snap, snap_room
from quantize.blocks.qp import N_STATE as N_QP_STATE
from quantize.blocks.qp import make_qp
from quantize.blocks.tiles import LANES, aligned_floats
from quantize.tensors import Array

QK_K = 256
N_GROUPS = QK_K // GROUP
TOP = np.float32(5)  # the magnitude of the largest level

# rows of the state of a search, [N_STATE * LANES]
MAX, SCALE, BEST, SUM_QX, SUM_Q2, BETTER, AGAIN = (r * LANES for r in range(7))
N_STATE = 7


class Search(NamedTuple):
    """What a type's search does."""

    n: int  # weights of a sub-block
    reach: (
        int  # scales are tried for which the largest weight is (50 - reach) / 10 .. (50 + reach) / 10 levels
    )
    even_signs: bool
    from_qp: (
        bool  # whether make_qp_quants finds the scale in the middle, and all groups are rounded once more
    )
    eps: np.float32  # a sub-block without larger magnitudes is zero


class Room(NamedTuple):
    """What a search works on, for a sub-block of all lanes."""

    x: Array  # float32 [n * LANES]: magnitudes
    w: Array
    wx: Array
    root: Array
    state: Array
    ids: Array  # float32 [n_scales, LANES]
    scales: Array  # float32 [n_scales, LANES]
    rounded: Array  # uint16 [n_scales, n_groups, LANES]
    snapped: Array
    scale: Array  # float32 [1, LANES]: the best
    anew: Array  # uint16 [1, n_groups, LANES]: rounded with it
    best: Array  # uint16 [1, n_groups, LANES]
    best_rounded: Array  # uint16 [n_groups, LANES]
    snap: SnapRoom
    qp_codes: Array
    qp_state: Array


@kernel
def _room(search: Search, lists: Lists) -> Room:
    n, n_groups, n_scales = search.n, search.n // GROUP, 2 * search.reach + 1
    size = n * LANES
    return Room(
        aligned_floats(size),
        aligned_floats(size),
        aligned_floats(size),
        aligned_floats(size),
        aligned_floats(N_STATE * LANES),
        aligned_floats(n_scales * LANES).reshape(n_scales, LANES),
        aligned_floats(n_scales * LANES).reshape(n_scales, LANES),
        np.empty((n_scales, n_groups, LANES), np.uint16),
        np.empty((n_scales, n_groups, LANES), np.uint16),
        aligned_floats(LANES).reshape(1, LANES),
        np.empty((1, n_groups, LANES), np.uint16),
        np.empty((1, n_groups, LANES), np.uint16),
        np.empty((n_groups, LANES), np.uint16),
        snap_room(n_scales, n_groups, lists),
        aligned_floats(size),
        aligned_floats(N_QP_STATE * LANES),
    )


@kernel
def fit(
    tiles: Array,
    importance: Array,
    n_rows: int,
    sigma2: Array,
    search: Search,
    lists: Lists,
    scales: Array,
    patterns: Array,
    signs: Array,
) -> None:
    """Fit all sub-blocks of tiles, float32 [n_tiles, 256 * LANES].

    `importance` and `n_rows` are those of a `TileGuide`; without importances the weights are 0.25 * sigma2 + x * x.
    Leaves scales, float32 [n_tiles, n_sub, LANES], not negative; patterns in the codebook, uint16 [n_tiles, 32, LANES];
    and signs, uint8 like these: bit k is set where weight k is negative.
    """
    room = _room(search, lists)
    n, n_groups = search.n, search.n // GROUP
    for t in range(len(tiles)):
        for j in range(QK_K // n):
            x = tiles[t][j * n * LANES : (j + 1) * n * LANES]
            if importance.size:
                load_importance(importance, n_rows, t, j * n, n, room.w)
                spread(n, x, sigma2[t], room.w)
            else:
                weigh_plain(n, x, sigma2[t], room.w)
            sub_patterns = patterns[t][j * n_groups : (j + 1) * n_groups]
            sub_signs = signs[t][j * n_groups : (j + 1) * n_groups]
            for g in range(n_groups):
                part = slice(g * GROUP * LANES, (g + 1) * GROUP * LANES)
                fold(x[part], room.w[part], search.even_signs, room.x[part], sub_signs[g])
            multiply(room.x, room.w, room.wx, room.root)
            _begin(search, room)
            snap(room.rounded, room.scales, room.x, room.root, lists, room.snap, room.snapped)
            _judge(search, room)
            snap(room.anew, room.scale, room.x, room.root, lists, room.snap, room.best)
            _finish(search, room, scales[t, j], sub_patterns, sub_signs)


@leaf
def _begin(search: Search, room: Room) -> None:
    """The scales to try, and the patterns that groups have at them."""
    state = room.state
    find_max(search.n, room.x, state[MAX : MAX + LANES])
    if search.from_qp:
        scale = state[SCALE : SCALE + LANES]
        make_qp(search.n, np.float32(4), room.x, room.w, room.qp_codes, scale, room.qp_state)
        for i in range(LANES):
            is_zero = state[MAX + i] < search.eps
            state[MAX + i] = ZERO if is_zero else state[SCALE + i] * np.float32(3)
    else:
        for i in range(LANES):
            state[SCALE + i] = state[MAX + i] / TOP
    for s in range(2 * search.reach + 1):
        step = np.float32(TOP + np.float32(s - search.reach) * np.float32(0.1))
        ids, scales = room.ids[s], room.scales[s]
        for i in range(LANES):
            ids[i] = step / state[MAX + i]
            scales[i] = ONE / ids[i]
        _round(ids, room.x, room.rounded[s])


@leaf
def _round(ids: Array, x: Array, patterns: Array) -> None:
    for g in range(len(patterns)):
        _round_group(ids, x[g * GROUP * LANES : (g + 1) * GROUP * LANES], patterns[g])


@leaf
def _round_group(ids: Array, x: Array, patterns: Array) -> None:
    for i in range(LANES):
        pattern = np.int32(0)
        for k in range(GROUP):
            pattern |= _level(HALF * (ids[i] * x[k * LANES + i] - ONE)) << np.int32(2 * k)
        patterns[i] = np.uint16(pattern)


@inlined
def _level(v: np.float32) -> np.int32:
    """ggml's `nearest_int`, clipped to 0..2."""
    level = np.int32(np.int32(np.float32(v + MAGIC).view(np.int32) & MAGIC_FIELD) - np.int32(0x400000))
    level = level if level > np.int32(0) else np.int32(0)
    return level if level < np.int32(2) else np.int32(2)


@leaf
def _sums(patterns: Array, wx: Array, w: Array, state: Array) -> None:
    """The two sums of a candidate."""
    for i in range(LANES):
        state[SUM_QX + i] = ZERO
        state[SUM_Q2 + i] = ZERO
    for g in range(len(patterns)):
        part = slice(g * GROUP * LANES, (g + 1) * GROUP * LANES)
        _add_sums(patterns[g], wx[part], w[part], state)


@leaf
def _add_sums(patterns: Array, wx: Array, w: Array, state: Array) -> None:
    for i in range(LANES):
        pattern = np.int32(patterns[i])
        sum_qx, sum_q2 = state[SUM_QX + i], state[SUM_Q2 + i]
        for k in range(GROUP):
            q = np.float32(np.int32(pattern >> np.int32(2 * k) & np.int32(3)) * np.int32(2) + np.int32(1))
            sum_qx += wx[k * LANES + i] * q
            sum_q2 += w[k * LANES + i] * q * q
        state[SUM_QX + i] = sum_qx
        state[SUM_Q2 + i] = sum_q2


@leaf
def _keep_better(state: Array) -> None:
    for i in range(LANES):
        sum_qx, sum_q2, best, best_scale = (
            state[SUM_QX + i],
            state[SUM_Q2 + i],
            state[BEST + i],
            state[SCALE + i],
        )
        scale = sum_qx / sum_q2
        this = scale * sum_qx
        better = (sum_q2 > ZERO) & (sum_qx * sum_qx > best * sum_q2)
        state[SCALE + i] = scale if better else best_scale
        state[BEST + i] = this if better else best
        state[BETTER + i] = ONE if better else ZERO


@leaf
def _keep_patterns(patterns: Array, state: Array, best: Array) -> None:
    for i in range(LANES):
        pattern, kept = np.int32(patterns[i]), np.int32(best[i])
        best[i] = np.uint16(pattern if state[BETTER + i] > ZERO else kept)


@leaf
def _judge(search: Search, room: Room) -> None:
    """Find the best scale and its patterns, `best`, and what is rounded once more with that scale.

    These are the groups that were not in the codebook, or all after make_qp_quants. They go to `anew`, the others
    as they are; AGAIN counts them.
    """
    state, best, best_rounded, anew = room.state, room.best[0], room.best_rounded, room.anew[0]
    n_groups = len(best)
    for i in range(LANES):
        state[BEST + i] = ZERO
        state[AGAIN + i] = ZERO
    for g in range(n_groups):
        for i in range(LANES):
            best[g, i] = np.uint16(0)
            best_rounded[g, i] = np.uint16(0)
    for s in range(2 * search.reach + 1):
        _sums(room.snapped[s], room.wx, room.w, state)
        _keep_better(state)
        for g in range(n_groups):
            _keep_patterns(room.rounded[s, g], state, best_rounded[g])
            _keep_patterns(room.snapped[s, g], state, best[g])
    ids, scale = room.ids[0], room.scale[0]
    for i in range(LANES):
        ids[i] = ONE / state[SCALE + i]
        scale[i] = state[SCALE + i]
    _round(ids, room.x, anew)
    carry_over(room.rounded, room.snapped, room.scales, room.snap.doubtful, scale, anew)
    for g in range(n_groups):
        for i in range(LANES):
            is_again = (best[g, i] != best_rounded[g, i]) | search.from_qp
            is_again &= state[SCALE + i] > ZERO
            anew[g, i] = anew[g, i] if is_again else best[g, i]
            state[AGAIN + i] += ONE if is_again else ZERO


@leaf
def _finish(search: Search, room: Room, scale: Array, patterns: Array, signs: Array) -> None:
    """The scale for the final patterns, `best`; a negative one turns all signs.

    Sub-blocks of nothing but zeros are zero throughout.
    """
    mask = np.uint8(127) if search.even_signs else np.uint8(255)
    state = room.state
    _sums(room.best[0], room.wx, room.w, state)
    for i in range(LANES):
        sum_qx, sum_q2 = state[SUM_QX + i], state[SUM_Q2 + i]
        ratio = sum_qx / sum_q2
        state[SCALE + i] = ratio if (sum_q2 > ZERO) & (state[AGAIN + i] > ZERO) else state[SCALE + i]
    for g in range(len(patterns)):
        for i in range(LANES):
            is_zero = state[MAX + i] <= ZERO if search.from_qp else state[MAX + i] < search.eps
            turned = signs[g, i] ^ mask if state[SCALE + i] < ZERO else signs[g, i]
            signs[g, i] = np.uint8(0) if is_zero else turned
            patterns[g, i] = np.uint16(0) if is_zero else room.best[0, g, i]
    for i in range(LANES):
        is_zero = state[MAX + i] <= ZERO if search.from_qp else state[MAX + i] < search.eps
        scale[i] = ZERO if is_zero else abs(state[SCALE + i])
