"""Blocks that are taken apart and put together again."""

from __future__ import annotations

import numpy as np
import pytest

from quantize.blocks.parts import MOVABLE, part_format
from quantize.codec import decode, encode
from quantize.guide import Guide
from quantize.tensors import QType

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("qtype", MOVABLE, ids=lambda qtype: qtype.name)
def test_parts_are_the_block(qtype: QType) -> None:
    """Any bytes: what they stand for, and the bytes themselves."""
    form = part_format(qtype)
    assert form is not None
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((70, 256)).astype(np.float32)
    weights[0] = 0
    encoded = [
        encode(weights, qtype),
        encode(weights, qtype, Guide(rng.chisquare(1, 256).astype(np.float32))),
    ]
    for of_rows in [*encoded, rng.integers(0, 256, (50, form.type_size), np.uint8)]:
        any_blocks = of_rows.reshape(-1, form.type_size)
        is_finite = np.isfinite(form.split(any_blocks).factors).all(axis=1)  # a NaN has many spellings
        blocks = any_blocks[is_finite]
        parts = form.split(blocks)
        assert len(blocks) > 20
        assert np.array_equal(form.join(parts), blocks)
        assert parts.codes.max() < len(form.levels)
        assert form.least_scale <= parts.scales.min() <= parts.scales.max() <= form.most_scale
        assert parts.mins.max() <= form.most_min
        d, dmin = parts.factors[:, :1], parts.factors[:, 1:]
        n = form.block_size // form.n_sub
        scales, mins = np.repeat(d * parts.scales, n, 1), np.repeat(dmin * parts.mins, n, 1)
        values = scales * form.levels[parts.codes] - mins
        assert np.array_equal(values, decode(blocks, qtype, form.block_size))


def test_other_formats_have_no_parts() -> None:
    assert part_format(QType.Q4_1) is None
