"""The texts that come with the package: what they are, that they share nothing, that an installed package has them."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from pico import pico_mixtral
from places import ROOT

from calibration.chat.dialogues import read_dialogues
from calibration.chat.named import named_template, template_names
from calibration.chat.rendering import ChatTemplate, render
from calibration.text.built_in import CALIBRATION, HELD_OUT, built_in_files, expanded, is_built_in
from calibration.text.dialogue_texts import read_text_of
from calibration.text.text_settings import TextSettings
from gguf_export.comparing.texts import TextChoice
from quantize.exceptions import TextError
from quantize.sources.checkpoint import open_checkpoint

SUMS = {  # what a name means stays: recipes of releases name these texts
    "moe-gguf-calibration-chat.jsonl": "57a20a871ae34e8a91ea92ecfa53bf8df73fa9af56416a94a2c1efc3d99828ce",
    "moe-gguf-calibration.txt": "a677e4604fe0b978909f1199a9b3b0cb77605d0ddd3e2af246bd6f6017180e13",
    "moe-gguf-held-out-chat.jsonl": "0296691d08964a42fe2986d08a50484955cd4681324bc217c8e065abd3fa0054",
    "moe-gguf-held-out-code.txt": "304add5301ceb612b41318eb42b6622762eb6eb29efde720ef1ecd1c7faa77fd",
    "moe-gguf-held-out-data.txt": "533221b5137832cd95bc156268d896ac8a8b8768e45a91887fa8c4c9affab258",
    "moe-gguf-held-out-docs.txt": "da7bad57417da647fc3d3bd90af66fce76061071460d77945a7f95a37151ce35",
    "moe-gguf-held-out-languages.txt": "e6776701bb58d90568626a9a235f7dbc0a2f0192fcac6d539283048aa19b7330",
    "moe-gguf-held-out-prose.txt": "42ab7a5120af00022876bd1550f7b1096a890a4c2859a51d84910dd133598116",
}
N_WORDS = 8  # in a row that occur in one text only


def files(name: str) -> dict[str, Path]:
    found = built_in_files(name)
    assert found is not None
    return found


def runs(paths: list[Path]) -> set[tuple[str, ...]]:
    """All runs of `N_WORDS` words."""
    found: set[tuple[str, ...]] = set()
    for path in paths:
        words = re.findall(r"\w+", path.read_text("utf-8").lower())
        found.update(zip(*(words[index:] for index in range(N_WORDS)), strict=False))
    return found


def test_the_texts_are_these() -> None:
    paths = [*files(CALIBRATION).values(), *files(HELD_OUT).values()]
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths} == SUMS
    assert list(files(CALIBRATION)) == ["mixture", "chat"]
    assert list(files(HELD_OUT)) == ["code", "data", "docs", "languages", "prose", "chat"]
    for path in paths:
        text = path.read_bytes().decode("utf-8")
        assert text.endswith("\n") and not re.search(r"[\x00-\x08\x0b-\x1f\x7f\ufffd\ufeff]", text)
        assert is_built_in(path)
    sizes = [sum(path.stat().st_size for path in files(name).values()) for name in (CALIBRATION, HELD_OUT)]
    assert 550_000 < sizes[0] < 700_000 and 180_000 < sizes[1] < 300_000


def test_calibration_and_held_out_text_share_nothing() -> None:
    assert not runs([*files(CALIBRATION).values()]) & runs([*files(HELD_OUT).values()])


def test_the_first_chunks_hold_some_of_everything() -> None:
    beginning = files(CALIBRATION)["mixture"].read_text("utf-8")[:80_000]
    for word in ("Catherine", "SQLite", "Menschenrechte", "hackers", "sqlite3_", '"text":'):
        assert word in beginning, word


@pytest.mark.slow
@pytest.mark.parametrize("name", [CALIBRATION, HELD_OUT])
def test_every_template_writes_the_dialogues(name: str) -> None:
    dialogues, _ = read_dialogues(files(name)["chat"])
    assert len(dialogues) > 20
    for template in template_names():
        made = render(ChatTemplate(str(named_template(template)), template, "<s>", "</s>"), dialogues)
        assert made.fault is None and all(isinstance(text, str) for text in made.texts), template


def test_a_model_without_a_template_reads_plain_dialogues(tmp_path: Path) -> None:
    model = open_checkpoint(pico_mixtral(tmp_path / "pico"))
    chat = files(HELD_OUT)["chat"]
    text = read_text_of(model, chat)
    assert not text.dialogues and text.text.startswith("User: The fridge")
    assert "\n\nAssistant: Empty it" in text.text
    copied = tmp_path / chat.name
    shutil.copy(chat, copied)
    with pytest.raises(TextError, match="has no chat template"):
        read_text_of(model, copied)


def test_a_name_stands_for_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(CALIBRATION).write_text("a file that is called so")
    both = (Path("own.txt"), *files(CALIBRATION).values())
    assert expanded([Path("own.txt"), Path(CALIBRATION)]) == both
    assert TextSettings((Path("own.txt"), Path(CALIBRATION))).files == both
    assert TextSettings.of(CALIBRATION).paths == both[1:]
    by_path = tmp_path / CALIBRATION
    assert expanded([by_path]) == (by_path,)
    with pytest.raises(TextError, match=r"no built-in text.*builtin:calibration"):
        TextSettings.of("builtin:calibrate")


def test_a_comparison_names_the_kinds() -> None:
    choice = TextChoice.of("own=own.txt", HELD_OUT)
    names = [text.name for text in choice.texts]
    assert names == ["own", "code", "data", "docs", "languages", "prose", "chat"]
    choice.refuse_twins()
    with pytest.raises(TextError, match=r"leave out 'mine'="):
        TextChoice.of(f"mine={HELD_OUT}")


@pytest.mark.slow
def test_an_installed_package_has_them(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", "77")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for floor in ("quantize", "calibration", "gguf_export"):
        shutil.copytree(ROOT / floor, tmp_path / floor, ignore=shutil.ignore_patterns("__pycache__"))
    building = "from setuptools.build_meta import build_wheel; build_wheel('wheels')"
    subprocess.run([sys.executable, "-c", building], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    asking = "import json, calibration.text.built_in as b; print(json.dumps([str(p) for n in (b.CALIBRATION, "
    asking += "b.HELD_OUT) for p in b.built_in_files(n).values()]))"
    done = subprocess.run(
        [sys.executable, "-c", asking], cwd=tmp_path / "installed", check=True, capture_output=True, text=True
    )
    found = [Path(path) for path in json.loads(done.stdout)]
    assert {path.name for path in found} == set(SUMS)
    assert {path.parent for path in found} == {tmp_path / "installed/calibration/texts"}
    assert (tmp_path / "installed/calibration/texts/SOURCES.md").exists()
