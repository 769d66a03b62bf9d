"""Bytes of files on the Hugging Face Hub, by range requests through its own client."""

from __future__ import annotations

import re
import sys
import threading
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import errors
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, http_stream_backoff

from quantize.containers.hub_names import HubName
from quantize.exceptions import CheckpointError

__all__ = ["AT_ONCE", "TIMEOUT", "HubFile", "Ranges", "hub_error"]

AT_ONCE = 8  # requests in flight
TIMEOUT = 20.0  # seconds without a byte, behind which a connection counts as broken
TRIES = 2  # in a row without a byte, each of them with the pauses of the Hub's client
EXPIRED = (400, 401, 403, 404, 410)  # what a store says of an address that was signed for some time
RANGE = re.compile(r"bytes (\d+)-")


@dataclass(frozen=True)
class HubFile:
    """A file of a model on the Hub: `url` leads to it, `sha256` is known where it is large."""

    name: str
    url: str
    size: int  # bytes
    sha256: str | None


@dataclass(eq=False)
class Ranges:
    """Reads ranges of files, from several threads at once; of each file the address to which the Hub led is kept.

    An address that the Hub signs holds for about an hour; it gets no token. Where it is refused, the Hub is asked anew.
    """

    name: HubName
    _direct: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, file: HubFile, start: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `start` on; a connection that breaks goes on from where it stood.

        Raises:
            CheckpointError: the Hub cannot be reached, refuses, or serves something else than the range.
        """
        done, n_empty = 0, 0
        while done < len(into):
            try:
                n_read = self._read_some(file, start + done, into[done:])
            except _broken() as failure:
                if n_empty >= TRIES:
                    raise hub_error(self.name, failure) from None
                n_read = 0
            n_empty = 0 if n_read else n_empty + 1
            if n_empty > TRIES:
                message = f"its bytes from {start + done:,} on do not come"
                raise CheckpointError(
                    f"{self.name}: {file.name}", message, "give the same command again later"
                )
            done += n_read

    def _read_some(self, file: HubFile, start: int, into: memoryview) -> int:
        """The number of bytes that one connection gave."""
        with self._lock:
            direct = self._direct.get(file.name)
        asked = {"Range": f"bytes={start}-{start + len(into) - 1}", "Accept-Encoding": "identity"}
        headers = asked if direct else {**build_hf_headers(library_name="moe-gguf"), **asked}
        with http_stream_backoff("GET", direct or file.url, headers=headers, timeout=TIMEOUT) as response:
            if (direct or response.history) and response.status_code in EXPIRED:
                with self._lock:
                    self._direct.pop(file.name, None)
                return 0
            try:
                hf_raise_for_status(response)
            except Exception as failure:
                raise hub_error(self.name, failure) from None
            self._check(file, response, start)
            if response.history:
                with self._lock:
                    self._direct[file.name] = str(response.url)
            return _filled(response, into)

    def _check(self, file: HubFile, response: Any, start: int) -> None:
        """Whether the answer is the range that was asked for."""
        found = RANGE.match(response.headers.get("Content-Range", ""))
        is_all = response.status_code == 200 and start == 0
        if not is_all and (response.status_code != 206 or found is None or int(found[1]) != start):
            message = f"the server does not give parts of files (status {response.status_code})"
            raise CheckpointError(f"{self.name}: {file.name}", message, _download(self.name))


def _filled(response: Any, into: memoryview) -> int:
    """Fill `into` with what comes, and tell how many bytes came before the connection broke."""
    done = 0
    try:
        for chunk in response.iter_raw():
            some = memoryview(chunk)[: len(into) - done]
            into[done : done + len(some)] = some
            done += len(some)
            if done == len(into):
                break
    except _broken():
        pass
    return done


def _broken() -> tuple[type[Exception], ...]:
    """What the hub's client raises where a connection fails; its library has had several names."""
    library = sys.modules[type(get_session()).__module__.partition(".")[0]]
    return (library.TransportError, OSError)


def hub_error(name: HubName, failure: Exception) -> CheckpointError:
    """One line for what the hub's client raised; no address in it, which could be signed."""
    if isinstance(failure, errors.GatedRepoError):
        message, remedy = "its owner gives access on request", "ask on its page, and log in: hf auth login"
    elif isinstance(failure, errors.RevisionNotFoundError):
        message, remedy = (
            "the Hub knows the model, but no such revision",
            "give a branch, a tag or a commit behind @",
        )
    elif isinstance(failure, errors.RepositoryNotFoundError):
        message = "no such file or folder, and the Hub shows no such model"
        remedy = "see to the spelling; of a private model, log in first: hf auth login"
    elif isinstance(failure, errors.OfflineModeIsEnabled):
        message, remedy = "no such file or folder, and HF_HUB_OFFLINE forbids to ask the Hub", _download(name)
    elif isinstance(failure, errors.HfHubHTTPError):
        status = failure.response.status_code
        message, remedy = f"the Hub answers with status {status}", "give the same command again later"
        if status in (401, 403):
            remedy = "log in with a token that may read it: hf auth login"
    else:
        message = f"the Hub cannot be reached ({type(failure).__name__})"
        remedy = f"give the same command again later, or {_download(name)}"
    return CheckpointError(str(name), message, remedy)


def _download(name: HubName) -> str:
    revision = f" --revision {name.revision}" if name.revision else ""
    return f"download it: hf download {name.repo}{revision} --local-dir {name.name}"
