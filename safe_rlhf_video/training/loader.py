"""Reads a rank's micro-batches ahead of the model."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from safe_rlhf_video.data.batch import Batch, collate
from safe_rlhf_video.data.preferences import PromptGroup
from safe_rlhf_video.data.records import VideoSample
from safe_rlhf_video.responses import Response, TextResponse
from safe_rlhf_video.training.config import TrainConfig
from safe_rlhf_video.training.data import TrainingData
from safe_rlhf_video.training.distributed import Ranks
from safe_rlhf_video.training.plan import GroupSize, StepPlan, divide, plan_epoch, plan_step
from safe_rlhf_video.training.run import Run
from safe_rlhf_video.video.pool import DecodePool
from safe_rlhf_video.video.sampling import Sampling, Video, target_size

ReadClips: TypeAlias = Callable[[Iterable[VideoSample]], Iterator[Video]]


@dataclass(frozen=True)
class Job:
    """What a rank does at once.

    Attributes:
        plan: the step that it is a part of.
        groups: whole prompts; there may be none.
        blanks: responses that only keep the rank in step with the others.
        is_last: whether the step ends with it.
    """

    plan: StepPlan
    groups: tuple[PromptGroup, ...]
    blanks: tuple[Response, ...]
    is_last: bool


@contextmanager
def open_clips(config: TrainConfig, data: TrainingData) -> Iterator[ReadClips]:
    """How a run gets its clips, in order: from the frame store where there is one, else decoded in child processes."""
    store = data.frame_store
    if store is not None:
        yield lambda samples: (store.read(sample.name) for sample in samples)
        return
    with DecodePool(config.sampling, config.data.workers, config.data.timeout_s) as pool:
        yield lambda samples: pool.iterate(data.clip_files[sample.name] for sample in samples)


def training_jobs(run: Run) -> Iterator[Job]:
    """This rank's micro-batches of the training prompts, from the run's first step on."""
    config, groups = run.config, run.data.train
    has_clips = contains_clip(groups)
    step = epoch = 0
    while step < run.total_steps:
        for plan in plan_epoch(groups, config.optimization.prompts_per_step, config.seed, epoch):
            if run.first_step <= step < run.total_steps:
                yield from share_out(config, plan, plan.groups, groups, run.sizes.train, run.ranks, has_clips)
            step += 1
        epoch += 1


def validation_jobs(run: Run) -> Iterator[Job]:
    """This rank's micro-batches of all validation prompts, no more at once than in training."""
    config, groups = run.config, run.data.validation
    everything = plan_step(range(len(groups)), groups)
    has_clips = contains_clip(groups)
    at_once = config.optimization.prompts_per_step
    for start in range(0, len(groups), at_once):
        members = everything.groups[start : start + at_once]
        yield from share_out(config, everything, members, groups, run.sizes.validation, run.ranks, has_clips)


def share_out(config: TrainConfig, plan: StepPlan, members: Sequence[int], groups: Sequence[PromptGroup],
              sizes: Sequence[GroupSize], ranks: Ranks, has_clips: bool) -> Iterator[Job]:  # fmt: skip
    """This rank's share of some groups; every rank has as many micro-batches as the others.

    Args:
        has_clips: whether there is any video among all groups, or only texts.
    """
    # With weights divided among ranks, all have to run the vision tower if one does; and all must have a gradient of
    # the projector if one has.
    all_need_video = has_clips and (config.engine.zero_stage == 3 or "projector" in config.model.trained_parts)
    blank = blank_video(config.sampling) if has_clips else TextResponse("")
    micro_batches = divide(members, sizes, ranks.world_size, config.optimization.micro_batch_tokens)
    for number, shares in enumerate(micro_batches):
        mine = tuple(groups[index] for index in shares[ranks.rank])
        is_short = not mine or (all_need_video and not contains_clip(mine))
        yield Job(plan, mine, (blank,) if is_short else (), is_last=number == len(micro_batches) - 1)


def contains_clip(groups: Sequence[PromptGroup]) -> bool:
    """Whether any response is a video."""
    return any(video.response_text is None for group in groups for video in group.videos)


def blank_video(sampling: Sampling) -> Video:
    """The smallest clip that a backbone takes, black."""
    height, width = target_size(sampling.size_multiple, sampling.size_multiple, sampling)
    frames = np.zeros((sampling.num_frames, height, width, 3), np.uint8)
    return Video(frames, np.arange(sampling.num_frames, dtype=np.float64))


def read_jobs(jobs: Callable[[], Iterator[Job]], clips: ReadClips) -> Iterator[tuple[Job, Batch]]:
    """Read the clips of all jobs in one stream and cut it into batches.

    Args:
        jobs: a function, since clips are read ahead of the batches they go to.
    """
    samples = (video for job in jobs() for group in job.groups for video in group.videos)
    videos = clips(sample for sample in samples if sample.response_text is None)

    def response(sample: VideoSample) -> Response:
        return next(videos) if sample.response_text is None else TextResponse(sample.response_text)

    for job in jobs():
        responses = [response(video) for group in job.groups for video in group.videos]
        yield job, collate(job.groups, responses, job.blanks)


def prefetch(iterator: Iterator[Any], depth: int = 2) -> Iterator[Any]:
    """Run an iterator in a thread, `depth` items ahead; its errors are raised where its items are taken."""
    items: queue.Queue[tuple[str, Any]] = queue.Queue(depth)

    def fill() -> None:
        try:
            for item in iterator:
                items.put(("item", item))
            items.put(("end", None))
        except BaseException as error:
            items.put(("error", error))

    threading.Thread(target=fill, daemon=True).start()
    while True:
        kind, value = items.get()
        if kind == "error":
            raise value
        if kind == "end":
            return
        yield value
