"""What the documents say is so."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from help_texts import help_texts
from places import DEMO_MODEL, ROOT, SNAPSHOTS

from gguf_export.checking.fit import GIB, fit
from gguf_export.cli import main
from gguf_export.reports.fit_tables import choices_table
from quantize.families import family_of, supported_architectures
from quantize.recipes.ftypes import FTYPES

DOCUMENTS = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
FEWER_BITS = ("IQ3", "IQ2", "IQ1", "TQ", "Q2_0", "Q1_0")
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


def anchors(document: Path) -> list[str]:
    """The headings of a document, spelled as links spell them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_of_the_documents_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text):
        there = document.parent / target if target else document
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), f"{target}#{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_of_the_documents_are_there(document: Path) -> None:
    """Each verb and each of its options that stands in a line of code."""
    text = re.sub(r"\\\n +", " ", document.read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if re.match(" {4,}moe-gguf ", line)]
    for command in [*lines, *re.findall(r"`(moe-gguf [^`]+)`", text)]:
        verb, *words = command.split()[1:]
        if verb not in main.commands and verb.isupper():
            continue  # `moe-gguf COMMAND --help`
        assert verb in main.commands, command
        known = {name for param in main.commands[verb].params for name in param.opts} | {"--help"}
        assert not {word for word in words if re.match("--?[a-z]", word)} - known, command


def test_the_glossary_has_each_word_once() -> None:
    path = ROOT / "docs" / "glossary.md"
    text = path.read_text(encoding="utf-8")
    words = re.findall(r"^### (.+)$", text, re.MULTILINE)
    assert len(anchors(path)) == len(set(anchors(path)))
    spelled = [word for word in words if word[0].isalpha() and word.isascii()]
    assert spelled == sorted(spelled, key=str.lower)


def test_the_sizes_of_the_levels_are_those_that_the_command_prints(tmp_path: Path) -> None:
    folder = tmp_path / "Harmony-4x7B"
    script = ROOT / "scripts" / "make_synthetic.py"
    command = [sys.executable, str(script), str(folder), "--layers", "32", "--no-weights"]
    subprocess.run(command, check=True, capture_output=True)
    found, text = fit(folder), (ROOT / "docs" / "levels.md").read_text(encoding="utf-8")
    fewer = fit(folder, types=[known.name for known in FTYPES if known.name.startswith(FEWER_BITS)])
    for one in (*found.models, *fewer.models):
        on_gpu, in_ram = (
            [need for need in one.needs if need.experts_in_ram is apart] for apart in (False, True)
        )
        sizes = [one.n_bytes, *(need.gpu for need in on_gpu), in_ram[0].ram, *(need.gpu for need in in_ram)]
        assert f"| {one.name} | {' | '.join(f'{size / GIB:.2f}' for size in sizes)} |" in text
    for row in choices_table(found)[1]:
        assert f"| {' | '.join(row)} |" in text


def test_scripts_and_files_that_the_documents_name_are_there() -> None:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for name in re.findall(r"`((?:scripts|tests|quantize|calibration|gguf_export|docs)/[\w./*-]*)", text):
            assert list(ROOT.glob(name.rstrip("/"))), f"{document.name}: {name}"
