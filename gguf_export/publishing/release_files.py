"""The files of a folder that are sent to the Hub: those that its SHA256SUMS names, and it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gguf_export.checking.checksums import SUMS, read_sums, sha256
from quantize.containers.gguf_parts import model_stem
from quantize.containers.untrusted import quoted, regular_size
from quantize.exceptions import ChecksumError, GGUFError
from quantize.telling import Note, Remark

__all__ = ["ReleaseFile", "git_id", "in_order", "release_files"]

MODEL = ".gguf"
LAST = ("README.md", SUMS)
"""What speaks of the other files is sent when they are there."""
FIRST_TYPE = "Q4_K_M"
"""What `llama-server -hf` takes where no type is asked for (llama.cpp: common/download.cpp)."""
READ_BYTES = 2**20


@dataclass(frozen=True)
class ReleaseFile:
    """A file to be sent: `name` in the repository, with "/" between folders; `size` in bytes, `sha256` hexadecimal."""

    name: str
    path: Path
    size: int
    sha256: str

    @property
    def is_model(self) -> bool:
        """Whether it is a GGUF file, which is sent by itself."""
        return self.name.endswith(MODEL)


def release_files(folder: Path, note: Note) -> list[ReleaseFile]:
    """The files that SHA256SUMS names, and itself; of what else lies in the folder a remark tells.

    Raises:
        GGUFError: there is no SHA256SUMS, or it cannot be read.
        ChecksumError: it names a file that is not there, or one that is never sent: a hidden or an unfinished one, or
            one outside of the folder.
    """
    sums = folder / SUMS
    if not sums.exists():
        message = f"holds no {SUMS}, which says what is sent"
        raise GGUFError(str(folder), message, f"give the folder of a release, or write {SUMS} with sha256sum")
    listed = read_sums(sums)
    listed[SUMS] = sha256(sums)
    files = []
    for spelled, digest in sorted(listed.items()):
        name = str(PurePosixPath(spelled))  # find and sha256sum write ./name
        path = _path_of(folder, name)
        files.append(ReleaseFile(name, path, regular_size(path, ChecksumError), digest))
    if len(files) == 1:
        raise ChecksumError(str(sums), "names no file", f"write {SUMS} with sha256sum")
    _tell_others(folder, {file.name for file in files}, note)
    return files


def in_order(files: Iterable[ReleaseFile]) -> list[list[ReleaseFile]]:
    """The files of each commit, in the order of the commits.

    The importance matrix, the model that is taken where none is asked for, the others by size, each with all its parts;
    then all that is small; then what promises the rest.
    """
    models: dict[str, list[ReleaseFile]] = {}
    small: list[ReleaseFile] = []
    last: list[ReleaseFile] = []
    for file in files:
        if file.is_model:
            models.setdefault(str(Path(file.name).with_name(model_stem(Path(file.name)))), []).append(file)
        else:
            (last if file.name in LAST else small).append(file)
    return [group for group in (*sorted(models.values(), key=_rank), small, last) if group]


def git_id(path: Path) -> str:
    """The name that git gives to the content of a file (SHA-1 of a header and the content), hexadecimal."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while data := file.read(READ_BYTES):
            digest.update(data)
    return digest.hexdigest()


def _rank(parts: list[ReleaseFile]) -> tuple[bool, bool, int, str]:
    name = Path(parts[0].name).name
    return "imatrix" not in name, FIRST_TYPE not in name, sum(part.size for part in parts), name


def _path_of(folder: Path, name: str) -> Path:
    path = folder / name
    is_usual = name.isprintable() and "\\" not in name and not name.startswith("/")
    is_hidden = any(part.startswith(".") for part in name.split("/"))
    if not is_usual or is_hidden or name.endswith(".partial"):
        message = f"names {quoted(name)}, and such a file is never sent"
        raise ChecksumError(str(folder / SUMS), message, "remove its line")
    try:
        if path.resolve().is_relative_to(folder.resolve()):
            return path
    except (OSError, RuntimeError):  # RuntimeError: a loop of links, before Python 3.13
        pass
    raise ChecksumError(str(path), "is a link out of the folder", "put the file itself there")


def _tell_others(folder: Path, sent: set[str], note: Note) -> None:
    others = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        name = "/".join(parts)
        if name not in sent and not any(part.startswith(".") for part in parts) and path.is_file():
            others.append(name)
    if others:
        shown = ", ".join(map(quoted, others[:4])) + (" and others" if len(others) > 4 else "")
        note(Remark(str(folder), f"{shown}: not in {SUMS}, not sent"))
