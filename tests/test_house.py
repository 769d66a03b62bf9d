"""The order of the house: imports go down, modules stay small, only the top speaks to people."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

from gguf_export.cli import main

FLOORS = ("quantize", "calibration", "gguf_export")
MAX_MODULE = 320  # lines
MAX_BODY = 60  # lines of a function without its docstring


def modules() -> Iterator[Path]:
    for floor in FLOORS:
        yield from sorted((ROOT / floor).rglob("*.py"))


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in modules():
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of pyproject.toml on the packages in a folder."""
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command as c; c()",
        "--no-cache",
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The packages and their contracts, free to be changed."""
    for floor in FLOORS:
        shutil.copytree(ROOT / floor, tmp_path / floor, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_go_down(copy: Path) -> None:
    done = lint_imports(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("room", "line", "contract"),
    [
        ("quantize/codec.py", "from calibration.text import chunks", "Floors"),
        ("calibration/forward/hidden.py", "import gguf_export.files", "Floors"),
        ("quantize/containers/untrusted.py", "import quantize.recipes.ftypes", "ground floor"),
        ("calibration/text/chunks.py", "from calibration.judging import kld", "first floor"),
        ("gguf_export/files/disk.py", "from gguf_export.writing import sink", "top floor"),
    ],
)
def test_an_import_that_goes_up_is_refused(copy: Path, room: str, line: str, contract: str) -> None:
    with (copy / room).open("a", encoding="utf-8") as file:
        file.write(f"\n\ndef planted() -> None:\n    {line}\n")
    done = lint_imports(copy)
    broken = [row for row in done.stdout.splitlines() if row.endswith("BROKEN")]
    assert done.returncode != 0 and any(contract in row for row in broken), done.stdout


def test_a_folder_without_a_place_in_the_order_is_refused(copy: Path) -> None:
    (copy / "quantize" / "attic").mkdir()
    (copy / "quantize" / "attic" / "__init__.py").write_text('"""Has no place."""\n', encoding="utf-8")
    done = lint_imports(copy)
    assert done.returncode != 0 and "attic" in done.stdout, done.stdout


def test_every_folder_says_what_lives_there() -> None:
    folders = {path.parent for path in modules()}
    for folder in sorted(folders):
        doc = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert doc and len(doc.split()) >= 10, f"{folder.relative_to(ROOT)}/__init__.py"


def test_every_folder_is_packaged() -> None:
    listed = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for folder in sorted({path.parent for path in modules()}):
        name = ".".join(folder.relative_to(ROOT).parts)
        assert f'"{name}",' in listed, f"{name} is missing in pyproject.toml's packages"


def test_modules_and_functions_are_small() -> None:
    large = []
    for path in modules():
        n_lines = len(path.read_text(encoding="utf-8").splitlines())
        if n_lines > MAX_MODULE:
            large.append(f"{path.relative_to(ROOT)}: {n_lines} lines")
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                n_lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]
                if n_lines > MAX_BODY:
                    large.append(f"{name}: {node.name}: {n_lines} lines")
    assert not large, "\n".join(large)


def test_only_the_command_line_parses_prints_and_exits() -> None:
    for name, tree in trees():
        if name.startswith(("gguf_export/commands/", "gguf_export/cli.py")):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                imported = [one.name for one in node.names] + [getattr(node, "module", None) or ""]
                assert not {"click", "rich"} & {one.partition(".")[0] for one in imported}, name
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "sys.exit", "exit", "quit"), f"{name}:{node.lineno}: {called}"


def test_the_library_names_no_switches() -> None:
    """Messages name settings; the command line spells them as switches."""
    params = [param for verb in main.commands.values() for param in verb.params]
    own = {name for param in params for name in param.opts if name.startswith("--")}
    switches = []
    for name, tree in trees():
        if name.startswith(("gguf_export/commands/", "gguf_export/cli.py")):
            continue
        docs = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                words = [word for word in node.value.split() if word.strip(".,;:()") in own and len(word) > 2]
                switches += [f"{name}:{node.lineno}: {word}" for word in words]
    assert not switches, "\n".join(switches)
