"""Write tests/golden/imatrix_tool.json: what llama-imatrix shows of the files of tests/helpers/imatrix_inputs.py, and
the SHA-256 of what it merges them to.

    python tests/golden/make_imatrix_tool.py llama-imatrix

llama.cpp 0.5.0-dev (commit 1652066), x86-64. The program leaves before all of its log is written, more often than not:
it is asked, with a terminal as its output, until the last line has come.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "helpers")]

from imatrix_inputs import MERGES, REFUSED, SHOWN, merge_name, write_inputs  # noqa: E402
from places import GOLDEN  # noqa: E402

MOST_TRIES = 1000
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
PREFIX = re.compile(r"^[0-9.]+ [A-Z] ")


def call(program: str, folder: Path, words: Sequence[str]) -> tuple[int, list[str]]:
    """The exit status and the lines of the program, without colours and times; it needs no model, only its name."""
    line = shlex.join([program, "-m", "none", *words])
    done = subprocess.run(["script", "-qec", line, "/dev/null"], cwd=folder, capture_output=True, check=False)
    text = COLOUR.sub("", done.stdout.decode().replace("\r", ""))
    return done.returncode, [PREFIX.sub("", one) for one in text.splitlines()]


def statistics(program: str, folder: Path, name: str) -> list[str]:
    """The lines with numbers."""
    for _ in range(MOST_TRIES):
        _, lines = call(program, folder, ["--in-file", name, "--show-statistics"])
        told = re.search(r"\((\d+) tensors\)(?:.|\n)*\((\d+) layers\)", "\n".join(lines))
        rows = [line for line in lines if line.count("\t") in (3, 12) and "CosSim" not in line]
        if told and len(rows) == int(told[1]) + int(told[2]):
            return rows
    raise SystemExit(f"{name}: the last line never came")


def merge(program: str, folder: Path, files: Sequence[str], n_ctx: int, form: str) -> str:
    words = ["--in-file", ",".join(files), "-c", str(n_ctx), "--output-format", form, "-o", "merged"]
    status, lines = call(program, folder, words)
    if status:
        raise SystemExit(f"{files}: {lines}")
    return hashlib.sha256((folder / "merged").read_bytes()).hexdigest()


def main() -> None:
    program = str(Path(sys.argv[1]).resolve())
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    with tempfile.TemporaryDirectory() as name:
        folder = write_inputs(Path(name))
        found = {
            "version": (version.stdout + version.stderr).splitlines()[0],
            "statistics": {name: statistics(program, folder, name) for name in SHOWN},
            "merges": {merge_name(*case): merge(program, folder, *case) for case in MERGES},
        }
        for files in REFUSED:
            if not call(program, folder, ["--in-file", ",".join(files), "-o", "refused"])[0]:
                raise SystemExit(f"{files} are not refused")
    (GOLDEN / "imatrix_tool.json").write_text(
        json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
