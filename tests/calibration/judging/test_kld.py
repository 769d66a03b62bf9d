"""KL divergence and its statistics against plain formulas, and llama.cpp's logits file."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from logits import write_logits

from calibration.judging.kld import QUANTILES, Scores, base_probs, log_probs, quantile, score, summarize
from calibration.judging.logits_file import LogitsFile, is_logits_file
from calibration.text.chunks import Chunks
from quantize.exceptions import LogitsError, ModelChangedError

pytestmark = pytest.mark.numeric


def _logits(seed: int, n: int = 40, n_vocab: int = 301, spread: float = 3.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, spread, (n, n_vocab)).astype(np.float32))


def _by_formula(q: np.ndarray, log_base: np.ndarray, targets: np.ndarray) -> Scores:
    """perplexity.cpp:log_softmax, one target after the other, float32 where it says float."""
    rows = []
    for logits, base, target in zip(q, log_base, targets, strict=True):
        top = logits.max()
        lse = top + np.float32(math.log(float(np.exp(logits - top).astype(np.float64).sum())))
        counted = base > -16
        terms = np.exp(base[counted]) * (base[counted] - logits[counted] + lse)
        nll, nll_base = lse - logits[target], -base[target]
        rows.append(
            (
                nll,
                nll_base,
                terms.astype(np.float64).sum(),
                np.exp(-nll) - np.exp(-nll_base),
                logits.argmax() == base.argmax(),
            )
        )
    nll, nll_base, kld, dp, same = (np.array(column) for column in zip(*rows, strict=True))
    return Scores(nll, nll_base, kld, dp, same)


def test_scores_are_those_of_the_formula() -> None:
    base, q = _logits(1), _logits(1) + 0.3 * _logits(2)
    targets = torch.arange(len(q)) * 7
    log_base = log_probs(base)
    found = score(q, base_probs(log_base), targets)
    wanted = _by_formula(q.numpy(), log_base.numpy(), targets.numpy())
    np.testing.assert_allclose(found.nll, wanted.nll, rtol=1e-6)
    np.testing.assert_allclose(found.nll_base, wanted.nll_base, rtol=1e-6)
    np.testing.assert_allclose(found.kld, wanted.kld, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.dp, wanted.dp, atol=1e-7)
    assert (found.same_top == wanted.same_top).all()
    assert 0 < found.same_top.mean() < 1


def test_unlikely_tokens_do_not_count() -> None:
    base = torch.tensor(
        [[0.0, 0.0, 0.0, -16.0]]
    )  # ln p of the last is below -16: three others share the rest
    q = torch.tensor([[0.0, 0.0, 0.0, -1e6]])  # counted, it would add a tenth
    target = torch.zeros(1, dtype=torch.long)
    assert score(q, base_probs(log_probs(base)), target).kld[0] == pytest.approx(0, abs=1e-6)
    base[0, 3] = -14.0
    assert score(q, base_probs(log_probs(base)), target).kld[0] > 0.1


def test_rows_are_worked_on_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    base, q, targets = _logits(3), _logits(4), torch.arange(40)
    whole = score(q, base_probs(log_probs(base)), targets)
    monkeypatch.setattr("calibration.judging.kld.AT_ONCE", 7 * 301)
    parts = score(q, base_probs(log_probs(base)), targets)
    assert (whole.kld == parts.kld).all()
    assert (whole.nll == parts.nll).all()


def test_statistics_of_the_base_itself() -> None:
    base = _logits(5)
    found = summarize(score(base, base_probs(log_probs(base)), torch.arange(40)))
    assert found.same_top.value == 1
    assert found.same_top.error == 0
    assert found.kld.value == pytest.approx(0, abs=1e-6)
    assert found.ln_ratio.value == pytest.approx(0, abs=1e-6)
    assert found.correlation == pytest.approx(1)


def test_statistics_are_those_of_the_formulas() -> None:
    rng = np.random.default_rng(6)
    n = 1001
    nll_base = rng.gamma(2, 2, n).astype(np.float32)
    nll = nll_base + rng.normal(0.02, 0.3, n).astype(np.float32)
    kld = rng.gamma(0.5, 0.01, n)
    dp = rng.normal(0, 0.02, n).astype(np.float32)
    found = summarize(Scores(nll, nll_base, kld, dp, np.arange(n) % 10 > 0))

    def error(x: np.ndarray) -> float:
        return float(x.astype(np.float64).std(ddof=0) / math.sqrt(n - 1))

    ppl = math.exp(nll.astype(np.float64).mean())
    ppl_base = math.exp(nll_base.astype(np.float64).mean())
    assert found.ppl.value == pytest.approx(ppl)
    assert found.ppl.error == pytest.approx(ppl * error(nll), rel=1e-5)
    # The error of a difference of means of paired values is that of the mean of the differences.
    difference = nll.astype(np.float64) - nll_base
    assert found.ln_ratio.value == pytest.approx(difference.mean(), rel=1e-6)
    assert found.ln_ratio.error == pytest.approx(error(difference), rel=1e-4)
    assert found.ppl_ratio.value == pytest.approx(ppl / ppl_base)
    assert found.ppl_ratio.error == pytest.approx(ppl / ppl_base * error(difference), rel=1e-4)
    assert found.ppl_difference.value == pytest.approx(ppl - ppl_base, rel=1e-5)
    assert found.ppl_difference.error == pytest.approx(
        error(ppl * nll.astype(np.float64) - ppl_base * nll_base.astype(np.float64)), rel=1e-4
    )
    assert found.correlation == pytest.approx(np.corrcoef(nll, nll_base)[0, 1], rel=1e-4)
    assert found.kld.value == pytest.approx(kld.mean())
    assert found.kld.error == pytest.approx(error(kld))
    assert found.kld_max == pytest.approx(kld.max(), rel=1e-6)
    assert found.kld_min == pytest.approx(kld.min(), rel=1e-6)
    assert found.kld_median == pytest.approx(np.median(kld), rel=1e-6)
    for fraction in QUANTILES:
        assert found.kld_quantiles[fraction] == pytest.approx(np.quantile(kld, fraction), rel=1e-4)
        assert found.dp_quantiles[fraction] == pytest.approx(np.quantile(dp, fraction), rel=1e-4, abs=1e-6)
    squares = dp.astype(np.float64) ** 2
    assert found.rms_dp.value == pytest.approx(math.sqrt(squares.mean()))
    assert found.rms_dp.error == pytest.approx(0.5 / math.sqrt(squares.mean()) * error(squares), rel=1e-5)
    assert found.same_top.value == pytest.approx(900 / 1001)
    assert found.same_top.error == pytest.approx(math.sqrt(0.9 * 0.1 / 1000), rel=1e-2)


def test_the_median_of_an_even_number_is_between() -> None:
    assert quantile(np.array([1, 2, 4, 8], np.float32), 0.5) == 3
    assert quantile(np.array([1, 2, 4], np.float32), 0.5) == 2
    assert quantile(np.array([1], np.float32), 0.999) == 1


@pytest.mark.parametrize("n_vocab", [300, 301])
def test_a_logits_file_is_read_back(tmp_path: Path, n_vocab: int) -> None:
    n_ctx, n_chunk = 16, 3
    logits = _logits(7, n_chunk * 7, n_vocab).numpy().reshape(n_chunk, 7, n_vocab)
    tokens = np.random.default_rng(8).integers(0, n_vocab, (n_chunk, n_ctx)).astype(np.int32)
    path = tmp_path / "base.kld"
    write_logits(path, logits, tokens)
    found = LogitsFile(path)
    assert is_logits_file(path)
    assert (found.n_ctx, found.n_vocab, found.n_chunk, found.n_scored) == (n_ctx, n_vocab, n_chunk, 7)
    assert (found.tokens == tokens).all()
    for chunk in range(n_chunk):
        wanted = log_probs(torch.from_numpy(logits[chunk])).numpy()
        floor = wanted.max(axis=-1, keepdims=True) - 16
        np.testing.assert_allclose(found.log_probs(chunk), np.maximum(wanted, floor), atol=16 / 65535)


def test_damaged_logits_files_are_refused(tmp_path: Path) -> None:
    tokens = np.zeros((2, 16), np.int32)
    path = tmp_path / "base.kld"
    write_logits(path, _logits(9, 14, 300).numpy().reshape(2, 7, 300), tokens)
    whole = path.read_bytes()
    for damaged, words in [
        (whole[:-1], "truncated"),
        (b"_Logits_" + whole[8:], "not a file of"),
        (whole[:10], "not a file of"),
        (whole[:8] + b"\xff" * 4 + whole[12:], "damaged"),
        (whole[:20] + b"\xff" * 4 + whole[24:], "a token"),
    ]:
        path.write_bytes(damaged)
        with pytest.raises(LogitsError, match=words):
            LogitsFile(path)
    with pytest.raises(LogitsError, match="file is missing"):
        LogitsFile(tmp_path / "absent")
    assert not is_logits_file(tmp_path / "absent")


def test_a_logits_file_is_of_one_text_and_one_vocabulary(tmp_path: Path) -> None:
    tokens = np.arange(32, dtype=np.int32).reshape(2, 16)
    path = tmp_path / "base.kld"
    write_logits(path, _logits(9, 14, 300).numpy().reshape(2, 7, 300), tokens)
    file = LogitsFile(path)
    file.refuse_other_text(Chunks(("t",), tokens[:1], 1))
    for other, message in (
        (tokens + 1, "made from another text"),
        (tokens.reshape(4, 8), "holds 2 chunks of 16 tokens; asked for were 4 of 8"),
        (np.tile(tokens, (2, 1)), "holds 2 chunks of 16 tokens; asked for were 4 of 16"),
    ):
        with pytest.raises(LogitsError, match=message) as caught:
            file.refuse_other_text(Chunks(("t",), other, 1))
        assert caught.value.place == str(path)
    file.refuse_other_size("model", 300)
    with pytest.raises(LogitsError, match="has 300 tokens, model has 301"):
        file.refuse_other_size("model", 301)
    before = file.fingerprint()
    assert before == LogitsFile(path).fingerprint()
    os.utime(path, ns=(1, 1))
    assert before != LogitsFile(path).fingerprint()
    with pytest.raises(ModelChangedError, match=r"base\.kld: changed while it was read"):
        file.log_probs(0)
