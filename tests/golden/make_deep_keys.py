"""Write tests/golden/deep_keys.json: the keys that llama.cpp's converter makes of the cases of deep_cases.py.

    python tests/golden/make_deep_keys.py LLAMA_CPP_SOURCE

runs `convert_hf_to_gguf.py --outtype bf16` of that source tree (the committed file: commit 0c1e5709, transformers
5.23) on each case, without the vocabulary, and reads the keys of its architecture back with gguf's reader.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "helpers")]

from deep_cases import DEEP_CASES  # noqa: E402
from gguf import GGUFReader, GGUFValueType  # noqa: E402
from golden_keys import record  # noqa: E402
from places import GOLDEN  # noqa: E402

CONVERT = """
import runpy, sys
source, *arguments = sys.argv[1:]
sys.path[:0] = [source, source + "/gguf-py"]
from conversion.deepseek import DeepseekV2Model
from conversion.glm import Glm4MoeLiteModel, Glm4MoeModel
for model in (DeepseekV2Model, Glm4MoeLiteModel, Glm4MoeModel):
    model.set_vocab = lambda self: None
sys.argv = [source + "/convert_hf_to_gguf.py", *arguments]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def main() -> None:
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, build in DEEP_CASES.items():
            folder = build(Path(scratch) / name)
            output = folder.with_suffix(".gguf")
            arguments = [str(folder), "--outtype", "bf16", "--outfile", str(output)]
            command = [sys.executable, "-c", CONVERT, sys.argv[1], *arguments]
            subprocess.run(command, check=True, capture_output=True)
            arch = str(GGUFReader(output).fields["general.architecture"].contents())
            rows = [
                record(field.name, GGUFValueType(field.types[0]), None, field.contents())
                for key, field in GGUFReader(output).fields.items()
                if key.startswith(arch + ".")
            ]
            texts = [json.dumps([key, kind, value]) for key, kind, _, value in rows]
            lines.append(f"{json.dumps(name)}: [\n" + ",\n".join(texts) + "\n]")
            print(f"{name}: {len(rows)} keys")
    (GOLDEN / "deep_keys.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
