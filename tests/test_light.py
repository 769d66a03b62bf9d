"""What needs no text needs no torch; what only answers a question answers at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from imatrix_inputs import write_inputs
from places import DEMO_MODEL

HEAVY = (
    "torch",
    "numba",
    "numpy",
    "gguf",
    "jinja2",
    "matplotlib",
    "rich",
    "transformers",
    "filelock",
    "yaml",
    "huggingface_hub",
    "ray",
)

WITHOUT_TORCH = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise AssertionError("torch is imported")

sys.meta_path.insert(0, Refused())
from gguf_export.cli import main
for words in ({words}):
    try:
        main(words)
    except SystemExit as left:
        assert left.code in (0, None), words
assert "torch" not in sys.modules
assert "ray" not in sys.modules
assert "huggingface_hub" not in sys.modules  # nothing here is on the Hub
"""


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["export", "--help"], ["compare", "--help"]])
def test_questions_are_answered_without_heavy_imports(words: list[str]) -> None:
    script = f"import sys\nfrom gguf_export.cli import main\ntry: main({words!r})\nexcept SystemExit: pass\n"
    printed = run(f"{script}print([name for name in {HEAVY!r} if name in sys.modules])")
    assert len(printed.splitlines()) > 1 and printed.strip().endswith("[]")


def test_files_are_made_and_checked_without_torch(tmp_path: Path) -> None:
    model, folder = str(DEMO_MODEL), str(tmp_path)
    importances = str(write_inputs(tmp_path) / "a.gguf")
    file = str(tmp_path / "Demo-4x2.0M-Q4_K_M.gguf")
    words = [
        ["export", model, "-t", "Q4_K_M", "-o", folder, "--quiet"],
        ["doctor", model, "--quiet"],
        ["verify", file, "--against", model, "--quiet"],
        ["inspect", file],
        ["inspect", model],
        ["inspect", importances],
        ["imatrix", "--merge", importances, importances, "-o", str(tmp_path / "twice.gguf")],
    ]
    run(WITHOUT_TORCH.replace("{words}", ", ".join(map(repr, words))))


def test_the_process_for_templates_loads_little() -> None:
    script = "import sys\nimport calibration.chat.worker\n"
    loaded = [*(name for name in HEAVY if name != "jinja2"), "click", "quantize.containers"]
    assert run(f"{script}print([name for name in {loaded!r} if name in sys.modules])").strip() == "[]"
