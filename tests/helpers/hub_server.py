"""A stand-in for the Hugging Face Hub on the loopback: what its client asks for, and faults on demand.

Large files are led to a store under addresses that are signed for so many requests, as the Hub does.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

COMMIT = "c0ffee" + "0" * 34
TOKEN = "hf_a_secret_of_somebody"


@dataclass
class Hub:
    """What the server serves, and what it was asked."""

    repo: str
    folder: Path
    is_private: bool = False
    fault: Callable[[str, int], str | None] = lambda _path, _n: None
    """Of a request's path and number: "cut", "stall", "expired", or a status such as "503"."""
    served: Counter[str] = field(default_factory=Counter)
    """Bytes of each file that went out."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    """Paths of the store that a token was sent to."""
    endpoint: str = ""

    def __post_init__(self) -> None:
        self.lock = threading.Lock()

    def is_large(self, name: str) -> bool:
        return name.endswith((".safetensors", ".model"))

    def digest(self, path: Path) -> str:
        """The SHA-256 that is told of a file."""
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def content(self, path: Path, first: int, last: int) -> bytes | memoryview:
        """The bytes of a file from `first` to `last`, both inclusive."""
        with path.open("rb") as file:
            file.seek(first)
            return file.read(last + 1 - first)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        hub, path = self.hub, urlsplit(self.path).path
        with hub.lock:
            hub.requests.append((self.command, path))
            fault = hub.fault(path, len(hub.requests))
        if fault is not None and fault.isdigit():
            self.reply(int(fault), b"{}", {"Retry-After": "0"} if fault == "429" else {})
        elif path.startswith("/store/"):
            if self.headers.get("Authorization"):
                hub.leaks.append(path)
            if fault == "expired":
                self.reply(403, b"expired")
                return
            self.send(hub.folder / path.removeprefix("/store/"), with_body, fault)
        elif hub.is_private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.reply(
                401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            )
        elif re.fullmatch(rf"/api/models/{hub.repo}(/revision/[^/]+)?", path):
            self.tell(path.rpartition("/revision/")[2] if "/revision/" in path else "main")
        elif match := re.fullmatch(rf"/{hub.repo}/resolve/{COMMIT}/((?:[^/]+/)?[^/]+)", path):
            self.resolve(match[1], with_body, fault)
        else:
            self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def tell(self, revision: str) -> None:
        if revision not in ("main", COMMIT):
            self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = []
        for path in sorted(path for path in self.hub.folder.rglob("*") if path.is_file()):
            name = path.relative_to(self.hub.folder).as_posix()
            known: dict[str, Any] = {"rfilename": name, "size": path.stat().st_size}
            if self.hub.is_large(path.name):
                known["lfs"] = {
                    "sha256": self.hub.digest(path),
                    "size": path.stat().st_size,
                    "pointerSize": 130,
                }
            siblings.append(known)
        told = {"id": self.hub.repo, "sha": COMMIT, "siblings": siblings, "private": self.hub.is_private}
        self.reply(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

    def resolve(self, name: str, with_body: bool, fault: str | None) -> None:
        path = self.hub.folder / name
        if not path.exists():
            self.reply(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        etag = {"ETag": f'"{self.hub.digest(path)}"', "X-Repo-Commit": COMMIT}
        if self.hub.is_large(name):
            port = urlsplit(self.hub.endpoint).port
            linked = {"X-Linked-Size": str(path.stat().st_size), "X-Linked-ETag": etag["ETag"]}
            self.reply(
                302, b"", {**etag, **linked, "Location": f"http://127.0.0.1:{port}/store/{name}?signed"}
            )
        else:
            self.send(path, with_body, fault, etag)

    def send(
        self, path: Path, with_body: bool, fault: str | None, more: dict[str, str] | None = None
    ) -> None:
        size, status, headers = path.stat().st_size, 200, dict(more or {})
        first, last = 0, size - 1
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last, status = int(asked[1]), min(int(asked[2] or size - 1), size - 1), 206
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        content = self.hub.content(path, first, last)
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for header in headers.items():
            self.send_header(*header)
        self.end_headers()
        if not with_body:
            return
        if fault in ("cut", "stall"):
            content = content[: len(content) // 2]
        self.wfile.write(content)
        with self.hub.lock:
            self.hub.served[path.name] += len(content)
        if fault == "stall":
            self.wfile.flush()
            threading.Event().wait(3)
        if fault in ("cut", "stall"):
            self.close_connection = True

    def reply(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for header in (headers or {}).items():
            self.send_header(*header)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


class Server(ThreadingHTTPServer):
    """Silent where a client goes away in the middle of an answer, as one that was killed does."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub at an address of its own, which `endpoint` holds."""
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.endpoint = f"http://localhost:{server.server_address[1]}"  # the store has another name
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
