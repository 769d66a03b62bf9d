"""A small model that is cut into parts in several ways, the same wherever it is made."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
from gguf import GGUFValueType as Type
from gguf_files import remade

from quantize.containers.gguf import read_container
from quantize.containers.keys import KeyValue

__all__ = ["CUTS", "KEPT", "SPLITS", "cut", "groups_of", "hashes", "write_source"]

N_LAYER, N_EMBD, N_FF, N_VOCAB = 3, 256, 512, 64

SPLITS: dict[str, tuple[str, ...]] = {
    "tensors": ("--split-max-tensors", "7"),
    "one part": ("--split-max-tensors", "1000"),
    "size": ("--split-max-size", "1M"),
}
"""Options of llama-gguf-split, with which an output is cut."""

CUTS: dict[str, tuple[str, ...]] = {"five": (), "none first": ("--no-tensor-first-split",)}
"""Options of llama-gguf-split, beside parts of 5 tensors, with which a source is cut."""

KEPT = ("Q4_K_M", "Q3_K_L")
"""The types that are made of a source in parts."""


def write_source(path: Path) -> Path:
    """A dense model in BF16, as the gguf library writes it."""
    rng = np.random.default_rng(14)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Parts")
    writer.add_block_count(N_LAYER)
    writer.add_context_length(128)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(N_VOCAB)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{i}>" for i in range(N_VOCAB)])
    writer.add_token_scores([float(-i) for i in range(N_VOCAB)])
    writer.add_token_types([1] * N_VOCAB)
    matrices = {"token_embd": (N_VOCAB, N_EMBD), "output": (N_VOCAB, N_EMBD)}
    for bid in range(N_LAYER):
        width = N_EMBD // 2
        matrices |= {
            f"blk.{bid}.attn_q": (N_EMBD, N_EMBD),
            f"blk.{bid}.attn_k": (width, N_EMBD),
            f"blk.{bid}.attn_v": (width, N_EMBD),
            f"blk.{bid}.attn_output": (N_EMBD, N_EMBD),
            f"blk.{bid}.ffn_gate": (N_FF, N_EMBD),
            f"blk.{bid}.ffn_up": (N_FF, N_EMBD),
            f"blk.{bid}.ffn_down": (N_EMBD, N_FF),
        }
    for name, shape in matrices.items():
        bits = rng.standard_normal(shape, np.float32).view(np.uint32) >> 16
        data = bits.astype(np.uint16).view(np.uint8)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=gguf.GGMLQuantizationType.BF16)
    norms = [f"blk.{bid}.{kind}_norm" for bid in range(N_LAYER) for kind in ("attn", "ffn")]
    for name in (*norms, "output_norm"):
        writer.add_tensor(f"{name}.weight", 1 + rng.standard_normal(N_EMBD, np.float32) / 8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def groups_of(names: Sequence[str], case: str) -> list[list[str]]:
    """The tensors of each part of the source, cut as in `CUTS`."""
    groups = [list(names[i : i + 5]) for i in range(0, len(names), 5)]
    return [[], *groups] if case == "none first" else groups


def cut(source: Path, folder: Path, groups: Sequence[Sequence[str]], stem: str = "Parts-BF16") -> Path:
    """Cut a file so that each part holds these tensors, without any code of the project's that does it; returns the
    first part.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}-{no:05d}-of-{len(groups):05d}.gguf" for no in range(1, len(groups) + 1)]
    keys = list(read_container(source).keys)
    for no, (path, names) in enumerate(zip(paths, groups, strict=True)):
        of_part = [
            KeyValue("split.no", no, Type.UINT16),
            KeyValue("split.tensors.count", sum(map(len, groups)), Type.INT32),
            KeyValue("split.count", len(groups), Type.UINT16),
        ]
        remade(source, path, of_part, leave_out=keys if no else (), keep=names.__contains__)
    return paths[0]


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a folder, by its name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.gguf"))
    }
