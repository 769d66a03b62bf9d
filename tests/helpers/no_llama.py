"""Releases without llama.cpp: random weights write no text."""

from __future__ import annotations

import pytest

from gguf_export.releasing import bundle, job, steps

__all__ = ["leave_out_llama_cpp"]


def leave_out_llama_cpp(patch: pytest.MonkeyPatch) -> None:
    """Each file passes the smoke test, by a program that stands for llama.cpp."""
    patch.setattr(steps, "smoke_test", lambda path: "passed")
    for module in (steps, job, bundle):
        patch.setattr(module, "program", lambda: "xllamacpp 1.2")
