"""Keeps token ids of the most recently used texts within a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

# Measured with CPython 3.11: an entry with its key takes up to 400 bytes, a token id with its place in a tuple 40.
ENTRY_BYTES = 400
ID_BYTES = 40


class LruBytes(Generic[Key]):
    """Token ids by key; the least recently used make room. Any thread may use it.

    `functools.lru_cache` bounds the number of entries only: a server meets any number of long texts that never come
    again.

    Args:
        max_bytes: what keys and ids may take together, about.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._entries: OrderedDict[Key, tuple[tuple[int, ...], int]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """What keys and ids take, about."""
        return self._num_bytes

    def get(self, key: Key) -> tuple[int, ...] | None:
        """Returns the ids, or None if they are not kept."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def put(self, key: Key, ids: tuple[int, ...], key_bytes: int) -> None:
        """Keeps ids whose key takes `key_bytes`, unless they alone take more than there is room for."""
        size = ENTRY_BYTES + key_bytes + ID_BYTES * len(ids)
        if size > self._max_bytes:
            return
        with self._lock:
            old = self._entries.pop(key, None)
            self._num_bytes += size - (0 if old is None else old[1])
            self._entries[key] = (ids, size)
            while self._num_bytes > self._max_bytes:
                _, (_, freed) = self._entries.popitem(last=False)
                self._num_bytes -= freed
