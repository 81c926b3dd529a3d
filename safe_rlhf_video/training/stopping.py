"""Lets a run save and end when its process is asked to: clusters send SIGTERM some time before they kill it."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

# What a shell reports for a process that SIGTERM has ended.
EXIT_CODE = 128 + signal.SIGTERM


class StopSignal:
    """Takes note of SIGTERM while its block runs; in a thread, where Python allows no handlers, it does nothing.

    Attributes:
        is_there: whether the signal has come.
    """

    def __init__(self) -> None:
        self.is_there = False
        self._before: Any = None
        self._is_main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> StopSignal:
        if self._is_main:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_main:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.is_there = True
