"""Write tests/golden/quantized.json: the SHA-256 of what llama-quantize makes, command line by command line.

    python tests/golden/make_quantized.py PATH_TO_LLAMA_QUANTIZE

A command that fails leaves no file. The committed sums are of the program that the data names: a release build for
x86-64, one thread or several, which makes no difference.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "helpers")]

from quantized_cases import commands, write_sources  # noqa: E402


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("program", type=Path)
    program = str(parser.parse_args().program.resolve())
    version = ""
    made: dict[str, dict[str, str] | None] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sources(folder)
        sources = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        for line in commands():
            words = [program, *shlex.split(line)]
            done = subprocess.run(
                words, cwd=folder, capture_output=True, text=True, errors="replace", check=False
            )
            said = (done.stdout + done.stderr).splitlines()
            version = version or next((row for row in said if row.startswith("version: ")), "")
            new = [path for path in folder.iterdir() if path.name not in sources]
            made[line] = None if done.returncode else {path.name: sha256(path) for path in new}
            for path in new:
                path.unlink()
            changed = [name for name, known in sources.items() if sha256(folder / name) != known]
            if changed:
                raise SystemExit(f"{line}: changed {changed}")
            if done.returncode:
                reason = [row for row in said if "rror" in row or "failed" in row][-1:] or said[:1]
                print(f"{line}: exit status {done.returncode}: {reason}")
    data = {"program": version, "sources": sources, "made": made}
    (TESTS / "golden" / "quantized.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
