"""Names under which text models are stored elsewhere: under a prefix, beside other senses, without their head."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest

from gguf_export.checking.doctor import doctor
from gguf_export.writing.export import prepare
from quantize.exceptions import CheckpointError
from quantize.families import family_of
from quantize.families.config import text_config
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe
from quantize.sources.checkpoint import Checkpoint, open_checkpoint

Rename = Callable[[str], str]


def stored_as(folder: Path, rename: Rename, more: dict[str, Any] | None = None, **config: Any) -> Path:
    """The checkpoint in `folder` with other names of its tensors, further tensors, and other settings."""
    tensors = {rename(name): values for name, values in pico.read_checkpoint(folder).items()}
    content = json.loads((folder / "config.json").read_text()) | config
    for path in folder.glob("model*"):
        path.unlink()
    pico.write_checkpoint(folder, tensors | (more or {}), content, 2)
    return folder


def same_model(one: Checkpoint, other: Checkpoint) -> None:
    assert (
        one.specs() == other.specs() and one.hparams == other.hparams and one.arch_keys() == other.arch_keys()
    )
    for spec in one.specs():
        for xid in range(spec.n_matrix):
            np.testing.assert_array_equal(one.read(spec, xid), other.read(spec, xid))


def within(name: str) -> str:
    """Transformers 5: the text model is a part of the base, beside its head."""
    return name.replace("model.", "model.language_model.", 1)


PREFIXES: list[Rename] = [
    lambda name: "language_model." + name,
    within,
    lambda name: name.replace("model.", "model.text_model.", 1),
    lambda name: name if name.startswith("lm_head") else "language_model." + name,
]

SENSES = {
    "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight": np.ones((4, 4), np.float32),
    "multi_modal_projector.linear_1.weight": np.ones((4, 4), np.float32),
    "model.vision_model.embeddings.patch_embedding.weight": np.ones((4, 4), np.float32),
    "audio_tower.conv1.weight": np.ones((4, 4), np.float32),
    "image_newline": np.ones(4, np.float32),
}


@pytest.mark.parametrize("rename", PREFIXES)
@pytest.mark.parametrize("layout", ["split", "fused"])
def test_prefixes_are_stripped_as_the_converter_does(tmp_path: Path, rename: Rename, layout: Any) -> None:
    plain, wrapped = (
        pico.pico_mixtral(tmp_path / name / "Pico", layout=layout, n_layer=1, n_expert=2)
        for name in ("plain", "wrapped")
    )
    stored_as(wrapped, rename)
    same_model(open_checkpoint(wrapped), open_checkpoint(plain))
    assert open_checkpoint(wrapped).remarks == ()
    assert [str(finding) for finding in doctor(wrapped)] == [
        str(finding).replace(str(plain), str(wrapped)) for finding in doctor(plain)
    ]


def test_other_senses_are_left_out_and_counted(tmp_path: Path) -> None:
    """A vision tower in float32 does not make the text model one of several types, either."""
    model = stored_as(pico.pico_dense(tmp_path / "Pico", n_layer=1), PREFIXES[0], SENSES)
    (remark,) = open_checkpoint(model).remarks
    assert remark.message.startswith("5 stored tensors are ignored, '") and remark.message.endswith(
        "' among them"
    )
    assert not [str(finding) for finding in doctor(model) if finding.severity != "info"]


def test_the_config_of_the_text_model_counts(tmp_path: Path) -> None:
    plain, wrapped = (pico.pico_dense(tmp_path / name / "Pico", n_layer=1) for name in ("plain", "wrapped"))
    config = json.loads((wrapped / "config.json").read_text())
    stored_as(wrapped, within, SENSES)
    whole = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "hidden_size": 7}
    (wrapped / "config.json").write_text(json.dumps(whole | {"text_config": config, "vision_config": {}}))
    same_model(open_checkpoint(wrapped), open_checkpoint(plain))
    assert not [finding for finding in doctor(wrapped) if finding.severity != "info"]
    keys = [
        prepare(open_checkpoint(one), [Recipe(ftype("F16"))], tmp_path).files[0].keys
        for one in (plain, wrapped)
    ]
    assert keys[0] == keys[1]


@pytest.mark.parametrize("part", ["text_config", "llm_config", "lm_config", "language_config"])
def test_where_configs_keep_their_text_model(part: str) -> None:
    raw = {"architectures": ["X"], "a": 1, "b": 2, part: {"architectures": None, "b": 3}}
    found = text_config(raw)
    assert (found["architectures"], found["a"], found["b"]) == (["X"], 1, 3)
    assert text_config(raw | {part: 7})["b"] == 2
    assert text_config({"a": 1}) == {"a": 1}


def test_one_name_for_two_tensors_is_refused(tmp_path: Path) -> None:
    model = pico.pico_dense(tmp_path / "Pico", n_layer=1, tokenizer=False)
    stored_as(model, str, {"language_model.model.norm.weight": np.ones(64, np.float32)})
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(model)
    said = str(caught.value)
    assert "'language_model.model.norm.weight'" in said and "would both be 'model.norm.weight'" in said


def test_an_unread_tensor_is_named_as_it_is_stored(tmp_path: Path) -> None:
    model = pico.pico_dense(tmp_path / "Pico", n_layer=1, tokenizer=False)
    stored_as(model, PREFIXES[0], {"language_model.model.extra.weight": np.ones((2, 2), np.float32)})
    with pytest.raises(CheckpointError, match=r"'language_model\.model\.extra\.weight' would not be read"):
        open_checkpoint(model)


# --- the base class ---


def headless(name: str) -> str:
    return name.removeprefix("model.")


def test_llama_without_its_head_is_taken_as_the_converter_takes_it(tmp_path: Path) -> None:
    """The embedding becomes the head, which is said where config.json says otherwise."""
    plain, base = (
        pico.pico_dense(tmp_path / name / "Pico", architecture="LlamaForCausalLM", n_layer=1, tied=True)
        for name in ("plain", "base")
    )
    stored_as(base, headless, architectures=["LlamaModel"], tie_word_embeddings=False)
    same_model(open_checkpoint(base), open_checkpoint(plain))
    (remark,) = open_checkpoint(base).remarks
    assert "the token embedding is used" in remark.message


@pytest.mark.parametrize("make", [pico.pico_dense, pico.pico_mixtral])
def test_names_without_model_are_taken_where_nothing_lacks(tmp_path: Path, make: Callable[..., Path]) -> None:
    for tied in (True, False):
        plain, base = (
            make(tmp_path / f"{name}{tied}" / "Pico", n_layer=1, tied=tied, tokenizer=False)
            for name in ("plain", "base")
        )
        stored_as(base, headless)
        same_model(open_checkpoint(base), open_checkpoint(plain))
        assert open_checkpoint(base).remarks == ()


@pytest.mark.parametrize("make", [pico.pico_dense, pico.pico_mixtral])
def test_a_head_that_lacks_is_said(tmp_path: Path, make: Callable[..., Path]) -> None:
    base = make(tmp_path / "Pico", n_layer=1, tied=True, tokenizer=False, tie_word_embeddings=False)
    stored_as(base, headless)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(base)
    said = str(caught.value)
    assert "saved from the base class, without its head: names lack 'model.'" in said
    assert "save the whole model" in said and said.isprintable()


@pytest.mark.parametrize("name", ["MistralModel", "MixtralModel"])
def test_a_base_class_is_named_as_one(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"'{name}' is the base class.*save the whole model, M"):
        family_of({"architectures": [name]})
    with pytest.raises(CheckpointError, match="'GemmaModel' is not supported"):
        family_of({"architectures": ["GemmaModel"]})
