"""Fingerprints lie in journals and states: those of version 0.1.0 must be found again, or runs would begin afresh."""

from __future__ import annotations

import numpy as np
import torch

from calibration.forward.settings import ForwardSettings
from calibration.importance.imatrix import Entry, Imatrix
from calibration.text.chunks import Chunks
from gguf_export.writing import fingerprint
from quantize.hparams import Hparams
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe, RecipeFacts, make_plan
from quantize.tensors import QType, TensorSpec

HPARAMS = Hparams("llama", 1, 64, 32, 32, 1, 1, 8, 32, 1e-5, 1e4, n_expert=2, n_expert_used=1)
SPECS = [TensorSpec("blk.0.ffn_up_exps.weight", (2, 3, 32), QType.BF16)]
CHUNKS = Chunks(("a", "b"), np.arange(24, dtype=np.int32).reshape(3, 8), 1)


def test_of_an_output() -> None:
    plan = make_plan(SPECS, RecipeFacts.of(HPARAMS), Recipe(ftype("Q8_0")), has_imatrix=False)
    assert fingerprint.of_output(b"header", plan, imatrix="none", checkpoint="c", slab_bytes=4096) == {
        "version of moe-gguf": fingerprint.version(),
        "checkpoint": "c",
        "importance matrix": "none",
        "types of the tensors": "3858fb6f3fdd2839cfee5c3d35d3160d",
        "metadata": "d415afd3c257b4d27797b219451e1433",
        "size of the slabs": "4096",
    }


def test_of_a_pass() -> None:
    arithmetic = f"Arithmetic(device='cpu', dtype=torch.float32) torch.bfloat16 torch {torch.__version__}"
    assert fingerprint.of_pass([CHUNKS], ForwardSettings(hidden_dtype=torch.bfloat16)) == {
        "version of moe-gguf": fingerprint.version(),
        "text": "2f75394f1758d599e87494371da38b36",
        "length of the chunks": "8",
        "arithmetic": arithmetic,
    }


def test_of_importances() -> None:
    found = fingerprint.of_calibration(CHUNKS, 0.5, ForwardSettings(dtype=torch.bfloat16))
    assert found == "bc24ea00a0be4bb6acf8596afd8f9335183841d96b6e4f01c74854701044872a"
    imatrix = Imatrix({"x": Entry(np.ones((2, 4), np.float32), np.array([3, 4]))}, prior=8)
    assert fingerprint.of_imatrix(imatrix) == "d3384f41405f3dc133c3cf712d9f2508"
    assert fingerprint.of_imatrix(None) == "none"


def test_differences_are_named() -> None:
    assert fingerprint.difference({"text": "a", "x": "1"}, {"text": "a", "x": "1"}) == ""
    told = fingerprint.difference({"text": "a", "x": "1"}, {"text": "b", "y": "1"})
    assert told == "the text and the x and the y changed since it was stopped"
