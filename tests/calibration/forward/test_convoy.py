"""Passes side by side: each matrix is read and decoded once, and what a share gives hangs on nothing but the share."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pico import pico_mixtral

from calibration.forward.convoy import Member, in_convoy, share_places
from calibration.forward.settings import ForwardSettings
from calibration.importance.imatrix_shares import added, collect_shares
from calibration.importance.observers import Collected, collect_imatrix
from calibration.text.chunks import Chunks
from quantize.exceptions import ActivationError, CheckpointError
from quantize.sources.model_source import open_source
from quantize.telling import Progress

SETTINGS = ForwardSettings()


def some_chunks(n_chunk: int, n_ctx: int = 16) -> Chunks:
    tokens = np.random.default_rng(5).integers(3, 300, (n_chunk, n_ctx)).astype(np.int32)
    return Chunks(("random.txt",), tokens, 1)


def collected_bytes(collected: Collected) -> list[bytes]:
    entries = collected.imatrix.entries.items()
    load = collected.load
    return [
        *(name.encode() + entry.sums.tobytes() + entry.counts.tobytes() for name, entry in entries),
        load.entropy.tobytes() + load.pairs.tobytes() + load.tokens.tobytes(),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shares_are_the_same_in_any_company(tmp_path: Path, dtype: torch.dtype) -> None:
    """All together, some at a time, and alone; with one processor and with several."""
    source, chunks = open_source(pico_mixtral(tmp_path / "m")), some_chunks(11)
    places, settings = share_places(11, 2), ForwardSettings(dtype=dtype)
    together = added(
        collect_shares(source, chunks, places, settings, process_output=True, n_active=3), chunks
    )
    alone = [
        *collect_shares(source, chunks, places[:1], settings, process_output=True),
        *collect_shares(source, chunks, places[1:], settings, process_output=True, n_active=1),
    ]
    assert collected_bytes(added(alone, chunks)) == collected_bytes(together)


def test_no_share_reads_ahead(tmp_path: Path) -> None:
    """Whatever its settings ask for: matrices that one pass reads early would be another's, too."""
    source, chunks = open_source(pico_mixtral(tmp_path / "m")), some_chunks(4)
    found = [
        collected_bytes(added(collect_shares(source, chunks, share_places(4, 2), settings), chunks))
        for settings in (SETTINGS, ForwardSettings(window=1 << 20))
    ]
    assert found[0] == found[1]


def test_the_sum_of_shares_is_that_of_the_text(tmp_path: Path) -> None:
    source, chunks = open_source(pico_mixtral(tmp_path / "m")), some_chunks(9)
    whole = collect_imatrix(source, chunks, settings=SETTINGS)
    shares = added(collect_shares(source, chunks, share_places(9), SETTINGS), chunks)
    assert list(shares.imatrix.entries) == list(whole.imatrix.entries)
    for name, entry in whole.imatrix.entries.items():
        np.testing.assert_array_equal(shares.imatrix.entries[name].counts, entry.counts)
        np.testing.assert_allclose(shares.imatrix.entries[name].sums, entry.sums, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(shares.load.entropy, whole.load.entropy, rtol=1e-12)
    np.testing.assert_array_equal(shares.load.pairs, whole.load.pairs)
    assert (shares.load.n_token, shares.imatrix.chunk_count) == (whole.load.n_token, 9)
    assert shares.imatrix.datasets == whole.imatrix.datasets


def test_weights_are_read_once(tmp_path: Path) -> None:
    folder, chunks = pico_mixtral(tmp_path / "m"), some_chunks(12)
    source, shared = open_source(folder), open_source(folder)
    collect_imatrix(source, chunks, settings=SETTINGS)
    told: list[Progress] = []
    collect_shares(shared, chunks, share_places(12, 2), SETTINGS, n_active=2, progress=told.append)
    assert shared.bytes_read == source.bytes_read
    assert (told[-1].done, told[-1].total) == (12 * 16, 12 * 16)


def test_results_do_not_hang_on_threads_of_torch(tmp_path: Path) -> None:
    source, chunks = open_source(pico_mixtral(tmp_path / "m", n_embd=256, n_ff=512)), some_chunks(4, 64)
    before, found = torch.get_num_threads(), []
    try:
        for n_thread in (1, 2, 7):
            torch.set_num_threads(n_thread)
            found.append(
                collected_bytes(added(collect_shares(source, chunks, share_places(4), SETTINGS), chunks))
            )
            assert torch.get_num_threads() == n_thread
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_one_failure_ends_all() -> None:
    """The error is the one that a pass raised, not that others were abandoned; nothing hangs."""
    made = []

    def work(member: Member) -> int:
        for step in range(20):
            if member.index == 2 and step == 9:
                raise CheckpointError("m", "is damaged")
            made.append(member.take(step, partial(int, step)))
        return member.index

    with pytest.raises(CheckpointError, match="is damaged"):
        in_convoy(work, 4, n_active=2)
    assert threading.active_count() < 5
    assert max(made) <= 9 + 7


def test_nobody_goes_far_ahead() -> None:
    in_memory, most = set[int](), 0

    def make(step: int) -> int:
        nonlocal most
        in_memory.add(step)
        most = max(most, step)
        return step

    def work(member: Member) -> list[int]:
        taken = []
        for step in range(60):
            taken.append(member.take(step, partial(make, step)))
            if member.index == 0:
                assert most - step <= 8
        return taken

    assert in_convoy(work, 3, n_active=3) == [list(range(60))] * 3
    assert in_memory == set(range(60))


def test_damage_is_named(tmp_path: Path) -> None:
    """A pass that looks for the reason reads what the others do not."""
    from quantize.tensors import Array, Rows, TensorSpec

    class Damaged:
        """A model one of whose matrices is NaN."""

        def __init__(self, inner: object) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> object:
            return getattr(self._inner, name)

        def read_blocks(self, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
            blocks: Array = self._inner.read_blocks(spec, xid, rows)  # type: ignore[attr-defined]
            if spec.name == "blk.1.attn_k.weight":
                blocks = np.full_like(blocks, 0xFF)
            return blocks

    source = Damaged(open_source(pico_mixtral(tmp_path / "m")))
    with pytest.raises(ActivationError, match=r"blk\.1\.attn_k\.weight"):
        collect_shares(source, some_chunks(6), share_places(6, 2), SETTINGS)  # type: ignore[arg-type]
