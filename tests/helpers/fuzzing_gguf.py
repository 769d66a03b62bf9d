"""What strangers could send in containers: GGUF files by their grammar, and folders of shards in odd layouts.

Headers are built of true parts and absurd ones (counts beyond any file, arrays of arrays, nothing at all, keys that
stand twice), so that readers are led further in than by flipped bytes. A folder is laid out by bytes that seed a
generator: any bytes are a folder, and none are the healthy one.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType as Type
from gguf_files import text
from hypothesis import strategies as st

from calibration.forward.run import forward
from calibration.forward.settings import ForwardSettings
from calibration.forward.streams import Stream
from gguf_export.checking.doctor import doctor
from gguf_export.comparing.models import ModelChoice, open_models
from gguf_export.writing.export import prepare
from gguf_export.writing.remarks import export_remarks
from quantize.containers.gguf import SCALARS, read_container
from quantize.containers.keys import elements
from quantize.containers.shard_index import index_shards
from quantize.containers.untrusted import read_bytes
from quantize.exceptions import MoeGgufError
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe
from quantize.sources.checkpoint import open_checkpoint
from quantize.sources.gguf_file import GGUFFile
from quantize.sources.model_source import open_gguf

__all__ = ["hostile_gguf", "open_for_compare", "open_layout", "pass_over", "plan_of_source"]

ABSURD = [0, 1, 2, 3, 255, 2**16, 2**18 + 1, 2**21 + 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, 2**64 - 1]
DIMS = [0, 1, 2, 31, 32, 64, 320, 2**31, 2**62, 2**63]
NAMES = [
    *(
        "",
        "general.architecture",
        "general.alignment",
        "split.count",
        "split.no",
        "split.tensors.count",
        "general.file_type",
        "x" * 99,
        "\x1b[31m",
    ),
    *("llama.block_count", "llama.embedding_length", "llama.attention.head_count", "llama.expert_count"),
    *("llama.attention.head_count_kv", "llama.expert_used_count", "llama.feed_forward_length"),
    *("llama.rope.dimension_count", "llama.attention.key_length", "llama.attention.layer_norm_rms_epsilon"),
    *("tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type", "tokenizer.ggml.model"),
]
TENSORS = [
    "",
    "token_embd.weight",
    "output_norm.weight",
    "blk.0.ffn_up_exps.weight",
    "blk.0.ffn_gate_inp.weight",
]


# --- headers ---


def hostile_gguf(draw: st.DrawFn, healthy: Path) -> bytes:
    """A GGUF file by the grammar: the keys and tensors of a healthy one, some left out, others put among them."""
    container, content = read_container(healthy), healthy.read_bytes()
    pairs = [(name, _known(value, *container.types[name])) for name, value in container.keys.items()]
    infos, data = [], b""
    for stored in container.tensors.values():
        ne = list(reversed(stored.spec.shape))
        infos.append(_info(stored.spec.name, len(ne), ne, stored.spec.qtype, len(data)))
        data += content[stored.offset : stored.offset + stored.n_bytes] + bytes(-stored.n_bytes % 32)
    which = draw(st.sampled_from(["all", "vocabulary", "norms", "none"]))
    if which != "all":
        infos, data = [], b""
    if which == "norms":
        infos, data = [_info("output_norm.weight", 1, [8], 0, 0)], bytes(32)
    if which == "none":
        pairs = []
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.integers(0, 5))
        if kind == 0 and pairs:
            del pairs[draw(st.integers(0, len(pairs) - 1))]
        elif kind == 1 and pairs:
            pairs.append(pairs[draw(st.integers(0, len(pairs) - 1))])
        elif kind == 2 and pairs:
            at = draw(st.integers(0, len(pairs) - 1))
            pairs[at] = (pairs[at][0], _value(draw))
        elif kind == 3:
            infos.insert(draw(st.integers(0, len(infos))), _any_info(draw))
        elif kind == 4 and infos:
            del infos[draw(st.integers(0, len(infos) - 1))]
        else:
            pairs.append((draw(st.sampled_from(NAMES)), _value(draw)))
    lies = draw(st.integers(0, 9))
    n_tensors = draw(st.sampled_from(ABSURD)) if lies == 0 else len(infos)
    n_keys = draw(st.sampled_from(ABSURD)) if lies == 1 else len(pairs)
    version = draw(st.sampled_from([0, 1, 2, 2**31])) if lies == 2 else 3
    head = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys)
    head += b"".join(text(name.encode()) + value for name, value in pairs) + b"".join(infos)
    return head + bytes(-len(head) % 32) + data[: draw(st.sampled_from([0, 31, len(data), len(data)]))]


def _known(value: Any, kind: Type, element: Type | None) -> bytes:
    """Type and value of a key as they lie in a file."""
    array = elements(value)
    if array is None:
        return struct.pack("<i", kind) + (
            text(value.encode()) if kind == Type.STRING else struct.pack(SCALARS[kind], value)
        )
    assert element is not None
    if element == Type.STRING:
        return struct.pack("<iiQ", kind, element, len(array)) + b"".join(text(one.encode()) for one in array)
    return struct.pack(f"<iiQ{len(array)}{SCALARS[element][1:]}", kind, element, len(array), *array)


def _value(draw: st.DrawFn, depth: int = 0) -> bytes:
    kind = draw(st.sampled_from([*SCALARS, Type.STRING, *[Type.ARRAY] * 8, 13, -1]))
    return struct.pack("<i", kind) + _content(draw, kind, depth)


def _content(draw: st.DrawFn, kind: int, depth: int) -> bytes:
    """A value of some type; of an array the type of its elements, their number or a lie, and the elements."""
    if kind in SCALARS:
        return draw(st.binary(min_size=8, max_size=8))[: struct.calcsize(SCALARS[Type(kind)])]
    if kind == Type.STRING:
        lies = draw(st.integers(0, 5)) == 0
        content = draw(st.binary(max_size=20))
        return struct.pack("<Q", draw(st.sampled_from(ABSURD)) if lies else len(content)) + content
    if kind != Type.ARRAY or depth > 3:
        return b""
    element = draw(st.sampled_from([*SCALARS, Type.STRING, Type.ARRAY, 13]))
    n = draw(st.sampled_from([0, 0, 1, 2, 7, 320, 5000]))
    one = _content(draw, element, depth + 1)
    claimed = draw(st.sampled_from(ABSURD)) if draw(st.integers(0, 4)) == 0 else n
    return struct.pack("<iQ", element, claimed) + one * n


def _any_info(draw: st.DrawFn) -> bytes:
    n_dims = draw(st.sampled_from([0, 1, 1, 2, 2, 3, 4, 5, 2**31]))
    ne = [draw(st.sampled_from(DIMS)) for _ in range(min(n_dims, 5))]
    kind, offset = draw(st.integers(-1, 45)), draw(st.sampled_from([0, 32, *ABSURD]))
    return _info(draw(st.sampled_from(TENSORS)), n_dims, ne, kind, offset)


def _info(name: str, n_dims: int, ne: list[int], kind: int, offset: int) -> bytes:
    return text(name.encode()) + struct.pack(f"<I{len(ne)}QiQ", n_dims, *ne, kind, offset)


# --- readers ---


def open_for_compare(folder: Path) -> object:
    """A stranger's file as model and as base, beside a checkpoint and beside a file."""
    path, model = folder / "compared.gguf", folder / "model.gguf"
    choices = [
        ModelChoice((folder, path)),
        ModelChoice((path,), base=model),
        ModelChoice((model,), base=path),
        ModelChoice((folder, model), base=path),
    ]
    opened, errors = [], []
    for choice in choices:
        try:
            opened.append(open_models(choice))
        except MoeGgufError as error:
            errors.append(error)
    if not opened:
        raise errors[0]
    assert all(0 < model.bpw < math.inf for one in opened for model in one.models)
    return opened


def pass_over(folder: Path) -> object:
    """A pass of some tokens through a stranger's file."""
    source = open_gguf(folder / "passed.gguf")
    tokens = np.array([[1, 5, 6, 7]], np.int32)
    return forward([Stream(source, name="passed")], tokens, settings=ForwardSettings())


def plan_of_source(folder: Path) -> object:
    """The headers of what an export would make of a stranger's file, with all its layers and without the first."""
    source = GGUFFile(folder / "source.gguf")
    recipes = [Recipe(ftype("Q4_K_M")), Recipe(ftype("COPY"))]
    headers = []
    for layers in ((), (0,)):
        job = prepare(source, recipes, folder, allow_requantize=True, prune_layers=layers)
        assert all(str(remark).isprintable() for remark in export_remarks(job))
        headers += [file.header for file in job.files]
    return headers


# --- folders ---

ARCHITECTURES = ["MixtralForCausalLM"] * 5 + ["LlamaModel", "MixtralModel", "MistralForCausalLM", "x\n"]
RENAMES: list[Callable[[str], str]] = [
    *[str] * 5,
    lambda name: "language_model." + name,
    lambda name: name.replace("model.", "model.language_model.", 1),
    lambda name: name.removeprefix("model."),
    lambda name: "vision_tower." + name,
    lambda name: name + "\x1b[31m",
]


def open_layout(folder: Path) -> object:
    """A checkpoint laid out as the bytes of the file `layout` say."""
    seed = read_bytes(folder / "layout", 2**20)
    odd = folder / "laid out"
    shutil.rmtree(odd, ignore_errors=True)
    odd.mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(folder / name, odd)
    _lay_out(folder, odd, random.Random(seed) if seed else None)
    assert all(str(finding).isprintable() for finding in doctor(odd))
    checkpoint = open_checkpoint(odd)
    for spec in checkpoint.specs():
        checkpoint.read(spec, spec.n_matrix - 1)
    return checkpoint.remarks


Entry = tuple[str, list[int], bytes]  # dtype, shape, content of a stored tensor


def _lay_out(folder: Path, odd: Path, rng: random.Random | None) -> None:
    tensors = dict(_stored(folder))
    config = json.loads((folder / "config.json").read_text())
    if rng is None:
        (odd / "config.json").write_text(json.dumps(config))
        _write_shard(odd / "model.safetensors", tensors)
        return
    tensors = _renamed(tensors, rng)
    config["architectures"] = [rng.choice(ARCHITECTURES)]
    config["tie_word_embeddings"] = rng.random() < 0.2
    if rng.random() < 0.2:
        config = {"text_config": config, "architectures": ["LlavaForConditionalGeneration"], "hidden_size": 3}
    (odd / "config.json").write_text(json.dumps(config))
    n_shards = rng.choice([1, 1, 2, 3, 4])
    shards: list[dict[str, Entry]] = [{} for _ in range(n_shards)]
    for name, entry in tensors.items():
        for _ in range(2 if rng.random() < 0.004 else 1):
            shards[rng.randrange(n_shards)][name] = entry
    names = _shard_names(n_shards, rng)
    for name, shard in zip(names, shards, strict=True):
        _write_shard(odd / name, shard)
    places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    if rng.random() < 0.5:
        (odd / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": _map(places, names, rng)})
        )
    if rng.random() < 0.1:
        (odd / rng.choice(names)).unlink()
    for name in ("consolidated.safetensors", "pytorch_model.bin", "model-00009-of-00009.safetensors"):
        if rng.random() < 0.1:
            (odd / name).write_bytes(b"x")


def _renamed(tensors: dict[str, Entry], rng: random.Random) -> dict[str, Entry]:
    """All under other names, in rare cases one of them alone, or of another shape, or not there."""
    rename = rng.choice(RENAMES)
    found = {rename(name): entry for name, entry in tensors.items()}
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        name = rng.choice(list(found))
        dtype, shape, content = found[name]
        change = rng.randrange(4)
        if change == 0:
            del found[name]
        elif change == 1:
            found[rng.choice(RENAMES)(name)] = found.pop(name)
        elif change == 2:
            found[name] = dtype, rng.choice([shape[::-1], [1, *shape], [math.prod(shape)]]), content
        else:
            found[name] = dtype, [0, *shape], b""
    return found


def _shard_names(n: int, rng: random.Random) -> list[str]:
    if n == 1 and rng.random() < 0.5:
        return ["model.safetensors"]
    total, first = rng.choice([n, n, n, n, n + 1, 0, 999999999]), rng.choice([1, 1, 1, 1, 0, 2])
    width = rng.choice([5, 5, 5, 1])
    return [f"model-{first + i:0{width}d}-of-{total:0{width}d}.safetensors" for i in range(n)]


def _map(places: Mapping[str, str], names: list[str], rng: random.Random) -> dict[str, str]:
    """The map of an index, which may err."""
    found = dict(places)
    for _ in range(rng.choice([0, 0, 1, 3])):
        change = rng.randrange(4)
        name = rng.choice(list(found) or ["x"])
        if change == 0:
            found.pop(name, None)
        elif change == 1:
            found[name] = rng.choice(names)
        elif change == 2:
            found["ghost.weight"] = rng.choice(names)
        else:
            found[name] = rng.choice(["../x.safetensors", "", "gone.safetensors", "x.bin"])
    return found


def _stored(folder: Path) -> Iterator[tuple[str, Entry]]:
    for name, tensor in index_shards(folder)[0].items():
        with tensor.path.open("rb") as file:
            file.seek(tensor.start)
            yield name, (tensor.dtype, list(tensor.shape), file.read(tensor.n_bytes))


def _write_shard(path: Path, tensors: Mapping[str, Entry]) -> None:
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += content
    written = json.dumps(header).encode()
    path.write_bytes(len(written).to_bytes(8, "little") + written + data)
