"""A hub on loopback: what huggingface_hub's snapshot_download asks for, and the ways in which it can go wrong."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Repository:
    """`revisions`: branch or tag -> its files; `card`: the front matter of its README.md."""

    revisions: dict[str, dict[str, bytes]]
    token: str | None = None
    gated: bool = False
    card: Mapping[str, Any] | None = None


@dataclass
class Hub:
    """`requests` are (method, path, Range header) in order; `break_at` cuts answers, `refuse_range` ends resuming.

    What `stalls` matches, of "METHOD path", is accepted and never answered.
    """

    repositories: Mapping[str, Repository]
    endpoint: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    break_at: int | None = None
    refuse_range: bool = False
    stalls: str = ""
    over: threading.Event = field(default_factory=threading.Event)

    def downloaded(self) -> list[str]:
        """Files whose bytes were asked for."""
        return [path.rpartition("/")[2] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]


def commit(name: str) -> str:
    """The commit that a revision stands for; a commit stands for itself."""
    return name if re.fullmatch("[0-9a-f]{40}", name) else hashlib.sha1(name.encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One exchange with the hub of the server."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.hub.requests.append((self.command, self.path, self.headers.get("Range")))
        if self.hub.stalls and re.search(self.hub.stalls, f"{self.command} {self.path}"):
            self.hub.over.wait(60)
            self.close_connection = True
            return None
        path = self.path.partition("?")[0]
        match = re.fullmatch(r"/api/models/(.+?)/(revision|tree)/([^/]+)", path) or re.fullmatch(
            r"/(.+?)/(resolve)/([^/]+)/(.+)", path
        )
        name, kind, revision, *file = (
            match.groups() if match else (path.removeprefix("/api/models/"), "revision", "main")
        )
        repository = self.hub.repositories.get(name)
        allowed = repository and self.headers.get("Authorization") in (None, f"Bearer {repository.token}")
        if repository is None or (repository.token and (not allowed or "Authorization" not in self.headers)):
            return self.fail(403, "GatedRepo") if repository and repository.gated else self.fail(401, "RepoNotFound")
        files = next((files for key, files in repository.revisions.items() if revision in (key, commit(key))), None)
        if files is None:
            return self.fail(404, "RevisionNotFound")
        if kind == "resolve":
            return self.send_file(files[file[0]], commit(revision))
        siblings = [{"rfilename": name} for name in files]
        tree = [{"type": "file", "path": n, "size": len(data), "oid": etag(data)} for n, data in files.items()]
        told = {"id": name, "sha": commit(revision), "siblings": siblings, "cardData": repository.card}
        return self.send_json(tree if kind == "tree" else told)

    do_HEAD = do_GET

    def fail(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_file(self, data: bytes, sha: str) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(asked[1]) if asked else 0
        if start and self.hub.refuse_range:
            return self.fail(400, "Broken")
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{etag(data)}"')
        self.send_header("X-Repo-Commit", sha)
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return None
        if self.hub.break_at is not None and not start and len(data) > self.hub.break_at:
            self.wfile.write(data[: self.hub.break_at])
            self.close_connection = True
            return None
        self.wfile.write(data[start:])
        return None

    def log_message(self, format: str, *args: Any) -> None:
        pass


def etag(data: bytes) -> str:
    """git's name of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serve(repositories: Mapping[str, Repository]) -> Iterator[Hub]:
    """A hub on a free port of 127.0.0.1 until the block ends."""
    hub = Hub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        hub.over.set()
        server.shutdown()
        thread.join()
        server.server_close()
