"""A release on the disk becomes one on the Hub; what was stopped goes on where it stood."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gguf_export.checking.checksums import SUMS, sha256
from gguf_export.publishing.release_files import MODEL, ReleaseFile, git_id, in_order, release_files
from gguf_export.publishing.repository import RemoteFile, Repository, limited_waits
from quantize.containers.hub_names import hub_name
from quantize.containers.untrusted import MAX_JSON_BYTES, quoted, read_bytes
from quantize.exceptions import ChecksumError, ChoiceError, GGUFError
from quantize.sources.fingerprint import SeenFiles
from quantize.telling import Note, OnProgress, Progress, Remark, discard, silent

__all__ = ["UploadResult", "upload_release"]


@dataclass(frozen=True)
class UploadResult:
    """What became of an upload."""

    sent: tuple[str, ...]
    """Names of the files that were sent, in their order."""
    left: tuple[str, ...]
    """Names of the files that were there already."""
    bytes: int
    """Bytes of the files that were sent."""
    url: str
    """The page of the repository."""


def upload_release(
    folder: Path | str,
    repo: str,
    *,
    public: bool = False,
    progress: OnProgress = silent,
    note: Note = discard,
) -> UploadResult:
    """Send the files of a folder that its SHA256SUMS names, and it, to a repository of models on the Hugging Face Hub.

    Only what the repository lacks is sent, after it was held against SHA256SUMS: the importance matrix, Q4_K_M, the
    other models by size, the small files, and last README.md and SHA256SUMS, a commit each. So an upload that was
    stopped goes on, and the page never promises what is not there. Afterwards the repository is compared with
    SHA256SUMS.

    Args:
        folder: of a release.
        repo: `owner/name`; it is made where there is none. The address is that in HF_ENDPOINT, else the Hub's; the
            token that of the Hub's own store, or in HF_TOKEN.
        public: make a repository that all may see, and write to one.
        progress: receives the stages "hashing" and "sending", in bytes.
        note: receives remarks.

    Raises:
        ChecksumError: a file, in the folder or at last in the repository, is not what SHA256SUMS says.
        ChoiceError: `repo` is no such name; or the repository is public, and that was not asked for.
        GGUFError: SHA256SUMS or a file cannot be read.
        ModelChangedError: a file changed while it was sent; the commit was not made.
        UploadError: the Hub refuses, or cannot be reached.

    >>> upload_release(folder, "owner/Harmony-4x7B-GGUF")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    quantize.exceptions.GGUFError: ...: holds no SHA256SUMS, which says what is sent; ...
    """
    name = hub_name(repo if ":" in repo else f"hf://{repo}")
    if name is None or name.revision is not None:
        raise ChoiceError(
            quoted(repo), "is no name of a repository", "give {setting} as owner/name", setting="repo"
        )
    files = release_files(Path(folder), note)
    seen = SeenFiles([file.path for file in files], GGUFError)
    hub = Repository(name.repo, note)
    with limited_waits():
        is_public = hub.is_public()
        _refuse_exposure(hub, is_public, public, note)
        there = {} if is_public is None else hub.files()
        left = [file for file in files if _is_held(file, there.get(file.name))]
        lacking = [file for file in files if file not in left]
        _hold_against_sums(lacking, progress)
        left += [file for file in lacking if _is_equal(file, there.get(file.name))]
        lacking = [file for file in lacking if file not in left]
        for file in lacking:
            if file.name == "README.md":
                hub.check_card(_text(file.path))
        if is_public is None:
            hub.create(public)
        _send(hub, lacking, sum(file.size for file in left), progress, seen)
        _look_again(hub, files, note)
    sent = [file for group in in_order(lacking) for file in group]
    return UploadResult(
        tuple(file.name for file in sent),
        tuple(file.name for file in files if file in left),
        sum(file.size for file in sent),
        hub.url,
    )


def _refuse_exposure(hub: Repository, is_public: bool | None, public: bool, note: Note) -> None:
    """What was not meant for all must not get to a repository that all see; nothing takes that back."""
    if is_public and not public:
        remedy = "if all may see what is sent, give {setting}; else give another name"
        raise ChoiceError(hub.name, "this repository is public", remedy, setting="public")
    if is_public is False and public:
        note(Remark(hub.name, "this repository is private and stays so", "open it in its settings"))


def _is_held(file: ReleaseFile, remote: RemoteFile | None) -> bool:
    """Whether the repository has the file that SHA256SUMS names, so that the one in the folder need not be read."""
    return remote is not None and remote.size == file.size and remote.sha256 == file.sha256


def _is_equal(file: ReleaseFile, remote: RemoteFile | None) -> bool:
    """Whether the repository has the file; one in the folder is read where the Hub tells git's name of it alone."""
    if remote is None or remote.sha256 is not None or remote.size != file.size:
        return _is_held(file, remote)
    return remote.git_id == git_id(file.path)


def _hold_against_sums(files: list[ReleaseFile], progress: OnProgress) -> None:
    done, total = 0, sum(file.size for file in files)
    for file in files:
        tell = _counter(progress, "hashing", done, total)
        digest = sha256(file.path, _done_of(tell))
        if digest != file.sha256:
            message = f"is not what {SUMS} says: SHA-256 {digest}, not {file.sha256}"
            remedy = f"nothing is sent: make it again; or, if it was made anew, its line in {SUMS}"
            raise ChecksumError(str(file.path), message, remedy)
        done += file.size


def _send(
    hub: Repository, files: list[ReleaseFile], before: int, progress: OnProgress, seen: SeenFiles
) -> None:
    done, total = before, before + sum(file.size for file in files)
    for group in in_order(files):
        tell = _counter(progress, "sending", done, total)
        tell(0)
        hub.send(group, tell, seen.refuse_changed)
        size = sum(file.size for file in group)
        tell(size)
        done += size


def _counter(progress: OnProgress, stage: str, before: int, total: int) -> Callable[[int], None]:
    """Takes the bytes that are done of a part of a stage, `before` which others were done; tells those of the whole."""
    return lambda done: progress(Progress(stage, before + done, total))


def _done_of(tell: Callable[[int], None]) -> OnProgress:
    return lambda moment: tell(moment.done)


def _look_again(hub: Repository, files: list[ReleaseFile], note: Note) -> None:
    there = hub.files()
    found = {file.name: _fault(file, there.get(file.name)) for file in files}
    faults = [f"{name} {fault}" for name, fault in found.items() if fault]
    if faults:
        shown = "; ".join(faults[:3]) + (f"; {len(faults) - 3} more" if len(faults) > 3 else "")
        message = f"the repository is not what {SUMS} says: {shown}"
        raise ChecksumError(hub.name, message, "give the same command again: it sends what differs")
    names = {file.name for file in files}
    others = sorted(name for name in there if name.endswith(MODEL) and name not in names)
    if others:
        shown = ", ".join(map(quoted, others[:4])) + (" and others" if len(others) > 4 else "")
        note(Remark(hub.name, f"also holds {shown}, which {SUMS} does not name"))


def _fault(file: ReleaseFile, remote: RemoteFile | None) -> str:
    if remote is None:
        return "is not there"
    if remote.size != file.size:
        return f"has {remote.size:,} bytes, not {file.size:,}"
    return "" if _is_equal(file, remote) else "has other bytes (SHA-256)"


def _text(path: Path) -> str:
    content = read_bytes(path, MAX_JSON_BYTES, GGUFError)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise GGUFError(str(path), "cannot be read as text (UTF-8)", "write it again") from None
