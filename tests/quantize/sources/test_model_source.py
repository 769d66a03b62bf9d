"""What every source of a model answers, whichever kind it is."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pico
import pico_deep
import pico_further
import pico_oss
import pytest
from other_bytes import WAYS, settled

from calibration.judging.round_trip import RoundTrip, SharedSource
from gguf_export.writing.export import prepare, run
from quantize.containers.keys import KeyValue
from quantize.exceptions import CheckpointError, DecodeError, ModelChangedError, NeedsImatrixError
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe, RecipeFacts, make_plan
from quantize.sources import fingerprint
from quantize.sources.checkpoint import Checkpoint
from quantize.sources.filling import fill
from quantize.sources.fingerprint import SeenFiles
from quantize.sources.gguf_file import GGUFFile
from quantize.sources.model_source import ModelFile, ModelSource, open_source
from quantize.tensors import NUMPY_TYPES, Array, Rows, TensorSpec


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
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_source(tmp_path / "nowhere")


# -- reading into memory that is there


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "split": partial(pico.pico_mixtral, n_layer=1),
    "fused": partial(pico.pico_mixtral, layout="fused", n_layer=1),
    "f16": partial(pico.pico_mixtral, dtype="F16", n_layer=1),
    "mxfp4": partial(pico_oss.pico_oss, name="gpt-oss", quantization_config=pico_oss.MXFP4),
    "deepseek": pico_deep.pico_deepseek,
    **{
        case.__name__: partial(pico_further.write, case=case())
        for case in (pico_further.dbrx, pico_further.qwen3next, pico_further.bailingmoe)
    },
}


@pytest.mark.parametrize("name", FOLDERS)
def test_memory_is_filled_with_what_would_be_read(name: str, tmp_path: Path) -> None:
    plain = Checkpoint(FOLDERS[name](tmp_path / name))
    if name == "deepseek":
        plain = Checkpoint(pico_deep.as_fp8(plain.path, tmp_path / "fp8", (16, 16)))
    assert_filled(plain)


def test_all_other_sources_fill_memory_too(checkpoint: Checkpoint, files: dict[str, GGUFFile]) -> None:
    sources: list[ModelSource] = [*files.values(), round_trip(checkpoint), SharedSource(checkpoint, 1)]
    for source in sources:
        assert_filled(source)


def assert_filled(source: ModelSource) -> None:
    for spec in source.specs():
        step = source.row_step(spec)
        for rows in {(0, spec.n_row), (spec.n_row - step, spec.n_row)}:
            out = np.full((rows[1] - rows[0], spec.row_bytes), 7, np.uint8)
            before = source.bytes_read
            fill(source, spec, spec.n_matrix - 1, rows, out)
            counted = source.bytes_read - before
            np.testing.assert_array_equal(out, source.read_blocks(spec, spec.n_matrix - 1, rows))
            assert counted == source.bytes_read - before - counted


def test_most_matrices_are_read_without_a_copy(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the queries and keys, whose rows are permuted."""
    copied: list[str] = []
    read = Checkpoint.read_blocks

    def noted(self: Checkpoint, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
        copied.append(spec.name)
        return read(self, spec, xid, rows)

    monkeypatch.setattr(Checkpoint, "read_blocks", noted)
    for spec in checkpoint.specs():
        if spec.is_matrix:
            out = np.empty((spec.n_row, spec.row_bytes), np.uint8)
            fill(checkpoint, spec, 0, (0, spec.n_row), out)
    assert {name.split(".")[2] for name in copied} == {"attn_q", "attn_k"}


# -- fingerprints: runs that were stopped go on only if these stay as they are


def copied(folder: Path, files: dict[str, GGUFFile], kind: str, tmp_path: Path) -> tuple[ModelFile, Path]:
    """A source of a kind that may be changed, and the file in which its weights lie."""
    if kind == "gguf":
        path = Path(shutil.copy2(files["Q8_0"].path, tmp_path / "copy.gguf"))
        settled(path)
        return GGUFFile(path), path
    model = Path(shutil.copytree(folder, tmp_path / "copy"))
    path = model / "model-00002-of-00002.safetensors"
    settled(path)
    return Checkpoint(model), path


@pytest.mark.skipif(sys.platform == "win32", reason="there is no time of the last change of any kind")
@pytest.mark.parametrize("kind", ["checkpoint", "gguf"])
@pytest.mark.parametrize(
    "change", [*WAYS, lambda path: os.utime(path, ns=(1, 1)), lambda path: path.chmod(0o600)]
)
def test_files_that_may_be_others_are_noticed(
    folder: Path, files: dict[str, GGUFFile], tmp_path: Path, kind: str, change: Callable[[Path], None]
) -> None:
    """Whatever size and time they have: the source that is open refuses them, and one opened now is another one."""
    source, path = copied(folder, files, kind, tmp_path)
    before, again = source.fingerprint(), open_source(source.path)
    assert again.fingerprint() == before
    source.refuse_changed()
    pickled = pickle.dumps(source)
    change(path)
    spec = source.specs()[-1]
    calls: list[Callable[[], object]] = [source.refuse_changed, source.fingerprint]
    calls += [lambda: source.read(spec), lambda: pickle.loads(pickled).read(spec)]
    for call in calls:
        with pytest.raises(ModelChangedError, match="changed while it was read; start again") as told:
            call()
        assert told.value.place == str(path)
    now = open_source(source.path)
    assert now.fingerprint() != before
    now.read(spec)
    now.refuse_changed()


@pytest.mark.parametrize("kind", ["checkpoint", "gguf"])
def test_samples_show_other_weights_where_times_do_not(
    folder: Path, files: dict[str, GGUFFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(fingerprint, "_stamp", lambda status: (status.st_size, 0, 0))
    source, path = copied(folder, files, kind, tmp_path)
    before = source.fingerprint()
    assert open_source(source.path).fingerprint() == before
    content = path.read_bytes()
    for share in (0.4, 0.7, 1.0):
        changed = bytearray(content)
        end = int(share * len(content))
        changed[end - len(content) // 12 : end] = bytes(len(content) // 12)
        path.write_bytes(changed)
        assert open_source(source.path).fingerprint() != before
    path.write_bytes(content)
    assert open_source(source.path).fingerprint() == before


def test_a_fingerprint_reads_little_of_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(2**36)  # sparse: no bytes on disk
    *_, last = parts = list(SeenFiles([path], CheckpointError).fingerprint())
    assert len(parts) == 17 and len(last) == 4096


def test_a_file_that_is_gone_or_comes_late(folder: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(folder, tmp_path / "copy"))
    source = Checkpoint(model)
    (model / "generation_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"generation_config\.json: changed while"):
        source.refuse_changed()
    source = Checkpoint(model)
    (model / "notes.txt").touch()  # no file of the model
    source.refuse_changed()
    (model / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelChangedError, match=r"model-00002-of-00002\.safetensors: changed while"):
        source.refuse_changed()
    with pytest.raises(
        CheckpointError, match=r"model-00002-of-00002\.safetensors: cannot be read: No such file"
    ):
        source.fingerprint()


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
    writer.add_tensor("ids.weight", np.arange(8, dtype=np.int32), raw_dtype=gguf.GGMLQuantizationType.I32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
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
