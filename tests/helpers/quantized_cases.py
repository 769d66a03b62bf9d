"""Small GGUF files of many kinds, and command lines of llama-quantize that turn them into others.

The files are the same everywhere: their weights are sums of whole numbers, exact in float32, and the gguf package
writes them. `tests/golden/make_quantized.py` notes what llama-quantize makes of them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType, GGUFWriter, quants

from quantize.recipes.ftypes import FTYPES

__all__ = ["IMATRICES", "QUICK", "SOURCES", "commands", "write_sources"]

Tensor = tuple[str, tuple[int, ...], str]
"""Name, shape in NumPy's order, type."""

Keys = dict[str, object]


def weights(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """About normal and the same everywhere; some rows of a matrix are zero, as in embeddings of unused tokens."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    total: npt.NDArray[np.float32] = rng.integers(-100, 101, (6, *shape)).sum(0).astype(np.float32)
    total /= np.float32(4096)
    if len(shape) > 1 and shape[-2] > 3:
        total[..., 3, :] = 0
    return total


def write_model(
    path: Path, arch: str, tensors: Sequence[Tensor], keys: Keys | None = None, n_layer: int = 2
) -> None:
    """A model that llama.cpp can open: the keys that its architectures ask for, then `keys`; None leaves one out."""
    writer = GGUFWriter(path, arch)
    sizes: Keys = {
        "block_count": n_layer,
        "context_length": 512,
        "embedding_length": 256,
        "feed_forward_length": 512,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "vocab_size": 64,
    }
    given: Keys = {f"{arch}.{key}": value for key, value in sizes.items()}
    given |= {
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.attention.layer_norm_epsilon": 1e-5,
        "general.file_type": 32,
    }
    given |= keys or {}
    for key, value in given.items():
        if isinstance(value, tuple):
            writer.add_key_value(key, value[0], value[1], sub_type=value[2] if len(value) > 2 else None)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_key_value(key, value, GGUFValueType.STRING)
    for name, shape, kind in tensors:
        add_tensor(writer, name, shape, Type[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tensor(writer: GGUFWriter, name: str, shape: tuple[int, ...], kind: Type) -> None:
    """One tensor with the weights of its name."""
    values = weights(name, shape)
    if kind == Type.I32:
        writer.add_tensor(name, (values * 4096).astype(np.int32))
    elif kind in (Type.F32, Type.F16):
        writer.add_tensor(name, values.astype(np.float16 if kind == Type.F16 else np.float32))
    else:
        writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)


def dense(
    d: int = 256,
    f: int = 512,
    kind: str = "BF16",
    n_layer: int = 2,
    *,
    fused: bool = False,
    bias: bool = False,
) -> list[Tensor]:
    """The tensors of a dense model."""
    found: list[Tensor] = [
        ("token_embd.weight", (64, d), kind),
        ("output_norm.weight", (d,), "F32"),
        ("output.weight", (64, d), kind),
    ]
    for bid in range(n_layer):
        found += [(f"blk.{bid}.{name}", shape, as_) for name, shape, as_ in attention(d, kind, fused, bias)]
        found += [
            (f"blk.{bid}.ffn_norm.weight", (d,), "F32"),
            (f"blk.{bid}.ffn_up.weight", (f, d), kind),
            (f"blk.{bid}.ffn_gate.weight", (f, d), kind),
            (f"blk.{bid}.ffn_down.weight", (d, f), kind),
        ]
        if bias:
            found += [(f"blk.{bid}.ffn_up.bias", (f,), "F32")]
    return found


def attention(d: int, kind: str, fused: bool, bias: bool) -> list[Tensor]:
    """The tensors of attention in a layer."""
    found: list[Tensor] = [("attn_norm.weight", (d,), "F32"), ("attn_output.weight", (d, d), kind)]
    if fused:
        found += [("attn_qkv.weight", (2 * d, d), kind)]
    else:
        found += [(f"attn_{part}.weight", (d if part == "q" else d // 2, d), kind) for part in "qkv"]
    if bias:
        name = "attn_qkv" if fused else "attn_q"
        found += [(f"{name}.bias", (2 * d if fused else d,), "F32"), ("attn_output.bias", (d,), "F16")]
    return found


def moe(n_expert: int = 4, n_layer: int = 2) -> list[Tensor]:
    """The tensors of a mixture such as qwen3moe."""
    found = [tensor for tensor in dense(n_layer=n_layer) if ".ffn_" not in tensor[0]]
    for bid in range(n_layer):
        found += [
            (f"blk.{bid}.ffn_norm.weight", (256,), "F32"),
            (f"blk.{bid}.ffn_gate_inp.weight", (n_expert, 256), "F32"),
            (f"blk.{bid}.ffn_gate_exps.weight", (n_expert, 256, 256), "BF16"),
            (f"blk.{bid}.ffn_up_exps.weight", (n_expert, 256, 256), "BF16"),
            (f"blk.{bid}.ffn_down_exps.weight", (n_expert, 256, 256), "BF16"),
        ]
    return found


def mla() -> list[Tensor]:
    """The tensors of deepseek2: heads as stacks, a dense layer first, shared experts."""
    found: list[Tensor] = [
        ("token_embd.weight", (64, 256), "BF16"),
        ("output_norm.weight", (256,), "F32"),
        ("output.weight", (64, 256), "BF16"),
    ]
    for bid in range(3):
        tensors: list[Tensor] = [
            ("attn_norm.weight", (256,), "F32"),
            ("attn_q_a.weight", (64, 256), "BF16"),
            ("attn_q_a_norm.weight", (64,), "F32"),
            ("attn_q_b.weight", (4 * 96, 64), "BF16"),
            ("attn_kv_a_mqa.weight", (96, 256), "BF16"),
            ("attn_kv_a_norm.weight", (64,), "F32"),
            ("attn_kv_b.weight", (512, 64), "BF16"),
            ("attn_k_b.weight", (4, 64, 64), "BF16"),
            ("attn_v_b.weight", (4, 64, 64), "BF16"),
            ("attn_output.weight", (256, 256), "BF16"),
            ("ffn_norm.weight", (256,), "F32"),
        ]
        parts: list[Tensor]
        if bid == 0:
            parts = [(f"ffn_{part}.weight", (256, 256), "BF16") for part in ("gate", "up", "down")]
        else:
            parts = [(f"ffn_{part}_exps.weight", (4, 256, 256), "BF16") for part in ("gate", "up", "down")]
            parts += [(f"ffn_{part}_shexp.weight", (256, 256), "BF16") for part in ("gate", "up", "down")]
            parts += [("ffn_gate_inp.weight", (4, 256), "F32"), ("exp_probs_b.bias", (4,), "F32")]
        found += [(f"blk.{bid}.{name}", shape, kind) for name, shape, kind in (*tensors, *parts)]
    return found


def encoder(n_layer: int = 2) -> list[Tensor]:
    """The tensors of a T5-like encoder, with some of vision beside them that have four axes or one row."""
    found: list[Tensor] = [
        ("token_embd.weight", (64, 256), "BF16"),
        ("enc.output_norm.weight", (256,), "F32"),
        ("v.patch_embd.weight", (2, 3, 4, 256), "F16"),
        ("one.weight", (1, 1, 8, 256), "F16"),
        ("lonely.weight", (1, 256), "F16"),
    ]
    for bid in range(n_layer):
        found += [
            (f"enc.blk.{bid}.attn_rel_b.weight", (4, 32), "F16"),
            (f"enc.blk.{bid}.attn_q.weight", (256, 256), "BF16"),
            (f"enc.blk.{bid}.attn_v.weight", (256, 256), "BF16"),
            (f"enc.blk.{bid}.attn_o.weight", (256, 256), "BF16"),
            (f"enc.blk.{bid}.ffn_down.weight", (256, 512), "BF16"),
            (f"enc.blk.{bid}.attn_norm.weight", (256,), "F32"),
        ]
    return found


BERT: list[Tensor] = [
    ("token_embd.weight", (64, 256), "F16"),
    ("position_embd.weight", (512, 256), "F16"),
    ("token_types.weight", (2, 256), "F32"),
    ("token_embd_norm.weight", (256,), "F32"),
    *dense(kind="F16")[3:],
]

_OF_MOE: Keys = {
    "qwen3moe.expert_count": 4,
    "qwen3moe.expert_used_count": 2,
    "qwen3moe.expert_feed_forward_length": 256,
}
_OF_MLA: Keys = {
    "deepseek2.attention.q_lora_rank": 64,
    "deepseek2.attention.kv_lora_rank": 64,
    "deepseek2.attention.key_length": 96,
    "deepseek2.attention.value_length": 64,
    "deepseek2.leading_dense_block_count": 1,
    "deepseek2.expert_feed_forward_length": 256,
    "deepseek2.expert_shared_count": 1,
    "deepseek2.expert_count": 4,
    "deepseek2.expert_used_count": 2,
    "deepseek2.expert_weights_scale": 1.0,
    "deepseek2.rope.dimension_count": 32,
}
_T5: Keys = {"t5encoder.attention.relative_buckets_count": 32}

V = GGUFValueType
ODD_KEYS: Keys = {
    "odd.empty": "",
    "odd.nul": "before\0behind",
    "odd.no_utf8": b"caf\xe9 \xff\xc3",
    "odd.u8": (255, V.UINT8),
    "odd.i8": (-3, V.INT8),
    "odd.u16": (65535, V.UINT16),
    "odd.i16": (-300, V.INT16),
    "odd.i32": (-70000, V.INT32),
    "odd.u64": (2**60 + 1, V.UINT64),
    "odd.i64": (-(2**60) - 1, V.INT64),
    "odd.f64": (1e300, V.FLOAT64),
    "odd.flag": True,
    "odd.flags": ([True, False, True], V.ARRAY),
    "odd.words": (["a", "", "ü", "x" * 300, b"\xff\xfe", "nul\0nul"], V.ARRAY),
    "odd.floats": ([1.5, -2.5], V.ARRAY),
    "odd.numbers": ([1, 2, 3], V.ARRAY),
    "odd.bytes": ([1, 2, 255], V.ARRAY, V.UINT8),
    "odd.wide": ([2**60, 1], V.ARRAY, V.UINT64),
    "tokenizer.chat_template": "{{ bos }}" * 50,
    "split.other": 3,
    "tokenizer.ggml.tokens": ([b"<s>", "ü", b"\xc3", b"\xe9\xff"], V.ARRAY),
    "general.quantization_version": 1,
    "odd.last": "last",
}

SOURCES: dict[str, Callable[[Path], None]] = {
    "dense.gguf": lambda path: write_model(path, "qwen2", dense(bias=True, n_layer=3), n_layer=3),
    "fused.gguf": lambda path: write_model(path, "phi2", dense(fused=True, bias=True)),
    "rows576.gguf": lambda path: write_model(
        path, "llama", dense(576, 96, n_layer=1), {"llama.embedding_length": 576}, 1
    ),
    "rows24.gguf": lambda path: write_model(path, "llama", dense(24, 48, n_layer=1), n_layer=1),
    "f16.gguf": lambda path: write_model(path, "gemma", dense(kind="F16")),
    "f32.gguf": lambda path: write_model(path, "qwen2", dense(kind="F32", bias=True)),
    "tied.gguf": lambda path: write_model(
        path, "llama", [tensor for tensor in dense() if tensor[0] != "output.weight"]
    ),
    "falcon.gguf": lambda path: write_model(
        path, "falcon", dense(256, 256, n_layer=9, fused=True), n_layer=9
    ),
    "q8_0.gguf": lambda path: write_model(path, "llama", dense(kind="Q8_0"), {"general.file_type": 7}),
    "q4_0.gguf": lambda path: write_model(
        path,
        "llama",
        [*dense(kind="Q4_0"), ("rope_freqs.weight", (32,), "F32"), ("other.i32", (4, 4), "I32")],
        {"general.file_type": None},
    ),
    "t5.gguf": lambda path: write_model(path, "t5encoder", encoder(), _T5),
    "t5-long.gguf": lambda path: write_model(path, "t5encoder", encoder(11), _T5, 11),
    "bert.gguf": lambda path: write_model(
        path, "bert", BERT, {"bert.pooling_type": 1, "bert.attention.causal": False}
    ),
    "moe.gguf": lambda path: write_model(path, "qwen3moe", moe(n_layer=3), _OF_MOE, 3),
    "mla.gguf": lambda path: write_model(path, "deepseek2", mla(), _OF_MLA, 3),
    "plamo.gguf": lambda path: write_model(path, "plamo", dense()),
    "minicpm.gguf": lambda path: write_model(path, "minicpm", dense(), {"general.file_type": None}),
    "heads.gguf": lambda path: write_model(
        path,
        "llama",
        dense(n_layer=3),
        {
            "llama.attention.head_count": ([4, 4, 4], V.ARRAY, V.UINT32),
            "llama.feed_forward_length": ([512, 512, 512], V.ARRAY, V.UINT32),
        },
        3,
    ),
    "odd.gguf": lambda path: write_model(path, "llama", dense(n_layer=1), ODD_KEYS, 1),
}


def write_parts(path: Path) -> None:
    """A model in three parts, of which `path` is the first: all that is in no layer and layer 0, then a layer each."""
    tensors = dense(bias=True, n_layer=3)
    for no in range(3):
        own = [
            tensor
            for tensor in tensors
            if tensor[0].startswith(f"blk.{no}.") or (no == 0 and not tensor[0].startswith("blk."))
        ]
        keys: Keys = {
            "split.no": (no, V.UINT16),
            "split.count": (3, V.UINT16),
            "split.tensors.count": (len(tensors), V.INT32),
        }
        part = path.with_name(path.name.replace("00001", f"0000{no + 1}"))
        write_model(part, "qwen2", own[::-1], keys, n_layer=3)


SOURCES["split-00001-of-00003.gguf"] = write_parts


def entries(
    tensors: Sequence[Tensor], *, misfit: bool
) -> Iterator[tuple[str, npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Name, sums [n_matrix, n_per_row] and counts [n_matrix] of the matrices in layers; one expert saw nothing."""
    for name, shape, _ in tensors:
        if len(shape) > 1 and name.startswith("blk.") and "gate_inp" not in name:
            n_matrix = shape[0] if len(shape) == 3 else 1
            rng = np.random.default_rng(zlib.crc32(name[::-1].encode()))
            sums = np.exp2(rng.integers(-6, 7, (n_matrix, shape[-1]))).astype(np.float32)
            counts = rng.integers(1, 600, n_matrix).astype(np.float32)
            if n_matrix > 1:
                sums[1], counts[1] = 0, 0
            yield name, sums, counts
    if misfit:
        yield "token_embd.weight", np.ones((1, 32), np.float32), np.ones(1, np.float32)


def write_imatrix(path: Path, tensors: Sequence[Tensor], *, misfit: bool = False) -> None:
    """Importances in the GGUF form."""
    writer = GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["wiki.txt", "second.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, sums, counts in entries(tensors, misfit=misfit):
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", counts.reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_legacy(path: Path, tensors: Sequence[Tensor]) -> None:
    """Importances in the legacy form."""
    found = list(entries(tensors, misfit=False))
    parts = [struct.pack("<i", len(found))]
    for name, sums, _ in found:
        label = name.encode()
        parts += [struct.pack("<i", len(label)), label, struct.pack("<ii", 3, sums.size), sums.tobytes()]
    dataset = b"old.txt"
    parts += [struct.pack("<ii", 5, len(dataset)), dataset]
    path.write_bytes(b"".join(parts))


IMATRICES: dict[str, Callable[[Path], None]] = {
    "dense.imatrix": lambda path: write_imatrix(path, dense(n_layer=3), misfit=True),
    "moe.imatrix": lambda path: write_imatrix(path, moe(n_layer=3)),
    "moe.dat": lambda path: write_legacy(path, moe(n_layer=3)),
    "mla.imatrix": lambda path: write_imatrix(path, mla()),
    "falcon.imatrix": lambda path: write_imatrix(path, dense(256, 256, n_layer=9, fused=True)),
    "rows576.imatrix": lambda path: write_imatrix(path, dense(576, 96, n_layer=1)),
}

TYPES_FILE = "blk\\.0\\..*up=q5_0\n attn_v.weight=Q8_0 ffn_down=iq4_nl\n"


def write_sources(folder: Path) -> None:
    """Write everything that the command lines read."""
    for name, write in (SOURCES | IMATRICES).items():
        write(folder / name)
    (folder / "types.txt").write_text(TYPES_FILE, encoding="utf-8")


OPTIONS = """
--pure dense.gguf out.gguf q4_k 2
dense.gguf 15
dense.gguf 7 2
dense.gguf 12 0
./dense.gguf 18
--output-tensor-type q8_0 dense.gguf out.gguf Q4_K_S
--output-tensor-type f16 --token-embedding-type Q5_1 dense.gguf out.gguf Q3_K_M
--token-embedding-type q8_0 tied.gguf out.gguf Q4_K_M
--output-tensor-type q8_0 tied.gguf out.gguf Q4_K_M
--leave-output-tensor dense.gguf out.gguf Q4_0
--tensor-type ATTN_V=q8_0 --tensor-type blk\\.[01]\\.ffn_(up|gate)=q5_k dense.gguf out.gguf Q4_K_M
--tensor-type-file types.txt dense.gguf out.gguf Q4_K_M
--tensor-type ffn_down=q6_k --pure moe.gguf out.gguf iq4_xs
--override-kv general.name=str:other --override-kv qwen2.rope.freq_base=float:10000.5 dense.gguf out.gguf Q8_0
--override-kv qwen2.context_length=int:1024 --override-kv new.flag=bool:true dense.gguf out.gguf Q5_0
--override-kv qwen3moe.expert_count=int:8 moe.gguf out.gguf Q4_K_M
--override-kv qwen2.block_count=int:16 dense.gguf out.gguf Q4_K_M
--override-kv qwen2.attention.head_count=int:16 dense.gguf out.gguf Q2_K
--override-kv general.file_type=int:99 dense.gguf out.gguf COPY
--override-kv general.architecture=str:falcon falcon.gguf out.gguf Q3_K_M
--imatrix dense.imatrix --include-weights ffn_down dense.gguf out.gguf Q4_K_M
--imatrix dense.imatrix --include-weights blk.0 --include-weights attn_v dense.gguf out.gguf Q4_0
--imatrix dense.imatrix --exclude-weights ffn_down --exclude-weights blk.1 dense.gguf out.gguf IQ4_XS
--imatrix dense.imatrix --exclude-weights token_embd dense.gguf out.gguf Q3_K_S
--imatrix dense.imatrix --exclude-weights . dense.gguf out.gguf Q4_0
--imatrix dense.imatrix --include-weights nothing dense.gguf out.gguf Q5_0
--imatrix dense.imatrix --include-weights token_embd dense.gguf out.gguf Q4_0
--imatrix dense.imatrix --include-weights blk.1 odd.gguf out.gguf Q4_K_M
--imatrix dense.imatrix --allow-requantize q4_0.gguf out.gguf Q3_K_M
--imatrix ./dense.imatrix --pure dense.gguf out.gguf Q2_K_S
--imatrix moe.dat moe.gguf out.gguf Q4_K_M
--imatrix moe.dat --include-weights exps moe.gguf out.gguf Q3_K_L
--imatrix moe.imatrix --exclude-weights attn moe.gguf out.gguf Q2_K
--imatrix mla.imatrix mla.gguf out.gguf Q4_K_M
--imatrix falcon.imatrix falcon.gguf out.gguf Q4_K_S
--imatrix rows576.imatrix rows576.gguf out.gguf IQ4_XS
--prune-layers 1 dense.gguf out.gguf Q4_K_M
--prune-layers 0,2 dense.gguf out.gguf Q5_K_M
--prune-layers 2,0,2,7 --imatrix dense.imatrix dense.gguf out.gguf Q4_K_M
--prune-layers 1 --imatrix dense.imatrix --include-weights blk.2 dense.gguf out.gguf Q4_0
--prune-layers 0 --imatrix moe.imatrix --tensor-type blk.0.ffn_up=q8_0 moe.gguf out.gguf Q4_K_M
--prune-layers 1 --imatrix moe.dat moe.gguf out.gguf Q5_K_S
--prune-layers 1 heads.gguf out.gguf Q4_K_M
--prune-layers 0 mla.gguf out.gguf Q4_K_M
--prune-layers 0 t5-long.gguf out.gguf Q8_0
--prune-layers 1 dense.gguf out.gguf COPY
--prune-layers 9 dense.gguf out.gguf Q8_0
--prune-layers 0,1,2 dense.gguf out.gguf Q8_0
--prune-layers 1 --override-kv qwen2.block_count=int:12 dense.gguf out.gguf Q4_K_M
dense.gguf copy
q4_0.gguf out.gguf COPY
minicpm.gguf out.gguf COPY
q8_0.gguf out.gguf copy
--imatrix dense.imatrix --pure --leave-output-tensor dense.gguf out.gguf COPY
fused.gguf out.gguf Q4_K_M
fused.gguf out.gguf Q3_K_L
fused.gguf out.gguf MXFP4_MOE
rows576.gguf out.gguf Q4_K_M
rows576.gguf out.gguf Q3_K_M
rows576.gguf out.gguf Q2_K
rows576.gguf out.gguf Q6_K
rows576.gguf out.gguf Q5_K_S
rows24.gguf out.gguf Q4_K_M
rows24.gguf out.gguf Q4_0
f16.gguf out.gguf Q4_K_M
f16.gguf out.gguf BF16
f16.gguf out.gguf F32
f32.gguf out.gguf Q5_K_M
f32.gguf out.gguf F16
f32.gguf out.gguf BF16
tied.gguf out.gguf Q4_K_M
tied.gguf out.gguf IQ4_NL
falcon.gguf out.gguf Q4_K_M
falcon.gguf out.gguf Q3_K_M
falcon.gguf out.gguf Q2_K
--allow-requantize q8_0.gguf out.gguf Q4_K_M
--allow-requantize --leave-output-tensor q8_0.gguf out.gguf Q3_K_M
--allow-requantize q8_0.gguf out.gguf F16
--allow-requantize q4_0.gguf out.gguf Q5_K_M
--allow-requantize --pure q4_0.gguf out.gguf Q4_0
q8_0.gguf out.gguf Q8_0
t5.gguf out.gguf Q4_K_M
t5.gguf out.gguf Q8_0
bert.gguf out.gguf Q4_K_M
bert.gguf out.gguf F32
mla.gguf out.gguf Q4_K_M
mla.gguf out.gguf MXFP4_MOE
mla.gguf out.gguf Q2_K
mla.gguf out.gguf IQ4_XS
plamo.gguf out.gguf Q4_K_S
minicpm.gguf out.gguf Q3_K_M
heads.gguf out.gguf Q4_K_M
odd.gguf out.gguf Q4_0
odd.gguf out.gguf COPY
--keep-split split-00001-of-00003.gguf out.gguf Q4_K_M
--keep-split split-00001-of-00003.gguf Q8_0
--keep-split --imatrix dense.imatrix split-00001-of-00003.gguf out.v1 Q4_0
--keep-split --prune-layers 2 split-00001-of-00003.gguf out.gguf Q4_K_M
--keep-split --prune-layers 0 --imatrix dense.imatrix split-00001-of-00003.gguf out.gguf.tmp Q4_0
--keep-split split-00001-of-00003.gguf out.gguf COPY
--keep-split dense.gguf out.gguf Q4_0
split-00001-of-00003.gguf out.gguf Q4_K_M
split-00001-of-00003.gguf out.gguf COPY
--max-buffer-size 1 dense.gguf out.gguf Q4_1
--imatrix dense.imatrix dense.gguf 20
--imatrix moe.dat moe.gguf out.gguf IQ2_XS
--imatrix mla.imatrix mla.gguf out.gguf IQ1_M
--imatrix mla.imatrix mla.gguf out.gguf IQ2_XXS
--imatrix mla.imatrix mla.gguf out.gguf IQ3_XXS
--imatrix falcon.imatrix falcon.gguf out.gguf IQ2_M
--imatrix falcon.imatrix falcon.gguf out.gguf IQ3_M
--imatrix rows576.imatrix rows576.gguf out.gguf IQ2_XS
--imatrix rows576.imatrix rows576.gguf out.gguf IQ3_S
rows576.gguf out.gguf TQ2_0
rows576.gguf out.gguf Q2_0
rows24.gguf out.gguf Q2_0
rows24.gguf out.gguf IQ3_S
fused.gguf out.gguf IQ3_M
f16.gguf out.gguf TQ1_0
f32.gguf out.gguf IQ3_S
tied.gguf out.gguf Q1_0
--pure dense.gguf out.gguf TQ1_0
--pure dense.gguf out.gguf IQ3_S
--pure moe.gguf out.gguf Q2_0
--override-kv qwen3moe.expert_count=int:8 --imatrix moe.imatrix moe.gguf out.gguf IQ2_M
--override-kv qwen3moe.expert_count=int:8 --imatrix moe.imatrix moe.gguf out.gguf IQ3_M
--prune-layers 1 --imatrix dense.imatrix dense.gguf out.gguf IQ2_S
--keep-split --imatrix dense.imatrix split-00001-of-00003.gguf out.gguf IQ3_XXS
--imatrix dense.imatrix --tensor-type ffn_up=iq1_s dense.gguf out.gguf Q4_K_M
--tensor-type ffn_up=nvfp4 dense.gguf out.gguf Q4_K_M
--tensor-type ffn_down=q2_0 --tensor-type attn_q=q1_0 moe.gguf out.gguf Q4_K_M
--output-tensor-type iq3_s --token-embedding-type iq2_s dense.gguf out.gguf Q4_K_M
--output-tensor-type iq1_m --token-embedding-type iq3_xxs dense.gguf out.gguf Q4_K_M
dense.gguf out.gguf
dense.gguf out.gguf Q9
dense.gguf dense.gguf Q4_0
dense.gguf ./dense.gguf Q4_0
dense.gguf out.gguf Q4_0 many
dense.gguf out.gguf Q2_K_S
q8_0.gguf out.gguf Q4_0
--imatrix moe.imatrix mla.gguf out.gguf Q2_K_S
--imatrix nothing.imatrix dense.gguf out.gguf Q4_0
--imatrix dense.imatrix --include-weights a --exclude-weights b dense.gguf out.gguf Q4_0
--imatrix dense.imatrix --exclude-weights ffn_up dense.gguf out.gguf Q2_K_S
--output-tensor-type q4_k rows576.gguf out.gguf Q4_0
--prune-layers x dense.gguf out.gguf Q4_0
--prune-layers 1,,2 dense.gguf out.gguf Q4_0
--tensor-type ffn_down dense.gguf out.gguf Q4_0
--override-kv qwen2.block_count=int dense.gguf out.gguf Q4_0
--override-kv qwen3moe.block_count=int:1 moe.gguf out.gguf Q4_0
--no-such-option dense.gguf out.gguf Q4_0
--max-buffer-size 0 dense.gguf out.gguf Q4_0
rows576.gguf out.gguf Q1_0
--tensor-type ffn_up=nvfp4 rows24.gguf out.gguf Q4_K_M
--tensor-type ffn_up=iq1_s dense.gguf out.gguf Q4_K_M
--output-tensor-type iq2_xs dense.gguf out.gguf Q4_K_M
--imatrix dense.imatrix --token-embedding-type iq1_s dense.gguf out.gguf Q4_K_M
--imatrix dense.imatrix --pure dense.gguf out.gguf IQ2_XS
--imatrix dense.imatrix --exclude-weights ffn_up dense.gguf out.gguf IQ2_XXS
nothing.gguf out.gguf Q4_0
split-00002-of-00003.gguf out.gguf Q4_0
dense.gguf no-such-folder/out.gguf Q4_0
"""
"""Command lines without the name of the program, most of them of an option; the last ones fail."""


def commands() -> list[str]:
    """All command lines: those of options, and every file type of two models with and without importances."""
    lines = OPTIONS.strip().splitlines()
    for model in ("dense", "moe"):
        for ftype in FTYPES:
            lines.append(f"{model}.gguf out.gguf {ftype.name}")
            lines.append(f"--imatrix {model}.imatrix {model}.gguf out.gguf {ftype.name}")
    return list(dict.fromkeys(lines))


QUICK = ("Q4_K_M", "Q8_0", "COPY", "copy", "15", "Q4_0")
"""The last words of the command lines that quick tests run, for which few kernels are compiled."""
