"""How a key-value pair stands in golden/keys.json: [key, type, element type, value], long arrays as hashes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from gguf import GGUFValueType

LONG = 16

CONVERT = """
import runpy, sys
source, pre, *arguments = sys.argv[1:]
sys.path[:0] = [source, source + "/gguf-py"]
from conversion.base import TextModel
if pre:
    TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
sys.argv = [source + "/convert_hf_to_gguf.py", *arguments]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""llama.cpp's converter, with the arguments: its source tree, the pre-tokenizer to be recognised or "", its own."""


def record(key: str, kind: GGUFValueType, sub_type: GGUFValueType | None, value: Any) -> list[Any]:
    if GGUFValueType.FLOAT32 in (kind, sub_type):
        value = np.asarray(value, np.float32).tolist()
    if isinstance(value, list) and len(value) > LONG:
        digest = hashlib.sha256(json.dumps(value).encode()).hexdigest()
        value = {"length": len(value), "sha256": digest, "last": value[-4:]}
    return [key, kind.name, sub_type.name if sub_type is not None else None, value]
