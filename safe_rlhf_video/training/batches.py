"""A rank's micro-batches, step by step, decoded ahead of the model."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

from safe_rlhf_video.data.batch import Batch, collate
from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.data.preferences import PromptGroup
from safe_rlhf_video.training.config import TrainConfig
from safe_rlhf_video.training.data import TrainingData
from safe_rlhf_video.training.distributed import Ranks
from safe_rlhf_video.training.plan import StepPlan, divide, plan_epoch
from safe_rlhf_video.video.pool import DecodePool


def read_batches(
    config: TrainConfig, data: TrainingData, ranks: Ranks, pool: DecodePool, first_step: int, total_steps: int
) -> Iterator[tuple[StepPlan, Batch]]:
    """This rank's micro-batches from `first_step` on; clips are decoded ahead, in order."""
    accumulation = config.optimization.accumulation

    def jobs() -> Iterator[tuple[StepPlan, list[PromptGroup], bool]]:
        step = epoch = 0
        while step < total_steps:
            for plan in plan_epoch(data.train, config.optimization.prompts_per_step, config.seed, epoch):
                if first_step <= step < total_steps:
                    shares = divide(plan, data.train, ranks.world_size * accumulation)
                    for share in shares[ranks.rank * accumulation : (ranks.rank + 1) * accumulation]:
                        members = share or plan.groups[:1]
                        yield plan, [data.train[i] for i in members], bool(share)
                step += 1
            epoch += 1

    yield from decode_jobs(jobs, data.dataset, pool)


def decode_jobs(jobs: Any, dataset: PairDataset, pool: DecodePool) -> Iterator[tuple[StepPlan, Batch]]:
    """Decode the clips of all jobs in one stream and cut it into batches."""
    paths = (dataset.video_file(video) for _, groups, _ in jobs() for group in groups for video in group.videos)
    videos = pool.iterate(paths)
    for plan, groups, counted in jobs():
        count = sum(len(group.videos) for group in groups)
        yield plan, collate(groups, [next(videos) for _ in range(count)], counted)


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
