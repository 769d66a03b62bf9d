"""Files from strangers, briefly; at length by `scripts/torture --fuzz 20000`. And every input that once was a bug."""

from __future__ import annotations

import json
import shutil
import struct
import tracemalloc
from pathlib import Path

import pytest
from fuzzing import TARGETS, fuzz, prepare_seeds

from calibration.imatrix import load_imatrix
from gguf_export.vocab import vocab_keys
from quantize.exceptions import CheckpointError, ImatrixError, TokenizerError
from quantize.shards import open_checkpoint
from quantize.untrusted import read_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_seeds(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", TARGETS)
def test_readers_succeed_or_say_why_not(folder: Path, name: str) -> None:
    fuzz(TARGETS[name], folder, 150)


# --- what fuzzing found, once ---


def test_reading_a_small_file_takes_little_memory(folder: Path) -> None:
    """JSON was read into a buffer as large as the largest that is allowed, 100 MB."""
    tracemalloc.start()
    try:
        read_json(folder / "config.json")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_name_with_a_newline_is_quoted(folder: Path) -> None:
    """The names in an importance matrix went into messages as they are."""
    path = folder / "hostile.gguf"
    content = (folder / "imatrix.gguf").read_bytes()
    path.write_bytes(
        content.replace(b"blk.0.ffn_down_exps.weight.in_sum2", b"\nlk.0.ffn_down_exps.weight.in_sum2")
    )
    with pytest.raises(ImatrixError, match="has only one of") as caught:
        load_imatrix(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", [0, 1, 4, 6, 8])
def test_an_array_that_claims_to_be_long_is_refused_at_once(folder: Path, kind: int) -> None:
    """The gguf library's reader makes as many empty views as the file claims to have elements."""
    path = folder / "hostile.gguf"
    key = b"imatrix.datasets"
    path.write_bytes(
        b"GGUF"
        + struct.pack("<IQQ", 3, 0, 1)
        + struct.pack("<Q", len(key))
        + key
        + struct.pack("<iiQ", 9, kind, 2**40)
    )
    with pytest.raises(ImatrixError, match="do not fit"):
        load_imatrix(path)


def test_a_prefix_of_subwords_never_reaches_the_library(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """tokenizers cut it off without looking at the length, and printed the trace of a panic."""
    hostile = Path(shutil.copytree(folder / "bpe", folder / "prefix"))
    path = hostile / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["continuing_subword_prefix"] = "abcdef"
    path.write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match="inside or end of words"):
        vocab_keys(hostile, {}, 320, "gpt-2")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", [10**400, 1e308])
def test_a_number_that_no_float_holds(folder: Path, key: str, value: float) -> None:
    """It passed as larger than 0 and less than infinity, and broke what made a float of it."""
    hostile = Path(shutil.copytree(folder, folder.with_name("huge"), dirs_exist_ok=True))
    config = json.loads((folder / "config.json").read_text())
    (hostile / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(CheckpointError, match=f"{key} must be a number above 0"):
        open_checkpoint(hostile)
