"""Names taken to pieces and put together: model ids, file names, LM Studio's folders."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from places import GOLDEN

from gguf_export.metadata.file_names import (
    find_publisher,
    lmstudio_path,
    lmstudio_root,
    model_folder,
    output_name,
    retyped,
    safe_name,
)
from gguf_export.metadata.model_id import NameParts, split_model_id, title
from quantize.containers.keys import KeyValue
from quantize.exceptions import OutputError

MODEL_IDS = json.loads((GOLDEN / "model_ids.json").read_text(encoding="utf-8"))


def general(**texts: str) -> list[KeyValue]:
    return [KeyValue.text(f"general.{key}", text) for key, text in texts.items()]


def from_id(model_id: str, size_label: str = "4x7.2B") -> list[KeyValue]:
    """The keys that matter to names, as they follow from a folder's name alone."""
    parts = split_model_id(model_id)
    found = {
        "name": title(parts.name or ""),
        "basename": parts.basename,
        "finetune": parts.finetune,
        "version": parts.version,
        "size_label": parts.size_label or size_label,
    }
    return general(**{key: text for key, text in found.items() if text})


def test_model_ids_are_split_as_by_the_converter() -> None:
    """Golden: what gguf-py (commit 0c1e5709) makes of each id and number of weights."""
    assert len(MODEL_IDS) > 300
    for model_id, n_total, name, organization, basename, finetune, version, label, titled in MODEL_IDS:
        wanted = NameParts(name, organization, basename, finetune, version, label)
        assert split_model_id(model_id, n_total) == wanted, (model_id, n_total)
        assert title(model_id) == titled


@pytest.mark.parametrize(
    ("model_id", "file"),
    [
        ("Harmony-4x7B-bf16", "Harmony-4x7B-Q4_K_M.gguf"),
        ("Harmony-4x7B", "Harmony-4x7B-Q4_K_M.gguf"),
        ("harmony-nano", "Harmony-Nano-4x7.2B-Q4_K_M.gguf"),
        ("harmony-nano-bf16", "Harmony-Nano-4x7.2B-Q4_K_M.gguf"),
        ("Tiny-Mixtral-8x1M-Instruct-v0.1", "Tiny-Mixtral-8x1M-Instruct-v0.1-Q4_K_M.gguf"),
        ("org/Mixtral-8x7B-v0.1", "Mixtral-8x7B-v0.1-Q4_K_M.gguf"),
        ("bf16", "model-4x7.2B-Q4_K_M.gguf"),
    ],
)
def test_output_name(model_id: str, file: str) -> None:
    keys = from_id(model_id)
    assert output_name(keys, "q4_k_m") == file
    assert model_folder(keys) == file.replace("Q4_K_M.gguf", "GGUF")


def test_output_name_of_nothing_and_of_something_vile() -> None:
    assert output_name([], "F16") == "model-F16.gguf"
    vile = general(name="../../etc/passwd", size_label="a/b\\c", version="\x1b[31m\u202e")
    assert output_name(vile, "F16") == "etc-passwd-a-b-c-[31m-F16.gguf"


@given(st.text())
@example("con")
@example("COM¹.x")
@example("aux .txt")
@example("..")
@example("a" * 300)
@example("é" * 300)
@example("x" * 179 + ".y")
def test_safe_name_is_one_component_everywhere(text: str) -> None:
    name = safe_name(text)
    assert name and len(name.encode("utf-8")) <= 190
    assert safe_name(name) == name
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        assert path.parts == (name,) and path.name == name and not path.is_absolute()
    assert not PureWindowsPath(name).drive
    assert (
        name.isprintable()
        and not set(name) & set('/\\:*?"<>|')
        and name[-1] not in ". "
        and name[0] not in "-."
    )
    stem = name.partition(".")[0].upper()
    assert stem not in {"CON", "PRN", "AUX", "NUL", "COM1", "COM¹", "LPT9"}


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("Harmony-4x7B", "Harmony-4x7B"),
        ("a b\tc", "a-b-c"),
        ("NUL.gguf", "model-NUL.gguf"),
        ("\u202e\0", "model"),
    ],
)
def test_safe_name(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_lmstudio_looks_two_folders_deep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert lmstudio_root() == tmp_path / ".lmstudio" / "models"
    path = lmstudio_path(lmstudio_root(), "../me", "Harmony/4x7B", "Harmony-4x7B-Q4_K_M.gguf")
    assert path.relative_to(lmstudio_root()) == Path("me", "Harmony-4x7B", "Harmony-4x7B-Q4_K_M.gguf")
    with pytest.raises(OutputError, match="name a publisher"):
        lmstudio_path(tmp_path, " ", "model", "file.gguf")


@pytest.mark.parametrize(
    ("id_", "publisher"),
    [
        ("mistralai/Mixtral-8x7B", "mistralai"),
        ("Mixtral", None),
        ("./model", None),
        ("../x", None),
        ("/x", None),
        ("~/x", None),
        ("a/b/c", None),
        ("a/", None),
        (None, None),
        (3, None),
    ],
)
def test_find_publisher(id_: object, publisher: str | None) -> None:
    assert find_publisher({"_name_or_path": id_}) == publisher
    assert find_publisher({}) is None


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("Qwen3-30B-A3B-Instruct-2507-BF16", "Qwen3-30B-A3B-Instruct-2507-Q4_K_M.gguf"),
        ("Meta-Llama-3.1-8B.f16", "Meta-Llama-3.1-8B-Q4_K_M.gguf"),
        ("Model-IQ4_XS", "Model-Q4_K_M.gguf"),
        ("Model.MXFP4_MOE", "Model-Q4_K_M.gguf"),
        ("llama-3.1", "llama-3.1-Q4_K_M.gguf"),
        ("bf16", "bf16-Q4_K_M.gguf"),
        ("-bf16", "-bf16-Q4_K_M.gguf"),
        ("a b", "a b-Q4_K_M.gguf"),
        ("", "-Q4_K_M.gguf"),
    ],
)
def test_the_name_of_another_type(stem: str, expected: str) -> None:
    assert retyped(stem, "q4_k_m") == expected
