"""Takes one optimiser step, and validates; both go through micro-batches and sum what they see over all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from safe_rlhf_video.data.batch import Batch
from safe_rlhf_video.errors import CheckpointError
from safe_rlhf_video.models.inputs import build_inputs
from safe_rlhf_video.models.score_model import split_thresholds
from safe_rlhf_video.training import distributed
from safe_rlhf_video.training import engine as engines
from safe_rlhf_video.training.learner import Learner
from safe_rlhf_video.training.loader import Job, open_clips, prefetch, read_jobs, validation_jobs
from safe_rlhf_video.training.media import MediaCollector, ValidationMedia
from safe_rlhf_video.training.messages import memory_hint
from safe_rlhf_video.training.objectives import DIVERGED, Tally, compute_objective, name_some, summarize
from safe_rlhf_video.training.plan import StepPlan
from safe_rlhf_video.training.run import Run


@dataclass(frozen=True)
class StepResult:
    """One optimiser step.

    Attributes:
        totals: sums over all ranks, as of `Tally`, and `tokens`.
        norms: part of the model -> norm of its gradient before clipping.
    """

    totals: Mapping[str, float]
    plan: StepPlan
    norms: Mapping[str, float]


@dataclass(frozen=True)
class Validation:
    """What one validation found; nothing where there is no data for one."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    media: ValidationMedia | None = None


def take_step(run: Run, learner: Learner, batches: Iterator[tuple[Job, Batch]], step: int) -> StepResult:
    """Takes one optimiser step: all its micro-batches, then the update. The engine is in training mode.

    Nothing is read back from the device between micro-batches, so that the host makes the next one ready meanwhile; all
    that can be wrong with the numbers is looked at before the weights change.

    Args:
        batches: this rank's micro-batches, this step's next.

    Raises:
        CheckpointError: a score, the loss or a gradient is not finite; the weights on disk are still good.
        DeviceMemoryError: a micro-batch does not fit the device.
    """
    config, ranks, engine = run.config, run.ranks, learner.engine
    when = f"step {step + 1}"
    tally = Tally()
    is_last = False
    while not is_last:
        with distributed.together(ranks):  # a clip of one rank may be unreadable, or make too long an input
            job, batch = next(batches)
            with memory_hint(config, f"{when}: with the frames of {len(batch.responses)} videos", len(job.groups)):
                inputs = build_inputs(learner.backbone, batch.prompts, batch.responses, ranks.device)
        is_last = job.is_last
        # Dropout must not depend on what ran before, or a resumed run would differ.
        torch.manual_seed(int(np.random.SeedSequence([config.seed, step, len(tally), ranks.rank]).generate_state(1)[0]))
        engine.set_gradient_accumulation_boundary(is_last)
        rows, length = inputs["input_ids"].shape
        with memory_hint(config, f"{when}: with {rows} videos of {length} tokens at once", len(job.groups)):
            scores, thresholds = split_thresholds(engine(inputs, with_thresholds=True))
            objective = compute_objective(scores, batch, job.plan, config.loss, thresholds)
            # DeepSpeed averages over ranks; the parts of a planned loss must add up instead.
            engine.backward(objective.loss * ranks.world_size)
        tally.add(scores, batch, objective)
        tally.add_sum("tokens", inputs["attention_mask"].sum())
    with distributed.together(ranks):  # one rank's videos alone may have a score that is not finite
        tally.check_finite(when)
    squares = engines.squared_gradient_norms(engine, learner.parts, ranks)
    squares_by_name = {f"norm/{part}": square for part, square in squares.items()}
    totals = distributed.sum_over_ranks(tally.sums | squares_by_name, ranks)
    norms = {part: math.sqrt(totals.pop(f"norm/{part}")) for part in squares}
    if not all(map(math.isfinite, norms.values())):
        # The norms are of the whole step, so any of its prompts may be the cause.
        prompts = name_some([run.data.train[i].prompt_id for i in job.plan.groups])
        raise CheckpointError(f"{when}: the gradient is not finite for the prompts {prompts}{DIVERGED}")
    with memory_hint(config, f"{when}: in the optimiser's step", len(job.groups)):  # the first one makes Adam's moments
        engine.step()
    return StepResult(totals, job.plan, norms)


def validate(run: Run, learner: Learner, when: str, collector: MediaCollector | None = None) -> Validation:
    """Computes loss and accuracy on the validation prompts, over all ranks.

    Args:
        when: begins the message of an error, e.g. "step 3".
        collector: what it takes is in the result, on the first rank.

    Raises:
        CheckpointError: a score or the loss is not finite.
    """
    if not run.data.validation:
        return Validation()
    config, ranks, engine = run.config, run.ranks, learner.engine
    engine.eval()
    tally = Tally()
    jobs = partial(validation_jobs, run)
    with torch.no_grad(), engines.averages_in_place(engine), open_clips(config, run.data) as clips:
        batches = prefetch(read_jobs(jobs, clips))
        for _ in jobs():
            with distributed.together(ranks):
                job, batch = next(batches)
                inputs = build_inputs(learner.backbone, batch.prompts, batch.responses, ranks.device)
            rows, length = inputs["input_ids"].shape
            at_once = f"{when}, validation: with {rows} videos of {length} tokens at once"
            with memory_hint(config, at_once, len(job.groups)):
                scores, thresholds = split_thresholds(engine(inputs, with_thresholds=True))
            objective = compute_objective(scores, batch, job.plan, config.loss, thresholds)
            tally.add(scores, batch, objective)
            if collector:
                collector.add(batch, scores)
    with distributed.together(ranks):
        tally.check_finite(f"{when}, validation")
    engine.train()
    metrics = summarize("eval", distributed.sum_over_ranks(tally.sums, ranks), [job.plan], run.heads)
    return Validation(metrics, collector.gather(ranks) if collector else None)
