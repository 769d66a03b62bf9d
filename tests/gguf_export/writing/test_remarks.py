"""What is told before the work begins: fallbacks, importances that are missing or thin, and a prior that is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import check_one_line, forward_words, invoke
from pico import pico_mixtral

from calibration.importance.imatrix import Entry, Imatrix
from calibration.importance.imatrix_files import save_imatrix
from gguf_export.writing.fingerprint import of_imatrix


@pytest.fixture(scope="module")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_mixtral(tmp_path_factory.mktemp("models") / "Pico-4x1M-bf16", n_shards=3)


def test_a_comparison_tells_what_an_export_tells(pico: Path, tmp_path: Path) -> None:
    """Of several types that share a remark it is one line; what does not fit the model is told, too."""
    sums = np.random.default_rng(0).exponential(500, (4, 64)).astype(np.float32)
    few = Entry(sums, np.array([500, 0, 99, 100]))
    wrong = Entry(np.ones((1, 8), np.float32), np.array([500]))
    entries = {"blk.0.ffn_up_exps.weight": few, "token_embd.weight": wrong}
    save_imatrix(tmp_path / "m.gguf", Imatrix(entries, chunk_count=1))
    words = [*forward_words("compare", pico, tmp_path), "--imatrix", tmp_path / "m.gguf", "--chunks", 1]
    done = invoke(*words, "-t", "Q4_K_M", "-t", "Q5_K_M", "--tensor-type", "absent=q8_0")
    assert done.exit_code == 0, done.output
    lines = done.stderr.splitlines()
    assert len(lines) == len(set(lines)) == 5, lines
    for told in (
        "token_embd.weight has 8 values there and needs",
        "tensors have rows that their type does not divide",
        "Q8_0, Q4_K_M, Q5_K_M: the tensor type pattern absent matches no tensor",
        "the importance matrix has nothing for ",
        "fewer than 100 tokens for 2 experts",
    ):
        assert sum(told in line for line in lines) == 1, told
    words = words[: words.index("--json")] + words[words.index("--json") + 2 :]
    for name, prior in (("plain", 0), ("same", 0), ("prior", 8)):
        done = invoke(*words, "-t", "Q4_0", "--prior", prior, "--csv", tmp_path / name)
        assert ("fewer than" in done.stderr) == (prior == 0)
    plain, same, other = ((tmp_path / name).read_bytes() for name in ("plain", "same", "prior"))
    assert plain == same != other
    # a kept state tells them apart
    assert of_imatrix(Imatrix(entries)) != of_imatrix(Imatrix(entries, prior=8))


@pytest.mark.parametrize("prior", ["nan", "inf", "1e+308", "3.5e+38", "1e-39"])
def test_a_prior_is_a_number_of_tokens(pico: Path, tmp_path: Path, prior: str) -> None:
    save_imatrix(tmp_path / "m.gguf", Imatrix({"a": Entry(np.ones((1, 8), np.float32), np.array([5]))}))
    for verb in ("export", "errors"):
        done = invoke(*forward_words(verb, pico, tmp_path), "--prior", prior)
        check_one_line(done, f"prior {prior}: is not a number of tokens")
    for words in (forward_words("compare", pico, tmp_path), ["export", pico, "-t", "Q8_0", "-o", tmp_path]):
        done = invoke(*words, "--prior", prior, "--imatrix", tmp_path / "m.gguf")
        check_one_line(done, f"prior {prior}: is not a number of tokens")
    verify = invoke(
        "verify", tmp_path / "m.gguf", "--against", pico, "--imatrix", tmp_path / "m.gguf", "--prior", prior
    )
    check_one_line(verify, f"prior {prior}: is not a number of tokens")


def test_a_prior_needs_importances(pico: Path, tmp_path: Path) -> None:
    export = invoke("export", pico, "-t", "Q8_0", "-o", tmp_path, "--prior", 8)
    compare = invoke(*forward_words("compare", pico, tmp_path), "--prior", 8)
    for done in (export, compare):
        assert done.exit_code == 2
        assert "--prior means nothing without --imatrix" in done.stderr
