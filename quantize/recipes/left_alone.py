"""Which tensors no file type changes, and the type in which they are left.

llama-quantize decides the first by name and rank (src/llama-quant.cpp: tensor_allows_quantization), llama.cpp's
converter the second (conversion/base.py: prepare_tensors); whoever quantizes a GGUF leaves them as they are stored.
"""

from __future__ import annotations

from quantize.tensors import QType, TensorSpec

__all__ = ["FLOATS", "allows_quantization", "converted_type"]

FLOATS = (QType.F32, QType.F16, QType.BF16)
"""The types that a converter chooses from."""

_CONVERTED_TO_F32 = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_inp_shexp.weight",
    "ssm_conv1d.weight",
    "shortconv.conv.weight",
    "indexer.proj.weight",
)
"""Small tensors in which every bit counts; those of RWKV, BERT, gemma3n, glm5-next and vision are not listed."""

_KEEP_MATRICES = ("dbrx",)
"""Architectures of which all matrices, routers among them, keep the source's type (conversion/dbrx.py)."""

_KEPT = (
    *("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel"),
    *("per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight", "attn_rel_b.weight"),
    *("indexer.k_proj.weight", "indexer.q_proj.weight"),
    *(f"time_mix_{part}.weight" for part in ("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2")),
    *(f"time_mix_{part}.weight" for part in ("g1", "g2", "decay_w1", "decay_w2", "lerp_fused")),
    *(".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger"),
    *("a.rvq.codebook", "mm.a.code_embd"),
)
"""Parts of the names of tensors that are small, or whose every weight counts."""

_KEPT_NAMES = ("position_embd.weight", "token_types.weight")

_KEPT_IN = {
    "glm5-next": (
        *("hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate"),
        *("indexer_compressor_ape", "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight", "ssm_g_b.weight"),
        *("ssm_beta.weight", "attn_kv_a_mqa.weight", "attn_k_b.weight", "attn_v_b.weight"),
    )
}
"""The same, of one architecture."""


def allows_quantization(spec: TensorSpec, arch: str) -> bool:
    """Whether the type of a tensor may be changed: it has two axes or more, is called a weight, and is not small.

    Args:
        spec: the tensor.
        arch: of the model, as general.architecture names it.
    """
    name = spec.name
    # llama.cpp compares places in the name, and finds none just where a name of five bytes would have it.
    is_weight = name.endswith("weight") or len(name.encode()) == 5
    return (
        any(n > 1 for n in spec.shape[:-1])  # ggml_n_dims >= 2
        and is_weight
        and name not in _KEPT_NAMES
        and not any(part in name for part in (*_KEPT, *_KEPT_IN.get(arch, ())))
    )


def converted_type(spec: TensorSpec, arch: str = "") -> QType:
    """The type that llama.cpp's converter gives a tensor before anything is quantized.

    Vectors, norms, routers and whatever is not called `.weight` are F32; the others keep the source's type.
    """
    if spec.qtype not in FLOATS or (arch in _KEEP_MATRICES and len(spec.shape) > 1):
        return spec.qtype
    always_f32 = (
        len(spec.shape) <= 1 or spec.name.endswith(_CONVERTED_TO_F32) or not spec.name.endswith(".weight")
    )
    return QType.F32 if always_f32 else spec.qtype
