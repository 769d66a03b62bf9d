"""The hyper-parameters of a model, in llama.cpp's words."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class RopeScaling:
    """How rotary positions are stretched; `kind` is llama.cpp's: none, linear, yarn, longrope; or llama3."""

    kind: str = "none"
    factor: float = 1.0
    n_ctx_orig: int = 0  # tokens, 0 where the kind does not need it
    ext_factor: float | None = None  # yarn
    attn_factor: float | None = None  # yarn
    beta_fast: float | None = None  # yarn
    beta_slow: float | None = None  # yarn
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3


@dataclass(frozen=True)
class Hparams:
    """What the forward pass, the recipes and the metadata need to know of a model."""

    arch: str  # general.architecture: "llama" for Llama, Mistral and Mixtral
    n_layer: int
    n_ctx_train: int
    n_embd: int
    n_ff: int  # width of the feed-forward layer; of one expert where there are experts
    n_head: int
    n_head_kv: int
    n_vocab: int  # rows of the token embedding
    head_dim: int
    rms_norm_eps: float
    rope_freq_base: float
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    n_expert: int = 0
    n_expert_used: int = 0
    head_dim_explicit: bool = False  # the config says head_dim, so key_length and value_length are written
    rope_neox: bool = False  # else rotary pairs are neighbours (rows of q and k permuted from Hugging Face's)

    @property
    def n_gqa(self) -> int:
        """Query heads per key head, as the recipes ask for it (0 where there are no key heads)."""
        return self.n_head // self.n_head_kv if self.n_head_kv else 0
