"""The smoke test: what llama.cpp answers is judged, and a file that it cannot load is a verdict, no exception."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from places import DEMO_MODEL

from gguf_export import export
from gguf_export.releasing import smoke

ANSWER = {"text": "The sky is red.", "n_token": 5, "is_finite": True}


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "passed"),
        ({"text": "half a sig\ufffd"}, "passed"),
        ({"is_finite": False}, "failed: the scores of the tokens are no numbers"),
        ({"n_token": 0, "text": ""}, "failed: no token was generated"),
        ({"text": "\ufffda\ufffd\x07b"}, "failed: what was generated is no text"),
        ({"fault": "the template\nfails"}, "failed: llama.cpp refuses the dialogue"),
    ],
)
def test_answers_are_judged(change: dict[str, Any], verdict: str) -> None:
    assert smoke._judged(ANSWER | change).startswith(verdict)


def test_without_llama_cpp_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke, "is_installed", lambda: False)
    assert smoke.smoke_test(Path("nowhere.gguf")) == smoke.NOT_RUN
    assert not smoke.has_failed(smoke.NOT_RUN)


@pytest.mark.slow
def test_llama_cpp_writes_with_a_sound_file_only(tmp_path: Path) -> None:
    path = export(DEMO_MODEL, "Q4_K_M", tmp_path, chat_template="chatml").files[0].path
    assert smoke.smoke_test(path) == "passed"
    content = path.read_bytes()
    path.write_bytes(content[:-4096])
    assert smoke.smoke_test(path).startswith("failed: truncated")
    path.write_bytes(content.replace(b"output_norm.weight", b"output_nerm.weight", 1))
    verdict = smoke.smoke_test(path)
    assert verdict.startswith("failed: llama.cpp ended") and str(tmp_path) not in verdict
