"""What every request passes before its route: whose it is, and what becomes of its answer (ASGI)."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from safe_rlhf_video.serving.request_fields import RequestError
from safe_rlhf_video.serving.server_metrics import ServerMetrics
from safe_rlhf_video.serving.settings import ServerSettings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# Without these, an address bar could not ask for a key; none of them tells anything of a request or a model.
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
    """Checks host, origin and key, counts what was answered, and closes connections that still send.

    Args:
        app: the routes.
        routes: paths that have a line of their own among the metrics.
    """

    def __init__(self, app: App, settings: ServerSettings, metrics: ServerMetrics, routes: frozenset[str]) -> None:
        self._app = app
        self._key = None if settings.api_key is None else settings.api_key.encode()
        self._hosts = {"localhost", "127.0.0.1", "::1", settings.host.lower()}
        self._metrics = metrics
        self._routes = routes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, receive, send)
        started_s = time.monotonic()
        self._metrics.start_request()
        try:
            try:
                self._check(scope)
            except RequestError as error:
                await send_error(answer.send, error)
            else:
                await self._app(scope, answer.receive, answer.send)
        finally:
            self._metrics.end_request(self._route(scope["path"]), answer.status, time.monotonic() - started_s)

    def _route(self, path: str) -> str:
        if path.startswith(PUBLIC_PREFIX):
            return "/page"
        return path if path in self._routes else "other"

    def _check(self, scope: Message) -> None:
        headers = read_headers(scope)
        if self._key is None:
            self._check_origin(headers)
        elif scope["path"] not in PUBLIC_PATHS and not scope["path"].startswith(PUBLIC_PREFIX):
            scheme, _, token = headers.get("authorization", "").partition(" ")
            shown = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
            if not hmac.compare_digest(shown.encode("latin-1"), self._key):
                raise RequestError(401, "key: missing or wrong; send Authorization: Bearer KEY or X-API-Key: KEY")

    def _check_origin(self, headers: Mapping[str, str]) -> None:
        """Without a key, a page of another site must not use this server through the browser of who runs it.

        Such a page says whence it is in Origin; one whose name was made to point here has that name in Host.
        """
        host = headers.get("host", "")
        if _host_name(host) not in self._hosts:
            raise RequestError(403, "host: is not this server's; use the address that it printed at its start")
        origin = headers.get("origin")
        if origin is not None and urlsplit_safely(origin) != host.lower():
            raise RequestError(403, "origin: pages of other sites may not use this server without a key")


class _Answer:
    """The messages of one request and its answer."""

    def __init__(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = read_headers(scope)
        self.status = CLIENT_LEFT
        self._receive = receive
        self._send = send
        self._is_received = "transfer-encoding" not in headers and headers.get("content-length", "0") == "0"
        self._may_linger = "expect" not in headers

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
            await self._take_in_rest()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _take_in_rest(self) -> None:
        try:
            async with asyncio.timeout(LINGER_S):
                while not self._is_received:
                    await self.receive()
        except TimeoutError:
            pass


async def send_error(send: Send, error: RequestError) -> None:
    """Answer with an error, as all of them look."""
    content = json.dumps({"error": str(error)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in error_headers(error).items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": False})


def error_headers(error: RequestError) -> dict[str, str]:
    """What the answer to an error has besides."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def read_headers(scope: Mapping[str, Any]) -> dict[str, str]:
    """The headers of a request, names in lower case; of those that stand twice, the first."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
    return headers


def urlsplit_safely(origin: str) -> str | None:
    """Host and port of an origin, None for one that is none, as "null"."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    return parts.netloc.lower() if parts.scheme in ("http", "https") else None


def _host_name(host: str) -> str:
    """The name in a Host header, without its port and the brackets of an IPv6 address."""
    host = host.lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host
