"""FP8 weights of a checkpoint, with a scale for each block of them, as bfloat16.

llama.cpp's converter multiplies the float32 of an E4M3 number with the float32 of its scale, and rounds the product to
the nearest bfloat16 where it writes one (conversion/base.py: ModelBase.dequant_model, dequant_simple). The 256 numbers
that E4M3 has become as many of bfloat16 in each block: a table, in which the codes are looked up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantize.containers.shard_index import ShardTensor
from quantize.containers.untrusted import quoted
from quantize.decoding import to_f32
from quantize.exceptions import CheckpointError
from quantize.tensors import Array

__all__ = ["FP8", "Fp8Tensor", "decoded", "e4m3_values", "with_scales"]

FP8 = "F8_E4M3"
SCALE_TYPES = ("F32", "BF16", "F16")

OF_ACTIVATIONS = (".activation_scale", "_activation_scale")
"""Endings of names of scales of inputs, which have nothing to do with weights."""


@dataclass(frozen=True)
class Fp8Tensor(ShardTensor):
    """A stored tensor of E4M3 numbers, and its scales: one for each block of rows and columns of each matrix.

    All rows of the tensor are counted through; those of one matrix are `n_row`, and its scales are the next
    `ceil(n_row / block[0])` rows of the scales' `n_scale`.
    """

    scales: ShardTensor
    block: tuple[int, int]
    n_row: int

    @property
    def n_scale(self) -> int:
        """Scales of one row."""
        return -(-self.shape[-1] // self.block[1])

    def scale_row(self, row: int) -> int:
        """The row of scales that belongs to a row of weights."""
        matrix, row = divmod(row, self.n_row)
        return matrix * -(-self.n_row // self.block[0]) + row // self.block[0]

    def row_blocks(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The rows `first` to `last` - 1 in ranges that share their scales."""
        while first < last:
            matrix, row = divmod(first, self.n_row)
            end = matrix * self.n_row + min((row // self.block[0] + 1) * self.block[0], self.n_row)
            yield first, min(end, last)
            first = end


def with_scales(stored: Mapping[str, ShardTensor], config: Mapping[str, Any]) -> dict[str, ShardTensor]:
    """The tensors of a checkpoint, each one of FP8 together with its scales, which are no tensors of their own then.

    Args:
        stored: all tensors, by the names that families know.
        config: config.json; without a `quantization_config` there is nothing to do.

    Raises:
        CheckpointError: scales are missing, of another shape than the config says, or have nothing to scale.
    """
    told = config.get("quantization_config")
    if not isinstance(told, dict):
        for tensor in stored.values():
            if tensor.dtype == FP8:
                message = f"is stored as {FP8}, but config.json has no quantization_config"
                raise CheckpointError(f"{tensor.path}: tensor {quoted(tensor.name)}", message)
        return dict(stored)
    if told.get("quant_method") == "mxfp4":
        return dict(stored)
    is_fp8 = told.get("quant_method") == "fp8"
    suffix = "_scale_inv" if is_fp8 else "_scale"
    block = _block_size(told.get("weight_block_size") if is_fp8 else _compressed_block(told))
    found = {
        name: tensor
        for name, tensor in stored.items()
        if not (name.endswith(suffix) or name.endswith(OF_ACTIVATIONS))
    }
    for name, tensor in found.items():
        if tensor.dtype == FP8:
            found[name] = _paired(tensor, stored.get(name + suffix), suffix, block)
    for name, scales in stored.items():
        owner = found.get(name.removesuffix(suffix))
        if name.endswith(suffix) and not name.endswith(OF_ACTIVATIONS) and not isinstance(owner, Fp8Tensor):
            why = "is not there" if owner is None else f"is stored as {owner.dtype}"
            message = f"are scales of {quoted(scales.name.removesuffix(suffix))}, which {why}"
            raise CheckpointError(f"{scales.path}: tensor {quoted(scales.name)}", message)
    return found


def decoded(tensor: Fp8Tensor, codes: Array, scales: Array, first: int) -> Array:
    """The bits of bfloat16, uint16 [n_rows, n], of rows of codes.

    Args:
        tensor: they belong to it.
        codes: uint8 [n_rows, n], the rows from `first` on.
        scales: the scales of these rows, as they are stored [n_scale_rows, n_scale].
        first: the first row.
    """
    found = np.empty(codes.shape, np.uint16)
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # what is not finite is found where weights are looked at
        tables = _bf16(to_f32(scales)[:, :, None] * e4m3_values())
    n_col, low = tensor.block[1], tensor.scale_row(first)
    for begin, end in tensor.row_blocks(first, first + len(codes)):
        rows = slice(begin - first, end - first)
        for i, table in enumerate(tables[tensor.scale_row(begin) - low]):
            columns = slice(i * n_col, (i + 1) * n_col)
            table.take(codes[rows, columns], out=found[rows, columns], mode="clip")
    return found


def e4m3_values() -> Array:
    """The float32 [256] of all codes (OCP 8-bit floating point, E4M3): no infinity, one NaN of each sign."""
    codes = np.arange(128)
    exponent, mantissa = codes >> 3, codes & 7
    normal = np.ldexp(1.0 + mantissa / 8.0, exponent - 7)
    values = np.where(exponent == 0, np.ldexp(mantissa / 8.0, -6), normal).astype(np.float32)
    values[127] = np.nan
    return np.concatenate((values, -values))


def _bf16(values: Array) -> Array:
    """The bits of bfloat16 nearest to float32 values, ties to even; NaN stays one."""
    bits = values.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    nearest = np.where(np.isnan(values), bits | np.uint32(1 << 22), rounded)
    found: Array = (nearest >> np.uint32(16)).astype(np.uint16)
    return found


def _paired(
    tensor: ShardTensor, scales: ShardTensor | None, suffix: str, block: tuple[int, int] | None
) -> Fp8Tensor:
    """A tensor with its scales, if these are as many as they must be."""
    place = f"{tensor.path}: tensor {quoted(tensor.name)}"
    if scales is None:
        message = f"is stored as {FP8}, but its scales {quoted(tensor.name + suffix)} are not there"
        raise CheckpointError(place, message, "download the checkpoint again")
    if len(tensor.shape) < 2 or 0 in tensor.shape:
        raise CheckpointError(place, f"is stored as {FP8}, but is no matrix: {list(tensor.shape)}")
    place = f"{scales.path}: tensor {quoted(scales.name)}"
    if scales.dtype not in SCALE_TYPES:
        raise CheckpointError(
            place, f"scales are stored as {scales.dtype}", f"known: {', '.join(SCALE_TYPES)}"
        )
    *outer, n_row, n_col = tensor.shape
    n_all = math.prod(tensor.shape[:-1])
    layouts: dict[tuple[int, ...], tuple[tuple[int, int], int]] = {}
    if block is not None:
        rows, columns = block
        layouts[(*outer, -(-n_row // rows), -(-n_col // columns))] = (block, n_row)
    else:
        layouts |= {(*outer, n_row): ((1, n_col), n_row), (*outer, n_row, 1): ((1, n_col), n_row)}
        of_matrix = ((n_row, n_col), n_row)
        layouts |= {tuple(outer): of_matrix, (*outer, 1): of_matrix, (*outer, 1, 1): of_matrix}
        layouts |= {(): ((n_all, n_col), n_all), (1,): ((n_all, n_col), n_all)}
    chosen = layouts.get(scales.shape)
    if chosen is None:
        asked = f"blocks of {block[0]}x{block[1]}" if block else "one scale for a matrix or for each row"
        shape = f", which is {list(next(iter(layouts)))}" if block else ""
        message = f"has shape {list(scales.shape)}, but config.json asks for {asked} of {list(tensor.shape)}"
        raise CheckpointError(place, message + shape)
    fields = {name: getattr(tensor, name) for name in ShardTensor.__dataclass_fields__}
    return Fp8Tensor(**fields, scales=scales, block=chosen[0], n_row=chosen[1])


def _block_size(told: Any) -> tuple[int, int] | None:
    """Rows and columns of a block; None where a scale is of a whole row or matrix."""
    if told is None:
        return None
    if isinstance(told, list) and len(told) == 2 and all(type(n) is int and 0 < n < 2**31 for n in told):
        return told[0], told[1]
    message = f"weight_block_size must be two numbers of weights, not {quoted(told)}"
    raise CheckpointError("config.json", message)


def _compressed_block(told: Mapping[str, Any]) -> Any:
    """The blocks of compressed-tensors, of its only group of weights."""
    groups = told.get("config_groups")
    group = next(iter(groups.values())) if isinstance(groups, dict) and len(groups) == 1 else None
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict) or weights.get("strategy") not in ("channel", "block"):
        message = "quantization_config must have one group of weights with a scale for each channel or block"
        raise CheckpointError("config.json", message, "give the BF16, F16 or F32 original instead")
    return weights.get("block_structure")
