"""Write tests/golden/keys_qwen.json: what llama.cpp's converter makes of the checkpoints of helpers/pico_qwen.py.

    python tests/golden/make_keys_qwen.py LLAMA_CPP_SOURCE

runs `convert_hf_to_gguf.py --outtype bf16` of that source tree (the committed file: commit 0c1e5709, transformers
5.23) on each case, with the little byte-level vocabulary of make_keys.py, and keeps the `{arch}.*` keys and the
tensors: name, type, shape in NumPy's order.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "helpers")]

from golden_keys import converted, write_converted  # noqa: E402
from pico_qwen import pico_qwen  # noqa: E402
from places import GOLDEN  # noqa: E402
from qwen_cases import CASES  # noqa: E402
from tokenizer_cases import byte_level, write_json  # noqa: E402


def main() -> None:
    made = {}
    with tempfile.TemporaryDirectory() as scratch:
        for case, (name, options) in CASES.items():
            folder = pico_qwen(Path(scratch) / case, name, **options)
            write_json(folder, "tokenizer.json", byte_level())
            write_json(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
            made[case] = converted(sys.argv[1], folder)
            print(f"{case}: {len(made[case]['keys'])} keys, {len(made[case]['tensors'])} tensors")
    write_converted(GOLDEN / "keys_qwen.json", made)


if __name__ == "__main__":
    main()
