"""A stand-in for the Hugging Face Hub on the loopback that takes uploads: repositories, commits, a store, and faults.

It answers what the Hub's client asks for while it makes a repository, sends files and lists them. The store has another
name than the Hub, as it has there.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

TOKEN = "hf_a_secret_of_somebody"
ECHO = "hf_what_a_server_says"
"""Stands, as a token would, in the words with which the server refuses."""


@dataclass
class Stored:
    """A file of a repository; `oid` is SHA-256 of a large one, git's name of a small one."""

    oid: str
    size: int
    is_large: bool


@dataclass
class Repo:
    is_private: bool
    files: dict[str, Stored] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)


@dataclass
class UploadHub:
    """What the server holds, and what it was asked."""

    fault: Callable[[str, str, int], str | None] = lambda _method, _path, _n: None
    """Of a request's method, path and number: None, a status such as "503", or "cut" (no answer), "lost" (the work is
    done, and no answer), "half" (cut while the body comes), "stall" (no answer for seconds)."""
    repos: dict[str, Repo] = field(default_factory=dict)
    store: dict[str, bytes] = field(default_factory=dict)
    puts: Counter[str] = field(default_factory=Counter)
    """How often the store has taken each content whole."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    """Paths of the store that a token was sent to."""
    told: dict[str, Stored] = field(default_factory=dict)
    """What the list of files says of some, whatever they are."""
    card_faults: list[str] = field(default_factory=list)
    card_warnings: list[str] = field(default_factory=list)
    retry_after: str = "0"
    endpoint: str = ""

    def __post_init__(self) -> None:
        self.lock = threading.Lock()

    def content(self, repo: str) -> dict[str, str]:
        """Names and content ids of all files, but for the one that the Hub itself makes."""
        files = self.repos[repo].files
        return {name: file.oid for name, file in files.items() if name != ".gitattributes"}


def git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer takes 40 ms
    hub: UploadHub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub, path = self.hub, urlsplit(self.path).path
        with hub.lock:
            hub.requests.append((self.command, path))
            fault = hub.fault(self.command, path, len(hub.requests))
        length = int(self.headers.get("Content-Length") or 0)
        if fault in ("cut", "half", "stall"):
            self.rfile.read({"cut": 0, "half": length // 2, "stall": length}[fault])
            if fault == "stall":
                threading.Event().wait(2)
            self.close_connection = True
            return
        body = self.rfile.read(length)
        if len(body) < length:
            self.close_connection = True
            return
        if fault is not None and fault.isdigit():
            said = {"X-Error-Message": f"no, Bearer {ECHO}, see http://a/?signed=1"}
            self.reply(int(fault), {}, said | ({"Retry-After": hub.retry_after} if fault == "429" else {}))
            return
        with hub.lock:
            status, value, headers = self.work(path, body)
        if fault == "lost":
            self.close_connection = True
            return
        self.reply(status, value, headers)

    def work(self, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        hub = self.hub
        if path.startswith("/store/"):
            return self.take(path.removeprefix("/store/"), body)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            said = {"X-Error-Message": "Invalid credentials in Authorization header"}
            return 401, {"error": "Invalid credentials"}, said
        if path == "/api/validate-yaml":
            lists = {"errors": hub.card_faults, "warnings": hub.card_warnings}
            told = {key: [{"message": text} for text in texts] for key, texts in lists.items()}
            return (400 if hub.card_faults else 200), told, {}
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/([^/]+)/main)?", path):
            name, what = match[1], match[2]
        elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            name, what = match[1], "batch"
        else:
            return 404, {}, {}
        repo = hub.repos.get(name)
        if repo is None:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        if what in (None, "revision"):
            return 200, {"id": name, "sha": "c" * 40, "private": repo.is_private, "siblings": []}, {}
        if what == "tree":
            return 200, [self.entry(*file) for file in (repo.files | hub.told).items()], {}
        if what == "preupload":
            return 200, {"files": [self.mode(repo, file) for file in json.loads(body)["files"]]}, {}
        if what == "batch":
            return 200, {"objects": [self.action(one) for one in json.loads(body)["objects"]]}, {}
        return self.commit(name, [json.loads(line) for line in body.splitlines()])

    def take(self, oid: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        if self.headers.get("Authorization"):
            self.hub.leaks.append(oid)
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "other bytes"}, {}
        self.hub.store[oid] = body
        self.hub.puts[oid] += 1
        return 200, {}, {}

    def create(self, asked: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        name = f"{asked['organization']}/{asked['name']}"
        told = {"url": f"{self.hub.endpoint}/{name}", "name": name}
        if name in self.hub.repos:
            return 409, told | {"error": "You already created this model repo"}, {}
        own = {".gitattributes": Stored(git_name(b"*.gguf"), 6, False)}
        self.hub.repos[name] = Repo(asked.get("visibility", "private") == "private", own)
        return 200, told, {}

    def entry(self, name: str, file: Stored) -> dict[str, Any]:
        told = {"type": "file", "path": name, "size": file.size, "oid": file.oid}
        large = {"lfs": {"oid": file.oid, "size": file.size, "pointerSize": 130}}
        return told | (large | {"oid": "b" * 40} if file.is_large else {})

    def mode(self, repo: Repo, file: dict[str, Any]) -> dict[str, Any]:
        held = repo.files.get(file["path"])
        mode = "lfs" if file["path"].endswith((".gguf", ".png")) else "regular"
        oid = {"oid": held.oid} if held else {}
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False} | oid

    def action(self, asked: dict[str, Any]) -> dict[str, Any]:
        oid = asked["oid"]
        if oid in self.hub.store:
            return asked
        port = urlsplit(self.hub.endpoint).port
        return asked | {"actions": {"upload": {"href": f"http://127.0.0.1:{port}/store/{oid}?signed=1"}}}

    def commit(self, name: str, lines: list[dict[str, Any]]) -> tuple[int, Any, dict[str, str]]:
        repo, files = self.hub.repos[name], {}
        for line in lines:
            told = line["value"]
            if line["key"] == "lfsFile":
                if told["oid"] not in self.hub.store:
                    return 400, {"error": "no such object"}, {}
                files[told["path"]] = Stored(told["oid"], told["size"], True)
            elif line["key"] == "file":
                content = base64.b64decode(told["content"])
                files[told["path"]] = Stored(git_name(content), len(content), False)
        repo.files |= files
        repo.commits.append(list(files))
        return 200, {"commitUrl": f"{self.hub.endpoint}/{name}/commit/{'c' * 40}", "commitOid": "c" * 40}, {}

    def reply(self, status: int, value: Any, headers: dict[str, str]) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for header in headers.items():
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def taking_uploads() -> Iterator[UploadHub]:
    """A hub at an address of its own, which `endpoint` holds."""
    hub = UploadHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    hub.endpoint = f"http://localhost:{server.server_address[1]}"  # the store has another name
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
