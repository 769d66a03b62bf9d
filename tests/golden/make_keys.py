"""Write tests/golden/keys.json and model_ids.json: what llama.cpp's converter makes of tokenizer_cases.py.

    python tests/golden/make_keys.py LLAMA_CPP_SOURCE

runs `convert_hf_to_gguf.py --outtype bf16` of that source tree (the committed files: commit 0c1e5709, transformers
5.23) on each case and reads its output back with gguf's reader. Its table of pre-tokenizer hashes does not know the
little byte-level vocabulary, so there get_vocab_base_pre is made to answer `PRE`. Long arrays are kept as hashes.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "helpers")]

from gguf import GGUFReader, GGUFValueType  # noqa: E402
from golden_keys import CONVERT, record  # noqa: E402
from places import GOLDEN  # noqa: E402
from tokenizer_cases import CASES, PRE, is_byte_level  # noqa: E402

SPLIT = """
import json, sys
source, *ids = sys.argv[1:]
sys.path.insert(0, source + "/gguf-py")
from gguf.metadata import Metadata
for line in sys.stdin:
    model_id, n_total = json.loads(line)
    parts = Metadata.get_model_id_components(model_id, n_total)
    print(json.dumps([model_id, n_total, *parts, Metadata.id_to_title(model_id)]))
"""

WORDS = """Mixtral mixtral 8x7B 4x7b 7B 13b 7b1 1_5B 1.5b A22B a3b v0.1 V2 3 3.1 iter2 chat Instruct vision lora Q4_K
q8_0 bf16 BF16 fp16 f16 mini small XXL large 128k Harmony nano moe é _x 1 0x 2x instruct2 GGUF iq2_xs 100T 5M
K""".split()  # noqa: SIM905
KNOWN = """Harmony-4x7B-bf16 mistralai/Mistral-7B-Instruct-v0.2 mistralai/Mixtral-8x7B-v0.1 microsoft/phi-3-mini-4k
teknium/OpenHermes-2.5-Mistral-7B bigscience/bloom-7b1 Qwen/Qwen3-30B-A3B-Instruct-2507 ./model ../x/y a/b/c
ibm-granite/granite-3.1-3b-a800m-instruct harmony-nano NousResearch/Meta-Llama-3-8B Llama-2-7b-chat-hf""".split()  # noqa: SIM905


def convert(source: str, folder: Path, pre: str) -> list[list[Any]]:
    output = folder.with_suffix(".gguf")
    arguments = [str(folder), "--outtype", "bf16", "--outfile", str(output)]
    subprocess.run([sys.executable, "-c", CONVERT, source, pre, *arguments], check=True, capture_output=True)
    fields = [field for key, field in GGUFReader(output).fields.items() if not key.startswith("GGUF.")]
    return [
        record(
            field.name,
            GGUFValueType(field.types[0]),
            GGUFValueType(field.types[1]) if len(field.types) > 1 else None,
            field.contents(),
        )
        for field in fields
    ]


def main() -> None:
    source = sys.argv[1]
    keys = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, build in CASES.items():
            build(Path(scratch) / name)
            keys[name] = convert(source, Path(scratch) / name, PRE if is_byte_level(name) else "")
            print(f"{name}: {len(keys[name])} keys")
    lines = [
        f"{json.dumps(name)}: [\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]"
        for name, rows in keys.items()
    ]
    (GOLDEN / "keys.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")

    choose = random.Random(0)
    ids = [(model_id, 7_000_000_000) for model_id in KNOWN] + [("A sentence, no id", 0)]
    for _ in range(300):
        model_id = "-".join(choose.choice(WORDS) for _ in range(choose.randint(1, 6)))
        prefix = choose.choice(["", "", "org/", ".../"])
        ids.append((prefix + model_id, choose.choice([0, 7_000_000_000, 24_000_000_000, 17_000_000])))
    told = subprocess.run(
        [sys.executable, "-c", SPLIT, source],
        input="".join(json.dumps(one) + "\n" for one in ids),
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    rows = ",\n".join(json.dumps(json.loads(line), ensure_ascii=False) for line in told.splitlines())
    (GOLDEN / "model_ids.json").write_text(f"[\n{rows}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
