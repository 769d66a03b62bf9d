"""A GGUF file as the source of an export, and options that mean the same for a checkpoint and for its GGUF."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from gguf import GGUFValueType as Type
from gguf_files import array, raw_file, remade, text
from pico import TEXT, pico_mixtral

from calibration.importance.imatrix import Entry, Imatrix
from calibration.importance.imatrix_files import save_imatrix
from gguf_export import export, plan, verify
from gguf_export.checking.left_out import in_numbers_of
from gguf_export.files import durable as durable_file
from gguf_export.writing.sink import Sink
from quantize.containers.gguf import read_container
from quantize.containers.keys import KeyValue
from quantize.exceptions import ImatrixError, OutputError, RecipeError
from quantize.sources.checkpoint import open_checkpoint
from quantize.sources.gguf_file import GGUFFile

N_LAYER = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and its BF16 file, with importances."""
    home = tmp_path_factory.mktemp("both")
    pico_mixtral(home / "Pico-4x1M", n_layer=N_LAYER, n_embd=32, n_ff=32)
    export(home / "Pico-4x1M", "COPY", file=home / "Pico-4x1M-BF16.gguf")
    entries = {
        spec.name: Entry(
            np.random.default_rng(i).random((spec.n_matrix, spec.n_per_row), np.float32) + np.float32(0.1),
            np.full(spec.n_matrix, 9, np.int64),
        )
        for i, spec in enumerate(open_checkpoint(home / "Pico-4x1M").specs())
        if spec.is_matrix and spec.bid is not None
    }
    save_imatrix(home / "imatrix.gguf", Imatrix(entries, ["text"], 1))
    (home / "text.txt").write_text(TEXT, encoding="utf-8")
    return home


@pytest.fixture
def model(folder: Path) -> Path:
    return folder / "Pico-4x1M-BF16.gguf"


def names(path: Path) -> list[str]:
    return list(read_container(path).tensors)


def test_a_copy_of_a_checkpoint_is_what_a_converter_makes(folder: Path, model: Path, tmp_path: Path) -> None:
    export(folder / "Pico-4x1M", "BF16", file=tmp_path / "bf16.gguf")
    assert model.read_bytes() == (tmp_path / "bf16.gguf").read_bytes()
    assert GGUFFile(model).keys["general.file_type"] == 32
    made = export(folder / "Pico-4x1M", ["copy", "Q8_0"], tmp_path)
    assert made.files[0].path.name.endswith("-copy.gguf")


def test_the_names_of_copies(model: Path, tmp_path: Path) -> None:
    made = export(model, ["COPY", "Q8_0"], tmp_path)
    assert [file.path.name for file in made.files] == ["Pico-4x1M-BF16-copy.gguf", "Pico-4x1M-Q8_0.gguf"]
    assert made.files[0].path.read_bytes() == model.read_bytes()
    again = export(model, "COPY", tmp_path, name="Other name")
    assert again.files[0].path.name == "Other-name-copy.gguf"
    assert GGUFFile(again.files[0].path).keys["general.name"] == "Other name"


def test_a_copy_keeps_what_no_file_type_says(model: Path, tmp_path: Path) -> None:
    """The number of a strange file type; a file that states none gets llama.cpp's guess."""
    odd = remade(model, tmp_path / "odd.gguf", [KeyValue.u32("general.file_type", 4711)])
    export(odd, "COPY", file=tmp_path / "a.gguf")
    assert GGUFFile(tmp_path / "a.gguf").keys["general.file_type"] == 4711
    silent = remade(model, tmp_path / "silent.gguf", leave_out=["general.file_type"])
    export(silent, "COPY", file=tmp_path / "b.gguf")
    assert GGUFFile(tmp_path / "b.gguf").keys["general.file_type"] == 1024 + 32


@pytest.mark.parametrize(
    "options",
    [
        {"prune_layers": [1]},
        {"prune_layers": [0, 3], "imatrix": True},
        {"prune_layers": [2], "imatrix": True, "include_weights": ["blk.3", "attn"]},
        {"imatrix": True, "exclude_weights": ["ffn_down"]},
        {"imatrix": True, "exclude_weights": ["blk"]},
        {"override_kv": ["llama.expert_count=int:8"]},
    ],
    ids=str,
)
def test_options_mean_the_same_for_a_checkpoint(
    folder: Path, model: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    given = dict(options)
    if given.get("imatrix"):
        given["imatrix"] = folder / "imatrix.gguf"
    export(folder / "Pico-4x1M", "Q4_0", file=tmp_path / "one.gguf", **given)
    export(model, "Q4_0", file=tmp_path / "two.gguf", **given)
    one, two = read_container(tmp_path / "one.gguf"), read_container(tmp_path / "two.gguf")
    assert one.tensors == two.tensors and one.keys == two.keys
    assert (tmp_path / "one.gguf").read_bytes()[-one.n_bytes + 10 :] == (tmp_path / "two.gguf").read_bytes()[
        -two.n_bytes + 10 :
    ]


def test_layers_that_are_left_out(folder: Path, model: Path, tmp_path: Path) -> None:
    """The weights of a layer keep their importances; the key that counts layers comes last, as in llama-quantize."""
    imatrix = folder / "imatrix.gguf"
    export(model, "Q4_0", file=tmp_path / "whole.gguf", imatrix=imatrix)
    export(model, "Q4_0", file=tmp_path / "part.gguf", imatrix=imatrix, prune_layers=[1, 2])
    part, whole = GGUFFile(tmp_path / "part.gguf"), GGUFFile(tmp_path / "whole.gguf")
    assert list(part.keys)[-1] == "llama.block_count" and part.keys["llama.block_count"] == 2
    assert {spec.bid for spec in part.specs()} == {None, 0, 1}
    of_part = {spec.name: part.read_blocks(spec) for spec in part.specs()}
    of_whole = {spec.name: whole.read_blocks(spec) for spec in whole.specs() if spec.bid in (None, 0, 3)}
    renamed = {name.replace("blk.3.", "blk.1."): blocks for name, blocks in of_whole.items()}
    assert of_part.keys() == renamed.keys()
    same = [name for name in of_part if of_part[name].tobytes() == renamed[name].tobytes()]
    changed = set(of_part) - set(same)  # the mix of types goes by the new numbers
    assert all(part.tensors[name].spec.qtype.name in ("Q4_1", "Q4_0") for name in changed)
    assert not changed or all("ffn_down" in name for name in changed)


def test_layers_that_the_model_does_not_have_are_remarked_on(model: Path, tmp_path: Path) -> None:
    planned = plan(model, "Q4_0", tmp_path, prune_layers=[1, 9])
    assert any("none with the number 9" in str(remark) for remark in planned.remarks)
    assert not any("not load" in str(remark) for remark in planned.remarks)


@pytest.mark.parametrize("key", ["attention.head_count", "leading_dense_block_count"])
def test_keys_that_still_tell_of_all_layers_are_remarked_on(model: Path, tmp_path: Path, key: str) -> None:
    kv = KeyValue.u32(f"llama.{key}", 2)
    if key == "attention.head_count":
        kv = KeyValue.array(f"llama.{key}", [4] * N_LAYER, Type.UINT32)
    odd = remade(model, tmp_path / "odd.gguf", [kv])
    planned = plan(odd, "Q4_0", tmp_path, prune_layers=[1])
    assert any(f"llama.{key}" in str(remark) and "will not load" in str(remark) for remark in planned.remarks)
    assert not any("will not load" in str(remark) for remark in plan(odd, "Q4_0", tmp_path).remarks)


def test_a_choice_among_importances_that_leaves_nothing(folder: Path, model: Path, tmp_path: Path) -> None:
    """The file is that which is made without importances, as llama-quantize makes it, and it is said."""
    notes: list[str] = []
    export(
        model,
        "Q4_0",
        file=tmp_path / "a.gguf",
        imatrix=folder / "imatrix.gguf",
        include_weights=["nothing"],
        note=lambda remark: notes.append(str(remark)),
    )
    export(model, "Q4_0", file=tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert any("nothing is left of the importances" in note for note in notes)


@pytest.mark.parametrize("setting", ["include_weights", "exclude_weights"])
def test_a_choice_among_importances_needs_some(model: Path, tmp_path: Path, setting: str) -> None:
    with pytest.raises(RecipeError, match=f"{setting}: means nothing without importances"):
        export(model, "Q4_0", tmp_path, **{setting: ["attn"]})  # type: ignore[arg-type]


def test_a_choice_among_importances_goes_one_way(folder: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="exclude_weights"):
        export(
            model,
            "Q4_0",
            tmp_path,
            imatrix=folder / "imatrix.gguf",
            include_weights=["a"],
            exclude_weights=["b"],
        )


def test_a_text_gives_importances_that_are_chosen_from(folder: Path, tmp_path: Path) -> None:
    """Calibrated while exporting, or before: the same bytes, but for the name of the matrix."""
    from calibration.text.text_settings import TextSettings

    settings = TextSettings((folder / "text.txt",), n_ctx=16)
    options: dict[str, Any] = {"exclude_weights": ["ffn_down", "attn_v"]}
    model = folder / "Pico-4x1M"
    made = export(
        model, "Q4_0", file=tmp_path / "a.gguf", text=settings, save_imatrix=tmp_path / "i.gguf", **options
    )
    assert made.calibration is not None and any(
        "ffn_down" in name for name in made.calibration.imatrix.entries
    )
    export(model, "Q4_0", file=tmp_path / "b.gguf", imatrix=tmp_path / "i.gguf", **options)
    one, two = GGUFFile(tmp_path / "a.gguf"), GGUFFile(tmp_path / "b.gguf")
    assert one.keys["quantize.imatrix.entries_count"] == two.keys["quantize.imatrix.entries_count"]
    for spec in one.specs():
        assert one.read_blocks(spec).tobytes() == two.read_blocks(spec).tobytes(), spec.name
    with pytest.raises(ImatrixError, match="nothing is left"):
        export(model, "Q4_0", file=tmp_path / "c.gguf", text=settings, exclude_weights=["."])


def test_a_stopped_run_goes_on_with_the_same_bytes(
    folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"imatrix": folder / "imatrix.gguf", "prune_layers": [1]}
    whole = export(model, ["Q4_0", "COPY"], tmp_path / "whole", **options)
    monkeypatch.setattr(durable_file, "SYNC_SECONDS", 0.0)
    original, seen = Sink.write, []

    def write(self: Sink, *args: Any) -> None:
        seen.append(1)
        if len(seen) > 40:
            raise KeyboardInterrupt
        original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Sink, "write", write)
        with pytest.raises(KeyboardInterrupt):
            export(model, ["Q4_0", "COPY"], tmp_path / "out", jobs=1, **options)
    assert not list((tmp_path / "out").glob("*.gguf"))
    notes: list[str] = []
    made = export(
        model,
        ["Q4_0", "COPY"],
        tmp_path / "out",
        note=lambda remark: notes.append(str(remark)),
        **options,
    )
    assert 0 < made.bytes_read < whole.bytes_read
    assert any("continued" in note for note in notes)
    for name in ("Pico-4x1M-Q4_0.gguf", "Pico-4x1M-BF16-copy.gguf"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_where_lm_studio_looks(model: Path, tmp_path: Path) -> None:
    made = export(model, "Q8_0", tmp_path, lmstudio=True, publisher="me", name="My Pico")
    assert made.files[0].path.parts[-3] == "me" and made.files[0].path.name == "My-Pico-Q8_0.gguf"
    with pytest.raises(OutputError, match="does not say who made the model"):
        export(model, "Q8_0", tmp_path, lmstudio=True)


def test_texts_that_are_no_utf_8_stay_what_they_are(model: Path, tmp_path: Path) -> None:
    """Of names, texts and tokens; they were stored with replacement characters."""
    odd = raw_file(
        tmp_path / "odd.gguf",
        [
            (b"general.architecture", text_value(b"llama")),
            (b"odd.na\xffme", text_value(b"caf\xe9 \xed\xa0\x80")),
            (b"tokenizer.ggml.tokens", array_value([b"<s>", b"\xc3", b"\xff\xfe", "\u00e9".encode()])),
        ],
    )
    made = export(odd, "COPY", file=tmp_path / "made.gguf").files[0].path
    stored = made.read_bytes()
    for name, value in (
        (b"odd.na\xffme", text_value(b"caf\xe9 \xed\xa0\x80")),
        (b"tokenizer.ggml.tokens", array_value([b"<s>", b"\xc3", b"\xff\xfe", "\u00e9".encode()])),
    ):
        assert text(name) + value in stored
    assert GGUFFile(odd).keys["odd.na\ufffdme"].startswith("caf\ufffd")
    assert [len(word) for word in GGUFFile(odd).keys["tokenizer.ggml.tokens"]] == [3, 1, 2, 1]


def text_value(content: bytes) -> bytes:
    return np.int32(Type.STRING).tobytes() + text(content)


def array_value(words: Sequence[bytes]) -> bytes:
    return array(Type.STRING, len(words), b"".join(map(text, words)))


def test_what_others_read(folder: Path, model: Path, tmp_path: Path) -> None:
    """The gguf library's reader takes a file without some layers."""
    export(model, "Q4_0", file=tmp_path / "part.gguf", prune_layers=[0])
    assert {tensor.name for tensor in GGUFReader(tmp_path / "part.gguf").tensors} == set(
        names(tmp_path / "part.gguf")
    )


@pytest.mark.parametrize("kind", ["checkpoint", "gguf"])
def test_a_file_without_some_layers_is_verified(folder: Path, model: Path, tmp_path: Path, kind: str) -> None:
    """Its layers have other numbers than those of the source; each was called the layer of another."""
    source = folder / "Pico-4x1M" if kind == "checkpoint" else model
    imatrix = folder / "imatrix.gguf"
    path = tmp_path / "part.gguf"
    export(source, "Q4_0", file=path, imatrix=imatrix, prune_layers=[1])
    assert not list(verify(path, against=source, imatrix=imatrix, prune_layers=[1], level="bytes"))
    (finding,) = verify(path, against=source, imatrix=imatrix)
    assert "has 3 layers and its source 4: it is not compared" in str(finding)
    assert finding.setting == "prune_layers"
    wrong = list(verify(path, against=source, prune_layers=[2]))
    assert any("blk.2." in str(finding) and finding.severity == "error" for finding in wrong)
    content = bytearray(path.read_bytes())
    content[-40] ^= 0x41
    path.write_bytes(bytes(content))
    (damage,) = [
        str(one) for one in verify(path, against=source, imatrix=imatrix, prune_layers=[1], level="bytes")
    ]
    assert damage.startswith("error: blk.3.")


def test_a_file_in_the_numbers_of_its_source_can_be_pickled(model: Path, tmp_path: Path) -> None:
    export(model, "Q8_0", file=tmp_path / "part.gguf", prune_layers=[0])
    shown, left_out = in_numbers_of(GGUFFile(tmp_path / "part.gguf"), GGUFFile(model), [0])
    again = pickle.loads(pickle.dumps(shown))
    assert again.tensors == shown.tensors and again.keys == shown.keys
    assert {spec.bid for spec in again.specs()} == {None, 1, 2, 3} and shown.keys[
        "llama.block_count"
    ] == N_LAYER
    assert left_out and all(name.startswith("blk.0.") for name in left_out)
