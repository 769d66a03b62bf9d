"""What strangers could send: valid files, mutated, and noise, for every reader; used by test_fuzz and scripts/torture.

The rule for each reader: it succeeds or raises one of our own errors, in bounded time and memory, whatever it is given.
"""

from __future__ import annotations

import copy
import json
import shutil
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from pico import pico_mixtral

from calibration.imatrix import Entry, Imatrix, load_imatrix, save_imatrix
from gguf_export import vocab
from gguf_export.doctor import examine
from gguf_export.exporting import prepare, run
from gguf_export.header import header
from gguf_export.inspect import describe
from gguf_export.metadata import count_params, model_keys
from gguf_export.verify import verify
from quantize.exceptions import MoeGgufError
from quantize.ftypes import ftype
from quantize.recipe import Recipe, plan
from quantize.shards import open_checkpoint

__all__ = ["SECONDS", "TARGETS", "Target", "fuzz", "prepare_seeds"]

SECONDS = 10.0  # for one input, on a machine that does other things, too
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


def _vocabulary(folder: Path) -> object:
    config = {"vocab_size": 320}
    return vocab.vocab_keys(folder, config, 320, None)


def _byte_level(folder: Path) -> object:
    return vocab.vocab_keys(folder, {"vocab_size": 320}, 320, "gpt-2")


def _model(folder: Path) -> object:
    assert all(str(finding).isprintable() for finding in examine(folder))
    checkpoint = open_checkpoint(folder)
    for spec in checkpoint.specs()[:3]:
        checkpoint.read(spec, 0, (0, 1))
    keys = model_keys(
        folder, checkpoint.config, checkpoint.hparams, n_params=count_params(checkpoint.specs())
    )
    return header(
        keys, plan(checkpoint.specs(), checkpoint.hparams, Recipe(ftype("Q8_0")), has_imatrix=False)
    )


def _gguf(folder: Path) -> object:
    assert all(str(finding).isprintable() for finding in verify(folder / "model.gguf"))
    return describe(folder / "model.gguf")


def _imatrix(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        imatrix = load_imatrix(folder / name)
        specs = open_checkpoint(folder).specs()
        imatrix.check(specs)
        return [imatrix.importance(spec.name, spec.n_expert - 1) for spec in specs]

    return read


TARGETS = {
    target.name: target
    for target in (
        Target("shard", "model-00001-of-00002.safetensors", _model),
        Target("index", "model.safetensors.index.json", _model),
        Target("config", "config.json", _model),
        Target("card", "README.md", _model),
        Target("generation_config", "generation_config.json", _model),
        Target("tokenizer_config", "tokenizer_config.json", _vocabulary),
        Target("tokenizer_model", "tokenizer.model", _vocabulary),
        Target("tokenizer_json", "bpe/tokenizer.json", lambda folder: _byte_level(folder / "bpe")),
        Target("gguf", "model.gguf", _gguf),
        Target("imatrix_gguf", "imatrix.gguf", _imatrix("imatrix.gguf")),
        Target("imatrix_dat", "imatrix.dat", _imatrix("imatrix.dat")),
    )
}


def prepare_seeds(folder: Path) -> Path:
    """A folder with one healthy file of every kind."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    model = pico_mixtral(folder / "Pico", n_layer=1, n_expert=2, n_embd=32, n_ff=32)
    (model / "README.md").write_text("---\nlicense: mit\nbase_model:\n- a/b\ntags: [x, y]\n---\n# Pico\n")
    (model / "generation_config.json").write_text(json.dumps({"temperature": 0.7, "top_k": 40}))
    checkpoint = open_checkpoint(model)
    exported = run(prepare(checkpoint, [Recipe(ftype("Q8_0"))], folder / "out"))
    shutil.move(exported.files[0].path, model / "model.gguf")
    entries = {
        spec.name: Entry(
            np.ones((spec.n_expert, spec.n_per_row), np.float32), np.full(spec.n_expert, 9, np.int64)
        )
        for spec in checkpoint.specs()
        if len(spec.shape) > 1
    }
    imatrix = Imatrix(entries, ["text"], 1)
    save_imatrix(model / "imatrix.gguf", imatrix)
    save_imatrix(model / "imatrix.dat", imatrix, legacy=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {token: i for i, token in enumerate([*alphabet, "th", "the"])}
    tokenizer = Tokenizer(models.BPE(tokens, [("t", "h"), ("th", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    (model / "bpe").mkdir()
    tokenizer.save(str(model / "bpe" / "tokenizer.json"))
    return model


VALUES = [
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
        try:
            target.read(folder)
            outcomes[0] += 1
        except MoeGgufError as error:
            outcomes[1] += 1
            assert str(error), "an error says something"
            assert str(error).isprintable(), "an error has one line, and nothing that a terminal obeys"
        seconds = time.thread_time() - started
        assert seconds < SECONDS, f"{seconds:.1f} seconds for {len(content)} bytes"
        if watch_memory:
            used = tracemalloc.get_traced_memory()[1] - before
            assert used < BYTES, f"{used / 2**20:.0f} MiB for {len(content)} bytes"

    ways = [mutated, mutated_json] if target.file.endswith((".json", ".safetensors")) else [mutated]

    @st.composite
    def inputs(draw: st.DrawFn) -> bytes:  # without arguments, which hypothesis would print
        return draw(st.sampled_from(ways))(draw, valid)

    check = settings(
        max_examples=n,
        deadline=None,
        database=None,
        derandomize=seed_ is None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )(given(inputs())(once))
    if seed_ is not None:
        check = seed(seed_)(check)
    if watch_memory:
        tracemalloc.start()
    try:
        check()
    finally:
        if watch_memory:
            tracemalloc.stop()
        path.write_bytes(valid)
    return outcomes[0], outcomes[1]
