"""Plans a run: reads its data and checks all that can be wrong with it before the ranks start."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.heads import HEAD_GROUPS, HEADS
from safe_rlhf_video.models.backbones import check_sampling, load_reader
from safe_rlhf_video.models.record import TrainingFacts
from safe_rlhf_video.training import engine as engines
from safe_rlhf_video.training.config import LossConfig, TrainConfig
from safe_rlhf_video.training.data import TrainingData, load_data
from safe_rlhf_video.training.distributed import Ranks
from safe_rlhf_video.training.sizes import Sizes, measure_data
from safe_rlhf_video.training.unused import note_unused_fields

# With 36, models of the embedded backbone learn a point less than with 144 of the same comparisons; 64 are enough for
# one head on clips (docs/benchmarks.md).
FEW_STEPS = 50

_SCRIPT_OF_KIND = {"preference": "reward", "cost": "cost", "label": "moderation", "ordinal": "moderation"}


@dataclass(frozen=True)
class Run:
    """One training run, as one of its ranks sees it.

    Attributes:
        heads: names of the heads that it trains.
        sizes: token counts of the groups in `data`.
        total_steps: optimiser steps of the whole run.
        first_step: 0, or the step of the checkpoint that it goes on from.
        schedule_start: the step from which the learning rate rises and falls until the last one: 0, or where a
            finished run ended to which steps were added.
        notes: lines for the user, about fields of the configuration without effect, or too few steps.
    """

    config: TrainConfig
    heads: tuple[str, ...]
    data: TrainingData
    sizes: Sizes
    ranks: Ranks
    total_steps: int
    first_step: int = 0
    schedule_start: int = 0
    notes: Sequence[str] = ()

    @property
    def folder(self) -> Path:
        """Where it writes."""
        return Path(self.config.out)

    @property
    def steps_an_epoch(self) -> int:
        return math.ceil(len(self.data.train) / self.config.optimization.prompts_per_step)

    def is_save(self, done: int) -> bool:
        """Whether the run validates and saves after this step."""
        every = self.config.checkpoint.every_steps or self.steps_an_epoch
        return done % every == 0 or done == self.total_steps

    def is_row(self, done: int) -> bool:
        """Whether a row of metrics ends with this step.

        A save ends one too, so that a resumed run writes the rows that an uninterrupted one does.
        """
        return self.is_save(done) or done == 1 or done % self.config.tracking.log_every == 0

    def facts(self, step: int, metrics: Mapping[str, float]) -> TrainingFacts:
        """What a model folder of this step says of its training."""
        return TrainingFacts(
            step=step,
            data=self.data.fingerprint,
            metrics=metrics,
            seed=self.config.seed,
            calibration_fraction=self.config.data.calibration_fraction,
            leave_out_generators=tuple(sorted(self.config.data.leave_out_generators)),
            class_weights=self.data.class_weights,
            sign_labels=self.data.sign_labels,
        )

    def say(self, text: str) -> None:
        """Prints a line above the progress bar, on the first rank."""
        if self.ranks.is_first:
            tqdm.write(text)
            sys.stdout.flush()


def plan_run(config: TrainConfig, head: str, overrides: Collection[str] = ()) -> Run:
    """Reads the data of a run and checks its configuration; loads no weights and starts no process group.

    Args:
        head: what the script is named for: "reward", "cost" or "moderation".
        overrides: fields that the command line sets, as `loss.sign`.

    Raises:
        ConfigError, SampleError, VideoDecodeError: with one line that says what to do.
    """
    heads = choose_heads(config, head)
    _check_weights(config.loss, heads)
    notes = note_unused_fields(config, heads, overrides)
    data = load_data(config, heads)
    check_sampling(config.model.backbone, config.sampling)
    engines.build_deepspeed_config(config)
    sizes = measure_data(load_reader(config.model.backbone), data, config.sampling)
    # As the launcher tells them; the process group follows.
    ranks = Ranks(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")), torch.device("cpu"))
    notes = [*notes, *note_few_steps(config, len(data.train))]
    return Run(config, heads, data, sizes, ranks, count_steps(config, len(data.train)), notes=notes)


def choose_heads(config: TrainConfig, head: str) -> tuple[str, ...]:
    """The heads that a configuration names, groups written out; the script's own where it names none.

    Each head has one script: a cost scripts/train_cost.py, a reward or a sub-dimension scripts/train_reward.py, a label
    scripts/train_moderation.py. A script trains all heads that are named, if one of them is of its kind.

    Raises:
        ConfigError: none of them is; the message names a script that trains them.
    """
    asked = tuple(config.heads or (head,))
    heads = tuple(dict.fromkeys(name for one in asked for name in HEAD_GROUPS.get(one, (one,))))
    scripts = [_SCRIPT_OF_KIND[HEADS[name].kind] for name in heads]
    if head not in scripts:
        what = {"reward": "a reward or a sub-dimension", "cost": "a cost", "moderation": "harm labels"}[head]
        raise ConfigError(
            f"heads: {', '.join(asked)}: this script trains {what}, alone or with others; use scripts/train_"
            f"{scripts[0]}.py for these"
        )
    return heads


def _check_weights(loss: LossConfig, heads: Sequence[str]) -> None:
    """Raises a ConfigError where a head has no loss term."""
    for head in heads:
        names = {"preference": ("comparison",), "cost": ("comparison", "sign")}.get(HEADS[head].kind, ("harm",))
        if not any(getattr(loss, name) for name in names):
            weights = " and ".join(f"loss.{name}" for name in names)
            raise ConfigError(f"{weights}: 0, so the head {head} has nothing to learn; raise it, or leave the head out")


def note_few_steps(config: TrainConfig, num_prompts: int) -> list[str]:
    """Says that a run has few steps for its epochs, and how many prompts a step would make enough of them."""
    rates, total_steps = config.optimization, count_steps(config, num_prompts)
    if total_steps >= FEW_STEPS or rates.max_steps or rates.prompts_per_step == 1:
        return []
    fewer = max(1, num_prompts * rates.epochs // FEW_STEPS)
    more = rates.epochs * math.ceil(num_prompts / fewer)
    return [f"{total_steps} steps are few to learn in; with optimization.prompts_per_step {fewer} there are {more}"]


def count_steps(config: TrainConfig, num_groups: int) -> int:
    """Optimiser steps of the whole run."""
    total = config.optimization.epochs * math.ceil(num_groups / config.optimization.prompts_per_step)
    return min(total, config.optimization.max_steps) if config.optimization.max_steps else total
