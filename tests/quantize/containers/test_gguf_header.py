"""The front of a GGUF file: arrays in the memory that they have in the file, limits, and keys that are copied whole."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType as Type
from gguf_files import array, raw_file, text

from gguf_export.checking.inspect import ModelFacts, inspect
from gguf_export.metadata.model_keys import assemble
from gguf_export.writing.header import header
from quantize.containers import gguf
from quantize.containers.gguf import SCALARS, read_container
from quantize.containers.keys import KeyValue, elements
from quantize.containers.untrusted import quoted
from quantize.exceptions import GGUFError
from quantize.recipes.facts import RecipeFacts
from quantize.recipes.ftypes import ftype
from quantize.recipes.layout import Plan

MIB = 2**20


def read_one(path: Path, value: bytes) -> Any:
    """The value of the only key of a file."""
    return read_container(raw_file(path, [(b"a", value)])).keys["a"]


def refusal(path: Path) -> str:
    with pytest.raises(GGUFError) as caught:
        read_container(path)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 300
    return message


@pytest.mark.parametrize("kind", [Type.UINT8, Type.BOOL, Type.INT32, Type.FLOAT32, Type.UINT64, Type.FLOAT64])
def test_an_array_takes_the_bytes_that_it_has_in_the_file(tmp_path: Path, kind: Type) -> None:
    """A list of Python's numbers takes up to 40 times as much."""
    n_bytes = 8 * MIB
    size = struct.calcsize(SCALARS[kind])
    path = raw_file(tmp_path / "x.gguf", [(b"a", array(kind, n_bytes // size, bytes(n_bytes)))])
    tracemalloc.start()
    try:
        found = read_container(path).keys["a"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == n_bytes // size and found[0] == found[len(found) - 1] == 0
    assert peak < 2 * n_bytes + MIB


@pytest.mark.parametrize("kind", sorted(SCALARS))
def test_elements_are_numbers_of_python(tmp_path: Path, kind: Type) -> None:
    values: list[Any] = [True, False] if kind == Type.BOOL else [3, 0, 5, 1]
    if kind in (Type.FLOAT32, Type.FLOAT64):
        values = [0.5, -2.0]
    layout = f"<{len(values)}{SCALARS[kind][1:]}"
    found = read_one(tmp_path / "x.gguf", array(kind, len(values), struct.pack(layout, *values)))
    assert list(found) == values and [type(one) for one in found] == [type(one) for one in values]
    assert list(elements(found) or ()) == values
    empty = read_one(tmp_path / "x.gguf", array(kind, 0, b""))
    assert list(empty) == [] and elements(empty) is not None


def test_what_is_no_bit_is_true_as_for_ggml(tmp_path: Path) -> None:
    found = read_one(tmp_path / "x.gguf", array(Type.BOOL, 4, bytes([0, 1, 2, 255])))
    assert found.tobytes() == bytes([0, 1, 1, 1])


def test_keys_are_written_as_they_were_read(tmp_path: Path) -> None:
    """Of numbers every bit, those of a NaN, too."""
    pairs = [
        (kind.name.encode(), array(kind, 3, bytes(range(1, 1 + 3 * struct.calcsize(SCALARS[kind])))))
        for kind in SCALARS
        if kind != Type.BOOL
    ]
    pairs += [
        (b"nan", array(Type.FLOAT32, 1, b"\x01\x00\xa0\x7f")),
        (b"bool", array(Type.BOOL, 3, b"\x01\x00\x01")),
        (b"none", array(Type.INT32, 0, b"")),
        (b"no texts", array(Type.STRING, 0, b"")),
        (b"texts", array(Type.STRING, 2, text(b"") + text("\u2581a".encode()))),
        (b"text", struct.pack("<i", Type.STRING) + text(b"abc")),
    ]
    container = read_container(raw_file(tmp_path / "x.gguf", pairs))
    keys = [KeyValue(key, value, *container.types[key]) for key, value in container.keys.items()]
    again = header(keys, Plan(ftype("F32"), ()))
    content = (tmp_path / "x.gguf").read_bytes()
    assert again == content + bytes(-len(content) % 32)


def test_a_layout_that_is_not_ours_is_not_copied() -> None:
    """Tensors lie at multiples of 32 here: a file that said 4096 of them was damaged from the start."""
    other = KeyValue.u32("general.alignment", 4096)
    assert not any(kv.key == other.key for kv in assemble([other], 7))
    assert KeyValue.u32("general.alignment", 32) in assemble([KeyValue.u32("general.alignment", 32)], 7)


@pytest.mark.parametrize(
    ("limit", "content", "said"),
    [
        ("MAX_KEYS", {"keys": [(b"a", b"\0\0\0\0\1"), (b"b", b"\0\0\0\0\1")]}, "has 2 keys"),
        ("MAX_TENSORS", {"keys": [], "n_tensors": 2, "infos": bytes(64)}, "has 2 tensors"),
        ("MAX_TEXTS", {"keys": [(b"a", array(Type.STRING, 2, text(b"x") * 2))]}, "has 2 texts"),
        (
            "MAX_TEXTS",
            {"keys": [(name, array(Type.STRING, 1, text(b"x"))) for name in (b"a", b"b")]},
            "has 1 texts",
        ),
    ],
)
def test_more_than_any_model_has_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, content: Any, said: str
) -> None:
    """Each of them takes far more memory than bytes of the file."""
    monkeypatch.setattr(gguf, limit, 1)
    message = refusal(raw_file(tmp_path / "x.gguf", **content))
    assert said in message and "more than any model" in message


def test_real_vocabularies_are_far_from_the_limits() -> None:
    assert gguf.MAX_TEXTS > 2 * (300_000 + 500_000) and gguf.MAX_KEYS > 10_000 and gguf.MAX_TENSORS > 100_000


def test_arrays_of_arrays_are_refused_as_by_ggml(tmp_path: Path) -> None:
    inner = struct.pack("<iQ", Type.UINT8, 0)
    path = raw_file(tmp_path / "x.gguf", [(b"a", array(Type.ARRAY, 1, inner))])
    assert "an array holds arrays" in refusal(path)


@pytest.mark.parametrize("kind", [*SCALARS, Type.STRING, Type.ARRAY])
def test_arrays_that_claim_to_be_long_are_refused_at_once(tmp_path: Path, kind: Type) -> None:
    assert "damaged" in refusal(raw_file(tmp_path / "x.gguf", [(b"a", array(kind, 2**60, bytes(100)))]))


def test_arrays_go_into_messages_and_json_as_lists(tmp_path: Path) -> None:
    found = read_one(tmp_path / "x.gguf", array(Type.INT32, 2, struct.pack("<2i", 7, -7)))
    assert quoted(found) == "[7, -7]"
    long = read_one(tmp_path / "x.gguf", array(Type.UINT8, MIB, bytes(MIB)))
    tracemalloc.start()
    try:
        assert len(quoted(long)) < 200 and len(quoted(["x"] * MIB)) < 200 and len(quoted("x" * MIB)) < 200
        assert tracemalloc.get_traced_memory()[1] < 10 * MIB
    finally:
        tracemalloc.stop()


def test_the_first_of_an_array_counts_for_recipes(tmp_path: Path) -> None:
    heads = read_one(tmp_path / "x.gguf", array(Type.INT32, 2, struct.pack("<2i", 8, 4)))
    keys = [KeyValue("llama.attention.head_count", heads, Type.ARRAY, Type.INT32)]
    assert RecipeFacts.of_keys("llama", keys).n_head == 8


def test_inspect_shows_arrays(tmp_path: Path) -> None:
    from gguf_files import remade
    from pico import pico_dense

    from gguf_export import export

    model = export(pico_dense(tmp_path / "Pico", n_layer=1), "F32", tmp_path).files[0].path
    change = [KeyValue.array("llama.x", list(range(100)), Type.UINT32)]
    facts = inspect(remade(model, tmp_path / "x.gguf", change))
    assert isinstance(facts, ModelFacts)
    assert facts.as_dict()["keys"]["llama.x"] == [*range(64), "... 100 in all"]
