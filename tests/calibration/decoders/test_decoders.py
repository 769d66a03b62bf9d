"""Decoders in torch against those of the kernels, bit for bit, for every type that can be decoded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calibration.decoders import decode, decode_blocks
from calibration.decoders.decode import DECODERS, FLOATS
from quantize.blocks import WRITABLE
from quantize.decoding import decode_stored, to_f32
from quantize.exceptions import DecodeError
from quantize.tensors import Array, QType


def any_blocks(qtype: QType, n_rows: int, n_block: int, seed: int = 0) -> Array:
    """Blocks of any bits, but for factors: those in float16 are finite, as in files of finite weights."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (n_rows * n_block, qtype.type_size), np.uint8)
    values = to_f32(decode_stored(blocks, qtype, qtype.block_size))
    blocks[~np.isfinite(values).all(axis=1)] = 0
    return blocks.reshape(n_rows, -1)


def test_every_type_that_can_be_decoded_has_a_decoder() -> None:
    assert set(DECODERS) | set(FLOATS) == set(WRITABLE)
    with pytest.raises(DecodeError, match="type Q8_K cannot be decoded"):
        decode_blocks(torch.zeros((1, 292), dtype=torch.uint8), QType.Q8_K)


@pytest.mark.parametrize("qtype", WRITABLE, ids=lambda qtype: qtype.name)
def test_values_are_those_of_the_kernels(qtype: QType, monkeypatch: pytest.MonkeyPatch) -> None:
    n_block = 4 if qtype.block_size > 1 else 64
    blocks = any_blocks(qtype, 60, n_block)
    wanted = to_f32(decode_stored(blocks, qtype, n_block * qtype.block_size))
    assert np.isfinite(wanted).all() and wanted.any()
    for part in (decode.PART, 5000, 1):
        monkeypatch.setattr(decode, "PART", part)
        found = decode_blocks(torch.from_numpy(blocks), qtype)
        assert found.dtype == torch.float32 and found.shape == wanted.shape
        assert np.array_equal(found.numpy().view(np.uint32), np.ascontiguousarray(wanted).view(np.uint32))
    narrow = decode_blocks(torch.from_numpy(blocks), qtype, torch.bfloat16)
    assert torch.equal(narrow, found.to(torch.bfloat16))
    as_stored = decode_blocks(torch.from_numpy(blocks), qtype, None)
    assert as_stored.dtype == FLOATS.get(qtype, torch.float32) and torch.equal(as_stored.float(), found)


@pytest.mark.parametrize("qtype", WRITABLE, ids=lambda qtype: qtype.name)
def test_one_row_out_of_the_middle_and_none(qtype: QType) -> None:
    blocks = torch.from_numpy(any_blocks(qtype, 5, 2 if qtype.block_size > 1 else 4))
    assert torch.equal(decode_blocks(blocks[3:4], qtype), decode_blocks(blocks, qtype)[3:4])
    assert len(decode_blocks(blocks[:0], qtype)) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
@pytest.mark.parametrize("qtype", WRITABLE, ids=lambda qtype: qtype.name)
def test_values_on_a_gpu_are_those_on_the_cpu(qtype: QType) -> None:
    blocks = torch.from_numpy(any_blocks(qtype, 300, 4 if qtype.block_size > 1 else 64))
    on_gpu = decode_blocks(blocks.cuda(), qtype).cpu()
    assert torch.equal(on_gpu.view(torch.int32), decode_blocks(blocks, qtype).view(torch.int32))
