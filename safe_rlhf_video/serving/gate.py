"""Checks who asks before any route does, counts and logs the answers, and closes connections that still send (ASGI)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from safe_rlhf_video.serving.access_log import REQUEST_ID, Access, AccessLog, name_request
from safe_rlhf_video.serving.keys import KeyRing
from safe_rlhf_video.serving.protocol import name_address
from safe_rlhf_video.serving.server_metrics import ServerMetrics
from safe_rlhf_video.serving.settings import ServerSettings

# An address bar could not send a key; none of these pages reveals a request or a model.
PUBLIC_PATHS = frozenset({"/", "/healthz", "/readyz", "/docs", "/openapi.json"})
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
    """Checks host, origin and key, names the request and its client, and counts and logs every answer.

    Routes find `client` and `request_id` in the state of the request.

    Args:
        app: the routes.
        routes: the paths that have a label of their own in the metrics.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ServerSettings,
        keys: KeyRing,
        metrics: ServerMetrics,
        log: AccessLog,
        routes: frozenset[str],
    ) -> None:
        self._app = app
        self._keys = keys
        self._hosts = {"localhost", "127.0.0.1", "::1", settings.host.lower()}
        self._metrics = metrics
        self._log = log
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = name_request(headers.get("x-request-id"))
        address = name_address(scope["client"][0] if scope.get("client") else None)
        REQUEST_ID.set(request_id)
        scope["state"] |= {"client": address, "request_id": request_id}
        exchange = _Exchange(scope, headers, receive, send)
        started_s = time.monotonic()
        with self._metrics.in_flight.track_inprogress():
            try:
                try:
                    name = self._check(scope["path"], headers)
                except HTTPException as error:
                    await answer_error(error)(scope, receive, exchange.send)
                else:
                    if name is not None:
                        scope["state"]["client"] = name
                        self._metrics.client_requests.labels(name).inc()
                    await self._app(scope, exchange.receive, exchange.send)
            finally:
                route, seconds = self._route(scope["path"]), time.monotonic() - started_s
                self._metrics.requests.labels(route, exchange.status).inc()
                self._metrics.request_seconds.labels(route).observe(seconds)
                if self._log.is_on:
                    client, method, status = scope["state"]["client"], scope["method"], exchange.status
                    self._log.write(Access(request_id, client, address, method, route, status, seconds))

    def _route(self, path: str) -> str:
        if path.startswith(PUBLIC_PREFIX):
            return "/page"
        return path if path in self._routes else "other"

    def _check(self, path: str, headers: Headers) -> str | None:
        """Returns the name of the key that was shown; None where none is needed."""
        if not self._keys.is_needed:
            self._check_origin(headers)
            return None
        if path in PUBLIC_PATHS or path.startswith(PUBLIC_PREFIX):
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        name = self._keys.find(token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", ""))
        if name is None:
            message = "key: missing or wrong; send Authorization: Bearer KEY or X-API-Key: KEY"
            raise HTTPException(401, message, {"WWW-Authenticate": "Bearer"})
        return name

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

    def __init__(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        self.status = CLIENT_LEFT
        self._receive = receive
        self._send = send
        self._request_id = scope["state"]["request_id"].encode()
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
            headers = [*message.get("headers", []), *SECURITY_HEADERS, (b"x-request-id", self._request_id)]
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
