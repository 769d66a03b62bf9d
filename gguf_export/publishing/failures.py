"""What the Hub's client raised, in one line: no token in it, and no address, which could be signed."""

from __future__ import annotations

import re
from typing import Any

from huggingface_hub import errors

from quantize.containers.untrusted import printable
from quantize.exceptions import UploadError

__all__ = ["is_passing", "seconds_asked_for", "upload_error"]

PASSING = (408, 409, 412, 429, 500, 502, 503, 504)
"""Statuses that may be others the next time; 409 and 412 say that another commit came between."""
MAX_SAID = 200  # characters of a message that is not ours
GOES_ON = "give the same command again later: it goes on"
LOG_IN = "log in with a token that may write there: hf auth login; the same command goes on"


def is_passing(failure: BaseException, endpoint: str) -> bool:
    """Whether it may go better the next time."""
    cause = _cause(failure)
    if isinstance(cause, errors.HfHubHTTPError):
        # A store refuses addresses whose time is over; the next time there is another one.
        return cause.response.status_code in PASSING or _is_store(cause, endpoint)
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return False
    return isinstance(cause, (errors.HTTPError, ConnectionError, TimeoutError))


def seconds_asked_for(failure: BaseException) -> float:
    """How long the Hub asks to wait (Retry-After), 0 where it does not."""
    response = getattr(_cause(failure), "response", None)
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    return float(asked) if asked.isdecimal() else 0.0


def upload_error(repo: str, endpoint: str, failure: BaseException) -> UploadError:
    """The error for a failure of the client while it worked on a repository."""
    cause = _cause(failure)
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return UploadError(repo, "HF_HUB_OFFLINE forbids to ask the Hub", "unset it")
    if isinstance(cause, errors.HfHubHTTPError):
        return _refusal(repo, endpoint, cause)
    if isinstance(cause, (errors.HTTPError, ConnectionError, TimeoutError)):
        return UploadError(repo, f"the Hub cannot be reached ({type(cause).__name__})", GOES_ON)
    if isinstance(cause, OSError) and cause.filename is not None:
        return UploadError(str(cause.filename), f"cannot be read: {cause.strerror}", GOES_ON)
    return UploadError(repo, f"the Hub's client fails: {type(cause).__name__}{_said(cause)}", GOES_ON)


def _refusal(repo: str, endpoint: str, cause: errors.HfHubHTTPError) -> UploadError:
    status = cause.response.status_code
    who = "the Hub's store" if _is_store(cause, endpoint) else "the Hub"
    said = _said(cause.server_message)
    if who == "the Hub" and status == 401:
        return UploadError(repo, f"the Hub does not take the token (status 401){said}", LOG_IN)
    if who == "the Hub" and status == 403:
        return UploadError(repo, f"the token may not write there (status 403){said}", LOG_IN)
    if who == "the Hub" and status == 404:
        return UploadError(
            repo, f"the Hub shows no such repository (status 404){said}", f"see to the spelling; or {LOG_IN}"
        )
    if status == 429:
        remedy = "give the same command again in an hour: it goes on"
        return UploadError(repo, f"{who} asks for fewer requests (status 429){said}", remedy)
    return UploadError(repo, f"{who} answers with status {status}{said}", GOES_ON)


def _cause(failure: BaseException) -> BaseException:
    """What lies behind the RuntimeError that the client makes of a failure in one of its threads."""
    while isinstance(failure, RuntimeError) and failure.__cause__ is not None:
        failure = failure.__cause__
    return failure


def _is_store(cause: errors.HfHubHTTPError, endpoint: str) -> bool:
    return not str(cause.response.request.url).startswith(f"{endpoint}/")


def _said(message: Any) -> str:
    """Somebody else's words behind ours."""
    text = " ".join(str(message or "").split())
    text = re.sub(r"\S+://\S+", "(address)", text)
    text = re.sub(r"hf_\w+|Bearer \S+", "(token)", text)[:MAX_SAID].rstrip(".")
    return f": {printable(text)}" if text else ""
