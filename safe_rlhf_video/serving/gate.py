"""Checks who asks before any route does, counts the answers, and closes connections that still send (ASGI)."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from safe_rlhf_video.serving.protocol import name_address
from safe_rlhf_video.serving.server_metrics import ServerMetrics
from safe_rlhf_video.serving.settings import ServerSettings

# An address bar could not send a key; none of these pages reveals a request or a model.
PUBLIC_PATHS = frozenset({"/", "/healthz", "/docs", "/openapi.json"})
PUBLIC_PREFIX = "/page/"

# An answer that is sent before its request is whole is lost if the connection is closed at once.
LINGER_S = 2.0
CLIENT_LEFT = 499

SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


class Gate:
    """Checks host, origin and key, and counts every answer.

    Args:
        app: the routes.
        routes: the paths that have a label of their own in the metrics.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: ServerMetrics, routes: frozenset[str]) -> None:
        self._app = app
        self._key = None if settings.api_key is None else settings.api_key.encode()
        self._hosts = {"localhost", "127.0.0.1", "::1", settings.host.lower()}
        self._metrics = metrics
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        client = scope.get("client")
        scope["state"]["client"] = name_address(client[0] if client else None)
        started_s = time.monotonic()
        with self._metrics.in_flight.track_inprogress():
            try:
                try:
                    self._check(scope["path"], Headers(scope=scope))
                except HTTPException as error:
                    await answer_error(error)(scope, receive, exchange.send)
                else:
                    await self._app(scope, exchange.receive, exchange.send)
            finally:
                route = self._route(scope["path"])
                self._metrics.requests.labels(route, exchange.status).inc()
                self._metrics.request_seconds.labels(route).observe(time.monotonic() - started_s)

    def _route(self, path: str) -> str:
        if path.startswith(PUBLIC_PREFIX):
            return "/page"
        return path if path in self._routes else "other"

    def _check(self, path: str, headers: Headers) -> None:
        if self._key is None:
            self._check_origin(headers)
        elif path not in PUBLIC_PATHS and not path.startswith(PUBLIC_PREFIX):
            scheme, _, token = headers.get("authorization", "").partition(" ")
            shown = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
            if not hmac.compare_digest(shown.encode("latin-1"), self._key):
                message = "key: missing or wrong; send Authorization: Bearer KEY or X-API-Key: KEY"
                raise HTTPException(401, message, {"WWW-Authenticate": "Bearer"})

    def _check_origin(self, headers: Headers) -> None:
        """Without a key, a page of another site must not use this server through the browser of its owner.

        Such a page names its site in Origin; one whose name was made to point here has that name in Host. (Starlette's
        TrustedHostMiddleware would answer 400 in plain text, and does not look at Origin.)
        """
        host = headers.get("host", "").lower()
        if _host_name(host) not in self._hosts:
            raise HTTPException(403, "host: is not this server's; use the address that it printed at its start")
        origin = headers.get("origin")
        if origin is not None and _origin_host(origin) != host:
            raise HTTPException(403, "origin: pages of other sites may not use this server without a key")


class _Exchange:
    """The messages of one request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.status = CLIENT_LEFT
        self._receive = receive
        self._send = send
        headers = Headers(scope=scope)
        self._is_received = "transfer-encoding" not in headers and headers.get("content-length", "0") == "0"
        self._may_linger = "expect" not in headers
        self._discard: Callable[[], asyncio.Event] = scope["state"]["discard"]

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._is_received = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", []), *SECURITY_HEADERS]
            if not self._is_received:
                headers.append((b"connection", b"close"))
            await self._send({**message, "headers": headers})
            self.status = message["status"]
        elif self._is_received or not self._may_linger or message.get("more_body", False):
            await self._send(message)
        else:
            await self._send({**message, "more_body": True})
            await self._drop_rest()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _drop_rest(self) -> None:
        try:
            async with asyncio.timeout(LINGER_S):
                await self._discard().wait()
        except TimeoutError:
            pass


def answer_error(error: HTTPException) -> JSONResponse:
    """The answer to an error, in the form of all of them."""
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _origin_host(origin: str) -> str | None:
    """Host and port of an origin; None for one without, such as "null"."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    return parts.netloc.lower() if parts.scheme in ("http", "https") else None


def _host_name(host: str) -> str:
    """The name in a Host header, without its port and the brackets of an IPv6 address."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host
