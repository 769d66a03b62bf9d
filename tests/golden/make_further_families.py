"""Write tests/golden/further_families.json: what llama.cpp's converter makes of the checkpoints of pico_further.py.

    python tests/golden/make_further_families.py LLAMA_CPP_SOURCE

runs `convert_hf_to_gguf.py --outtype bf16` of that source tree (the committed file: commit 0c1e5709) on each case and
keeps the `{arch}.*` keys in their order, and type, shape and SHA-256 of the bytes of each tensor. The cases have no
tokenizer, so the vocabulary is left out.
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

from gguf import GGUFReader, GGUFValueType  # noqa: E402
from pico_further import CASES, write  # noqa: E402
from places import GOLDEN  # noqa: E402

CONVERT = """
import runpy, sys
source, *arguments = sys.argv[1:]
sys.path[:0] = [source, source + "/gguf-py"]
import importlib
from conversion.base import ModelBase
for name in ("ernie", "hunyuan", "bailingmoe", "dbrx", "minimax", "qwen"):
    module = importlib.import_module("conversion." + name)
    for one in vars(module).values():
        if isinstance(one, type) and issubclass(one, ModelBase):
            one.set_vocab = lambda self: None
sys.argv = [source + "/convert_hf_to_gguf.py", *arguments]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def convert(source: str, folder: Path) -> dict[str, Any]:
    output = folder.with_suffix(".gguf")
    arguments = [str(folder), "--outtype", "bf16", "--outfile", str(output)]
    arguments += ["--no-mtp"] if folder.name == "qwen3next" else []
    subprocess.run([sys.executable, "-c", CONVERT, source, *arguments], check=True, capture_output=True)
    file = GGUFReader(output)
    arch = file.fields["general.architecture"].contents()
    return {
        "arch": arch,
        "keys": [
            [name, GGUFValueType(field.types[0]).name, field.contents()]
            for name, field in file.fields.items()
            if name.startswith(f"{arch}.")
        ],
        "tensors": {
            tensor.name: [
                tensor.tensor_type.name,
                [int(n) for n in reversed(tensor.shape)],
                hashlib.sha256(tensor.data.tobytes()).hexdigest(),
            ]
            for tensor in file.tensors
        },
    }


def main() -> None:
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, build in CASES.items():
            found[name] = convert(sys.argv[1], write(Path(scratch) / name, build()))
            print(f"{name}: {len(found[name]['keys'])} keys, {len(found[name]['tensors'])} tensors")
    lines = []
    for name, facts in found.items():
        keys = ",\n".join(json.dumps(row) for row in facts["keys"])
        tensors = ",\n".join(f"{json.dumps(one)}: {json.dumps(row)}" for one, row in facts["tensors"].items())
        lines.append(
            f'{json.dumps(name)}: {{"arch": {json.dumps(facts["arch"])},\n'
            f'"keys": [\n{keys}\n],\n"tensors": {{\n{tensors}\n}}}}'
        )
    (GOLDEN / "further_families.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
