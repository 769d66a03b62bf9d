"""What the documents say is so."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
from help_texts import help_texts
from places import DEMO_MODEL, ROOT, SNAPSHOTS

from gguf_export.cli import main
from quantize.families import family_of, supported_architectures

README = (ROOT / "README.md").read_text(encoding="utf-8")
HELP = help_texts()


@pytest.mark.parametrize("name", sorted(HELP))
def test_help_is_the_snapshot(name: str) -> None:
    """A lost option or a changed default shows here; scripts/update_help writes what is meant."""
    assert HELP[name] == (SNAPSHOTS / "help" / f"{name}.txt").read_text(encoding="utf-8")


def test_every_snapshot_is_of_a_command() -> None:
    assert {path.stem for path in (SNAPSHOTS / "help").iterdir()} == set(HELP)


@pytest.mark.parametrize("verb", sorted(main.commands))
def test_readme_names_every_verb(verb: str) -> None:
    assert f"| `moe-gguf {verb} " in README


@pytest.mark.parametrize("architecture", supported_architectures())
def test_readme_names_every_architecture(architecture: str) -> None:
    other_spellings = ("LLaMAForCausalLM", "LlamaModel", "Ernie4_5_ForCausalLM")
    arch = family_of({"architectures": [architecture]}).arch
    rows = [line for line in README.splitlines() if line.startswith("| ") and architecture in line]
    assert architecture in other_spellings or (len(rows) == 1 and arch in rows[0])


def test_readme_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert snippets
    (tmp_path / "Harmony-4x7B-bf16").symlink_to(DEMO_MODEL)
    (tmp_path / "calibration.txt").symlink_to(DEMO_MODEL.parent / "demo_texts" / "documentation.txt")
    (tmp_path / "eval.txt").symlink_to(DEMO_MODEL.parent / "demo_texts" / "eval.txt")
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for snippet in snippets:
            exec(compile(snippet, "README.md", "exec"), {})
    assert printed.getvalue()


def test_the_changelog_begins_with_the_version() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    version = re.search(
        r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert newest and version and newest[1] == version[1]


def test_links_of_the_documents_lead_somewhere() -> None:
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_scripts_and_files_that_the_documents_name_are_there() -> None:
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        text = document.read_text(encoding="utf-8")
        for name in re.findall(r"`((?:scripts|tests|quantize|calibration|gguf_export|docs)/[\w./*-]*)", text):
            assert list(ROOT.glob(name.rstrip("/"))), f"{document.name}: {name}"
