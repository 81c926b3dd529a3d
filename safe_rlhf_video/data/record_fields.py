"""Fields of a JSON record, read strictly.

In messages `where` names file and row, and `field` is what stands before the key, such as "video_0.".
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection
from typing import Any, NoReturn

from safe_rlhf_video.errors import SampleError

MAX_NAME_BYTES = 240  # file systems allow 255; a clip's partial file has a longer name than the clip
MAX_COMPONENT_BYTES, MAX_PATH_BYTES = 255, 4096


def show(value: object) -> str:
    """A value for a message: one line, cut where it is long."""
    return reprlib.repr(value)


def fail(where: str, field: str, expected: str, value: object) -> NoReturn:
    """Raise the SampleError of a wrong field."""
    raise SampleError(f"{where} field {field}: expected {expected}, got {show(value)}")


def require(record: dict[str, Any], key: str, expected: str, where: str, field: str = "") -> Any:
    """The value of a field that has to be there."""
    if key not in record:
        raise SampleError(f"{where} field {field}{key}: missing, expected {expected}")
    return record[key]


def read_string(record: dict[str, Any], key: str, where: str, field: str = "") -> str:
    """A text, also an empty one."""
    value = require(record, key, "a string", where, field)
    if not isinstance(value, str):
        fail(where, field + key, "a string", value)
    return _checked_text(value, where, field + key)


def read_optional_string(record: dict[str, Any], key: str, where: str, field: str = "") -> str | None:
    """A text, or None where the field is null or missing."""
    value = record.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        fail(where, field + key, "a string or null", value)
    return _checked_text(value, where, field + key)


def read_non_empty_string(record: dict[str, Any], key: str, where: str, field: str = "") -> str:
    """A text of one character or more."""
    value = read_string(record, key, where, field)
    if not value:
        fail(where, field + key, "a non-empty string", value)
    return value


def read_name(record: dict[str, Any], key: str, where: str, field: str = "") -> str:
    """An id that becomes the name of a folder or file."""
    value = read_non_empty_string(record, key, where, field)
    if (expected := expected_name(value)) is not None:
        fail(where, field + key, expected, value)
    return value


def read_path(record: dict[str, Any], key: str, where: str, field: str = "") -> str:
    """A path that the system could take; where it leads is not looked at."""
    value = read_non_empty_string(record, key, where, field)
    if "\0" in value:
        fail(where, field + key, "a path without NUL characters", value)
    content = value.encode()
    if len(content) > MAX_PATH_BYTES or max(map(len, content.split(b"/"))) > MAX_COMPONENT_BYTES:
        fail(where, field + key, f"a path of at most {MAX_PATH_BYTES} bytes, {MAX_COMPONENT_BYTES} a name", value)
    return value


def read_optional_bool(record: dict[str, Any], key: str, where: str, field: str = "") -> bool | None:
    """True, False, or None where the field is null or missing."""
    value = record.get(key)
    if value is not None and not isinstance(value, bool):
        fail(where, field + key, "true, false or null", value)
    return value


def expected_name(value: str) -> str | None:
    """What is expected in place of a text that may not name a folder or file; None where it may."""
    # A name that climbs or descends would lead to another file.
    if value in ("", ".", "..") or "/" in value or "\\" in value or "\0" in value:
        return "a plain name without '/', '\\', '..' or NUL"
    if not value.isprintable():
        return "a plain name without control characters"
    if len(value.encode()) > MAX_NAME_BYTES:
        return f"a name of at most {MAX_NAME_BYTES} bytes"
    return None


def unknown_fields(record: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The fields of other names, as they are."""
    return {key: value for key, value in record.items() if key not in known}


def _checked_text(value: str, where: str, field: str) -> str:
    # JSON can hold half a surrogate pair; no file name and no tokenizer takes it.
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            fail(where, field, "text without lone surrogates", value)
    return value
