"""The bundled checkpoint is what its card says, and the harness around llama.cpp reports what llama.cpp says."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import llama
import numpy as np
import pytest
import sentencepiece
from agreement import export

N_CTX = 512
PROMPT = "And it came to pass in those days, that"


@pytest.fixture(scope="module")
def texts(demo_model: Path) -> Path:
    return demo_model.parent / "demo_texts"


@pytest.fixture(scope="module")
def passages(demo_model: Path, texts: Path) -> list[list[int]]:
    """The first tokens of each domain's quarter of eval.txt."""
    text = (texts / "eval.txt").read_text(encoding="utf-8")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(demo_model / "tokenizer.model"))
    quarter = len(text) // 4
    encoded = [processor.encode(text[begin * quarter : (begin + 1) * quarter]) for begin in range(4)]
    return [[processor.bos_id(), *ids[: N_CTX - 1]] for ids in encoded]


@pytest.fixture(scope="module")
def answers(demo_model: Path, passages: list[list[int]]) -> Any:
    """What transformers' MixtralForCausalLM makes of the passages."""
    import torch
    from transformers import MixtralForCausalLM

    loaded: Any = MixtralForCausalLM.from_pretrained(
        demo_model, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    model, info = loaded  # a pair with `output_loading_info`, which the types of transformers do not tell
    assert not any(info.values()), info  # nothing missing, nothing left over
    ids = torch.tensor(passages)
    with torch.no_grad():
        return model(ids, labels=ids, output_router_logits=True)


@pytest.fixture(scope="module")
def files(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return export(demo_model, tmp_path_factory.mktemp("demo"), "BF16", "Q4_K_M")


def test_is_small_and_fits_k_blocks(demo_model: Path) -> None:
    assert sum(path.stat().st_size for path in demo_model.iterdir()) < 8_000_000
    config = json.loads((demo_model / "config.json").read_text(encoding="utf-8"))
    assert config["hidden_size"] % 256 == config["intermediate_size"] % 256 == 0
    index = json.loads((demo_model / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert set(index["weight_map"].values()) == {path.name for path in demo_model.glob("*.safetensors")}


@pytest.mark.slow
def test_has_learned_its_texts(answers: Any) -> None:
    """A guess among all 1,536 tokens would have a perplexity of 1,536; by their frequency alone, several hundred."""
    assert answers.logits.isfinite().all()
    assert math.exp(answers.loss - 0.02 * answers.aux_loss) < 80


@pytest.mark.slow
def test_experts_are_chosen_for_their_domains(answers: Any, passages: list[list[int]]) -> None:
    """In every layer, more often than the quarter that chance would give."""
    for router_logits in answers.router_logits:  # one per layer: (T, E)
        chosen = router_logits.topk(2, dim=-1).indices.reshape(len(passages), -1).numpy()
        shares = np.stack([np.bincount(row, minlength=4) / row.size for row in chosen])  # (domain, E)
        assert (shares.diagonal() > 0.3).all(), shares.round(2)


def test_completes_with_words_that_it_was_taught(files: dict[str, Path], texts: Path) -> None:
    known = set(re.findall(r"[a-z]+", (texts / "scripture.txt").read_text(encoding="utf-8").lower()))
    for path in files.values():
        with llama.serve(path) as server:
            text = server.complete(PROMPT, 40)
            words = re.findall(r"[a-z]+", text.lower())[:-1]  # the last may be cut off
            assert len(words) > 10
            assert sum(word in known for word in words) / len(words) > 0.9, text
            assert server.complete(PROMPT, 40) == text


def test_harness_tokenizes_as_sentencepiece(files: dict[str, Path], demo_model: Path, texts: Path) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(demo_model / "tokenizer.model"))
    text = (texts / "eval.txt").read_text(encoding="utf-8")
    with llama.serve(files["BF16"]) as server:
        assert server.tokenize(text) == [processor.bos_id(), *processor.encode(text)]
        assert server.tokenize("In the", add_special=False) == processor.encode("In the")
        assert server.detokenize(processor.encode("In the")).strip() == "In the"


def test_harness_gives_every_token_its_probability(files: dict[str, Path], passages: list[list[int]]) -> None:
    ids = passages[0][:12]
    with llama.serve(files["BF16"]) as server:
        probs = server.all_next_token_probs(ids)
        last = server.next_token_probs(ids)
    assert probs.shape == (len(ids), 1536)
    np.testing.assert_allclose(probs.sum(1), 1, atol=1e-4)
    np.testing.assert_allclose(probs[-1], last, atol=0.005)  # evaluated at once, not one after another


def test_harness_reports_why_a_file_does_not_load(files: dict[str, Path], tmp_path: Path) -> None:
    whole = files["Q4_K_M"].read_bytes()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(whole[: len(whole) // 2])
    assert "not within the file bounds" in str(llama.load_error(broken))
    broken.write_bytes(b"not a model")
    assert "failed to load model" in str(llama.load_error(broken))
    assert llama.load_error(files["Q4_K_M"]) is None
