"""Trains, top to bottom: data, model, steps, metrics, checkpoints."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import yaml
from torch import Tensor
from tqdm import tqdm

from safe_rlhf_video.data.prompt_hashes import write_trained_prompts
from safe_rlhf_video.errors import DeviceMemoryError, SafeRLHFVideoError
from safe_rlhf_video.files import lock_folder, write_whole
from safe_rlhf_video.heads import HEADS
from safe_rlhf_video.models.backbones import load_reader
from safe_rlhf_video.models.folder import save_model
from safe_rlhf_video.models.record import ModelRecord
from safe_rlhf_video.models.score_model import ScoreModel
from safe_rlhf_video.training import distributed
from safe_rlhf_video.training import engine as engines
from safe_rlhf_video.training.config import TrainConfig
from safe_rlhf_video.training.learner import Learner, start_learner
from safe_rlhf_video.training.loader import open_clips, prefetch, read_jobs, training_jobs
from safe_rlhf_video.training.media import MediaCollector
from safe_rlhf_video.training.messages import describe, report_gradients, report_trainable, warn_if_stuck
from safe_rlhf_video.training.needs import describe_needs
from safe_rlhf_video.training.objectives import summarize
from safe_rlhf_video.training.plan import StepPlan
from safe_rlhf_video.training.run import Run, plan_run
from safe_rlhf_video.training.run_folder import check_config, find_start, resolved_config
from safe_rlhf_video.training.state import (
    TrainerState,
    find_checkpoints,
    publish_model,
    save_checkpoint,
    with_validation,
    writing,
)
from safe_rlhf_video.training.steps import StepResult, Validation, take_step, validate
from safe_rlhf_video.training.stopping import EXIT_CODE, StopSignal
from safe_rlhf_video.training.tracking import Tracker


def train(config: TrainConfig, head: str, overrides: Collection[str] = ()) -> None:
    """Trains a head, or with `config.heads` several on one adapter, or goes on with the run in `config.out`.

    Args:
        head: what the script is named for: "reward", "cost" or "moderation".
        overrides: fields that the command line sets, as `loss.sign`; without effect, they are an error.

    All that a user can get wrong is checked before the process group starts.

    Raises:
        ConfigError, SampleError, CheckpointError, VideoDecodeError, DeviceMemoryError: with one line that says what to
            do.
        SystemExit: SIGTERM came, and the step was saved.
    """
    run = plan_run(config, head, overrides)
    for note in run.notes:
        run.say(f"config: {note}")
    if config.dry_run:
        for line in describe_needs(run, load_reader(config.model.backbone)):
            run.say(line)
        run.say(f"{run.total_steps} steps; nothing was trained (dry_run)")
        return
    with ExitStack() as held:
        if run.ranks.is_first:
            with writing(run.folder):
                held.enter_context(lock_folder(run.folder))
        _start_or_go_on(run)


def _start_or_go_on(run: Run) -> None:
    check_config(run.folder, run.config, run.heads)
    run = replace(run, ranks=distributed.start())
    try:
        is_complete = _train(run)
    except DeviceMemoryError:
        raise  # other ranks had room, and are on their way into a collective: the launcher ends them
    except SafeRLHFVideoError:
        distributed.barrier()  # all ranks have it; none ends the run while the first one still closes its files
        raise
    distributed.stop()
    if not is_complete:
        raise SystemExit(EXIT_CODE)


def _train(run: Run) -> bool:
    """Returns whether the run is complete: SIGTERM may have ended it."""
    run, state = _find_start(run)
    if run.first_step >= run.total_steps:
        _publish_again(run, state)
        return True
    config, ranks = run.config, run.ranks
    learner = start_learner(run)
    tracker, state = _open_tracker(run, state)
    _report_start(run, learner)

    collector = None
    if config.tracking.media and config.tracking.wandb != "disabled":
        collector = MediaCollector(run.data.validation, run.heads)
    recent_losses: dict[str, deque[float]] = {head: deque(maxlen=20) for head in run.heads if HEADS[head].is_compared}
    interval = Interval()
    with (
        tracker or nullcontext(),
        open_clips(config, run.data) as clips,
        _progress_bar(run) as progress,
        StopSignal() as stop,
    ):
        batches = prefetch(read_jobs(partial(training_jobs, run), clips))
        for step in range(run.first_step, run.total_steps):
            factor = _rate_factor(run, step)
            engines.set_learning_rates(learner.engine, config, factor)
            result = take_step(run, learner, batches, step)
            interval.add(result)
            warn_if_stuck(recent_losses, result.totals, result.plan, config.loss, run.say)
            if step == 0:
                report_gradients(result.norms, run.say)
            progress.update()

            done = step + 1
            must_stop = distributed.any_of(ranks, stop.is_there)
            if not run.is_row(done) and not must_stop:
                continue
            rates = {part: engines.peak_rate(part, config.optimization) * factor for part in learner.parts}
            metrics = interval.summarize(run.heads) | {
                "train/epoch": done / run.steps_an_epoch,
                **{f"train/learning_rate/{part}": rate for part, rate in rates.items()},
                **{f"train/grad_norm/{part}": norm for part, norm in result.norms.items()},
            }
            progress.set_postfix(loss=f"{metrics['train/loss']:.3f}")
            if progress.disable:
                run.say(f"step {done}/{run.total_steps}: {describe(metrics, 'train/')}")

            validation, checkpoint = Validation(), None
            if run.is_save(done):
                validation = validate(run, learner, f"step {done}", collector)
                state = with_validation(replace(state, step=done), validation.metrics.get("eval/loss"))
                checkpoint = _gather_checkpoint(run, learner, state, validation)
                if validation.metrics:
                    best = " (best)" if state.best_step == done else ""
                    figures = describe(validation.metrics, "eval/")
                    run.say(f"step {done}/{run.total_steps}, validation: {figures}{best}")
            elif must_stop:  # there may be no time to validate
                state = replace(state, step=done, best_step=state.best_step or done)
                checkpoint = _gather_checkpoint(run, learner, state, validation)
            with distributed.together(ranks), writing(run.folder):
                if tracker:
                    tracker.log(done, {**metrics, **validation.metrics}, validation.media)
                    if checkpoint:
                        tracker.flush()
                        checkpoint()
                    if done == run.total_steps and config.tracking.media:
                        facts = {"step": state.best_step, "data": run.data.fingerprint}
                        tracker.log_model(run.folder / "model", facts)
            checkpoint = None
            interval = Interval()
            if must_stop and done < run.total_steps:
                break
    if state.step < run.total_steps:
        run.say(f"stopped by SIGTERM; step {state.step} is saved, run the same command again to go on")
        return False
    run.say(f"the model of step {state.best_step} is in {run.folder / 'model'}")
    return True


def _rate_factor(run: Run, step: int) -> float:
    """The share of the peak learning rate at a step; steps that were added have a schedule of their own."""
    rates, start = run.config.optimization, run.schedule_start
    return engines.learning_rate_factor(
        step - start, run.total_steps - start, rates.warmup_fraction, rates.final_fraction
    )


def _find_start(run: Run) -> tuple[Run, TrainerState]:
    """Finds the state to go on from, the same on all ranks, and gives the run its first step."""
    last_found = max(find_checkpoints(run.folder), default=0)
    distributed.check_same(run.ranks, f"{run.data.fingerprint} from step {last_found}")
    state = None
    with distributed.together(run.ranks):
        if run.ranks.is_first:  # it may rename checkpoints
            state = find_start(run.folder, run.config, run.data.fingerprint, run.total_steps, run.say)
    state = distributed.of_first(run.ranks, state)
    return replace(run, first_step=state.step, schedule_start=state.schedule_start), state


def _publish_again(run: Run, state: TrainerState) -> None:
    """Publishes the model of a run that is complete: it may have been killed before."""
    with distributed.together(run.ranks), writing(run.folder):
        if run.ranks.is_first:
            publish_model(run.folder, state.best_step)
    limits = "epochs and optimization.max_steps" if run.config.optimization.max_steps else "epochs"
    run.say(
        f"{run.folder} is complete ({run.total_steps} steps); its model is in {run.folder / 'model'}. To train on, "
        f"raise optimization.{limits}"
    )


def _gather_checkpoint(run: Run, learner: Learner, state: TrainerState, validation: Validation) -> Callable[[], None]:
    """Gathers what is trained from all ranks; calling the result on the first one saves it.

    Nothing else may keep the tensors once they are saved: those of a language model fill the host.
    """
    weights, moments = engines.split_averages(
        engines.gather_weights(learner.engine), engines.gather_moments(learner.engine)
    )
    record = replace(learner.record, training=run.facts(state.step, validation.metrics))
    save = partial(_save_folder, run, learner.model, record, weights)
    return partial(save_checkpoint, run.folder, state, moments, save, run.config.checkpoint.keep_last)


def _save_folder(run: Run, model: ScoreModel, record: ModelRecord, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Writes a model folder, with the hashes of the prompts that it was trained on."""
    write_trained_prompts(folder, run.data.prompts)
    save_model(model, record, folder, weights)


class Interval:
    """Adds up the steps since the last row of metrics."""

    def __init__(self) -> None:
        self._totals: dict[str, float] = {}
        self._plans: list[StepPlan] = []
        self._started = time.monotonic()

    def add(self, result: StepResult) -> None:
        """Counts one step."""
        for name, value in result.totals.items():
            self._totals[name] = self._totals.get(name, 0.0) + value
        self._plans.append(result.plan)

    def summarize(self, heads: tuple[str, ...]) -> dict[str, float]:
        """Computes the row's metrics: losses, accuracies and rates per second."""
        seconds = time.monotonic() - self._started
        return summarize("train", self._totals, self._plans, heads) | {
            "train/videos_per_second": sum(plan.num_videos for plan in self._plans) / seconds,
            "train/tokens_per_second": self._totals["tokens"] / seconds,
        }


def _open_tracker(run: Run, state: TrainerState) -> tuple[Tracker | None, TrainerState]:
    """Writes the run's configuration and opens its metrics, on the first rank; others get None."""
    tracker = None
    with distributed.together(run.ranks), writing(run.folder):
        if run.ranks.is_first:
            settings = resolved_config(run.config, run.heads)
            write_whole(run.folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
            if run.first_step:
                publish_model(run.folder, state.best_step)
            device = run.ranks.device.type
            about = {"data_fingerprint": run.data.fingerprint, "ranks": run.ranks.world_size, "device": device}
            tracker = Tracker(run.folder, run.config.tracking, settings | about, run.first_step, state.wandb_id)
            state = replace(state, wandb_id=tracker.wandb_id)
    return tracker, state


def _report_start(run: Run, learner: Learner) -> None:
    config, data = run.config, run.data
    for note in data.notes:
        run.say(f"data: {note}")
    what = "prompts" if config.optimization.batching == "grouped" else "comparisons, each by itself"
    run.say(f"training on {len(data.train)} {what}; choosing the checkpoint on {len(data.validation)} other prompts")
    report_trainable(learner.model, run.say)
    for line in describe_needs(run, learner.backbone):
        run.say(line)
    beginning = f"going on at step {run.first_step} of" if run.first_step else "starting:"
    run.say(
        f"{beginning} {run.total_steps} steps on {run.ranks.world_size} process(es), ZeRO {config.engine.zero_stage}, "
        f"{run.ranks.device.type}"
    )


def _progress_bar(run: Run) -> tqdm:
    # A bar is for a terminal (None: only there); a log file gets a line a row instead.
    disable = None if run.ranks.is_first else True
    name = "/".join(run.heads)
    return tqdm(total=run.total_steps, initial=run.first_step, unit="step", desc=name, disable=disable)
