"""The small files that programs look for beside the GGUF files: LM Studio's model.yaml, Ollama's Modelfile and params.

model.yaml: https://lmstudio.ai/docs/app/modelyaml. Modelfile: Ollama's docs/modelfile. params: the Hub's page on Ollama
(https://huggingface.co/docs/hub/ollama), a JSON object of the same parameters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from gguf_export.releasing.about import About
from quantize.containers.untrusted import printable

__all__ = ["model_yaml", "modelfile", "params_json"]

OLLAMA = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repeat_penalty",
    "penalty_last_n": "repeat_last_n",
}
"""Names of `general.sampling.*` -> Ollama's."""

LM_STUDIO = {
    "temp": ("llm.prediction.temperature", False),
    "top_k": ("llm.prediction.topKSampling", False),
    "top_p": ("llm.prediction.topPSampling", True),
    "min_p": ("llm.prediction.minPSampling", True),
    "penalty_repeat": ("llm.prediction.repeatPenalty", True),
}
"""Names of `general.sampling.*` -> LM Studio's fields, and whether each has a switch."""


def model_yaml(about: About, repo: str, least_bytes: int) -> str:
    """LM Studio's model.yaml.

    Args:
        about: the model.
        repo: owner/name, where the folder is published.
        least_bytes: size of the smallest file.
    """
    owner, _, name = repo.partition("/")
    told: dict[str, Any] = {
        "model": repo.lower(),
        "base": [
            {"key": repo.lower(), "sources": [{"type": "huggingface", "user": owner, "repo": name}]},
        ],
        "metadataOverrides": {
            "domain": "llm",
            "architectures": [about.arch],
            "compatibilityTypes": ["gguf"],
            "paramsStrings": [about.size_label],
            "minMemoryUsageBytes": least_bytes,
            "contextLengths": [about.n_ctx_train],
        },
    }
    fields = [
        {
            "key": LM_STUDIO[key][0],
            "value": {"checked": True, "value": value} if LM_STUDIO[key][1] else value,
        }
        for key, value in about.sampling.items()
        if key in LM_STUDIO
    ]
    if fields:
        told["config"] = {"operation": {"fields": fields}}
    return yaml.safe_dump(told, sort_keys=False, allow_unicode=True)


def modelfile(about: About, file: str) -> str:
    """Ollama's Modelfile; it holds no TEMPLATE, because Ollama takes the one in the GGUF file."""
    lines = [f"FROM ./{printable(file)}"]
    lines += [f"PARAMETER {name} {value}" for name, value in _parameters(about.sampling).items()]
    return "\n".join([*lines, ""])


def params_json(about: About) -> str:
    """Ollama's parameters, which it takes when it pulls from the Hub."""
    return json.dumps(_parameters(about.sampling), indent=2) + "\n"


def _parameters(sampling: Mapping[str, str | int | float]) -> dict[str, str | int | float]:
    return {OLLAMA[key]: value for key, value in sampling.items() if key in OLLAMA}
