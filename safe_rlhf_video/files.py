"""Writes files that are either whole or absent, however the process ends, and keeps other processes off them."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from safe_rlhf_video.errors import ConfigError


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes or replaces a file, text as UTF-8, and makes its folder; a kill leaves the old file or the new one.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(partial, path)


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
    """Makes a folder if there is none, and locks it by its `.lock` while the block runs.

    Raises:
        ConfigError: another process has locked it.
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("ab") as file:
        lock(file, folder)
        yield
