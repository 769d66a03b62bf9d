"""Checkpoints whose keys llama.cpp's converter has written: tests/golden/make_deep_keys.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from pico_deep import pico_deepseek, pico_glm

YARN = {
    "type": "yarn",
    "factor": 40,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
    "beta_slow": 1,
}

V2, FLASH = "DeepseekV2ForCausalLM", "Glm4MoeLiteForCausalLM"

DEEP_CASES: Mapping[str, Callable[[Path], Path]] = {
    "deepseek-v2": partial(pico_deepseek, architecture=V2),
    "deepseek-v2-lite": partial(
        pico_deepseek, architecture=V2, n_layer=27, q_lora_rank=None, rope_scaling=YARN
    ),
    "deepseek-v3": pico_deepseek,
    "deepseek-v3-mtp": partial(
        pico_deepseek, n_mtp=1, n_shared=1, rope_scaling=YARN | {"mscale_all_dim": 1.0}
    ),
    "glm-flash": partial(pico_deepseek, architecture=FLASH, scoring_func=None, n_mtp=1),
    "glm-flash without mtp": partial(pico_deepseek, architecture=FLASH),
    "glm-4.5": pico_glm,
    "glm-4.5-air": partial(pico_glm, n_layer=2, qk_norm=False, biases=False, stored_mtp=False),
    "glm without mtp": partial(pico_glm, n_mtp=0, norm_topk_prob=False),
}
