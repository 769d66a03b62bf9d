"""Fit, round and pack, one by one: together they are `encode`, and the rule of rounding can be another."""

from __future__ import annotations

import numpy as np
import pytest
from block_checks import samples, to_bf16

from quantize.blocks import WRITABLE, block_format
from quantize.blocks.base import BlockFormat, Grid
from quantize.blocks.error_weights import row_mean_squares, tile_guide
from quantize.blocks.rounding import Rounding, nearest
from quantize.blocks.tiles import Columns, load, unload
from quantize.codec import decode, encode
from quantize.guide import Guide
from quantize.tensors import Array, QType

pytestmark = pytest.mark.numeric

FORMATS = [form for form in map(block_format, WRITABLE) if isinstance(form, BlockFormat)]
N_PER_ROW = 768


def some(n_rows: int, seed: int = 0) -> tuple[Array, Guide]:
    """Weights [n_rows, 768] and a guide."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((n_rows, N_PER_ROW)).astype(np.float32)
    weights[0, :256] = 0  # blocks without a scale
    return weights, Guide(rng.chisquare(1, N_PER_ROW)).checked(N_PER_ROW)


def step_by_step(
    form: BlockFormat, weights: Array, guide: Guide | None, panels: list[Columns], rule: Rounding = nearest
) -> tuple[Array, Array]:
    """The blocks of a matrix, and the weights that its grids and codes stand for, panel by panel."""
    n_rows, n_per_row = weights.shape
    size = form.block_size
    blocks = np.empty((n_rows, n_per_row // size * form.type_size), np.uint8)
    values = np.empty((n_rows, n_per_row), np.float32)
    squares = row_mean_squares(weights)
    for columns in panels:
        x = load(weights, columns, size)
        grid = form.fit(x, None if guide is None else tile_guide(guide, columns, size, squares))
        codes = rule(grid, x)
        first, last = columns
        values[:, first * size : last * size] = unload(grid.decode(codes), n_rows, columns, size)
        form.pack(grid, codes, columns, blocks)
    return blocks, values


def assert_same(ours: Array, theirs: Array) -> None:
    same = (ours.view(np.uint32) == theirs.view(np.uint32)) | (np.isnan(ours) & np.isnan(theirs))
    assert same.all(), f"{(~same).sum()} of {same.size} differ, the first at {np.argwhere(~same)[0]}"


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.qtype.name)
@pytest.mark.parametrize("n_rows", [1, 40, 64, 146])
def test_the_steps_are_encode(form: BlockFormat, n_rows: int) -> None:
    """In one panel and column by column, which must not matter."""
    weights, guide = some(n_rows)
    n = N_PER_ROW // form.block_size
    for known in (guide, None) if form.uses_importance else (None,):
        expected = encode(weights, form.qtype, known)
        for panels in ([(0, n)], [(column, column + 1) for column in range(n)]):
            blocks, values = step_by_step(form, weights, known, panels)
            assert np.array_equal(blocks, expected)
            assert_same(values, decode(expected, form.qtype, N_PER_ROW))


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.qtype.name)
def test_grids_decode_as_their_blocks_do(form: BlockFormat) -> None:
    """All that has ever broken a quantizer included."""
    n = N_PER_ROW // form.block_size
    _, guide = some(1)
    for weights in samples().values():
        with np.errstate(all="ignore"):
            blocks, values = step_by_step(form, weights, guide if form.uses_importance else None, [(0, n)])
        assert_same(values, decode(blocks, form.qtype, N_PER_ROW))


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.qtype.name)
@pytest.mark.parametrize("weighted", [False, True])
def test_another_rounding(form: BlockFormat, weighted: bool) -> None:
    """A rule that takes the next code: the file holds exactly what the grid makes of those codes."""
    seen: list[Array] = []

    def next_code(grid: Grid, x: Array) -> Array:
        codes = grid.round(x)
        codes = np.where(codes < len(grid.levels) - 1, codes + 1, codes).astype(np.uint8)
        seen.append(grid.decode(codes))
        return codes

    weights, guide = some(5)
    known = guide if weighted else None
    blocks = encode(weights, form.qtype, known, rounding=next_code)
    (values,) = seen  # so small a matrix is one panel: of five rows with a guide, else of one long row
    n_rows = 5 if weighted and form.uses_importance else 1
    columns = (0, weights.size // n_rows // form.block_size)
    decoded = decode(blocks, form.qtype, N_PER_ROW)
    assert_same(decoded, unload(values, n_rows, columns, form.block_size).reshape(weights.shape))
    plain = decode(encode(weights, form.qtype, known), form.qtype, N_PER_ROW)
    moved = 0.8 if form.qtype is not QType.Q1_0 else 0.4  # of two codes the upper one has no next
    assert (decoded[1:] != plain[1:]).mean() > moved


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.qtype.name)
def test_every_code_can_be_packed(form: BlockFormat) -> None:
    def any_code(grid: Grid, x: Array) -> Array:
        return np.random.default_rng(1).integers(0, len(grid.levels), x.shape, np.uint8)

    weights, _ = some(3)
    blocks, values = step_by_step(form, weights, None, [(0, N_PER_ROW // form.block_size)], any_code)
    assert_same(decode(blocks, form.qtype, N_PER_ROW), values)


def test_sources_of_any_width_make_the_same_tiles() -> None:
    weights = (to_bf16(some(146)[0]).astype(np.uint32) << 16).view(np.float32)
    for columns in ((0, 24), (3, 4), (5, 12)):
        x = load(weights, columns, 32)
        assert np.array_equal(x, load(to_bf16(weights), columns, 32))
        assert np.array_equal(unload(x, 146, columns, 32), weights[:, 32 * columns[0] : 32 * columns[1]])


@pytest.mark.parametrize("qtype", [QType.Q4_0, QType.Q4_1, QType.IQ4_NL, QType.Q2_K, QType.Q3_K, QType.Q4_K])
def test_error_feedback_column_by_column(qtype: QType) -> None:
    """After each block column its error moves into the columns to the right, as far as correlated inputs allow.

    Naively: the later weights are shifted by what cancels most of the error, and then fitted themselves.
    """
    form = block_format(qtype)
    assert isinstance(form, BlockFormat)
    rng = np.random.default_rng(3)
    size = form.block_size
    n = 4 * size
    inputs = rng.standard_normal((2 * n, n // 8)) @ rng.standard_normal((n // 8, n))
    inputs += 0.1 * rng.standard_normal((2 * n, n))
    moments = inputs.T @ inputs
    weights = rng.standard_normal((64, n)).astype(np.float32)
    guide = Guide(np.diag(moments) / len(inputs)).checked(n)

    left, blocks = weights.copy(), np.empty((64, 4 * form.type_size), np.uint8)
    squares = row_mean_squares(weights)
    for column in range(4):
        columns, begin, end = (column, column + 1), column * size, (column + 1) * size
        x = load(left, columns, size)
        grid = form.fit(x, tile_guide(guide, columns, size, squares))
        codes = nearest(grid, x)
        form.pack(grid, codes, columns, blocks)
        error = left[:, begin:end] - unload(grid.decode(codes), 64, columns, size)
        if end < n:
            left[:, end:] += error @ moments[begin:end, end:] @ np.linalg.inv(moments[end:, end:])

    def output_error(blocks: Array) -> float:
        return float(np.square((decode(blocks, qtype, n) - weights) @ inputs.T).sum())

    assert output_error(blocks) < 0.8 * output_error(encode(weights, qtype, guide))
