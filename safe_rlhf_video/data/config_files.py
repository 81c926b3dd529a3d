"""Reads and writes config files: a list of records as JSON, plain or compressed; `records` checks the records."""

from __future__ import annotations

import gzip
import json
import math
import os
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.reading import open_unpacked

CONFIG_SUFFIXES = (".json", ".json.gz")


def is_config_name(name: str | os.PathLike[str]) -> bool:
    """Whether a path names a config file rather than a folder."""
    return os.fspath(name).endswith(CONFIG_SUFFIXES)


def read_records(config_file: Path) -> list[Any]:
    """Reads the list in a config file; its items are still unchecked.

    Raises:
        SampleError: the file is missing, damaged or too large, holds no list, or an object in it has one key twice.
    """
    if not is_config_name(config_file):
        raise SampleError(f"{config_file}: expected a file that ends in .json or .json.gz, or a folder with one")
    try:
        with open_unpacked(config_file) as file:
            content = file.read()
        text = decode_text(content, str(config_file))
        del content  # 200 MB for SafeSora's training file, which the parser needs again
        records = decode_json(text, str(config_file))
    except FileNotFoundError:
        raise SampleError(f"{config_file}: no such file or folder; {_describe_configs(config_file.parent)}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SampleError(f"{config_file}: not a whole gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise SampleError(f"{config_file}: cannot be read ({error.strerror}); check the file and its rights") from error
    if not isinstance(records, list):
        raise SampleError(f"{config_file}: expected a list of records, got JSON of type {type(records).__name__}")
    return records


def decode_text(content: bytes, where: str) -> str:
    """Decodes UTF-8, with or without a byte-order mark; other bytes are a SampleError."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SampleError(f"{where}: not UTF-8 text at byte {error.start}; save it as UTF-8") from error


def decode_json(text: str, where: str) -> Any:
    """Reads JSON that all readers understand alike: no NaN, no number beyond a float, no key twice in one object.

    Raises:
        SampleError: the text is not such JSON; the message begins with `where`.
    """
    try:
        return json.loads(
            text, object_pairs_hook=_object_builder(), parse_float=_finite, parse_constant=_refuse_constant
        )
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if "\n" in text.rstrip() else ""
        raise SampleError(
            f"{where}: not valid JSON at {line}column {error.colno} ({error.msg}); correct it there"
        ) from error
    except RecursionError as error:
        raise SampleError(f"{where}: nested too deeply, expected records in SafeSora's form") from error
    except ValueError as error:  # raised by the three hooks, and for integers with thousands of digits
        raise SampleError(f"{where}: not valid JSON ({error}); correct it there") from error


def write_records(config_file: Path, records: Iterable[Any]) -> None:
    """Writes or replaces a config file, one record a line; equal records give equal bytes, compressed or not.

    Raises:
        SampleError: a record holds a value that JSON has not, such as NaN, or the file cannot be written.
    """
    try:
        content = b"[\n" + b",\n".join(map(_encode, records)) + b"\n]\n"
    except (TypeError, ValueError) as error:
        raise SampleError(f"{config_file}: cannot be written, a record is not JSON ({error})") from error
    if config_file.name.endswith(".gz"):
        content = gzip.compress(content, compresslevel=6, mtime=0)
    try:
        write_whole(config_file, content)
    except OSError as error:
        raise SampleError(f"{config_file}: cannot be written ({error.strerror}); check the disk and rights") from error


def _encode(record: Any) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair is legal JSON but not legal UTF-8: it stays an escape
        return json.dumps(record, allow_nan=False).encode()


def _object_builder() -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """Builds the objects of one file; refuses a repeated key, of which JSON readers silently keep the last."""
    # Ids and prompts occur in a file up to a dozen times: sharing one string for each saves 40% of SafeSora's memory.
    shared = dict[str, str]().setdefault

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = {key: shared(value, value) if type(value) is str else value for key, value in pairs}
        if len(fields) != len(pairs):
            keys = [key for key, _ in pairs]
            repeated = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"the key {repeated[:40]!r} is twice in one object")
        return fields

    return build


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is too large for a number")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _describe_configs(folder: Path) -> str:
    if not folder.is_dir():
        return f"the folder {folder} does not exist either"
    names = sorted(entry.name for entry in folder.iterdir() if is_config_name(entry.name))
    if not names:
        return f"{folder} holds no .json or .json.gz file"
    return f"{folder} holds {', '.join(names)}: name one of them, as path or config_filename"
