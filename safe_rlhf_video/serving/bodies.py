"""The body of a request, received piece by piece within limits: JSON, or multipart whose files go to disk at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any, BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from safe_rlhf_video.data.record_fields import show
from safe_rlhf_video.serving.clip_references import Uploads, no_room
from safe_rlhf_video.serving.request_fields import NUMBERS, RequestError, parse_number, parse_object
from safe_rlhf_video.serving.settings import ServerSettings

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

# Only so many requests with larger bodies are received and worked on at a time, the others wait: it bounds what bodies
# take of memory and disk.
LARGE_BODY_BYTES = 256 << 10
NUM_LARGE_BODIES = 8

MAX_PART_HEADERS = 8
MAX_PART_HEADER_BYTES = 2048


class ClientLeft(Exception):
    """The client closed the connection before its request was whole."""


async def read_fields(
    receive: Receive,
    headers: Mapping[str, str],
    fields: tuple[str, ...],
    settings: ServerSettings,
    uploads: Uploads,
    large_bodies: asyncio.Semaphore,
    stack: contextlib.AsyncExitStack,
) -> dict[str, Any]:
    """The fields of a request; a file part becomes the path of its file.

    Args:
        receive: of ASGI.
        fields: those that a multipart body may have, "videos" more than once; with none, there may be no such body.
            What JSON has is checked by whoever reads it.
        large_bodies: of the server, with `NUM_LARGE_BODIES`; a large body enters it on `stack`.

    Raises:
        RequestError: the body is too large, or of another kind or form.
        ClientLeft: it does not come any more.
    """
    limit = settings.max_body_bytes
    declared = headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
        raise _too_large(settings)
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise RequestError(400, "content-encoding: a compressed body is not read; send it as it is")
    kind, options = parse_options_header(headers.get("content-type", ""))
    chunks = _receive_within(receive, settings, large_bodies, stack)
    if kind == b"application/json":
        content = bytearray()
        async for chunk in chunks:
            content += chunk
        if len(content) > LARGE_BODY_BYTES:
            return await asyncio.to_thread(parse_object, content)
        return parse_object(content)
    if kind == b"multipart/form-data" and fields:
        with MultipartFields(options.get(b"boundary", b""), fields, settings, uploads) as parts:
            async for chunk in chunks:
                parts.feed(chunk)
            return parts.end()
    known = "application/json or multipart/form-data" if fields else "application/json"
    raise RequestError(400, f"content-type: expected {known}")


async def _receive_within(
    receive: Receive, settings: ServerSettings, large_bodies: asyncio.Semaphore, stack: contextlib.AsyncExitStack
) -> AsyncIterator[bytes]:
    num_bytes = 0
    is_large = False
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        chunk = message.get("body", b"")
        num_bytes += len(chunk)
        if num_bytes > settings.max_body_bytes:
            raise _too_large(settings)
        if num_bytes > LARGE_BODY_BYTES and not is_large:
            is_large = True
            await stack.enter_async_context(large_bodies)
        yield chunk
        if not message.get("more_body", False):
            return


class MultipartFields:
    """Takes a multipart body apart as it comes; a context manager, which closes the file that is being written."""

    def __init__(self, boundary: bytes, fields: tuple[str, ...], settings: ServerSettings, uploads: Uploads) -> None:
        self._fields = fields
        self._uploads = uploads
        self._max_text_bytes = 4 * settings.max_prompt_chars  # of UTF-8
        self._max_videos = settings.max_videos
        self._values: dict[str, Any] = {}
        self._is_whole = False
        self._header: list[bytes] = [b"", b""]
        self._disposition = b""
        self._name = ""
        self._text = bytearray()
        self._file: BinaryIO | None = None
        self._path: Path | None = None
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._add_header_name,
                    "on_header_value": self._add_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._open_part,
                    "on_part_data": self._add_data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
                max_header_count=MAX_PART_HEADERS,
                max_header_size=MAX_PART_HEADER_BYTES,
            )
        except FormParserError as error:
            raise RequestError(400, "content-type: its boundary is too long; use a shorter one") from error
        if not boundary:
            raise RequestError(400, "content-type: multipart/form-data without a boundary; let your client set it")

    def __enter__(self) -> MultipartFields:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk, which has been told: what waits cannot be written either
                self._file.close()

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise RequestError(400, "body: is no multipart/form-data that can be read; check its boundary") from error
        except OSError as error:
            raise no_room(error) from error

    def end(self) -> dict[str, Any]:
        """All fields, after the last byte."""
        if not self._is_whole:
            raise RequestError(400, "body: ends before its last part does; send all of it")
        return self._values

    def _begin_part(self) -> None:
        self._disposition = b""
        self._text = bytearray()
        self._file = self._path = None

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1] += data[start:end]

    def _end_header(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = value
        self._header = [b"", b""]

    def _open_part(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = name = options.get(b"name", b"").decode(errors="replace")
        if name not in self._fields:
            raise RequestError(400, f"{show(name)}: unknown field, expected {', '.join(self._fields)}")
        if name in self._values and name != "videos":
            raise RequestError(400, f"{name}: stands twice in the body; send it once")
        if b"filename" in options:
            if name == "prompt" or name in NUMBERS:
                raise RequestError(400, f"{name}: expected text, got a file part")
            if name == "videos" and len(self._values.get(name, ())) == self._max_videos:
                raise RequestError(400, f"videos: has more than {self._max_videos} videos; send fewer")
            self._path = self._uploads.create()
            self._file = self._path.open("wb")
        elif name != "prompt" and name not in NUMBERS:
            raise RequestError(400, f"{name}: expected a file part, got text; send a path or base64 in JSON")

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > self._max_text_bytes:
            raise RequestError(400, f"{self._name}: has more than {self._max_text_bytes} bytes; shorten it")

    def _end_part(self) -> None:
        if self._file is not None:
            self._file.close()
            if self._name == "videos":
                self._values.setdefault("videos", []).append(self._path)
            else:
                self._values[self._name] = self._path
            return
        try:
            text = self._text.decode()
        except UnicodeDecodeError as error:
            raise RequestError(400, f"{self._name}: is not UTF-8 (byte {error.start})") from error
        self._values[self._name] = text if self._name == "prompt" else parse_number(self._name, text)

    def _end(self) -> None:
        self._is_whole = True


def _too_large(settings: ServerSettings) -> RequestError:
    return RequestError(413, f"body: is larger than {settings.max_body_mb:g} MB; send smaller clips or paths")
