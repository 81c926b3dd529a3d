"""Runs the model in one thread, which scores the waiting clips of all clients together."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from safe_rlhf_video.responses import Response

ScoreBatch = Callable[[Sequence[str], Sequence[Response]], dict[str, np.ndarray]]


@dataclass(eq=False)
class _Clip:
    prompt: str
    response: Response
    scores: Future[dict[str, float]] = field(default_factory=Future)


class ModelThread:
    """Collects clips into batches and scores them; any thread may call `submit`.

    Args:
        score_batch: `Scorer.score_batch`; only this thread calls it.
        batch_size: clips scored at once, at most.
        wait_s: how long the first clip of a batch waits for others.
        on_batch: called with the size of every batch.
    """

    def __init__(
        self, score_batch: ScoreBatch, batch_size: int, wait_s: float, on_batch: Callable[[int], None]
    ) -> None:
        self._score_batch = score_batch
        self._batch_size = batch_size
        self._wait_s = wait_s
        self._on_batch = on_batch
        self._queue: queue.SimpleQueue[_Clip | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

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
        while (batch := self._collect()) is not None:
            wanted = [clip for clip in batch if clip.scores.set_running_or_notify_cancel()]
            if wanted:
                self._on_batch(len(wanted))  # before their scores are out: whoever has one finds its batch counted
                self._score(wanted)

    def _collect(self) -> list[_Clip] | None:
        """The next batch; None at the end."""
        batch: list[_Clip] = []
        deadline = None
        while len(batch) < self._batch_size:
            try:
                remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
                clip = self._queue.get(timeout=remaining)
            except queue.Empty:
                return batch
            if clip is None:
                if batch:
                    self._queue.put(None)  # the end comes after this batch
                return batch or None
            # A clip that was cancelled while it waited takes no place.
            if not clip.scores.cancelled():
                batch.append(clip)
                deadline = deadline or time.monotonic() + self._wait_s
        return batch

    def _score(self, batch: list[_Clip]) -> None:
        try:
            scores = self._score_batch([clip.prompt for clip in batch], [clip.response for clip in batch])
        except Exception as error:
            # Any of the clips may be the cause; also, memory may suffice for fewer.
            if len(batch) > 1:
                for clip in batch:
                    self._score([clip])
            else:
                batch[0].scores.set_exception(error)
            return
        for place, clip in enumerate(batch):
            clip.scores.set_result({head: float(values[place]) for head, values in scores.items()})
