"""Compiled kernels on the disk: numba's cache, in files that are believed only where their checksums confirm them.

numba believes what it finds. A power cut leaves files that are empty, cut short or full of zeros, of which LLVM aborts
the process, beyond any `except`; and two processes that begin with an empty cache may write each other's code under one
name. Here each file holds one kernel for one signature, together with what it is of, and its checksum.

The attributes by which this takes the place of numba's own files are private to numba: should they be gone one day,
only this precaution goes with them.
"""

from __future__ import annotations

import contextlib
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import numba
from numba.core.runtime.nrt import rtsys

from quantize.telling import Remark, RemarkWarning

__all__ = ["NotKept", "check_cache", "is_kept", "loading_only"]

N_DIGEST = 32  # bytes of SHA-256, in front of what it is of

_asking = threading.local()

_complained: set[Path] = set()  # folders of which a process has said that something is wrong


class NotKept(Exception):  # noqa: N818 - no fault
    """A kernel is not in the cache."""


@contextlib.contextmanager
def loading_only() -> Iterator[None]:
    """Within the block, this thread compiles nothing that can be kept: it raises `NotKept`."""
    _asking.is_on = True
    try:
        yield
    finally:
        _asking.is_on = False


def is_kept(compiled: Any) -> bool:
    """Whether a dispatcher keeps its code in checked files, where other processes find it."""
    return isinstance(getattr(compiled, "_cache", None), _Forgiving)


def check_cache(compiled: Any, stamp: str, kind: int = 0) -> None:
    """Let a dispatcher, whose caching is enabled, keep its code in checked files.

    Args:
        compiled: what `numba.njit` returned.
        stamp: changes with everything that is compiled into the kernel beside its own file.
        kind: tells apart ways of compiling it, each of which keeps its own files.
    """
    file: Any = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if all(hasattr(file, name) for name in ("_index_path", "_source_stamp", "_dump")):
        base = Path(file._index_path).with_suffix("")
        compiled._cache._cache_file = _CheckedFiles(
            base, (numba.__version__, file._source_stamp, stamp), file._dump, kind
        )
        compiled._cache = _Forgiving(compiled._cache, base.parent)


class _Forgiving:
    """numba's cache of one kernel; what cannot be read or written is compiled, and no kernel is lost for it."""

    def __init__(self, cache: Any, folder: Path) -> None:
        self._cache, self._folder = cache, folder

    def load_overload(self, sig: Any, context: Any) -> Any:
        """The compiled kernel, None where there is none that can be used; see `loading_only`."""
        found = None
        try:
            found = self._load(sig, context)
        except Exception as error:  # of any kind, as it is with pickles
            self._complain("cannot be used", error)
        if found is None and getattr(_asking, "is_on", False):
            raise NotKept
        return found

    def _load(self, sig: Any, context: Any) -> Any:
        """As numba's own, without importing first what only compiling needs: 0.2 seconds, and scipy where it is.

        Whatever is compiled afterwards has the same imported (`numba.core.compiler.CompilerBase`).
        """
        if not hasattr(self._cache, "_load_overload"):
            return self._cache.load_overload(sig, context)
        rtsys.initialize(context)  # the functions of numba's runtime, by which compiled code takes memory
        return self._cache._load_overload(sig, context)

    def save_overload(self, sig: Any, compiled: Any) -> None:
        """Keep a compiled kernel, where that is possible."""
        try:
            self._cache.save_overload(sig, compiled)
        except OSError as error:
            self._complain("cannot be written", error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def _complain(self, fault: str, error: Exception) -> None:
        if self._folder in _complained:
            return
        _complained.add(self._folder)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        message = f"compiled kernels that are kept there {fault} ({reason or type(error).__name__})"
        remark = Remark(str(self._folder), f"{message}: they are compiled anew")
        warnings.warn(RemarkWarning(remark), stacklevel=2)


class _CheckedFiles:
    """The files of one kernel, one for each signature; in the place of numba's `IndexDataCacheFile`."""

    def __init__(self, base: Path, stamp: tuple[Any, ...], dump: Callable[[Any], bytes], kind: int) -> None:
        self._base, self._stamp, self._dump, self._kind = base, stamp, dump, kind

    def load(self, key: Any) -> Any:
        """The compiled code for a signature, None where there is none, or it is of other sources.

        Raises:
            ValueError: the file is damaged.
            OSError: it cannot be read.
        """
        path = self._path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        kept = content[N_DIGEST:]
        if sha256(kept).digest() != content[:N_DIGEST]:
            raise ValueError(f"{path.name} is damaged")
        stamp, inner = pickle.loads(kept)  # what another version of numba has pickled stays packed
        if stamp != self._stamp:
            return None
        kept_key, data = pickle.loads(inner)
        return data if kept_key == key else None

    def save(self, key: Any, data: Any) -> None:
        """Write the compiled code for a signature; other processes see all of it or nothing.

        Raises:
            OSError: it cannot be written.
        """
        kept = pickle.dumps((self._stamp, self._dump((key, data))))
        path = self._path(key)
        partial = path.with_name(f"{path.name}.tmp.{uuid4().hex[:16]}")
        try:
            partial.write_bytes(sha256(kept).digest() + kept)
            partial.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise

    def flush(self) -> None:
        """Forget all of them."""
        for path in self._base.parent.glob(f"{self._base.name}.*.nbc"):
            path.unlink(missing_ok=True)

    def _path(self, key: Any) -> Path:
        name = sha256(repr((key, self._kind)).encode()).hexdigest()[:16]
        return self._base.with_name(f"{self._base.name}.{name}.nbc")
