"""Receives the body of a request within limits and reads its fields: from JSON, or from multipart/form-data."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any, NoReturn

from fastapi import HTTPException, Request
from python_multipart.multipart import parse_options_header
from starlette.formparsers import MultiPartException, MultiPartParser

from safe_rlhf_video.contracts import show
from safe_rlhf_video.serving.client_limits import BodyBytes
from safe_rlhf_video.serving.request_clips import no_room
from safe_rlhf_video.serving.request_models import NUMBERS
from safe_rlhf_video.serving.settings import ServerSettings

# Larger ones are parsed in a thread, one at a time: for a moment a text takes several times its size of memory.
LARGE_BODY_BYTES = 256 << 10

# A body may take so long, and longer by its size at this rate; the time of the whole request holds too.
BODY_FREE_S = 10.0
MIN_BODY_RATE = 20_000  # bytes a second

# What the parser of multipart bodies gets at once: each piece costs as much as many bytes.
PIECE_BYTES = 1 << 16

# Far above what any request needs, the commas of its texts included. Small values take thirty times their size of
# memory, and no other thread runs while they are read.
MAX_VALUES = 1_000_000


async def read_fields(
    request: Request, settings: ServerSettings, body: BodyBytes, parsing: asyncio.Lock, stack: contextlib.AsyncExitStack
) -> dict[str, Any]:
    """Reads the fields of a request; of a multipart body a file part is an `UploadFile`, and "videos" is a list.

    Args:
        body: counts what arrives.
        parsing: held while a large body is parsed.
        stack: closes the file parts at its end.

    Raises:
        HTTPException: the body is too large, comes too slowly, is of another kind or form, has a field twice, or finds
            no room among the bodies in work or on the disk.
        ClientDisconnect: the client left before its body was whole.
    """
    # Not by Starlette's body limit: where a length is declared, it answers in plain text, and errors here are JSON.
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit():
        if len(declared) > 18 or int(declared) > settings.max_body_bytes:
            raise _too_large(settings)
        body.check(int(declared))  # before it has been sent in vain
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise HTTPException(400, "content-encoding: a compressed body is not read; send it as it is")
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    async with contextlib.aclosing(_receive_within(request, settings, body)) as pieces:
        if kind == b"application/json":
            content = bytearray()
            async for piece in pieces:
                content += piece
            if len(content) > LARGE_BODY_BYTES:
                async with parsing:
                    return await asyncio.to_thread(parse_object, content)
            return parse_object(content)
        if kind == b"multipart/form-data":
            # Python has text codecs that take minutes for a megabyte.
            if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):
                raise HTTPException(400, "content-type: expected the charset utf-8, or none")
            return await _read_form(WholeForm(request.headers, pieces, **_form_limits(settings)), stack)
    raise HTTPException(400, "content-type: expected application/json or multipart/form-data")


async def _receive_within(request: Request, settings: ServerSettings, body: BodyBytes) -> AsyncGenerator[bytes]:
    """Yields the body in pieces of `PIECE_BYTES` or more, and a last one."""
    started_s = asyncio.get_running_loop().time()
    stream = request.stream()
    piece = bytearray()
    while True:
        try:
            async with asyncio.timeout_at(started_s + BODY_FREE_S + body.num_bytes / MIN_BODY_RATE):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise HTTPException(408, f"body: comes too slowly; send {MIN_BODY_RATE} bytes a second or more") from None
        if chunk is None:
            break
        if body.num_bytes + len(chunk) > settings.max_body_bytes:
            raise _too_large(settings)
        body.add(len(chunk))
        piece += chunk
        if len(piece) >= PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


class WholeForm(MultiPartParser):
    """Starlette's parser, but a body that is cut off and text that is not UTF-8 are errors."""

    is_whole = False

    def on_part_end(self) -> None:
        part = self._current_part
        if part.file is None:
            try:
                part.data.decode()
            except UnicodeDecodeError as error:
                raise MultiPartException(f"{show(part.field_name)} is not UTF-8 (byte {error.start})") from error
        super().on_part_end()

    def on_end(self) -> None:
        self.is_whole = True


def _form_limits(settings: ServerSettings) -> dict[str, int]:
    # Room for some more than any request has: the request's model then says which field is too many or too long.
    return {
        "max_files": settings.max_videos + 16,
        "max_fields": 16,
        "max_part_size": max(1 << 20, 4 * settings.max_prompt_chars),
    }


async def _read_form(parser: WholeForm, stack: contextlib.AsyncExitStack) -> dict[str, Any]:
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(400, f"body: cannot be read as multipart/form-data: {error.message}") from error
    except OSError as error:
        raise no_room(error) from error
    stack.push_async_callback(form.close)
    if not parser.is_whole:
        raise HTTPException(400, "body: ends before its last part does; send all of it")
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name == "videos":
            fields.setdefault(name, []).append(value)
        elif name in fields:
            raise _twice(name)
        else:
            fields[name] = _parse_number(value) if name in NUMBERS and isinstance(value, str) else value
    return fields


def _parse_number(text: str) -> Any:
    """Reads a number from a multipart body; other text is returned as it is, for the request's model to refuse."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def parse_object(content: bytes | bytearray) -> dict[str, Any]:
    """Reads the fields of a JSON body.

    Raises:
        HTTPException: it is no JSON object, holds very many values, or one of its objects has a field twice or a number
            that is not finite.
    """
    if sum(content.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise HTTPException(400, f"body: holds more than {MAX_VALUES} values; GET /docs describes the fields")
    try:
        value = json.loads(content.decode(), object_pairs_hook=_refuse_twins, parse_constant=_refuse_constant)
    except RecursionError:
        raise HTTPException(400, "body: is nested too deeply; GET /docs describes the fields") from None
    except UnicodeDecodeError as error:
        raise HTTPException(400, f"body: is not UTF-8 (byte {error.start}); send JSON in UTF-8") from error
    except ValueError as error:
        reason = str(error).splitlines()[0][:200]
        raise HTTPException(400, f"body: is not JSON ({reason}); send one JSON object") from error
    if not isinstance(value, dict):
        raise HTTPException(400, f"body: expected a JSON object, got {show(value)}")
    return value


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # No JSON library in use refuses them: the last one would silently win.
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise _twice(next(name for name in values if counts[name] > 1))
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise HTTPException(400, f"body: holds {name}, which is not JSON; send finite numbers")


def _too_large(settings: ServerSettings) -> HTTPException:
    return HTTPException(413, f"body: is larger than {settings.max_body_mb:g} MB; send smaller clips or paths")


def _twice(name: str) -> HTTPException:
    return HTTPException(400, f"{show(name)}: is given twice; send it once")
