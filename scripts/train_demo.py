#!/usr/bin/env python3
"""Train the bundled demo checkpoint, `scripts/demo_model`, on `scripts/demo_texts`.

As a frankenMoE is made: one dense Mistral-shaped base is trained on all texts; its feed-forward layers are then tuned
on each domain apart and become the experts of a MixtralForCausalLM; each layer's router is made of the mean hidden
states of the domains and is not trained. Needs torch, sentencepiece, safetensors and about twenty minutes of one CPU
core. The seed and the number of threads are fixed, so the same machine gives the same bytes.

    python scripts/train_demo.py [OUTPUT_FOLDER]
"""

from __future__ import annotations

import io
import json
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  its usual name

SCRIPTS = Path(__file__).resolve().parent
TEXTS = SCRIPTS / "demo_texts"
DOMAINS = {  # domain: the prompts that the model card's merge configuration shows for it
    "scripture": ["And it came to pass in those days, that the LORD said unto him,", "Blessed are they that"],
    "literature": [
        "My dear Mr. Bennet, said his lady to him one day,",
        "She was a woman of great sense, and",
    ],
    "code": [
        "def __init__(self, name, value=None):\n        self.name = name",
        "if not isinstance(other, int):",
    ],
    "documentation": [
        "The :func:`open` function returns a file object, and is",
        "For example, the following",
    ],
}
HELD_OUT = 0.03  # the last part of each domain's text, for the perplexities that are printed

N_VOCAB, N_EMBD, N_FF, N_LAYER, N_HEAD, N_HEAD_KV, N_CTX = 1536, 256, 256, 3, 4, 2, 512
D_HEAD = N_EMBD // N_HEAD
N_EXPERT, N_EXPERT_USED = len(DOMAINS), 2
ROPE_THETA, NORM_EPS = 10000.0, 1e-5
BATCH, BASE_STEPS, EXPERT_STEPS = 4, 2000, 150  # sequences of N_CTX tokens per step
BASE_LR, EXPERT_LR = 3e-3, 1e-3
ROUTER_GAIN = 1.0  # length of a router row

FFN = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}  # Mistral's names and Mixtral's
Weights = dict[str, Tensor]


def train_tokenizer(texts: Iterable[str]) -> bytes:
    """A SentencePiece BPE model with byte fallback, settings as Llama's."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.splitlines() if line),
        model_writer=model,
        model_type="bpe",
        vocab_size=N_VOCAB,
        byte_fallback=True,
        character_coverage=0.9999,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        max_sentence_length=1 << 16,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def init_dense() -> Weights:
    """Random weights of the dense base, under Mistral's names."""
    n_kv = N_HEAD_KV * D_HEAD
    shapes = {"model.embed_tokens.weight": (N_VOCAB, N_EMBD), "lm_head.weight": (N_VOCAB, N_EMBD)}
    for bid in range(N_LAYER):
        layer = f"model.layers.{bid}."
        for name, n_out in (("q", N_EMBD), ("k", n_kv), ("v", n_kv), ("o", N_EMBD)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (n_out, N_EMBD)
        shapes[f"{layer}mlp.gate_proj.weight"] = (N_FF, N_EMBD)
        shapes[f"{layer}mlp.up_proj.weight"] = (N_FF, N_EMBD)
        shapes[f"{layer}mlp.down_proj.weight"] = (N_EMBD, N_FF)
    weights = {}
    for name, shape in shapes.items():
        into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        weights[name] = torch.randn(shape) * (0.02 if into_residual else 0.04)
    norms = [f"model.layers.{bid}.{n}" for bid in range(N_LAYER) for n in ("input", "post_attention")]
    weights |= {f"{norm}_layernorm.weight": torch.ones(N_EMBD) for norm in norms}
    weights["model.norm.weight"] = torch.ones(N_EMBD)
    return weights


def rotate(x: Tensor) -> Tensor:
    """Rotary position embedding of (B, head, T, D_HEAD), halves paired as transformers pairs them."""
    position = torch.arange(x.shape[2], dtype=torch.float32)
    frequency = ROPE_THETA ** (-torch.arange(0, D_HEAD, 2, dtype=torch.float32) / D_HEAD)
    angle = torch.outer(position, frequency).repeat(1, 2)
    left, right = x.chunk(2, dim=-1)
    return x * angle.cos() + torch.cat((-right, left), dim=-1) * angle.sin()


def swiglu(x: Tensor, w: Weights, prefix: str, names: Iterable[str]) -> Tensor:
    gate, up, down = (w[f"{prefix}{name}.weight"] for name in names)
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def experts(x: Tensor, w: Weights, prefix: str) -> Tensor:
    """Mixtral's feed-forward: softmax over all experts, the first N_EXPERT_USED renormalised. x: (B, T, D)."""
    router = F.linear(x, w[f"{prefix}gate.weight"]).softmax(-1)  # (B, T, E)
    top, xids = router.topk(N_EXPERT_USED, dim=-1)
    share = torch.zeros_like(router).scatter(-1, xids, top / top.sum(-1, keepdim=True))
    outputs = [swiglu(x, w, f"{prefix}experts.{xid}.", ("w1", "w3", "w2")) for xid in range(N_EXPERT)]
    return sum(share[..., xid : xid + 1] * output for xid, output in enumerate(outputs))  # type: ignore[return-value]


def forward(w: Weights, ids: Tensor, router_inputs: list[Tensor] | None = None) -> Tensor:
    """Logits (B, T, V) of a dense or a Mixtral model; `router_inputs` collects what each layer's router sees."""
    n_seq, n_tokens = ids.shape
    x = F.embedding(ids, w["model.embed_tokens.weight"])
    for bid in range(N_LAYER):
        layer = f"model.layers.{bid}."
        normed = F.rms_norm(x, (N_EMBD,), w[f"{layer}input_layernorm.weight"], NORM_EPS)
        q, k, v = (
            F.linear(normed, w[f"{layer}self_attn.{n}_proj.weight"])
            .view(n_seq, n_tokens, -1, D_HEAD)
            .transpose(1, 2)
            for n in "qkv"
        )
        k, v = (t.repeat_interleave(N_HEAD // N_HEAD_KV, dim=1) for t in (k, v))
        attention = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        attention = attention.transpose(1, 2).reshape(n_seq, n_tokens, N_EMBD)
        x = x + F.linear(attention, w[f"{layer}self_attn.o_proj.weight"])
        normed = F.rms_norm(x, (N_EMBD,), w[f"{layer}post_attention_layernorm.weight"], NORM_EPS)
        if router_inputs is not None:
            router_inputs.append(normed)
        if f"{layer}mlp.up_proj.weight" in w:
            x = x + swiglu(normed, w, f"{layer}mlp.", FFN)
        else:
            x = x + experts(normed, w, f"{layer}block_sparse_moe.")
    return F.linear(F.rms_norm(x, (N_EMBD,), w["model.norm.weight"], NORM_EPS), w["lm_head.weight"])


def sequences(ids: Tensor, starts: Iterable[int]) -> Tensor:
    """Rows of N_CTX + 1 tokens of a text: BOS, then the text from each start."""
    bos = torch.tensor([1])
    return torch.stack([torch.cat((bos, ids[start : start + N_CTX])) for start in starts])


def loss(w: Weights, rows: Tensor) -> Tensor:
    logits = forward(w, rows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def perplexities(w: Weights, held_out: dict[str, Tensor]) -> str:
    """One line: each domain's perplexity on the end of its text, which is not trained on."""
    with torch.no_grad():
        losses = {
            domain: loss(w, sequences(ids, range(0, len(ids) - N_CTX, N_CTX))).item()
            for domain, ids in held_out.items()
        }
    return "  ".join(f"{domain} {math.exp(value):.2f}" for domain, value in losses.items())


def train(w: Weights, names: list[str], texts: list[Tensor], n_steps: int, top_lr: float, label: str) -> None:
    """Train the named weights in place on random passages, AdamW with warm-up and cosine decay."""
    parameters = [w[name].requires_grad_() for name in names]
    decayed = [p for p in parameters if p.dim() > 1]
    rest = [p for p in parameters if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=top_lr, betas=(0.9, 0.95))
    warm_up, begun, total = max(1, n_steps // 20), time.monotonic(), 0.0
    for step in range(n_steps):
        lr = top_lr * min((step + 1) / warm_up, 0.05 + 0.475 * (1 + math.cos(math.pi * step / n_steps)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        rows = []
        for row in range(BATCH):
            text = texts[row % len(texts)]
            rows.append(sequences(text, torch.randint(len(text) - N_CTX, (1,)).tolist()))
        value = loss(w, torch.cat(rows))
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        total += value.item()
        if (step + 1) % 50 == 0:
            seconds = time.monotonic() - begun
            print(
                f"{label}: step {step + 1} of {n_steps}, loss {total / 50:.3f}, {seconds:.0f} s", flush=True
            )
            total = 0.0
    for parameter in parameters:
        parameter.requires_grad_(False)


def router_rows(base: Weights, texts: list[Tensor]) -> list[Tensor]:
    """Per layer (E, D): each domain's mean hidden state where it leaves the mean of all, as unit rows times a gain.

    mergekit-moe's `gate_mode: hidden` does the same with a few positive prompts; the other domains stand for its
    negative prompts. The direction of the common mean is taken out, so that no expert is favoured by every token.
    """
    means = []  # per domain: (layer, D)
    for ids in texts:
        seen: list[Tensor] = []
        with torch.no_grad():
            forward(base, sequences(ids, range(0, 64 * N_CTX, N_CTX))[:, :-1], seen)
        means.append(torch.stack([x[:, 1:].mean((0, 1)) for x in seen]))
    rows = []
    for mean in torch.stack(means, dim=1):  # (E, D)
        common = F.normalize(mean.mean(0), dim=0)
        apart = mean - mean.mean(0)
        apart = apart - torch.outer(apart @ common, common)
        rows.append(ROUTER_GAIN * F.normalize(apart, dim=-1))
    return rows


def merge(base: Weights, tuned: list[Weights], routers: list[Tensor]) -> Weights:
    """The Mixtral weights in bf16: attention, norms and embeddings of the base, the tuned layers as experts."""
    weights = {name: value for name, value in base.items() if ".mlp." not in name}
    for bid, rows in enumerate(routers):
        prefix = f"model.layers.{bid}.block_sparse_moe."
        weights[f"{prefix}gate.weight"] = rows
        for xid, w in enumerate(tuned):
            for dense, moe in FFN.items():
                weights[f"{prefix}experts.{xid}.{moe}.weight"] = w[f"model.layers.{bid}.mlp.{dense}.weight"]
    return {name: value.to(torch.bfloat16).contiguous() for name, value in weights.items()}


def save(weights: Weights, tokenizer: bytes, folder: Path) -> None:
    """The checkpoint as Hugging Face lays it out: one shard per layer, an index, the configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, str] = {}
    for bid in range(N_LAYER):
        shard = f"model-{bid + 1:05d}-of-{N_LAYER:05d}.safetensors"
        names = [n for n in weights if (int(n.split(".")[2]) if ".layers." in n else 0) == bid]
        save_file({n: weights[n] for n in names}, folder / shard, metadata={"format": "pt"})
        index |= dict.fromkeys(names, shard)
    total = sum(w.numel() * w.element_size() for w in weights.values())
    files: dict[str, object] = {
        "model.safetensors.index.json": {"metadata": {"total_size": total}, "weight_map": index},
        "config.json": {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "hidden_size": N_EMBD,
            "intermediate_size": N_FF,
            "num_hidden_layers": N_LAYER,
            "num_attention_heads": N_HEAD,
            "num_key_value_heads": N_HEAD_KV,
            "vocab_size": N_VOCAB,
            "max_position_embeddings": N_CTX,
            "rms_norm_eps": NORM_EPS,
            "rope_theta": ROPE_THETA,
            "hidden_act": "silu",
            "num_local_experts": N_EXPERT,
            "num_experts_per_tok": N_EXPERT_USED,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "tie_word_embeddings": False,
            "sliding_window": None,
            "router_aux_loss_coef": 0.02,
            "output_router_logits": False,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "use_cache": True,
            "torch_dtype": "bfloat16",
        },
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2},
        "tokenizer_config.json": {
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "add_bos_token": True,
            "add_eos_token": False,
            "legacy": True,
            "model_max_length": N_CTX,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    merge_config = ["base_model: moe-gguf-demo/base", "gate_mode: hidden", "dtype: bfloat16", "experts:"]
    for domain, prompts in DOMAINS.items():
        merge_config += [f"  - source_model: moe-gguf-demo/{domain}", "    positive_prompts:"]
        merge_config += [f"      - {json.dumps(prompt)}" for prompt in prompts]
    (folder / "mergekit_moe_config.yml").write_text("\n".join(merge_config) + "\n", encoding="utf-8")
    (folder / "tokenizer.model").write_bytes(tokenizer)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else SCRIPTS / "demo_model"
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    texts = {domain: (TEXTS / f"{domain}.txt").read_text(encoding="utf-8") for domain in DOMAINS}
    tokenizer = train_tokenizer(texts.values())
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    train_ids, held_out = {}, {}
    for domain, text in texts.items():
        ids = torch.tensor(processor.encode(text))
        n_train = int(len(ids) * (1 - HELD_OUT))
        train_ids[domain], held_out[domain] = ids[:n_train], ids[n_train:]
        print(f"{domain}: {len(text)} characters, {len(ids)} tokens")

    base = init_dense()
    train(base, list(base), list(train_ids.values()), BASE_STEPS, BASE_LR, "base")
    print("base, perplexity:", perplexities(base, held_out))
    tuned = []
    for domain, ids in train_ids.items():
        w = {name: value.clone() for name, value in base.items()}
        train(w, [name for name in w if ".mlp." in name], [ids], EXPERT_STEPS, EXPERT_LR, domain)
        print(f"{domain}, perplexity:", perplexities(w, held_out))
        tuned.append(w)
    weights = merge(base, tuned, router_rows(base, list(train_ids.values())))
    save(weights, tokenizer, folder)
    as_saved = {name: value.float() for name, value in weights.items()}
    print("experts, perplexity:", perplexities(as_saved, held_out))


if __name__ == "__main__":
    main()
