"""What the routes share: one model, its clips, and how long and how many requests are worked on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from safe_rlhf_video.errors import CheckpointError, ConfigError, SampleError
from safe_rlhf_video.responses import content_digest
from safe_rlhf_video.scoring import Scorer
from safe_rlhf_video.serving.bodies import NUM_LARGE_BODIES
from safe_rlhf_video.serving.clip_references import ClipReader, Uploads
from safe_rlhf_video.serving.model_thread import ModelThread
from safe_rlhf_video.serving.request_fields import RequestError, VideoReference
from safe_rlhf_video.serving.server_metrics import ServerMetrics
from safe_rlhf_video.serving.settings import ServerSettings

Scores = dict[str, float]
_log = logging.getLogger(__name__)
Result = TypeVar("Result")


def hide_folder(backbone: str) -> str:
    """A hub id or an embedded backbone's name as it is, of a folder its last part."""
    return Path(backbone).name if Path(backbone).is_dir() else backbone


class Service:
    """Scores the clips of many clients with one model.

    All methods but `close` belong to the thread of the event loop.
    """

    def __init__(self, scorer: Scorer, settings: ServerSettings) -> None:
        self.scorer = scorer
        self.settings = settings
        self.metrics = ServerMetrics()
        # Where the backbone lies on this machine is not for clients.
        self.facts = replace(scorer.facts, backbone=hide_folder(scorer.facts.backbone))
        self.upload_folder = Path(tempfile.mkdtemp(prefix="safe_rlhf_video-uploads-"))
        self.large_bodies = asyncio.Semaphore(NUM_LARGE_BODIES)
        self.is_stopping = False
        self._clips = ClipReader(settings, scorer.record.sampling, self.metrics)
        self._model = ModelThread(
            scorer.score_batch, settings.batch_size, settings.batch_wait_ms / 1000, self.metrics.add_batch
        )
        # Decoding runs ahead of the model by two batches, not by all that is asked for.
        self._decoded = asyncio.Semaphore(2 * settings.batch_size + settings.workers)
        self._num_requests = 0
        self._timeouts: set[asyncio.Timeout] = set()

    def gauges(self) -> dict[str, tuple[str, int]]:
        """What `ServerMetrics.text` is told beside its own counts."""
        return {
            "queue_requests": ("Requests that were taken and are not answered yet.", self._num_requests),
            "queue_clips": ("Decoded clips that wait for the model.", self._model.num_waiting),
        }

    def check_room(self) -> None:
        """Raise a RequestError where one request more would be too many, or the server is about to end."""
        if self.is_stopping:
            raise RequestError(503, "the server is shutting down; ask another one, or this one later", 10)
        if self._num_requests >= self.settings.queue_size:
            raise RequestError(429, f"{self.settings.queue_size} requests are in work already; try again", 1)

    @contextlib.asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """One of `queue_size` places, while the block runs.

        Raises:
            RequestError: there is none.
        """
        self.check_room()
        self._num_requests += 1
        try:
            yield
        finally:
            self._num_requests -= 1

    @contextlib.asynccontextmanager
    async def within_time(self) -> AsyncIterator[None]:
        """Run a block for `timeout_s` at most, and no longer than a server that ends still works.

        Raises:
            RequestError: it took longer.
        """
        try:
            async with asyncio.timeout(self.settings.timeout_s) as timeout:
                self._timeouts.add(timeout)
                try:
                    yield
                finally:
                    self._timeouts.discard(timeout)
        except TimeoutError:
            if self.is_stopping:
                raise RequestError(503, "the server is shutting down; ask another one, or this one later", 10) from None
            raise RequestError(
                503, f"not answered within {self.settings.timeout_s:g} s; send less at once, or try again later", 1
            ) from None

    def stop(self) -> None:
        """Refuse new requests; those that are in work have `shutdown_s` left."""
        self.is_stopping = True
        latest = asyncio.get_running_loop().time() + self.settings.shutdown_s
        for timeout in self._timeouts:
            if not timeout.expired():  # one whose request is being given up cannot be changed
                timeout.reschedule(min(timeout.when() or latest, latest))

    def close(self) -> None:
        """End the model's thread and the decoding processes."""
        self._clips.close()
        self._model.close(self.settings.shutdown_s)
        self.scorer.close()
        shutil.rmtree(self.upload_folder, ignore_errors=True)

    async def find(self, references: Sequence[VideoReference], uploads: Uploads) -> list[Path]:
        """The files of a request's clips.

        Raises:
            RequestError: of the first that may not be read.
        """
        return [await self._clips.find(reference, uploads) for reference in references]

    async def score(
        self, prompts: Sequence[str], paths: Sequence[Path], fields: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Decode and score the clips of a request.

        Args:
            prompts, paths, fields: (N,): of each clip the prompt, the file, and what a message calls it.

        Returns:
            head -> float64 (N,); equal clips with equal prompts have equal scores, to the last bit.

        Raises:
            RequestError: a clip cannot be read, a prompt is none for this backbone, or the model diverged.
        """
        known: dict[tuple[str, str], asyncio.Future[Scores]] = {}
        try:
            rows = await _together(
                [
                    self._score_one(prompt, path, field, known, len(paths) == 1)
                    for prompt, path, field in zip(prompts, paths, fields, strict=True)
                ]
            )
        finally:
            for scores in known.values():
                scores.cancel()
        return {head: np.array([row[head] for row in rows]) for head in self.scorer.heads}

    async def _score_one(
        self, prompt: str, path: Path, field: str, known: dict[tuple[str, str], asyncio.Future[Scores]], is_only: bool
    ) -> Scores:
        async with self._decoded:
            video = await self._clips.read(path, field)
            key = (prompt, "" if is_only else await asyncio.to_thread(content_digest, video))
            if key not in known:
                known[key] = asyncio.wrap_future(self._model.submit(prompt, video))
            try:
                return await asyncio.shield(known[key])
            except CheckpointError as error:  # its message names the prompt, which is none of a log's business
                raise RequestError(
                    503, "a score is not finite: the model diverged; tell who runs the server"
                ) from error
            except (ConfigError, SampleError) as error:  # a prompt with more tokens than the backbone takes, say
                raise RequestError(400, f"prompt of {field}: {error}") from error
            except Exception as error:  # of torch or the device: out of memory, say
                _log.exception("the model failed")
                raise RequestError(503, "the model failed, the server's log tells why; try again later", 10) from error

    def require_moderation(self) -> None:
        """Raise a RequestError unless a head for a harm label is loaded."""
        if not self.scorer.can_moderate:
            raise RequestError(404, "no harm label was trained here; start the server with a moderation folder as well")

    def require_both_heads(self) -> None:
        """Raise a RequestError unless both a reward and a cost are loaded."""
        for head in ("reward", "cost"):
            if head not in self.scorer.heads:
                raise RequestError(404, f"choosing needs a {head} model; start the server with its folder as well")


async def _together(work: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """All results, or the first error, after which nothing of the rest goes on."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
