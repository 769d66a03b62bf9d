"""The GGUF container: what we write, the `gguf` library reads, and damage is named in one line."""

from __future__ import annotations

import shutil
import struct
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType

from gguf_export.files import durable as durable_file
from gguf_export.files.disk import check_space
from gguf_export.writing.header import header
from gguf_export.writing.sink import Sink
from quantize.containers.keys import KeyValue, elements
from quantize.exceptions import GGUFError, NoSpaceError
from quantize.recipes.ftypes import ftype
from quantize.recipes.layout import Plan
from quantize.recipes.recipe import Recipe, RecipeFacts, make_plan
from quantize.sources.gguf_file import GGUFFile
from quantize.tensors import QType, TensorSpec

FACTS = RecipeFacts("llama", n_layer=1, n_head=1, n_head_kv=1, n_expert=2)
SPECS = [
    TensorSpec("token_embd.weight", (8, 32), QType.BF16),
    TensorSpec("blk.0.ffn_up_exps.weight", (2, 3, 32), QType.BF16),
    TensorSpec("output_norm.weight", (5,), QType.BF16),
]
KEYS = [
    KeyValue("general.architecture", "llama", GGUFValueType.STRING),
    KeyValue("general.name", "Grüße", GGUFValueType.STRING),
    KeyValue("llama.block_count", 1, GGUFValueType.UINT32),
    KeyValue("llama.rope.freq_base", 1e4, GGUFValueType.FLOAT32),
    KeyValue("flag", True, GGUFValueType.BOOL),
    KeyValue("words", ["a", "", "▁b"], GGUFValueType.ARRAY, GGUFValueType.STRING),
    KeyValue("numbers", [1, -2, 3], GGUFValueType.ARRAY, GGUFValueType.INT32),
]


@pytest.fixture
def small_plan() -> Plan:
    return make_plan(SPECS, FACTS, Recipe(ftype("Q8_0")), has_imatrix=False)


def write(path: Path, whole: Plan) -> dict[str, np.ndarray]:
    """Slabs in an order unlike the file's; returns the bytes of each tensor."""
    rng = np.random.default_rng(1)
    data = {t.spec.name: rng.integers(0, 255, t.n_bytes, np.uint8) for t in whole.tensors}
    with Sink(path, header(KEYS, whole), whole) as sink:
        for tensor in reversed(whole.tensors):
            half = tensor.n_bytes // 2
            sink.write(tensor, half, data[tensor.spec.name][half:])
            sink.write(tensor, 0, data[tensor.spec.name][:half])
        assert not path.exists()
        sink.commit()
    return data


def test_gguf_library_reads_our_file(tmp_path: Path, small_plan: Plan) -> None:
    path = tmp_path / "m.gguf"
    data = write(path, small_plan)
    reader = GGUFReader(path)
    assert [t.name for t in reader.tensors] == [t.spec.name for t in small_plan.tensors]
    for tensor in reader.tensors:
        assert tensor.data.tobytes() == data[tensor.name].tobytes()
    for kv in KEYS:
        assert reader.fields[kv.key].contents() == (
            pytest.approx(kv.value) if isinstance(kv.value, float) else kv.value
        )
        assert reader.fields[kv.key].types[0] == kv.type
    assert path.stat().st_size == len(header(KEYS, small_plan)) + small_plan.data_bytes
    assert not list(tmp_path.glob("*.partial"))


def test_encoding_goes_on_while_the_disk_syncs(
    tmp_path: Path, small_plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writers wait for the disk only when more than MOST_UNSYNCED is not durable yet."""
    tensor = next(one for one in small_plan.tensors if one.spec.name == "token_embd.weight")
    asked, disk = threading.Event(), threading.Event()
    row = np.zeros(tensor.row_bytes, np.uint8)

    def durable(_: object) -> None:
        asked.set()
        assert disk.wait(300)

    monkeypatch.setattr(durable_file, "SYNC_SECONDS", 0.0)
    monkeypatch.setattr(durable_file, "MOST_UNSYNCED", 3 * row.nbytes)
    monkeypatch.setattr(durable_file, "durable", durable)
    with (
        Sink(tmp_path / "m.gguf", header(KEYS, small_plan), small_plan) as sink,
        ThreadPoolExecutor(1) as pool,
    ):
        sink.write(tensor, 0, row)
        assert asked.wait(300)
        sink.write(tensor, row.nbytes, row)
        sink.write(tensor, 2 * row.nbytes, row)
        last = pool.submit(sink.write, tensor, 3 * row.nbytes, row)
        assert not wait([last], timeout=0.2).done
        disk.set()
        last.result()
    assert not list(tmp_path.iterdir())


def test_our_reader_agrees_with_the_library(tmp_path: Path, small_plan: Plan) -> None:
    path = tmp_path / "m.gguf"
    write(path, small_plan)
    ours, theirs = GGUFFile(path), GGUFReader(path)
    found = {key: value if elements(value) is None else list(value) for key, value in ours.keys.items()}
    assert found == {kv.key: kv.value for kv in KEYS}
    assert [t.spec.name for t in ours.tensors.values()] == [t.name for t in theirs.tensors]
    for mine, other in zip(ours.tensors.values(), theirs.tensors, strict=True):
        assert (mine.offset, mine.n_bytes, mine.spec.qtype) == (
            other.data_offset,
            other.n_bytes,
            int(other.tensor_type),
        )
        assert list(reversed(mine.spec.shape)) == other.shape.tolist()


def test_trailing_ones_are_dropped(small_plan: Plan) -> None:
    one_row = make_plan(
        [TensorSpec("a.weight", (1, 32), QType.BF16)], FACTS, Recipe(ftype("F32")), has_imatrix=False
    )
    written = header([], one_row)
    after_name = written.index(b"a.weight") + 8
    assert struct.unpack_from("<IQ", written, after_name) == (1, 32)
    written = header([], one_row, keeps_axes=True)
    assert struct.unpack_from("<IQQ", written, after_name) == (2, 32, 1)


def test_failure_leaves_nothing(tmp_path: Path, small_plan: Plan) -> None:
    path = tmp_path / "m.gguf"
    with pytest.raises(RuntimeError), Sink(path, header(KEYS, small_plan), small_plan):
        raise RuntimeError("anything")
    assert not list(tmp_path.iterdir())


def test_slab_outside_its_tensor_is_refused(tmp_path: Path, small_plan: Plan) -> None:
    tensor = small_plan.tensors[0]
    with (
        Sink(tmp_path / "m.gguf", header(KEYS, small_plan), small_plan) as sink,
        pytest.raises(ValueError, match="slab"),
    ):
        sink.write(tensor, tensor.n_bytes - 1, np.zeros(2, np.uint8))


def test_space_is_counted_for_all_files_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 0, 100))
    check_space([(tmp_path, 50), (tmp_path, 50)])
    with pytest.raises(NoSpaceError, match="make space"):
        check_space([(tmp_path, 50), (tmp_path, 51)])


def test_every_truncation_is_an_error(tmp_path: Path, small_plan: Plan) -> None:
    path = tmp_path / "m.gguf"
    write(path, small_plan)
    whole = path.read_bytes()
    for n_bytes in [*range(0, len(whole) - 64, 7), len(whole) - 33]:
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(GGUFError, match=r"m\.gguf"):
            GGUFFile(path)


@pytest.mark.parametrize("count", [2**63, 2**40, 10**7])
def test_lying_counts_cost_no_memory(tmp_path: Path, count: int) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, count, count) + bytes(1000))
    with pytest.raises(GGUFError, match="do not fit"):
        GGUFFile(path)


def test_not_a_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(GGUFError, match="not a GGUF file"):
        GGUFFile(path)
    with pytest.raises(GGUFError, match="file is missing"):
        GGUFFile(tmp_path / "absent.gguf")
