"""SHA256SUMS of a release: written last, for all files but itself, and by which a release is known to stand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gguf_export.checking.checksums import SUMS, sha256
from gguf_export.files.opening import status_of
from gguf_export.files.replacing import write_text
from quantize.containers.untrusted import read_bytes
from quantize.exceptions import GGUFError, MoeGgufError

__all__ = ["stands", "write_sums"]

MAX_BYTES = 2**24


def write_sums(folder: Path, names: list[str], known: Mapping[str, str]) -> None:
    """Write SHA256SUMS.

    Args:
        folder: of the release.
        names: of the files, with / between folders.
        known: the sums of those that were hashed before.

    Raises:
        GGUFError: a file cannot be read.
        OutputError: the disk is full or broken.
    """
    lines = [f"{known.get(name) or sha256(folder / name)}  {name}\n" for name in sorted(names)]
    write_text(folder / SUMS, "".join(lines))


def stands(folder: Path, n_bytes: Mapping[str, int]) -> bool:
    """Whether all files are those that SHA256SUMS was written for.

    GGUF files are known by their sizes and by being no newer than SHA256SUMS, the others by their sums.

    Args:
        folder: of the release.
        n_bytes: the sizes of the GGUF files in bytes, by name.
    """
    sums = status_of(folder / SUMS)
    if sums is None:
        return False
    try:
        lines = read_bytes(folder / SUMS, MAX_BYTES, GGUFError).decode("utf-8").splitlines()
        listed = {line[66:]: line[:64] for line in lines}
        if not set(n_bytes) <= set(listed):
            return False
        for name, digest in listed.items():
            status = status_of(folder / name)
            if status is None or (name not in n_bytes and sha256(folder / name) != digest):
                return False
            if name in n_bytes and (status.st_size != n_bytes[name] or status.st_mtime_ns > sums.st_mtime_ns):
                return False
    except (MoeGgufError, UnicodeDecodeError):
        return False
    return True
