"""The TAB key offers the names that an option takes, at once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from click.shell_completion import BashComplete, CompletionItem

from gguf_export.cli import main
from quantize.blocks import WRITABLE
from quantize.recipes.ftypes import FTYPES


def offered(words: str, begun: str = "") -> list[CompletionItem]:
    complete = BashComplete(main, {}, "moe-gguf", "_MOE_GGUF_COMPLETE")
    return complete.get_completions(words.split(), begun)


def names(words: str, begun: str = "") -> list[str]:
    return [item.value for item in offered(words, begun)]


FILE_TYPES = [known.name for known in FTYPES]
TENSOR_TYPES = [known.name for known in WRITABLE]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("export model -t", [*FILE_TYPES, "COPY"]),
        ("export model --like", FILE_TYPES),
        ("plan model --like", FILE_TYPES),
        ("plan model -t", TENSOR_TYPES),
        ("export model --candidates", TENSOR_TYPES),
        ("export model --output-tensor-type", TENSOR_TYPES),
        ("quantize a.gguf b.gguf --token-embedding-type", TENSOR_TYPES),
        ("compare model --type", FILE_TYPES),
        ("inspect model --fit -t", FILE_TYPES),
        ("inspect model --fit --cache-type", ["f16", "q8_0"]),
        ("errors model -t", list(dict.fromkeys([*TENSOR_TYPES, *FILE_TYPES]))),
        ("compare model --activations", ["exact", "int8"]),
        ("imatrix model --device", ["cpu", "cuda", "mps"]),
    ],
)
def test_all_names_are_offered(words: str, expected: list[str]) -> None:
    assert names(words) == expected


def test_what_was_begun_is_finished_in_any_case() -> None:
    assert names("export model -t", "q4_k") == ["Q4_K_M", "Q4_K_S"]
    assert names("export model --pre", "qwen") == ["qwen2", "qwen35"]
    assert names("export model -t Q8_0 -t", "iq4") == ["IQ4_NL", "IQ4_XS"]
    assert names("export model -t", "x") == []


def test_files_are_offered_beside_names() -> None:
    assert [(item.value, item.type) for item in offered("quantize a.gguf", "q5_k_m")] == [
        ("Q5_K_M", "plain"),
        ("q5_k_m", "file"),
    ]
    assert [(item.value, item.type) for item in offered("verify a.gguf --against m --imatrix", "n")] == [
        ("none", "plain"),
        ("n", "file"),
    ]
    assert [item.type for item in offered("inspect", "mod")] == ["file"]


def test_nothing_heavy_is_imported_for_it() -> None:
    script = (
        "import sys; from gguf_export.cli import main\n"
        "try: main(prog_name='moe-gguf')\n"
        "except SystemExit: pass\n"
        "print([name for name in ('numba', 'torch', 'matplotlib', 'rich', 'jinja2') if name in sys.modules])"
    )
    for words in ("moe-gguf export m -t Q3", "moe-gguf export m --pre ll"):
        asked = {
            "_MOE_GGUF_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, **asked},
            capture_output=True,
            text=True,
            check=True,
        )
        *lines, heavy = done.stdout.splitlines()
        assert lines and heavy == "[]", done.stdout
