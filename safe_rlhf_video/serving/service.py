"""Scores the clips of many requests with one model: how many at once, for how long, and what they share."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

from safe_rlhf_video.errors import CheckpointError, ConfigError, SampleError
from safe_rlhf_video.responses import content_digest
from safe_rlhf_video.scoring.decisions import TradeOff
from safe_rlhf_video.scoring.scorer import Scorer
from safe_rlhf_video.serving.client_limits import ClientLimits
from safe_rlhf_video.serving.model_thread import ModelThread
from safe_rlhf_video.serving.request_body import read_fields
from safe_rlhf_video.serving.request_clips import ClipReader, UploadFolder, Uploads
from safe_rlhf_video.serving.request_models import PairRequest, RankRequest, ScoringRequest
from safe_rlhf_video.serving.server_metrics import ServerMetrics
from safe_rlhf_video.serving.settings import ServerSettings
from safe_rlhf_video.video.sampling import Video

Scores = dict[str, float]
Result = TypeVar("Result")
Asked = TypeVar("Asked", bound=ScoringRequest)
_log = logging.getLogger(__name__)


def hide_folder(backbone: str) -> str:
    """Returns a hub id or the embedded backbone's name as it is, and of a folder its last part."""
    name = Path(backbone).name if Path(backbone).is_dir() else backbone
    return name.encode(errors="backslashreplace").decode()  # a folder's name may not be UTF-8, an answer has to be


class Service:
    """Scores the clips of many clients with one model.

    All methods but `close` belong to the thread of the event loop.
    """

    def __init__(self, scorer: Scorer, settings: ServerSettings) -> None:
        self.scorer = scorer
        self.settings = settings
        self.metrics = ServerMetrics()
        # Clients do not learn in which folder of this machine the backbone is.
        self.facts = replace(scorer.facts, backbone=hide_folder(scorer.facts.backbone))
        self.is_stopping = False
        self._upload_folder = UploadFolder()
        self.limits = ClientLimits(settings, self.metrics)
        self._parsing = asyncio.Lock()
        self.clips = ClipReader(settings, scorer.record.sampling, self.metrics)
        self._model = ModelThread(
            scorer.score_batch,
            settings.batch_size,
            settings.batch_wait_ms / 1000,
            self.metrics.batch_clips.observe,
            self.metrics.model_restarts.inc,
        )
        # Decoding runs ahead of the model by two batches, not by all that is asked for.
        self._decoded = asyncio.Semaphore(2 * settings.batch_size + settings.workers)
        self._timeouts: set[asyncio.Timeout] = set()
        self.metrics.queue_requests.set_function(lambda: self.limits.num_requests)
        self.metrics.body_bytes.set_function(lambda: self.limits.num_bytes)
        self.metrics.queue_clips.set_function(lambda: self._model.num_waiting)

    @contextlib.asynccontextmanager
    async def receive(
        self, request: Request, read: Callable[[dict[str, Any], ServerSettings], Asked]
    ) -> AsyncIterator[tuple[Asked, Uploads]]:
        """Receives a request and gives it one of `queue_size` places; the block works on it.

        The block is cancelled when its time is up and when its client leaves.

        Args:
            read: checks the fields of the body, such as `ClipRequest.read`.

        Raises:
            HTTPException: there is no place, the body or a field is wrong, or it took too long.
            ClientDisconnect: the client left.
        """
        client = request.scope.get("state", {}).get("client", "unknown")
        self._require_running()
        self.limits.check_place(client)  # before the body is received, and again after
        self.limits.take_clips(client, 1)
        left = None
        try:
            async with self.within_time() as timeout, contextlib.AsyncExitStack() as stack:
                uploads = stack.enter_context(Uploads(self._upload_folder))
                body = stack.enter_context(self.limits.body(client))
                # Of its fields, only what the request names is kept: the text of a body may be large.
                asked = read(await read_fields(request, self.settings, body, self._parsing, stack), self.settings)
                self._require_running()
                stack.enter_context(self.limits.place(client))
                self.limits.take_clips(client, max(1, len(asked.clips)), num_taken=1)
                left = asyncio.create_task(_end_when_left(request, timeout))
                stack.callback(left.cancel)
                yield asked, uploads
        except HTTPException as error:
            if left is not None and left.done() and not left.cancelled():
                raise ClientDisconnect from error
            raise

    def _require_running(self) -> None:
        if self.is_stopping:
            raise _shutting_down()

    @contextlib.asynccontextmanager
    async def within_time(self) -> AsyncIterator[asyncio.Timeout]:
        """Runs a block for `timeout_s` at most, and for `shutdown_s` at most in a server that ends.

        Raises:
            HTTPException: it took longer.
        """
        try:
            async with asyncio.timeout(self.settings.timeout_s) as timeout:
                self._timeouts.add(timeout)
                try:
                    yield timeout
                finally:
                    self._timeouts.discard(timeout)
        except TimeoutError:
            if self.is_stopping:
                raise _shutting_down() from None
            message = f"not answered within {self.settings.timeout_s:g} s; send less at once, or try again later"
            raise HTTPException(503, message, {"Retry-After": "1"}) from None

    def require_life(self) -> None:
        """Raises an HTTPException if the server is about to end, or its model scores no clip any more."""
        self._require_running()
        if not self._model.is_alive:
            raise HTTPException(503, "the model's thread has ended; start the server anew")

    async def require_readiness(self) -> None:
        """Raises an HTTPException if a clip would not be scored now; starts a decoding process if none runs."""
        self.require_life()
        if self._model.busy_s > self.settings.timeout_s:
            raise HTTPException(503, f"the model has worked on one batch for {self._model.busy_s:.0f} s")
        await self.clips.require_decoder()

    def stop(self) -> None:
        """Refuses new requests; those in work have `shutdown_s` left."""
        self.is_stopping = True
        latest = asyncio.get_running_loop().time() + self.settings.shutdown_s
        for timeout in self._timeouts:
            if not timeout.expired():  # one whose request is being cancelled cannot be changed
                timeout.reschedule(min(timeout.when() or latest, latest))

    def close(self) -> None:
        """Ends the model's thread and the decoding processes."""
        self.clips.close()
        self._model.close(self.settings.shutdown_s)
        self.scorer.close()
        self._upload_folder.remove()

    async def score(self, prompts: Sequence[str], files: Mapping[str, Path], uploads: Uploads) -> dict[str, np.ndarray]:
        """Decodes and scores the clips of a request.

        Args:
            prompts: (N,), one for each clip.
            files: (N,), by the names that messages use for the clips.
            uploads: of the request; they stay while they are decoded.

        Returns:
            head -> float64 (N,); equal clips with equal prompts have equal scores, to the last bit.

        Raises:
            HTTPException: a clip cannot be read, the backbone does not take a prompt, or the model failed.
        """
        known: dict[tuple[str, str], asyncio.Future[Scores]] = {}
        try:
            rows = await _together(
                [
                    self._score_one(prompt, partial(self.clips.read, path, name, uploads), name, known, len(files) == 1)
                    for prompt, (name, path) in zip(prompts, files.items(), strict=True)
                ]
            )
        finally:
            for scores in known.values():
                scores.cancel()
        return {head: np.array([row[head] for row in rows]) for head in self.scorer.heads}

    async def _score_one(
        self,
        prompt: str,
        read: Callable[[], Coroutine[Any, Any, Video]],
        name: str,
        known: dict[tuple[str, str], asyncio.Future[Scores]],
        is_only: bool,
    ) -> Scores:
        async with self._decoded:
            video = await read()
            key = (prompt, "" if is_only else await asyncio.to_thread(content_digest, video))
            if key not in known:
                known[key] = asyncio.wrap_future(self._model.submit(prompt, video))
            try:
                return await asyncio.shield(known[key])
            except CheckpointError as error:  # its message holds the prompt, which belongs in no log
                message = "a score is not finite: the model diverged; tell the server's administrator"
                raise HTTPException(503, message) from error
            except (ConfigError, SampleError) as error:  # such as a prompt with more tokens than the backbone takes
                raise HTTPException(400, f"prompt of {name}: {error}") from error
            except Exception as error:  # of torch or the device, such as out of memory
                _log.exception("the model failed")
                message = "the model failed, the server's log says why; try again later"
                raise HTTPException(503, message, {"Retry-After": "10"}) from error

    def require_moderation(self) -> None:
        """Raises an HTTPException unless a head for a harm label is loaded."""
        if not self.scorer.can_moderate:
            raise HTTPException(404, "no harm label was trained; start the server with a moderation folder as well")

    def require_decider(self) -> None:
        """Raises an HTTPException unless a reward or a cost is loaded."""
        if not {"reward", "cost"} & set(self.scorer.heads):
            raise HTTPException(404, "this needs a reward or a cost model; start the server with its folder as well")

    def resolve_trade_off(self, asked: PairRequest | RankRequest) -> TradeOff | None:
        """Returns what weighs the reward against the cost, as `Scorer.resolve_trade_off`.

        Raises:
            HTTPException: a value has no effect, because the reward or the cost is missing.
        """
        try:
            return self.scorer.resolve_trade_off(len(asked.clips), asked.lagrange_multiplier, asked.cost_limit)
        except ConfigError as error:
            raise HTTPException(400, str(error)) from error


def _shutting_down() -> HTTPException:
    message = "the server is shutting down; ask another one, or this one later"
    return HTTPException(503, message, {"Retry-After": "10"})


async def _end_when_left(request: Request, timeout: asyncio.Timeout) -> None:
    # After the body, the only message is the end of the connection.
    while (await request.receive())["type"] != "http.disconnect":
        pass
    if not timeout.expired():
        timeout.reschedule(asyncio.get_running_loop().time())


async def _together(work: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Returns all results; after the first error the rest is cancelled."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
