"""Training, top to bottom: data, model, engine, steps, checkpoints."""

from __future__ import annotations

import hashlib
import math
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor
from tqdm import tqdm

from safe_rlhf_video.data.batch import Batch, collate
from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.data.preferences import PromptGroup, build_groups, keep_useful, split_by_prompt
from safe_rlhf_video.errors import CheckpointError, ConfigError, SafeRLHFVideoError, SampleError, VideoDecodeError
from safe_rlhf_video.heads import DIMENSION_OF_HEAD
from safe_rlhf_video.models.backbones import Backbone, load_backbone, load_size_multiple
from safe_rlhf_video.models.checkpoint import ModelRecord, load_weights, save_model
from safe_rlhf_video.models.inputs import build_inputs
from safe_rlhf_video.models.score_model import ScoreModel
from safe_rlhf_video.training import distributed
from safe_rlhf_video.training import engine as engines
from safe_rlhf_video.training.config import OPERATIONAL_FIELDS, TrainConfig
from safe_rlhf_video.training.distributed import Ranks
from safe_rlhf_video.training.objectives import compute_loss, summarize
from safe_rlhf_video.training.plan import StepPlan, divide, plan_epoch, plan_step
from safe_rlhf_video.training.state import (
    TrainerState,
    checkpoint_folder,
    find_checkpoints,
    flatten,
    load_checkpoint,
    publish_model,
    save_checkpoint,
    with_validation,
    write_whole,
    writing,
)
from safe_rlhf_video.training.tracking import Tracker
from safe_rlhf_video.video.pool import DecodePool

LN_2 = math.log(2.0)


@dataclass(frozen=True)
class TrainingData:
    """Prompt groups to train on and to choose the checkpoint by, and what was left out on the way."""

    train: list[PromptGroup]
    validation: list[PromptGroup]
    dataset: PairDataset
    fingerprint: str
    notes: list[str]


def train(config: TrainConfig, heads: Sequence[str]) -> None:
    """Train heads on one adapter, or go on with the run in `config.out`.

    All that a user can get wrong is checked before the process group starts.

    Raises:
        ConfigError, SampleError, CheckpointError, VideoDecodeError: with one line that says what to do.
    """
    heads = tuple(heads)
    data = load_data(config, heads)
    multiple = load_size_multiple(config.model.backbone)
    if config.sampling.size_multiple != multiple:
        raise ConfigError(
            f"sampling.size_multiple: the backbone {config.model.backbone.path} takes frames in multiples of "
            f"{multiple} pixels, got {config.sampling.size_multiple}; set it to {multiple}"
        )
    engines.build_deepspeed_config(config)
    run = Path(config.out)
    resume_step = check_run_folder(run, config, heads, data.fingerprint)
    total_steps = count_steps(config, len(data.train))
    if resume_step >= total_steps:
        if os.environ.get("RANK", "0") == "0":
            with writing(run):
                publish_model(run, load_checkpoint(run, resume_step)[0].best_step)
            print(f"{run} is complete ({total_steps} steps); its model is in {run / 'model'}")
        return
    ranks = distributed.start()
    try:
        _train(config, heads, data, ranks, resume_step, total_steps)
    except SafeRLHFVideoError:
        distributed.barrier()  # all ranks have it; none ends the run while the first one still closes its files
        raise
    distributed.stop()


def load_data(config: TrainConfig, heads: Sequence[str]) -> TrainingData:
    """Read the records, keep what the heads can learn from, split off the validation prompts.

    Raises:
        SampleError: a wrong record, or no label for one of the heads.
        VideoDecodeError: clips are missing; whether the others can be read turns out when it is their turn.
    """
    dataset = PairDataset.load(config.data.path, config.data.config_filename, config.data.video_dir)
    if not len(dataset):
        raise SampleError(f"{config.data.path}: holds no comparison; there is nothing to train on")
    groups, unused = build_groups(dataset)
    dimensions = [DIMENSION_OF_HEAD[head] for head in heads]
    for head, dimension in zip(heads, dimensions, strict=True):
        if not any(group.num_comparisons(dimension) for group in groups):
            raise SampleError(
                f"{config.data.path}: none of its {len(dataset)} comparisons has a {dimension} label, so there is "
                f"nothing to train a {head} model on"
            )
    useful = keep_useful(groups, dimensions, signs="cost" in heads and config.loss.sign > 0)
    notes = [f"{dataset.num_pairs} comparisons of {dataset.num_videos} videos for {len(groups)} prompts"]
    for name in dimensions:
        if missing_labels := unused.get(f"missing/{name}"):
            notes.append(f"{missing_labels} comparisons have no {name} label and are not used")
    if unused.get("contradictory is_safe"):
        notes.append(f"{unused['contradictory is_safe']} videos have contradictory is_safe labels, taken as unknown")
    if dropped := len(groups) - len(useful):
        notes.append(f"{dropped} prompts have no label for this model and are not used")
    files = [dataset.video_file(video) for group in useful for video in group.videos]
    if missing := [file for file in files if not file.is_file()]:
        raise VideoDecodeError(
            f"{missing[0]}: no such file, {len(missing)} of {len(files)} clips are missing; put them there or set "
            "data.video_dir to the folder with <prompt_id>/<video_id>.mp4"
        )
    validation: list[PromptGroup] = []
    if config.data.validation_fraction:
        useful, validation = split_by_prompt(useful, config.data.validation_fraction, config.seed)
        for dimension in dimensions:
            if not all(any(group.num_comparisons(dimension) for group in side) for side in (useful, validation)):
                raise SampleError(
                    f"{config.data.path}: too few {dimension} labels to validate on other prompts than those trained "
                    "on; add data or set data.validation_fraction to 0"
                )
    digest = hashlib.sha256()
    for group in (*useful, *validation):
        digest.update(repr((group.prompt_id, group.prompt_text, [video.video_id for video in group.videos])).encode())
        for rows in (*group.comparisons.values(), group.safety_sign):
            digest.update(rows.tobytes())
    return TrainingData(useful, validation, dataset, digest.hexdigest()[:32], notes)


def check_run_folder(run: Path, config: TrainConfig, heads: Sequence[str], data_fingerprint: str) -> int:
    """Whether the run folder is new or can be gone on with.

    Returns:
        The step of the last complete checkpoint, 0 for a new run.

    Raises:
        CheckpointError: the folder holds a run of another configuration or data; the difference is shown.
    """
    with writing(run):
        run.mkdir(parents=True, exist_ok=True)
    steps = find_checkpoints(run)
    if not steps:
        return 0
    try:
        saved = flatten(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{run / 'config.yaml'}: cannot be read ({error}); give a new folder as out") from error
    mine = flatten(resolved_config(config, heads))
    changed = [
        f"{name}: {saved.get(name)!r} -> {mine.get(name)!r}"
        for name in sorted({*saved, *mine})
        if saved.get(name) != mine.get(name) and name not in OPERATIONAL_FIELDS
    ]
    if changed:
        raise CheckpointError(
            f"{run} holds a run with another configuration ({'; '.join(changed)}); go on with the old one, or give a "
            "new folder as out"
        )
    state, _ = load_checkpoint(run, steps[-1])
    if state.data_fingerprint != data_fingerprint:
        raise CheckpointError(
            f"{run} holds a run on other data than {config.data.path} is now; give a new folder as out"
        )
    return steps[-1]


def resolved_config(config: TrainConfig, heads: Sequence[str]) -> dict[str, Any]:
    """The configuration as plain values, as it is written to <run>/config.yaml."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value

    return plain({"heads": list(heads), **asdict(config)})


def count_steps(config: TrainConfig, num_groups: int) -> int:
    """Optimiser steps of the whole run."""
    total = config.optimization.epochs * math.ceil(num_groups / config.optimization.prompts_per_step)
    return min(total, config.optimization.max_steps) if config.optimization.max_steps else total


def _train(
    config: TrainConfig, heads: tuple[str, ...], data: TrainingData, ranks: Ranks, first_step: int, total_steps: int
) -> None:
    run = Path(config.out)

    def say(text: str) -> None:
        if ranks.is_first:
            tqdm.write(text)  # to standard output, above the progress bar
            sys.stdout.flush()

    state = TrainerState(step=first_step, data_fingerprint=data.fingerprint)
    moments: dict[str, Tensor] = {}
    with distributed.together(ranks):
        backbone, model, record = build_model(config, heads, ranks.device)
        if first_step:
            state, moments = load_checkpoint(run, first_step)
            load_weights(model, record.heads_of_adapter, checkpoint_folder(run, first_step) / "model")
    engine = engines.build_engine(model, config)
    if first_step:
        engines.restore_moments(engine, moments, first_step)

    tracker = None
    with distributed.together(ranks), writing(run):
        if ranks.is_first:
            write_whole(run / "config.yaml", yaml.safe_dump(resolved_config(config, heads), sort_keys=False))
            if first_step:
                publish_model(run, state.best_step)
            tracker = Tracker(run, config.tracking, resolved_config(config, heads), first_step, state.wandb_id)
            state = replace(state, wandb_id=tracker.wandb_id)
    for note in data.notes:
        say(f"data: {note}")
    say(f"training on {len(data.train)} prompts, choosing the checkpoint on {len(data.validation)} others")
    report_trainable(model, say)
    beginning = f"going on at step {first_step} of" if first_step else "starting:"
    say(
        f"{beginning} {total_steps} steps on {ranks.world_size} process(es), ZeRO {config.engine.zero_stage}, "
        f"{ranks.device.type}"
    )

    steps_an_epoch = math.ceil(len(data.train) / config.optimization.prompts_per_step)
    save_every = config.checkpoint.every_steps or steps_an_epoch
    log_totals: dict[str, float] = {}
    log_plans: list[StepPlan] = []
    recent_losses: dict[str, deque[float]] = {head: deque(maxlen=20) for head in heads}
    started = time.monotonic()
    # A bar is for a terminal (None: only there); a log file gets a line a row instead.
    disable = None if ranks.is_first else True
    progress = tqdm(total=total_steps, initial=first_step, unit="step", desc="/".join(heads), disable=disable)
    decode_pool = DecodePool(config.sampling, config.data.workers, config.data.timeout_s)
    with tracker or nullcontext(), decode_pool as pool:
        batches = prefetch(read_batches(config, data, ranks, pool, first_step, total_steps))
        for step in range(first_step, total_steps):
            factor = engines.learning_rate_factor(
                step, total_steps, config.optimization.warmup_fraction, config.optimization.final_fraction
            )
            engines.set_learning_rates(engine, config, factor)
            totals, plan, norms = take_step(config, engine, backbone, batches, step, ranks)
            for name, value in totals.items():
                log_totals[name] = log_totals.get(name, 0.0) + value
            log_plans.append(plan)
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
                "train/learning_rate": config.optimization.learning_rate * factor,
                "train/epoch": done / steps_an_epoch,
                "train/videos_per_second": sum(plan.num_videos for plan in log_plans) / (time.monotonic() - started),
                **{f"train/grad_norm/{group}": norm for group, norm in norms.items()},
            }
            warn_if_stuck(recent_losses, log_totals, log_plans, config.loss.comparison, say)
            log_totals, log_plans = {}, []
            progress.set_postfix(loss=f"{metrics['train/loss']:.3f}")
            if progress.disable:
                say(f"step {done}/{total_steps}: {describe(metrics, 'train/')}")
            eval_metrics: dict[str, float] = {}
            if is_save:
                if data.validation:
                    eval_metrics = validate(config, engine, backbone, data, ranks, heads)
                state = with_validation(replace(state, step=done), eval_metrics.get("eval/loss"))
                moments = engines.gather_moments(engine)
                if eval_metrics:
                    best = " (best)" if state.best_step == done else ""
                    say(f"step {done}/{total_steps}, validation: {describe(eval_metrics, 'eval/')}{best}")
            with distributed.together(ranks), writing(run):
                if tracker:
                    tracker.log(done, metrics | eval_metrics)
                    if is_save:
                        facts = replace(record, training={"step": done, "metrics": eval_metrics, "seed": config.seed})
                        save_checkpoint(
                            run, state, moments, partial(save_model, model, facts), config.checkpoint.keep_last
                        )
            started = time.monotonic()
    progress.close()
    say(f"the model of step {state.best_step} is in {run / 'model'}")


def build_model(
    config: TrainConfig, heads: tuple[str, ...], device: torch.device
) -> tuple[Backbone, ScoreModel, ModelRecord]:
    """Backbone, model with fresh adapter and heads from `config.seed`, and what a model folder says of them."""
    backbone = load_backbone(config.model.backbone, device)
    torch.manual_seed(config.seed)
    adapter = heads[0] if len(heads) == 1 else "joint"
    model = ScoreModel(backbone, {adapter: heads}, config.model.lora).to(device)
    record = ModelRecord(
        backbone=config.model.backbone,
        backbone_fingerprint=backbone.fingerprint,
        sampling=config.sampling,
        lora=config.model.lora,
        heads_of_adapter={adapter: heads},
        training={},
    )
    return backbone, model, record


def take_step(
    config: TrainConfig,
    engine: Any,
    backbone: Backbone,
    batches: Iterator[tuple[StepPlan, Batch]],
    step: int,
    ranks: Ranks,
) -> tuple[dict[str, float], StepPlan, dict[str, float]]:
    """All micro-batches of one update.

    Returns:
        Sums over all ranks, the step's plan, and gradient norms.

    Raises:
        CheckpointError: a score, the loss or a gradient is not finite; the weights on disk are still good.
    """
    accumulation = config.optimization.accumulation
    engine.train()
    totals: dict[str, float] = {}
    norms: dict[str, float] = {}
    for micro in range(accumulation):
        with distributed.together(ranks):  # a clip of one rank may be unreadable, or make too long an input
            plan, batch = next(batches)
            inputs = build_inputs(backbone, batch.prompts, batch.videos, ranks.device)
        # Dropout must not depend on what ran before, or a resumed run would differ.
        torch.manual_seed(int(np.random.SeedSequence([config.seed, step, micro, ranks.rank]).generate_state(1)[0]))
        scores = engine(inputs)
        loss, sums = compute_loss(scores, batch, plan, config.loss)
        sums["not_finite"] = float(name_not_finite(scores, loss, batch, step))
        sums = distributed.sum_over_ranks(sums, ranks)
        if sums.pop("not_finite"):
            raise CheckpointError(
                f"step {step + 1}: scores or loss are not finite, training stopped; the last checkpoint is good: lower "
                "optimization.learning_rate or look at the videos named above"
            )
        # DeepSpeed averages over ranks and micro-batches; the parts of a planned loss must add up instead.
        engine.backward(loss * (ranks.world_size * accumulation))
        if micro == accumulation - 1:
            norms = engines.gradient_norms(engine.module)
            if not all(map(math.isfinite, norms.values())):
                raise CheckpointError(
                    f"step {step + 1}: the gradient is not finite for a batch with {batch.names[0]} and "
                    f"{len(batch.names) - 1} more, training stopped; the last checkpoint is good: lower "
                    "optimization.learning_rate"
                )
        engine.step()
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals, plan, norms


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


def validate(
    config: TrainConfig, engine: Any, backbone: Backbone, data: TrainingData, ranks: Ranks, heads: tuple[str, ...]
) -> dict[str, float]:
    """Loss and accuracy on the validation prompts, over all ranks."""
    everything = plan_step(range(len(data.validation)), data.validation)
    mine = divide(everything, data.validation, ranks.world_size)[ranks.rank]
    # No more clips at once than a micro-batch has.
    size = math.ceil(config.optimization.prompts_per_step / (ranks.world_size * config.optimization.accumulation))

    def jobs() -> Iterator[tuple[StepPlan, list[PromptGroup], bool]]:
        for start in range(0, len(mine), size):
            yield everything, [data.validation[i] for i in mine[start : start + size]], True

    engine.eval()
    totals: dict[str, float] = {}
    decode_pool = DecodePool(config.sampling, config.data.workers, config.data.timeout_s)
    with distributed.together(ranks), torch.no_grad(), decode_pool as pool:
        for plan, batch in decode_jobs(jobs, data.dataset, pool):
            scores = engine(build_inputs(backbone, batch.prompts, batch.videos, ranks.device))
            _, sums = compute_loss(scores, batch, plan, config.loss)
            for name, value in sums.items():
                totals[name] = totals.get(name, 0.0) + value
    # A rank without a prompt has no sums, but must bring the same names.
    names = [f"{term}/{head}" for head in heads for term in ("comparison", "regularization", "credit", "margin")]
    names += ["sign/cost", "sign_credit"] if "cost" in heads else []
    totals = distributed.sum_over_ranks({name: totals.get(name, 0.0) for name in names}, ranks)
    return summarize("eval", totals, [everything], heads)


def report_trainable(model: ScoreModel, say: Callable[[str], None]) -> None:
    """How many parameters are trained, in which part."""
    total = sum(parameter.numel() for parameter in model.parameters())
    parts: dict[str, int] = {}
    for name, parameter in engines.trainable(model).items():
        part = f"head {name.split('.')[1]}" if name.startswith("score_heads.") else "adapter"
        parts[part] = parts.get(part, 0) + parameter.numel()
    listed = ", ".join(f"{part} {count:,}" for part, count in parts.items())
    say(f"trainable: {sum(parts.values()):,} of {total:,} parameters ({listed})")


def report_gradients(norms: dict[str, float], say: Callable[[str], None]) -> None:
    """Gradient norms of the first step: a part without a gradient does not learn."""
    say("gradient norm at step 1: " + ", ".join(f"{group} {norm:.3g}" for group, norm in norms.items()))
    for group, norm in norms.items():
        # A fresh LoRA adapter has a gradient in its B matrices from the first step on.
        if norm == 0.0:
            say(f"warning: {group} gets no gradient and will not learn")


def warn_if_stuck(
    recent_losses: Mapping[str, deque[float]],
    totals: Mapping[str, float],
    plans: Sequence[StepPlan],
    weight: float,
    say: Callable[[str], None],
) -> None:
    """ln 2 is the loss of a model that cannot tell any pair apart; every row near it is no accident.

    A mean over rows would not do: that of a run which learns passes ln 2 on its way down.
    """
    for head, losses in recent_losses.items():
        compared = sum(plan.num_comparisons[DIMENSION_OF_HEAD[head]] > 0 for plan in plans)
        if not compared or not weight:
            continue
        losses.append(totals[f"comparison/{head}"] / compared / weight)
        if len(losses) == losses.maxlen and all(abs(loss - LN_2) < 1e-3 for loss in losses):
            say(
                f"warning: the {head}'s comparison loss has stayed within 0.001 of ln 2, as if no pair could be told "
                "apart; are the rates too small, or chosen and rejected the same?"
            )
            losses.clear()


def describe(metrics: Mapping[str, float], prefix: str) -> str:
    """The figures that a reader of the log wants, in one line."""
    wanted = ("loss", "accuracy", "margin", "sign_accuracy")
    short = {name.removeprefix(prefix): value for name, value in metrics.items()}
    return ", ".join(f"{name} {value:.4f}" for name, value in short.items() if name.split("/")[0] in wanted)


def name_not_finite(scores: dict[str, Tensor], loss: Tensor, batch: Batch, step: int) -> bool:
    """Whether scores or loss are not finite; names the videos to standard error."""
    bad = torch.zeros(len(batch.names), dtype=torch.bool)
    for values in scores.values():
        bad |= ~torch.isfinite(values.detach()).cpu()
    if bad.any():
        names = [name for name, is_bad in zip(batch.names, bad.tolist(), strict=True) if is_bad]
        print(f"warning: step {step + 1}: scores are not finite for {', '.join(names[:8])}"
              f"{f' and {len(names) - 8} more' if len(names) > 8 else ''}", file=sys.stderr)  # fmt: skip
    return bool(bad.any()) or not bool(torch.isfinite(loss))
