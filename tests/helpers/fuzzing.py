"""What strangers could send: valid files, mutated, and noise, for every reader; used by test_fuzz and scripts/torture.

The rule for each reader: it succeeds or raises one of our own errors, in bounded time and memory, whatever it is given.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import hashlib
import json
import os
import shutil
import struct
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from fuzzing_gguf import hostile_gguf, open_for_compare, open_layout, pass_over, plan_of_source
from fuzzing_tokenizers import mutated_tokenizer, mutated_yaml
from gguf import GGUFValueType as Type
from gguf_files import Info
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from pico import pico_mixtral

from calibration.forward.stored import Matrix
from calibration.importance.imatrix import Entry, Imatrix
from calibration.importance.imatrix_files import load_imatrix, save_imatrix
from calibration.judging.logits_file import LogitsFile, is_logits_file
from calibration.text.chunks import read_prompts, read_text
from calibration.text.tokenizer import open_tokenizer, tokenizer_of, vocabulary_of
from gguf_export.checking.checksums import check_sum
from gguf_export.checking.doctor import doctor
from gguf_export.checking.imatrix_facts import (
    ImatrixFacts,
    expert_rows,
    imatrix_in_words,
    layer_rows,
    starved_rows,
    tensor_rows,
)
from gguf_export.checking.inspect import inspect
from gguf_export.checking.verify import verify
from gguf_export.metadata.model_keys import assemble, model_keys
from gguf_export.vocab import vocab_keys as vocab
from gguf_export.writing.export import prepare, run
from gguf_export.writing.header import header
from gguf_export.writing.importances import merge_imatrices
from gguf_export.writing.parts import Split
from quantize.containers.gguf import SCALARS, read_container
from quantize.containers.keys import KeyValue, elements
from quantize.decoding import can_decode
from quantize.exceptions import MoeGgufError
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe, RecipeFacts, make_plan
from quantize.recipes.tensor_types import read_tensor_types
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.sources.gguf_file import GGUFFile
from quantize.sources.model_source import open_source
from quantize.tensors import QType, TensorSpec

__all__ = ["SECONDS", "TARGETS", "Target", "fuzz", "prepare_seeds"]

SECONDS = 10.0  # for one input, on a machine that does other things, too
BATCH = 100  # inputs
BYTES = 64 * 2**20  # of memory for one input of at most a few hundred kilobytes

WORDS = [
    *(
        b"0",
        b"-1",
        b"1e999",
        b"null",
        b"true",
        b"[]",
        b"{}",
        b'""',
        b"NaN",
        b"18446744073709551615",
        b"[" * 3000,
    ),
    *(
        b"&a ",
        b"*a",
        b"<<: ",
        b"!!python/name:os.system ",
        b"- " * 2000,
        b"2001-99-99",
        b"!!binary x",
        b"- [",
    ),
    *(b'"BF16"', b'"F64"', b'"../x"', b'"\\ud800"', b'"\\u0000"', b"\x00", b"\xff\xfe", b"\xc3\x28"),
    *(struct.pack("<q", n) for n in (-1, 0, 1, 2**31, 2**40, 2**62, 2**63 - 1)),
    *(struct.pack("<i", n) for n in (-1, 0, 9, 12, 255, 2**31 - 1)),
    *(struct.pack("<f", x) for x in (float("nan"), float("inf"), -1e38)),
]
"""What readers stumble over: lengths, counts, types, numbers that are none."""


@dataclass(frozen=True)
class Target:
    """One reader: the file that is mutated, in a folder of healthy ones, and what reads it."""

    name: str
    file: str
    read: Callable[[Path], object]


def _each(*reads: Callable[[], object]) -> list[object]:
    """All of them, whatever the first ones say; then the first error, if there was one."""
    found, errors = [], []
    for read in reads:
        try:
            found.append(read())
        except MoeGgufError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return found


def _alike(read: Callable[[], object]) -> object:
    """What a reader finds, which is no matter of chance."""
    found = read()
    assert repr(found) == repr(read()), "it was read twice, and is not the same"  # NaN equals itself here
    return found


def _tokenizer(n_vocab: int, pre: str | None) -> Callable[[Path], object]:
    """Both that read tokenizers: what is written into models, and what cuts text."""

    def keys(folder: Path) -> object:
        return [(kv.key, kv.value) for kv in vocab.vocab_keys(folder, {"vocab_size": n_vocab}, n_vocab, pre)]

    def ids(folder: Path) -> object:
        return open_tokenizer(folder).encode("the <s> caf\u00e9 \U0001f600\n", parse_special=True).tolist()

    def read(folder: Path) -> object:
        return _each(lambda: _alike(lambda: keys(folder)), lambda: _alike(lambda: ids(folder)))

    return read


def _in(name: str, read: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: read(folder / name)


def _weights(checkpoint: Checkpoint) -> None:
    for spec in checkpoint.specs():
        step = checkpoint.row_step(spec)
        checkpoint.read(spec, spec.n_matrix - 1, (spec.n_row - step, spec.n_row))


def _export(checkpoint: Checkpoint, imatrix: Imatrix | None = None) -> bytes:
    """The header of what an export would write."""
    keys = model_keys(checkpoint)
    recipe = Recipe(ftype("Q8_0"))
    planned = make_plan(
        checkpoint.specs(), RecipeFacts.of(checkpoint.hparams), recipe, has_imatrix=imatrix is not None
    )
    return header(assemble(keys, recipe.ftype.id, imatrix), planned)


def _model(folder: Path) -> object:
    with patch(
        "gguf_export.checking.tokenizer_checks.check_templates", return_value=()
    ):  # processes take long
        assert all(str(finding).isprintable() for finding in doctor(folder))
    json.dumps(inspect(folder).as_dict(), allow_nan=False)
    checkpoint = open_checkpoint(folder)
    _weights(checkpoint)
    return _export(checkpoint)


def _gguf(folder: Path) -> object:
    path = folder / "model.gguf"
    checkpoint = open_checkpoint(folder)
    for options in ({}, {"against": checkpoint}):
        findings = verify(path, **options)  # type: ignore[arg-type]
        assert all(str(finding).isprintable() for finding in findings)
        json.dumps(findings.as_json(), allow_nan=False)
    json.dumps(inspect(path).as_dict(), allow_nan=False)
    file = GGUFFile(path)
    return _each(
        lambda: tokenizer_of(file).encode("the <s> caf\u00e9\n", parse_special=True),
        lambda: vocabulary_of(file),
        lambda: [Matrix.read(file, spec).whole() for spec in file.specs() if can_decode(spec.qtype)],
    )


PARTS = [f"parts/Pico-0000{no}-of-00003.gguf" for no in (1, 2, 3)]


def _parts(folder: Path) -> object:
    """A file that is split: the whole of it, and one part for itself."""
    first, second, _ = (folder / name for name in PARTS)
    for path, against in ((first, None), (first, folder / "model.gguf"), (second, None)):
        findings = verify(path, against=against)
        assert all(str(finding).isprintable() for finding in findings)
        json.dumps(findings.as_json(), allow_nan=False)

    def headers() -> list[bytes]:
        file, recipes = GGUFFile(first), [Recipe(ftype("Q4_0"))]
        job = prepare(file, recipes, folder, allow_requantize=True, split=Split(keeps_parts=True))
        return [output.header for output in job.files]

    def weights() -> list[object]:
        file = open_source(first)
        return [Matrix.read(file, spec).whole() for spec in file.specs() if can_decode(spec.qtype)]

    return _each(
        lambda: json.dumps(inspect(second).as_dict(), allow_nan=False),
        lambda: json.dumps(inspect(first).as_dict(), allow_nan=False),
        headers,
        weights,
    )


def _byte_level_gguf(path: Path) -> object:
    """The tokenizer in a GGUF file."""
    file = GGUFFile(path)
    return tokenizer_of(file).encode("the <s> caf\u00e9 12\n", parse_special=True)


def _shown_and_merged(path: Path) -> None:
    """What `inspect` shows of an importance matrix, and what becomes of it in a merge."""
    facts = inspect(path)
    json.dumps(facts.as_dict(), allow_nan=False)
    if isinstance(facts, ImatrixFacts):
        rows = [*imatrix_in_words(facts), *layer_rows(facts), *tensor_rows(facts), *expert_rows(facts)]
        assert all(isinstance(cell, str) for row in (*rows, *starved_rows(facts)) for cell in row)
    merge_imatrices([path, path], path.with_name("merged.dat"), force=True)


def _imatrix(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        return _each(lambda: _shown_and_merged(folder / name), lambda: used(folder))

    def used(folder: Path) -> object:
        checkpoint = open_checkpoint(folder)
        specs = checkpoint.specs()
        imatrix = load_imatrix(folder / name)
        imatrix.check(specs)
        _export(checkpoint, imatrix)
        imatrix.thin(2)
        found = [imatrix.importance(spec.name, spec.n_matrix - 1) for spec in specs]
        imatrix.prior = 0.0 if imatrix.legacy else 1.0
        return found, [imatrix.importance(spec.name, spec.n_matrix - 1) for spec in specs]

    return read


def _logits(folder: Path) -> object:
    file = LogitsFile(folder / "base.kld")
    assert is_logits_file(folder / "base.kld")
    return [file.log_probs(chunk) for chunk in range(file.n_chunk)]


def _sums(folder: Path) -> object:
    assert str(check_sum(folder / "base.kld")).isprintable()
    return None


TARGETS = {
    target.name: target
    for target in (
        Target("shard", "model-00001-of-00002.safetensors", _model),
        Target("index", "model.safetensors.index.json", _model),
        Target("config", "config.json", _model),
        Target("card", "README.md", _model),
        Target("generation_config", "generation_config.json", _model),
        Target("tokenizer_config", "tokenizer_config.json", _tokenizer(320, None)),
        Target("tokenizer_model", "tokenizer.model", _tokenizer(320, None)),
        Target("added_tokens", "added_tokens.json", _tokenizer(320, None)),
        Target("chat_template", "chat_template.json", _tokenizer(320, None)),
        Target("chat_template_jinja", "jinja/chat_template.jinja", _in("jinja", _tokenizer(320, None))),
        Target("tokenizer_json", "bpe/tokenizer.json", _in("bpe", _tokenizer(320, "gpt-2"))),
        Target("tokenizer_json_spm", "spm/tokenizer.json", _in("spm", _tokenizer(320, None))),
        Target("gguf", "model.gguf", _gguf),
        Target("first_part", PARTS[0], _parts),
        Target("second_part", PARTS[1], _parts),
        Target("gguf_byte_level", "bpe/model.gguf", _in("bpe/model.gguf", _byte_level_gguf)),
        Target("imatrix_gguf", "imatrix.gguf", _imatrix("imatrix.gguf")),
        Target("imatrix_dat", "imatrix.dat", _imatrix("imatrix.dat")),
        Target("logits", "base.kld", _logits),
        Target(
            "prompts",
            "mergekit_moe_config.yml",
            lambda folder: read_prompts(folder / "mergekit_moe_config.yml"),
        ),
        Target("text", "text.txt", lambda folder: read_text(folder / "text.txt")),
        Target("tensor_types", "types.txt", lambda folder: read_tensor_types(folder / "types.txt")),
        Target("sums", "SHA256SUMS", _sums),
        Target("compared", "compared.gguf", open_for_compare),
        Target("passed", "passed.gguf", pass_over),
        Target("gguf_source", "source.gguf", plan_of_source),
        Target("layout", "layout", open_layout),
    )
}


def prepare_seeds(folder: Path) -> Path:
    """A folder with one healthy file of every kind."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64, "beta_fast": 32}
    model = pico_mixtral(
        folder / "Pico",
        n_layer=1,
        n_expert=2,
        n_embd=32,
        n_ff=32,
        head_dim=8,
        rope_scaling=yarn,
        scoring_func="softmax",
        n_group=1,
        sliding_window=None,
    )
    (model / "README.md").write_text("---\nlicense: mit\nbase_model:\n- a/b\ntags: [x, y]\n---\n# Pico\n")
    (model / "generation_config.json").write_text(json.dumps({"temperature": 0.7, "top_k": 40}))
    checkpoint = open_checkpoint(model)
    exported = run(prepare(checkpoint, [Recipe(ftype("Q8_0"))], folder / "out"))
    shutil.move(exported.files[0].path, model / "model.gguf")
    split = prepare(checkpoint, [Recipe(ftype("Q8_0"))], folder / "split", split=Split(max_tensors=5))
    (model / "parts").mkdir()
    for part, name in zip(run(split).files[0].parts, PARTS, strict=True):
        shutil.move(part.path, model / name)
    for name in ("compared.gguf", "passed.gguf", "source.gguf"):
        shutil.copy(model / "model.gguf", model / name)
    (model / "layout").write_bytes(b"")
    entries = {
        spec.name: Entry(
            np.ones((spec.n_matrix, spec.n_per_row), np.float32), np.full(spec.n_matrix, 9, np.int64)
        )
        for spec in checkpoint.specs()
        if len(spec.shape) > 1
    }
    imatrix = Imatrix(entries, ["text"], 1)
    save_imatrix(model / "imatrix.gguf", imatrix)
    save_imatrix(model / "imatrix.dat", imatrix, legacy=True)
    _prepare_small_files(model)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {token: i for i, token in enumerate([*alphabet, "th", "the"])}
    tokenizer = Tokenizer(models.BPE(tokens, [("t", "h"), ("th", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>"])
    (model / "bpe").mkdir()
    tokenizer.save(str(model / "bpe" / "tokenizer.json"))
    settings = {"bos_token": "<s>", "add_bos_token": True, "additional_special_tokens": ["<x>"]}
    (model / "bpe" / "tokenizer_config.json").write_text(json.dumps(settings))
    keys = vocab.vocab_keys(model / "bpe", {}, 260, "gpt-2")
    spec = TensorSpec("token_embd.weight", (260, 1), QType.F32)
    infos = SimpleNamespace(tensors=[Info(spec=spec, qtype=QType.F32, offset=0)])
    (model / "bpe" / "model.gguf").write_bytes(header(keys, infos) + bytes(4 * 260))  # type: ignore[arg-type]
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        "t",
        "h",
        "e",
        "th",
        "the",
    ]
    tokenizer = Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)},
            [("t", "h"), ("th", "e")],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    (model / "spm").mkdir()
    tokenizer.save(str(model / "spm" / "tokenizer.json"))
    (model / "spm" / "tokenizer_config.json").write_text(json.dumps(settings))
    return model


def _prepare_small_files(model: Path) -> None:
    """Beside the weights: a template and a token more, logits, prompts, text, rules."""
    (model / "added_tokens.json").write_text(json.dumps({"<x>": 318, "<y>": 319}))
    (model / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (model / "jinja").mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json", "config.json"):
        shutil.copy(model / name, model / "jinja")
    (model / "jinja" / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message }}{% endfor %}"
    )
    n_ctx, n_vocab, n_chunk = 8, 6, 2
    head = b"_logits_" + struct.pack("<3i", n_ctx, n_vocab, n_chunk) + bytes(4 * n_ctx * n_chunk)
    record = struct.pack("<2f", 0.001, -16.0) + struct.pack("<6H", *range(0, 60000, 10000))
    (model / "base.kld").write_bytes(head + record * (n_ctx - 1 - n_ctx // 2) * n_chunk)
    (model / "mergekit_moe_config.yml").write_text(
        "base_model: a/b\ngate_mode: hidden\nexperts:\n- source_model: c/d\n  positive_prompts:\n"
        "  - numbers\n  - 'names: of rivers'\n- source_model: e/f\n  positive_prompts: [one, two]\n"
    )
    (model / "text.txt").write_text("the small model reads a short text\n" * 8)
    (model / "types.txt").write_text("attn_q=q8_0\nffn_.*_exps=q4_k blk\\.[0-9]+\\.attn=f16\n")
    (model / "SHA256SUMS").write_text(f"{hashlib.sha256(b'x').hexdigest()}  base.kld\n")


VALUES: list[object] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 64, 255, 2**31, 2**63, 2**64, 10**400, 1e308, -0.5, 1e-45),
    *("", "x", "../../x", "/etc/passwd", "\0", "\ud800", "\u2581" * 300, "BF16", "F64", "I8", "nan"),
    *([], {}, [[]], [0], [-1, -1], [2**62, 2**62], {"": ""}, {"content": "<s>"}, ["a", "b"]),
]
"""What may stand in JSON where something else is expected."""


def mutated_json(draw: st.DrawFn, valid: bytes) -> bytes:
    """The JSON of a valid file with some values replaced, removed, or moved; of a shard, its header."""
    n_header = int.from_bytes(valid[:8], "little")
    is_shard = 8 < n_header < len(valid)
    tree = json.loads(valid[8 : 8 + n_header] if is_shard else valid)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(tree))
        if not places:
            break
        node, key = places[draw(st.integers(0, len(places) - 1))]
        kind = draw(st.integers(0, 9))
        if kind == 0:
            del node[key]
        elif kind == 1:
            other, source = places[draw(st.integers(0, len(places) - 1))]
            node[key] = copy.deepcopy(other[source])
        elif kind == 2 and isinstance(node, dict):
            node[draw(st.sampled_from(["", "x", "../x", "\ud800", "__metadata__", "model.norm.weight"]))] = (
                node[key]
            )
        elif type(node[key]) is int and kind < 6:
            node[key] += draw(st.sampled_from([-64, -1, 1, 2, 64]))
        else:
            node[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
    text = json.dumps(tree).encode()
    return len(text).to_bytes(8, "little") + text + valid[8 + n_header :] if is_shard else text


def mutated_gguf(draw: st.DrawFn, path: Path) -> bytes:
    """A GGUF file with some keys or tensor infos that are others, and all the rest in order."""
    container = read_container(path)
    keys = {key: KeyValue(key, value, *container.types[key]) for key, value in container.keys.items()}
    start = next(iter(container.tensors.values())).offset
    infos = [
        Info(spec=one.spec, qtype=int(one.spec.qtype), offset=one.offset - start)
        for one in container.tensors.values()
    ]
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(sorted(keys)))
        info = infos[draw(st.integers(0, len(infos) - 1))]
        kind = draw(st.integers(0, 5))
        if kind == 0 and len(keys) > 1:
            del keys[key]
        elif kind == 1:
            type_ = draw(st.sampled_from(list(SCALARS)))
            values: list[float] = [0, 1] if type_ == Type.BOOL else [0, 1, 2, 127]
            if type_ in (Type.FLOAT32, Type.FLOAT64):
                values = [0.0, -1.0, float("nan"), float("inf"), 1e38]
            elif type_ in (Type.UINT32, Type.UINT64):
                values += [2**31, 2**32 - 1]
            value: Any = draw(st.sampled_from(values))
            if draw(st.booleans()):
                n = draw(st.sampled_from([0, 1, 2, 320]))
                keys[key] = KeyValue(key, [value] * n, Type.ARRAY, type_)
            else:
                keys[key] = KeyValue(key, value, type_)
        elif kind == 2:
            text = draw(st.sampled_from(["", "x", "\x1b[31m", "llama", "gpt2", "bert", "\0", "\u2581" * 99]))
            keys[key] = KeyValue(key, text, Type.STRING)
        elif kind == 3:
            values = list(elements(keys[key].value) or ())
            if values:
                keys[key] = replace(keys[key], value=values)
                at = draw(st.integers(0, len(values) - 1))
                values[at] = values[draw(st.integers(0, len(values) - 1))]
                if draw(st.booleans()):
                    del values[at]
        elif kind == 4:
            shape = list(info.spec.shape)
            at = draw(st.integers(0, len(shape) - 1))
            shape[at] = draw(st.sampled_from([0, 1, 2, 31, 32, 64, 256, 2**31, 2**62]))
            info.spec = SimpleNamespace(name=info.spec.name, shape=tuple(shape))
        elif draw(st.booleans()):
            info.qtype = draw(st.integers(-1, 45))
        else:
            name = draw(st.sampled_from(["", "output.weight", "\x1b[31m", "x" * 64, "blk.0.attn_q.weight"]))
            info.spec = SimpleNamespace(name=name, shape=info.spec.shape)
    data = path.read_bytes()[start:]
    return header(list(keys.values()), SimpleNamespace(tensors=infos)) + data  # type: ignore[arg-type]


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Where the values of a JSON tree are: containers and their keys, the upper ones first."""
    waiting = [tree]
    while waiting:
        node = waiting.pop(0)
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            yield node, key
            if isinstance(node[key], (dict, list)):
                waiting.append(node[key])


def mutated(draw: st.DrawFn, valid: bytes) -> bytes:
    """A valid file with some changes, or noise. Most changes are near the beginning, where headers are."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=300))
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        reach = draw(st.sampled_from([64, 512, 4096, len(content)]))
        at = draw(st.integers(0, max(0, min(reach, len(content)) - 1)))
        kind = draw(st.integers(0, 5))
        if kind == 0:
            content[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == 1:
            del content[at : at + draw(st.integers(1, 64))]
        elif kind == 2:
            word = draw(st.sampled_from(WORDS))
            content[at : at + len(word)] = word
        elif kind == 3:
            content[at:at] = draw(st.sampled_from(WORDS))
        elif kind == 4:
            del content[at:]
        else:
            length = draw(st.integers(1, 200))
            other = draw(st.integers(0, max(0, len(content) - 1)))
            content[at:at] = content[other : other + length]
    return bytes(content)


@contextlib.contextmanager
def silence() -> Iterator[list[bytes]]:
    """Nothing reaches standard error, where native libraries print their panics; the list holds what would have."""
    said: list[bytes] = []
    real = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(real, 2)
            os.close(real)
            caught.seek(0)
            said += caught.readlines()


def fuzz(
    target: Target, folder: Path, n: int, seed_: int | None = None, watch_memory: bool = True
) -> tuple[int, int]:
    """Give `n` inputs to a reader; `folder` is one that `prepare_seeds` made.

    Returns how many were read, and how many refused.

    Raises:
        AssertionError: a reader took too long or too much; what else it raises that is not ours passes through.
    """
    path = folder / target.file
    valid = path.read_bytes()
    target.read(folder)  # compiles and imports, and shows that the seed is healthy

    outcomes = [0, 0]

    def once(content: bytes) -> None:
        path.write_bytes(content)
        if watch_memory:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
        started = time.thread_time()
        with silence() as said:
            try:
                target.read(folder)
                outcomes[0] += 1
            except MoeGgufError as error:
                outcomes[1] += 1
                assert str(error), "an error says something"
                assert str(error).isprintable(), "an error has one line, and nothing that a terminal obeys"
        assert not said, f"a library printed {b''.join(said)[:500]!r}"
        seconds = time.thread_time() - started
        assert seconds < SECONDS, f"{seconds:.1f} seconds for {len(content)} bytes"
        if watch_memory:
            used = tracemalloc.get_traced_memory()[1] - before
            assert used < BYTES, f"{used / 2**20:.0f} MiB for {len(content)} bytes"

    ways: list[Callable[[st.DrawFn], bytes]] = [lambda draw: mutated(draw, valid)]
    if target.file.endswith((".json", ".safetensors")):
        ways.append(lambda draw: mutated_json(draw, valid))
    if Path(target.file).name == "tokenizer.json":
        ways.append(lambda draw: mutated_tokenizer(draw, valid))
    if target.file.endswith((".md", ".yml")):
        ways.append(lambda draw: mutated_yaml(draw, valid))
    if target.file.endswith(".gguf"):
        healthy = folder / "healthy" / path.name
        healthy.parent.mkdir(exist_ok=True)
        healthy.write_bytes(valid)
        ways.append(lambda draw: mutated_gguf(draw, healthy))
        ways.append(lambda draw: hostile_gguf(draw, healthy))

    @st.composite
    def inputs(draw: st.DrawFn) -> bytes:  # without arguments, which hypothesis would print
        return draw(st.sampled_from(ways))(draw)

    if watch_memory:
        tracemalloc.start()
    try:
        for first in range(0, n, BATCH):  # hypothesis keeps what it made until it is done
            check = settings(
                max_examples=min(BATCH, n - first),
                deadline=None,
                database=None,
                derandomize=seed_ is None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, Phase.shrink],
            )(given(inputs())(once))
            if seed_ is not None:
                check = seed(seed_ + first)(check)
            check()
            gc.collect()
    finally:
        if watch_memory:
            tracemalloc.stop()
        path.write_bytes(valid)
    return outcomes[0], outcomes[1]
