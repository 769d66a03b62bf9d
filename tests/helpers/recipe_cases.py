"""Models without weights for the recipes: their tensors, their hyper-parameters, and the text of a plan.

`test_recipe.py` plans them; `scripts/update_snapshots` lets llama-quantize plan the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from quantize.hparams import Hparams
from quantize.recipes.ftypes import FTYPES, Ftype
from quantize.recipes.recipe import Recipe, RecipeFacts
from quantize.recipes.tensor_types import parse_qtype, parse_tensor_type
from quantize.tensors import QType, TensorSpec


@dataclass(frozen=True)
class Model:
    """A Mixtral-shaped model, or a Llama-shaped one where `n_expert` is 0; widths are small, bf16 throughout."""

    n_expert: int
    tied: bool = False
    n_layer: int = 16
    n_embd: int = 256
    n_ff: int = 512
    n_head: int = 8
    n_head_kv: int = 2
    n_vocab: int = 64
    extras: bool = False  # every kind of tensor that the rules know a name for
    arch: str = "llama"

    @property
    def hparams(self) -> Hparams:
        return Hparams(
            arch=self.arch,
            n_layer=self.n_layer,
            n_ctx_train=512,
            n_embd=self.n_embd,
            n_ff=self.n_ff,
            n_head=self.n_head,
            n_head_kv=self.n_head_kv,
            n_vocab=self.n_vocab,
            head_dim=32,
            rms_norm_eps=1e-5,
            rope_freq_base=1e4,
            n_expert=self.n_expert,
            n_expert_used=min(2, self.n_expert),
        )

    @property
    def facts(self) -> RecipeFacts:
        return RecipeFacts.of(self.hparams)

    @property
    def specs(self) -> list[TensorSpec]:
        shapes = {
            "token_embd.weight": (self.n_vocab, self.n_embd),
            "output_norm.weight": (self.n_embd,),
        }
        if not self.tied:
            shapes["output.weight"] = (self.n_vocab, self.n_embd)
        for bid in range(self.n_layer):
            shapes |= {f"blk.{bid}.{name}": shape for name, shape in self._layer().items()}
        if self.extras:
            shapes |= dict.fromkeys(KEPT, (8, self.n_embd))
            shapes |= {f"blk.0.{name}": (8, self.n_embd) for name in KEPT_IN_LAYERS}
            shapes |= {
                "v.patch_embd.weight": (2, 3, 4, 256),
                "other_weight": (8, self.n_embd),
                "xproj": (8, 256),
            }
        return [TensorSpec(name, shape, QType.BF16) for name, shape in shapes.items()]

    def _layer(self) -> dict[str, tuple[int, ...]]:
        D, F, E, H = self.n_embd, self.n_ff, self.n_expert, self.n_head * 32
        shapes: dict[str, tuple[int, ...]] = {
            "attn_q.weight": (H, D),
            "attn_k.weight": (self.n_head_kv * 32, D),
            "attn_v.weight": (self.n_head_kv * 32, D),
            "attn_output.weight": (D, H),
            "attn_norm.weight": (D,),
            "ffn_norm.weight": (D,),
        }
        if E:
            shapes |= {
                "ffn_gate_inp.weight": (E, D),
                "ffn_gate_exps.weight": (E, F, D),
                "ffn_up_exps.weight": (E, F, D),
                "ffn_down_exps.weight": (E, D, F),
            }
        if not E or self.extras:
            shapes |= {"ffn_gate.weight": (F, D), "ffn_up.weight": (F, D), "ffn_down.weight": (D, F)}
        if self.extras:
            shapes |= {
                "attn_q.bias": (H,),
                "attn_qkv.weight": (3 * H, D),
                "attn_kv_b.weight": (2 * H, D),
                "attn_k_b.weight": (4, D, 128),
                "attn_q_norm.weight": (4, 32),
                "ffn_gate_inp_shexp.weight": (1, D),
                "ffn_down_shexp.weight": (D, F),
                "ffn_down_exps.bias": (4, D),
                "attn_sinks.weight": (8,),
                "ssm_conv1d.weight": (D, 4),
                "indexer.proj.weight": (8, D),
                "indexer.k_proj.weight": (8, D),
            }
        return shapes


KEPT = (
    *("position_embd.weight", "token_types.weight", "altup_proj.weight", "per_layer_model_proj.weight"),
    *("v.position_embd.weight", "v.sam.pos_embd.weight", "v.sam.neck.0.weight", "v.sam.net_2.weight"),
    *("v.blk.0.rel_pos.weight", "v.patch_embd.1.weight", "mm.patch_merger.weight"),
    *("a.rvq.codebook.weight", "mm.a.code_embd.weight", "mm.a.mlp.weight"),
)
KEPT_IN_LAYERS = (
    *("laurel_l.weight", "ffn_gate_tid2eid.weight", "shortconv.conv.weight", "attn_rel_b.weight"),
    *("indexer.q_proj.weight", "indexer.attn_k.weight", "indexer.attn_q_b.weight", "hc_attn_fn.weight"),
    *("indexer_compressor_ape.weight", "ssm_f_a.weight", "ssm_g_b.weight", "ssm_beta.weight"),
    *(
        "attn_kv_a_mqa.weight",
        "attn_v_b.weight",
        "attn_q_a.weight",
        "attn_q_b.weight",
        "nextn.eh_proj.weight",
    ),
    *(
        f"time_mix_{part}.weight"
        for part in ("first", "w0", "v1", "a2", "g1", "decay_w2", "lerp_fused", "key")
    ),
)
"""Names of tensors that one architecture or another leaves alone, and of some that it does not."""

MODELS = {
    **{
        f"{n_expert} experts{', tied' if tied else ''}": Model(n_expert, tied)
        for n_expert in (4, 8, 16)
        for tied in (False, True)
    },
    "dense": Model(0),
    "dense, gqa 1, tied": Model(0, tied=True, n_head_kv=8),
    "dense, 80 layers": Model(0, n_layer=80),
    "4 experts, gqa 2": Model(4, n_head_kv=4),
    "4 experts, 288 wide": Model(4, n_layer=8, n_embd=288, n_ff=256, n_head=9, n_head_kv=3),
    "8 experts, ff 96, tied": Model(8, tied=True, n_layer=8, n_ff=96),
    "4 experts, 40 wide": Model(4, n_layer=2, n_embd=40, n_ff=24, n_head=1, n_head_kv=1),
    "4 experts, 40 wide, tied": Model(4, tied=True, n_layer=2, n_embd=40, n_ff=24, n_head=1, n_head_kv=1),
    "4 experts, all names": Model(4, n_layer=4, extras=True),
    "8 experts, all names": Model(8, n_layer=4, extras=True),
    "falcon": Model(0, n_layer=20, n_head_kv=1, arch="falcon"),
    "falcon, tied": Model(0, tied=True, n_layer=20, n_head_kv=8, arch="falcon"),
    "glm5-next, all names": Model(4, n_layer=4, extras=True, arch="glm5-next"),
    "bailingmoe3, all names": Model(4, n_layer=4, extras=True, arch="bailingmoe3"),
}

SMALL, TIED = Model(4, n_layer=4), Model(4, tied=True, n_layer=4, n_ff=96)

OPTIONS: list[tuple[str, ...]] = [
    ("--pure",),
    ("--output-tensor-type", "Q5_K"),
    ("--output-tensor-type", "q5_k", "--pure"),
    ("--token-embedding-type", "q4_1"),
    ("--token-embedding-type", "Q6_K", "--output-tensor-type", "bf16"),
    ("--leave-output-tensor",),
    ("--leave-output-tensor", "--output-tensor-type", "q8_0"),
    ("--tensor-type", "attn_q=q8_0"),
    ("--tensor-type", r"blk\.[01]\.FFN_DOWN=q6_K", "--tensor-type", "ffn_down=Q3_K"),
    ("--tensor-type", "token_embd=q3_k", "--tensor-type", "^output=iq4_xs"),
    ("--tensor-type", "attn_(k|v)=q5_0", "--pure"),
    ("--tensor-type", "attn=f16", "--tensor-type", "norm|gate_inp=q8_0"),
    ("--tensor-type", r"blk\.0\.attn_v=q8_0", "--tensor-type", "nothing=q8_0"),
]
"""Options as llama-quantize takes them, tried on two small models and some file types."""

OPTION_FTYPES = ("Q4_K_M", "Q2_K", "Q4_K_S", "Q8_0", "MXFP4_MOE", "BF16")


def recipe_of(ftype: Ftype, options: Iterable[str]) -> Recipe:
    """The recipe that llama-quantize's options spell."""
    words = iter(options)
    fields: dict[str, object] = {}
    tensor_types: list[tuple[str, QType]] = []
    for word in words:
        field = word.removeprefix("--").replace("-", "_")
        if field == "tensor_type":
            tensor_types.append(parse_tensor_type(next(words)))
        elif field in ("pure", "leave_output_tensor"):
            fields[field] = True
        else:
            fields[field] = parse_qtype(next(words))
    return Recipe(ftype, tuple(tensor_types), **fields)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Case:
    """One section of a snapshot: a title, and what is planned."""

    title: str
    ftype: Ftype
    model: Model
    has_imatrix: bool = False
    options: tuple[str, ...] = ()


def snapshot_cases() -> dict[str, list[Case]]:
    """The sections of each snapshot, by the name of its file without suffix."""
    files = {
        ftype.name: [
            Case(f"{label}, {'imatrix' if has_imatrix else 'plain'}", ftype, model, has_imatrix)
            for label, model in MODELS.items()
            for has_imatrix in (False, True)
        ]
        for ftype in FTYPES
    }
    files["options"] = [
        Case(" ".join([ftype.name, *words, label]), ftype, model, False, words)
        for ftype in FTYPES
        if ftype.name in OPTION_FTYPES
        for words in OPTIONS
        for label, model in (("(untied)", SMALL), ("(tied, ff 96)", TIED))
    ]
    return files


Resolved = tuple[str, str]
"""The type of a tensor, and the one that was meant where it fell back, else an empty string."""


def section(case: Case, types: Mapping[str, Resolved]) -> list[str]:
    """A plan as text: what is not as one expects of the file type at first sight, one line per kind of tensor."""
    always_f32 = ("_norm.weight", "ffn_gate_inp.weight", ".bias")
    layers: dict[tuple[str, Resolved], list[int]] = {}
    for name, resolved in types.items():
        expected = "F32" if name.endswith(always_f32) else case.ftype.qtype.name
        if resolved != (expected, ""):
            bid = re.match(r"blk\.(\d+)\.", name)
            pattern = name if bid is None else name.replace(bid[0], "blk.*.", 1)
            layers.setdefault((pattern, resolved), []).extend([int(bid[1])] if bid else [])
    return [
        pattern.replace("*", _ranges(bids)) + f" {qtype}" + (f" (not {meant})" if meant else "")
        for (pattern, (qtype, meant)), bids in sorted(layers.items())
    ]


def _ranges(numbers: list[int]) -> str:
    """Ascending numbers as text: 0-3,6,9."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def snapshot(sections: Mapping[str, list[str]], heading: str) -> str:
    """The text of a snapshot; sections with the same lines share them."""
    shared: dict[tuple[str, ...], list[str]] = {}
    for title, lines in sections.items():
        shared.setdefault(tuple(lines), []).append(title)
    text = [f"# {heading}"]
    for lines_, titles in shared.items():
        text += ["", *(f"[{title}]" for title in titles), *lines_]
    return "\n".join(text) + "\n"
