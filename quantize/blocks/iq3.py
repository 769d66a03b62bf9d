"""The search that IQ3_XXS and IQ3_S share, for sub-blocks of 32 weights: value = scale * (2 * level + 1), with a sign.

Many scales are tried. At each the groups of four magnitudes are replaced by entries of the codebook (`iq3_cells`), and
the scale and entries that are best by least squares are kept. If one of the groups had no pattern of the codebook then,
groups are replaced once more at the best scale, and the scale is fitted to that.

Lanes are blocks, as everywhere, but in the search itself, where they are the scales that are tried: a group has the
same pattern at several consecutive scales, and these share a list of neighbours.

Source: ggml-quants.c, quantize_row_iq3_xxs_impl and quantize_row_iq3_s_impl.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quantize.blocks.error_weights import (
    NO_GUIDE,
    NOTHING,
    TileGuide,
    load_importance,
    mean_squares,
    spread,
    square,
)
from quantize.blocks.iq3_cells import (
    FOUND,
    GROUP,
    N_ROWS,
    N_SCALES,
    ROW,
    SCALE,
    WIDTH,
    Cells,
    cell_of,
    cells,
    find,
    four,
    LENGTH,
    unpack_entry,
)
from quantize.blocks.jit import inlined, kernel
from quantize.blocks.lanes import HALF, ONE, ZERO, nearest_code
from quantize.blocks.tiles import LANES, aligned_floats, row
from quantize.tensors import Array, QType

QK_K, N_SUB, N = 256, 8, 32
N_GROUPS = N // GROUP
SIGNED = 8  # weights whose signs make a byte
FIFTEEN = np.float32(15)

# where a search keeps what is not of one group, in its `state`
INVERSE, SUM_LX, SUM_L2 = (N_GROUPS * N_ROWS + r * ROW for r in range(3))
N_STATE = N_GROUPS * N_ROWS + 3 * ROW


class Search(NamedTuple):
    """The differences between the two types' searches."""

    reach: (
        int  # scales are tried with which the largest magnitude is 15 + step / 5, step from -reach to reach
    )
    eps: np.float32  # a sub-block is zero if its largest magnitude is smaller
    even_signs: bool  # whether the number of negative weights of eight is even: else the least important one is turned
    all_anew: bool  # whether all groups are replaced once more, or those that had no pattern of the codebook


class Fit(NamedTuple):
    """What was found for some tiles."""

    scales: Array  # float32 [n_tiles, 8, LANES], not negative
    is_zero: Array  # bool [n_tiles, 8, LANES]: where ggml sees only zeros; scale, codes and signs are 0
    codes: Array  # uint16 [n_tiles, 64, LANES]: indices of entries
    signs: Array  # uint8 [n_tiles, 32, LANES]: bit k is set where weight k of eight is negative


class Room(NamedTuple):
    """What is known of a sub-block in all lanes."""

    x: Array  # float32 [N * LANES]: magnitudes
    w: Array  # weights of the errors
    wx: Array
    root: Array  # of w
    high: Array  # float32 [LANES]: the largest of x
    scale: Array
    sum_lx: Array
    sum_l2: Array
    found: Array  # int32 [N_GROUPS * LANES]: packed entries
    anew: Array  # int32 [N_GROUPS * LANES]: whether to replace the group once more; then its cell or -1


def fit(qtype: QType, search: Search, x: Array, guide: TileGuide | None) -> Fit:
    """Fit the tiles x, float32 [n_tiles, 256 * LANES].

    The weights of the errors are x * x, or importance * sqrt(sigma2 + x * x) with twice the mean of x * x over a block.
    """
    n_tiles = len(x)
    found = Fit(
        np.empty((n_tiles, N_SUB, LANES), np.float32),
        np.empty((n_tiles, N_SUB, LANES), np.bool_),
        np.empty((n_tiles, N_SUB * N_GROUPS, LANES), np.uint16),
        np.empty((n_tiles, QK_K // SIGNED, LANES), np.uint8),
    )
    sigma2 = NOTHING if guide is None else mean_squares(x, 2, QK_K)
    guide = guide or NO_GUIDE
    steps = np.minimum(np.arange(N_SCALES) - search.reach, search.reach).astype(np.float32)
    tops = FIFTEEN + steps * np.float32(0.2)
    _fit(x, guide.importance, guide.n_rows, sigma2, search, tops, cells(qtype), found)
    return found


@kernel
def _fit(
    tiles: Array,
    importance: Array,
    n_rows: int,
    sigma2: Array,
    search: Search,
    tops: Array,
    cells: Cells,
    fit: Fit,
) -> None:
    size = N * LANES
    room = Room(
        aligned_floats(size),
        aligned_floats(size),
        aligned_floats(size),
        aligned_floats(size),
        aligned_floats(LANES),
        aligned_floats(LANES),
        aligned_floats(LANES),
        aligned_floats(LANES),
        np.empty(N_GROUPS * LANES, np.int32),
        np.empty(N_GROUPS * LANES, np.int32),
    )
    state, patterns = aligned_floats(N_STATE), np.empty(N_GROUPS * ROW, np.int32)
    for t in range(len(tiles)):
        for j in range(N_SUB):
            x = tiles[t][j * size : (j + 1) * size]
            if importance.size:
                load_importance(importance, n_rows, t, j * N, N, room.w)
                spread(N, x, sigma2[t], room.w)
            else:
                square(x, room.w)
            signs = fit.signs[t][j * N // SIGNED : (j + 1) * N // SIGNED]
            for g in range(N // SIGNED):
                part = slice(g * SIGNED * LANES, (g + 1) * SIGNED * LANES)
                _fold(x[part], room.w[part], search.even_signs, room.x[part], signs[g])
            _prepare(room)
            for i in range(LANES):
                if room.high[i] >= search.eps:
                    _search(i, search, tops, room, cells, state, patterns)
                else:
                    _nothing(i, room)
            _replace_anew(room, cells, state)
            _finish(
                search,
                room,
                fit.scales[t, j],
                fit.is_zero[t, j],
                fit.codes[t][j * N_GROUPS : (j + 1) * N_GROUPS],
                signs,
            )


@kernel
def _fold(x: Array, w: Array, even_signs: bool, magnitudes: Array, signs: Array) -> None:
    """Magnitudes and signs of eight weights."""
    for i in range(LANES):
        sign, is_odd, at = np.int32(0), np.int32(0), np.int32(0)
        least = w[i] * x[i] * x[i]
        for k in range(SIGNED):
            v = x[k * LANES + i]
            negative = np.int32(1) if v < ZERO else np.int32(0)
            sign |= np.int32(negative << np.int32(k))
            is_odd ^= negative
            this = w[k * LANES + i] * v * v
            at = np.int32(k) if this < least else at
            least = this if this < least else least
        turned = np.int32(is_odd << at) if even_signs else np.int32(0)
        sign ^= turned
        for k in range(SIGNED):
            v = x[k * LANES + i]
            magnitudes[k * LANES + i] = -v if sign >> np.int32(k) & np.int32(1) else v
        signs[i] = np.uint8(sign)


@kernel
def _prepare(room: Room) -> None:
    x, w, wx, root, high = room.x, room.w, room.wx, room.root, room.high
    for k in range(N * LANES):
        wx[k] = w[k] * x[k]
    for k in range(N * LANES):
        root[k] = np.sqrt(w[k])
    for i in range(LANES):
        high[i] = x[i]
    for k in range(1, N):
        xs = row(x, k)
        for i in range(LANES):
            high[i] = high[i] if high[i] > xs[i] else xs[i]


@kernel
def _nothing(i: int, room: Room) -> None:
    room.scale[i] = ZERO
    for k in range(N_GROUPS):
        room.found[k * LANES + i] = 0
        room.anew[k * LANES + i] = 0


@kernel
def _search(
    i: int, search: Search, tops: Array, room: Room, cells: Cells, state: Array, patterns: Array
) -> None:
    """Try all scales on lane i, and leave the best with its entries, and which of the groups to replace once more."""
    n, high = 2 * search.reach + 1, room.high[i]
    _scales(high, tops, state)
    _round_groups(i, room.x, state, patterns)
    _find_groups(i, n, room.x, room.root, cells.entries, cells.lists, cells.neighbours, patterns, state)
    _sum_groups(i, room.w, room.wx, state)
    best, scale, taken = ZERO, np.float32(high / FIFTEEN), -1
    for c in range(n):
        sum_lx, sum_l2 = state[SUM_LX + c], state[SUM_L2 + c]
        if sum_l2 > ZERO and sum_lx * sum_lx > best * sum_l2:
            scale = np.float32(sum_lx / sum_l2)
            best = np.float32(scale * sum_lx)
            taken = c
    n_off = 0
    for k in range(N_GROUPS):
        is_off, packed = search.all_anew, np.float32(cells.entries[0, GROUP])
        if taken >= 0:
            is_off = cells.lists[patterns[k * ROW + taken]] & LENGTH > 0
            packed = state[k * N_ROWS + FOUND + taken]
        room.found[k * LANES + i] = np.float32(packed).view(np.int32)
        room.anew[k * LANES + i] = is_off
        n_off += is_off
    for k in range(N_GROUPS):
        is_off = n_off > 0 if search.all_anew else room.anew[k * LANES + i] > 0
        room.anew[k * LANES + i] = is_off and scale > ZERO
    room.scale[i] = scale


@inlined
def _scales(high: np.float32, tops: Array, state: Array) -> None:
    for c in range(N_SCALES):
        inverse = tops[c] / high
        scale = ONE / inverse
        state[INVERSE + c] = inverse
        for k in range(N_GROUPS):
            state[k * N_ROWS + SCALE + c] = scale


@inlined
def _round_groups(i: int, x: Array, state: Array, patterns: Array) -> None:
    for k in range(N_GROUPS):
        group, part = four(x, k, i), patterns[k * ROW : (k + 1) * ROW]
        for c in range(N_SCALES):
            part[c] = cell_of(state[INVERSE + c], group)


@inlined
def _find_groups(
    i: int,
    n: int,
    x: Array,
    root: Array,
    entries: Array,
    lists: Array,
    neighbours: Array,
    patterns: Array,
    state: Array,
) -> None:
    for k in range(N_GROUPS):
        group, a = four(x, k, i), four(root, k, i)
        first = 0
        while first < n:
            cell = patterns[k * ROW + first]
            end = first + 1
            while end < min(n, first + WIDTH) and patterns[k * ROW + end] == cell:
                end += 1
            # masks, because LLVM does not know that these are not negative
            find(lists[cell], (k & 7) * N_ROWS + (first & 31), group, a, entries, neighbours, state)
            first = end


@inlined
def _sum_groups(i: int, w: Array, wx: Array, state: Array) -> None:
    for c in range(N_SCALES):
        state[SUM_LX + c] = ZERO
        state[SUM_L2 + c] = ZERO
    for k in range(N_GROUPS):
        w_k, wx_k = four(w, k, i), four(wx, k, i)
        found = state[k * N_ROWS + FOUND : k * N_ROWS + FOUND + ROW].view(np.int32)
        for c in range(N_SCALES):
            sum_lx, sum_l2, packed = state[SUM_LX + c], state[SUM_L2 + c], found[c]
            for m in range(GROUP):
                q = unpack_entry(packed, m)
                sum_lx += wx_k[m] * q
                sum_l2 += w_k[m] * q * q
            state[SUM_LX + c] = sum_lx
            state[SUM_L2 + c] = sum_l2


@kernel
def _replace_anew(room: Room, cells: Cells, state: Array) -> None:
    """Replace groups once more, at the best scale, and fit the scale to all entries."""
    x, root, w, wx, scale, anew, found = room.x, room.root, room.w, room.wx, room.scale, room.anew, room.found
    for k in range(N_GROUPS):
        part = anew[k * LANES : (k + 1) * LANES]
        for i in range(LANES):
            cell = cell_of(ONE / scale[i], four(x, k, i))
            part[i] = cell if part[i] > 0 else np.int32(-1)
    for i in range(LANES):
        for c in range(WIDTH):
            state[SCALE + c] = scale[i]
        for k in range(N_GROUPS):
            cell = anew[k * LANES + i]
            if cell >= 0:
                find(
                    cells.lists[cell],
                    0,
                    four(x, k, i),
                    four(root, k, i),
                    cells.entries,
                    cells.neighbours,
                    state,
                )
                found[k * LANES + i] = np.float32(state[FOUND]).view(np.int32)
    sum_lx, sum_l2 = room.sum_lx, room.sum_l2
    for i in range(LANES):
        sum_lx[i] = ZERO
        sum_l2[i] = ZERO
    for k in range(N_GROUPS):
        part = found[k * LANES : (k + 1) * LANES]
        for m in range(GROUP):
            ws, wxs = row(w, GROUP * k + m), row(wx, GROUP * k + m)
            for i in range(LANES):
                q = unpack_entry(part[i], m)
                sum_lx[i] += wxs[i] * q
                sum_l2[i] += ws[i] * q * q
    for i in range(LANES):
        is_anew = False
        for k in range(N_GROUPS):
            is_anew |= anew[k * LANES + i] >= 0
        if is_anew and sum_l2[i] > ZERO:
            scale[i] = sum_lx[i] / sum_l2[i]


@kernel
def _finish(search: Search, room: Room, scale: Array, is_zero: Array, codes: Array, signs: Array) -> None:
    """A negative scale turns all signs."""
    for i in range(LANES):
        is_zero[i] = not room.high[i] >= search.eps
        scale[i] = abs(room.scale[i])
    for k in range(N_GROUPS):
        for i in range(LANES):
            codes[k, i] = np.uint16(room.found[k * LANES + i] >> 16)
    for g in range(N // SIGNED):
        for i in range(LANES):
            sign = np.uint8(signs[g, i] ^ np.uint8(255)) if room.scale[i] < ZERO else signs[g, i]
            signs[g, i] = np.uint8(0) if is_zero[i] else sign


def code_scales(scales: Array, more: float) -> tuple[Array, Array, Array]:
    """How the scales of blocks are stored.

    Returns:
        The largest scale and the factor d, multiplied by `more`, float32 [n_tiles, LANES]; the codes, uint8 [n_tiles, 8,
        LANES], 0..15 for scales d * (2 * code + 1).
    """
    largest, d = np.empty((2, len(scales), LANES), np.float32)
    sc = np.empty(scales.shape, np.uint8)
    _code_scales(scales, np.float32(more), largest, d, sc)
    return largest, d, sc


@kernel
def _code_scales(scales: Array, more: np.float32, largest: Array, d: Array, sc: Array) -> None:
    for t in range(len(scales)):
        high = largest[t]
        for i in range(LANES):
            high[i] = ZERO
        for j in range(N_SUB):
            values = scales[t, j]
            for i in range(LANES):
                high[i] = high[i] if high[i] > values[i] else values[i]
        for j in range(N_SUB):
            values, coded = scales[t, j], sc[t, j]
            for i in range(LANES):
                inverse = ONE / (high[i] / np.float32(31))
                code = nearest_code(HALF * (inverse * values[i] - ONE), ZERO, FIFTEEN)
                coded[i] = np.uint8(np.int32(code))
        for i in range(LANES):
            d[t, i] = high[i] / np.float32(31) * more


@kernel
def put_eight(scale: np.float32, first: Array, second: Array, signs: np.uint8, values: Array) -> None:
    """Decode two groups, which share a byte of signs."""
    bits, s = values.view(np.uint32), np.uint32(signs)
    for k in range(GROUP):
        values[k] = scale * first[k]
        values[GROUP + k] = scale * second[k]
    for k in range(SIGNED):
        bits[k] ^= np.uint32(np.uint32(s >> np.uint32(k)) << np.uint32(31))
