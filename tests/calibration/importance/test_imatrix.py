"""Importance matrices: the arithmetic of llama-quantize, both file forms, and files that lie."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from places import BENCH

from calibration.importance.imatrix import Entry, Imatrix
from calibration.importance.imatrix_files import load_imatrix, save_imatrix
from quantize.exceptions import ImatrixError, OutputError
from quantize.tensors import QType, TensorSpec

DENSE, EXPERTS = "blk.0.attn_q.weight", "blk.0.ffn_down_exps.weight"
N_EXPERT, N_PER_ROW = 3, 4
SPECS = [
    TensorSpec(DENSE, (8, N_PER_ROW), QType.BF16),
    TensorSpec(EXPERTS, (N_EXPERT, 8, N_PER_ROW), QType.BF16),
]


def importance(imatrix: Imatrix, name: str, xid: int = 0) -> np.ndarray:
    """The importances of a tensor that the matrix knows."""
    known = imatrix.importance(name, xid)
    assert known is not None
    return known


def sample(prior: float = 0.0) -> Imatrix:
    """One dense tensor and three experts: one well fed, one with three tokens, one with none."""
    rng = np.random.default_rng(1)
    sums = rng.uniform(1, 50, (N_EXPERT, N_PER_ROW)).astype(np.float32)
    sums[2] = 0
    return Imatrix(
        {
            EXPERTS: Entry(sums, np.array([700, 3, 0])),
            DENSE: Entry(rng.uniform(1, 50, (1, N_PER_ROW)).astype(np.float32), np.array([1024])),
        },
        datasets=["text one.txt", "two.txt"],
        chunk_count=2,
        chunk_size=512,
        prior=prior,
    )


def legacy_bytes(entries: dict[str, tuple[int, list[float]]], trailer: bytes = b"") -> bytes:
    """A .dat file as save_imatrix_legacy writes it."""
    out = struct.pack("<i", len(entries))
    for name, (n_call, values) in entries.items():
        out += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", n_call, len(values))
        out += struct.pack(f"<{len(values)}f", *values)
    return out + trailer


# -- arithmetic


def test_normalised_as_llama_quantize_does() -> None:
    imatrix = sample()
    sums = imatrix.entries[EXPERTS].sums
    got = imatrix.importance(EXPERTS, 0)
    assert got is not None
    assert got.dtype == np.float32
    assert got.tobytes() == (sums[0] / np.float32(700)).tobytes()
    assert importance(imatrix, EXPERTS, 1).tobytes() == (sums[1] / np.float32(3)).tobytes()
    assert importance(imatrix, EXPERTS, 2).tolist() == [1, 1, 1, 1]  # llama-quantize: no count, ones
    assert imatrix.importance("blk.1.attn_q.weight") is None
    with pytest.raises(ImatrixError, match="has 3 expert"):
        imatrix.importance(EXPERTS, 3)


@pytest.mark.parametrize("prior", [1.2e-38, 3.4e38])
def test_a_prior_at_its_limits(prior: float) -> None:
    """Sums of any size, an expert without tokens; in a file the prior is a float of 32 bits."""
    largest = float(np.finfo(np.float32).max)
    sums = np.array([[largest, 1e-38, 0], [0, 0, 0]], np.float32)
    imatrix = Imatrix({EXPERTS: Entry(sums, np.array([1, 0], np.int64))}, prior=prior)
    for xid in range(2):
        found = imatrix.importance(EXPERTS, xid)
        assert found is not None
        np.testing.assert_allclose(found, sums[0], rtol=1e-6)
    assert np.float32(imatrix.metadata()["quantize.imatrix.prior"]) > 0


def test_prior_is_that_many_tokens_of_the_mean_kind() -> None:
    plain, shrunk = sample(), sample(prior=32)
    entry = plain.entries[EXPERTS]
    mean = entry.sums.sum(axis=0, dtype=np.float64) / 703
    for xid, count in enumerate([700, 3, 0]):
        want = (entry.sums[xid] + 32 * mean) / (count + 32)
        np.testing.assert_allclose(importance(shrunk, EXPERTS, xid), want, rtol=1e-6)
    np.testing.assert_allclose(
        importance(shrunk, EXPERTS, 2), mean, rtol=1e-6
    )  # nothing of its own: the mean
    np.testing.assert_allclose(importance(shrunk, DENSE), importance(plain, DENSE), rtol=1e-6)  # its own mean
    nothing = Imatrix({EXPERTS: Entry(np.zeros((2, 4), np.float32), np.zeros(2, np.int64))}, prior=8)
    assert importance(nothing, EXPERTS, 1).tolist() == [1, 1, 1, 1]


def test_says_who_is_thin_and_what_is_missing() -> None:
    imatrix = sample()
    assert [(s.name, s.xid, s.n_tokens) for s in imatrix.thin()] == [(EXPERTS, 2, 0)]
    assert [(s.xid, s.n_tokens) for s in imatrix.thin(fewer_than=4)] == [(1, 3), (2, 0)]
    imatrix.entries[DENSE].counts[0] = 2  # no expert
    assert {s.name for s in imatrix.thin(fewer_than=4)} == {EXPERTS}
    only = Imatrix({EXPERTS: Entry(np.ones((1, 4), np.float32), np.array([3]))})
    assert [s.xid for s in only.thin(fewer_than=4)] == [0]  # of a model with one expert
    other = TensorSpec("blk.1.attn_k.weight", (4, 4), QType.BF16)
    assert imatrix.missing([*SPECS, other]) == ["blk.1.attn_k.weight"]


def test_metadata_is_what_llama_quantize_writes() -> None:
    imatrix = sample()
    imatrix.file = "ä" * 100  # 200 bytes, cut to 127 without half a character
    assert list(imatrix.metadata().items()) == [
        ("quantize.imatrix.file", "ä" * 63),
        ("quantize.imatrix.dataset", "text one.txt"),
        ("quantize.imatrix.entries_count", 2),
        ("quantize.imatrix.chunks_count", 2),
    ]
    assert Imatrix({}, prior=8).metadata()["quantize.imatrix.prior"] == 8.0
    assert list(Imatrix({}, file="x").metadata()) == [
        "quantize.imatrix.file",
        "quantize.imatrix.entries_count",
    ]


# -- against a model


def test_fits_its_model() -> None:
    assert sample().check(SPECS) == []


@pytest.mark.parametrize(
    ("shape", "told"),
    [((N_EXPERT, 8, 5), "12 values there and needs 15"), ((4, 8, 3), "counts of 3 experts.*has 4")],
)
def test_an_imatrix_of_another_model_is_refused(shape: tuple[int, ...], told: str) -> None:
    with pytest.raises(ImatrixError, match=f"{EXPERTS}.*{told}"):
        sample().check([TensorSpec(EXPERTS, shape, QType.BF16)])


def test_entries_that_name_no_tensor_of_the_model() -> None:
    """llama-quantize goes on in silence, without importances where not one fits."""
    remarks = sample().check(SPECS[:1])
    assert [remark.message for remark in remarks] == [
        f"1 of its 2 entries are of tensors that the model has not, and ignored: {EXPERTS}"
    ]
    imatrix = sample()
    imatrix.file = "m.gguf"
    with pytest.raises(
        ImatrixError, match=r"m\.gguf: none of its 2 entries is of a tensor of this model: blk"
    ):
        imatrix.check([TensorSpec("blk.0.ffn_up.weight", (8, N_PER_ROW), QType.BF16)])
    assert Imatrix({}).check(SPECS) == []


def test_says_what_is_zero_and_what_makes_no_difference() -> None:
    imatrix = sample()
    assert imatrix.flat() == ([], [])  # an expert without tokens is neither
    imatrix.entries[DENSE].sums[:] = 3
    assert imatrix.flat() == ([], [DENSE])
    imatrix.entries[EXPERTS].sums[:] = 0
    assert imatrix.flat() == ([EXPERTS], [EXPERTS, DENSE])
    imatrix.entries[EXPERTS].counts[:] = 0
    assert imatrix.flat() == ([], [EXPERTS, DENSE])  # ones


def test_token_embd_is_only_warned_about() -> None:
    imatrix = sample()
    imatrix.entries["token_embd.weight"] = Entry(np.ones((1, 3), np.float32), np.array([1]))
    warnings = imatrix.check([*SPECS, TensorSpec("token_embd.weight", (9, 4), QType.BF16)])
    assert len(warnings) == 1
    assert "token_embd.weight has 3 values" in warnings[0].message
    assert imatrix.importance("token_embd.weight") is None


# -- files


def test_gguf_form_and_back(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    save_imatrix(file, sample())
    reader = GGUFReader(file)
    assert [t.name for t in reader.tensors] == [
        n + s for n in (DENSE, EXPERTS) for s in (".in_sum2", ".counts")
    ]
    assert [t.shape.tolist() for t in reader.tensors] == [[4], [1], [4, 3], [1, 3]]
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert keys == {
        "general.type": "imatrix",
        "imatrix.datasets": ["text one.txt", "two.txt"],
        "imatrix.chunk_count": 2,
        "imatrix.chunk_size": 512,
    }
    back = load_imatrix(file, prior=5.0)
    assert (back.datasets, back.chunk_count, back.chunk_size) == (["text one.txt", "two.txt"], 2, 512)
    assert (back.file, back.prior, back.legacy) == (str(file), 5.0, False)
    for name, entry in sample().entries.items():
        assert back.entries[name].sums.tobytes() == entry.sums.tobytes()
        assert back.entries[name].counts.tolist() == entry.counts.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_legacy_form_and_back(tmp_path: Path) -> None:
    file = tmp_path / "m.dat"
    imatrix = sample()
    save_imatrix(file, imatrix, legacy=True)
    sums, counts = imatrix.entries[EXPERTS].sums, np.array([[700], [3], [1]], np.float32)
    sums[2] = 1  # an expert without tokens is stored as one
    experts = (sums / counts * np.float32(2)).ravel().tolist()  # 2 calls: 700 tokens are two chunks
    dense = (imatrix.entries[DENSE].sums / np.float32(1024) * np.float32(2)).ravel().tolist()
    trailer = struct.pack("<ii", 2, 7) + b"two.txt"
    assert file.read_bytes() == legacy_bytes({DENSE: (2, dense), EXPERTS: (2, experts)}, trailer)

    back = load_imatrix(file)
    assert (back.legacy, back.chunk_count, back.datasets) == (True, 2, ["two.txt"])
    assert back.thin() == []  # it cannot know
    with pytest.raises(ImatrixError, match="has 1 expert"):
        back.importance(EXPERTS, 1)  # nor how many experts there are, before it has seen the model
    assert back.check(SPECS) == []
    np.testing.assert_allclose(importance(back, EXPERTS, 1), importance(sample(), EXPERTS, 1), rtol=1e-6)
    assert importance(back, EXPERTS, 2).tolist() == [1, 1, 1, 1]


def test_legacy_without_calls_is_taken_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "m.dat"
    file.write_bytes(legacy_bytes({DENSE: (0, [1.0, 2.0, 3.0, 4.0])}))
    imatrix = load_imatrix(file)
    assert importance(imatrix, DENSE).tolist() == [1, 2, 3, 4]
    assert "quantize.imatrix.chunks_count" not in imatrix.metadata()


def test_legacy_knows_no_tokens(tmp_path: Path) -> None:
    file = tmp_path / "m.dat"
    file.write_bytes(legacy_bytes({DENSE: (2, [1.0, 2.0, 3.0, 4.0])}))
    with pytest.raises(ImatrixError, match=r"no token counts.*prior 0"):
        load_imatrix(file, prior=8).importance(DENSE)
    with pytest.raises(ImatrixError, match="no token counts"):
        save_imatrix(tmp_path / "m.gguf", load_imatrix(file))
    save_imatrix(tmp_path / "copy.dat", load_imatrix(file), legacy=True)
    assert importance(load_imatrix(tmp_path / "copy.dat"), DENSE).tolist() == [0.5, 1, 1.5, 2]


def test_a_file_by_llama_imatrix_is_written_again_byte_for_byte(tmp_path: Path) -> None:
    reference = BENCH / "reference" / "llama-imatrix.gguf"
    if not reference.exists():
        pytest.skip(f"{reference} is not here")
    save_imatrix(tmp_path / "m.gguf", load_imatrix(reference))
    assert (tmp_path / "m.gguf").read_bytes() == reference.read_bytes()


# -- files that cannot be used


def refuse(file: Path, told: str) -> None:
    with pytest.raises(ImatrixError, match=told) as caught:
        load_imatrix(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def write_gguf(file: Path, tensors: dict[str, np.ndarray], *, keys: bool = True) -> Path:
    writer = GGUFWriter(file, "")
    if keys:
        writer.add_array("imatrix.datasets", ["x"])
        writer.add_uint32("imatrix.chunk_count", 1)
        writer.add_uint32("imatrix.chunk_size", 512)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"a.in_sum2": f32(1, 2)}, "'a' has only one of"),
        ({"a.in_sum2": f32(1, 2), "a.counts": f32(1, 2).astype(np.float16)}, "must be F32"),
        ({"a.in_sum2": f32(1, 2, 3), "a.counts": f32(1, 2)}, "3 sums for 2 counts"),
        ({"a.in_sum2": f32(1, np.inf), "a.counts": f32(1)}, "'a' holds a value that is not finite"),
        ({"a.in_sum2": f32(1, np.nan), "a.counts": f32(1)}, "'a' holds a value that is not finite"),
        ({"a.in_sum2": f32(1, -1e-9), "a.counts": f32(1)}, "'a' holds a value that is negative"),
        ({"a.in_sum2": f32(1, 2), "a.counts": f32(np.nan)}, "no number of tokens"),
        ({"a.in_sum2": f32(1, 2), "a.counts": f32(-1)}, "no number of tokens"),
        ({"a": f32(1, 2)}, "no importances"),
        ({}, "no data"),
    ],
)
def test_contents_that_make_no_sense(tmp_path: Path, tensors: dict[str, np.ndarray], told: str) -> None:
    refuse(write_gguf(tmp_path / "m.gguf", tensors), told)


def test_a_model_is_no_imatrix(tmp_path: Path) -> None:
    refuse(write_gguf(tmp_path / "m.gguf", {"a": f32(1)}, keys=False), "is not an imatrix")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    refuse(tmp_path / "none.gguf", "file is missing")
    refuse(tmp_path, "directory|denied|not a regular file")
    with pytest.raises(OutputError, match="cannot be written"):
        save_imatrix(tmp_path / "no" / "folder.gguf", sample())


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x01",
        b"not an imatrix at all",
        struct.pack("<i", -1),
        struct.pack("<ii", 1, 2**31 - 1),
        struct.pack("<ii", 1, -5),
        struct.pack("<ii", 2**31 - 1, 1) + b"a" + struct.pack("<ii", 1, 1),
        struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 2**31 - 1),  # 8 GiB of values are promised
        struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 0),
        struct.pack("<ii", 1, 1) + b"\xff" + struct.pack("<iif", 1, 1, 1.0),
        legacy_bytes({"a": (1, [float("nan")])}),
        legacy_bytes({"a": (1, [-1.0])}),
        legacy_bytes({"a": (1, [1.0])}, trailer=struct.pack("<ii", 1, 99)),
    ],
)
def test_damaged_legacy_files(tmp_path: Path, raw: bytes) -> None:
    file = tmp_path / "m.dat"
    file.write_bytes(raw)
    refuse(file, r"m\.dat")


@pytest.mark.parametrize("legacy", [False, True])
def test_damage_anywhere_is_told_in_one_line(tmp_path: Path, legacy: bool) -> None:
    """Cut anywhere, or with any byte changed, a file is read or refused, and never fails otherwise."""
    file = tmp_path / "m"
    save_imatrix(file, sample(), legacy=legacy)
    whole = file.read_bytes()
    rng = np.random.default_rng(7)
    damaged = [whole[:size] for size in range(0, len(whole) - 1, 3)]
    for _ in range(300):
        raw = bytearray(whole)
        raw[rng.integers(4 if not legacy else 0, len(raw))] = int(
            rng.choice([0, 1, 127, 255, int(rng.integers(256))])
        )
        damaged.append(bytes(raw))
    refused = 0
    for content in damaged:
        file.write_bytes(content)
        try:
            load_imatrix(file)
        except ImatrixError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > len(whole) / 4  # nearly every cut, and some of the changes


def test_entries_are_chosen_by_parts_of_their_names() -> None:
    """Any of several parts suffices; the entries that are left are those that are counted."""
    imatrix = sample()
    assert set(imatrix.selected(include=["attn", "nothing"]).entries) == {DENSE}
    assert set(imatrix.selected(exclude=["attn", "nothing"]).entries) == {EXPERTS}
    assert set(imatrix.selected(exclude=["blk", "attn"]).entries) == set()
    assert imatrix.selected().entries == imatrix.entries
    chosen = imatrix.selected(exclude=["_exps"])
    assert chosen.metadata()["quantize.imatrix.entries_count"] == 1 and chosen.datasets == imatrix.datasets


def test_an_entry_that_does_not_fit_is_counted_all_the_same() -> None:
    """llama-quantize passes over a token_embd that does not fit, and counts it among its entries."""
    imatrix = sample()
    imatrix.entries["token_embd.weight"] = Entry(np.ones((1, 3), np.float32), np.array([5]))
    remarks = imatrix.check([*SPECS, TensorSpec("token_embd.weight", (9, N_PER_ROW), QType.BF16)])
    assert any("ignored" in str(remark) for remark in remarks)
    assert "token_embd.weight" not in imatrix.entries
    assert imatrix.metadata()["quantize.imatrix.entries_count"] == 3
