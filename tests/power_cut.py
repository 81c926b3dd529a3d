"""Simulates power cuts: records what a process flushes, and makes folders as a disk may hold them after a cut.

What counts as safe is what POSIX promises: the bytes of a file when it was last flushed, and the names in a folder when
that was. All else may or may not have reached the disk, file by file and folder by folder, but a folder's names change
in the order in which the process changed them (as every journal keeps them).
"""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

Names = dict[str, int]  # name in a folder -> inode


class Disk:
    """The folder `root`, and what of it is safe.

    Attributes:
        num_cuts: images that were checked.
    """

    def __init__(self, root: Path, image: Path, check: Callable[[Path], None], seed: int, every: int = 1) -> None:
        """Nothing in `root` is taken to be unsafe yet.

        Args:
            image: where images of the disk are made.
            check: looks at an image, and raises if what is there is not whole.
            every: of how many changes to the disk one is followed by a cut.
        """
        self.num_cuts = 0
        self._root, self._image, self._check, self._every = root, image, check, every
        self._random = random.Random(seed)
        self._num_changes = 0
        self._is_cutting = False  # what a check changes is no change to the disk
        self._content: dict[int, bytes] = {}  # of files when they were last flushed
        self._history: dict[int, list[Names]] = {}  # of folders, since they were last flushed
        self._open: dict[int, int] = {}  # file -> descriptor, which also keeps its inode from being used again
        self._look()
        for inode, history in self._history.items():
            self._history[inode] = history[-1:]
        for inode in self._open:
            self._content[inode] = self._read(inode)

    def close(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def before_change(self) -> None:
        """Cuts the power now and then."""
        if self._is_cutting:
            return
        self._look()
        self._num_changes += 1
        if self._num_changes % self._every == 0:
            self.cut()

    def flushed(self, descriptor: int) -> None:
        """Takes note of what a process has flushed."""
        if self._is_cutting:
            return
        status = os.fstat(descriptor)
        self._look()
        if stat.S_ISDIR(status.st_mode):
            if status.st_ino in self._history:
                del self._history[status.st_ino][:-1]
        elif status.st_ino in self._open:
            self._content[status.st_ino] = self._read(status.st_ino)

    def cut(self) -> None:
        """Makes an image of what may be on the disk now, and checks it."""
        self._look()
        self.num_cuts += 1
        self._is_cutting = True
        shutil.rmtree(self._image, ignore_errors=True)
        self._make(os.stat(self._root).st_ino, self._image)
        self._check(self._image)
        self._is_cutting = False

    def _look(self) -> None:
        """Notes the names in all folders, and opens new files."""
        for folder, _, _ in os.walk(self._root):
            names = {}
            with os.scandir(folder) as entries:
                for entry in entries:
                    inode = entry.stat(follow_symlinks=False).st_ino
                    names[entry.name] = inode
                    if entry.is_file() and inode not in self._open:
                        self._open[inode] = os.open(entry.path, os.O_RDONLY)
                    elif entry.is_dir():
                        self._history.setdefault(inode, [{}])
            history = self._history.setdefault(os.stat(folder).st_ino, [{}])
            if history[-1] != names:
                history.append(names)

    def _make(self, inode: int, target: Path) -> None:
        if inode in self._open:
            target.write_bytes(self._survives(inode))
        else:
            target.mkdir()
            for name, found in self._random.choice(self._history[inode]).items():
                self._make(found, target / name)

    def _survives(self, inode: int) -> bytes:
        """What may be left of a file."""
        now, safe = self._read(inode), self._content.get(inode)
        if safe is None:
            return self._random.choice([b"", bytes(len(now)), now[: len(now) // 2], now])
        if now.startswith(safe):
            added = len(now) - len(safe)
            return self._random.choice([safe, safe + bytes(added), now[: len(safe) + added // 2], now])
        return self._random.choice([safe, now])

    def _read(self, inode: int) -> bytes:
        descriptor = self._open[inode]
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


@contextmanager
def power_cuts(
    monkeypatch: pytest.MonkeyPatch, root: Path, image: Path, check: Callable[[Path], None], seed: int, every: int = 1
) -> Iterator[Disk]:
    """While the block runs, cuts the power before changes to names in `root`, and before and after what is flushed."""
    disk = Disk(root, image, check, seed, every)

    def fsync(file: Any) -> None:  # the true one would only take time
        disk.before_change()
        disk.flushed(file if isinstance(file, int) else file.fileno())
        disk.before_change()

    def noted(change: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            disk.before_change()
            return change(*arguments, **options)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        for name in ("replace", "rename", "link", "mkdir", "unlink", "rmdir"):
            patch.setattr(os, name, noted(getattr(os, name)))
        try:
            yield disk
            disk.cut()
        finally:
            disk.close()
