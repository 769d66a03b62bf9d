"""Statistics and merges of importance matrices are llama-imatrix's: to the digit that it prints, to the byte it writes.

`tests/golden/imatrix_tool.json` holds what the program made of files that are made here again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from imatrix_inputs import MERGES, REFUSED, SHOWN, merge_name, write_gguf_imatrix, write_inputs
from places import GOLDEN

from calibration.importance.imatrix import Entry, Imatrix
from calibration.importance.imatrix_files import load_imatrix, save_imatrix
from calibration.importance.merging import merged
from calibration.importance.statistics import Statistics, layer_statistics, tensor_statistics
from gguf_export.checking.imatrix_facts import imatrix_facts, layer_rows, tensor_rows
from quantize.exceptions import ImatrixError

TOLD = json.loads((GOLDEN / "imatrix_tool.json").read_text(encoding="utf-8"))
DENSE, EXPERTS = "blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("imatrices"))


# -- statistics


@pytest.mark.parametrize("name", SHOWN)
def test_figures_are_those_that_llama_imatrix_prints(inputs: Path, name: str) -> None:
    facts = imatrix_facts(inputs / name)
    shown = [[cell.strip() for cell in line.split("\t")] for line in TOLD["statistics"][name]]
    assert [list(row) for row in [*tensor_rows(facts), *layer_rows(facts)]] == shown


def test_an_expert_has_figures_of_its_own() -> None:
    sums = np.array([[8, 0, 8, 0], [1, 1, 1, 1], [0, 0, 0, 0]], np.float32)
    (found,) = tensor_statistics(Imatrix({EXPERTS: Entry(sums, np.array([2, 1, 0]))}))
    first, second, none = found.experts
    assert first.statistics == Statistics(8, 0, 4, 2, 2, 0.5, 4, 1, 0.5, 0)
    assert second.statistics == Statistics(4, 1, 1, 1, 0, 1, 4, 2, 1, 0)
    assert (none.xid, none.n_tokens, none.statistics) == (2, 0, None)
    assert (found.n_tokens, found.statistics.total, found.statistics.n) == (3, 12, 8)


def test_tensors_without_tokens_have_no_figures() -> None:
    entry = Entry(np.zeros((1, 4), np.float32), np.zeros(1, np.int64))
    assert tensor_statistics(Imatrix({DENSE: entry})) == []
    assert layer_statistics([]) == []


def test_zeros_have_figures() -> None:
    """llama-imatrix prints NaN for their cosine."""
    entries = {
        f"blk.{bid}.attn_q.weight": Entry(np.zeros((1, 4), np.float32), np.ones(1, np.int64))
        for bid in (0, 1)
    }
    first, second = tensor_statistics(Imatrix(entries))
    assert first.statistics == Statistics(0, 0, 0, 0, 0, 0, 4, 0, 0, 0) and first.cossim == 0
    assert np.isnan(second.cossim)
    assert [np.isnan(layer.cossim) for layer in layer_statistics([first, second])] == [False, True]


def test_a_name_of_any_kind_has_a_layer_or_none() -> None:
    names = [
        "",
        "blk",
        "weight",
        "blk.x.weight",
        f"blk.{10**30}.a.weight",
        "blk.-1.a.weight",
        "v.blk.3.a.weight",
        "a.b",
    ]
    entry = Entry(np.ones((1, 1), np.float32), np.ones(1, np.int64))
    found = {
        one.name: (one.layer, one.tensor, one.bid)
        for one in tensor_statistics(Imatrix(dict.fromkeys(names, entry)))
    }
    assert found["v.blk.3.a.weight"] == ("3", "a", 3)
    assert found["blk.x.weight"] == ("x", "x", None)
    assert found["a.b"] == ("-", "a.b", None)
    assert {found[name][2] for name in names if name != "v.blk.3.a.weight"} == {None}


# -- merges


@pytest.mark.parametrize("case", MERGES, ids=lambda case: merge_name(*case))
def test_a_merge_is_llama_imatrix_s(
    inputs: Path, tmp_path: Path, case: tuple[Sequence[str], int, str]
) -> None:
    files, n_ctx, form = case
    result = merged([load_imatrix(inputs / name) for name in files], n_ctx)
    save_imatrix(tmp_path / "merged", result, legacy=form == "dat")
    assert hashlib.sha256((tmp_path / "merged").read_bytes()).hexdigest() == TOLD["merges"][merge_name(*case)]


def test_all_that_llama_imatrix_was_asked_is_asked_here() -> None:
    assert TOLD["merges"].keys() == {merge_name(*case) for case in MERGES}
    assert TOLD["statistics"].keys() == set(SHOWN)


@pytest.mark.parametrize("files", REFUSED)
@pytest.mark.parametrize("step", [1, -1])
def test_the_first_mismatch_is_named(inputs: Path, files: Sequence[str], step: int) -> None:
    """llama-imatrix refuses these, too, but for legacy files that do not fit: it writes past the end of its memory."""
    sizes = {"a.gguf": "384", "wide.gguf": "388", "eight.gguf": "8 experts"}
    one, other = files[::step]
    with pytest.raises(ImatrixError) as caught:
        merged([load_imatrix(inputs / name) for name in (one, other)])
    told = str(caught.value)
    assert str(inputs / other) in told and str(inputs / one) in told and "blk.2.ffn_up_exps.weight" in told
    assert all(sizes[name] in told or "experts" in told for name in files)


def test_one_count_for_all_experts_may_come_last(inputs: Path) -> None:
    """As where it comes first; llama-imatrix refuses this order."""
    one, other = load_imatrix(inputs / "one.gguf"), load_imatrix(inputs / "a.gguf")
    first, last = merged([one, other]), merged([other, one])
    assert (first.chunk_count, first.datasets) == (last.chunk_count, last.datasets[::-1])
    for name, entry in first.entries.items():
        np.testing.assert_array_equal(last.entries[name].sums, entry.sums)
        np.testing.assert_array_equal(last.entries[name].counts, entry.counts)


def test_what_is_merged_stays_as_it_is(inputs: Path) -> None:
    one = load_imatrix(inputs / "a.gguf")
    before = {name: (entry.sums.copy(), entry.counts.copy()) for name, entry in one.entries.items()}
    merged([one, one, load_imatrix(inputs / "b.gguf")])
    for name, (sums, counts) in before.items():
        np.testing.assert_array_equal(one.entries[name].sums, sums)
        np.testing.assert_array_equal(one.entries[name].counts, counts)


def test_sums_and_counts_that_no_file_holds() -> None:
    def matrix(value: float, count: int, *, legacy: bool = False) -> Imatrix:
        return Imatrix({DENSE: Entry(np.full((1, 2), value, np.float32), np.array([count]))}, legacy=legacy)

    with pytest.raises(ImatrixError, match=f"{DENSE}: the sum of its importances is too large"):
        merged([matrix(3e38, 1), matrix(3e38, 1)])
    with pytest.raises(ImatrixError, match="tokens are too many"):
        merged([matrix(1, 2**61), matrix(1, 2**61)])
    with pytest.raises(ImatrixError, match="has -3 calls"):
        merged([matrix(1, -3, legacy=True)])
    with pytest.raises(ImatrixError, match="chunks of 0 tokens"):
        merged([matrix(1, 1)], 0)
    with pytest.raises(ImatrixError, match="no importances"):
        merged([])


def test_a_name_that_no_gguf_file_holds(tmp_path: Path) -> None:
    """A legacy file has names of any length; ggml cuts them, and does not find them again."""
    name = "blk.0." + "a" * 56
    imatrix = Imatrix({name: Entry(np.ones((1, 2), np.float32), np.array([1]))})
    with pytest.raises(ImatrixError, match="is too long for a GGUF file"):
        save_imatrix(tmp_path / "m.gguf", imatrix)
    assert not list(tmp_path.iterdir())
    save_imatrix(tmp_path / "m.dat", imatrix, legacy=True)
    assert list(load_imatrix(tmp_path / "m.dat").entries) == [name]


def test_the_writer_of_the_inputs_writes_what_we_write(inputs: Path, tmp_path: Path) -> None:
    save_imatrix(tmp_path / "a.gguf", load_imatrix(inputs / "a.gguf"))
    assert (tmp_path / "a.gguf").read_bytes() == (inputs / "a.gguf").read_bytes()
    write_gguf_imatrix(tmp_path / "b.gguf", {DENSE: (np.ones((1, 2), np.float32), [5])}, ["x"])
    assert load_imatrix(tmp_path / "b.gguf").entries[DENSE].counts.tolist() == [5]
