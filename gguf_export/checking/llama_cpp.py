"""A model's chat template applied by llama.cpp itself, where `xllamacpp` is installed.

llama.cpp wants a model to have a vocabulary and a template, so it is given a tiny one: one layer of zeros, in a
temporary file, with the vocabulary of the model.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from calibration.chat.dialogues import Dialogue
from calibration.chat.rendering import Fault
from gguf_export.checking.llama_process import ask
from gguf_export.writing.header import header
from quantize.containers.keys import KeyValue
from quantize.recipes.ftypes import ftype
from quantize.recipes.layout import Plan, PlannedTensor, padded
from quantize.tensors import QType, TensorSpec

__all__ = ["LlamaVerdict", "apply_in_llama_cpp"]

SECONDS = 30
N_EMBD = 32


@dataclass(frozen=True)
class LlamaVerdict:
    """What llama.cpp made of a vocabulary and a template.

    refusal: why it does not start with them, empty where it does.
    texts: the text of each dialogue, or why there is none.
    """

    refusal: str = ""
    texts: tuple[str | Fault, ...] = ()


def apply_in_llama_cpp(keys: Sequence[KeyValue], dialogues: Sequence[Dialogue]) -> LlamaVerdict:
    """Let llama.cpp apply a template to dialogues.

    Args:
        keys: the keys of a model; those of its vocabulary and templates (`tokenizer.*`) count.
        dialogues: the dialogues.
    """
    asked = [
        {
            "messages": dialogue.messages,
            "add_generation_prompt": dialogue.generation,
            **({"tools": dialogue.tools} if dialogue.tools else {}),
        }
        for dialogue in dialogues
    ]
    with tempfile.TemporaryDirectory(prefix="moe-gguf-") as folder:
        file = Path(folder) / "vocabulary.gguf"
        _write_tiny(file, [kv for kv in keys if kv.key.startswith("tokenizer.")])
        try:
            done = ask("gguf_export.checking.llama_worker", [str(file)], asked, SECONDS)
        except subprocess.TimeoutExpired:
            return LlamaVerdict(f"it does not answer within {SECONDS} seconds")
    if done.returncode != 0:
        return LlamaVerdict(_reason(done.stderr.decode("utf-8", "replace"), done.returncode))
    answers = json.loads(done.stdout)
    return LlamaVerdict(
        "",
        tuple(
            answer["text"] if "text" in answer else Fault("failed", _message(answer["fault"]))
            for answer in answers
        ),
    )


def _write_tiny(path: Path, keys: Sequence[KeyValue]) -> None:
    """A GGUF file of one layer of zeros; as a sparse file it takes no room."""
    n_vocab = next(len(kv.value) for kv in keys if kv.key == "tokenizer.ggml.tokens")
    sizes = {
        "block_count": 1,
        "context_length": 64,
        "embedding_length": N_EMBD,
        "feed_forward_length": N_EMBD,
        "attention.head_count": 1,
        "rope.dimension_count": N_EMBD,
        "vocab_size": n_vocab,
    }
    own = [KeyValue.text("general.architecture", "llama")]
    own += [KeyValue.u32(f"llama.{name}", size) for name, size in sizes.items()]
    own.append(KeyValue.f32("llama.attention.layer_norm_rms_epsilon", 1e-5))
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_vocab, N_EMBD)}
    shapes |= {f"blk.0.{name}_norm.weight": (N_EMBD,) for name in ("attn", "ffn")}
    matrices = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes |= {f"blk.0.{name}.weight": (N_EMBD, N_EMBD) for name in matrices}
    shapes["output_norm.weight"] = (N_EMBD,)
    tensors, offset = [], 0
    for name, shape in shapes.items():
        tensor = PlannedTensor(TensorSpec(name, shape, QType.F32), QType.F32, offset)
        tensors.append(tensor)
        offset += padded(tensor.n_bytes)
    head = header([*own, *keys], Plan(ftype("F32"), tuple(tensors)))
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + offset)


def _message(body: str) -> str:
    """What llama-server says in an answer that is an error, in one line."""
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = body
    return _one_line(message)


def _reason(log: str, status: int) -> str:
    """The line of llama.cpp's log that tells why it gave up."""
    template = re.search(r"chat template parsing error: (.*?)\n[0-9.]+ [A-Z] ", log, re.S)
    reasons = [template[1]] if template else re.findall(r"error loading model: .*|GGML_ASSERT.*", log)
    return _one_line(reasons[-1]) if reasons else f"it ended with status {status}: {_one_line(log[-300:])}"


def _one_line(message: str) -> str:
    """The last statement of a message of llama.cpp, which shows the source before it."""
    found = message.rpartition("Error: ")[2] if "Error: " in message else message
    return " ".join(found.split())[:300]
