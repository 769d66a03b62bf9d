"""Files without tensors, without layers, with keys that do not go with their tensors: each verb says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import TEXT, check_one_line, invoke
from gguf import GGUFValueType as Type
from gguf_files import remade, without_tensors
from pico import pico_mixtral

from gguf_export import export
from gguf_export.checking.inspect import ModelFacts, inspect
from gguf_export.checking.verify import verify
from gguf_export.comparing.models import ModelChoice, open_models
from quantize.containers.keys import KeyValue
from quantize.exceptions import GGUFError
from quantize.sources.gguf_file import GGUFFile
from quantize.sources.model_source import open_source
from quantize.tensors import bits_per_weight

VOCABULARY = "holds no tensors (a vocabulary only)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_mixtral(tmp_path_factory.mktemp("models") / "Pico", n_layer=1, n_expert=2)


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return export(folder, "Q8_0", folder.parent).files[0].path


@pytest.fixture
def vocabulary(model: Path, tmp_path: Path) -> Path:
    return without_tensors(model, tmp_path / "vocabulary.gguf")


def words(verb: str, model: Path, folder: Path) -> list[Any]:
    """A command that needs the weights of `model`."""
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    text = ["--text", folder / "text.txt", "--ctx", 16, "--quiet"]
    more = {
        "imatrix": ["-o", folder / "m.gguf"],
        "errors": ["-t", "Q8_0", "-o", folder / "errors.json"],
        "compare": ["--base", model, "--json", folder / "compare.json"],
    }
    return [verb, model, *text, *more[verb]]


# --- a vocabulary only ---


@pytest.mark.parametrize("verb", ["imatrix", "errors"])
def test_a_vocabulary_has_nothing_to_measure(vocabulary: Path, tmp_path: Path, verb: str) -> None:
    check_one_line(invoke(*words(verb, vocabulary, tmp_path)), VOCABULARY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt", "vocabulary.gguf"]


@pytest.mark.parametrize("place", ["model", "base", "model beside a checkpoint", "base beside a checkpoint"])
def test_a_vocabulary_is_compared_with_nothing(
    folder: Path, model: Path, vocabulary: Path, tmp_path: Path, place: str
) -> None:
    """Its bits per weight were divided by no weights."""
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    given: dict[str, list[Any]] = {
        "model": [vocabulary, "--base", model],
        "base": [model, "--base", vocabulary],
        "model beside a checkpoint": [folder, model, vocabulary],
        "base beside a checkpoint": [folder, model, "--base", vocabulary],
    }
    check_one_line(invoke("compare", *given[place], "--text", tmp_path / "text.txt", "--ctx", 16), VOCABULARY)
    with pytest.raises(GGUFError, match="a vocabulary only"):
        open_models(ModelChoice.of(folder, vocabulary))


def test_no_source_is_empty(vocabulary: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="a vocabulary only"):
        open_source(vocabulary)
    keys = GGUFFile(model).keys
    nothing = remade(
        model,
        tmp_path / "nothing.gguf",
        leave_out=[key for key in keys if key.startswith("tokenizer.")],
        keep=lambda name: False,
    )
    with pytest.raises(GGUFError, match="holds no tensors; give"):
        open_source(nothing)


def test_inspect_says_that_it_is_a_vocabulary(vocabulary: Path, model: Path) -> None:
    facts, whole = inspect(vocabulary), inspect(model)
    assert isinstance(facts, ModelFacts) and isinstance(whole, ModelFacts)
    assert facts.is_vocabulary and not whole.is_vocabulary
    assert (facts.n_elements, facts.n_bytes, facts.bpw) == (0, 0, 0.0)
    assert facts.hparams == whole.hparams
    done = invoke("inspect", vocabulary)
    assert done.exit_code == 0 and "gguf, a vocabulary only" in done.output
    said = json.loads(invoke("inspect", vocabulary, "--json").output)
    assert said["is_vocabulary"] and said["bpw"] == 0 and said["tensors"] == []


def test_verify_finds_a_vocabulary_sound(vocabulary: Path, folder: Path) -> None:
    (finding,) = verify(vocabulary)
    assert finding.severity == "info" and VOCABULARY in finding.message
    wrong = [str(finding) for finding in verify(vocabulary, against=folder) if finding.severity != "info"]
    assert wrong == [
        f"error: {vocabulary}: holds none of the 13 tensors of the checkpoint; convert the checkpoint again"
    ]


def test_the_loader_reads_no_dimensions_of_a_vocabulary(model: Path, tmp_path: Path) -> None:
    leave_out = [key for key in GGUFFile(model).keys if key.startswith("llama.")]
    bare = remade(model, tmp_path / "bare.gguf", leave_out=leave_out, keep=lambda name: False)
    assert verify(bare).worst == "info"


def test_bits_of_no_weights() -> None:
    assert bits_per_weight(0, 0) == 0 and bits_per_weight(34, 32) == 8.5


# --- keys and tensors that do not go together ---


def u32(name: str, value: int) -> KeyValue:
    return KeyValue.u32(f"llama.{name}", value)


MISFITS: list[tuple[str, list[KeyValue], str]] = [
    ("no layers", [u32("block_count", 0)], "llama.block_count"),
    ("more layers", [u32("block_count", 3)], "blk.1.attn_norm.weight"),
    ("no heads for keys", [u32("attention.head_count_kv", 0)], "llama.attention.head_count_kv"),
    ("heads that do not divide", [u32("attention.head_count_kv", 3)], "llama.attention.head_count_kv"),
    ("no expert is used", [u32("expert_used_count", 0)], "llama.expert_used_count"),
    ("more are used than there are", [u32("expert_used_count", 9)], "llama.expert_used_count"),
    ("no experts", [u32("expert_count", 0), u32("expert_used_count", 0)], "ffn_gate.weight"),
    ("no width", [u32("embedding_length", 0)], "llama.rope.dimension_count"),
    ("another width", [u32("feed_forward_length", 64)], "blk.0.ffn_gate_exps.weight"),
    ("heads of nothing", [u32("attention.key_length", 0), u32("rope.dimension_count", 0)], "blk.0.attn_q"),
    (
        "half of a pair",
        [u32("attention.head_count", 64), u32("attention.head_count_kv", 32), u32("rope.dimension_count", 1)],
        "rotary positions need pairs",
    ),
    ("another rope", [u32("rope.dimension_count", 6)], "llama.rope.dimension_count"),
    (
        "no epsilon",
        [KeyValue.f32("llama.attention.layer_norm_rms_epsilon", 0.0)],
        "llama.attention.layer_norm_rms_epsilon",
    ),
]


@pytest.mark.parametrize(("change", "named"), [row[1:] for row in MISFITS], ids=[row[0] for row in MISFITS])
def test_a_pass_over_what_does_not_fit_is_refused(
    model: Path, tmp_path: Path, change: list[KeyValue], named: str
) -> None:
    """Some ended in tracebacks, some in figures of another model."""
    path = remade(model, tmp_path / "misfit.gguf", change)
    check_one_line(invoke(*words("imatrix", path, tmp_path)), named)
    assert any(finding.severity == "error" for finding in verify(path))
    assert not list(tmp_path.glob("m.gguf*"))


@pytest.mark.parametrize("verb", ["errors", "compare"])
def test_every_pass_refuses_it(model: Path, tmp_path: Path, verb: str) -> None:
    change = [u32("expert_used_count", 9)]
    path, base = (remade(model, tmp_path / name, change) for name in ("misfit.gguf", "base.gguf"))
    command = words(verb, path, tmp_path)
    check_one_line(
        invoke(*(base if word == path and i > 1 else word for i, word in enumerate(command))), "of 2 e"
    )
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    ("kept", "named"), [("norm", "token_embd.weight"), ("token_embd", "output_norm.weight")]
)
def test_a_model_of_a_few_tensors(model: Path, tmp_path: Path, kept: str, named: str) -> None:
    path = remade(model, tmp_path / "some.gguf", keep=lambda name: kept in name)
    check_one_line(invoke(*words("imatrix", path, tmp_path)), named)


def test_values_by_layer_are_no_traceback(model: Path, tmp_path: Path) -> None:
    change = [KeyValue.array("llama.attention.head_count_kv", [2], Type.INT32)]
    path = remade(model, tmp_path / "by_layer.gguf", change)
    check_one_line(invoke(*words("imatrix", path, tmp_path)), "one size is expected")
    assert verify(path).worst == "info"


def test_tables_of_positions_may_be_there(model: Path, tmp_path: Path) -> None:
    """`rope_factors_long` and its like are of the loader's tensors, though no checkpoint here has them."""
    from quantize.families.fit import tensor_misfits
    from quantize.tensors import QType, TensorSpec

    file = GGUFFile(model)
    table = TensorSpec("rope_factors_long.weight", (file.hparams.head_dim // 2,), QType.F32)
    assert list(tensor_misfits(file.hparams, [*file.specs(), table])) == []


def test_names_of_strangers_are_escaped(folder: Path, model: Path, tmp_path: Path) -> None:
    """The name of a tensor went into the message as it was."""
    path = tmp_path / "evil.gguf"
    path.write_bytes(model.read_bytes().replace(b"blk.0.attn_norm.weight", b"blk.0.\x1b[31mnorm.weight"))
    for choice in (ModelChoice.of(folder, path), ModelChoice.of(path, base=model)):
        with pytest.raises(GGUFError, match="another model") as caught:
            open_models(choice)
        assert str(caught.value).isprintable()
    for verb in ("imatrix", "errors"):
        done = invoke(*words(verb, path, tmp_path))
        assert done.exit_code == 3 and "\x1b" not in done.output
