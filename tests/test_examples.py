"""Examples in docstrings are true: each is run in its module, and fails where it gives something else."""

from __future__ import annotations

import ast
import doctest
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from inspect import isfunction
from pathlib import Path

import pytest
from places import DEMO_MODEL, ROOT, SCRIPTS

FLOORS = ("quantize", "calibration", "gguf_export")


@dataclass(frozen=True)
class Example:
    """A docstring with lines after `>>>`, and where it stands."""

    module: str
    name: str
    text: str
    path: Path
    line: int

    def run(self, **more: object) -> str:
        """Run it with the names of its module and some more; returns what went otherwise, empty if nothing did."""
        names = dict(vars(import_module(self.module))) | more
        test = doctest.DocTestParser().get_doctest(self.text, names, self.name, str(self.path), self.line)
        said: list[str] = []
        doctest.DocTestRunner(verbose=False).run(test, out=said.append)
        return "".join(said)


def examples_of(module: str, path: Path) -> Iterator[Example]:
    """The examples of a module, read without importing it: what has none costs nothing, torch least of all."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or ""
            if ">>>" in text:
                name = module if isinstance(node, ast.Module) else f"{module}.{node.name}"
                line = 0 if isinstance(node, ast.Module) else node.lineno
                yield Example(module, name, text, path, line)


def examples() -> Iterator[Example]:
    for floor in FLOORS:
        for path in sorted((ROOT / floor).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield from examples_of(module, path)


EXAMPLES = list(examples())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_gives_what_it_says(example: Example, tmp_path: Path) -> None:
    """Examples may use the bundled checkpoint `demo_model`, a `text` of its language and an empty `folder`."""
    text = SCRIPTS / "demo_texts" / "eval.txt"
    assert example.run(demo_model=DEMO_MODEL, text=text, folder=tmp_path) == ""


@pytest.mark.parametrize("floor", FLOORS)
def test_examples_of_what_a_package_offers_are_run(floor: str) -> None:
    package, known = import_module(floor), {example.name for example in EXAMPLES}
    for name in getattr(package, "__all__", ()):
        offered = getattr(package, name)
        if isfunction(offered):
            assert f"{offered.__module__}.{offered.__name__}" in known, f"{floor}.{name} has no example"


def test_an_example_that_is_wrong_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a_wrong_example.py"
    path.write_text('def twice(n):\n    """Double.\n\n    >>> twice(2)\n    5\n    """\n    return 2 * n\n')
    monkeypatch.syspath_prepend(tmp_path)
    (example,) = examples_of("a_wrong_example", path)
    said = example.run()
    assert "Expected:\n    5\nGot:\n    4" in said
