"""Scores many clips and texts in batches, decoding files ahead of the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from safe_rlhf_video.errors import ConfigError, VideoDecodeError
from safe_rlhf_video.responses import Response, TextResponse, content_digest
from safe_rlhf_video.video.pool import DecodePool
from safe_rlhf_video.video.sampling import Video

if TYPE_CHECKING:
    from safe_rlhf_video.data.records import VideoSample
    from safe_rlhf_video.data.safesora_dataset import SafeSoraDataset
    from safe_rlhf_video.video.frame_store import FrameStore

# A file, a text, a sampled video, or a function that reads a sampled video when its turn comes.
Source: TypeAlias = Path | Response | Callable[[], Video]
# head -> score
Scores: TypeAlias = dict[str, float]


class BatchScorer(Protocol):
    """What the functions of this module score with: `ModelScorer`, or one that changes what the models see."""

    @property
    def fingerprint(self) -> str:
        """Identifies what decides the scores."""

    @property
    def pool(self) -> DecodePool:
        """Decodes files."""

    def score_batch(self, prompts: Sequence[str], responses: Sequence[Response]) -> dict[str, np.ndarray]:
        """Scores N >= 1 sampled videos or texts in one batch: head -> float64 (N,)."""


@dataclass(frozen=True)
class ScoreRequest:
    """One clip or text to score for its prompt; the key names it in a file of scores and must be unique there."""

    key: str
    prompt: str
    response: Source


def request_videos(dataset: SafeSoraDataset, videos: Iterable[VideoSample]) -> list[ScoreRequest]:
    """Returns a request for each distinct clip or text of a data set, named as the video, in the order given."""
    distinct = {video.name: video for video in videos}.values()
    files = iter(dataset.video_files([video for video in distinct if video.response_text is None]))
    return [
        ScoreRequest(
            video.name,
            video.prompt_text,
            next(files) if video.response_text is None else TextResponse(video.response_text),
        )
        for video in distinct
    ]


def score_many(
    scorer: BatchScorer, requests: Sequence[ScoreRequest], batch_size: int = 64
) -> Iterator[Scores | VideoDecodeError]:
    """Scores any number of requests in batches, in the given order.

    Yields:
        For each request its scores, or the error of a clip that cannot be read; such a clip does not end the iteration.

    Raises:
        ConfigError: the batch size is not positive.
        CheckpointError: a score is not finite.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size: expected at least 1, got {batch_size}")
    return _score_batches(scorer, requests, batch_size)


def read_from_store(requests: Sequence[ScoreRequest], store: FrameStore | None) -> list[ScoreRequest]:
    """Returns the requests with the clips that the store holds under their keys read from it, not decoded."""
    return [
        replace(request, response=partial(store.read, request.key))
        if store is not None and request.key in store
        else request
        for request in requests
    ]


def raise_unreadable(outcomes: Iterable[Scores | VideoDecodeError]) -> Iterator[Scores]:
    """Yields the scores, and raises the error of the first clip that cannot be read."""
    for outcome in outcomes:
        if isinstance(outcome, VideoDecodeError):
            raise outcome
        yield outcome


def score_each_once(
    scorer: BatchScorer, prompts: Sequence[str], responses: Sequence[Response], batch_size: int = 64
) -> dict[str, np.ndarray]:
    """Scores N >= 1 responses so that their order and repetitions change nothing, not even the last bit.

    The position in a batch affects the last bits of a score. So equal responses to a prompt are scored once, and the
    responses to a prompt are sorted by content.

    Returns:
        head -> float64 (N,), in the order given.
    """
    keys = [(prompt, content_digest(response)) for prompt, response in zip(prompts, responses, strict=True)]
    distinct = dict(zip(keys, responses, strict=True))
    place_of = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    order = sorted(distinct, key=lambda key: (place_of[key[0]], key[1]))
    requests = [ScoreRequest(digest, prompt, distinct[prompt, digest]) for prompt, digest in order]
    rows = dict(zip(order, raise_unreadable(score_many(scorer, requests, batch_size)), strict=True))
    return {head: np.array([rows[key][head] for key in keys]) for head in rows[keys[0]]}


def _score_batches(
    scorer: BatchScorer, requests: Sequence[ScoreRequest], batch_size: int
) -> Iterator[Scores | VideoDecodeError]:
    paths = (request.response for request in requests if isinstance(request.response, Path))
    with contextlib.closing(scorer.pool.attempt(paths, ahead=2 * batch_size)) as decoded:
        for start in range(0, len(requests), batch_size):
            batch = requests[start : start + batch_size]
            outcomes = [_read(request.response, decoded) for request in batch]
            readable = [
                (request.prompt, response)
                for request, response in zip(batch, outcomes, strict=True)
                if not isinstance(response, VideoDecodeError)
            ]
            scores = scorer.score_batch(*zip(*readable, strict=True)) if readable else {}
            rows = zip(*(values.tolist() for values in scores.values()), strict=True)
            for outcome in outcomes:
                yield outcome if isinstance(outcome, VideoDecodeError) else dict(zip(scores, next(rows), strict=True))


def _read(source: Source, decoded: Iterator[Video | VideoDecodeError]) -> Response | VideoDecodeError:
    """The next file that was decoded, or what the source gives."""
    if isinstance(source, Path):
        return next(decoded)
    if isinstance(source, Video | TextResponse):
        return source
    try:
        return source()
    except VideoDecodeError as error:
        return error
