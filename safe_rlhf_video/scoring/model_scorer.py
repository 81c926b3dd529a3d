"""Loads trained models onto one backbone and scores videos and texts with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Self, cast

import numpy as np
import torch

from safe_rlhf_video.calibration.store import join_calibrations, read_calibration
from safe_rlhf_video.data.datasets import PairDataset, VideoDataset
from safe_rlhf_video.data.preferences import videos_of
from safe_rlhf_video.data.records import PairSample, VideoSample
from safe_rlhf_video.errors import CheckpointError, ConfigError
from safe_rlhf_video.heads import HEADS
from safe_rlhf_video.models.fingerprints import join_fingerprints, read_fingerprints
from safe_rlhf_video.models.folder import load_models
from safe_rlhf_video.models.inputs import build_inputs
from safe_rlhf_video.models.record import read_record, resolve_model_folder
from safe_rlhf_video.responses import Response, TextResponse
from safe_rlhf_video.scoring.decisions import ModelFacts
from safe_rlhf_video.scoring.devices import resolve_device
from safe_rlhf_video.scoring.score_many import (
    ScoreRequest,
    Scores,
    Source,
    raise_unreadable,
    request_videos,
    score_many,
)
from safe_rlhf_video.scoring.video_inputs import VideoLike, read_videos
from safe_rlhf_video.video.pool import DecodePool
from safe_rlhf_video.video.sampling import Video


class ModelScorer:
    """Trained models on one backbone, loaded once; `Scorer` also chooses by their scores.

    Build it with `from_pretrained`. Paths are decoded in child processes, where a broken file can do no harm; a `with`
    block stops them at its end.

    Attributes:
        records: the model.json of each folder.
        record: the joined record of all folders.
        calibration: what the scores mean; empty without calibration.json.
        fingerprint: identifies what decides the scores.
        heads: of the loaded folders, in the order of `HEADS`.
        pool: decodes files.
    """

    def __init__(
        self,
        model_dirs: Sequence[str | Path],
        device: torch.device,
        backbone: str | None,
        workers: int,
        calibrated: bool = True,
    ) -> None:
        self.device = device
        self.records = [read_record(folder) for folder in model_dirs]
        folders = [resolve_model_folder(folder).absolute() for folder in model_dirs]
        # Each folder is hashed once, when a fingerprint of it is first needed.
        self._fingerprints = cache(read_fingerprints)
        # Before the backbone is loaded: a stale calibration is reported at once.
        self._calibrations = [
            read_calibration(folder, lambda one: self._fingerprints(one).model) for folder in folders if calibrated
        ]
        self.calibration = join_calibrations(self._calibrations)
        self.model, self._backbone, self.record = load_models(model_dirs, device, backbone)
        self.heads = tuple(head for head in HEADS if head in self.model.score_heads)
        self._workers = workers
        self.pool = DecodePool(self.record.sampling, num_workers=workers)
        self.fingerprint = join_fingerprints([self._fingerprints(folder).model for folder in folders])

    @classmethod
    def from_pretrained(
        cls,
        *model_dirs: str | Path,
        device: str = "auto",
        backbone: str | None = None,
        workers: int = 2,
        calibrated: bool = True,
    ) -> Self:
        """Loads one or more model folders (a reward and a cost, say) onto one backbone.

        Args:
            device: "auto" takes CUDA if there is any.
            backbone: the folder of the backbone, if it has moved since training; its weights must be the same.
            workers: decoding processes.
            calibrated: whether to read the calibration.json of the folders.

        Raises:
            CheckpointError: a folder is no model folder, the folders do not fit each other or the backbone, or a
                calibration is damaged or belongs to other weights.
            ConfigError: there is no such device.
        """
        return cls(model_dirs, resolve_device(device), backbone, workers, calibrated)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the decoding processes; the next file starts them again."""
        self.pool.close()
        self.pool = DecodePool(self.record.sampling, num_workers=self._workers)

    @property
    def facts(self) -> ModelFacts:
        """What made the scores."""
        return ModelFacts(self.fingerprint, self.record.backbone.path, self.record.sampling.to_dict())

    @property
    def thresholds(self) -> dict[str, np.ndarray]:
        """The scores that separate the K levels of each head that has some: head -> (K - 1,)."""
        return {head: found.detach().double().cpu().numpy() for head, found in self.model.thresholds().items()}

    def require_both_heads(self) -> None:
        """Raises a CheckpointError unless both a reward and a cost are loaded."""
        if missing := [head for head in ("reward", "cost") if head not in self.heads]:
            raise CheckpointError(
                f"this needs a reward and a cost model, the {missing[0]} is missing; give the folders of both"
            )

    def read(self, videos: Sequence[VideoLike], fps: float | None = None) -> list[Response]:
        """Samples videos as the model was trained: decodes files and bytes, resizes arrays; see `read_videos`."""
        return read_videos(videos, fps, self.record.sampling, self.pool)

    def score_batch(self, prompts: Sequence[str], responses: Sequence[Response]) -> dict[str, np.ndarray]:
        """Scores N >= 1 sampled videos or texts in one batch.

        Returns:
            head -> float64 (N,).

        Raises:
            CheckpointError: a score is not finite.
        """
        inputs = build_inputs(self._backbone, prompts, responses, self.device)
        with torch.inference_mode():
            output = self.model(inputs)
        scores = {head: values.double().cpu().numpy() for head, values in output.items()}
        for head, values in scores.items():
            if not np.isfinite(values).all():
                bad = prompts[int(np.flatnonzero(~np.isfinite(values))[0])]
                raise CheckpointError(
                    f"the {head} of a video for the prompt {bad[:60]!r} is not finite: the model diverged"
                )
        return scores

    def iterate(self, prompts: Sequence[str], sources: Sequence[Source], batch_size: int = 64) -> Iterator[Scores]:
        """Scores many files or texts, decoding ahead of the model; yields one {head: score} each, in order.

        Args:
            sources: each a file, a text, a sampled video, or a function that reads one when its turn comes.

        Raises:
            VideoDecodeError: when it is the turn of a file that cannot be read.
            ConfigError: the numbers of prompts and sources differ, or the batch size is not positive.
        """
        if len(prompts) != len(sources):
            raise ConfigError(f"{len(prompts)} prompts for {len(sources)} videos; give each its prompt")
        requests = [ScoreRequest("", prompt, source) for prompt, source in zip(prompts, sources, strict=True)]
        return raise_unreadable(score_many(self, requests, batch_size))

    def score_samples(
        self,
        dataset: PairDataset | VideoDataset,
        samples: Sequence[PairSample | VideoSample],
        batch_size: int = 64,
    ) -> dict[str, Scores]:
        """Scores the clips and texts of some records of a data set, each once.

        Returns:
            Name of the clip -> head -> score.
        """
        requests = request_videos(dataset, [video for sample in samples for video in videos_of(sample)])
        rows = raise_unreadable(score_many(self, requests, batch_size))
        return {request.key: row for request, row in zip(requests, rows, strict=True)}

    def score(self, prompt: str, video: VideoLike, *, fps: float | None = None) -> Scores:
        """Scores one video for its prompt.

        Returns:
            head -> score, e.g. {"reward": 1.2, "cost": -0.4}.
        """
        scores = self.score_batch([prompt], self.read([video], fps))
        return {head: float(values[0]) for head, values in scores.items()}

    def to_source(self, video: VideoLike, fps: float | None = None) -> Source:
        """Prepares a video for `iterate`: a file is decoded ahead of its turn, anything else is read when it comes."""
        if isinstance(video, str | Path):
            return Path(video)
        return video if isinstance(video, TextResponse) else lambda: cast(Video, self.read([video], fps)[0])
