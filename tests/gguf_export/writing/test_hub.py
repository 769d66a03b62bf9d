"""Checkpoints on the Hub, served by a stand-in on the loopback that breaks connections."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import invoke
from hub_server import COMMIT, TOKEN, Hub, serving
from pico import pico_mixtral

from calibration.text.chat_templates import folder_templates
from calibration.text.tokenizer_files import TokenizerFiles
from gguf_export import export
from quantize.containers.hub_names import HubName, hub_name
from quantize.exceptions import CheckpointError
from quantize.sources import hub_folder, ranges
from quantize.sources.checkpoint import open_checkpoint
from quantize.sources.hub import local_path
from quantize.sources.model_source import open_stored


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one model, and empty caches."""
    model = pico_mixtral(tmp_path / "served" / "Pico")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    hub_folder._known.cache_clear()
    with serving(Hub("somebody/Pico", model)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub
    hub_folder._known.cache_clear()


def check_same(hub: Hub) -> None:
    """All that is read of the hub's model is what is read of its folder."""
    remote, local = open_stored("somebody/Pico"), open_stored(hub.folder)
    assert remote.specs() == local.specs()
    assert remote.arch_keys() == local.arch_keys()
    for spec in local.specs():
        for xid in range(spec.n_matrix):
            assert np.array_equal(remote.read(spec, xid), local.read(spec, xid))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("somebody/Pico", HubName("somebody", "Pico")),
        ("somebody/Pico-4x7B.v2@main", HubName("somebody", "Pico-4x7B.v2", "main")),
        ("hf://somebody/Pico@refs/pr/1", HubName("somebody", "Pico", "refs/pr/1")),
        (Path("hf://somebody/Pico"), HubName("somebody", "Pico")),
        ("https://huggingface.co/somebody/Pico", HubName("somebody", "Pico")),
        ("Pico", None),
        ("./somebody/Pico", None),
        ("a/b/c", None),
        ("somebody/model.gguf", None),
        ("../Pico", None),
        ("/somebody/Pico", None),
    ],
)
def test_names(text: str | Path, name: HubName | None) -> None:
    assert hub_name(text) == name


def test_a_folder_of_that_name_is_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "somebody" / "Pico").mkdir(parents=True)
    assert hub_name("somebody/Pico") is None
    assert hub_name("hf://somebody/Pico") is not None


def test_weights_come_each_byte_once(hub: Hub) -> None:
    check_same(hub)
    for path in hub.folder.glob("*.safetensors"):
        assert hub.served[path.name] == path.stat().st_size
    assert not hub.leaks


def test_the_folder_takes_no_room_for_weights(hub: Hub) -> None:
    folder = local_path("somebody/Pico")
    assert folder.name == "Pico"
    for path in hub.folder.glob("*.safetensors"):
        stand_in = folder / path.name
        assert stand_in.stat().st_size == path.stat().st_size
        n_header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        assert stand_in.read_bytes()[:n_header] == path.read_bytes()[:n_header]
        assert not any(stand_in.read_bytes()[n_header:])
        assert hub.served[path.name] == n_header


def test_broken_connections_go_on_from_where_they_stood(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "TIMEOUT", 0.5)
    faults = {3: "cut", 11: "503", 14: "429", 19: "stall", 23: "500"}

    def fault(path: str, n: int) -> str | None:
        if not path.endswith(".safetensors") or not path.startswith("/store/"):
            return None
        return "cut" if n % 4 == 0 else faults.get(n)

    hub.fault = fault
    check_same(hub)
    sizes = {path.name: path.stat().st_size for path in hub.folder.glob("*.safetensors")}
    assert {name: hub.served[name] for name in sizes} == sizes
    assert sum(path.startswith("/store/") for _, path in hub.requests) > len(sizes) * 10


def test_an_address_that_expires_is_asked_for_again(hub: Hub) -> None:
    hub.fault = lambda path, n: "expired" if path.startswith("/store/model-") and n % 5 == 0 else None
    check_same(hub)


def test_an_export_that_was_stopped_goes_on(hub: Hub, tmp_path: Path) -> None:
    """What was written is not fetched again, and the bytes are those of a folder's export."""
    export(hub.folder, ["Q8_0"], file=tmp_path / "local.gguf", name="Pico")
    total = sum(path.stat().st_size for path in hub.folder.glob("*.safetensors"))
    hub.fault = lambda path, n: "503" if path.startswith("/store/model-") and n > 40 else None
    with pytest.raises(CheckpointError, match="status 503"):
        export("somebody/Pico", ["Q8_0"], file=tmp_path / "remote.gguf", name="Pico", jobs=2)
    assert not (tmp_path / "remote.gguf").exists()
    before = sum(hub.served[name] for name in hub.served if name.endswith(".safetensors"))
    hub.fault = lambda _path, _n: None
    export("somebody/Pico", ["Q8_0"], file=tmp_path / "remote.gguf", name="Pico")
    after = sum(hub.served[name] for name in hub.served if name.endswith(".safetensors"))
    assert 0.2 * total < before < 0.9 * total
    assert after < 1.15 * total  # units in work when it stopped are fetched again
    assert (tmp_path / "remote.gguf").read_bytes() == (tmp_path / "local.gguf").read_bytes()


def test_a_pickled_model_is_opened_on_a_machine_without_a_folder_for_it(hub: Hub) -> None:
    here = open_checkpoint("somebody/Pico")
    pickled = pickle.dumps(here)
    again = pickle.loads(pickled)
    assert again.path == here.path
    shutil.rmtree(here.path.parents[2])
    elsewhere = pickle.loads(pickled)
    spec = here.specs()[0]
    assert np.array_equal(elsewhere.read(spec), open_checkpoint(hub.folder).read(spec))


def test_looking_at_a_model_reads_little(hub: Hub) -> None:
    assert "Pico" in invoke("inspect", "somebody/Pico").output
    done = invoke("doctor", "hf://somebody/Pico@main")
    assert done.exit_code == 0, done.output
    total = sum(path.stat().st_size for path in hub.folder.glob("*.safetensors"))
    assert sum(hub.served[name] for name in hub.served if name.endswith(".safetensors")) < total


def test_the_command_keeps_shards_where_asked_to(hub: Hub, tmp_path: Path) -> None:
    done = invoke("export", "somebody/Pico", "-t", "Q8_0", "-o", tmp_path / "out", "--keep", "-q")
    assert done.exit_code == 0, done.output
    assert [path.name for path in (tmp_path / "out").glob("*.gguf")] == ["Pico-4x103K-Q8_0.gguf"]
    assert all(path.is_symlink() for path in local_path("somebody/Pico").iterdir())


def test_the_second_time_only_the_commit_is_asked_for(hub: Hub) -> None:
    check_same(hub)
    hub_folder._known.cache_clear()
    n_before = len(hub.requests)
    local_path("somebody/Pico")
    assert len(hub.requests) == n_before + 1


def test_further_chat_templates_are_those_of_the_folder(hub: Hub) -> None:
    (hub.folder / "chat_template.jinja").write_text("{{ messages }}")
    more = hub.folder / "additional_chat_templates"
    more.mkdir()
    for name in ("tool-use.jinja", "rag.jinja", ".hidden.jinja", "notes.txt"):
        (more / name).write_text(f"{name} {{{{ messages }}}}")
    (more / "deep").mkdir()
    (more / "deep" / "er.jinja").write_text("deeper")
    for _ in range(2):  # the second time from the cache
        folder = local_path("somebody/Pico")
        there = [path.name for path in (folder / more.name).iterdir()]
        assert sorted(there) == ["rag.jinja", "tool-use.jinja"]
        hub_folder._known.cache_clear()
    found = folder_templates(TokenizerFiles(folder))
    assert dict(found.named) == {
        name: f"{file}.jinja {{{{ messages }}}}" for name, file in (("rag", "rag"), ("tool_use", "tool-use"))
    }
    assert open_checkpoint(folder).specs()


def test_what_is_kept_is_checked_and_read_from_the_disk(hub: Hub) -> None:
    before = open_stored("somebody/Pico").fingerprint()
    folder = local_path("somebody/Pico", keep=True)
    served = dict(hub.served)
    check_same(hub)
    assert dict(hub.served) == served
    assert open_stored("somebody/Pico").fingerprint() == before  # a run that was begun goes on
    assert all(path.is_symlink() for path in folder.iterdir())


def test_what_the_cache_holds_is_not_fetched(hub: Hub) -> None:
    local_path("somebody/Pico", keep=True)
    shutil.rmtree(os.environ["XDG_CACHE_HOME"])
    hub.served.clear()
    local_path("somebody/Pico")
    assert not hub.served


def test_what_a_killed_run_left_in_the_cache_is_checked(hub: Hub) -> None:
    """A download of the right size that nobody has held against its hash."""
    folder = local_path("somebody/Pico", keep=True)
    shard = next(folder.glob("*.safetensors"))
    blob, size = shard.resolve(), shard.stat().st_size
    shutil.rmtree(os.environ["XDG_CACHE_HOME"])
    blob.write_bytes(bytes(size))
    with pytest.raises(CheckpointError, match="SHA-256"):
        local_path("somebody/Pico", keep=True)
    local_path("somebody/Pico", keep=True)
    check_same(hub)


def test_a_damaged_download_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_folder, "_sha256", lambda _path: "0" * 64)
    with pytest.raises(CheckpointError, match=r"safetensors|model: .*SHA-256"):
        local_path("somebody/Pico", keep=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("somebody/Other", "shows no such model"),
        ("somebody/Pico@nowhere", "no such revision"),
    ],
)
def test_what_is_not_there(hub: Hub, name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_stored(name)


def test_private_models_need_the_token_of_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.is_private = True
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(CheckpointError, match="hf auth login"):
        open_stored("somebody/Pico")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    check_same(hub)
    assert not hub.leaks  # the store that the Hub leads to gets no token


def test_a_hub_that_is_not_reached(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match=r"cannot be reached.*hf download somebody/Pico"):
        open_stored("somebody/Pico")


def test_a_hub_that_keeps_failing_is_one_line_without_an_address(hub: Hub) -> None:
    remote = open_stored("somebody/Pico")
    hub.fault = lambda path, _n: "503" if path.startswith("/store/") else None
    with pytest.raises(CheckpointError, match="status 503") as failure:
        remote.read(remote.specs()[0])
    assert "signed" not in failure.value.line()


def test_a_server_without_ranges(hub: Hub) -> None:
    remote = open_stored("somebody/Pico")
    hub.fault = lambda path, _n: "200" if path.startswith("/store/") else None
    with pytest.raises(CheckpointError, match="does not give parts"):
        remote.read(remote.specs()[0])


def test_a_folder_elsewhere_asks_nobody(hub: Hub, tmp_path: Path) -> None:
    """A stranger's folder with a mark beside it is a folder like any other."""
    folder = local_path("somebody/Pico")
    copied = tmp_path / "copied"
    shutil.copytree(folder.parent, copied, symlinks=False)
    n_before = len(hub.requests)
    checkpoint = open_checkpoint(copied / "Pico")
    checkpoint.read(checkpoint.specs()[0])
    assert len(hub.requests) == n_before


def test_a_model_without_safetensors(hub: Hub) -> None:
    for path in hub.folder.glob("*.safetensors"):
        path.rename(path.with_suffix(".gguf"))
    with pytest.raises(CheckpointError, match=r"no safetensors.*hf download somebody/Pico .*gguf"):
        open_stored("somebody/Pico")


def test_names_that_lead_elsewhere_are_left_out(hub: Hub) -> None:
    (hub.folder / "..\\evil.json").write_text("{}", encoding="utf-8")
    (hub.folder / "run.py").write_text("", encoding="utf-8")
    folder = local_path("somebody/Pico")
    assert {path.name for path in folder.iterdir()} == {
        path.name for path in hub.folder.iterdir() if path.suffix not in (".py",) and "\\" not in path.name
    }
    assert COMMIT in str(folder)
