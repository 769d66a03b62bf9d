#!/usr/bin/env python3
"""Write a synthetic checkpoint: random bf16 weights, real shards, index, config and tokenizer.

By default a Mixtral with two layers of Harmony-4x7B's shapes (3.5 GB), for measuring memory and speed without its
weights:

    python scripts/make_synthetic.py OUT
    python scripts/make_synthetic.py OUT --layers 8 --layout fused
    python scripts/make_synthetic.py OUT --family qwen3moe --layers 1
    python scripts/make_synthetic.py OUT --layers 32 --no-weights

The last line but one gives one layer of Qwen3-30B-A3B (1.3 GB), the last one all layers with holes in the place of
weights, which take no room on the disk: for plans and sizes.

Weights are streamed in pieces of a few megabytes. The two layouts of one seed hold the same numbers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import string
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

SHARD_BYTES = 1_000_000_000
PIECE = 1 << 22  # weights made at a time
DEFAULTS = {  # the sizes of Harmony-4x7B and of Qwen3-30B-A3B, the layers and the vocabulary aside
    "mixtral": {"experts": 4, "n_embd": 4096, "n_ff": 14336, "n_head": 32, "n_head_kv": 8, "head_dim": 128},
    "qwen3moe": {"experts": 128, "n_embd": 2048, "n_ff": 768, "n_head": 32, "n_head_kv": 4, "head_dim": 128},
}
STD = 0.02  # of a matrix's weights; a norm is 1 + as much


@dataclass(frozen=True)
class Stored:
    """A tensor to be written: its matrices one after another, each the seed of its numbers."""

    name: str
    shape: tuple[int, ...]
    matrices: tuple[str, ...]  # one name per matrix, the same in both layouts

    @property
    def n_bytes(self) -> int:
        return 2 * math.prod(self.shape)


def declare(args: argparse.Namespace) -> Iterator[Stored]:
    """All tensors in checkpoint order."""
    width = args.head_dim

    def plain(name: str, *shape: int) -> Stored:
        return Stored(name, shape, (name,))

    yield plain("model.embed_tokens.weight", args.vocab, args.n_embd)
    for bid in range(args.layers):
        layer = f"model.layers.{bid}."
        yield plain(layer + "input_layernorm.weight", args.n_embd)
        yield plain(layer + "self_attn.q_proj.weight", args.n_head * width, args.n_embd)
        yield plain(layer + "self_attn.k_proj.weight", args.n_head_kv * width, args.n_embd)
        yield plain(layer + "self_attn.v_proj.weight", args.n_head_kv * width, args.n_embd)
        yield plain(layer + "self_attn.o_proj.weight", args.n_embd, args.n_head * width)
        if args.family == "qwen3moe":
            yield plain(layer + "self_attn.q_norm.weight", width)
            yield plain(layer + "self_attn.k_norm.weight", width)
        yield plain(layer + "post_attention_layernorm.weight", args.n_embd)
        yield from declare_experts(layer, args)
    yield plain("model.norm.weight", args.n_embd)
    yield plain("lm_head.weight", args.vocab, args.n_embd)


def declare_experts(layer: str, args: argparse.Namespace) -> Iterator[Stored]:
    """Router and experts of a layer, in the layout asked for; of Mixtral w1 is the gate, w3 up, w2 down."""
    experts, n_embd, n_ff = args.experts, args.n_embd, args.n_ff
    is_mixtral = args.family == "mixtral"
    old, new = layer + ("block_sparse_moe." if is_mixtral else "mlp."), layer + "mlp."
    parts = ("w1", "w2", "w3") if is_mixtral else ("gate_proj", "down_proj", "up_proj")
    w = [[f"{old}experts.{xid}.{part}.weight" for part in parts] for xid in range(experts)]
    router = (old + "gate.weight",)
    if args.layout == "split":
        yield Stored(router[0], (experts, n_embd), router)
        for w1, w2, w3 in w:
            yield Stored(w1, (n_ff, n_embd), (w1,))
            yield Stored(w2, (n_embd, n_ff), (w2,))
            yield Stored(w3, (n_ff, n_embd), (w3,))
        return
    gate_up = tuple(itertools.chain.from_iterable((w1, w3) for w1, _, w3 in w))
    yield Stored(new + "gate.weight", (experts, n_embd), router)
    yield Stored(new + "experts.gate_up_proj", (experts, 2 * n_ff, n_embd), gate_up)
    yield Stored(new + "experts.down_proj", (experts, n_embd, n_ff), tuple(w2 for _, w2, _ in w))


def into_shards(tensors: Iterator[Stored]) -> list[list[Stored]]:
    """Consecutive tensors, at most `SHARD_BYTES` together (or a single larger one)."""
    shards: list[list[Stored]] = [[]]
    n_bytes = 0
    for one in tensors:
        if shards[-1] and n_bytes + one.n_bytes > SHARD_BYTES:
            shards.append([])
            n_bytes = 0
        shards[-1].append(one)
        n_bytes += one.n_bytes
    return shards


def write_shard(path: Path, tensors: list[Stored], seed: int | None) -> None:
    """A safetensors file: u64 length of the header, JSON header, data; without a seed a hole in its place."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for one in tensors:
        header[one.name] = {"dtype": "BF16", "shape": one.shape, "data_offsets": [end, end + one.n_bytes]}
        end += one.n_bytes
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(content)) + content)
        if seed is None:
            file.truncate(file.tell() + end)
            return
        for one in tensors:
            for name in one.matrices:
                write_matrix(file, name, math.prod(one.shape) // len(one.matrices), seed)


def write_matrix(file: BinaryIO, name: str, n: int, seed: int) -> None:
    """`n` normal weights as bfloat16, cut off rather than rounded."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    mean = np.float32(1.0 if "norm" in name else 0.0)
    values = np.empty(min(n, PIECE), np.float32)
    for start in range(0, n, PIECE):
        piece = values[: min(PIECE, n - start)]
        rng.standard_normal(dtype=np.float32, out=piece)
        piece *= np.float32(STD)
        piece += mean
        file.write((piece.view(np.uint32) >> np.uint32(16)).astype("<u2").data)


def config_of(args: argparse.Namespace) -> dict[str, Any]:
    """config.json, with the settings of the model of `DEFAULTS` where no option says otherwise."""
    qwen = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": args.n_ff,
        "num_experts": args.experts,
        "num_experts_per_tok": min(8, args.experts),
        "norm_topk_prob": True,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
    }
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "head_dim": args.head_dim,
        "hidden_size": args.n_embd,
        "intermediate_size": args.n_ff,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.n_head,
        "num_key_value_heads": args.n_head_kv,
        "num_local_experts": args.experts,
        "num_experts_per_tok": min(2, args.experts),
        "vocab_size": args.vocab,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "sliding_window": None,
        "torch_dtype": "bfloat16",
    } | (qwen if args.family == "qwen3moe" else {})


def pieces(n: int) -> Iterator[tuple[str, float, int]]:
    """Text, score and type of each SentencePiece: specials, bytes, characters, then words of two letters and more."""
    yield from (("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3))
    yield from ((f"<0x{byte:02X}>", 0.0, 6) for byte in range(256))
    letters = "\u2581" + string.ascii_lowercase
    others = [character for character in string.printable.strip() if character not in letters]
    words = (
        "".join(word) for length in itertools.count(1) for word in itertools.product(letters, repeat=length)
    )
    singles = itertools.chain(itertools.islice(words, len(letters)), others)
    for rank, word in enumerate(itertools.islice(itertools.chain(singles, words), max(0, n - 259))):
        yield word, -float(rank), 1


def tokenizer_model(n: int) -> bytes:
    """A `sentencepiece.ModelProto` (BPE with byte fallback), in protobuf's wire format.

    Field numbers from sentencepiece_model.proto: pieces 1 (piece 1, score 2, type 3), trainer_spec 2 (model_type 3,
    vocab_size 4, byte_fallback 35), normalizer_spec 3 (name 1, remove_extra_whitespaces 4).
    """

    def varint(value: int) -> bytes:
        out = bytearray()
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes([*out, value])

    def number(field: int, value: int) -> bytes:
        return varint(field << 3) + varint(value)

    def message(field: int, content: bytes) -> bytes:
        return varint(field << 3 | 2) + varint(len(content)) + content

    def score(value: float) -> bytes:
        return varint(2 << 3 | 5) + struct.pack("<f", value)

    proto = b"".join(
        message(1, message(1, text.encode()) + score(value) + number(3, kind))
        for text, value, kind in pieces(n)
    )
    trainer = number(3, 2) + number(4, n) + number(35, 1)
    return proto + message(2, trainer) + message(3, message(1, b"identity") + number(4, 0))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="folder to write; must not hold a checkpoint yet"
    )
    parser.add_argument("--family", choices=tuple(DEFAULTS), default="mixtral", help="default mixtral")
    for name, default in (("layers", 2), ("vocab", 32000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    for name in DEFAULTS["mixtral"]:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="default: the family's model")
    parser.add_argument("--layout", choices=("split", "fused"), default="split", help="default split")
    parser.add_argument("--no-weights", action="store_true", help="holes in the place of weights")
    args = parser.parse_args()
    sizes = DEFAULTS[args.family]
    if args.head_dim is None and (args.n_embd or args.n_head):
        args.head_dim = (args.n_embd or sizes["n_embd"]) // (args.n_head or sizes["n_head"])
    for name, default in sizes.items():
        setattr(args, name, getattr(args, name) or default)
    if args.vocab < 300:
        parser.error("--vocab must be at least 300")
    if (args.out / "config.json").exists():
        parser.error(f"{args.out} holds a checkpoint already")
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    shards = into_shards(declare(args))
    weight_map: dict[str, str] = {}
    for i, tensors in enumerate(shards):
        path = args.out / f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        write_shard(path, tensors, None if args.no_weights else args.seed)
        weight_map |= dict.fromkeys((one.name for one in tensors), path.name)
        print(f"{path}: {path.stat().st_size / 1e9:.2f} GB, {time.monotonic() - started:.0f} s", flush=True)
    n_bytes = sum(one.n_bytes for tensors in shards for one in tensors)
    files = {
        "config.json": config_of(args),
        "model.safetensors.index.json": {"metadata": {"total_size": n_bytes}, "weight_map": weight_map},
        "tokenizer_config.json": {
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "add_bos_token": True,
            "add_eos_token": False,
        },
    }
    (args.out / "tokenizer.model").write_bytes(tokenizer_model(args.vocab))
    for name, content in files.items():
        (args.out / name).write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
