"""The hyper-parameters of a model, in llama.cpp's words."""

from __future__ import annotations

from collections.abc import Mapping
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
    short_factors: tuple[float, ...] = ()  # longrope: divisors of the frequencies up to n_ctx_orig tokens
    long_factors: tuple[float, ...] = ()  # longrope: those of longer texts


@dataclass(frozen=True)
class Hparams:
    """Dimensions and switches of a model, as the forward pass, the recipes and the metadata use them.

    A width that is 0 follows from another: experts are as wide as the dense layer, values as queries and keys, and the
    whole of a head is rotated.
    """

    arch: str  # general.architecture: "llama" for Llama, Mistral and Mixtral
    n_layer: int
    n_ctx_train: int
    n_embd: int
    n_ff: int  # width of the dense feed-forward layer, and of one expert where n_ff_exp is not given
    n_head: int
    n_head_kv: int
    n_vocab: int  # rows of the token embedding
    head_dim: int  # of queries and keys
    rope_freq_base: float
    rms_norm_eps: float = 0.0  # 0 where the norms are layer norms
    layer_norm_eps: float = 0.0
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    n_expert: int = 0
    n_expert_used: int = 0
    rope_neox: bool = False  # else rotary pairs are neighbours (rows of q and k permuted from Hugging Face's)
    n_ff_exp: int = 0  # width of one expert
    n_ff_shexp: int = 0  # width of the shared experts together
    n_expert_shared: int = 0
    head_dim_v: int = 0  # of values
    n_rot: int = 0  # dimensions of a head that are rotated
    n_swa: int = 0  # tokens of the sliding window
    n_layer_dense_lead: int = 0  # layers without experts at the start
    n_layer_nextn: int = 0  # layers at the end that predict further tokens (MTP), and are no part of the pass
    n_expert_groups: int = 0
    n_group_used: int = 0
    expert_gating_func: int = (
        0  # llama_expert_gating_func_type: 0 none, 1 softmax, 2 sigmoid, 3 softmax_weight
    )
    expert_weights_scale: float = 0.0  # 0: they are not scaled
    expert_weights_norm: bool = False
    rope_attn_factor: float = 1.0  # of cosines and sines, beside what their scaling makes of them
    attention_scale: float = 0.0  # of the products of queries and keys; 0: 1/sqrt(head_dim)
    embedding_scale: float = 0.0  # factors; 0: none
    residual_scale: float = 0.0
    logit_scale: float = 0.0
    clamp_kqv: float = 0.0  # the limit of queries, keys and values; 0: none
    extra: Mapping[str, int | float | str | bool] = field(default_factory=dict, hash=False)
    """Numbers and switches that only some families have, by the names in their tables of keys: "kv_lora_rank"."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_ff_exp", self.n_ff_exp or self.n_ff)
        object.__setattr__(self, "head_dim_v", self.head_dim_v or self.head_dim)
        object.__setattr__(self, "n_rot", self.n_rot or self.head_dim)

    @property
    def norm_eps(self) -> float:
        """What norms add to the mean square, whichever kind they are."""
        return self.rms_norm_eps or self.layer_norm_eps

    @property
    def n_layer_run(self) -> int:
        """Layers through which a text goes."""
        return self.n_layer - self.n_layer_nextn

    @property
    def dims(self) -> dict[str, int]:
        """The fields that are whole numbers, by name: the shapes of a family may name them."""
        named = {**vars(self), **self.extra}
        return {name: value for name, value in named.items() if type(value) is int}
