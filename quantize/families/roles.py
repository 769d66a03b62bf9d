"""Roles of tensors by name, defined once for all code that selects tensors."""

from __future__ import annotations

from quantize.tensors import TensorSpec

__all__ = ["is_layer_matrix", "is_router"]


def is_layer_matrix(spec: TensorSpec) -> bool:
    """Whether a tensor of a layer is multiplied with activations: a matrix or a stack of them, the router included.

    Norms with more than one axis, the kernel of a convolution and the biases of experts are not.
    """
    is_weight = spec.name.endswith(".weight") and not spec.name.endswith(
        ("_norm.weight", "ssm_conv1d.weight")
    )
    return spec.bid is not None and spec.is_matrix and is_weight


def is_router(spec: TensorSpec) -> bool:
    """Whether a tensor chooses the experts; llama-quantize leaves it as it is."""
    return ".ffn_gate_inp" in spec.name
