"""Write tests/golden/tokens.json: llama.cpp's tokens of the texts of `TOKEN_CASES`.

    python tests/golden/make_tokens.py

exports each model and asks llama.cpp (xllamacpp; the committed file: 2026.10.11549) for the ids of each text, without
and with parsing of special tokens.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "helpers")]

from llama import serve  # noqa: E402
from places import GOLDEN  # noqa: E402
from token_cases import TOKEN_CASES  # noqa: E402

from gguf_export.writing.export import prepare, run  # noqa: E402
from quantize.recipes.ftypes import ftype  # noqa: E402
from quantize.recipes.recipe import Recipe  # noqa: E402
from quantize.sources.checkpoint import open_checkpoint  # noqa: E402


def main() -> None:
    lines = []
    for name, case in TOKEN_CASES.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            case.build(folder)
            job = prepare(open_checkpoint(folder), [Recipe(ftype("BF16"))], Path(temporary), pre=case.pre)
            run(job, jobs=1)
            with serve(job.files[0].path) as llama:
                ids = [
                    [llama.tokenize(text, add_special=False, parse_special=parse) for parse in (False, True)]
                    for text in case.texts
                ]
        lines.append(f"{json.dumps(name)}: {json.dumps(ids)}")
    (GOLDEN / "tokens.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
