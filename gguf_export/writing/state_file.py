"""Where the state of a pass over a text lies on the disk, so that a run that was stopped goes on behind a layer.

`NAME.state` is written beside the output and replaced as a whole, so that a killed run leaves its last state.
`NAME.state.lock` is locked by the run that writes it (see `files.locks`): two runs cannot make the same output. Both
are gone when the output stands. The state is an aid: where it cannot be written, the pass goes on without, and that is
said.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from zipfile import ZipFile

from calibration.forward.saved_state import PassState, opened, read_json, write_json
from gguf_export.files.disk import write_error
from gguf_export.files.locks import LockedFile
from gguf_export.files.opening import refuse_strange, status_of
from gguf_export.files.replacing import partial_path, replacing
from gguf_export.files.sizes import size_in_words
from gguf_export.writing.fingerprint import difference
from quantize.exceptions import DamagedStateError, ModelChangedError, OutputBusyError, OutputError
from quantize.telling import Note, Remark, discard

__all__ = ["StateFile", "discard_older", "refuse_foreign", "state_path", "working_files"]

SUFFIX, LOCK_SUFFIX = ".state", ".lock"

FINGERPRINT = "fingerprint"
FIRST_MEMBER, MEMBER_HEAD = f"{FINGERPRINT}.json".encode(), 30
"""The name of the first member of a state, and the bytes before it in a zip archive."""

KEEP_SECONDS = 30.0
"""The least time between two states: a shorter pass pays nothing for them."""

KEEP_SHARE = 0.05
"""The share of a pass's time that writing states may take: a slow disk gets fewer states."""

SPARE_BYTES = 2**26  # a state leaves this space free, beside that which the output is known to need


def state_path(output: Path) -> Path:
    """Where the state of the pass lies that makes an output."""
    return output.with_name(output.name + SUFFIX)


def lock_path(state: Path) -> Path:
    """Where the lock of a state lies."""
    return state.with_name(state.name + LOCK_SUFFIX)


def working_files(state: Path) -> list[Path]:
    """All files that a pass keeps for itself."""
    return [state, lock_path(state), partial_path(state)]


def refuse_foreign(state: Path) -> None:
    """Refuse a file that holds something else under the name that a state was given: it would be replaced.

    Raises:
        OutputError: it is not empty, and no pass has written it.
    """
    refuse_strange(state)
    with contextlib.suppress(OSError), state.open("rb") as file:
        begin = file.read(MEMBER_HEAD + len(FIRST_MEMBER))
        if begin and not (begin.startswith(b"PK") and begin.endswith(FIRST_MEMBER)):
            raise OutputError(
                str(state), "exists, and is no state of a pass", "remove it, or choose another name"
            )


def _locked(state: Path, label: str) -> LockedFile:
    """The lock of a state: an empty file beside it, removed at the end."""
    path = lock_path(state)
    status = status_of(path)
    if status is not None and status.st_size:
        raise OutputError(str(path), "exists, and is no lock", "remove it, or choose another name")
    return LockedFile(path, label)


def discard_older(output: Path) -> None:
    """Remove a state that is older than its output: the run was killed when the output had just got its name."""
    path = state_path(output)
    with contextlib.suppress(OSError, OutputBusyError), _locked(path, output.name):
        if path.stat().st_mtime_ns <= output.stat().st_mtime_ns:
            path.unlink()


class StateFile:
    """The state of the pass that makes one output; a `calibration.forward.saved_state.Keeper` and a context manager.

    Left well, it removes the state, for the output stands, and as well where the model changed on the way; left with
    another error or Ctrl-C, it says how far the kept state is.
    """

    def __init__(
        self,
        path: Path,
        label: str,
        fingerprint: Mapping[str, str],
        *,
        restart: bool = False,
        note: Note = discard,
    ) -> None:
        """Lock it; the state of an earlier run is read in `recall`.

        Args:
            path: of the state.
            label: what the notes call the output.
            fingerprint: everything that decides the result of the pass: the fingerprint of its texts and those of
                the models (`writing.fingerprint`).
            restart: use nothing of an earlier run.
            note: receives remarks: that the pass is continued, or begun afresh and why, and what of it is kept.

        Raises:
            OutputBusyError: another run makes this output.
            OutputError: the folder cannot be written, or a link or something else that is no plain file lies there.
        """
        for own in working_files(path):
            refuse_strange(own)
        self.path, self._fingerprint, self._label, self._note = path, dict(fingerprint), label, note
        self.spare: Callable[[], int] = lambda: 0
        """Gives the bytes of the disk that the output will still need; a state leaves them free."""
        self._kept = ""  # how far the state on the disk is, in words
        self._n_failed = 0
        self._cost = 0.0  # seconds that the last state took
        try:
            self._lock = _locked(path, label)
        except OSError as error:
            raise write_error(path, error) from error
        if not self._lock.is_locked:
            place = str(path.parent)
            note(Remark(place, "locks are unknown here", "do not run the same command twice at once"))
        _remove(partial_path(path))
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
                differs = difference(read_json(archive, FINGERPRINT), self._fingerprint)
                if not differs:
                    state.read(archive)
        except DamagedStateError:
            differs = "its state is damaged"
        if differs:
            _remove(self.path)
            self._say(f"begun afresh, because {differs}")
            return
        self._kept = f"{state.n_done} of {state.n_layer} layers"
        self._say(f"continued, {self._kept} are done")

    def keep(self, state: PassState) -> None:
        """See `Keeper.keep`; it is done when enough time has passed."""
        started = time.monotonic()
        if started - self._kept_at < max(KEEP_SECONDS, self._cost / KEEP_SHARE):
            return
        try:
            if shutil.disk_usage(self.path.parent).free < state.n_bytes + self.spare() + SPARE_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with replacing(self.path) as file, ZipFile(file, "w") as archive:
                write_json(archive, FINGERPRINT, self._fingerprint)
                state.write(archive)
            self._kept = f"{state.n_done} of {state.n_layer} layers"
        except (OSError, OutputError) as error:
            self._n_failed += 1
            if self._n_failed == 1:
                reason = error.line() if isinstance(error, OutputError) else error.strerror or str(error)
                message = (
                    f"the state of the pass cannot be kept ({reason}), which needs "
                    f"{size_in_words(state.n_bytes)} beside the one before"
                )
                self._note(Remark(str(self.path), message, "the pass goes on, and tries again later"))
        self._kept_at = time.monotonic()
        self._cost = self._kept_at - started

    def remove(self) -> None:
        """Remove the state: its output stands."""
        _remove(self.path)

    def __enter__(self) -> StateFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, ModelChangedError):  # what is kept may be of two models
            self.remove()
        elif self._kept and self.path.exists():
            message = f"{self._kept} are done and kept in {self.path.name}"
            self._say(message, "the same command goes on from there")
        elif self._n_failed:
            self._say(
                f"nothing is kept, because the state of the pass could not be written {self._n_failed} times"
            )
        self._lock.remove()

    def _say(self, message: str, remedy: str = "") -> None:
        self._note(Remark(self._label, message, remedy))


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
