"""Writes files that are either whole or absent, also after a kill or a power cut, and keeps other processes off them.

A rename alone is not enough: after a power cut the new name may be on the disk without the bytes. What is renamed is
flushed before, and the folder that holds the name after.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from safe_rlhf_video.errors import ConfigError, SafeRLHFVideoError

LOCK_NAME = ".lock"


def require_path(
    path: str | os.PathLike[str], error: type[SafeRLHFVideoError], advice: str = "correct the path"
) -> None:
    """Raises an error in one line unless a file or folder is there."""
    if not os.path.exists(path):
        raise error(f"{os.fspath(path)}: no such file or folder; {advice}")


def is_only_a_path(name: str) -> bool:
    """Whether a name can be a path alone, and neither NAME nor OWNER/NAME on a hub."""
    return not name or name[0] in "/.~" or name.count("/") > 1


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes or replaces a file, text as UTF-8, and makes its folder; a kill or a power cut leaves the old or the new.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    make_folder(path.parent)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    put_in_place(partial, path)


def put_in_place(partial: Path, target: Path) -> None:
    """Renames a finished file or folder; once this returns, a power cut leaves all of it under the new name.

    Args:
        partial: in the same folder as `target`.
        target: a file is replaced; a folder must be empty or absent.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    for path in (*partial.rglob("*"), partial):
        if not path.is_symlink():
            flush(path)
    os.replace(partial, target)
    flush(target.parent)


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, if they are absent, so that a power cut does not take them away again.

    Raises:
        OSError: it cannot be made.
    """
    if not folder.is_dir():
        if folder.parent != folder:
            make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        flush(folder.parent)


def remove(path: Path) -> None:
    """Deletes a file, a link or a folder, whatever is there.

    Raises:
        OSError: it cannot be deleted.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Waits until the bytes of a file, or the names in a folder, are on the disk.

    Raises:
        OSError: they cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():  # one that may be written but not listed
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that flushes no folders
            raise
    finally:
        os.close(descriptor)


def whole_lines(content: bytes) -> bytes:
    """What is whole of a file to which lines of JSON are appended.

    A kill leaves a last line without an end, and a power cut zeros in place of bytes that had not reached the disk.
    JSON has no byte of zero, so all before the first one, up to the end of a line, had been written.
    """
    content = content.partition(b"\0")[0]
    return content[: content.rfind(b"\n") + 1]


def lock(file: IO[Any], path: Path) -> None:
    """Locks an open file for this process as long as the file is open, so a kill leaves no lock behind.

    Args:
        path: what the lock keeps others off, for the message.

    Raises:
        ConfigError: another process has locked it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"{path}: another process is writing it; wait until it has ended, or name another") from None
    except OSError:  # a file system without locks
        pass


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Makes a folder if there is none, and locks it by its `LOCK_NAME` while the block runs.

    Raises:
        ConfigError: another process has locked it.
        OSError: it cannot be written.
    """
    make_folder(folder)
    path = folder / LOCK_NAME
    with path.open("ab") as file:
        lock(file, folder)
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            # Its owner has ended in between, and taken the folder and its lock along.
            raise ConfigError(f"{folder}: another process has just written it; look at what is there")
        yield
