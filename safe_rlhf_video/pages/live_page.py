"""Serves the dashboard as a live page on this machine alone: the page, what changes in it, and nothing else."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from safe_rlhf_video.errors import ConfigError, SafeRLHFVideoError
from safe_rlhf_video.pages.dashboard_page import dashboard_plots, make_dashboard_body, make_dashboard_page
from safe_rlhf_video.pages.document import Panels
from safe_rlhf_video.pages.run_metrics import RunMetrics

HOST = "127.0.0.1"


class _LatestPlots:
    """The plots of some runs, drawn anew when a run has written."""

    def __init__(self, runs: Sequence[RunMetrics]):
        self._runs, self._lock = runs, threading.Lock()
        self._drawn: tuple[Any, Panels] | None = None

    def get(self) -> Panels:
        with self._lock:
            for run in self._runs:
                run.refresh()
            states = [run.state for run in self._runs]
            if self._drawn is None or self._drawn[0] != states:
                self._drawn = states, dashboard_plots(self._runs)
            return self._drawn[1]


def build_server(runs: Sequence[RunMetrics], port: int) -> ThreadingHTTPServer:
    """A server that listens already; `serve_forever` answers.

    Args:
        port: 0 takes any that is free; `server_port` is the one taken.

    Raises:
        ConfigError: the port is not free.
    """
    latest = _LatestPlots(runs)
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
            elif self.path not in ("/", "/body"):
                self._answer(404, "there is only /")
            else:
                try:
                    plots = latest.get()
                except SafeRLHFVideoError as error:
                    self._answer(500, str(error))
                    return
                page = (make_dashboard_page(runs, plots, nonce) if self.path == "/"
                        else make_dashboard_body(runs, plots, is_live=True))  # fmt: skip
                self._answer(200, page, "text/html")

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
