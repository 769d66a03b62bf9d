"""Write tests/golden/parts.json: the SHA-256 of the parts into which llama.cpp's programs cut a small model.

    python tests/golden/make_parts.py FOLDER

FOLDER holds llama-quantize and llama-gguf-split. "split" are the parts of llama-quantize's file, "source" those of the
model itself, "kept" what llama-quantize --keep-split makes of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "helpers")]

from part_cases import CUTS, KEPT, SPLITS, hashes, write_source  # noqa: E402
from places import GOLDEN  # noqa: E402

PROGRAMS = Path(sys.argv[1])


def call(program: str, *words: object) -> str:
    """Run one of llama.cpp's programs; what it says."""
    command = [str(PROGRAMS / program), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def main() -> None:
    """Cut the model in every way and write the hashes."""
    version = next(line for line in call("llama-gguf-split", "--version").splitlines() if "version" in line)
    found: dict[str, object] = {"llama.cpp": version.strip()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write_source(folder / "Parts-BF16.gguf")
        whole = folder / "Parts-Q4_K_M.gguf"
        call("llama-quantize", source, whole, "Q4_K_M")
        split = {}
        for case, options in SPLITS.items():
            (folder / case).mkdir()
            call("llama-gguf-split", "--split", *options, whole, folder / case / whole.stem)
            split[case] = hashes(folder / case)
        sources, kept = {}, {}
        for case, first_options in CUTS.items():
            parts = folder / f"source {case}"
            parts.mkdir()
            options = (*first_options, "--split-max-tensors", "5")
            call("llama-gguf-split", "--split", *options, source, parts / source.stem)
            sources[case] = hashes(parts)
            first = min(parts.iterdir())
            for ftype in KEPT:
                made = folder / f"{case} {ftype}"
                made.mkdir()
                call("llama-quantize", "--keep-split", first, made / f"Parts-{ftype}.gguf", ftype)
                kept[f"{case} {ftype}"] = hashes(made)
    found |= {"split": split, "source": sources, "kept": kept}
    (GOLDEN / "parts.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
