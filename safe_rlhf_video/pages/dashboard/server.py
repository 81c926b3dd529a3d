"""The live page: one address on this machine alone, which serves the page, what changes in it, and nothing else."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from safe_rlhf_video.errors import ConfigError, SafeRLHFVideoError
from safe_rlhf_video.pages.dashboard.page import make_body, make_page, make_title
from safe_rlhf_video.pages.dashboard.runs import RunMetrics

HOST = "127.0.0.1"


def build_server(runs: Sequence[RunMetrics], port: int) -> ThreadingHTTPServer:
    """A server that listens already; `serve_forever` answers.

    Args:
        port: 0 takes any that is free; `server_port` tells which.

    Raises:
        ConfigError: the port cannot be had.
    """
    lock = threading.Lock()
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; script-src 'nonce-{nonce}'"
    )

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A page of another site whose name was made to point here must not read this one.
            host = self.headers.get("Host", "").rsplit(":", 1)[0]
            if host not in (HOST, "localhost"):
                self._answer(403, "this page is for 127.0.0.1 alone")
            elif self.path in ("/", "/body"):
                try:
                    with lock:
                        for run in runs:
                            run.refresh()
                        body = make_body(runs, is_live=True)
                except SafeRLHFVideoError as error:
                    self._answer(500, str(error))
                    return
                page = make_page(body, make_title(runs), nonce) if self.path == "/" else body
                self._answer(200, page, "text/html")
            else:
                self._answer(404, "there is only /")

        def _answer(self, status: int, text: str, kind: str = "text/plain") -> None:
            content = text.encode(errors="replace")
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Security-Policy", policy)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass  # a line every few seconds tells nobody anything

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"port {port} cannot be had ({error}); give another one, or 0 for any") from error
