"""Scratch files: their space is there before they are used, and nothing of them stays."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import disks
import pytest
import torch
from torch import Tensor

from calibration.forward import hidden as hidden_module
from calibration.forward.hidden import Storage, free_bytes
from calibration.forward.settings import ForwardSettings
from quantize.exceptions import NoSpaceError, OutputError

SHAPE = (1000, 64)


def scratch(folder: Path, shape: tuple[int, int] = SHAPE) -> Tensor:
    return Storage(ForwardSettings(scratch=folder)).empty(shape, torch.float32)


@pytest.mark.skipif(sys.platform == "win32", reason="an open file has a name there")
def test_a_scratch_file_has_no_name(tmp_path: Path) -> None:
    """Whatever ends the process, nothing is left that anybody had to clear away."""
    stranger = tmp_path / "moe-gguf-other"  # may be another user's
    stranger.mkdir()
    hidden, other = scratch(tmp_path), scratch(tmp_path)
    hidden.fill_(1)
    other.fill_(2)
    assert list(tmp_path.iterdir()) == [stranger]
    assert float(hidden.sum()) == 64000 and float(other.sum()) == 128000


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="space cannot be asked for on this system")
def test_a_full_disk_is_found_before_the_file_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def full(_: int, offset: int, n_bytes: int) -> None:
        asked.append(offset + n_bytes)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        NoSpaceError, match="of 256,000 bytes can be made: No space left on device; make space"
    ) as told:
        scratch(tmp_path)
    assert told.value.place == str(tmp_path) and told.value.setting == "scratch"
    assert asked == [256000] and list(tmp_path.iterdir()) == []


def refusing(*_: Any) -> None:
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


@pytest.mark.parametrize(
    "is_known", [True, False], ids=["not supported by the disk", "unknown to the system"]
)
def test_zeros_take_the_space_where_it_cannot_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    if is_known:
        monkeypatch.setattr(os, "posix_fallocate", refusing, raising=False)
    else:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    hidden = scratch(tmp_path, (5000, 64))  # more than is written at once
    assert hidden.shape == (5000, 64) and not hidden.any()


@pytest.mark.parametrize("asks", [True, False])
def test_a_small_disk_holds_no_large_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asks: bool
) -> None:
    if not asks:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with disks.small_disk(tmp_path / "disk", 2**18) as disk:
        hidden = scratch(disk, (500, 64)).fill_(1)
        with pytest.raises(NoSpaceError, match="No space left"):
            scratch(disk)
        assert float(hidden.sum()) == 32000
        del hidden
        assert float(scratch(disk).fill_(1).sum()) == 64000  # its space was given back


def test_a_folder_that_takes_no_files(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(OutputError, match=r"no scratch file of .*; choose another folder"):
            scratch(folder)


# -- a GPU that is too small


@pytest.mark.parametrize(("free", "place"), [(1099, "cpu"), (1100, "meta")])
def test_what_does_not_fit_lies_on_the_host(monkeypatch: pytest.MonkeyPatch, free: int, place: str) -> None:
    """All of it: what belongs together is not spread."""
    monkeypatch.setattr(hidden_module, "free_bytes", lambda _: free)
    storage = Storage(ForwardSettings("meta"))
    storage.settle(1000, 100)
    assert {storage.empty((2, 3), torch.float32).device.type for _ in range(2)} == {place}


def test_the_memory_of_a_cpu_is_not_asked_for() -> None:
    assert free_bytes("cpu") is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
def test_the_memory_of_a_gpu_is_known() -> None:
    before = free_bytes("cuda")
    taken = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
    after = free_bytes("cuda")
    assert before is not None and after is not None and before - after >= taken.nbytes
