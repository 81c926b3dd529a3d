"""What keeps a few clients from stopping the reward server: limits that hold before work is done."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import h11
import pytest
from fastapi import HTTPException, Request
from running_server import RunningServer, running_server
from small_models import REWARD, write_model
from starlette.types import Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.serving import protocol, request_body
from safe_rlhf_video.serving.client_limits import ClientLimits
from safe_rlhf_video.serving.protocol import Connections, Protocol, name_address
from safe_rlhf_video.serving.request_body import read_fields
from safe_rlhf_video.serving.request_clips import decode_base64, find_under
from safe_rlhf_video.serving.server_metrics import ServerMetrics
from safe_rlhf_video.serving.settings import ServerSettings

SETTINGS = ServerSettings(model=("model",))
CHUNKED = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
App = Callable[[Scope, Receive, Send], Awaitable[None]]


# --- connections ------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def listening(app: App, metrics: ServerMetrics) -> AsyncIterator[int]:
    """Serves an application with the server's protocol in this process; yields the port."""
    config = Config(app, lifespan="off", log_config=None)
    config.load()
    state, connections = ServerState(), Connections(metrics)
    server = await asyncio.get_running_loop().create_server(
        lambda: Protocol(config=config, server_state=state, app_state={}, connections=connections), "127.0.0.1", 0
    )
    async with server:
        yield server.sockets[0].getsockname()[1]


async def exchange(port: int, content: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(content)
    try:
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()


async def answer(send: Send, status: int, body: bytes = b"") -> None:
    headers = [(b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def in_chunks(content: bytes, size: int) -> bytes:
    chunks = [content[start : start + size] for start in range(0, len(content), size)]
    return CHUNKED + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def test_no_byte_of_a_body_is_read_before_the_application_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[int] = []
    next_event = h11.Connection.next_event

    def count(connection: h11.Connection) -> Any:
        event = next_event(connection)
        if isinstance(event, h11.Data):
            pieces.append(len(event.data))
        return event

    monkeypatch.setattr(h11.Connection, "next_event", count)
    received: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if b"x-key" not in headers:
            return await answer(send, 401)
        message: Message = {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            received.append(len(message.get("body", b"")))
        return await answer(send, 200)

    async def ask() -> None:
        metrics = ServerMetrics()
        async with listening(app, metrics) as port:
            assert (await exchange(port, in_chunks(b"a" * 20_000, 1))).startswith(b"HTTP/1.1 401")
            assert pieces == []
            key = b"X-Key: k\r\nHost"
            # Beyond the first ones, pieces have a mean size.
            many = in_chunks(b"a" * 20_000, 1).replace(b"Host", key)
            assert b"larger chunks" in await exchange(port, many)
            assert len(pieces) == protocol.NUM_FREE_PIECES + protocol.NUM_FREE_PIECES // protocol.MIN_PIECE_BYTES + 1
            received.clear()
            for content, size in ((b"a" * 900, 1), (b"a" * 3_000_000, 700)):
                assert (await exchange(port, in_chunks(content, size).replace(b"Host", key))).startswith(
                    b"HTTP/1.1 200"
                )
            assert sum(received) == 3_000_900
            assert b'refused_total{limit="pieces"} 1' in metrics.text()

    asyncio.run(ask())


def test_connections_of_an_address_and_answers_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS_OF_ADDRESS", 2)
    monkeypatch.setattr(protocol, "READ_TIMEOUT_S", 0.05)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 200, bytes(64 << 20 if scope["path"] == "/large" else 1))

    async def ask() -> None:
        async with listening(app, ServerMetrics()) as port:
            get = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"
            idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            refused = await exchange(port, get % b"/")
            assert refused.startswith(b"HTTP/1.1 429")
            assert b"connections of yours" in refused
            for _, writer in idle:
                writer.close()
                await writer.wait_closed()
            await asyncio.sleep(0.05)
            assert (await exchange(port, get % b"/")).startswith(b"HTTP/1.1 200")
            with socket.create_connection(("127.0.0.1", port)) as deaf:
                deaf.sendall(get % b"/large")
                await asyncio.sleep(0.5)  # the buffers fill, and nobody reads
                num_read = 0
                with contextlib.suppress(ConnectionError):
                    while chunk := await asyncio.to_thread(deaf.recv, 1 << 20):
                        num_read += len(chunk)
                assert num_read < 64 << 20

    asyncio.run(ask())
    assert [name_address(one) for one in ("127.0.0.1", "::1", "2001:db8:1:2:3::4", "::ffff:10.0.0.1", None)] == [
        "127.0.0.1", "::1", "2001:db8:1:2::/64", "10.0.0.1", "unknown",
    ]  # fmt: skip


# --- bodies and fields ------------------------------------------------------------------------------------------------


async def read_json(chunks: list[tuple[float, bytes]], limits: ClientLimits, client: str = "a") -> dict[str, Any]:
    """The fields of a JSON body, each of whose chunks comes so many seconds after the one before."""
    source = iter(chunks)

    async def receive() -> dict[str, Any]:
        after_s, chunk = next(source)
        await asyncio.sleep(after_s)
        return {"type": "http.request", "body": chunk, "more_body": chunk is not chunks[-1][1]}

    request = Request({"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}, receive)
    async with contextlib.AsyncExitStack() as stack:
        body = stack.enter_context(limits.body(client))
        return await read_fields(request, SETTINGS, body, asyncio.Lock(), stack)


def test_a_body_that_comes_too_slowly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "BODY_FREE_S", 0.2)
    limits = ClientLimits(SETTINGS, ServerMetrics())
    with pytest.raises(HTTPException) as slow:
        asyncio.run(read_json([(0.0, b'{"prompt": "'), (0.1, b"a"), (30.0, b'"}')], limits))
    assert slow.value.status_code == 408
    # The time grows with what has come.
    content = b'{"prompt": "' + b"a" * 40_000
    assert asyncio.run(read_json([(0.0, content), (0.5, b'"}')], limits)) == {"prompt": "a" * 40_000}
    assert limits.num_bytes == 0


def test_limits_of_all_and_of_each_client() -> None:
    settings = SETTINGS.model_copy(update={"queue_size": 4, "bodies_mb": 1.0, "client_clips_per_minute": 60})
    metrics = ServerMetrics()
    now_s = [100.0]
    limits = ClientLimits(settings, metrics, lambda: now_s[0])

    with limits.place("a"), limits.place("a"), limits.place("a"):
        limits.check_place("a")  # there is nobody else
        limits.is_shared = True
        with pytest.raises(HTTPException, match="2 requests of yours"):
            limits.check_place("a")
        with limits.place("b"), pytest.raises(HTTPException, match="4 requests are in work"):
            limits.check_place("c")
    assert limits.num_requests == 0

    with limits.body("a") as mine, limits.body("b") as other, limits.body("c") as last:
        mine.add(500_000)
        with pytest.raises(HTTPException, match="in work of you hold"):
            mine.add(1)
        other.add(400_000)
        with pytest.raises(HTTPException, match="of the server hold"):
            last.check(100_001)
        last.add(100_000)
    assert limits.num_bytes == 0

    limits.take_clips("a", 59)
    limits.take_clips("b", 1)
    with pytest.raises(HTTPException, match="60 clips a minute") as spent:
        limits.take_clips("a", 11)
    assert spent.value.status_code == 429
    assert spent.value.headers == {"Retry-After": "10"}
    now_s[0] += 10
    limits.take_clips("a", 11)
    now_s[0] += 60
    limits.take_clips("a", 600)  # more than a minute's: all of that, and the next one waits for longer
    with pytest.raises(HTTPException) as spent:
        limits.take_clips("a", 1)
    assert spent.value.headers == {"Retry-After": "541"}
    assert b'refused_total{limit="quota"} 2' in metrics.text()
    # The server takes one clip before it reads a body, and then the others.
    limits.take_clips("d", 1)
    limits.take_clips("d", 600, num_taken=1)
    with pytest.raises(HTTPException) as spent:
        limits.take_clips("d", 1)
    assert spent.value.headers == {"Retry-After": "541"}
    with pytest.raises(ConfigError, match="bodies_mb: a client's share of 50 MB"):
        ServerSettings(model=("model",), bodies_mb=100.0)


def test_a_long_path_is_refused_before_it_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "realpath", lambda *_, **__: pytest.fail("was resolved"))
    for path in ("../" * 20_000, "a/../" * 1000, "\ud800" * 5000):
        with pytest.raises(HTTPException, match="no such file") as caught:
            find_under(tmp_path, path, "video.path")
        assert caught.value.status_code == 400


def test_base64_is_decoded_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safe_rlhf_video.serving.request_clips._PIECE_BYTES", 8)
    assert list(decode_base64("AAECAwQFBgcICQ==")) == [bytes(range(6)), bytes(range(6, 10))]
    for wrong in ("AAECAw==BgcICQ==", "AAEC AwQ", "A", "AAECAwQFB", "é" * 8):
        with pytest.raises(ValueError, match=r"."):
            list(decode_base64(wrong))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("server")
    model = write_model(folder / "model", REWARD)
    with running_server(folder, "--model", model, "--max_body_mb", 1) as running:
        yield running


def test_bodies_that_pause_keep_no_other_body_waiting(server: RunningServer) -> None:
    head = (
        b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 900000\r\n\r\n"
    )
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            paused = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            paused.sendall(head + b'{"prompt": "' + b"a" * 270_000)
        body = json.dumps({"prompt": "a", "video": {"data": "A" * 400_000}}).encode()
        answered = server.ask("POST", "/score", body, {"Content-Type": "application/json"}, timeout=20)
        assert "video: is not a readable video" in answered.error
        held = float(server.get("/metrics").content.decode().split("\nsafe_rlhf_video_body_bytes ")[1].split("\n")[0])
        assert held > 10_000_000
