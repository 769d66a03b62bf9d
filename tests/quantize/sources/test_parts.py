"""Files that are split are read as one model: keys of the first part, tensors of all, and no part of another file."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType as Type
from gguf_files import remade
from part_cases import cut, groups_of, write_source

from quantize.containers.gguf import read_container
from quantize.containers.gguf_parts import Place, model_stem, part_path, parts_by_name
from quantize.containers.keys import KeyValue
from quantize.exceptions import GGUFError, ModelChangedError
from quantize.sources.checkpoint_files import files_of_model
from quantize.sources.gguf_file import GGUFFile
from quantize.sources.model_source import open_source
from quantize.tensors import TensorSpec

FIRST, SECOND, LAST = (f"Parts-BF16-0000{no}-of-00006.gguf" for no in (1, 2, 6))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "Parts-BF16.gguf")


@pytest.fixture(scope="module")
def pristine(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = list(read_container(source).tensors)
    return cut(source, tmp_path_factory.mktemp("parts") / "p", groups_of(names, "five")).parent


@pytest.fixture
def parts(pristine: Path, tmp_path: Path) -> Path:
    """A folder with six parts, and the file that they are, which may be changed."""
    return Path(shutil.copytree(pristine, tmp_path / "parts"))


@pytest.mark.parametrize("case", ["five", "none first"])
def test_parts_are_one_model(source: Path, tmp_path: Path, case: str) -> None:
    whole = GGUFFile(source)
    names = [spec.name for spec in whole.specs()]
    first = cut(source, tmp_path, groups_of(names, case))
    file = open_source(first)
    assert isinstance(file, GGUFFile)
    assert file.place is None
    assert len(file.parts) == len(list(tmp_path.iterdir()))
    assert list(file.specs()) == list(whole.specs())
    assert file.hparams == whole.hparams
    assert {kv.key: kv for kv in whole.key_values()}.items() <= {
        kv.key: kv for kv in file.key_values()
    }.items()
    assert file.n_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    again = pickle.loads(pickle.dumps(file))
    for spec in whole.specs():
        np.testing.assert_array_equal(file.read(spec), whole.read(spec))
        np.testing.assert_array_equal(again.read_blocks(spec), whole.read_blocks(spec))
    assert 2 * file.bytes_read == whole.bytes_read
    assert again.fingerprint() == file.fingerprint()
    file.refuse_changed()


def test_a_later_part_may_be_opened_for_itself(parts: Path) -> None:
    part = GGUFFile(parts / SECOND, any_part=True)
    assert part.place == Place(1, 6) and str(part.place) == "part 2 of 6"
    assert len(part.specs()) == 5
    assert pickle.loads(pickle.dumps(part)).place == part.place
    assert GGUFFile(parts / FIRST, any_part=True).place is None


def test_all_parts_belong_to_the_model(parts: Path) -> None:
    assert files_of_model(parts / SECOND) == sorted(parts.iterdir())
    (parts / "m-00003-of-00002.gguf").touch()
    assert files_of_model(parts / "m-00003-of-00002.gguf") == [parts / "m-00003-of-00002.gguf"]


def test_names_are_those_of_llama_cpp() -> None:
    assert part_path(Path("a/b.c"), Place(1, 3)) == Path("a/b.c-00002-of-00003.gguf")
    assert parts_by_name(Path("a/b-00002-of-00003.gguf"))[0] == Path("a/b-00001-of-00003.gguf")
    for name in ("b.gguf", "b-00002-of-00003.bin", "b-2-of-3.gguf", "b-00004-of-00003.gguf", "-of-.gguf"):
        assert parts_by_name(Path(name)) == [Path(name)]
    assert model_stem(Path("a/b.c-00002-of-00003.gguf")) == model_stem(Path("b.c.gguf")) == "b.c"


# -- parts that are missing, of another split, damaged


def keys(name: str, *change: KeyValue, leave_out: tuple[str, ...] = ()) -> Callable[[Path], None]:
    """Set keys of a part."""

    def do(folder: Path) -> None:
        remade(folder / name, folder / "changed", change, leave_out=leave_out)
        (folder / "changed").replace(folder / name)

    return do


def u16(key: str, value: int) -> KeyValue:
    return KeyValue(key, value, Type.UINT16)


def i32(key: str, value: int) -> KeyValue:
    return KeyValue(key, value, Type.INT32)


def twice(folder: Path) -> None:
    """The first part's tensors in the second, too."""
    keys = read_container(folder / SECOND)
    of_part = [KeyValue(key, value, *keys.types[key]) for key, value in keys.keys.items()]
    rest = read_container(folder / FIRST).keys.keys() - keys.keys.keys()
    remade(folder / FIRST, folder / SECOND, of_part, leave_out=rest)


def renamed(folder: Path) -> None:
    (folder / FIRST).rename(folder / "model.gguf")


FAULTS: list[tuple[Callable[[Path], Any], str]] = [
    (lambda f: (f / SECOND).unlink(), rf"{SECOND}: file is missing: part 2 of 6 of the model; all parts lie in one"),
    (lambda f: shutil.copy(f / LAST, f / SECOND), rf"{SECOND}: is part 6 of 6, not part 2 of 6, as its name says"),
    (keys(SECOND, u16("split.count", 7)), rf"{SECOND}: is part 2 of 7, not part 2 of 6"),
    (keys(SECOND, leave_out=("split.count",)), rf"{SECOND}: is a model of its own, not part 2 of 6"),
    (keys(SECOND, leave_out=("split.no",)), rf"{SECOND}: damaged: split\.no is None of split\.count 6"),
    (keys(SECOND, i32("split.tensors.count", 4)), r"is part of a model of 4 tensors, the first part of one of 30"),
    (keys(FIRST, i32("split.tensors.count", 4)), r"is part of a model of 30 tensors, the first part of one of 4"),
    (keys(FIRST, leave_out=("split.tensors.count",)), rf"{FIRST}: damaged: split\.tensors\.count is missing"),
    (keys(FIRST, u16("split.no", 6)), rf"{FIRST}: damaged: split\.no is 6 of split\.count 6"),
    (keys(FIRST, u16("split.count", 7)), r"is part 1 of 7 of a model, and its name does not end in -00001-of-00007"),
    (twice, rf"{SECOND}: tensor 'token_embd\.weight' is in {FIRST}, too"),
    (lambda f: (f / LAST).write_bytes(b"GGUF"), rf"{LAST}: truncated"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_a_fault_of_a_part_is_one_line(parts: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(parts)
    with pytest.raises(GGUFError, match=message) as caught:
        GGUFFile(parts / FIRST)
    assert "\n" not in str(caught.value)


def test_a_tensor_that_no_part_holds(parts: Path) -> None:
    path = parts / LAST
    last = list(read_container(path).tensors)[-1]
    remade(path, parts / "changed", keep=lambda name: name != last)
    (parts / "changed").replace(path)
    with pytest.raises(GGUFError, match=r"has 29 tensors in its 6 parts, split\.tensors\.count is 30"):
        GGUFFile(parts / FIRST)


def test_a_later_part_names_the_first(parts: Path) -> None:
    with pytest.raises(GGUFError, match=rf"{SECOND}: is part 2 of 6 of a model; give {FIRST}"):
        open_source(parts / SECOND)
    (parts / SECOND).rename(parts / "second.gguf")
    with pytest.raises(GGUFError, match=r"second\.gguf: is part 2 of 6 of a model; give the first part"):
        open_source(parts / "second.gguf")


def test_the_first_part_under_another_name(parts: Path) -> None:
    renamed(parts)
    with pytest.raises(
        GGUFError, match=r"model\.gguf: is part 1 of 6 of a model, and its name does not end in"
    ):
        open_source(parts / "model.gguf")


# -- parts that change


def test_a_part_that_changes_is_noticed(parts: Path) -> None:
    file = GGUFFile(parts / FIRST)
    before = file.fingerprint()
    spec = next(spec for spec in file.specs() if file.tensors[spec.name].part == 1)
    shutil.copy2(parts / SECOND, parts / "copy")
    (parts / "copy").replace(parts / SECOND)
    for look in (file.refuse_changed, file.fingerprint, lambda: file.read(spec)):
        with pytest.raises(ModelChangedError, match=rf"{SECOND}: changed while it was read"):
            look()
    assert GGUFFile(parts / FIRST).fingerprint() != before


def test_a_part_that_is_gone(parts: Path) -> None:
    file = GGUFFile(parts / FIRST)
    (parts / LAST).unlink()
    lost: TensorSpec = list(file.specs())[-1]
    with pytest.raises(GGUFError, match=rf"{LAST}: .* cannot be read: No such file"):
        file.read(lost)
    with pytest.raises(ModelChangedError, match=LAST):
        file.refuse_changed()
