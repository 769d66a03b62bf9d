"""A checkpoint exported and its probabilities compared: llama.cpp on the file, transformers on the shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama
import numpy as np

from gguf_export.writing.export import prepare, run
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe
from quantize.sources.checkpoint import open_checkpoint
from quantize.tensors import Array

__all__ = ["check_agreement", "export", "reference_probs"]


def export(model: Path, folder: Path, *ftypes: str, **options: Any) -> dict[str, Path]:
    """Write a model as files of some types into a folder; returns the path of each."""
    recipes = [Recipe(ftype(name)) for name in ftypes]
    done = run(prepare(open_checkpoint(model), recipes, folder, **options), force=True)
    return {name: file.path for name, file in zip(ftypes, done.files, strict=True)}


def reference_probs(model: Path, ids: list[int]) -> Array:
    """(T, V): what transformers' float32 arithmetic gives on the bf16 shards."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logits = loaded(torch.tensor([ids])).logits[0]
    return np.asarray(logits.double().softmax(-1).numpy())


def check_agreement(model: Path, folder: Path) -> None:
    """The probabilities after some tokens are within 0.01 of those of transformers; the file goes into a folder."""
    file = export(model, folder, "F32")["F32"]
    # After these ids no model here is sure of EOS, for which the server would report nothing.
    ids = [1, *np.random.default_rng(2).integers(3, 300, 60).tolist()]
    with llama.serve(file) as server:
        ours = server.next_token_probs(ids)
    assert np.abs(ours - reference_probs(model, ids)[-1]).max() < 0.01
