"""Reads HTTP/1.1 so that few clients cannot keep the others waiting (an HTTP protocol of uvicorn).

uvicorn reads a body as soon as it comes, and waits for heads and for readers of answers as long as it takes. Here

- no byte of a body is read before the application asks for it, so a client without a key costs nothing but its head;
- a body has no more pieces than its size explains: each piece costs as much as many bytes;
- a connection is closed whose client takes too long to send a head, or to read an answer;
- the connections of one address are limited.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections import Counter
from typing import Any

import h11
from h11._connection import DEFAULT_MAX_INCOMPLETE_EVENT_SIZE
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

from safe_rlhf_video.serving.server_metrics import ServerMetrics

# From the connection, or from the previous answer, to the last line of a request's head.
HEAD_TIMEOUT_S = 20.0
# For which an answer that fills the buffers may find no reader.
READ_TIMEOUT_S = 30.0

# Idle connections count. Requests beyond queue_size are refused long before, with a JSON error.
MAX_CONNECTIONS = 2000
MAX_CONNECTIONS_OF_ADDRESS = 1000

# Chunks, or what the network makes of a body: beyond the first ones, their mean size must not be smaller.
NUM_FREE_PIECES = 1000
MIN_PIECE_BYTES = 256


class Connections:
    """Counts the open connections by address."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self.metrics = metrics
        self._num: Counter[str] = Counter()

    def add(self, address: str) -> bool:
        """Counts one more; returns whether it is within the limit."""
        self._num[address] += 1
        return self._num[address] <= MAX_CONNECTIONS_OF_ADDRESS

    def remove(self, address: str) -> None:
        """Counts one less."""
        self._num[address] -= 1
        if not self._num[address]:
            del self._num[address]


def name_address(host: str | None) -> str:
    """Returns the address that limits count by: of IPv6 the first half, which is what one customer gets."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address) and not address.is_loopback:
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


class _Connection(h11.Connection):
    """Holds a body back until `is_held` is unset, and refuses one in too many pieces.

    Attributes:
        refusal: what is wrong with the pieces; empty if nothing is.
    """

    is_held = False
    refusal = ""
    _length: int | None = 0
    _num_pieces = 0
    _num_bytes = 0

    @property
    def num_to_come(self) -> int | None:
        """Bytes of the body that have not arrived; None where its length was not declared."""
        return None if self._length is None else self._length - self._num_bytes - len(self.trailing_data[0])

    def next_event(self) -> Any:
        if self.is_held:
            return h11.NEED_DATA
        event = super().next_event()
        if isinstance(event, h11.Request):
            headers = dict(event.headers)
            self._length = None if b"transfer-encoding" in headers else int(headers.get(b"content-length", 0))
            self._num_pieces = self._num_bytes = 0
            self.is_held = self._length != 0
        elif isinstance(event, h11.Data):
            self._num_pieces += 1
            self._num_bytes += len(event.data)
            if self._num_pieces > NUM_FREE_PIECES + self._num_bytes // MIN_PIECE_BYTES:
                self.refusal = f"body: comes in pieces of less than {MIN_PIECE_BYTES} bytes; send larger chunks"
                raise h11.RemoteProtocolError(self.refusal)
        return event


class _Flow(FlowControl):
    """Tells the protocol that the application asks for more of the body."""

    def __init__(self, protocol: Protocol) -> None:
        super().__init__(protocol.transport)
        self._protocol = protocol

    def resume_reading(self) -> None:
        self._protocol.release()
        super().resume_reading()


class Protocol(H11Protocol):
    """uvicorn's protocol with the limits of this module.

    Applications find in `scope["state"]["discard"]` a function that drops the rest of a request's body.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None
    _discarded: asyncio.Event | None = None  # set at the end of the body that is dropped
    _num_to_discard: int | None = None

    def __init__(self, *arguments: Any, connections: Connections, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._connections_of_address = connections
        self._body = _Connection(h11.SERVER, DEFAULT_MAX_INCOMPLETE_EVENT_SIZE)
        self.conn = self._body
        self.app_state = {**self.app_state, "discard": self.discard}

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.flow = _Flow(self)
        self._address = name_address(self.client[0] if self.client else None)
        if not self._connections_of_address.add(self._address):
            self._connections_of_address.metrics.refused.labels("connections").inc()
            self._answer(
                429, b"Too Many Requests", f"{MAX_CONNECTIONS_OF_ADDRESS} connections of yours are open; close some"
            )
            transport.close()
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        if self._discarded is not None:
            if self._num_to_discard is not None:
                self._num_to_discard -= len(data)
                if self._num_to_discard <= 0:
                    self._discarded.set()
            return
        super().data_received(data)
        if self._body.is_held and not self.transport.is_closing():
            self.flow.pause_reading()
        self._watch()

    def release(self) -> None:
        """Reads what has arrived of the body that was held back."""
        if self._body.is_held and self._discarded is None and not self.transport.is_closing():
            self._body.is_held = False
            self.handle_events()

    def discard(self) -> asyncio.Event:
        """Drops the rest of the body without reading it; the event is set when it has ended or the client has left."""
        self._discarded = asyncio.Event()
        self._num_to_discard = self._body.num_to_come
        if self.transport.is_closing() or (self._num_to_discard is not None and self._num_to_discard <= 0):
            self._discarded.set()
        else:
            self.flow.resume_reading()
        return self._discarded

    def pause_writing(self) -> None:
        super().pause_writing()
        self._read_timer = self._read_timer or self.loop.call_later(READ_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._connections_of_address.remove(self._address)
        self._stop_watch()
        if self._read_timer is not None:
            self._read_timer.cancel()
        if self._discarded is not None:
            self._discarded.set()

    def send_400_response(self, msg: str) -> None:
        """Sends what uvicorn sends, in the form of all other errors; nothing if an answer has begun."""
        if self._body.refusal:
            self._connections_of_address.metrics.refused.labels("pieces").inc()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            message = self._body.refusal or "the request is not HTTP/1.1 as this server reads it"
            self._answer(400, b"Bad Request", message)
        if self.cycle is not None:
            # The route that works on the broken body is cancelled.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _answer(self, status: int, reason: bytes, message: str) -> None:
        content = json.dumps({"error": message}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
            (b"connection", b"close"),
        ]
        events = (
            h11.Response(status_code=status, headers=headers, reason=reason),
            h11.Data(data=content),
            h11.EndOfMessage(),
        )
        for event in events:
            self.transport.write(self.conn.send(event) or b"")

    def _watch(self) -> None:
        is_idle = self.cycle is None or self.cycle.response_complete
        if not is_idle or self.transport.is_closing():
            self._stop_watch()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _stop_watch(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
