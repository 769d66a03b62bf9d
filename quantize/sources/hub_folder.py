"""Checkpoints of the Hugging Face Hub that are read where they are: a folder stands in for them.

In it lie links to the small files in the Hub's own cache, and for each shard that the cache does not hold a sparse file
of the shard's size with its header alone. So whoever opens the folder finds a checkpoint like any other, every size and
range is checked as usual, and nothing but weights is missing: `hub_reader` fetches them, each byte once.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock
from huggingface_hub import HfApi, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import disable_progress_bars, logging

from quantize.containers.hub_names import HubName
from quantize.containers.untrusted import CHAT_TEMPLATES, MAX_JSON_BYTES, SUFFIXES
from quantize.exceptions import CheckpointError
from quantize.sources.hub import MARK, hub_cache
from quantize.sources.ranges import AT_ONCE, TIMEOUT, HubFile, Ranges, hub_error

__all__ = ["folder_of"]

MAX_SMALL = 2**27  # bytes; larger files than any tokenizer's
SHARD = ".safetensors"
TEMPLATE = ".jinja"


def folder_of(name: HubName, *, keep: bool) -> Path:
    """The folder that stands in for a model, brought up to date; see `hub.local_path`."""
    return _filled_folder(name, *_known(name), keep)


def _filled_folder(name: HubName, commit: str, files: Sequence[HubFile], keep: bool) -> Path:
    place = hub_cache() / f"{name.owner}--{name.name}" / commit
    folder = place / name.name
    told = {"repo": name.repo, "commit": commit, "files": [asdict(file) for file in files]}
    fetcher = _Fetcher(name, commit, folder, keep)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(place / "lock"), ThreadPoolExecutor(AT_ONCE) as workers:
            for _ in workers.map(fetcher.fetch, files):
                pass
            _write(place / MARK, json.dumps(told, indent=1).encode())
    except OSError as failure:
        raise CheckpointError(
            str(place), f"cannot be written: {failure.strerror}", "set XDG_CACHE_HOME"
        ) from None
    return folder


@cache
def _known(name: HubName) -> tuple[str, tuple[HubFile, ...]]:
    """The commit and the files of a model; asked once, so that a branch that moves on is one model in all of a run."""
    info = _model_info(name)
    files = tuple(_files_of(name, info))
    if not any(file.name.endswith(SHARD) for file in files):
        ggufs = sorted(sibling.rfilename for sibling in info.siblings if sibling.rfilename.endswith(".gguf"))
        remedy = (
            f"download one of its files: hf download {name.repo} {ggufs[0]}"
            if ggufs
            else "give another model"
        )
        raise CheckpointError(str(name), "holds no safetensors files", remedy)
    return info.sha, files


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _model_info(name: HubName) -> Any:
    """What the Hub knows of a model: `sha`, the commit, and `siblings`, its files."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call] # its warnings quote addresses, which may be signed
    disable_progress_bars()
    api = HfApi(endpoint=_endpoint(), library_name="moe-gguf")
    try:
        return api.model_info(name.repo, revision=name.revision, files_metadata=True, timeout=TIMEOUT)
    except Exception as failure:  # of several libraries, with several roots
        raise hub_error(name, failure) from None


def _files_of(name: HubName, info: Any) -> Iterator[HubFile]:
    """The files of the main folder that a checkpoint may consist of, and its further chat templates."""
    for sibling in info.siblings:
        file = sibling.rfilename
        folder, _, last = file.rpartition("/")
        is_template = folder == CHAT_TEMPLATES and last.endswith(TEMPLATE)
        is_plain = "\\" not in file and file.isprintable() and not last.startswith(".")
        if not is_plain or (folder and not is_template):
            continue
        if Path(file).suffix not in SUFFIXES or sibling.size is None:
            continue
        if file.endswith(SHARD) or sibling.size <= MAX_SMALL:
            url = hf_hub_url(name.repo, file, revision=info.sha, endpoint=_endpoint())
            yield HubFile(file, url, sibling.size, sibling.lfs.sha256 if sibling.lfs else None)


class _Fetcher:
    """Puts files into the folder that stands for a model, each at once and whole."""

    def __init__(self, name: HubName, commit: str, folder: Path, keep: bool) -> None:
        self._name, self._commit, self._folder, self._keep = name, commit, folder, keep
        self._ranges = Ranges(name)

    def fetch(self, file: HubFile) -> None:
        """A link into the Hub's cache, or a shard's stand-in."""
        path = self._folder / file.name
        is_shard = file.name.endswith(SHARD)
        if path.is_symlink() and path.exists():
            return
        path.parent.mkdir(exist_ok=True)
        cached = self._cached(file)
        is_new = cached is None and (self._keep or not is_shard)
        if is_new:
            cached = self._downloaded(file)
        if cached is not None:
            if is_new or self._keep:  # a run that was killed may have left a download that nobody has checked
                self._refuse_damaged(file, cached)
            partial = _partial(path)
            partial.symlink_to(cached)
            partial.replace(path)
        elif not path.exists():
            self._stand_in(file, path)

    def _cached(self, file: HubFile) -> Path | None:
        """The file in the Hub's cache, if it is there and whole."""
        found = try_to_load_from_cache(self._name.repo, file.name, revision=self._commit)
        path = Path(found).resolve() if isinstance(found, str) else None
        return path if path is not None and path.stat().st_size == file.size else None

    def _downloaded(self, file: HubFile) -> Path:
        try:
            path = hf_hub_download(
                self._name.repo,
                file.name,
                revision=self._commit,
                endpoint=_endpoint(),
                library_name="moe-gguf",
            )
        except Exception as failure:  # of several libraries, with several roots
            raise hub_error(self._name, failure) from None
        return Path(path).resolve()

    def _refuse_damaged(self, file: HubFile, blob: Path) -> None:
        """Take a file that is not what the Hub says out of the Hub's cache, so that it is fetched again."""
        if file.sha256 is not None and _sha256(blob) != file.sha256:
            blob.unlink()
            message = "what was downloaded is not what the Hub says (SHA-256)"
            raise CheckpointError(f"{self._name}: {file.name}", message, "give the same command again")

    def _stand_in(self, file: HubFile, path: Path) -> None:
        length = bytearray(min(8, file.size))
        self._ranges.read(file, 0, memoryview(length))
        # Whether the header makes sense is seen when the folder is opened.
        n_byte = min(8 + int.from_bytes(length, "little"), 8 + MAX_JSON_BYTES, file.size)
        content = length + bytearray(n_byte - len(length))
        self._ranges.read(file, len(length), memoryview(content)[len(length) :])
        _write(path, content, file.size)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")


def _write(path: Path, content: bytes | bytearray, size: int | None = None) -> None:
    """Put a file in place at once; up to `size` bytes it holds a hole, which takes no room on the disk."""
    partial = _partial(path)
    with partial.open("wb") as file:
        file.write(content)
        if size is not None:
            file.truncate(size)
    partial.replace(path)
