"""The checkpoints of `pico_oss` whose keys and tensors are compared with those of llama.cpp's converter."""

from __future__ import annotations

from typing import Any

ATTENTION_FACTOR = {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.25, "beta_fast": 16.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt-oss": ("gpt-oss", {"n_layer": 3}),
    "gpt-oss-mxfp4": ("gpt-oss", {"layout": "mxfp4", "n_expert": 3}),
    "gpt-oss-defaults": ("gpt-oss", {"rope_scaling": None, "rope_theta": None, "n_layer": 1}),
    "gpt-oss-yarn": ("gpt-oss", {"rope_scaling": ATTENTION_FACTOR}),
    "phimoe": ("phimoe", {}),
    "phimoe-short": ("phimoe", {"max_position_embeddings": 64, "n_layer": 1}),
    "phimoe-unstretched": ("phimoe", {"rope_scaling": None, "sliding_window": None, "n_expert": 3}),
    "granitemoe": ("granitemoe", {"n_layer": 3}),
    "granitemoe-tied": ("granitemoe", {"tied": True, "rope_scaling": {"type": "linear", "factor": 2.0}}),
    "granitemoe-zeros": (
        "granitemoe",
        {"attention_multiplier": 0.0, "embedding_multiplier": 0, "n_layer": 1},
    ),
    "granitemoeshared": ("granitemoeshared", {}),
}
"""Name -> the family, and the options of `pico_oss`."""
