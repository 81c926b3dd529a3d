"""Runs the model in one thread, which scores the waiting clips of all clients together."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

import numpy as np

from safe_rlhf_video.responses import Response

ScoreBatch = Callable[[Sequence[str], Sequence[Response]], dict[str, np.ndarray]]
_log = logging.getLogger(__name__)


class ModelFailedError(Exception):
    """Scoring failed with what is no `Exception`, such as a panic of a tokenizer written in Rust."""


@dataclass(eq=False)
class _Clip:
    prompt: str
    response: Response
    scores: Future[dict[str, float]] = field(default_factory=Future)


class ModelThread:
    """Collects clips into batches and scores them; any thread may call `submit`.

    Nothing ends the thread but `close`: whatever is raised in it fails the clips of its batch, and it goes on.

    Args:
        score_batch: `Scorer.score_batch`; only this thread calls it.
        batch_size: clips scored at once, at most.
        wait_s: how long the first clip of a batch waits for others.
        on_batch: called with the size of every batch.
        on_restart: called when something was raised outside of `score_batch`, and the thread begins anew.
    """

    def __init__(
        self,
        score_batch: ScoreBatch,
        batch_size: int,
        wait_s: float,
        on_batch: Callable[[int], None],
        on_restart: Callable[[], None] = lambda: None,
    ) -> None:
        self._score_batch = score_batch
        self._batch_size = batch_size
        self._wait_s = wait_s
        self._on_batch = on_batch
        self._on_restart = on_restart
        self._batch: list[_Clip] = []  # in work
        self._busy_since_s: float | None = None
        self._queue: queue.SimpleQueue[_Clip | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether clips that are submitted will be scored."""
        return self._thread.is_alive()

    @property
    def busy_s(self) -> float:
        """For how long the batch in work has been scored; 0 without one."""
        since_s = self._busy_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    @property
    def num_waiting(self) -> int:
        """Clips that no batch has taken yet."""
        return self._queue.qsize()

    def submit(self, prompt: str, response: Response) -> Future[dict[str, float]]:
        """Returns the scores by head; cancelling the future before its batch is made takes the clip out.

        The future raises what `score_batch` raises for this clip alone: clips of one batch do not fail together.
        """
        clip = _Clip(prompt, response)
        self._queue.put(clip)
        return clip.scores

    def close(self, timeout_s: float) -> None:
        """Scores what was submitted, then ends the thread; stops waiting after `timeout_s`."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            try:
                self._work()
                return
            except BaseException as error:  # a thread that ended would leave every later clip without an answer
                self._on_restart()  # before the answers are out, as a batch is counted
                _log.exception("the thread of the model failed and begins anew")
                for clip in self._batch:
                    with contextlib.suppress(InvalidStateError):  # it has its scores, or was cancelled
                        clip.scores.set_exception(_as_exception(error))

    def _work(self) -> None:
        while self._collect():
            self._batch = [clip for clip in self._batch if clip.scores.set_running_or_notify_cancel()]
            if self._batch:
                self._busy_since_s = time.monotonic()
                try:
                    self._on_batch(len(self._batch))  # before scores are out: whoever has one finds its batch counted
                    self._score(self._batch)
                finally:
                    self._busy_since_s = None
                self._batch = []  # its frames are not kept until the next one

    def _collect(self) -> bool:
        """Makes the next batch, which may be empty; False at the end."""
        batch: list[_Clip] = []
        self._batch = batch
        deadline: float | None = None
        while len(batch) < self._batch_size:
            try:
                remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
                clip = self._queue.get(timeout=remaining)
            except queue.Empty:
                return True
            if clip is None:
                if batch:
                    self._queue.put(None)  # the end comes after this batch
                return bool(batch)
            # A clip that was cancelled while it waited takes no place.
            if not clip.scores.cancelled():
                batch.append(clip)
                deadline = deadline or time.monotonic() + self._wait_s
        return True

    def _score(self, batch: list[_Clip]) -> None:
        try:
            scores = self._score_batch([clip.prompt for clip in batch], [clip.response for clip in batch])
        except BaseException as error:
            # Any of the clips may be the cause; also, memory may suffice for fewer.
            if len(batch) > 1:
                for clip in batch:
                    self._score([clip])
            else:
                batch[0].scores.set_exception(_as_exception(error))
            return
        for place, clip in enumerate(batch):
            clip.scores.set_result({head: float(values[place]) for head, values in scores.items()})


def _as_exception(error: BaseException) -> Exception:
    """The error, or one that says what it was: asyncio passes only an `Exception` on to the one who waits."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    # Not its message, nor the error as a cause: a panic may quote the prompt, which belongs in no log.
    return ModelFailedError(f"{type(error).__name__} in the model's thread").with_traceback(error.__traceback__)
