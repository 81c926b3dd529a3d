"""Requests, read strictly: what is not known, not finite or given twice is refused in one line."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from safe_rlhf_video.data.record_fields import show
from safe_rlhf_video.errors import SafeRLHFVideoError
from safe_rlhf_video.serving.settings import ServerSettings

# Beyond, products with a score are no longer exact enough to be told apart, and at 1e308 no longer finite.
MAX_LAGRANGE_MULTIPLIER = 1e6
MAX_COST_LIMIT = 1e6
NUMBERS = ("lagrange_multiplier", "cost_limit")

# Far above what any request needs, commas of its texts included. Small values take thirty times their size of memory,
# and while they are read no other thread runs.
MAX_VALUES = 1_000_000


class RequestError(SafeRLHFVideoError):
    """A request that is not answered; the message is all that its client learns.

    Attributes:
        status: of HTTP.
        retry_after_s: when to try again, where that makes sense.
    """

    def __init__(self, status: int, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class VideoReference:
    """Where the clip of a request is: one of `path`, `data` and `file`.

    Attributes:
        field: its name in messages, such as "videos[2]".
        path: as the client wrote it; where it leads is not looked at.
        data: the file in base64.
        file: a part of the body, which lies on disk.
    """

    field: str
    path: str | None = None
    data: str | None = None
    file: Path | None = None


@dataclass(frozen=True)
class ClipRequest:
    """A prompt, clips for it, and how to choose between them; None leaves that to the model."""

    prompt: str
    videos: tuple[VideoReference, ...]
    lagrange_multiplier: float | None = None
    cost_limit: float | None = None


def parse_object(content: bytes | bytearray) -> dict[str, Any]:
    """The fields of a JSON body.

    Raises:
        RequestError: it is no JSON object, holds very many values, or one of its objects has a field twice or a number
            that is not finite.
    """
    if sum(content.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise RequestError(400, f"body: holds more than {MAX_VALUES} values; send the fields that /docs tells")
    try:
        value = json.loads(content.decode(), object_pairs_hook=_no_twins, parse_constant=_no_constant)
    except RecursionError:
        raise RequestError(400, "body: is nested too deeply; send the fields that /docs tells") from None
    except UnicodeDecodeError as error:
        raise RequestError(400, f"body: is not UTF-8 (byte {error.start}); send JSON in UTF-8") from error
    except ValueError as error:
        raise RequestError(400, f"body: is not JSON ({_first_line(error)}); send one JSON object") from error
    if not isinstance(value, dict):
        raise RequestError(400, f"body: expected a JSON object, got {show(value)}")
    return value


def parse_number(name: str, text: str) -> float:
    """A number that stands as text in a multipart body."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    return read_number({name: value}, name, -math.inf, math.inf)


def parse_request(values: Mapping[str, Any], known: tuple[str, ...], settings: ServerSettings) -> ClipRequest:
    """The fields of a request as the routes for clips take them.

    Args:
        values: from JSON, or from a multipart body with a `Path` for every file part.
        known: the fields that the route has: "prompt", those with a clip ("videos" holds a list of them) and, where it
            is about a choice, `NUMBERS`.

    Raises:
        RequestError: a field is unknown, missing, or of another type, length or range.
    """
    for name in values:
        if name not in known:
            raise RequestError(400, f"{show(name)}: unknown field, expected {', '.join(known)}")
    prompt = read_prompt(values, "prompt", settings.max_prompt_chars)
    videos: list[VideoReference] = []
    for name in known:
        if name == "prompt" or name in NUMBERS:
            continue
        if name not in values:
            raise RequestError(400, f"{name}: missing, expected a video")
        if name == "videos":
            videos += _read_videos(values[name], settings.max_videos)
        else:
            videos.append(read_video(values[name], name))
    multiplier = limit = None
    if values.get("lagrange_multiplier") is not None:
        multiplier = read_number(values, "lagrange_multiplier", 0.0, MAX_LAGRANGE_MULTIPLIER)
    if values.get("cost_limit") is not None:
        limit = read_number(values, "cost_limit", -MAX_COST_LIMIT, MAX_COST_LIMIT)
    return ClipRequest(prompt, tuple(videos), multiplier, limit)


def read_prompt(values: Mapping[str, Any], name: str, max_chars: int) -> str:
    """A text that a tokenizer takes."""
    if name not in values:
        raise RequestError(400, f"{name}: missing, expected a text")
    prompt = values[name]
    if not isinstance(prompt, str) or not prompt.strip():
        _fail(name, "a text that is not blank", prompt)
    if len(prompt) > max_chars:
        raise RequestError(400, f"{name}: has {len(prompt)} characters, at most {max_chars} are read; shorten it")
    if not _is_unicode(prompt):
        _fail(name, "text without lone surrogates", prompt)
    return prompt


def read_video(value: Any, field: str) -> VideoReference:
    """One clip: {"path": ...}, {"data": ...}, or a file part."""
    if isinstance(value, Path):
        return VideoReference(field, file=value)
    expected = 'a file part, or in JSON {"path": "under/the/video/root.mp4"} or {"data": "<base64 of the file>"}'
    if not isinstance(value, dict):
        _fail(field, expected, value)
    if value.keys() not in ({"path"}, {"data"}):
        raise RequestError(400, f"{field}: expected {expected}, got the fields {show(sorted(value))}")
    ((kind, text),) = value.items()
    if not isinstance(text, str) or not text:
        _fail(f"{field}.{kind}", "a string that is not empty", text)
    return VideoReference(field, path=text) if kind == "path" else VideoReference(field, data=text)


def read_number(values: Mapping[str, Any], name: str, lowest: float, highest: float) -> float:
    """A finite number within a range."""
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        _fail(name, "a number", value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or not lowest <= number <= highest:
        _fail(name, f"a number from {lowest:g} to {highest:g}" if math.isfinite(highest) else "a finite number", value)
    return number


def _read_videos(value: Any, max_videos: int) -> list[VideoReference]:
    if not isinstance(value, list) or not value:
        _fail("videos", "a list of one or more videos", value)
    if len(value) > max_videos:
        raise RequestError(400, f"videos: has {len(value)} videos, at most {max_videos} are taken; send fewer")
    return [read_video(one, f"videos[{place}]") for place, one in enumerate(value)]


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twin = next(name for name in values if counts[name] > 1)
        raise RequestError(400, f"{show(twin)}: stands twice in the body; send it once")
    return values


def _no_constant(name: str) -> NoReturn:
    raise RequestError(400, f"body: holds {name}, which is no JSON; send finite numbers")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _fail(field: str, expected: str, value: object) -> NoReturn:
    shown = "a file part" if isinstance(value, Path) else show(value)
    raise RequestError(400, f"{field}: expected {expected}, got {shown}")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
