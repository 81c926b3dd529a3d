"""A hub on loopback that answers what huggingface_hub asks for when files of a data set are listed and fetched."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE_BYTES = 100_000  # larger files are kept and described as the hub does with large ones
BLOCK_BYTES = 2**16


class Request(NamedTuple):
    """What was asked: `start` is the first byte of a range, None without one."""

    method: str
    path: str
    start: int | None
    token: str | None


@dataclass
class StubHub:
    """Serves `repositories` of data and `models`, their files by name; a context manager.

    Attributes:
        requests: all that was asked, in order.
        cut_after: file name -> bytes after which the connection is cut, once for each number.
        fail_with: from now on files are answered with this status and code; None to serve them.
        fail_after_cut: what `fail_with` becomes after a cut.
        bytes_per_s: how fast files are sent.
        reported_sizes: file name -> a size to tell in place of the true one.
        listing_error: status and code with which the list of files is answered.
    """

    repositories: dict[str, dict[str, bytes]]
    requests: list[Request] = field(default_factory=list)
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    fail_with: tuple[int, str] | None = None
    fail_after_cut: tuple[int, str] | None = None
    bytes_per_s: float | None = None
    reported_sizes: dict[str, int] = field(default_factory=dict)
    listing_error: tuple[int, str] | None = None
    models: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def __enter__(self) -> StubHub:
        hub = self

        class Handler(_Handler):
            stub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def starts(self, name: str) -> list[int | None]:
        """The first byte of each request for a file's content."""
        return [request.start for request in self.requests if request.path.endswith(f"/{name}")]

    def describe(self, files: dict[str, bytes]) -> list[dict[str, object]]:
        described = []
        for name, content in files.items():
            size = self.reported_sizes.get(name, len(content))
            entry: dict[str, object] = {"rfilename": name, "size": size}
            entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            if size > LARGE_BYTES:
                entry["lfs"] = {"size": size, "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 134}
            described.append(entry)
        return described


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stub: StubHub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else None
        if path.startswith("/api/models/"):
            self.stub.requests.append(Request("GET", path, start, self.headers.get("Authorization")))
            self.send_model_listing(path.removeprefix("/api/models/"))
            return
        if path.startswith("/api/") and not path.startswith("/api/datasets/"):  # what the library asks for itself
            self.send_error_code(404, "EntryNotFound")
            return
        self.stub.requests.append(Request("GET", path, start, self.headers.get("Authorization")))
        if path.startswith("/api/datasets/"):
            self.send_listing(path.removeprefix("/api/datasets/"))
        elif path.startswith("/datasets/"):
            self.send_to_store(path)
        elif path.startswith("/store/"):
            repository, _, name = path.removeprefix("/store/").partition("/resolve/")
            self.send_file(name, self.stub.repositories[repository][name], start or 0)
        else:
            self.send_model_file(path)

    def do_HEAD(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.stub.requests.append(Request("HEAD", path, None, self.headers.get("Authorization")))
        self.send_model_file(path)

    def send_model_listing(self, path: str) -> None:
        """A repository's commit, or with /tree/ its files, as `snapshot_download` asks for them."""
        is_tree = "/tree/" in path
        repository, _, revision = path.partition("/tree/" if is_tree else "/revision/")
        files = self.stub.models.get(repository)
        if files is None:
            self.send_error_code(404, "RepoNotFound")
        elif revision not in ("", "main", COMMIT):
            self.send_error_code(404, "RevisionNotFound")
        else:
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            body = json.dumps(tree if is_tree else {"id": repository, "sha": COMMIT})
            self.send_whole(200, body.encode(), {"Content-Type": "application/json"})

    def send_model_file(self, path: str) -> None:
        repository, _, rest = path.removeprefix("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        content = self.stub.models.get(repository, {}).get(name)
        if content is None or revision not in ("main", COMMIT):
            self.send_error_code(404, "EntryNotFound")
        else:
            self.send_whole(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def send_listing(self, path: str) -> None:
        repository, _, revision = path.partition("/revision/")
        files = self.stub.repositories.get(repository)
        if self.stub.listing_error:
            self.send_error_code(*self.stub.listing_error)
        elif files is None:
            self.send_error_code(404, "RepoNotFound")
        elif revision not in ("", "main", COMMIT):
            self.send_error_code(404, "RevisionNotFound")
        else:
            body = {"id": repository, "sha": COMMIT, "siblings": self.stub.describe(files)}
            self.send_whole(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def send_to_store(self, path: str) -> None:
        """Files lie at another address than the repository, as on the hub."""
        repository, _, rest = path.removeprefix("/datasets/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if self.stub.fail_with:
            self.send_error_code(*self.stub.fail_with)
        elif revision != COMMIT or name not in self.stub.repositories.get(repository, {}):
            self.send_error_code(404, "EntryNotFound")
        else:
            self.send_whole(302, b"", {"Location": f"/store/{repository}/resolve/{name}", "X-Repo-Commit": COMMIT})

    def send_file(self, name: str, content: bytes, start: int) -> None:
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        cuts = self.stub.cut_after.get(name)
        end = cuts.pop(0) if cuts else None
        for at in range(start, len(content) if end is None else end, BLOCK_BYTES):
            self.wfile.write(content[at : min(at + BLOCK_BYTES, end or len(content))])
            if self.stub.bytes_per_s:
                time.sleep(BLOCK_BYTES / self.stub.bytes_per_s)
        if end is not None:
            self.stub.fail_with = self.stub.fail_after_cut
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def send_error_code(self, status: int, code: str) -> None:
        self.send_whole(status, b"{}", {"X-Error-Code": code, "X-Error-Message": "as the test wants it"})

    def send_whole(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Nothing: `requests` keeps what was asked."""

    def handle(self) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client was killed
            super().handle()
