"""Vocabularies of families that llama.cpp's converter treats in their own way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from golden_keys import record
from places import GOLDEN
from tokenizer_cases import PRE
from vocab_rule_cases import GLM_TOKENS, VOCAB_CASES

from calibration.text.folder_vocabulary import read_vocabulary
from calibration.text.tokenizer_files import TokenizerFiles
from gguf_export.vocab.vocab_keys import vocab_keys
from quantize.exceptions import TokenizerError
from quantize.families import FAMILIES, family_of
from quantize.families.vocab_rules import GLM_VOCAB, LLAMA_VOCAB, VocabRules

KEYS = json.loads((GOLDEN / "vocab_rules.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", VOCAB_CASES)
def test_keys_are_the_converters(name: str, tmp_path: Path) -> None:
    case, folder = VOCAB_CASES[name], tmp_path / "model"
    config = case.make(folder)
    keys = vocab_keys(folder, config, config["vocab_size"], case.pre, rules=case.rules)
    assert [record(kv.key, kv.type, kv.sub_type, kv.value) for kv in keys] == KEYS[name]


@pytest.mark.parametrize("name", ["llama", "granite", "glm", "ernie", "phi"])
def test_the_rules_matter(name: str, tmp_path: Path) -> None:
    case, folder = VOCAB_CASES[name], tmp_path / "model"
    config = case.make(folder)
    keys = vocab_keys(folder, config, config["vocab_size"], case.pre, rules=VocabRules())
    assert [record(kv.key, kv.type, kv.sub_type, kv.value) for kv in keys] != KEYS[name]


@pytest.mark.parametrize("lost", ["[gMASK]", "<|user|>", "<|observation|>"])
def test_a_token_that_the_family_must_have(lost: str, tmp_path: Path) -> None:
    case, folder = VOCAB_CASES["glm"], tmp_path / "model"
    config = case.make(folder)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace(lost, "<|other|>"), encoding="utf-8")
    with pytest.raises(TokenizerError) as failure:
        vocab_keys(folder, config, 340, PRE, rules=GLM_VOCAB)
    assert failure.value.place == str(folder)
    assert f"no added token '{lost}'" in failure.value.message
    assert len(GLM_TOKENS) == 8 and vocab_keys(folder, config, 340, PRE)


def test_phi_takes_the_tokens_of_both_files(tmp_path: Path) -> None:
    case, folder = VOCAB_CASES["phi"], tmp_path / "model"
    case.make(folder)
    vocabulary = read_vocabulary(TokenizerFiles(folder), 340, rules=case.rules)
    assert vocabulary.texts[330:337] == [
        *("<pad>", "<|user|>", "<|end|>", "\u2581zip\u2581zap", "<|system|>", "\u2581x"),
        "[PAD336]",
    ]
    assert vocabulary.types[330:337] == [4, 4, 3, 4, 4, 3, 5]
    assert vocabulary.add_space_prefix is None


def test_llama_and_its_heirs() -> None:
    assert {"llama", "mistral", "mixtral"} <= set(FAMILIES)
    for name in ("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM"):
        assert family_of({"architectures": [name]}).vocab == LLAMA_VOCAB
