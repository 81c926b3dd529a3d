"""Checks JSON against typed contracts and writes them back; a wrong field is a one-line error that names it.

A contract is a frozen dataclass, or a `TypedDict` where unknown fields are allowed, with `__pydantic_config__`.
Pydantic checks it: types are not converted, and `Annotated` bounds and `__post_init__` hold.
"""

from __future__ import annotations

import copy
import json
import reprlib
from functools import cache, reduce
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema

from safe_rlhf_video.errors import SafeRLHFVideoError
from safe_rlhf_video.files import require_path, write_whole
from safe_rlhf_video.reading import read_regular

T = TypeVar("T")

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
# For other people's files: a known field has to be right, an unknown one is not looked at.
OPEN = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

# What pydantic calls an error -> what was expected, in words for JSON.
_EXPECTED = {
    "bool_type": "true or false",
    "dataclass_exact_type": "an object",
    "dataclass_type": "an object",
    "dict_type": "an object",
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "list_type": "a list",
    "none_required": "null",
    "string_type": "a string",
    "tuple_type": "a list",
}
_MISSING = "missing, it is required"
MAX_SHOWN = 60  # characters of a value or a name in a message
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = MAX_SHOWN


class Expected:
    """Says in an annotation what a field expects, such as "0, 1 or null"; replaces pydantic's words in the error."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        return core_schema.custom_error_schema(schema, "expected", custom_error_message=f"expected {self.what}")


def parse_json(kind: type[T], content: bytes | str, where: str, error: type[SafeRLHFVideoError], advice: str) -> T:
    """Reads one JSON document as a contract.

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
        raise error(f"{describe(wrong, where)}; {advice}") from wrong


def check_fields(kind: Any, value: object, where: str, error: type[SafeRLHFVideoError], within: str = "") -> Any:
    """Checks a value that was read from JSON; the arguments are those of `parse_json`.

    Args:
        within: the field that holds the value, such as "video_0", for messages.

    Returns:
        The same fields with the same values; of an `OPEN` contract, those that it knows.
    """
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as wrong:
        message, first = describe(wrong, where, within), wrong.errors(include_url=False, include_context=False)[0]
        if first["type"] == "missing" and (expected := _expected_at(kind, value, first["loc"])):
            message = message.replace(_MISSING, f"missing, {expected}")
        raise error(message) from wrong


def read_json(kind: type[T], path: Path, error: type[SafeRLHFVideoError], advice: str) -> T:
    """As `parse_json`, for a file; one that cannot be read is the same error."""
    require_path(path, error, advice)
    try:
        content = read_regular(path)
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


def describe(wrong: ValidationError, where: str, field: str = "") -> str:
    """The first mistake in one line: "calibration.json field heads.reward.std: expected a number, got 'x'"."""
    first = wrong.errors(include_url=False, include_context=False)[0]
    for part in first["loc"]:
        if isinstance(part, int):
            field += f"[{part}]"
        elif part != "[key]":  # a wrong key, which the part before has named
            shown = part if part.isprintable() and len(part) <= MAX_SHOWN else show(part)
            field += f".{shown}" if field else shown
    return f"{where} field {field}: {_say(first)}" if field else f"{where}: {_say(first)}"


def show(value: object) -> str:
    """A value for a message: one line, cut where it is long."""
    return _SHORT.repr(value)


def _expected_at(kind: Any, value: object, place: tuple[int | str, ...]) -> str | None:
    """What a missing field expects: what is said of a value there that no JSON has; None if nothing is."""
    filled = copy.deepcopy(value)
    try:
        reduce(lambda part, key: part[key], place[:-1], cast(Any, filled))[place[-1]] = ...
        _adapter(kind).validate_python(filled)
    except (KeyError, IndexError, TypeError):
        return None  # a place that names one of several contracts
    except ValidationError as wrong:
        for mistake in wrong.errors(include_url=False, include_context=False):
            if mistake["loc"][: len(place)] == place:
                return _say(mistake).rpartition(", got ")[0]
    return None


def _say(mistake: Any) -> str:
    kind, message = mistake["type"], " ".join(mistake["msg"].split())
    if kind == "missing":
        return _MISSING
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return "unknown, no such field is expected"
    if kind == "json_invalid":
        return f"not {message.removeprefix('Invalid ').replace('JSON: ', 'valid JSON (')})"
    message = message.removeprefix("Value error, ")
    if kind == "value_error" and not isinstance(mistake["input"], str | int | float | None):
        return message  # about fields that do not fit each other: the whole object would fill a page
    if kind in _EXPECTED:
        message = f"expected {_EXPECTED[kind]}"
    message = message.replace("Input should be", "expected")
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        message = message.replace("expected", "expected a number", 1)
    return f"{message}, got {show(mistake['input'])}"


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
