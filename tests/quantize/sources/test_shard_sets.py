"""Which files of a folder are the checkpoint: one, those of an index, or a set whose names say that it is whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pico
import pytest

from gguf_export.checking.doctor import doctor
from quantize.containers.shard_index import index_shards
from quantize.exceptions import CheckpointError
from quantize.sources.checkpoint import open_checkpoint

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def shard(number: int, total: int = 3) -> str:
    return f"model-{number:05d}-of-{total:05d}.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico.pico_mixtral(tmp_path_factory.mktemp("whole") / "Pico", n_layer=1, n_expert=2, n_shards=3)


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "Pico"))


def edit_map(model: Path, edit: Callable[[dict[str, str]], Any]) -> None:
    content = json.loads((model / INDEX).read_text())
    edit(content["weight_map"])
    (model / INDEX).write_text(json.dumps(content))


def refusal(model: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(model)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 400
    assert "download it too" not in message  # an index that nobody has
    return message


def wrong(model: Path) -> list[str]:
    return [str(finding) for finding in doctor(model) if finding.severity != "info"]


# --- without an index ---


def test_a_whole_set_needs_no_index(whole: Path, model: Path) -> None:
    (model / INDEX).unlink()
    checkpoint = open_checkpoint(model)
    assert checkpoint.specs() == open_checkpoint(whole).specs() and checkpoint.remarks == ()
    assert wrong(model) == []


def test_a_set_of_one_needs_no_index(tmp_path: Path) -> None:
    model = pico.pico_dense(tmp_path / "Pico", n_layer=1)
    (model / SINGLE).rename(model / shard(1, 1))
    assert open_checkpoint(model).remarks == () and wrong(model) == []


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ([1], "shard 1 of 3 is missing"),
        ([2], "shard 2 of 3 is missing"),
        ([3], "shard 3 of 3 is missing"),
        ([1, 3], "shard 1 of 3 and 1 more is missing"),
    ],
)
def test_a_gap_is_named(model: Path, gone: list[int], said: str) -> None:
    for number in (*gone,):
        (model / shard(number)).unlink()
    (model / INDEX).unlink()
    assert said in refusal(model)
    assert any(said in finding for finding in wrong(model))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([shard(1, 10**9 - 1)], "shard 2 of 999999999 and 999999997 more"),
        ([shard(1, 2), shard(2, 2), shard(1, 1)], "are the same shard"),
        ([shard(1, 2), shard(2, 3)], "shards of several sets"),
        ([shard(1, 2), shard(2, 2), shard(3, 2)], "3 shards of a set of 2"),
        (["model-1-of-2.safetensors", shard(1, 2)], "are the same shard"),
        ([shard(0, 1)], "shard 1 of 1 is missing"),
        ([shard(1, 0)], "1 shards of a set of 0"),
    ],
)
def test_names_that_make_no_set(model: Path, names: list[str], said: str) -> None:
    for path in model.glob("model*"):
        path.unlink()
    for name in names:
        (model / name).write_bytes(b"")
    assert said in refusal(model)


def test_a_tensor_in_two_shards_names_both(model: Path) -> None:
    (model / INDEX).unlink()
    shutil.copy(model / shard(1), model / shard(2))
    message = refusal(model)
    assert shard(1) in message and shard(2) in message


def test_a_tensor_that_no_shard_holds_is_missing(model: Path) -> None:
    """Whether one lacks is said by config.json and the headers together."""
    (model / INDEX).unlink()
    tensors = pico.read_checkpoint(model)
    for number, path in enumerate(sorted(model.glob("*.safetensors"))):
        names = [name for name in sorted(tensors)[number::3] if name != "model.norm.weight"]
        pico.write_shard(path, {name: tensors[name] for name in names})
    assert "the checkpoint lacks tensor 'model.norm.weight'" in refusal(model)


def test_a_single_file_counts_before_a_set(tmp_path: Path) -> None:
    model = pico.pico_dense(tmp_path / "Pico", n_layer=1)
    for number in (1, 2):
        (model / shard(number, 2)).write_bytes(b"not read")
    (remark,) = open_checkpoint(model).remarks
    assert f"{shard(1, 2)} and 1 more are not read because there is a {SINGLE}" in str(remark)


def test_files_of_other_layouts_are_no_shards(model: Path) -> None:
    """Mistral's own layout, adapters, another framework: none of them is read, remarked, or taken for a shard."""
    (model / INDEX).unlink()
    for name in ("consolidated.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "model.pt"):
        (model / name).write_bytes(b"not read")
    assert open_checkpoint(model).remarks == ()


# --- beside an index ---


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            lambda places: places.update({"model.norm.weight": shard(1)}),
            "says another shard for tensor 'model.norm",
        ),
        (
            lambda places: places.pop("model.norm.weight"),
            "does not name tensor 'model.norm.weight' that the shards",
        ),
        (
            lambda places: places.update({"ghost.weight": shard(1)}),
            "names tensor 'ghost.weight' that no shard holds",
        ),
        (
            lambda places: places.update(dict.fromkeys(list(places)[:5], shard(3))),
            "and 4 more than the one that holds it",
        ),
        (
            lambda places: [places.pop(name) for name, shard_ in list(places.items()) if shard_ == shard(2)],
            "more that the shards hold",
        ),
    ],
)
def test_the_headers_are_the_truth(whole: Path, model: Path, edit: Callable[[Any], Any], said: str) -> None:
    edit_map(model, edit)
    checkpoint = open_checkpoint(model)
    assert checkpoint.specs() == open_checkpoint(whole).specs()
    (remark,) = checkpoint.remarks
    assert remark.place == str(model / INDEX) and said in remark.message
    (finding,) = wrong(model)
    assert finding.startswith("warning: ") and said in finding
    assert len([one for one in doctor(model) if said in str(one)]) == 1


def test_a_shard_that_the_index_does_not_name_is_left_aside(model: Path) -> None:
    (model / shard(4, 4)).write_bytes(b"not read")
    (remark,) = open_checkpoint(model).remarks
    assert str(remark) == f"{model}: {shard(4, 4)} is not read because there is a {INDEX}"
    assert wrong(model) == []


def test_a_shard_that_the_index_names_must_be_there(model: Path) -> None:
    (model / shard(2)).unlink()
    assert f"{shard(2)}: shard is missing although {INDEX} names it" in refusal(model)


def test_an_empty_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither"):
        index_shards(tmp_path)
