"""Reads JSON into typed dataclasses and writes them back; a wrong field is a one-line error that names it.

A contract is a frozen dataclass with `__pydantic_config__ = STRICT`. Pydantic checks it: types are not converted,
unknown fields and NaN are refused, `Annotated` bounds and `__post_init__` hold.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from safe_rlhf_video.errors import SafeRLHFVideoError
from safe_rlhf_video.files import write_whole

T = TypeVar("T")

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
MAX_SHOWN = 60  # characters of a wrong value in a message


def parse_json(kind: type[T], content: bytes | str, where: str, error: type[SafeRLHFVideoError], advice: str) -> T:
    """Reads one JSON document as a dataclass.

    Args:
        kind: the contract.
        where: begins the message: the file, and the row in it.
        error: what a wrong document raises.
        advice: ends the message: what to do.
    """
    try:
        value: T = _adapter(cast(Any, kind)).validate_json(content)
        return value
    except ValidationError as wrong:
        raise error(f"{where}: {describe(wrong)}; {advice}") from wrong


def read_json(kind: type[T], path: Path, error: type[SafeRLHFVideoError], advice: str) -> T:
    """As `parse_json`, for a file; one that cannot be read is the same error."""
    try:
        content = path.read_bytes()
    except OSError as missing:
        raise error(f"{path}: cannot be read ({missing.strerror}); {advice}") from missing
    return parse_json(kind, content, str(path), error, advice)


def to_fields(value: object) -> Any:
    """A dataclass as plain JSON values: dictionaries, lists, strings and numbers."""
    return _adapter(cast(Any, type(value))).dump_python(value, mode="json")


def write_json(path: Path, value: object) -> None:
    """Writes a dataclass as JSON, whole or not at all.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    write_whole(path, json.dumps(to_fields(value), indent=2, allow_nan=False) + "\n")


def describe(wrong: ValidationError) -> str:
    """The first mistake in one line: "field heads.reward.std: input should be greater than or equal to 0, got -1"."""
    first = wrong.errors(include_url=False, include_context=False)[0]
    field = ""
    for part in first["loc"]:
        field += f"[{part}]" if isinstance(part, int) else f".{part}" if field else part
    shown = repr(first["input"])
    got = f", got {shown if len(shown) <= MAX_SHOWN else shown[: MAX_SHOWN - 3] + '...'}"
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if first["type"] in ("missing", "json_invalid"):
        got = ""
    return f"{f'field {field}: ' if field else ''}{message}{got}"


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
