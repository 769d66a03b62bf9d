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
from quantize.blocks.neighbours import GROUP, Lists, SnapRoom, snap, snap_room
from quantize.blocks.qp import N_STATE as N_QP_STATE
from quantize.blocks.qp import make_qp
from quantize.blocks.tiles import LANES, aligned_floats
from quantize.tensors import Array

QK_K = 256
N_GROUPS = QK_K // GROUP
TOP = np.float32(5)  # the magnitude of the largest level
QUARTER = np.float32(0.25)

# rows of the state of a search, [N_STATE * LANES]
MAX, SCALE, BEST, SUM_QX, SUM_Q2 = (r * LANES for r in range(5))
N_STATE = 5


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
    best: Array  # uint16 [1, n_groups, LANES]
    best_rounded: Array
    is_better: Array  # int32 [LANES]
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
        np.empty((1, n_groups, LANES), np.uint16),
        np.empty((1, n_groups, LANES), np.uint16),
        np.empty(LANES, np.int32),
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
                _weigh(n, x, sigma2[t], room.w)
            sub_patterns = patterns[t][j * n_groups : (j + 1) * n_groups]
            sub_signs = signs[t][j * n_groups : (j + 1) * n_groups]
            for g in range(n_groups):
                part = slice(g * GROUP * LANES, (g + 1) * GROUP * LANES)
                _fold(x[part], room.w[part], search.even_signs, room.x[part], sub_signs[g])
            _products(room)
            _fit_sub_block(search, lists, room)
            _finish(search, room, scales[t, j], sub_patterns, sub_signs)


@leaf
def _weigh(n: int, x: Array, sigma2: Array, w: Array) -> None:
    for k in range(n):
        xs, ws = x[k * LANES : (k + 1) * LANES], w[k * LANES : (k + 1) * LANES]
        for i in range(LANES):
            ws[i] = QUARTER * sigma2[i] + xs[i] * xs[i]


@leaf
def _fold(x: Array, w: Array, even_signs: bool, magnitudes: Array, signs: Array) -> None:
    """Magnitudes and signs of a group."""
    for i in range(LANES):
        sign, is_odd, at = np.int32(0), np.int32(0), np.int32(0)
        least = w[i] * x[i] * x[i]
        for k in range(GROUP):
            v = x[k * LANES + i]
            negative = np.int32(1) if v < ZERO else np.int32(0)
            sign |= negative << np.int32(k)
            is_odd ^= negative
            this = w[k * LANES + i] * v * v
            at = np.int32(k) if this < least else at
            least = this if this < least else least
        flipped = np.int32(is_odd << at) if even_signs else np.int32(0)
        sign ^= flipped
        for k in range(GROUP):
            v = x[k * LANES + i]
            magnitudes[k * LANES + i] = -v if sign >> np.int32(k) & np.int32(1) else v
        signs[i] = np.uint8(sign & np.int32(127)) if even_signs else np.uint8(sign)


@leaf
def _products(room: Room) -> None:
    x, w, wx, root = room.x, room.w, room.wx, room.root
    for k in range(x.size):
        wx[k] = w[k] * x[k]
    for k in range(x.size):
        root[k] = np.sqrt(w[k])


@leaf
def _fit_sub_block(search: Search, lists: Lists, room: Room) -> None:
    """The best scale, SCALE, and the patterns `best`; SCALE may be negative."""
    state, n_scales = room.state, 2 * search.reach + 1
    _find_max(search.n, room.x, state)
    if search.from_qp:
        make_qp(
            search.n,
            np.float32(4),
            room.x,
            room.w,
            room.qp_codes,
            state[SCALE : SCALE + LANES],
            room.qp_state,
        )
        for i in range(LANES):
            is_zero = state[MAX + i] < search.eps
            state[MAX + i] = ZERO if is_zero else state[SCALE + i] * np.float32(3)
    else:
        for i in range(LANES):
            state[SCALE + i] = state[MAX + i] / TOP
    for i in range(LANES):
        state[BEST + i] = ZERO
    for g in range(room.best.shape[1]):
        best, best_rounded = room.best[0, g], room.best_rounded[0, g]
        for i in range(LANES):
            best[i] = np.uint16(0)
            best_rounded[i] = np.uint16(0)
    for s in range(n_scales):
        step = np.float32(TOP + np.float32(s - search.reach) * np.float32(0.1))
        ids, scales = room.ids[s], room.scales[s]
        for i in range(LANES):
            ids[i] = step / state[MAX + i]
            scales[i] = ONE / ids[i]
        _round(ids, room.x, room.rounded[s])
    snap(room.rounded, room.scales, room.x, room.root, lists, room.snap, room.snapped)
    for s in range(n_scales):
        _sums(room.snapped[s], room.wx, room.w, state)
        _keep_better(
            room.rounded[s], room.snapped[s], room.best_rounded[0], room.best[0], state, room.is_better
        )
    _improve(search, lists, room)


@leaf
def _find_max(n: int, x: Array, state: Array) -> None:
    for i in range(LANES):
        state[MAX + i] = x[i]
    for k in range(1, n):
        xs = x[k * LANES : (k + 1) * LANES]
        for i in range(LANES):
            high, v = state[MAX + i], xs[i]
            state[MAX + i] = high if high > v else v


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
def _keep_better(
    rounded: Array, snapped: Array, best_rounded: Array, best_snapped: Array, state: Array, is_better: Array
) -> None:
    for i in range(LANES):
        sum_qx, sum_q2, best = state[SUM_QX + i], state[SUM_Q2 + i], state[BEST + i]
        better = (sum_q2 > ZERO) & (sum_qx * sum_qx > best * sum_q2)
        scale = sum_qx / sum_q2
        state[SCALE + i] = scale if better else state[SCALE + i]
        state[BEST + i] = scale * sum_qx if better else best
        is_better[i] = np.int32(1) if better else np.int32(0)
    for g in range(len(rounded)):
        _keep_patterns(rounded[g], is_better, best_rounded[g])
        _keep_patterns(snapped[g], is_better, best_snapped[g])


@leaf
def _keep_patterns(patterns: Array, is_better: Array, best: Array) -> None:
    for i in range(LANES):
        pattern = best[i]
        best[i] = patterns[i] if is_better[i] else pattern


@leaf
def _improve(search: Search, lists: Lists, room: Room) -> None:
    """Round once more, with the best scale, groups that were not in the codebook, or all after make_qp_quants."""
    state, rounded = room.state, room.rounded[:1]
    ids, scales = room.ids[0], room.scales[:1]
    for i in range(LANES):
        ids[i] = ONE / state[SCALE + i]
        scales[0, i] = state[SCALE + i]
        state[BEST + i] = ZERO  # from here on: how many groups are rounded once more
    _round(ids, room.x, rounded[0])
    for g in range(rounded.shape[1]):
        for i in range(LANES):
            is_open = room.best[0, g, i] != room.best_rounded[0, g, i] or search.from_qp
            is_open = is_open and state[SCALE + i] > ZERO
            rounded[0, g, i] = rounded[0, g, i] if is_open else room.best[0, g, i]
            state[BEST + i] += ONE if is_open else ZERO
    snap(rounded, scales, room.x, room.root, lists, room.snap, room.best)
    _sums(room.best[0], room.wx, room.w, state)
    for i in range(LANES):
        sum_qx, sum_q2, scale = state[SUM_QX + i], state[SUM_Q2 + i], state[SCALE + i]
        ratio = sum_qx / sum_q2
        state[SCALE + i] = ratio if (sum_q2 > ZERO) & (state[BEST + i] > ZERO) else scale


@leaf
def _finish(search: Search, room: Room, scale: Array, patterns: Array, signs: Array) -> None:
    """A negative scale turns all signs; sub-blocks of nothing but zeros are zero throughout."""
    mask = np.uint8(127) if search.even_signs else np.uint8(255)
    state = room.state
    for g in range(len(patterns)):
        for i in range(LANES):
            is_zero = state[MAX + i] <= ZERO if search.from_qp else state[MAX + i] < search.eps
            turned = signs[g, i] ^ mask if state[SCALE + i] < ZERO else signs[g, i]
            signs[g, i] = np.uint8(0) if is_zero else turned
            patterns[g, i] = np.uint16(0) if is_zero else room.best[0, g, i]
    for i in range(LANES):
        is_zero = state[MAX + i] <= ZERO if search.from_qp else state[MAX + i] < search.eps
        scale[i] = ZERO if is_zero else abs(state[SCALE + i])
