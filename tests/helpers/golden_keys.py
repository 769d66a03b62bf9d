"""How a key-value pair stands in golden/keys.json: [key, type, element type, value], long arrays as hashes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as QType
from gguf import GGUFReader, GGUFValueType
from tokenizer_cases import PRE

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


def converted(source: str, folder: Path) -> dict[str, Any]:
    """What llama.cpp's converter makes of a checkpoint in bfloat16: keys of its architecture, tensors.

    `source` is the tree with the converter. Of a tensor: type, shape in NumPy's order, and of MXFP4, which is repacked,
    a hash of the bytes.
    """
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


def write_converted(path: Path, made: Mapping[str, Mapping[str, Any]]) -> None:
    """Write what was `converted`, by case, a line for the keys of each and one for its tensors."""
    lines = [
        f"{json.dumps(case)}: {{\n"
        + ",\n".join(f"{json.dumps(part)}: {json.dumps(rows)}" for part, rows in parts.items())
        + "\n}"
        for case, parts in made.items()
    ]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
