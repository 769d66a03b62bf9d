"""Write tests/golden/keys_oss.json: what llama.cpp's converter makes of the checkpoints of helpers/pico_oss.py.

    python tests/golden/make_keys_oss.py LLAMA_CPP_SOURCE

runs `convert_hf_to_gguf.py --outtype bf16` of that source tree (the committed file: commit 0c1e5709, transformers
5.23) on each case, with the little byte-level vocabulary of make_keys.py (Phi-MoE, whose class asks for
tokenizer.model, with pico's), and keeps the `{arch}.*` keys and the tensors: name, type, shape in NumPy's order, and of
MXFP4 a hash of the bytes.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "helpers")]

from gguf import GGMLQuantizationType as QType  # noqa: E402
from gguf import GGUFReader, GGUFValueType  # noqa: E402
from golden_keys import CONVERT, record  # noqa: E402
from oss_cases import CASES  # noqa: E402
from pico_oss import pico_oss  # noqa: E402
from places import GOLDEN  # noqa: E402
from tokenizer_cases import PRE, byte_level, write_json  # noqa: E402


def converted(source: str, folder: Path) -> dict[str, Any]:
    output = folder.with_suffix(".gguf")
    arguments = [str(folder), "--outtype", "bf16", "--outfile", str(output)]
    command = [sys.executable, "-c", CONVERT, source, PRE, *arguments]
    subprocess.run(command, check=True, capture_output=True)
    reader = GGUFReader(output)
    arch = str(reader.fields["general.architecture"].contents())
    keys = [
        record(name, GGUFValueType(field.types[0]), None, field.contents())
        for name, field in reader.fields.items()
        if name.startswith(f"{arch}.")
    ]
    tensors = {
        tensor.name: [tensor.tensor_type.name, [int(n) for n in reversed(tensor.shape)]]
        + [hashlib.sha256(tensor.data.tobytes()).hexdigest()] * (tensor.tensor_type == QType.MXFP4)
        for tensor in reader.tensors
    }
    return {"keys": keys, "tensors": dict(sorted(tensors.items()))}


def main() -> None:
    made = {}
    with tempfile.TemporaryDirectory() as scratch:
        for case, (name, options) in CASES.items():
            folder = pico_oss(Path(scratch) / case, name, tokenizer=name == "phimoe", **options)
            if name != "phimoe":
                write_json(folder, "tokenizer.json", byte_level())
                write_json(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
            made[case] = converted(sys.argv[1], folder)
            print(f"{case}: {len(made[case]['keys'])} keys, {len(made[case]['tensors'])} tensors")
    lines = [
        f"{json.dumps(case)}: {{\n"
        + ",\n".join(f"{json.dumps(part)}: {json.dumps(rows)}" for part, rows in parts.items())
        + "\n}"
        for case, parts in made.items()
    ]
    (GOLDEN / "keys_oss.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
