"""A repository on the Hugging Face Hub, by the Hub's own client, which waits with limits and fails in one line.

The token comes from where the client keeps it (`hf auth login`) or from HF_TOKEN; neither it nor an address, which may
be signed, stands in a message.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, HfApi, get_token, set_client_factory
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (
    _http,
    build_hf_headers,
    disable_progress_bars,
    get_session,
    hf_raise_for_status,
    logging,
)

from gguf_export.publishing.failures import is_passing, seconds_asked_for, upload_error
from gguf_export.publishing.release_files import ReleaseFile
from gguf_export.publishing.xet_progress import telling
from quantize.exceptions import MoeGgufError, UploadError
from quantize.telling import Note, Remark

__all__ = ["PAUSES", "TIMEOUTS", "RemoteFile", "Repository", "limited_waits"]

TIMEOUTS = (20.0, 180.0, 60.0, 60.0)
"""Seconds until a connection counts as broken: to make it, to hear something, to get rid of something, to get one."""
PAUSES = (2.0, 10.0, 30.0)
"""Seconds before a step is tried again, beside the five times that the client itself tries what may be repeated."""
LONGEST = 300.0
"""Seconds that the Hub may ask to wait; its limits count five minutes, those of commits an hour."""
DEFAULT_ENDPOINT = "https://huggingface.co"

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteFile:
    """What the Hub tells of a file: `sha256` where it is kept apart as a large one, else git's name of its content."""

    size: int  # bytes
    sha256: str | None
    git_id: str


class Repository:
    """A repository of models, `owner/name`."""

    def __init__(self, name: str, note: Note) -> None:
        """Take the name; nothing is asked yet.

        Raises:
            UploadError: nobody is logged in.
        """
        self.name, self._note = name, note
        endpoint = (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        self.url = f"{endpoint}/{name}"
        self._endpoint = endpoint
        if not get_token():
            remedy = "log in with a token that may write: hf auth login"
            raise UploadError(name, "nobody is logged in to the Hugging Face Hub here", remedy)
        self._api = HfApi(endpoint=endpoint, token=True, library_name="moe-gguf")
        logging.set_verbosity_error()  # type: ignore[no-untyped-call] # its warnings quote addresses
        disable_progress_bars()

    def is_public(self) -> bool | None:
        """Whether all may see it; None where there is none."""

        def ask() -> bool | None:
            try:
                return not self._api.model_info(self.name).private
            except RepositoryNotFoundError:
                return None

        return self._persist(ask)

    def create(self, public: bool) -> None:
        """Make it, where there is none."""
        self._persist(lambda: self._api.create_repo(self.name, private=not public, exist_ok=True))

    def files(self) -> dict[str, RemoteFile]:
        """All files in it."""
        listed = self._persist(lambda: list(self._api.list_repo_tree(self.name, recursive=True)))
        return {
            file.path: RemoteFile(file.size, file.lfs.sha256 if file.lfs else None, file.blob_id)
            for file in listed
            if isinstance(file, RepoFile)
        }

    def check_card(self, content: str) -> None:
        """Let the Hub judge the front matter of a README.md, before hours of work.

        Raises:
            UploadError: it would refuse it.
        """
        told = self._persist(lambda: self._validated(content))
        for warning in told.get("warnings", []):
            self._note(Remark("README.md", f"the Hub remarks: {warning.get('message')}"))
        faults = "; ".join(str(fault.get("message")) for fault in told.get("errors", []))
        if faults:
            raise UploadError("README.md", f"the Hub refuses its front matter: {faults}", "correct it")

    def send(
        self, files: Sequence[ReleaseFile], on_read: Callable[[int], None], confirm: Callable[[], None]
    ) -> None:
        """Send files as one commit; what the Hub has of them already is not sent.

        Args:
            files: their `sha256` is that of their bytes.
            on_read: is told how many bytes of the models among them were read to be sent.
            confirm: is called before the commit, and raises where files changed meanwhile.
        """
        title = f"Upload {files[0].name}" + (f" and {len(files) - 1} more" if len(files) > 1 else "")

        def step() -> None:
            additions, before = [], 0
            for file in files:
                addition = _Addition(file.name, str(file.path))
                addition.upload_info.sha256 = bytes.fromhex(file.sha256)  # so that it is not computed again
                if file.is_model:
                    addition.on_read = _behind(before, on_read)
                    with telling(addition.on_read):
                        self._api.preupload_lfs_files(self.name, [addition])
                    before += file.size
                additions.append(addition)
            confirm()
            self._api.create_commit(self.name, additions, commit_message=title)

        self._persist(step)

    def _validated(self, content: str) -> Any:
        response = get_session().post(
            f"{self._endpoint}/api/validate-yaml",
            json={"content": content, "repoType": "model"},
            headers=build_hf_headers(token=True, library_name="moe-gguf"),
        )
        if response.status_code != 400:  # which stands for the faults that are listed
            hf_raise_for_status(response)
        return response.json()

    def _persist(self, step: Callable[[], T]) -> T:
        """The result of a step, which is taken again where its failure may pass."""
        for pause in (*PAUSES, None):
            try:
                with warnings.catch_warnings():
                    # They are of the card, of which `check_card` tells, and of the client's own ways.
                    warnings.simplefilter("ignore")
                    return step()
            except MoeGgufError:
                raise
            except Exception as failure:  # of several libraries, with several roots
                fault = upload_error(self.name, self._endpoint, failure)
                if pause is None or not is_passing(failure, self._endpoint):
                    raise fault from None
                wait = min(LONGEST, max(pause, seconds_asked_for(failure)))
            self._note(Remark(self.name, f"{fault.message}; it is tried again in {wait:.0f} s"))
            time.sleep(wait)
        raise AssertionError("the last round returns or raises")


def _behind(before: int, on_read: Callable[[int], None]) -> Callable[[int], None]:
    return lambda n_read: on_read(before + n_read)


class _Addition(CommitOperationAdd):
    """A file of a commit that tells how far it was read while it is sent."""

    on_read: Callable[[int], None] | None = None

    @contextmanager
    def as_file(self, with_tqdm: bool = False) -> Iterator[Any]:
        """The open file; `with_tqdm` is said where its bytes are sent."""
        with super().as_file() as file:
            if with_tqdm and self.on_read is not None:
                read, told = file.read, self.on_read

                def counted(size: int | None = -1) -> bytes:
                    data = read(-1 if size is None else size)
                    told(file.tell())
                    return data

                file.read = counted  # type: ignore[method-assign]
            yield file


@contextmanager
def limited_waits() -> Iterator[None]:
    """Within the block, the Hub's client gives up connections that stall; by itself it would wait for ever."""
    usual = _http._GLOBAL_CLIENT_FACTORY

    def impatient() -> Any:
        client = usual()
        client.timeout = TIMEOUTS
        return client

    set_client_factory(impatient)
    try:
        yield
    finally:
        set_client_factory(usual)
