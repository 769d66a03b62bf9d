"""Tiny checkpoints with random weights, made on the fly: shards, config, index and a real SentencePiece tokenizer.

Shards are written and, for comparison, read back by the safetensors library, which shares no code with this project.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Dtype = Literal["BF16", "F16", "F32"]
Layout = Literal["split", "fused", "fused.weight"]

TEXT = """the small model reads a short text and learns some words of it. the router chooses two experts for each token.
one expert knows numbers, one knows names, one knows rivers and one knows nothing. a river runs through the small town.
a long winter came, and the people of the town kept the fires burning until the first warm day of the year.
quick foxes jump over lazy dogs in zebra vests, and everybody knows that the words were chosen for their letters."""


def pico_mixtral(
    path: Path,
    *,
    layout: Layout = "split",
    n_layer: int = 2,
    n_expert: int = 4,
    n_expert_used: int = 2,
    n_embd: int = 64,
    n_ff: int = 96,
    n_head: int = 4,
    n_head_kv: int = 2,
    head_dim: int | None = None,
    n_vocab: int = 320,
    dtype: Dtype = "BF16",
    n_shards: int = 2,
    tied: bool = False,
    tokenizer: bool = True,
    seed: int = 0,
    **config: Any,
) -> Path:
    """A MixtralForCausalLM in either layout; the layouts of one seed hold the same numbers. Returns the folder.

    Further keywords go into config.json as they are.
    """
    rng = np.random.default_rng(seed)
    width = head_dim or n_embd // n_head
    weights = _attention(rng, n_layer, n_embd, n_head * width, n_head_kv * width, n_vocab, tied)
    for bid in range(n_layer):
        moe = f"model.layers.{bid}.block_sparse_moe."
        weights[moe + "gate.weight"] = _normal(rng, n_expert, n_embd)
        for xid in range(n_expert):
            weights[f"{moe}experts.{xid}.w1.weight"] = _normal(rng, n_ff, n_embd)
            weights[f"{moe}experts.{xid}.w2.weight"] = _normal(rng, n_embd, n_ff)
            weights[f"{moe}experts.{xid}.w3.weight"] = _normal(rng, n_ff, n_embd)
    if layout != "split":
        weights = fuse_experts(weights, n_layer, n_expert, suffix=layout.removeprefix("fused"))
    full_config = _config(
        "MixtralForCausalLM", n_layer, n_embd, n_ff, n_head, n_head_kv, head_dim, n_vocab, tied
    )
    full_config |= {"num_local_experts": n_expert, "num_experts_per_tok": n_expert_used} | config
    write_checkpoint(path, as_stored(weights, dtype), full_config, n_shards)
    if tokenizer:
        write_tokenizer(path, n_vocab)
    return path


def pico_dense(
    path: Path,
    *,
    architecture: str = "MistralForCausalLM",
    n_layer: int = 2,
    n_embd: int = 64,
    n_ff: int = 96,
    n_head: int = 4,
    n_head_kv: int = 2,
    head_dim: int | None = None,
    n_vocab: int = 320,
    dtype: Dtype = "BF16",
    n_shards: int = 1,
    tied: bool = False,
    biases: bool = False,
    tokenizer: bool = True,
    seed: int = 0,
    **config: Any,
) -> Path:
    """A dense Mistral or Llama, the donor of a frankenMoE; `biases` adds those that Llama may have."""
    rng = np.random.default_rng(seed)
    width = head_dim or n_embd // n_head
    weights = _attention(rng, n_layer, n_embd, n_head * width, n_head_kv * width, n_vocab, tied)
    for bid in range(n_layer):
        mlp = f"model.layers.{bid}.mlp."
        weights[mlp + "gate_proj.weight"] = _normal(rng, n_ff, n_embd)
        weights[mlp + "up_proj.weight"] = _normal(rng, n_ff, n_embd)
        weights[mlp + "down_proj.weight"] = _normal(rng, n_embd, n_ff)
    if biases:
        for name in [name for name in weights if name.endswith("_proj.weight")]:
            weights[name.replace(".weight", ".bias")] = _normal(rng, len(weights[name]))
    full_config = _config(architecture, n_layer, n_embd, n_ff, n_head, n_head_kv, head_dim, n_vocab, tied)
    if biases:
        full_config |= {"attention_bias": True, "mlp_bias": True}
    write_checkpoint(path, as_stored(weights, dtype), full_config | config, n_shards)
    if tokenizer:
        write_tokenizer(path, n_vocab)
    return path


def fuse_experts(
    weights: Mapping[str, Array], n_layer: int, n_expert: int, suffix: str = ""
) -> dict[str, Array]:
    """The layout of transformers 5 and mergekit 0.1.5, from that of one tensor per expert."""
    fused = {name: values for name, values in weights.items() if "block_sparse_moe" not in name}
    for bid in range(n_layer):
        old, new = f"model.layers.{bid}.block_sparse_moe.", f"model.layers.{bid}.mlp."
        w1, w2, w3 = (
            np.stack([weights[f"{old}experts.{xid}.{one}.weight"] for xid in range(n_expert)])
            for one in ("w1", "w2", "w3")
        )
        fused[new + "gate.weight"] = weights[old + "gate.weight"]
        fused[f"{new}experts.gate_up_proj{suffix}"] = np.concatenate([w1, w3], axis=1)
        fused[f"{new}experts.down_proj{suffix}"] = w2
    return fused


def write_checkpoint(
    folder: Path, tensors: Mapping[str, Array], config: Mapping[str, Any], n_shards: int = 1
) -> None:
    """config.json, shards and, where there are several, their index; uint16 arrays are the bits of bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    if n_shards == 1:
        write_shard(folder / "model.safetensors", tensors)
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for i in range(n_shards):
        shard = f"model-{i + 1:05d}-of-{n_shards:05d}.safetensors"
        part = names[len(names) * i // n_shards : len(names) * (i + 1) // n_shards]
        write_shard(folder / shard, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, shard)
    index = {
        "metadata": {"total_size": sum(one.nbytes for one in tensors.values())},
        "weight_map": weight_map,
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def write_shard(path: Path, tensors: Mapping[str, Array]) -> None:
    """One safetensors file; uint16 arrays are the bits of bfloat16."""
    import torch
    from safetensors.torch import save_file

    def as_torch(values: Array) -> torch.Tensor:
        if values.dtype == np.uint16:
            return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(values)

    save_file(
        {name: as_torch(np.ascontiguousarray(one)) for name, one in tensors.items()}, path, {"format": "pt"}
    )


def read_checkpoint(folder: Path) -> dict[str, Array]:
    """All stored tensors as the safetensors library reads them; bfloat16 as uint16."""
    import torch
    from safetensors.torch import load_file

    found = {}
    for shard in sorted(folder.glob("*.safetensors")):
        for name, one in load_file(shard).items():
            bits = one.view(torch.int16).numpy().view(np.uint16) if one.dtype == torch.bfloat16 else None
            found[name] = one.numpy() if bits is None else bits
    return found


def write_tokenizer(folder: Path, n_vocab: int) -> None:
    """tokenizer.model (BPE with byte fallback, `n_vocab` pieces) and tokenizer_config.json."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=model,
        model_type="bpe",
        byte_fallback=True,
        vocab_size=n_vocab,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | tokens), encoding="utf-8")


def as_stored(weights: Mapping[str, Array], dtype: Dtype) -> dict[str, Array]:
    """float32 arrays in the type of a checkpoint; bfloat16, as uint16, is rounded to nearest even."""
    if dtype == "BF16":
        return {name: bf16_bits(one) for name, one in weights.items()}
    return {name: one.astype(np.float16 if dtype == "F16" else np.float32) for name, one in weights.items()}


def bf16_bits(values: Array) -> Array:
    """The bits of bfloat16 nearest to finite float32 values, ties to even."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded: Array = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return rounded


def to_f32(values: Array) -> Array:
    """float32 of what a checkpoint stores."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def _normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[-1]))


def _attention(
    rng: np.random.Generator, n_layer: int, n_embd: int, n_q: int, n_kv: int, n_vocab: int, tied: bool
) -> dict[str, Array]:
    weights = {"model.embed_tokens.weight": rng.standard_normal((n_vocab, n_embd), dtype=np.float32)}
    for bid in range(n_layer):
        layer = f"model.layers.{bid}."
        weights[layer + "self_attn.q_proj.weight"] = _normal(rng, n_q, n_embd)
        weights[layer + "self_attn.k_proj.weight"] = _normal(rng, n_kv, n_embd)
        weights[layer + "self_attn.v_proj.weight"] = _normal(rng, n_kv, n_embd)
        weights[layer + "self_attn.o_proj.weight"] = _normal(rng, n_embd, n_q)
        weights[layer + "input_layernorm.weight"] = 1 + _normal(rng, n_embd)
        weights[layer + "post_attention_layernorm.weight"] = 1 + _normal(rng, n_embd)
    weights["model.norm.weight"] = 1 + _normal(rng, n_embd)
    if not tied:
        weights["lm_head.weight"] = _normal(rng, n_vocab, n_embd)
    return weights


def _config(
    architecture: str,
    n_layer: int,
    n_embd: int,
    n_ff: int,
    n_head: int,
    n_head_kv: int,
    head_dim: int | None,
    n_vocab: int,
    tied: bool,
) -> dict[str, Any]:
    found = {
        "architectures": [architecture],
        "model_type": architecture.removesuffix("ForCausalLM").lower(),
        "hidden_size": n_embd,
        "intermediate_size": n_ff,
        "num_hidden_layers": n_layer,
        "num_attention_heads": n_head,
        "num_key_value_heads": n_head_kv,
        "vocab_size": n_vocab,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
    }
    return found | ({} if head_dim is None else {"head_dim": head_dim})
