"""Write tests/golden/demo_files.json: the SHA-256 of every file of the bundled demo model.

    python tests/golden/make_demo_files.py

The committed sums are those of version 0.1.0, whose encoders the tests held against ggml's, and whose files of a larger
model against llama-quantize's. They are written once: whoever changes bytes on purpose says why.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "helpers")]

from demo_files import demo_sums  # noqa: E402


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        sums = dict(demo_sums(Path(folder)))
    (TESTS / "golden" / "demo_files.json").write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
