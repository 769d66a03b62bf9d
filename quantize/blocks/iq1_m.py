"""IQ1_M: 1.75 bits per weight. 256 weights, 16 sub-blocks of 16; value = d * (2 sc + 1) * (GRID[entry] + delta).

    32 bytes: the low 8 bits of each entry, for 8 weights | 16 bytes qh | 4 uint16 scales

    qh[j]: bits 0 to 2 are the high bits of entry 2 j, bit 3 says that its delta is -0.125, not 0.125; bits 4 to 7 are
    those of entry 2 j + 1. scales[m]: bits 3 k to 3 k + 2 are sc[4 m + k], bits 12 to 15 are bits 4 m to 4 m + 3 of
    the float16 d. GRID holds -1, 0 and 1.

Source: ggml-quants.c, quantize_row_iq1_m_impl, dequantize_row_iq1_m.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.base import GroupFormat
from quantize.blocks.error_weights import (
    NO_GUIDE,
    NOTHING,
    TileGuide,
    load_importance,
    mean_squares,
    spread,
    square,
)
from quantize.blocks.half import f16_bits_to_f32, f32_to_f16_bits
from quantize.blocks.iq1 import (
    BEST,
    DELTA,
    QK_K,
    SCALE,
    SPLIT,
    SUM_Q2,
    SUM_QX,
    Room,
    add_sums,
    begin,
    finish,
    make_room,
    network,
    position_of,
    weight_of,
)
from quantize.blocks.iq1_entries import GROUP, Entries, entries_of, entry_levels
from quantize.blocks.jit import inlined, kernel
from quantize.blocks.lanes import HALF, ONE, ZERO, nearest_code
from quantize.blocks.tiles import LANES, row
from quantize.tensors import Array, QType

N, N_SUB = 16, 16
TYPE_SIZE = 56
QH, SCALES = 32, 48  # where they begin
EPS = np.float32(1e-7)  # GROUP_MAX_EPS_IQ1_M
STEP = 2  # cuts that are tried together: more need too many registers
N_ROWS = N + STEP
X0, X1, W0, W1 = (k * N_ROWS * LANES for k in range(4))
NEAR, FAR = np.float32(0.875), np.float32(1.125)  # of the outer levels
UP_1, UP_2 = (
    np.float32(0.75),
    np.float32(-1.25),
)  # differences of squares of neighbouring levels that are shifted up
DOWN_1, DOWN_2 = -UP_2, -UP_1
NAN = np.float32(np.nan)


def encode(x: Array, guide: TileGuide | None) -> Array:
    """See `GroupFormat.encode_kernel`."""
    tiles = np.zeros((len(x), TYPE_SIZE, LANES), np.uint8)
    sigma2 = NOTHING if guide is None else mean_squares(x, 2, QK_K)
    guide = guide or NO_GUIDE
    room = make_room(N, 4 * N_ROWS)
    _encode(x, guide.importance, guide.n_rows, sigma2, network(N), entries_of(QType.IQ1_M), room, tiles)
    return tiles


@kernel
def _encode(
    x: Array,
    importance: Array,
    n_rows: int,
    sigma2: Array,
    pairs: Array,
    entries: Entries,
    room: Room,
    tiles: Array,
) -> None:
    scales, deltas = np.empty((N_SUB, LANES), np.float32), np.empty(2 * N_SUB * LANES, np.float32)
    for t in range(len(x)):
        if importance.size:
            load_importance(importance, n_rows, t, 0, QK_K, room.w)
            spread(QK_K, x[t], sigma2[t], room.w)
        else:
            square(x[t], room.w)
        for j in range(N_SUB):
            part = slice(j * N * LANES, (j + 1) * N * LANES)
            begin(N, x[t][part], pairs, room)
            _sum_up(room.w[part], room)
            _search(room.sums, room.state)
            finish(N, 2 * j, x[t][part], room.w[part], EPS, entries, room)
            for i in range(LANES):
                scales[j, i] = room.state[SCALE + i]
            deltas[2 * j * LANES : 2 * (j + 1) * LANES] = room.deltas
        _pack(x[t], scales, deltas, room, tiles[t])


@inlined
def _sum_up(w: Array, room: Room) -> None:
    """Sums of w x and of w over the sorted weights before each cut, those of either half of the sub-block apart."""
    sums = room.sums
    for i in range(LANES):
        sums[X0 + i], sums[X1 + i] = ZERO, ZERO
        sums[W0 + i], sums[W1 + i] = ZERO, ZERO
    for k in range(N):
        keys, part = row(room.keys, k), sums[k * LANES :]
        for i in range(LANES):
            part[W0 + LANES + i] = w[position_of(keys[i]) * LANES + i]
        for i in range(LANES):
            weight = part[W0 + LANES + i]
            product = weight * weight_of(keys[i])
            x0, x1, w0, w1 = part[X0 + i], part[X1 + i], part[W0 + i], part[W1 + i]
            is_first = position_of(keys[i]) < N // 2
            x0_next, x1_next, w0_next, w1_next = x0 + product, x1 + product, w0 + weight, w1 + weight
            part[X0 + LANES + i] = x0_next if is_first else x0
            part[X1 + LANES + i] = x1 if is_first else x1_next
            part[W0 + LANES + i] = w0_next if is_first else w0
            part[W1 + LANES + i] = w1 if is_first else w1_next
    for k in range(N + 1, N_ROWS):
        for i in range(LANES):
            sums[W0 + k * LANES + i], sums[W1 + k * LANES + i] = NAN, NAN


@inlined
def _search(sums: Array, state: Array) -> None:
    """Try all pairs of cuts, each with the levels of either half shifted up and down, in ggml's order."""
    for i1 in range(N + 1):
        for i2 in range(i1, N + 1, STEP):
            _try(
                sums[i1 * LANES :], sums[i2 * LANES :], sums[N * LANES :], np.int32((64 * i1 + i2) * 4), state
            )


@inlined
def _try(first: Array, second: Array, total: Array, code: np.int32, state: Array) -> None:
    """Cuts at `first` and the next STEP from `second` on; those beyond the end have sums that are no numbers."""
    for i in range(LANES):
        scale, best, split = state[SCALE + i], state[BEST + i], state[SPLIT + i]
        x0, x1 = first[X0 + i], first[X1 + i]
        x0_up, x0_down = total[X0 + i] * FAR, total[X0 + i] * NEAR
        x1_up, x1_down = total[X1 + i] * FAR, total[X1 + i] * NEAR
        w0_up = total[W0 + i] * FAR * FAR + first[W0 + i] * UP_1
        w1_up = total[W1 + i] * FAR * FAR + first[W1 + i] * UP_1
        w0_down = total[W0 + i] * NEAR * NEAR + first[W0 + i] * DOWN_1
        w1_down = total[W1 + i] * NEAR * NEAR + first[W1 + i] * DOWN_1
        for k in range(STEP):
            o = k * LANES + i
            sum_x0, sum_x1, sum_w0, sum_w1 = (
                x0 + second[X0 + o],
                x1 + second[X1 + o],
                second[W0 + o],
                second[W1 + o],
            )
            qx0_up, qx0_down = x0_up - sum_x0, x0_down - sum_x0
            qx1_up, qx1_down = x1_up - sum_x1, x1_down - sum_x1
            q20_up, q20_down = w0_up + sum_w0 * UP_2, w0_down + sum_w0 * DOWN_2
            q21_up, q21_down = w1_up + sum_w1 * UP_2, w1_down + sum_w1 * DOWN_2
            for shifts in range(4):
                sum_qx = (qx0_down if shifts & 2 else qx0_up) + (qx1_down if shifts & 1 else qx1_up)
                sum_q2 = (q20_down if shifts & 2 else q20_up) + (q21_down if shifts & 1 else q21_up)
                is_better = (sum_q2 > ZERO) & (sum_qx * sum_qx > best * sum_q2)
                ratio = sum_qx / sum_q2
                scale = ratio if is_better else scale
                best = ratio * sum_qx if is_better else best
                split = np.float32(code + np.int32(4 * k + shifts)) if is_better else split
        state[SCALE + i], state[BEST + i], state[SPLIT + i] = scale, best, split


@inlined
def _pack(x: Array, scales: Array, deltas: Array, room: Room, tile: Array) -> None:
    """Code the scales, fit d to the values that they make, and write the blocks."""
    state = room.state
    factors, times = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    codes = np.empty((N_SUB, LANES), np.int32)
    for i in range(LANES):
        largest = ZERO
        for j in range(N_SUB):
            scale = scales[j, i]
            largest = largest if largest > scale else scale
        factors[i] = largest / np.float32(15)
        state[BEST + i] = largest
        state[SUM_QX + i] = ZERO
        state[SUM_Q2 + i] = ZERO
    for j in range(N_SUB):
        for i in range(LANES):
            code = nearest_code(HALF * (ONE / factors[i] * scales[j, i] - ONE), ZERO, np.float32(7))
            codes[j, i] = np.int32(code)
            times[i] = np.float32(2) * code + ONE
        for g in range(2 * j, 2 * j + 2):
            part = slice(g * GROUP * LANES, (g + 1) * GROUP * LANES)
            add_sums(times, x[part], room.w[part], row(room.patterns, g), row(deltas, g), state)
    for i in range(LANES):
        is_void = state[BEST + i] == ZERO
        fitted = state[SUM_QX + i] / state[SUM_Q2 + i]
        factor = fitted if state[SUM_Q2 + i] > ZERO else factors[i]
        bits = np.int32(f32_to_f16_bits(factor * np.float32(1.1125)))
        for m in range(4):
            word = (bits >> 4 * m & 15) << 12
            for k in range(4):
                word |= codes[4 * m + k, i] << 3 * k
            written = 0 if is_void else word
            tile[SCALES + 2 * m, i], tile[SCALES + 2 * m + 1, i] = (
                np.uint8(written & 255),
                np.uint8(written >> 8),
            )
    for j in range(N_SUB):
        for i in range(LANES):
            a, b = room.entries[2 * j * LANES + i], room.entries[(2 * j + 1) * LANES + i]
            is_low, is_low_too = deltas[2 * j * LANES + i] < ZERO, deltas[(2 * j + 1) * LANES + i] < ZERO
            low = (8 if is_low else 0) | (128 if is_low_too else 0)
            low = 0 if state[BEST + i] == ZERO else low
            tile[2 * j, i], tile[2 * j + 1, i] = np.uint8(a & 255), np.uint8(b & 255)
            tile[QH + j, i] = np.uint8(a >> 8 | b >> 8 << 4 | low)


@kernel
def _unpack(blocks: Array, levels: Array, values: Array) -> None:
    for b in range(len(blocks)):
        block, x = blocks[b], values[b]
        bits = 0
        for m in range(4):
            bits |= int(block[SCALES + 2 * m + 1]) >> 4 << 4 * m
        d = f16_bits_to_f32(np.uint16(bits))
        for j in range(N_SUB):
            at = SCALES + 2 * (j // 4)
            scales = np.int32(block[at]) | np.int32(block[at + 1]) << 8
            scale = d * np.float32(2 * (scales >> 3 * (j % 4) & 7) + 1)
            for g in range(2):
                high = np.int32(block[QH + j]) >> 4 * g
                delta = -DELTA if high & 8 else DELTA
                group = levels[np.int32(block[2 * j + g]) | (high & 7) << 8]
                part = x[N * j + GROUP * g : N * j + GROUP * (g + 1)]
                for k in range(GROUP):
                    part[k] = scale * (group[k] + delta)


def unpack(blocks: Array, values: Array) -> None:
    """See `GroupFormat.unpack_kernel`."""
    _unpack(blocks, entry_levels(QType.IQ1_M), values)


FORMAT = GroupFormat(QType.IQ1_M, QK_K, TYPE_SIZE, encode, unpack)
