"""Uploads to a stand-in of the Hub on the loopback: their order, what is sent and what is not, and their failures."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import check_one_line, invoke
from places import ROOT
from upload_server import ECHO, TOKEN, Repo, Stored, UploadHub, git_name, taking_uploads

from gguf_export import upload_release
from gguf_export.commands import exit_codes
from gguf_export.publishing import repository
from quantize.exceptions import ChecksumError, ChoiceError, GGUFError, ModelChangedError, UploadError
from quantize.telling import Progress, Remark

REPO = "somebody/Pico-GGUF"
SIZES = {
    "Pico-imatrix.gguf": 3_000,
    "Pico-Q4_K_M.gguf": 150_000,
    "Pico-Q2_K.gguf": 100_000,
    "Pico-Q8_0/Pico-Q8_0-00001-of-00002.gguf": 140_000,
    "Pico-Q8_0/Pico-Q8_0-00002-of-00002.gguf": 130_000,
    "quality.png": 5_000,
    "quality.svg": 700,
    "recipe.json": 300,
    "report/compare.html": 9_000,
    "report/empty.csv": 0,
    "README.md": 400,
}
COMMITS = [
    ["Pico-imatrix.gguf"],
    ["Pico-Q4_K_M.gguf"],
    ["Pico-Q2_K.gguf"],
    ["Pico-Q8_0/Pico-Q8_0-00001-of-00002.gguf", "Pico-Q8_0/Pico-Q8_0-00002-of-00002.gguf"],
    ["quality.png", "quality.svg", "recipe.json", "report/compare.html", "report/empty.csv"],
    ["README.md", "SHA256SUMS"],
]
ALL = sorted([*SIZES, "SHA256SUMS"])
N_LARGE = 6


def write_sums(folder: Path, names: list[str]) -> None:
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "Pico-GGUF"
    for name, size in SIZES.items():
        path = made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((name.encode() * (size // len(name) + 1))[:size])
    write_sums(made, list(SIZES))
    return made


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    # Each client loads the certificates of the world, which nobody shows here.
    monkeypatch.setattr("ssl.SSLContext.load_verify_locations", lambda *_, **__: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with taking_uploads() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


def expected(folder: Path) -> dict[str, str]:
    contents = {name: (folder / name).read_bytes() for name in ALL}
    is_large = {name: name.endswith((".gguf", ".png")) for name in ALL}
    return {
        name: hashlib.sha256(content).hexdigest() if is_large[name] else git_name(content)
        for name, content in contents.items()
    }


def check_whole(hub: UploadHub, folder: Path) -> None:
    """The repository is the folder, and no content was stored twice."""
    assert hub.content(REPO) == expected(folder)
    assert len(hub.puts) == N_LARGE and set(hub.puts.values()) == {1}
    assert not hub.leaks


def test_a_whole_upload(hub: UploadHub, folder: Path) -> None:
    moments: list[Progress] = []
    made = upload_release(folder, REPO, progress=moments.append)
    check_whole(hub, folder)
    repo = hub.repos[REPO]
    assert repo.commits == COMMITS and repo.is_private
    total = sum((folder / name).stat().st_size for name in ALL)
    assert made.sent == tuple(name for commit in COMMITS for name in commit) and made.left == ()
    assert made.bytes == total and made.url == f"{hub.endpoint}/{REPO}"
    for stage in ("hashing", "sending"):
        done = [moment.done for moment in moments if moment.stage == stage]
        assert done == sorted(done) and done[-1] == total and len(done) > N_LARGE
        assert {moment.total for moment in moments if moment.stage == stage} == {total}


def test_the_second_time_there_is_nothing_to_do(hub: UploadHub, folder: Path) -> None:
    upload_release(folder, REPO)
    n_before = len(hub.requests)
    made = upload_release(folder, REPO)
    assert made.sent == () and list(made.left) == ALL and made.bytes == 0
    assert [method for method, _ in hub.requests[n_before:]] == ["GET"] * 3
    assert hub.repos[REPO].commits == COMMITS


def test_what_is_new_is_sent_and_what_speaks_of_it(hub: UploadHub, folder: Path) -> None:
    upload_release(folder, REPO)
    (folder / "Pico-Q6_K.gguf").write_bytes(b"six" * 9_000)
    (folder / "README.md").write_bytes(b"one more")
    write_sums(folder, [*SIZES, "Pico-Q6_K.gguf"])
    made = upload_release(folder, REPO)
    assert made.sent == ("Pico-Q6_K.gguf", "README.md", "SHA256SUMS")
    assert hub.repos[REPO].commits[len(COMMITS) :] == [["Pico-Q6_K.gguf"], ["README.md", "SHA256SUMS"]]


@pytest.mark.slow
def test_an_upload_that_is_killed_50_times_ends_equal_and_sends_no_file_twice(
    folder: Path, hub: UploadHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From each of its requests on the network is gone; the same command goes on when it is back."""
    monkeypatch.setattr(repository, "PAUSES", (0.0,))
    upload_release(folder, REPO)
    n_requests = len(hub.requests)
    assert 25 < n_requests < 50
    for i in range(50):
        forget(hub)
        hub.fault = gone_from(1 + i % n_requests, ("cut", "lost", "half")[i % 3])
        with pytest.raises(UploadError, match="cannot be reached"):
            upload_release(folder, REPO)
        commits = hub.repos[REPO].commits if REPO in hub.repos else []
        assert commits == COMMITS[: len(commits)]
        hub.fault = lambda _method, _path, _n: None
        made = upload_release(folder, REPO)
        check_whole(hub, folder)
        assert hub.repos[REPO].commits == COMMITS
        assert sorted(made.sent + made.left) == ALL


def gone_from(n_first: int, kind: str) -> Callable[[str, str, int], str | None]:
    return lambda _method, _path, n: None if n < n_first else kind if n == n_first else "cut"


def forget(hub: UploadHub) -> None:
    for held in (hub.repos, hub.store, hub.puts, hub.requests):
        held.clear()


@pytest.mark.parametrize("share", [0.0, 0.15, 0.4, 0.6, 0.8, 0.99])
def test_ctrl_c(hub: UploadHub, folder: Path, share: float) -> None:
    def stop(moment: Progress) -> None:
        if moment.stage == "sending" and moment.done >= share * moment.total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upload_release(folder, REPO, progress=stop)
    upload_release(folder, REPO)
    check_whole(hub, folder)


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [("PUT", "/store/", 3), ("POST", "/commit/", 2)])
def test_a_process_that_is_killed(hub: UploadHub, folder: Path, wanted: tuple[str, str, int]) -> None:
    """The system ends it while the Hub is at work for it."""
    script = "import time; time.sleep = lambda _seconds: None\nfrom gguf_export.cli import main\nmain()"
    command = [sys.executable, "-c", script, "upload", str(folder), "--repo", REPO]
    environment = {**os.environ, "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}
    running: list[subprocess.Popen[str]] = []

    def fault(method: str, path: str, _n: int) -> str | None:
        seen = [one for one in hub.requests if one[0] == wanted[0] and wanted[1] in one[1]]
        if len(seen) == wanted[2] and wanted[1] in path and method == wanted[0]:
            running[0].send_signal(signal.SIGKILL)
            return "lost"
        return None

    hub.fault = fault
    with hub.lock:  # no request is answered before the process is known
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    running[0].communicate(timeout=60)
    assert running[0].returncode == -signal.SIGKILL
    hub.fault = lambda _method, _path, _n: None
    upload_release(folder, REPO)
    check_whole(hub, folder)
    assert hub.repos[REPO].commits == COMMITS


@pytest.mark.parametrize("fault", ["503", "500", "429", "408", "cut"])
def test_what_passes_is_waited_for(hub: UploadHub, folder: Path, fault: str) -> None:
    """Each request fails once, and the upload goes through."""
    failed: set[tuple[str, str]] = set()

    def once(method: str, path: str, _n: int) -> str | None:
        is_new = (method, path) not in failed
        failed.add((method, path))
        return fault if is_new else None

    hub.fault = once
    remarks: list[Remark] = []
    upload_release(folder, REPO, note=remarks.append)
    check_whole(hub, folder)
    assert hub.repos[REPO].commits == COMMITS
    assert all("it is tried again in" in remark.message for remark in remarks)


def test_the_hub_says_how_long_to_wait(hub: UploadHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    hub.fault = lambda _method, path, _n: "429" if path.endswith("/commit/main") else None
    for asked, least in (("60", 60.0), ("100000", 300.0)):
        waits.clear()
        hub.retry_after = asked
        with pytest.raises(UploadError, match=r"fewer requests \(status 429\).*in an hour"):
            upload_release(folder, REPO)
        assert waits == [least] * len(repository.PAUSES)


def test_a_connection_that_stalls(hub: UploadHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "TIMEOUTS", (1.0, 0.15, 1.0, 1.0))
    stalled: list[str] = []

    def fault(_method: str, path: str, n: int) -> str | None:
        if n not in (1, 5, 8, 12):
            return None
        stalled.append(path)
        return "stall"

    hub.fault = fault
    upload_release(folder, REPO)
    check_whole(hub, folder)
    assert len(stalled) == 4


def test_limits_of_waits_are_the_programs_own_afterwards(hub: UploadHub, folder: Path) -> None:
    from huggingface_hub.utils import get_session

    upload_release(folder, REPO)
    assert get_session().timeout.read is None


@pytest.mark.parametrize(
    ("status", "path", "words"),
    [
        ("401", "/api/models", "does not take the token (status 401)"),
        ("403", "/api/repos/create", "may not write there (status 403)"),
        ("403", "/commit/main", "may not write there (status 403)"),
        ("404", "/preupload/main", "no such repository (status 404)"),
        ("402", "/commit/main", "answers with status 402"),
        ("429", "/objects/batch", "fewer requests (status 429)"),
        ("500", "/store/", "the Hub's store answers with status 500"),
        ("403", "/store/", "the Hub's store answers with status 403"),
        ("503", "/tree/main", "answers with status 503"),
        ("cut", "/store/", "cannot be reached (RemoteProtocolError)"),
    ],
)
def test_a_hub_that_refuses_is_one_line_without_a_token(
    hub: UploadHub, folder: Path, status: str, path: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    hub.fault = lambda _method, asked, _n: status if path in asked else None
    with caplog.at_level(logging.DEBUG):
        done = invoke("upload", folder, "--repo", REPO)
    check_one_line(done, words, exit_codes.OUTPUT)
    assert "the same command" in done.stderr
    for text in (done.output, done.stderr, caplog.text):
        assert TOKEN not in text and TOKEN[3:] not in text
    for text in (done.output, done.stderr):
        assert "signed" not in text and "Bearer" not in text and ECHO not in text
    hub.fault = lambda _method, _path, _n: None
    upload_release(folder, REPO)
    check_whole(hub, folder)


def test_a_token_that_nobody_knows(hub: UploadHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    done = invoke("upload", folder, "--repo", REPO)
    check_one_line(done, "hf auth login", exit_codes.OUTPUT)
    assert "hf_another" not in done.output and not hub.repos


def test_without_a_token_nobody_is_asked(
    hub: UploadHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(UploadError, match=r"nobody is logged in.*hf auth login"):
        upload_release(folder, REPO)
    assert not hub.requests
    (tmp_path / "token").write_text(TOKEN, encoding="utf-8")
    upload_release(folder, REPO)
    check_whole(hub, folder)


def test_offline(hub: UploadHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    with pytest.raises(UploadError, match="HF_HUB_OFFLINE"):
        upload_release(folder, REPO)


def test_private_unless_all_may_see_it(hub: UploadHub, folder: Path) -> None:
    upload_release(folder, REPO, public=True)
    assert not hub.repos[REPO].is_private
    done = invoke("upload", folder, "--repo", REPO)
    check_one_line(done, "this repository is public", exit_codes.USAGE)
    assert "--public" in done.stderr
    assert invoke("upload", folder, "--repo", REPO, "--public").exit_code == 0


def test_nothing_gets_to_a_public_repository_unasked(hub: UploadHub, folder: Path) -> None:
    hub.repos[REPO] = Repo(is_private=False)
    with pytest.raises(ChoiceError, match="public"):
        upload_release(folder, REPO)
    assert [method for method, _ in hub.requests] == ["GET"] and not hub.store


def test_a_private_repository_stays_so(hub: UploadHub, folder: Path) -> None:
    hub.repos[REPO] = Repo(is_private=True)
    remarks: list[Remark] = []
    upload_release(folder, REPO, public=True, note=remarks.append)
    assert ["private and stays so" in remark.message for remark in remarks] == [True]
    assert hub.repos[REPO].is_private


@pytest.mark.parametrize("name", ["Pico-Q8_0/Pico-Q8_0-00002-of-00002.gguf", "README.md", "report/empty.csv"])
def test_a_file_that_is_not_what_its_sum_says_stops_everything(
    hub: UploadHub, folder: Path, name: str
) -> None:
    content = bytearray((folder / name).read_bytes() or b"x")
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    done = invoke("upload", folder, "--repo", REPO)
    check_one_line(done, "is not what SHA256SUMS says", exit_codes.FINDINGS)
    assert name in done.stderr and not hub.repos and not hub.store


def test_a_file_that_changes_meanwhile_gets_no_commit(hub: UploadHub, folder: Path) -> None:
    path = folder / "Pico-Q4_K_M.gguf"

    def change(moment: Progress) -> None:
        if moment.stage == "sending" and moment.done > SIZES["Pico-imatrix.gguf"] + 50_000:
            path.touch()

    with pytest.raises(ModelChangedError, match="changed"):
        upload_release(folder, REPO, progress=change)
    assert hub.repos[REPO].commits == COMMITS[:1]
    upload_release(folder, REPO)
    check_whole(hub, folder)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (Stored("a" * 64, SIZES["Pico-Q2_K.gguf"], True), "Pico-Q2_K.gguf has other bytes (SHA-256)"),
        (Stored("a" * 64, 5, True), "Pico-Q2_K.gguf has 5 bytes, not 100,000"),
        (Stored("a" * 40, SIZES["Pico-Q2_K.gguf"], False), "Pico-Q2_K.gguf has other bytes (SHA-256)"),
    ],
)
def test_what_arrived_is_compared(hub: UploadHub, folder: Path, told: Stored, words: str) -> None:
    hub.told["Pico-Q2_K.gguf"] = told
    check_one_line(invoke("upload", folder, "--repo", REPO), words, exit_codes.FINDINGS)
    hub.told.clear()
    upload_release(folder, REPO)
    check_whole(hub, folder)


def test_a_file_that_did_not_arrive(hub: UploadHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = repository.Repository.files
    monkeypatch.setattr(
        repository.Repository,
        "files",
        lambda self: {name: file for name, file in usual(self).items() if "Q2" not in name},
    )
    with pytest.raises(ChecksumError, match=r"Pico-Q2_K.gguf is not there"):
        upload_release(folder, REPO)


def test_nothing_is_sent_that_the_sums_do_not_name(hub: UploadHub, folder: Path) -> None:
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    (folder / ".env").write_text("mine", encoding="utf-8")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "key").write_text("mine", encoding="utf-8")
    (folder / "Pico-Q6_K.gguf.partial").write_text("half", encoding="utf-8")
    done = invoke("upload", folder, "--repo", REPO, "-q")
    assert done.exit_code == 0, done.output
    assert "Pico-Q6_K.gguf.partial', 'notes.txt': not in SHA256SUMS, not sent" in done.stderr
    assert ".env" not in done.stderr
    check_whole(hub, folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../secret", "is never sent"),
        ("/etc/hostname", "is never sent"),
        (".env", "is never sent"),
        ("report/.env", "is never sent"),
        ("a\\b", "is never sent"),
        ("Pico-Q6_K.gguf.partial", "is never sent"),
        ("absent.gguf", "file is missing"),
        ("report", "not a regular file"),
        ("link", "is a link out of the folder"),
        ("linked/secret", "is a link out of the folder"),
    ],
)
def test_sums_that_name_what_is_no_part_of_a_release(
    hub: UploadHub, folder: Path, name: str, words: str
) -> None:
    (folder.parent / "secret").write_text("mine", encoding="utf-8")
    (folder / "link").symlink_to(folder.parent / "secret")
    (folder / "linked").symlink_to(folder.parent)
    with (folder / "SHA256SUMS").open("a", encoding="utf-8") as sums:
        sums.write(f"{'a' * 64}  {name}\n")
    check_one_line(invoke("upload", folder, "--repo", REPO), words, exit_codes.FINDINGS)
    assert not hub.requests


def test_sums_as_find_and_sha256sum_write_them(hub: UploadHub, folder: Path) -> None:
    sums = folder / "SHA256SUMS"
    text = sums.read_text(encoding="utf-8").replace("  ", " *./")
    sums.write_text(text + f"{hashlib.sha256(b'').hexdigest()} *SHA256SUMS\n", encoding="utf-8")
    upload_release(folder, REPO)
    check_whole(hub, folder)


def test_a_folder_without_sums(hub: UploadHub, folder: Path) -> None:
    (folder / "SHA256SUMS").write_text("", encoding="utf-8")
    with pytest.raises(ChecksumError, match="names no file"):
        upload_release(folder, REPO)
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(GGUFError, match="holds no SHA256SUMS"):
        upload_release(folder, REPO)
    check_one_line(invoke("upload", folder / "absent", "--repo", REPO), "absent", exit_codes.INPUT)
    assert not hub.requests


@pytest.mark.parametrize("repo", ["Pico", "a/b/c", "somebody/Pico@main", "", "../x", "somebody/Pico.gguf"])
def test_names_that_are_none(hub: UploadHub, folder: Path, repo: str) -> None:
    check_one_line(invoke("upload", folder, "--repo", repo), "--repo as owner/name", exit_codes.USAGE)
    assert not hub.requests


def test_a_card_that_the_hub_refuses_is_told_before_the_work(hub: UploadHub, folder: Path) -> None:
    hub.card_faults = ['"license" must be a string']
    with pytest.raises(UploadError, match=r'README.md: the Hub refuses its front matter: "license" must be'):
        upload_release(folder, REPO)
    assert not hub.repos
    hub.card_faults, hub.card_warnings = [], ["empty or missing yaml metadata"]
    remarks: list[Remark] = []
    upload_release(folder, REPO, note=remarks.append)
    assert [remark.message for remark in remarks] == ["the Hub remarks: empty or missing yaml metadata"]
    check_whole(hub, folder)


def test_models_that_the_sums_do_not_name_stay_and_are_told(hub: UploadHub, folder: Path) -> None:
    upload_release(folder, REPO)
    hub.repos[REPO].files["Old-Q4_0.gguf"] = Stored("a" * 64, 5, True)
    remarks: list[Remark] = []
    upload_release(folder, REPO, note=remarks.append)
    assert [remark.message for remark in remarks] == [
        "also holds 'Old-Q4_0.gguf', which SHA256SUMS does not name"
    ]
    assert "Old-Q4_0.gguf" in hub.repos[REPO].files


def test_the_command(hub: UploadHub, folder: Path) -> None:
    done = invoke("upload", folder, "--repo", REPO)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{hub.endpoint}/{REPO}\n"
    assert done.stderr.splitlines()[-1].startswith("sent 12 files, ") and "sending: " in done.stderr
    done = invoke("upload", folder, "--repo", REPO)
    assert done.stderr.splitlines()[-1] == "nothing to do; 12 were there already"
    done = invoke("upload", folder, "--repo", REPO, "-q")
    assert done.stderr == "" and done.stdout == f"{hub.endpoint}/{REPO}\n"


class FakeXet:
    """Stands for the Hub's fast transfer, which puts files into the same store, and tells how far it is."""

    def __init__(self, hub: UploadHub) -> None:
        self.hub = hub

    def new_upload_commit(self, *, progress_callback: Callable[..., None] | None, **_: Any) -> FakeXet:
        self.told = progress_callback
        return self

    def __enter__(self) -> FakeXet:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start_upload_file(self, path: str, *, sha256: str) -> None:
        self.hub.store[sha256] = Path(path).read_bytes()
        self.hub.puts[sha256] += 1
        for part in (3, 1):
            if self.told is not None:
                self.told(SimpleNamespace(total_bytes_completed=len(self.hub.store[sha256]) // part), {})


def test_the_fast_transfer(hub: UploadHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: True)
    monkeypatch.setattr("huggingface_hub.utils._xet.get_xet_session", lambda: FakeXet(hub))
    moments: list[Progress] = []
    upload_release(folder, REPO, progress=moments.append)
    check_whole(hub, folder)
    assert hub.repos[REPO].commits == COMMITS
    done = [moment.done for moment in moments if moment.stage == "sending"]
    assert done == sorted(done)
    assert SIZES["Pico-imatrix.gguf"] + SIZES["Pico-Q4_K_M.gguf"] // 3 in done
