"""Where the state of a pass over a text lies on the disk, so that a run that was stopped goes on behind a layer.

`NAME.state` is written beside the output and replaced as a whole, so that a killed run leaves the one before.
`NAME.state.lock` is locked by the run that writes it: two runs cannot make the same output. Both are gone when the
output stands. The state is an aid: where it cannot be written, the pass goes on without, and that is said.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from zipfile import ZipFile

import numpy as np
import torch

from calibration.forward.saved_state import DamagedStateError, PassState, opened, read_json, write_json
from calibration.forward.settings import ForwardSettings
from calibration.text.chunks import Chunks
from gguf_export.files.disk import LockedError
from gguf_export.files.replacing import PARTIAL_SUFFIX, Lock, replacing
from gguf_export.writing.fingerprint import hashed, version
from quantize.exceptions import OutputError
from quantize.telling import Note, discard

__all__ = ["StateFile", "discard_older", "fingerprint", "state_path"]

SUFFIX, LOCK_SUFFIX = ".state", ".lock"

KEEP_SECONDS = 30.0
"""A state is not written more often than that: a pass that takes less pays nothing."""

KEEP_SHARE = 0.05
"""Of the time of a pass that writing its state may take: a slow disk gets fewer states."""

SPARE_BYTES = 2**26  # that a state leaves free, beside what the output is known to need


def state_path(output: Path) -> Path:
    """Where the state of the pass lies that makes an output."""
    return output.with_name(output.name + SUFFIX)


def fingerprint(texts: Sequence[Chunks], settings: ForwardSettings) -> dict[str, str]:
    """All that decides what a pass finds, beside the models, by names that a person understands.

    The number of threads is not part of it: who gives a slow pass more of them wants it to go on.
    """
    parts = []
    for text in texts:
        parts += [json.dumps([text.names, text.bos_id]).encode(), np.ascontiguousarray(text.tokens).tobytes()]
    return {
        "version of moe-gguf": version(),
        "text": hashed(parts),
        "length of the chunks": " ".join(str(text.n_ctx) for text in texts),
        "arithmetic": f"{settings.numerics} torch {torch.__version__}",
    }


def discard_older(output: Path) -> None:
    """Remove a state that is older than its output: the run was killed when the output had just got its name."""
    path = state_path(output)
    with contextlib.suppress(OSError, LockedError), Lock(path.with_name(path.name + LOCK_SUFFIX)):
        if path.stat().st_mtime_ns <= output.stat().st_mtime_ns:
            path.unlink()


class StateFile:
    """The state of the pass that makes one output; a `calibration.forward.saved_state.Keeper` and a context manager.

    Left well, it removes the state, for the output stands; left with an error or Ctrl-C, it says what is kept.
    """

    def __init__(
        self,
        path: Path,
        label: str,
        told: Mapping[str, str],
        *,
        spare: Callable[[], int] = lambda: 0,
        restart: bool = False,
        note: Note = discard,
    ) -> None:
        """Lock it; what an earlier run left is looked at in `recall`.

        Args:
            path: of the state.
            label: what the notes call the output.
            told: all that decides what the pass finds: its `fingerprint` and that of the models.
            spare: bytes of the disk that the output will still need.
            restart: use nothing of an earlier run.
            note: told, in one line each, what is continued, what is begun afresh and why, what was kept.

        Raises:
            OutputError: another run makes this output, or the folder cannot be written.
        """
        self.path, self._fingerprint, self._label, self._note = path, dict(told), label, note
        self._spare = spare
        self._kept = ""  # how far the state on the disk is, in words
        self._n_failed = 0
        self._cost = 0.0  # seconds that the last state took
        try:
            self._lock = Lock(path.with_name(path.name + LOCK_SUFFIX))
        except LockedError:
            raise OutputError(
                f"{label}: another run is writing this file; wait for it, or choose another name"
            ) from None
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
        if not self._lock.is_known:
            note(f"{path.parent}: locks are unknown here; do not run the same command twice at once")
        _remove(path.with_name(path.name + PARTIAL_SUFFIX))
        if restart:
            _remove(path)
        self._kept_at = time.monotonic()

    def recall(self, state: PassState) -> None:
        """See `Keeper.recall`."""
        self._kept_at = time.monotonic()
        if not self.path.exists():
            return
        try:
            with opened(self.path) as archive:
                differs = self._differs(read_json(archive, "fingerprint"))
                if not differs:
                    state.read(archive)
        except DamagedStateError:
            differs = "its state is damaged"
        if differs:
            _remove(self.path)
            self._note(f"{self._label}: begun afresh, because {differs}")
            return
        self._kept = f"{state.n_done} of {state.n_layer} layers"
        self._note(f"{self._label}: continued, {self._kept} are done")

    def keep(self, state: PassState) -> None:
        """See `Keeper.keep`; it is done when enough time has passed."""
        started = time.monotonic()
        if started - self._kept_at < max(KEEP_SECONDS, self._cost / KEEP_SHARE):
            return
        try:
            if shutil.disk_usage(self.path.parent).free < state.n_bytes + self._spare() + SPARE_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with replacing(self.path) as partial, ZipFile(partial, "w") as archive:
                write_json(archive, "fingerprint", self._fingerprint)
                state.write(archive)
            self._kept = f"{state.n_done} of {state.n_layer} layers"
        except OSError as error:
            self._n_failed += 1
            if self._n_failed == 1:
                self._note(
                    f"{self.path}: the state of the pass cannot be kept ({error.strerror or error}), which needs "
                    f"{state.n_bytes / 2**30:.2f} GiB beside the one before; the pass goes on, and tries again later"
                )
        self._kept_at = time.monotonic()
        self._cost = self._kept_at - started

    def remove(self) -> None:
        """Nobody needs it any more."""
        _remove(self.path)

    def __enter__(self) -> StateFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.remove()
        elif self._kept:
            self._note(
                f"{self._label}: {self._kept} are done and kept in {self.path.name}; the same command goes on from "
                "there"
            )
        elif self._n_failed:
            self._note(
                f"{self._label}: nothing is kept, because the state of the pass could not be written "
                f"{self._n_failed} times"
            )
        self._lock.release()

    def _differs(self, found: Mapping[str, str]) -> str:
        """What is not as it was, in words."""
        names = found.keys() | self._fingerprint.keys()
        changed = sorted(name for name in names if found.get(name) != self._fingerprint.get(name))
        return (
            f"{' and '.join(f'the {name}' for name in changed)} changed since it was stopped"
            if changed
            else ""
        )


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
