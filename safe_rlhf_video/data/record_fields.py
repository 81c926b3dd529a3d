"""Types of the fields in data files; each says what it expects where a value is wrong."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError

from safe_rlhf_video.contracts import Expected, show
from safe_rlhf_video.errors import SampleError

MAX_NAME_BYTES = 240  # file systems allow 255; a clip's partial file has a longer name than the clip
MAX_COMPONENT_BYTES, MAX_PATH_BYTES = 255, 4096

PAGE = "docs/data.md"


@contextmanager
def described_in(section: str) -> Iterator[None]:
    """Ends the line of a SampleError with the section of the page about files that describes the field."""
    try:
        yield
    except SampleError as error:
        raise SampleError(f"{error}; see {PAGE}#{section}") from error


def fail(where: str, field: str, expected: str, value: object) -> NoReturn:
    """Raises the SampleError of a field that is wrong beside other fields."""
    raise SampleError(f"{where} field {field}: expected {expected}, got {show(value)}")


def expected_name(value: str) -> str | None:
    """Says what is expected in place of a text that cannot name a folder or file; None where it can."""
    # A name that climbs or descends would lead to another file.
    if value in ("", ".", "..") or "/" in value or "\\" in value or "\0" in value:
        return "a plain name without '/', '\\', '..' or NUL"
    if not value.isprintable():
        return "a plain name without control characters"
    if len(value.encode()) > MAX_NAME_BYTES:
        return f"a name of at most {MAX_NAME_BYTES} bytes"
    return None


def unknown_fields(record: dict[str, Any], known: Collection[str], **nested: Collection[str]) -> dict[str, Any]:
    """The fields that are not `known`, as they are; also those within the `nested` objects."""
    extra = {key: value for key, value in record.items() if key not in known}
    for key, known_keys in nested.items():
        if unknown := {name: value for name, value in (record.get(key) or {}).items() if name not in known_keys}:
            extra[key] = unknown
    return extra


def refuse(expected: str) -> NoReturn:
    """Says in a validator what a field expects."""
    raise PydanticCustomError("expected", f"expected {expected}")


def _check_object(value: object) -> object:
    if value is not None and not isinstance(value, dict):
        refuse("an object or null")
    return value


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: JSON can hold half a surrogate pair, which no file and no tokenizer takes."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _check_text(value: str | None) -> str | None:
    if value is not None and not is_unicode(value):
        refuse("text without lone surrogates")
    return value


def _check_non_empty(value: str) -> str:
    if not value:
        refuse("a non-empty string")
    _check_text(value)
    return value


def _check_name(value: str) -> str:
    _check_non_empty(value)
    if (expected := expected_name(value)) is not None:
        refuse(expected)
    return value


def _check_path(value: str) -> str:
    _check_non_empty(value)
    if "\0" in value:
        refuse("a path without NUL characters")
    content = value.encode()
    if len(content) > MAX_PATH_BYTES or max(map(len, content.split(b"/"))) > MAX_COMPONENT_BYTES:
        refuse(f"a path of at most {MAX_PATH_BYTES} bytes, {MAX_COMPONENT_BYTES} a name")
    return value


Text = Annotated[str, Expected("a string"), AfterValidator(_check_text)]
OptionalText = Annotated[str | None, Expected("a string or null"), AfterValidator(_check_text)]
NonEmptyText = Annotated[str, Expected("a string"), AfterValidator(_check_non_empty)]
Name = Annotated[str, Expected("a string"), AfterValidator(_check_name)]  # an id that becomes a folder or file name
FilePath = Annotated[str, Expected("a string"), AfterValidator(_check_path)]  # where it leads is not looked at
Flag = Annotated[bool | None, Expected("true, false or null")]
OptionalObject = BeforeValidator(_check_object)
