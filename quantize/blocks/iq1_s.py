"""IQ1_S: 1.5625 bits per weight. 256 weights, eight sub-blocks of 32; value = d * (2 sc + 1) * (GRID[entry] + delta).

    float16 d | 32 bytes: the low 8 bits of each entry, for 8 weights | 8 uint16 qh

    qh[j]: bits 3 l to 3 l + 2 are the high bits of entry 4 j + l, bits 12 to 14 are sc[j]; bit 15 says that delta is
    -0.125, not 0.125. GRID holds -1, 0 and 1.

Source: ggml-quants.c, quantize_row_iq1_s_impl, dequantize_row_iq1_s.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.base import GroupFormat
from quantize.blocks.error_weights import TileGuide, load_importance, mean_squares, spread
from quantize.blocks.half import load_f16
from quantize.blocks.iq1 import (
    BEST,
    DELTA,
    QK_K,
    SCALE,
    SPLIT,
    Room,
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
from quantize.blocks.tiles import LANES, row, store_halves
from quantize.tensors import Array, QType

N, N_SUB = 32, 8
TYPE_SIZE = 50
QS, QH = 2, 34  # where they begin
EPS = np.float32(1e-12)  # GROUP_MAX_EPS_IQ1_S
STEP = 3  # cuts that are tried together
N_ROWS = N + STEP
SX, SW, X_UP, X_DOWN, W_UP, W_DOWN = (k * N_ROWS * LANES for k in range(6))
NEAR, FAR = np.float32(0.875), np.float32(1.125)  # of the outer levels
NAN = np.float32(np.nan)


def encode(x: Array, guide: TileGuide | None) -> Array:
    """See `GroupFormat.encode_kernel`."""
    assert guide is not None
    tiles = np.zeros((len(x), TYPE_SIZE, LANES), np.uint8)
    d = np.empty((len(x), LANES), np.float32)
    pairs = network(N)
    sigma2 = mean_squares(x, 2, QK_K)
    _encode(
        x,
        guide.importance,
        guide.n_rows,
        sigma2,
        pairs,
        entries_of(QType.IQ1_S),
        make_room(N, 6 * N_ROWS),
        d,
        tiles,
    )
    store_halves(d, tiles, 0)
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
    d: Array,
    tiles: Array,
) -> None:
    scales, downs = np.empty((N_SUB, LANES), np.float32), np.empty((N_SUB, LANES), np.int32)
    w = room.w[: N * LANES]
    for t in range(len(x)):
        for j in range(N_SUB):
            part = x[t][j * N * LANES : (j + 1) * N * LANES]
            load_importance(importance, n_rows, t, j * N, N, w)
            spread(N, part, sigma2[t], w)
            begin(N, part, pairs, room)
            _sum_up(w, room)
            _search(room.sums, room.state)
            finish(N, 4 * j, part, w, EPS, entries, room)
            for i in range(LANES):
                scales[j, i] = room.state[SCALE + i]
                downs[j, i] = 8 if room.deltas[i] < ZERO else 0
        _pack(scales, downs, room.entries, d[t], tiles[t])


@inlined
def _sum_up(w: Array, room: Room) -> None:
    """Sums of w x and of w over the sorted weights before each cut, and what those beyond add to the two sums."""
    sums = room.sums
    for i in range(LANES):
        sums[SX + i] = ZERO
        sums[SW + i] = ZERO
    for k in range(N):
        keys, sum_x, sum_w = row(room.keys, k), sums[SX + k * LANES :], sums[SW + k * LANES :]
        for i in range(LANES):
            weight = w[position_of(keys[i]) * LANES + i]
            sum_x[LANES + i] = sum_x[i] + weight * weight_of(keys[i])
            sum_w[LANES + i] = sum_w[i] + weight
    for k in range(N + 1):
        part = sums[k * LANES :]
        for i in range(LANES):
            rest_x, rest_w = sums[SX + N * LANES + i] - part[SX + i], sums[SW + N * LANES + i] - part[SW + i]
            part[X_UP + i] = rest_x * FAR
            part[X_DOWN + i] = rest_x * NEAR
            part[W_UP + i] = rest_w * FAR * FAR
            part[W_DOWN + i] = rest_w * NEAR * NEAR
    for k in range(N + 1, N_ROWS):
        for i in range(LANES):
            sums[W_UP + k * LANES + i] = NAN
            sums[W_DOWN + k * LANES + i] = NAN


@inlined
def _search(sums: Array, state: Array) -> None:
    """Try all pairs of cuts, each with the levels shifted up and down, in ggml's order."""
    for i1 in range(N + 1):
        for i2 in range(i1, N + 1, STEP):
            _try(sums[i1 * LANES :], sums[i2 * LANES :], np.int32((64 * i1 + i2) * 4), state)


@inlined
def _try(first: Array, second: Array, code: np.int32, state: Array) -> None:
    """Cuts at `first` and the next STEP from `second` on; those beyond the end have sums that are no numbers."""
    for i in range(LANES):
        scale, best, split = state[SCALE + i], state[BEST + i], state[SPLIT + i]
        sum_x, sum_w = first[SX + i], first[SW + i]
        x_up, x_down = sum_x * -NEAR, sum_x * -FAR
        w_up, w_down = sum_w * NEAR * NEAR, sum_w * FAR * FAR
        for k in range(STEP):
            o = k * LANES + i
            x_middle, w_middle = (second[SX + o] - sum_x) * DELTA, (second[SW + o] - sum_w) * DELTA * DELTA
            sum_qx = x_up + x_middle + second[X_UP + o]
            sum_q2 = w_up + w_middle + second[W_UP + o]
            is_better = (sum_q2 > ZERO) & (sum_qx * sum_qx > best * sum_q2)
            ratio = sum_qx / sum_q2
            scale = ratio if is_better else scale
            best = ratio * sum_qx if is_better else best
            split = np.float32(code + np.int32(4 * k)) if is_better else split
            sum_qx = x_down - x_middle + second[X_DOWN + o]
            sum_q2 = w_down + w_middle + second[W_DOWN + o]
            is_better = (sum_q2 > ZERO) & (sum_qx * sum_qx > best * sum_q2)
            ratio = sum_qx / sum_q2
            scale = ratio if is_better else scale
            best = ratio * sum_qx if is_better else best
            split = np.float32(code + np.int32(4 * k + 3)) if is_better else split
        state[SCALE + i], state[BEST + i], state[SPLIT + i] = scale, best, split


@inlined
def _pack(scales: Array, downs: Array, chosen: Array, d: Array, tile: Array) -> None:
    """Write entries and coded scales; leave d to be stored."""
    largests, inverses = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    highs = np.empty(LANES, np.int32)
    for i in range(LANES):
        largest = ZERO
        for j in range(N_SUB):
            scale = scales[j, i]
            largest = largest if largest > scale else scale
        factor = largest / np.float32(15)
        largests[i], inverses[i] = largest, ONE / factor
        d[i] = factor * np.float32(1.125)
    for j in range(N_SUB):
        for i in range(LANES):
            code = np.int32(nearest_code(HALF * (inverses[i] * scales[j, i] - ONE), ZERO, np.float32(7)))
            highs[i] = (code | downs[j, i]) << 12 if largests[i] != ZERO else 0
        for g in range(4):
            part, low = row(chosen, 4 * j + g), tile[QS + 4 * j + g]
            for i in range(LANES):
                low[i] = np.uint8(part[i] & 255)
                highs[i] |= part[i] >> 8 << 3 * g
        for i in range(LANES):
            tile[QH + 2 * j, i] = np.uint8(highs[i] & 255)
            tile[QH + 2 * j + 1, i] = np.uint8(highs[i] >> 8)


@kernel
def _unpack(blocks: Array, levels: Array, values: Array) -> None:
    for b in range(len(blocks)):
        block, x = blocks[b], values[b]
        d = load_f16(block, 0)
        for j in range(N_SUB):
            high = np.int32(block[QH + 2 * j]) | np.int32(block[QH + 2 * j + 1]) << 8
            scale = d * np.float32(2 * (high >> 12 & 7) + 1)
            delta = -DELTA if high & 0x8000 else DELTA
            for g in range(4):
                entry = np.int32(block[QS + 4 * j + g]) | (high >> 3 * g & 7) << 8
                group, part = levels[entry], x[N * j + GROUP * g : N * j + GROUP * (g + 1)]
                for k in range(GROUP):
                    part[k] = scale * (group[k] + delta)


def unpack(blocks: Array, values: Array) -> None:
    """See `GroupFormat.unpack_kernel`."""
    _unpack(blocks, entry_levels(QType.IQ1_S), values)


FORMAT = GroupFormat(QType.IQ1_S, QK_K, TYPE_SIZE, encode, unpack, needs_importance=True)
