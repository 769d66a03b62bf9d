"""Faults planted into checkpoints, each of which `doctor` names; and healthy checkpoints, of which it says nothing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from pico import pico_dense, pico_mixtral, read_checkpoint, write_checkpoint

from calibration.chat.named import named_template
from gguf_export.checking.doctor import doctor
from gguf_export.cli import main

INDEX = "model.safetensors.index.json"
FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
EXPERTS = "model.layers.{}.block_sparse_moe.experts.{}.{}.weight"
ROUTER = "model.layers.1.block_sparse_moe.gate.weight"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_mixtral(tmp_path_factory.mktemp("models") / "Pico-4x1M-bf16")


@pytest.fixture
def model(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / pristine.name))


def faults(path: Path, **options: Any) -> list[str]:
    return [str(finding) for finding in doctor(path, **options) if finding.severity != "info"]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("layout", ["split", "fused"])
def test_nothing_is_found_in_a_healthy_checkpoint(tmp_path: Path, layout: Any, full: bool) -> None:
    model = pico_mixtral(tmp_path / "Pico", layout=layout)
    assert faults(model, full=full) == []


@pytest.mark.parametrize(
    "options",
    [
        {"architecture": "LlamaForCausalLM", "biases": True, "tied": True},
        {"dtype": "F16"},
        {"n_layer": 1, "head_dim": 32, "n_shards": 3},
    ],
)
def test_nothing_is_found_in_a_healthy_dense_checkpoint(tmp_path: Path, options: Any) -> None:
    assert faults(pico_dense(tmp_path / "Pico", **options)) == []


# --- files ---


def edit_json(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def config(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda model: edit_json(model / "config.json", edit)


def index(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda model: edit_json(model / INDEX, edit)


def settings(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda model: edit_json(model / "tokenizer_config.json", edit)


def remove(*names: str) -> Callable[[Path], None]:
    def plant(model: Path) -> None:
        for name in names:
            (model / name).unlink()

    return plant


def cut(model: Path) -> None:
    path = model / SECOND
    path.write_bytes(path.read_bytes()[:-1000])


def longer(model: Path) -> None:
    with (model / FIRST).open("ab") as file:
        file.write(bytes(64))


def pointer(model: Path) -> None:
    (model / FIRST).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4900000000\n")


def pickled(model: Path) -> None:
    for path in [*model.glob("*.safetensors"), model / INDEX]:
        path.unlink()
    (model / "pytorch_model.bin").write_bytes(b"\x80\x02.")


def two_tokens_too_many(model: Path) -> None:
    (model / "added_tokens.json").write_text(json.dumps({"<x>": 320, "<y>": 321}))


def added_twice(model: Path) -> None:
    (model / "added_tokens.json").write_text(json.dumps({"<x>": 319}))
    edit_json(
        model / "tokenizer_config.json",
        lambda found: found.update(added_tokens_decoder={"319": {"content": "<y>", "special": True}}),
    )


def not_a_tokenizer(model: Path) -> None:
    (model / "tokenizer.model").write_bytes(b"<html>not found</html>")


def a_byte_level_tokenizer(model: Path) -> None:
    """A BPE that llama.cpp knows, with a merge of tokens that are not there."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    (model / "tokenizer.model").unlink()
    tokenizer.save(str(model / "tokenizer.json"))
    (model / "merges.txt").write_text("#version: 0.2\na b\n")


def write(name: str, text: str) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        (model / name).write_text(text)

    return damage


def link_out_of_the_folder(model: Path) -> None:
    (model.parent / "secret").write_text("a key")
    try:
        (model / "chat_template.jinja").symlink_to(model.parent / "secret")
    except OSError:
        pytest.skip("this system does not let us make symbolic links")


FILES = [
    (remove("config.json"), "error: .*config.json: file is missing"),
    (
        config(lambda c: c.update(architectures=["RwkvForCausalLM"])),
        "error: .*config.json: .*is not supported",
    ),
    (config(lambda c: c.pop("architectures")), "error: .*config.json: names no architecture"),
    (config(lambda c: c.pop("rms_norm_eps")), "warning: config.json: rms_norm_eps is missing"),
    (config(lambda c: c.pop("num_experts_per_tok")), "warning: config.json: num_experts_per_tok is missing"),
    (config(lambda c: c.pop("rope_theta")), "warning: config.json: rope_theta is missing: 1000000"),
    (config(lambda c: c.update(num_local_experts=5)), "error: .*has shape"),
    (config(lambda c: c.update(num_experts_per_tok=5)), "error: .*config.json: 5 experts per token"),
    (config(lambda c: c.update(intermediate_size=128)), "error: .*has shape"),
    (config(lambda c: c.update(hidden_act="gelu")), "error: .*config.json: hidden_act"),
    (config(lambda c: c.update(num_hidden_layers=1)), "error: .*would not be read"),
    (
        config(lambda c: c.update(quantization_config={"bits": 4})),
        "error: .*config.json: has a quantization_config",
    ),
    (config(lambda c: c.update(eos_token_id=7)), "warning: config.json: eos_token_id is 7"),
    (remove(INDEX, FIRST), "error: .*Pico-4x1M-bf16: shard 1 of 2 is missing"),
    (
        index(lambda c: c["weight_map"].update({"model.norm.weight": SECOND})),
        f"warning: .*{INDEX}: says another shard for tensor 'model.norm.weight'",
    ),
    (remove(FIRST), f"error: .*{FIRST}: shard is missing"),
    (cut, f"error: .*{SECOND}: truncated"),
    (longer, f"error: .*{FIRST}: 64 bytes more than"),
    (pointer, f"error: .*{FIRST}: is a pointer of Git LFS"),
    (pickled, "error: .*only pickled weights"),
    (
        lambda model: edit_json(model / INDEX, lambda c: c["metadata"].update(total_size=1)),
        "warning: .*total_size is 1",
    ),
    (
        lambda model: edit_json(
            model / INDEX, lambda c: c["weight_map"].update({"model.norm.weight": "../x"})
        ),
        "error: .*points outside the folder",
    ),
    (remove("tokenizer.model"), "error: .*has neither tokenizer.model nor tokenizer.json"),
    (not_a_tokenizer, "error: .*tokenizer.model: is no SentencePiece model"),
    (
        two_tokens_too_many,
        "error: .*added_tokens.json: the tokenizer has 321 tokens, the embedding has 320 rows",
    ),
    (added_twice, "warning: added_tokens.json: token .*319.* is '<x>', tokenizer_config.json calls it '<y>'"),
    (settings(lambda c: c.update(chat_template=7)), "warning: .*chat_template"),
    (a_byte_level_tokenizer, "error: .*the pre-tokenizer is unknown"),
    (config(lambda c: c.update(scoring_func="noisy")), "error: .*config.json: router function 'noisy'"),
    (config(lambda c: c.update(scoring_func=["softmax"])), "error: .*config.json: router function"),
    (config(lambda c: c.update(n_group=-1)), "error: .*config.json: n_group -1"),
    (
        write("README.md", "---\na: &a [x]\nb: [*a, *a]\n---\n"),
        "warning: .*README.md: front matter: .*references",
    ),
    (
        write("README.md", "---\na: " + "[" * 9999 + "\n---\n"),
        "warning: .*README.md: front matter: .*too deeply",
    ),
    (write("generation_config.json", "[" * 99999), "warning: .*generation_config.json: .*nested too deeply"),
    (write("generation_config.json", '{"top_k": "x"}'), "warning: .*generation_config.json: top_k is no int"),
    (link_out_of_the_folder, "error: .*chat_template.jinja: is a link to .*, outside of the folder"),
]


@pytest.mark.parametrize(("plant", "said"), FILES, ids=[said.partition(": ")[2] for _, said in FILES])
def test_a_fault_of_the_files_is_named(model: Path, plant: Callable[[Path], None], said: str) -> None:
    plant(model)
    found = faults(model)
    assert any(re.match(said, one) for one in found), found
    assert all("\n" not in one and "Traceback" not in one for one in found)


def test_merges_of_tokens_that_do_not_exist(model: Path) -> None:
    a_byte_level_tokenizer(model)
    assert any("1 of 1 merges are of tokens that do not exist" in one for one in faults(model, pre="gpt-2"))


def test_a_missing_expert(model: Path) -> None:
    weights(lambda stored: stored.pop(EXPERTS.format(1, 3, "w2")))(model)
    (found,) = faults(model)
    assert "lacks tensor" in found
    assert "(expert 3 of 4)" in found


def test_all_missing_shards_are_named(tmp_path: Path) -> None:
    model = pico_mixtral(tmp_path / "Pico", n_shards=4)
    for i in (2, 4):
        (model / f"model-0000{i}-of-00004.safetensors").unlink()
    found = faults(model)
    assert len(found) == 2
    assert "00002-of-00004" in found[0]
    assert "00004-of-00004" in found[1]


def test_a_chat_model_without_a_template(pristine: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(pristine, tmp_path / "Pico-4x1M-Instruct"))
    assert any("there is no chat template" in one for one in faults(model))
    (model / "chat_template.jinja").write_text(str(named_template("zephyr")), "utf-8")
    assert faults(model) == []


# --- weights ---


def weights(edit: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    def plant(model: Path) -> None:
        stored = read_checkpoint(model)
        edit(stored)
        write_checkpoint(model, stored, json.loads((model / "config.json").read_text()), n_shards=2)

    return plant


def twins(stored: dict[str, np.ndarray]) -> None:
    for layer in range(2):
        for one in ("w1", "w2", "w3"):
            stored[EXPERTS.format(layer, 3, one)] = stored[EXPERTS.format(layer, 1, one)].copy()


def twins_in_one_layer(stored: dict[str, np.ndarray]) -> None:
    for one in ("w1", "w2", "w3"):
        stored[EXPERTS.format(1, 2, one)] = stored[EXPERTS.format(1, 0, one)].copy()


def wide(stored: dict[str, np.ndarray]) -> None:
    name = EXPERTS.format(0, 0, "w1")
    stored[name] = (stored[name].astype(np.uint32) << 16).view(np.float32)


def put(name: str, place: Any, bits: Any) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda stored: stored[name].__setitem__(place, bits)


W1, W2, W3 = (
    EXPERTS.format(layer, xid, one) for layer, xid, one in ((0, 1, "w1"), (1, 2, "w2"), (0, 3, "w3"))
)

WEIGHTS = [
    (put(W2, (0, 5), 0x7FC0), "ffn_down_exps.weight, expert 2: row 0, column 5 is not a finite number"),
    (put(W1, (95, 0), 0xFF80), "ffn_gate_exps.weight, expert 1: row 95, column 0 is not a finite number"),
    (put("model.norm.weight", 3, 0x7F80), "output_norm.weight: row 0, column 3 is not a finite number"),
    (put(W3, ..., 0), "ffn_up_exps.weight, expert 3: all zeros"),
    (put(W3, (0, 0), 0x7800), "expert 3: a weight of .* is beyond what F16"),
    (put(ROUTER, ..., 0), "blk.1.ffn_gate_inp.weight: the router is all zeros"),
    (put(ROUTER, 2, 0), "blk.1.ffn_gate_inp.weight: the router's rows of experts 2 are zero"),
    (lambda s: s[ROUTER].__setitem__(3, s[ROUTER][0]), "the router's rows of experts 0, 3 are identical"),
    (twins, "experts: experts 1, 3 are identical in all layers"),
    (twins_in_one_layer, "experts: experts 0, 2 are identical in layers 1"),
    (wide, "shards: matrices are stored in several types"),
]


@pytest.mark.parametrize(("edit", "said"), WEIGHTS, ids=[said for _, said in WEIGHTS])
def test_a_fault_of_the_weights_is_named(model: Path, edit: Callable[[Any], Any], said: str) -> None:
    weights(edit)(model)
    found = faults(model)
    assert len([one for one in found if re.search(said, one)]) == 1, found


def test_routers_may_be_finer_than_the_rest(model: Path) -> None:
    def plant(stored: dict[str, np.ndarray]) -> None:
        for name in (ROUTER, ROUTER.replace(".1.", ".0.")):
            stored[name] = (stored[name].astype(np.uint32) << 16).view(np.float32)

    weights(plant)(model)
    (found,) = [finding for finding in doctor(model) if finding.place == "shards"]
    assert found.severity == "info" and "2 F32" in found.message


def test_only_full_finds_what_lies_between_the_samples(tmp_path: Path) -> None:
    model = pico_mixtral(tmp_path / "Pico", n_ff=256)
    weights(lambda s: s[EXPERTS.format(1, 2, "w1")].__setitem__((77, 9), 0x7F80))(model)
    assert faults(model) == []
    (found,) = faults(model, full=True)
    assert "blk.1.ffn_gate_exps.weight, expert 2: row 77, column 9" in found


# --- the command ---


def invoke(*words: Any) -> Any:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_the_command_says_it_and_exits_so(model: Path, tmp_path: Path) -> None:
    done = invoke("doctor", model, "--quiet")
    assert done.exit_code == 0
    assert done.stdout.endswith("nothing is wrong\n")
    weights(twins)(model)
    done = invoke("doctor", model, "--quiet", "--json")
    assert done.exit_code == 0  # a warning
    found = json.loads(done.stdout)
    assert [one["severity"] for one in found if one["severity"] != "info"] == ["warning"]
    assert all(one.keys() == {"severity", "place", "message", "remedy"} for one in found)
    (model / SECOND).unlink()
    assert invoke("doctor", model, "--quiet").exit_code == 1
    assert invoke("doctor", tmp_path / "absent").exit_code == 1
