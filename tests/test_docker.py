"""The image of the Dockerfile, as far as it can be tried without Docker: what it copies, and its warm start."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from llvmlite import binding
from places import DEMO_MODEL, ROOT

from gguf_export.cli import main
from quantize.blocks.jit import JIT

LINES = re.sub(r" *\\\n *", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8")).splitlines()
STEPS = [tuple(line.split(maxsplit=1)) for line in LINES if line and not line.startswith("#")]
COPIED = [word for kind, words in STEPS if kind == "COPY" for word in words.split()[:-1]]
NO_LEVEL = platform.machine() not in ("x86_64", "AMD64") or not binding.get_host_cpu_features().get("avx2")


def settings() -> dict[str, str]:
    """The environment of the image, the arguments of its building being those by default."""
    given = dict(words.split("=", 1) for kind, words in STEPS if kind == "ARG")
    pairs = [pair.split("=", 1) for kind, words in STEPS if kind == "ENV" for pair in words.split()]
    named = {name: value.strip('"') for name, value in pairs}
    return {
        name: re.sub(r"\$\{(\w+)\}", lambda found: given[found[1]], value) for name, value in named.items()
    }


def test_what_is_copied_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    for name in COPIED:
        assert (ROOT / name).exists()
        assert any(fnmatch(name, rule[1:]) for rule in ignored if rule.startswith("!"))


def test_all_that_is_installed_is_copied() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r"^packages = \[(.*?)\]", project, re.DOTALL | re.MULTILINE)
    assert found
    assert {name.split(".")[0] for name in re.findall(r'"(.+?)"', found[1])} <= set(COPIED)
    assert {"pyproject.toml", "README.md", "LICENSE", "scripts/constraints.txt"} <= set(COPIED)


def test_it_runs_commands_that_are_there_and_not_as_root() -> None:
    run = [words for kind, words in STEPS if kind == "RUN"]
    verbs = [word for words in run for word in re.findall(r"moe-gguf (\w+)", words)]
    assert verbs == ["warm"] and set(verbs) <= set(main.commands)
    order = [kind for kind, _ in STEPS]
    assert order.index("USER") < order.index("ENTRYPOINT")
    assert ("ENTRYPOINT", '["moe-gguf"]') in STEPS
    pinned = [words for words in run if "pip install" in words]
    assert pinned and all("-c scripts/constraints.txt" in words for words in pinned)


@pytest.mark.slow
@pytest.mark.skipif(not JIT or NO_LEVEL, reason="nothing is compiled, or this processor is below the level")
def test_a_container_compiles_nothing(tmp_path: Path) -> None:
    """The steps of the image in a folder, with one type; what it then runs can write nothing but its output."""
    source, cache = tmp_path / "source", tmp_path / "kernels"
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    env = {**os.environ, **settings(), "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(source)}
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    command = [sys.executable, "-c", "from gguf_export.cli import main; main(prog_name='moe-gguf')"]

    def run(*words: object) -> str:
        done = subprocess.run(
            [*command, *map(str, words)], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    warmed = run("warm", "BF16", "Q1_0", "--no-feedback")
    assert f"kernels for {settings()['NUMBA_CPU_NAME']} in {cache}" in warmed
    kept = {path: path.stat().st_mtime_ns for path in cache.rglob("*.nbc")}
    for folder in [*cache.rglob("*"), cache]:
        folder.chmod(0o555 if folder.is_dir() else 0o444)
    run("export", DEMO_MODEL, "-t", "BF16", "-o", tmp_path / "out")
    assert kept and {path: path.stat().st_mtime_ns for path in cache.rglob("*.nbc")} == kept
