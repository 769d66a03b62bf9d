"""A release of a tiny checkpoint: what lies in the folder, what a second call does, what stops it."""

from __future__ import annotations

import getpass
import hashlib
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import TEXT, check_one_line, invoke
from hub_server import Hub, serving
from huggingface_hub import ModelCard
from no_llama import leave_out_llama_cpp
from pico import pico_mixtral
from upload_server import TOKEN, taking_uploads

from gguf_export.commands.exit_codes import FINDINGS, INPUT, USAGE
from gguf_export.comparing import run
from gguf_export.files import disk
from gguf_export.publishing import upload
from gguf_export.publishing.upload import UploadResult
from gguf_export.releasing import expert_errors, steps
from gguf_export.releasing.estimate import Estimate
from gguf_export.releasing.record import WORKING
from gguf_export.releasing.release import plan_release
from gguf_export.releasing.settings import ReleaseSettings
from quantize.sources import hub_folder

REPO = "somebody/Pico-GGUF"
TYPES = ["-t", "Q8_0", "-t", "Q4_K_M"]
BUNDLE = {
    *("README.md", "SHA256SUMS", "recipe.json", "model.yaml", "Modelfile", "params"),
    *("quality.svg", "quality.png", "Pico-4x1M-imatrix.gguf"),
    "report/errors.html",
    *(f"report/compare.{suffix}" for suffix in ("html", "json", "csv", "md")),
}


@pytest.fixture(scope="module", autouse=True)
def passed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        leave_out_llama_cpp(patch)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint and texts."""
    place = tmp_path_factory.mktemp("secret-place")
    model = pico_mixtral(place / "Pico-4x1M-bf16")
    (model / "generation_config.json").write_text('{"temperature": 0.7, "top_k": 40, "top_p": 0.9}')
    (model / "mergekit_moe_config.yml").write_text(
        yaml.safe_dump({"experts": [{"source_model": f"/home/somebody/donor-{n}"} for n in "abcd"]})
    )
    (place / "calibration.txt").write_text(TEXT * 3)
    (place / "held-out.txt").write_text(TEXT[300:] * 3)
    return place


def words(place: Path, *more: Any, types: list[str] = TYPES) -> list[Any]:
    return [
        *("release", place / "Pico-4x1M-bf16", "--repo", REPO, *types, "--license", "mit"),
        *("--text", place / "calibration.txt", "--judge", place / "held-out.txt"),
        *("--chat-template", "none", "--quiet", *more),
    ]


@pytest.fixture(scope="module")
def made(place: Path) -> Path:
    """The folder of a release."""
    folder = place / "out"
    done = invoke(*words(place, "-o", folder))
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy, whose files are as old as those of the release."""
    return Path(shutil.copytree(made, tmp_path / "Pico-GGUF"))


def files_of(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def test_the_folder_holds_what_is_published(made: Path) -> None:
    ggufs = {f"Pico-4x1M-{ftype}.gguf" for ftype in ("Q8_0", "Q4_K_M")}
    assert set(files_of(made)) == BUNDLE | ggufs


def test_the_card_is_one_of_the_hub(made: Path) -> None:
    card = ModelCard.load(made / "README.md")
    assert card.data.to_dict() == {
        "library_name": "gguf",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "quantized_by": "somebody",
        "tags": ["gguf", "imatrix", "moe", "mixtral", "mergekit"],
    }
    headings = [line for line in card.text.splitlines() if line.startswith("## ")]
    assert [heading[3:8] for heading in headings] == [
        *("Which", "Files", "How i", "Promp", "How t", "Exper", "How t", "How t", "Licen")
    ]
    assert "resolve/main/Pico-4x1M-Q4_K_M.gguf) |" in card.text
    assert "| 0 | donor-a |" in card.text and "quality.svg" in card.text
    assert "output error as Q4_K_M" in card.text and "report/errors.html" in card.text
    assert f"llama-server -hf {REPO}:Q4_K_M" in card.text


def test_sums_are_those_of_all_files(made: Path) -> None:
    lines = (made / "SHA256SUMS").read_text().splitlines()
    listed = {line[66:]: line[:64] for line in lines}
    found = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files_of(made).items()}
    del found["SHA256SUMS"]
    assert listed == found


def test_nothing_tells_of_this_machine(made: Path, place: Path) -> None:
    strangers = [str(place), place.name, f"{Path.home()}/", "/home/somebody", f"/{getpass.getuser()}/"]
    if len(socket.gethostname()) > 6:  # shorter ones are found in any weights
        strangers.append(socket.gethostname())
    for name, path in files_of(made).items():
        content = path.read_bytes()
        assert not [word for word in strangers if word.encode() in content], name


def test_companions_hold_what_generation_config_says(made: Path) -> None:
    told = yaml.safe_load((made / "model.yaml").read_text())
    assert told["base"][0]["sources"] == [{"type": "huggingface", "user": "somebody", "repo": "Pico-GGUF"}]
    fields = {field["key"]: field["value"] for field in told["config"]["operation"]["fields"]}
    assert fields["llm.prediction.temperature"] == 0.7
    assert fields["llm.prediction.topPSampling"] == {"checked": True, "value": 0.9}
    lines = (made / "Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./Pico-4x1M-Q4_K_M.gguf" and "PARAMETER temperature 0.7" in lines
    assert json.loads((made / "params").read_text()) == {"temperature": 0.7, "top_k": 40, "top_p": 0.9}


def test_a_second_call_has_nothing_to_do(place: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: path.stat().st_mtime_ns for name, path in files_of(made).items()}
    done = invoke(*(word for word in words(place, "-o", made) if word != "--quiet"))
    assert done.exit_code == 0 and "nothing to do" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("--upload")
    assert {name: path.stat().st_mtime_ns for name, path in files_of(made).items()} == before


@pytest.mark.parametrize("change", ["another card", "a longer file", "a lost plot"])
def test_what_changed_is_made_anew(place: Path, folder: Path, change: str) -> None:
    card = (folder / "README.md").read_bytes()
    if change == "another card":
        (folder / "README.md").write_text("mine")
    elif change == "a lost plot":
        (folder / "quality.png").unlink()
    else:
        (folder / "Pico-4x1M-Q8_0.gguf").unlink()
    done = invoke(*words(place, "-o", folder))
    assert done.exit_code == 0, done.output
    assert (folder / "README.md").read_bytes() == card
    assert (folder / "quality.png").exists() and (folder / "Pico-4x1M-Q8_0.gguf").exists()


@pytest.mark.slow
def test_one_more_type_later_renews_all(place: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    compare = run.compare

    def counted(models: Any, *args: Any, **settings: Any) -> Any:
        measured.append(len(models.paths) - 1)
        return compare(models, *args, **settings)

    monkeypatch.setattr(steps, "compare", counted)
    before = (folder / "Pico-4x1M-Q8_0.gguf").stat().st_mtime_ns
    done = invoke(*words(place, "-o", folder, types=["-t", "Q2_K"]))
    assert done.exit_code == 0, done.output
    assert (folder / "Pico-4x1M-Q8_0.gguf").stat().st_mtime_ns == before
    assert measured == [1]  # the others' figures still hold
    card = (folder / "README.md").read_text()
    assert all(f"[{ftype}](" in card for ftype in ("Q8_0", "Q4_K_M", "Q2_K"))
    assert "Pico-4x1M-Q2_K.gguf" in (folder / "SHA256SUMS").read_text()
    labels = [model["label"] for model in json.loads((folder / "report/compare.json").read_text())["models"]]
    assert labels == ["Q8_0", "Q4_K_M", "Q2_K"]


@pytest.mark.slow
def test_a_release_that_was_stopped_goes_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(steps, "compare", lambda *args, **settings: (_ for _ in ()).throw(KeyboardInterrupt))
        assert invoke(*words(place, "-o", folder)).exit_code == 130
    assert (folder / WORKING).exists() and not (folder / "README.md").exists()
    monkeypatch.setattr(steps, "verify", None)  # which is done
    with monkeypatch.context() as patch:
        patch.setattr(steps, "smoke_test", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        assert invoke(*words(place, "-o", folder)).exit_code == 130
    monkeypatch.setattr(steps, "compare", None)
    monkeypatch.setattr(expert_errors, "errors", None)
    done = invoke(*words(place, "-o", folder))
    assert done.exit_code == 0, done.output
    assert (folder / "SHA256SUMS").exists() and not (folder / WORKING).exists()


def test_the_recipe_makes_the_same_bytes_elsewhere(place: Path, made: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(place / "Pico-4x1M-bf16", tmp_path / "model"))
    done = invoke("release", model, "--from", made / "recipe.json", "-o", tmp_path / "again", "--quiet")
    assert done.exit_code == 0, done.output
    for name in ("Pico-4x1M-Q8_0.gguf", "Pico-4x1M-Q4_K_M.gguf", "Pico-4x1M-imatrix.gguf"):
        assert (tmp_path / "again" / name).read_bytes() == (made / name).read_bytes()


def test_the_recipe_is_of_one_checkpoint(made: Path, tmp_path: Path) -> None:
    other = pico_mixtral(tmp_path / "other", seed=1)
    done = invoke("release", other, "--from", made / "recipe.json", "-o", tmp_path / "again")
    check_one_line(done, "is not that of the recipe", USAGE)


def test_a_dry_run_writes_nothing(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = invoke(*words(place, "-o", tmp_path / "out", "--dry-run"))
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "out").exists()
    for told in ("Pico-4x1M-Q8_0.gguf", "free on the disk", "24 GiB", "quantized_by: somebody"):
        assert told in done.stdout
    assert "an estimate by rules of thumb: smoke test" in done.stdout or "all short" in done.stdout
    assert "too little room" not in done.stderr
    monkeypatch.setattr(disk, "free_bytes", lambda _: 1000)
    done = invoke(*words(place, "-o", tmp_path / "out", "--dry-run"))
    assert "the disk has too little room: 1000 B are free" in done.stderr


def test_what_a_release_needs_grows_with_its_texts_and_types(place: Path, made: Path, tmp_path: Path) -> None:
    texts: dict[str, Any] = {"texts": (place / "calibration.txt",), "judges": (str(place / "held-out.txt"),)}

    def told(folder: Path, types: tuple[str, ...], n: int) -> Estimate:
        settings = ReleaseSettings(
            place / "Pico-4x1M-bf16", types, folder, n_chunk=n, n_judge_chunk=n, license="mit", **texts
        )
        return plan_release(settings).estimate

    one, more = told(tmp_path, ("Q8_0",), 1), told(tmp_path, ("Q8_0", "Q4_K_M"), 2)
    assert one.state < more.state and 0 < one.files < more.files
    assert one.total is not None and one.total > 0
    assert [name for name, _ in one.seconds] == [
        *("calibrating", "encoding", "verifying", "comparing", "errors", "smoke test")
    ]
    assert told(made, ("Q8_0", "Q4_K_M"), 1).files == 0  # they are there


def without(words: list[Any], name: str) -> list[Any]:
    index = words.index(name)
    return words[:index] + words[index + 2 :]


def test_what_is_missing_is_said_before_the_work(place: Path, tmp_path: Path) -> None:
    given = words(place, "-o", tmp_path / "out")
    check_one_line(invoke(*without(given, "--license")), "--license", USAGE)
    check_one_line(invoke(*without(given, "--chat-template")), "--chat-template none", INPUT)
    same = [*without(given, "--judge"), "--judge", place / "calibration.txt"]
    check_one_line(invoke(*same), "is the calibration text, too", INPUT)
    check_one_line(invoke(*given, "--base-model", "somebody"), "--base-model owner/name", USAGE)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_read_is_not_written_into(place: Path) -> None:
    done = invoke(*words(place, "-o", place / "Pico-4x1M-bf16"))
    check_one_line(done, "choose another folder")


@pytest.mark.slow
def test_a_file_that_cannot_write_stops_the_upload(
    place: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "smoke_test", lambda path: "failed: no token was generated")
    monkeypatch.setattr(upload, "upload_release", None)
    (folder / "Pico-4x1M-Q8_0.gguf").unlink()
    done = invoke(*words(place, "-o", folder, "--upload"))
    assert done.exit_code == FINDINGS
    assert "Q8_0: smoke test failed: no token was generated" in done.stderr
    assert "Q8_0 failed in llama.cpp" in (folder / "README.md").read_text()
    monkeypatch.setattr(steps, "smoke_test", lambda path: "passed")
    assert invoke(*words(place, "-o", folder)).exit_code == 0  # it is tried again


def test_a_whole_folder_is_published(place: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    def uploading(folder: Path, repo: str, *, public: bool, progress: object, note: object) -> UploadResult:
        sent.append((folder, repo, public))
        return UploadResult(("README.md",), (), 1, f"https://hub/{repo}")

    monkeypatch.setattr(upload, "upload_release", uploading)
    done = invoke(*words(place, "-o", made, "--upload", "--public"))
    assert done.exit_code == 0, done.output
    assert sent == [(made, REPO, True)]


def test_the_hub_takes_a_release_whole(place: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with taking_uploads() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        done = invoke(*words(place, "-o", made, "--upload"))
        assert done.exit_code == 0, done.output
        repo = hub.repos[REPO]
    assert repo.is_private and set(repo.files) - {".gitattributes"} == set(files_of(made))
    assert set(repo.commits[-1]) == {"README.md", "SHA256SUMS"}


@pytest.mark.slow
def test_a_model_of_the_hub_is_the_base_of_its_release(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    folder = tmp_path / "out"
    given = words(place, "-o", folder)
    given[1] = "somebody/Pico-4x1M-bf16"
    hub_folder._known.cache_clear()
    with serving(Hub(given[1], place / "Pico-4x1M-bf16")) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        done = invoke(*given)
        assert done.exit_code == 0, done.output
    hub_folder._known.cache_clear()
    data = ModelCard.load(folder / "README.md").data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == (given[1], "quantized")
    shards = json.loads((folder / "recipe.json").read_text())["model"]["shards"]
    assert shards == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (place / "Pico-4x1M-bf16").glob("*.safetensors")
    }
    assert str(tmp_path).encode() not in (folder / "report/compare.html").read_bytes()
