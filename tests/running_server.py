"""Runs scripts/serve.py in a process on a free port, and asks it with a client that hides nothing of HTTP."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import command, environment, start
from script_server import ScriptRun

START_S = 120.0
JSON_HEADERS = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def value(self) -> Any:
        return json.loads(self.content)

    @property
    def error(self) -> str:
        """The message of an error, after checking the form that all errors have."""
        assert self.status >= 400, self
        assert list(self.value) == ["error"], self
        message = self.value["error"]
        assert message, self
        assert "\n" not in message, message
        assert len(message) < 500, message
        return message


@dataclass
class RunningServer:
    """A server that answers.

    Attributes:
        process: Its process.
        port: Where it answers.
        printed: The file with what it printed.
        log: The file with its errors.
        key: The key that it asks for.
    """

    process: subprocess.Popen[bytes] | ScriptRun
    port: int
    printed: Path
    log: Path
    key: str | None = None

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, timeout: float = 90
    ) -> Answer:
        """Sends one request on a new connection; an iterable body is sent in chunks."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        key = {"X-API-Key": self.key} if self.key else {}
        try:
            connection.request(method, path, body, {**key, **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, value: Any, headers: Mapping[str, str] | None = None) -> Answer:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.ask("POST", path, content, {**JSON_HEADERS, **(headers or {})})

    def upload(self, path: str, parts: Sequence[tuple[str, str | Path | bytes]]) -> Answer:
        content, kind = encode_parts(parts)
        return self.ask("POST", path, content, {"Content-Type": kind})

    def send_raw(self, content: bytes, timeout: float = 10.0, is_end: bool = False) -> bytes:
        """Sends any bytes and returns what comes back, until the server closes or falls silent."""
        received = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            try:
                connection.sendall(content)
                if is_end:
                    connection.shutdown(socket.SHUT_WR)
                while chunk := connection.recv(65536):
                    received += chunk
            except (ConnectionError, TimeoutError):
                pass
        return received

    def end(self, sent: int = signal.SIGTERM, timeout: float = 60.0) -> int:
        self.process.send_signal(sent)
        return self.process.wait(timeout)


def in_json(clip: Path) -> dict[str, str]:
    """Encodes a clip as a field of JSON."""
    return {"data": base64.b64encode(clip.read_bytes()).decode()}


def encode_parts(parts: Sequence[tuple[str, str | Path | bytes]]) -> tuple[bytes, str]:
    """Builds a multipart body and its content type; a part is text, or a file given by its path or bytes."""
    boundary = "3f1d7a"
    content = b""
    for name, value in parts:
        head = f'Content-Disposition: form-data; name="{name}"'
        if not isinstance(value, str):
            head += '; filename="clip.mp4"\r\nContent-Type: video/mp4'
            value = value if isinstance(value, bytes) else value.read_bytes()
        else:
            value = value.encode()
        content += f"--{boundary}\r\n{head}\r\n\r\n".encode() + value + b"\r\n"
    return content + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


@contextmanager
def running_server(
    folder: Path, *arguments: object, key: str | None = None, as_users_do: bool = False
) -> Iterator[RunningServer]:
    """Starts a server with these arguments, and kills it at the end.

    Args:
        folder: Holds its output and its uploads.
        arguments: Of scripts/serve.py.
        key: The key that it asks for.
        as_users_do: Start a new interpreter, with decoding processes of its own; a fork does otherwise.
    """
    (folder / "tmp").mkdir(exist_ok=True)
    extra = {"TMPDIR": str(folder / "tmp"), **({"SAFE_RLHF_VIDEO_API_KEY": key} if key else {})}
    words = ("scripts/serve.py", "--port", 0, "--device", "cpu", *arguments)
    printed, log = folder / "stdout", folder / "stderr"
    for path in (printed, log):  # an earlier server's
        path.unlink(missing_ok=True)
    process: subprocess.Popen[bytes] | ScriptRun
    if as_users_do:
        with printed.open("w") as stdout, log.open("w") as stderr:
            process = subprocess.Popen(command(*words), stdout=stdout, stderr=stderr, env=environment(**extra))
    else:
        process = start(*words, output=folder, **extra)
    try:
        deadline = time.monotonic() + START_S
        while process.poll() is None and not (printed.exists() and "\n" in printed.read_text()):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        line = printed.read_text()
        assert line.startswith("http://"), line + log.read_text()
        yield RunningServer(process, int(line.split("/")[2].rsplit(":", 1)[1]), printed, log, key)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(60)


def children_of(process_id: int) -> list[int]:
    """Returns the running children of a process."""
    found = []
    for task in Path(f"/proc/{process_id}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{process_id}/status").read_text()
