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
from functools import cache, partial
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numba
from numba.core import caching
from numba.core.runtime.nrt import rtsys

from quantize.telling import Remark, RemarkWarning

__all__ = [
    "Missing",
    "NotKept",
    "check_cache",
    "collecting",
    "enable_cache",
    "folder_of",
    "is_kept",
    "loading_only",
    "unwritten",
]

N_DIGEST = 32  # bytes of SHA-256, in front of what it is of

_asking = threading.local()

_complained: set[Path] = set()  # folders of which a process has said that something is wrong
_unwritten: dict[Path, str] = {}  # folders into which a kernel could not be written, and why


class NotKept(Exception):  # noqa: N818 - no fault
    """A kernel is not in the cache."""


class Missing(NamedTuple):
    """A kernel that is not in the cache, by its name, and the types with which it was called; it can be pickled."""

    module: str
    name: str
    types: tuple[Any, ...]

    def compile(self) -> None:
        """Compile it, or load it, and do not run it."""
        self._dispatcher().compile(self.types)

    @property
    def weight(self) -> int:
        """Roughly how long it takes to compile: the size of its Python code, and of all that it calls."""
        waiting, seen = [self._dispatcher()], set()
        while waiting:
            function = waiting.pop().py_func
            if function not in seen:
                seen.add(function)
                named = (function.__globals__.get(name) for name in function.__code__.co_names)
                waiting += [other for other in named if hasattr(other, "py_func")]
        return sum(len(function.__code__.co_code) for function in seen)

    def _dispatcher(self) -> Any:
        return getattr(import_module(self.module), self.name)


@contextlib.contextmanager
def loading_only() -> Iterator[None]:
    """Within the block, this thread compiles nothing that can be kept: it raises `NotKept`."""
    before = getattr(_asking, "is_on", False)
    _asking.is_on = True
    try:
        yield
    finally:
        _asking.is_on = before


@contextlib.contextmanager
def collecting() -> Iterator[list[Missing]]:
    """Within the block, kernels that this thread calls and the cache has not are listed, and do nothing.

    One that returns something raises `NotKept`. So nothing is right that comes out of the block, or is kept in it.
    """
    _asking.missing = []
    try:
        yield _asking.missing
    finally:
        _asking.missing = None


def is_kept(compiled: Any) -> bool:
    """Whether a dispatcher keeps its code in checked files, where other processes find it."""
    return isinstance(getattr(compiled, "_cache", None), _Forgiving)


def folder_of(compiled: Any) -> Path | None:
    """The folder in which a dispatcher keeps its code; None where it keeps none."""
    return compiled._cache.folder if is_kept(compiled) else None


def unwritten() -> dict[Path, str]:
    """The folders into which this process could not write a kernel, each with the reason."""
    return dict(_unwritten)


def enable_cache(compiled: Any) -> None:
    """Let a dispatcher keep its code in numba's cache.

    Of the folder that NUMBA_CACHE_DIR names nothing is asked but that it is there: numba passes over what it cannot
    write, and in a container of which all files are read-only each process would compile anew what lies in its image.

    Raises:
        RuntimeError: there is no folder in which code could be kept.
    """
    try:
        kind = _cache_of_named_folder()
    except AttributeError:  # another numba
        compiled.enable_caching()
    else:
        compiled._cache = kind(compiled.py_func)


@cache
def _cache_of_named_folder() -> Any:
    by_name, found, kept = (
        getattr(caching, name)
        for name in ("UserProvidedCacheLocator", "CompileResultCacheImpl", "FunctionCache")
    )

    def ensure(self: Any) -> None:
        if not Path(self.get_cache_path()).is_dir():
            by_name.ensure_cache_path(self)

    named = type("Named", (by_name,), {"ensure_cache_path": ensure})
    located = type("Located", (found,), {"_locator_classes": [named, *found._locator_classes]})
    return type("Kept", (kept,), {"_impl_class": located})


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
        if hasattr(compiled, "_compile_for_args"):
            compiled._compile_for_args = partial(_for_args, compiled, compiled._compile_for_args)


def _for_args(compiled: Any, compile_for_args: Callable[..., Any], *args: Any, **kws: Any) -> Any:
    """What a dispatcher calls with arguments of types that are new to it; it then calls what this returns."""
    missing: list[Missing] | None = getattr(_asking, "missing", None)
    if missing is None:
        return compile_for_args(*args, **kws)
    try:
        with loading_only():
            return compile_for_args(*args, **kws)
    except NotKept:
        function = compiled.py_func
        if function.__annotations__.get("return") != "None":
            raise
        missing.append(
            Missing(function.__module__, function.__name__, tuple(map(compiled.typeof_pyval, args)))
        )
        return _nothing


def _nothing(*_args: Any) -> None:
    """Stand in for a kernel that is only listed."""


class _Forgiving:
    """numba's cache of one kernel; what cannot be read or written is compiled, and no kernel is lost for it."""

    def __init__(self, cache: Any, folder: Path) -> None:
        self._cache, self.folder = cache, folder

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
            _unwritten[self.folder] = error.strerror or str(error)
            self._complain("cannot be written", error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def _complain(self, fault: str, error: Exception) -> None:
        if self.folder in _complained:
            return
        _complained.add(self.folder)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        message = f"compiled kernels that are kept there {fault} ({reason or type(error).__name__})"
        remark = Remark(str(self.folder), f"{message}: they are compiled anew")
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
