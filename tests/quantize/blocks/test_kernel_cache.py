"""Compiled kernels on the disk: what is whole is used, anything else is dropped, said, and compiled anew."""

from __future__ import annotations

import errno
import importlib.util
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numba
import pytest
from numba.core.registry import cpu_target

from quantize.blocks import jit, kernel_cache
from quantize.telling import RemarkWarning

pytestmark = pytest.mark.skipif(not jit.JIT, reason="nothing is compiled where NUMBA_DISABLE_JIT is set")

SOURCE = "def scaled(x):\n    return x * 3\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of numba's caches, empty."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(kernel_cache, "_complained", set())
    monkeypatch.setattr(kernel_cache, "_unwritten", {})
    (tmp_path / "scaling.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.setitem(sys.modules, "scaling", sys)  # it goes with the test
    return tmp_path / "cache"


def process(folder: Path) -> Any:
    """A kernel as a process of its own finds it: nothing of it is in memory."""
    spec = importlib.util.spec_from_file_location("scaling", folder.with_name("scaling.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module
    spec.loader.exec_module(module)
    return jit.kernel(module.scaled)


def use(folder: Path, *values: Any) -> tuple[int, int]:
    """Signatures that were found in the cache, and those that were compiled."""
    kernel = process(folder)
    for value in values:
        assert kernel(value) == 3 * value
    return sum(kernel.stats.cache_hits.values()), sum(kernel.stats.cache_misses.values())


def test_each_signature_is_compiled_once(folder: Path) -> None:
    assert use(folder, 2, 2.5) == (0, 2)
    assert use(folder, 2.5, 2) == (2, 0)
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 2


def flipped(content: bytes) -> bytes:
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


DAMAGES: list[Callable[[bytes], bytes]] = [
    lambda _: b"",
    lambda content: bytes(len(content)),
    lambda content: content[: len(content) // 2],
    lambda content: content[:-1],
    lambda content: content[:4096] + bytes(len(content) - 4096),
    lambda _: pickle.dumps("something else"),
    lambda content: content + b"\0",
    flipped,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_code_is_compiled_anew_and_said_once(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    use(folder, 2, 2.5)
    for path in folder.rglob("*.nbc"):
        path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(RemarkWarning) as told:
        assert use(folder, 2, 2.5) == (0, 2)
    assert len(told) == 1
    assert str(folder) in str(told[0].message) and "is damaged): they are compiled anew" in str(
        told[0].message
    )
    assert use(folder, 2, 2.5) == (2, 0)


def test_what_cannot_be_unpickled_is_compiled_anew(folder: Path) -> None:
    """Its checksum is right: it was written so."""
    use(folder, 2)
    (path,) = folder.rglob("*.nbc")
    path.write_bytes(sha256(b"no pickle").digest() + b"no pickle")
    with pytest.warns(RemarkWarning, match="cannot be used"):
        assert use(folder, 2) == (0, 1)


def test_a_file_that_cannot_be_read_or_replaced(folder: Path) -> None:
    use(folder, 2)
    (path,) = folder.rglob("*.nbc")
    path.unlink()
    path.mkdir()
    with pytest.warns(RemarkWarning, match="cannot be used"):
        assert use(folder, 2) == (0, 1)
    assert not list(folder.rglob("*.tmp.*"))


def test_a_disk_that_is_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.warns(RemarkWarning, match=r"cannot be written \(No space left"):
            assert use(folder, 2) == (0, 1)
    assert use(folder, 2) == (0, 1)


def test_a_folder_that_is_there_is_read_without_leave_to_write(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(folder, 2)

    def closed(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.TemporaryFile", closed)
    monkeypatch.setattr(Path, "write_bytes", closed)
    assert use(folder, 2) == (1, 0)
    with pytest.warns(RemarkWarning, match=r"cannot be written \(Permission denied"):
        assert use(folder, 2.5) == (0, 1)
    assert list(kernel_cache.unwritten()) == list(folder.iterdir())


def test_a_folder_that_becomes_a_file(folder: Path) -> None:
    kernel = process(folder)
    (inner,) = folder.iterdir()
    inner.rmdir()
    inner.touch()
    with pytest.warns(RemarkWarning, match="compiled anew"):
        assert kernel(2) == 6
    assert use(folder, 2)[1] == 1  # numba finds another folder, or none
    inner.unlink()


def test_code_of_other_sources_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(folder, 2)
    monkeypatch.setattr(jit, "_stamp_of_sources", lambda: "others")
    assert use(folder, 2) == (0, 1)
    assert use(folder, 2) == (1, 0)
    monkeypatch.setattr(numba, "__version__", "0.0")
    assert use(folder, 2) == (0, 1)
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 1  # old code gives way


def test_code_for_another_processor_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache on a shared folder serves each kind of processor with its own code."""
    use(folder, 2)
    codegen = cpu_target.target_context.codegen()
    with monkeypatch.context() as patch:
        patch.setattr(codegen, "_tm_features", codegen._tm_features + ",-avx512f")
        assert use(folder, 2) == (0, 1)
        assert use(folder, 2) == (1, 0)
    assert use(folder, 2) == (1, 0)
    monkeypatch.setattr(codegen, "_get_host_cpu_name", lambda: "another")
    assert use(folder, 2) == (0, 1)
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 3


def test_kernels_are_listed_and_not_run(folder: Path) -> None:
    kernel = process(folder)
    kernel.py_func.__annotations__["return"] = "None"
    with kernel_cache.collecting() as missing:
        assert kernel(2) is kernel(2) is kernel(2.5) is None
    assert [(one.module, one.name, len(one.types)) for one in missing] == [("scaling", "scaled", 1)] * 3
    assert len(set(missing)) == 2 and not folder_files(folder)
    kernel.compile(missing[0].types)
    with kernel_cache.collecting() as missing:
        assert kernel(2) == 6
    assert not missing and len(folder_files(folder)) == 1


def test_a_kernel_whose_result_is_needed_is_not_left_out(folder: Path) -> None:
    kernel = process(folder)
    with kernel_cache.collecting(), pytest.raises(kernel_cache.NotKept):
        kernel(2)
    assert kernel(2) == 6


def folder_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_code_for_another_signature_under_the_name_is_not_used(folder: Path) -> None:
    use(folder, 2)
    (path,) = folder.rglob("*.nbc")
    ours = path.read_bytes()
    path.unlink()
    use(folder, 2.5)
    (other,) = folder.rglob("*.nbc")
    other.write_bytes(ours)
    assert use(folder, 2.5) == (0, 1)


def test_processes_that_write_at_once_see_no_damage(folder: Path) -> None:
    """Each file is replaced as a whole: a reader sees one or the other."""
    use(folder, 2)
    files = process(folder)._cache._cache_file
    done = threading.Event()

    def write(n: int) -> None:
        for i in range(60):
            files.save("key", bytes([n]) * (10_000 + i))

    def read() -> None:
        while not done.is_set():
            found = files.load("key")
            assert found is None or len(set(found)) == 1
            n_read.append(1)

    n_read: list[int] = []
    with warnings.catch_warnings():
        writers = [threading.Thread(target=write, args=(n,)) for n in range(3)]
        reader = threading.Thread(target=read)
        for thread in (reader, *writers):
            thread.start()
        for thread in writers:
            thread.join()
        done.set()
        reader.join()
    assert len(set(files.load("key"))) == 1


def test_numba_without_these_attributes_keeps_its_own_files(folder: Path) -> None:
    class Other:
        def __init__(self) -> None:
            self._cache = object()

    other = Other()
    before = other._cache
    kernel_cache.check_cache(other, "stamp")
    assert other._cache is before


def test_forgetting(folder: Path) -> None:
    use(folder, 2, 2.5)
    process(folder)._cache.flush()
    assert not list(folder.rglob("*.nbc"))


def test_loading_imports_nothing_that_only_compiling_needs(folder: Path, tmp_path: Path) -> None:
    """A warm start takes half a second less; what is then missing is compiled all the same."""
    use(folder, 2)
    script = tmp_path / "warm.py"
    script.write_text(
        "import sys\n"
        "from quantize.blocks import jit\n"
        "import scaling\n"
        "kernel = jit.kernel(scaling.scaled)\n"
        "assert kernel(2) == 6 and kernel.stats.cache_hits\n"
        "print('numba.np.arraymath' in sys.modules)\n"
        "assert kernel(2.5) == 7.5 and kernel.stats.cache_misses\n"
        "print('numba.np.arraymath' in sys.modules)\n",
        encoding="utf-8",
    )
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    env = os.environ | {"NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False", "True"], done.stderr
