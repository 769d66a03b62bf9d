"""Write tests/golden/vocab_rules.json: the tokenizer.* keys that llama.cpp's converter makes of `VOCAB_CASES`.

    python tests/golden/make_vocab_rules.py LLAMA_CPP_SOURCE

runs `convert_hf_to_gguf.py --vocab-only` as make_keys.py does it (the committed file: the source in llama-cpp-python
0.3.36, transformers 5.23). Long arrays are kept as hashes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "helpers")]

from gguf import GGUFReader, GGUFValueType  # noqa: E402
from golden_keys import CONVERT, record  # noqa: E402
from places import GOLDEN  # noqa: E402
from vocab_rule_cases import VOCAB_CASES  # noqa: E402


def main() -> None:
    source = sys.argv[1]
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for index, (name, case) in enumerate(VOCAB_CASES.items()):
            folder, output = Path(scratch) / str(index), Path(scratch) / f"{index}.gguf"
            case.make(folder)
            arguments = [str(folder), "--vocab-only", "--outfile", str(output)]
            subprocess.run([sys.executable, "-c", CONVERT, source, case.pre or "", *arguments], check=True)
            rows = [
                record(
                    field.name,
                    GGUFValueType(field.types[0]),
                    GGUFValueType(field.types[1]) if len(field.types) > 1 else None,
                    field.contents(),
                )
                for key, field in GGUFReader(output).fields.items()
                if key.startswith("tokenizer.")
            ]
            lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
            found.append(f"{json.dumps(name)}: [\n{lines}\n]")
    (GOLDEN / "vocab_rules.json").write_text("{\n" + ",\n".join(found) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
