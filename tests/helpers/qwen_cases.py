"""The checkpoints of `pico_qwen` whose keys and tensors are compared with those of llama.cpp's converter."""

from __future__ import annotations

from typing import Any

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tied": True, "use_sliding_window": True}),
    "qwen3": ("qwen3", {}),
    "qwen3-yarn": ("qwen3", {"rope_scaling": YARN, "n_layer": 1}),
    "qwen2moe": ("qwen2moe", {}),
    "qwen2moe-fused": ("qwen2moe", {"layout": "fused", "n_expert": 3}),
    "qwen2moe-yarn": ("qwen2moe", {"rope_scaling": {**YARN, "attention_factor": 1.25, "beta_fast": 16.0}}),
    "qwen3moe": ("qwen3moe", {"n_layer": 3}),
    "qwen3moe-tied": ("qwen3moe", {"tied": True, "layout": "fused.weight"}),
    "olmoe": ("olmoe", {"rms_norm_eps": 1e-6}),
}
"""Name -> the family, and the options of `pico_qwen`."""
