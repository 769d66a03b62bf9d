"""What every source of a model answers, whichever kind it is."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pico
import pytest

from calibration.judging.round_trip import RoundTrip, SharedSource
from gguf_export.writing.export import prepare, run
from quantize.containers.keys import KeyValue
from quantize.exceptions import CheckpointError, DecodeError, GGUFError, NeedsImatrixError
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe, RecipeFacts, make_plan
from quantize.sources.checkpoint import Checkpoint
from quantize.sources.gguf_file import GGUFFile
from quantize.sources.model_source import ModelSource, open_source
from quantize.tensors import NUMPY_TYPES, QType


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sources") / "Pico"
    return pico.pico_mixtral(path, head_dim=32, rms_norm_eps=2.0**-17)


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint(folder)


@pytest.fixture(scope="module")
def files(folder: Path, checkpoint: Checkpoint) -> dict[str, GGUFFile]:
    job = prepare(checkpoint, [Recipe(ftype(name)) for name in ("BF16", "Q8_0")], folder.parent)
    return dict(zip(("BF16", "Q8_0"), (GGUFFile(file.path) for file in run(job, jobs=1).files), strict=True))


def round_trip(checkpoint: Checkpoint) -> RoundTrip:
    plan = make_plan(checkpoint.specs(), RecipeFacts.of(checkpoint.hparams), Recipe(ftype("Q8_0")), False)
    return RoundTrip(SharedSource(checkpoint, 1), plan)


def test_every_kind_answers_alike(checkpoint: Checkpoint, files: dict[str, GGUFFile]) -> None:
    trip = round_trip(checkpoint)
    sources: list[ModelSource] = [checkpoint, files["BF16"], files["Q8_0"], trip, SharedSource(checkpoint, 2)]
    assert [source.kind for source in sources] == ["checkpoint", "gguf", "gguf", "round trip", "checkpoint"]
    labels = [source.label for source in sources]
    assert labels[0] == labels[4] == str(checkpoint.path) and labels[1] == str(files["BF16"].path)
    assert labels[3] == f"{checkpoint.path} as Q8_0"
    for source in sources:
        assert source.hparams == checkpoint.hparams
        facts = RecipeFacts.of_keys(source.hparams.arch, source.arch_keys())
        assert facts == RecipeFacts.of(source.hparams)
        before = source.bytes_read
        for spec in source.specs():
            step = source.row_step(spec)
            assert spec.n_row % step == 0
            xid, rows = spec.n_matrix - 1, (spec.n_row - step, spec.n_row)
            blocks = source.read_blocks(spec, xid, rows)
            assert blocks.dtype == np.uint8 and blocks.shape == (step, spec.row_bytes)
            weights = source.read(spec, xid, rows)
            assert weights.shape == (step, spec.n_per_row)
            np.testing.assert_array_equal(source.read_blocks(spec, xid)[slice(*rows)], blocks)
            if spec.qtype in NUMPY_TYPES:
                np.testing.assert_array_equal(blocks.view(weights.dtype), weights)
        assert source.bytes_read > before


def test_the_keys_of_a_checkpoint_are_those_of_its_files(
    checkpoint: Checkpoint, files: dict[str, GGUFFile]
) -> None:
    written = {kv.key: kv for kv in files["Q8_0"].arch_keys()}
    assert written == {kv.key: kv for kv in checkpoint.arch_keys()}
    assert list(written) == [kv.key for kv in checkpoint.arch_keys()]
    assert KeyValue.u32("llama.expert_count", 4) in written.values()


@pytest.mark.parametrize("kind", ["checkpoint", "gguf"])
def test_a_pickled_source_reads_the_same(
    kind: str, checkpoint: Checkpoint, files: dict[str, GGUFFile]
) -> None:
    source: Any = checkpoint if kind == "checkpoint" else files["Q8_0"]
    again = pickle.loads(pickle.dumps(source))
    assert type(again) is type(source) and again.label == source.label
    assert list(again.specs()) == list(source.specs()) and again.hparams == source.hparams
    assert again.fingerprint() == source.fingerprint() and again.arch_keys() == source.arch_keys()
    spec = next(spec for spec in source.specs() if spec.has_experts)
    np.testing.assert_array_equal(again.read(spec, 2), source.read(spec, 2))


def test_a_source_is_opened_by_its_path(folder: Path, files: dict[str, GGUFFile], tmp_path: Path) -> None:
    assert open_source(folder).kind == "checkpoint" and open_source(str(files["Q8_0"].path)).kind == "gguf"
    with pytest.raises(CheckpointError, match="no such folder"):
        open_source(tmp_path / "nowhere")
    writer = gguf.GGUFWriter(tmp_path / "part.gguf", "llama")
    writer.add_uint16("split.count", 3)
    close(writer)
    with pytest.raises(GGUFError, match=r"part\.gguf: one of 3 parts; join them"):
        open_source(tmp_path / "part.gguf")


def close(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# -- fingerprints: runs that were stopped go on only if these stay as they are


def digest(content: Any, **options: Any) -> str:
    data = json.dumps(content, **options).encode()
    return hashlib.blake2b(len(data).to_bytes(8, "little") + data, digest_size=16).hexdigest()


def test_the_fingerprint_of_a_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    shards = sorted(folder.glob("*.safetensors"))
    tensors = []
    for shard in shards:
        data = shard.read_bytes()
        n_header = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8 : 8 + n_header]).items():
            if name != "__metadata__":
                start = 8 + n_header + entry["data_offsets"][0]
                tensors.append((name, shard.name, entry["dtype"], entry["shape"], start))
    times = [(shard.name, shard.stat().st_size, shard.stat().st_mtime_ns) for shard in shards]
    content = [times, sorted(tensors), checkpoint.config]
    before = checkpoint.fingerprint()
    assert before == digest(content, sort_keys=True, default=str)
    os.utime(shards[0], ns=(1, 1))
    assert checkpoint.fingerprint() != before
    os.utime(shards[0], ns=(times[0][2], times[0][2]))
    assert checkpoint.fingerprint() == before


def test_the_fingerprint_of_a_file(files: dict[str, GGUFFile]) -> None:
    file = files["Q8_0"]
    status = file.path.stat()
    tensors = [(spec.name, spec.shape, spec.qtype.name) for spec in file.specs()]
    assert file.fingerprint() == digest([status.st_size, status.st_mtime_ns, tensors])


def test_the_fingerprint_of_a_round_trip_knows_its_types(checkpoint: Checkpoint) -> None:
    trip = round_trip(checkpoint)
    assert trip.fingerprint() == round_trip(checkpoint).fingerprint() != checkpoint.fingerprint()
    plan = make_plan(checkpoint.specs(), RecipeFacts.of(checkpoint.hparams), Recipe(ftype("Q4_0")), False)
    assert RoundTrip(checkpoint, plan).fingerprint() != trip.fingerprint()


# -- files of other programs


def test_tensors_of_any_rank_and_type(tmp_path: Path) -> None:
    """A stack of heads, four axes, and a type of which nothing here can make weights."""
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "other")
    stack = np.arange(2 * 3 * 4 * 32, dtype=np.float32).reshape(2, 3, 4, 32)
    writer.add_tensor("v.patch_embd.weight", stack)
    writer.add_tensor("ids.weight", np.arange(8, dtype=np.int32), raw_dtype=QType.I32)
    close(writer)
    file = GGUFFile(path)
    patches, ids = file.specs()
    assert (patches.n_matrix, patches.n_row, patches.n_bytes) == (6, 4, stack.nbytes)
    for i in range(6):
        np.testing.assert_array_equal(file.read(patches, i, (1, 3)), stack.reshape(6, 4, 32)[i, 1:3])
    with pytest.raises(IndexError, match="6 matrices of 4 rows"):
        file.read(patches, 6)
    assert file.read_blocks(ids).tobytes() == np.arange(8, dtype="<i4").tobytes()
    with pytest.raises(DecodeError, match=r"other\.gguf: .*'ids\.weight': .*I32 cannot be decoded"):
        file.read(ids)


def test_a_round_trip_needs_its_importances(checkpoint: Checkpoint) -> None:
    big = [spec for spec in checkpoint.specs() if spec.n_per_row % 256 == 0]
    assert not big  # rows of the little model do not hold K blocks, so the plan below is for another one
    facts = RecipeFacts.of(checkpoint.hparams)
    specs = [type(spec)(spec.name, (*spec.shape[:-1], 256), spec.qtype) for spec in checkpoint.specs()]
    plan = make_plan(specs, facts, Recipe(ftype("Q2_K_S")), False)
    with pytest.raises(
        NeedsImatrixError, match=r"^blk\.0\.attn_k\.weight: Q2_K_S makes it Q2_K, which needs"
    ):
        RoundTrip(checkpoint, plan)
