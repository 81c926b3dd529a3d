"""Reads files that anybody may have written: regular ones, and no more of them than a reader can hold.

A named pipe waits for a writer, a device never ends, a compressed file of megabytes may unpack to terabytes. Each of
these is an OSError whose `strerror` says so, and is reported like a file that cannot be read.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import lzma
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Unpacked: five times SafeSora's training file, which has 200 MB.
MAX_DATA_BYTES = 1 << 30
# Of a JSON file of a model: the largest tokenizers have 40 MB.
MAX_SETTINGS_BYTES = 256 << 20


def open_regular(path: Path) -> io.BufferedReader:
    """Opens a file for reading.

    Raises:
        OSError: it cannot be opened, or is a folder, pipe, socket or device.
    """
    # Without O_NONBLOCK, opening a pipe that nobody writes would never return.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return os.fdopen(descriptor, "rb")


def open_unpacked(path: Path) -> io.BufferedReader:
    """Opens a file for reading what is in it, decompressed if its name ends in .gz or .xz.

    Reading more than `MAX_DATA_BYTES` is an OSError.

    Raises:
        OSError: as `open_regular`. Damaged files raise the errors of gzip and lzma while they are read.
    """
    file = open_regular(path)
    content: Any = file
    if path.name.endswith(".gz"):
        content = gzip.GzipFile(fileobj=file)
    elif path.name.endswith(".xz"):
        content = lzma.LZMAFile(file)  # noqa: SIM115, closed with what is returned
    return io.BufferedReader(_Bounded(content, file), 1 << 20)


def read_regular(path: Path) -> bytes:
    """The bytes of a regular file as they are; another file, or one of more than `MAX_DATA_BYTES`, is an OSError."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_DATA_BYTES:
            raise too_large()
        return file.read()


def load_json(content: bytes | str) -> Any:
    """As `json.loads`, but whatever is wrong is a ValueError: also nesting too deep for any file that is read here."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def find_unfit(paths: Iterable[Path]) -> tuple[Path, str] | None:
    """The first of some files that no other code should open, and why: a pipe, socket or device, or too large a JSON.

    Folders and what is missing are passed over.
    """
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            return path, "is no regular file"
        if path.suffix == ".json" and status.st_size > MAX_SETTINGS_BYTES:
            return path, f"has {status.st_size} bytes, at most {MAX_SETTINGS_BYTES} are read"
    return None


class _Bounded(io.RawIOBase):
    """What a stream gives, up to the limit."""

    def __init__(self, content: Any, file: io.BufferedReader) -> None:
        self._content = content
        self._file = file
        self._left = MAX_DATA_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._content.read(min(len(buffer), self._left + 1))
        self._left -= len(block)
        if self._left < 0:
            raise too_large()
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self._content.close()
        self._file.close()
        super().close()


def too_large() -> OSError:
    """The error for more than `MAX_DATA_BYTES`."""
    return OSError(errno.EFBIG, f"more than {MAX_DATA_BYTES / 2**30:g} GiB when unpacked, split it into several files")
