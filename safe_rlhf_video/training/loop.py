"""Training, top to bottom: data, model, engine, steps, checkpoints."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor
from tqdm import tqdm

from safe_rlhf_video.data.batch import Batch
from safe_rlhf_video.data.preferences import PromptGroup
from safe_rlhf_video.errors import CheckpointError, ConfigError, DeviceMemoryError, SafeRLHFVideoError
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.heads import DIMENSION_OF_HEAD, HEAD_GROUPS, LABEL_HEADS
from safe_rlhf_video.models.backbones import Backbone, check_sampling, load_backbone, load_reader
from safe_rlhf_video.models.folder import load_weights, save_model
from safe_rlhf_video.models.inputs import build_inputs
from safe_rlhf_video.models.record import ModelRecord, TrainingFacts
from safe_rlhf_video.models.score_model import ScoreModel, split_thresholds
from safe_rlhf_video.training import distributed
from safe_rlhf_video.training import engine as engines
from safe_rlhf_video.training.config import TrainConfig
from safe_rlhf_video.training.data import TrainingData, load_data
from safe_rlhf_video.training.distributed import Ranks
from safe_rlhf_video.training.loader import Job, open_clips, prefetch, read_jobs, training_jobs, validation_jobs
from safe_rlhf_video.training.media import MediaCollector, ValidationMedia
from safe_rlhf_video.training.messages import describe, report_gradients, report_trainable, warn_if_stuck
from safe_rlhf_video.training.needs import Sizes, describe_needs, measure_groups
from safe_rlhf_video.training.objectives import DIVERGED, Tally, compute_objective, name_some, summarize
from safe_rlhf_video.training.plan import GroupSize, StepPlan
from safe_rlhf_video.training.state import (
    TrainerState,
    check_run_folder,
    checkpoint_folder,
    load_checkpoint,
    publish_model,
    resolved_config,
    save_checkpoint,
    with_validation,
    writing,
)
from safe_rlhf_video.training.tracking import Tracker


def train(config: TrainConfig, head: str) -> None:
    """Train a head, or with `config.heads` several on one adapter, or go on with the run in `config.out`.

    Args:
        head: what the script is named for: "reward", "cost" or "moderation".

    All that a user can get wrong is checked before the process group starts.

    Raises:
        ConfigError, SampleError, CheckpointError, VideoDecodeError, DeviceMemoryError: with one line that says what to
            do.
    """
    asked = tuple(config.heads or (head,))
    if not set(asked) & set((*HEAD_GROUPS, *LABEL_HEADS) if head == "moderation" else (head,)):
        other = next((name for name in ("reward", "cost") if name in asked), "moderation")
        raise ConfigError(
            f"heads: {', '.join(asked)} leaves out the {head} that this script trains; use scripts/train_{other}.py"
        )
    heads = tuple(dict.fromkeys(name for one in asked for name in HEAD_GROUPS.get(one, (one,))))
    data = load_data(config, heads)
    check_sampling(config.model.backbone, config.sampling)
    engines.build_deepspeed_config(config)
    reader = load_reader(config.model.backbone)
    sizes = Sizes(*(measure_groups(reader, groups, config.sampling) for groups in (data.train, data.validation)))
    total_steps = count_steps(config, len(data.train))
    if config.dry_run:
        if os.environ.get("RANK", "0") == "0":
            world_size = int(os.environ.get("WORLD_SIZE", "1"))
            print("\n".join(describe_needs(config, heads, reader, data, sizes, world_size)))
            print(f"{total_steps} steps; nothing was trained (dry_run)")
        return
    run = Path(config.out)
    resume_step = check_run_folder(run, config, heads, data.fingerprint)
    if resume_step >= total_steps:
        if os.environ.get("RANK", "0") == "0":
            with writing(run):
                publish_model(run, load_checkpoint(run, resume_step)[0].best_step)
            print(f"{run} is complete ({total_steps} steps); its model is in {run / 'model'}")
        return
    ranks = distributed.start()
    try:
        _train(config, heads, data, sizes, ranks, resume_step, total_steps)
    except DeviceMemoryError:
        raise  # other ranks had room, and are on their way into a collective: the launcher ends them
    except SafeRLHFVideoError:
        distributed.barrier()  # all ranks have it; none ends the run while the first one still closes its files
        raise
    distributed.stop()


def count_steps(config: TrainConfig, num_groups: int) -> int:
    """Optimiser steps of the whole run."""
    total = config.optimization.epochs * math.ceil(num_groups / config.optimization.prompts_per_step)
    return min(total, config.optimization.max_steps) if config.optimization.max_steps else total


def _train(
    config: TrainConfig,
    heads: tuple[str, ...],
    data: TrainingData,
    sizes: Sizes,
    ranks: Ranks,
    first_step: int,
    total_steps: int,
) -> None:
    run = Path(config.out)

    def say(text: str) -> None:
        if ranks.is_first:
            tqdm.write(text)  # to standard output, above the progress bar
            sys.stdout.flush()

    distributed.check_same(ranks, f"{data.fingerprint} from step {first_step}")
    state = TrainerState(step=first_step, data_fingerprint=data.fingerprint)
    weights: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    with distributed.together(ranks):
        with memory_hint(config, "loading the backbone"):
            backbone, model, record = build_model(config, heads, ranks.device)
        if first_step:
            state, moments = load_checkpoint(run, first_step)
            load_weights(model, record.heads_of_adapter, checkpoint_folder(run, first_step) / "model")
    with memory_hint(config, "dividing the model among ranks"):
        engine = engines.build_engine(model, config, ranks.device)
    if first_step:
        engines.restore_moments(engine, moments, first_step)
        moments = {}

    tracker = None
    with distributed.together(ranks), writing(run):
        if ranks.is_first:
            write_whole(run / "config.yaml", yaml.safe_dump(resolved_config(config, heads), sort_keys=False))
            if first_step:
                publish_model(run, state.best_step)
            about = {"data_fingerprint": data.fingerprint, "ranks": ranks.world_size, "device": ranks.device.type}
            tracker = Tracker(run, config.tracking, resolved_config(config, heads) | about, first_step, state.wandb_id)
            state = replace(state, wandb_id=tracker.wandb_id)
    for note in data.notes:
        say(f"data: {note}")
    what = "prompts" if config.optimization.batching == "grouped" else "comparisons, each by itself"
    say(f"training on {len(data.train)} {what}; choosing the checkpoint on {len(data.validation)} other prompts")
    report_trainable(model, say)
    for line in describe_needs(config, heads, backbone, data, sizes, ranks.world_size):
        say(line)
    beginning = f"going on at step {first_step} of" if first_step else "starting:"
    say(
        f"{beginning} {total_steps} steps on {ranks.world_size} process(es), ZeRO {config.engine.zero_stage}, "
        f"{ranks.device.type}"
    )

    collector = None
    if config.tracking.media and config.tracking.wandb != "disabled":
        collector = MediaCollector(data.validation, heads)
    peak_rates = {part: engines.peak_rate(part, config.optimization) for part in model.trained()}
    steps_an_epoch = math.ceil(len(data.train) / config.optimization.prompts_per_step)
    save_every = config.checkpoint.every_steps or steps_an_epoch
    log_totals: dict[str, float] = {}
    log_plans: list[StepPlan] = []
    recent_losses: dict[str, deque[float]] = {head: deque(maxlen=20) for head in heads if head in DIMENSION_OF_HEAD}
    started = time.monotonic()
    # A bar is for a terminal (None: only there); a log file gets a line a row instead.
    disable = None if ranks.is_first else True
    progress = tqdm(total=total_steps, initial=first_step, unit="step", desc="/".join(heads), disable=disable)
    with tracker or nullcontext(), open_clips(config, data) as clips:
        jobs = partial(training_jobs, config, data, sizes.train, ranks, first_step, total_steps)
        batches = prefetch(read_jobs(jobs, clips))
        for step in range(first_step, total_steps):
            factor = engines.learning_rate_factor(
                step, total_steps, config.optimization.warmup_fraction, config.optimization.final_fraction
            )
            engines.set_learning_rates(engine, config, factor)
            totals, plan, norms = take_step(config, engine, backbone, data.train, batches, step, ranks)
            for name, value in totals.items():
                log_totals[name] = log_totals.get(name, 0.0) + value
            log_plans.append(plan)
            warn_if_stuck(recent_losses, totals, plan, config.loss, say)
            if step == 0:
                report_gradients(norms, say)
            done = step + 1
            progress.update()
            is_save = done % save_every == 0 or done == total_steps
            # A save ends a row too, so that a resumed run writes the rows that an uninterrupted one does.
            if not (is_save or done == 1 or done % config.tracking.log_every == 0):
                continue
            metrics = summarize("train", log_totals, log_plans, heads)
            metrics |= {
                "train/epoch": done / steps_an_epoch,
                "train/videos_per_second": sum(plan.num_videos for plan in log_plans) / (time.monotonic() - started),
                "train/tokens_per_second": log_totals["tokens"] / (time.monotonic() - started),
                **{f"train/learning_rate/{part}": peak * factor for part, peak in peak_rates.items()},
                **{f"train/grad_norm/{part}": norm for part, norm in norms.items()},
            }
            log_totals, log_plans = {}, []
            progress.set_postfix(loss=f"{metrics['train/loss']:.3f}")
            if progress.disable:
                say(f"step {done}/{total_steps}: {describe(metrics, 'train/')}")
            eval_metrics: dict[str, float] = {}
            media: ValidationMedia | None = None
            if is_save:
                if data.validation:
                    eval_metrics, media = validate(
                        config, engine, backbone, data, sizes.validation, ranks, heads, f"step {done}", collector
                    )
                state = with_validation(replace(state, step=done), eval_metrics.get("eval/loss"))
                weights, moments = engines.gather_weights(engine), engines.gather_moments(engine)
                if eval_metrics:
                    best = " (best)" if state.best_step == done else ""
                    say(f"step {done}/{total_steps}, validation: {describe(eval_metrics, 'eval/')}{best}")
            with distributed.together(ranks), writing(run):
                if tracker:
                    tracker.log(done, metrics | eval_metrics, media)
                    if is_save:
                        facts = TrainingFacts(
                            step=done,
                            data=data.fingerprint,
                            metrics=eval_metrics,
                            seed=config.seed,
                            calibration_fraction=config.data.calibration_fraction,
                            leave_out_generators=tuple(sorted(config.data.leave_out_generators)),
                            class_weights=data.class_weights,
                        )
                        save_checkpoint(
                            run,
                            state,
                            moments,
                            partial(save_model, model, replace(record, training=facts), weights=weights),
                            config.checkpoint.keep_last,
                        )
                    if done == total_steps and config.tracking.media:
                        tracker.log_model(run / "model", {"step": state.best_step, "data": data.fingerprint})
            weights, moments = {}, {}  # those of a language model fill the host
            started = time.monotonic()
    progress.close()
    say(f"the model of step {state.best_step} is in {run / 'model'}")


def build_model(
    config: TrainConfig, heads: tuple[str, ...], device: torch.device
) -> tuple[Backbone, ScoreModel, ModelRecord]:
    """Backbone, model with fresh adapter and heads from `config.seed`, and what a model folder says of them."""
    backbone = load_backbone(config.model.backbone, device)
    torch.manual_seed(config.seed)
    adapter = "joint" if {"reward", "cost"} <= set(heads) else heads[0]
    adapter = "moderation" if adapter in LABEL_HEADS else adapter
    model = ScoreModel(
        backbone,
        {adapter: heads},
        config.model.lora,
        config.model.pooling,
        config.model.trained_parts,
        config.model.gradient_checkpointing,
    ).to(device)
    record = ModelRecord(
        backbone=config.model.backbone,
        backbone_fingerprint=backbone.fingerprint,
        sampling=config.sampling,
        lora=config.model.lora,
        heads_of_adapter={adapter: heads},
        pooling=config.model.pooling,
        trained_parts=tuple(config.model.trained_parts),
    )
    return backbone, model, record


def take_step(
    config: TrainConfig,
    engine: Any,
    backbone: Backbone,
    groups: Sequence[PromptGroup],
    batches: Iterator[tuple[Job, Batch]],
    step: int,
    ranks: Ranks,
) -> tuple[dict[str, float], StepPlan, dict[str, float]]:
    """All micro-batches of one update.

    Nothing is read back from the device between them, so that the host makes the next one ready meanwhile; all that can
    be wrong with the numbers is looked at before the weights change.

    Args:
        groups: all training prompts, to name those of a step.
        batches: this rank's micro-batches, this step's next.

    Returns:
        Sums over all ranks, the step's plan, and gradient norms.

    Raises:
        CheckpointError: a score, the loss or a gradient is not finite; the weights on disk are still good.
        DeviceMemoryError: a micro-batch does not fit the device.
    """
    engine.train()
    when = f"step {step + 1}"
    tally = Tally()
    is_last = False
    while not is_last:
        with distributed.together(ranks):  # a clip of one rank may be unreadable, or make too long an input
            job, batch = next(batches)
            with memory_hint(config, f"{when}: with the frames of {len(batch.responses)} videos", len(job.groups)):
                inputs = build_inputs(backbone, batch.prompts, batch.responses, ranks.device)
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
    squares = engines.squared_gradient_norms(engine, ranks)
    squares_by_name = {f"norm/{part}": square for part, square in squares.items()}
    totals = distributed.sum_over_ranks(tally.sums | squares_by_name, ranks)
    norms = {part: math.sqrt(totals.pop(f"norm/{part}")) for part in squares}
    if not all(map(math.isfinite, norms.values())):
        # The norms are those of the whole step: it is all its prompts that are to be looked at.
        prompts = name_some([groups[i].prompt_id for i in job.plan.groups])
        raise CheckpointError(f"{when}: the gradient is not finite for the prompts {prompts}{DIVERGED}")
    with memory_hint(config, f"{when}: in the optimiser's step", len(job.groups)):  # the first one makes Adam's moments
        engine.step()
    return totals, job.plan, norms


@contextmanager
def memory_hint(config: TrainConfig, when: str, num_prompts: int = 0) -> Iterator[None]:
    """Say what to do where a device's memory does not suffice.

    Args:
        when: begins the message: the step, and what is done there.
        num_prompts: of the micro-batch; 0 before there is one.

    Raises:
        DeviceMemoryError: in the place of torch's own error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        advice = {
            "a lower optimization.micro_batch_tokens": num_prompts > 1,
            "model.gradient_checkpointing true": num_prompts > 0 and not config.model.gradient_checkpointing,
            "on several devices a higher engine.zero_stage": num_prompts > 0 and config.engine.zero_stage < 3,
            "a lower sampling.max_pixels": num_prompts > 0,
            "a smaller model.backbone": num_prompts == 0,  # every process first has all of it on its device
            "less in model.trained_parts": num_prompts == 0 and bool(config.model.trained_parts),
        }
        wanted = " or ".join(name for name, helps in advice.items() if helps)
        raise DeviceMemoryError(f"{when} the device is out of memory; try {wanted}") from error


def validate(
    config: TrainConfig,
    engine: Any,
    backbone: Backbone,
    data: TrainingData,
    sizes: Sequence[GroupSize],
    ranks: Ranks,
    heads: tuple[str, ...],
    when: str,
    collector: MediaCollector | None = None,
) -> tuple[dict[str, float], ValidationMedia | None]:
    """Loss and accuracy on the validation prompts, over all ranks; and on the first, what `collector` takes there.

    Raises:
        CheckpointError: a score or the loss is not finite; begins with `when`.
    """
    engine.eval()
    tally = Tally()
    with torch.no_grad(), open_clips(config, data) as clips:
        batches = prefetch(read_jobs(partial(validation_jobs, config, data, sizes, ranks), clips))
        for _ in validation_jobs(config, data, sizes, ranks):
            with distributed.together(ranks):
                job, batch = next(batches)
                inputs = build_inputs(backbone, batch.prompts, batch.responses, ranks.device)
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
    metrics = summarize("eval", distributed.sum_over_ranks(tally.sums, ranks), [job.plan], heads)
    return metrics, collector.gather(ranks) if collector else None
