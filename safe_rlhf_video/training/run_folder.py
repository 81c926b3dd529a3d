"""Decides whether a run folder can be gone on with, and from which checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from safe_rlhf_video.errors import CheckpointError
from safe_rlhf_video.files import flush, remove
from safe_rlhf_video.training.config import OPERATIONAL_FIELDS, TrainConfig
from safe_rlhf_video.training.state import (
    TrainerState,
    checkpoint_folder,
    find_checkpoints,
    find_damage,
    read_state,
    writing,
)

# They change the number of steps alone, which `_plan_schedule` checks.
_LENGTH_FIELDS = ("optimization.epochs", "optimization.max_steps")


def check_config(run: Path, config: TrainConfig, heads: Sequence[str]) -> None:
    """Checks that the run folder is new or holds a run of this configuration.

    Raises:
        CheckpointError: the folder holds a run of another configuration; the difference is shown.
    """
    if not find_checkpoints(run):
        return
    try:
        saved = flatten(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(f"{run / 'config.yaml'}: cannot be read ({error}); give a new folder as out") from error
    mine = flatten(resolved_config(config, heads))
    changed = [
        f"{name}: {saved.get(name)!r} -> {mine.get(name)!r}"
        for name in sorted({*saved, *mine}, key=str)
        if saved.get(name) != mine.get(name) and name not in (*OPERATIONAL_FIELDS, *_LENGTH_FIELDS)
    ]
    if changed:
        raise CheckpointError(
            f"{run} holds a run with another configuration ({'; '.join(changed)}); go on with the old one, or give a "
            "new folder as out"
        )


def find_start(
    run: Path, config: TrainConfig, data_fingerprint: str, total_steps: int, say: Callable[[str], None]
) -> TrainerState:
    """Finds the state to go on from: that of the last checkpoint, or of a new run. On the first rank alone.

    All files of the checkpoint, and of the best one's model, are read and compared with their checksums.

    Args:
        total_steps: of the whole run, as it is configured now.
        say: prints which checkpoints are left aside, with `checkpoint.damaged: go_back`.

    Raises:
        CheckpointError: a checkpoint is damaged, or the run is of other data or was planned for other steps.
    """
    steps = find_checkpoints(run)
    state = TrainerState(0, data_fingerprint, schedule_end=total_steps)
    damaged: dict[int, str] = {}
    for step in reversed(steps):
        if (damage := find_damage(run, step)) is None:
            state = read_state(run, step)
            break
        damaged[step] = damage
    if damaged and config.checkpoint.damaged == "refuse":
        _refuse(damaged, state.step)
    _set_aside(run, damaged, say)
    if not state.step:
        return state
    if state.best_step != state.step and (damage := find_damage(run, state.best_step)) is not None:
        if config.checkpoint.damaged == "refuse":
            raise CheckpointError(
                f"{damage}; it is of the best checkpoint, and the last one, of step {state.step}, is good: run the "
                "same command with --checkpoint.damaged go_back to take that one's model"
            )
        _set_aside(run, {state.best_step: damage}, say)
        state = read_state(run, state.step)
    if state.data_fingerprint != data_fingerprint:
        raise CheckpointError(
            f"{run} holds a run on other data (comparisons, texts, clips, clips left out, or JPEG frames in place of "
            "exact ones); go back to those, or give a new folder as out"
        )
    return _plan_schedule(run, state, total_steps)


def _refuse(damaged: Mapping[int, str], good: int) -> None:
    last, *others = sorted(damaged, reverse=True)
    before = f"the one before it, of step {good}, is good" if good else "there is no good one before it"
    if others:
        of_others = f"step {others[0]} is" if len(others) == 1 else f"steps {', '.join(map(str, others))} are"
        before = f"{of_others} damaged too, and {before}".replace("before it", "before them")
    goal = f"goes on from step {good}" if good else "starts anew"
    raise CheckpointError(
        f"{damaged[last]}; it is of the last checkpoint, and {before}: the same command with "
        f"--checkpoint.damaged go_back {goal}"
    )


def _set_aside(run: Path, damaged: Mapping[int, str], say: Callable[[str], None]) -> None:
    """Renames damaged checkpoints, so that they do not count any more."""
    with writing(run):
        for step, damage in damaged.items():
            folder = checkpoint_folder(run, step)
            aside = folder.with_name(f"{folder.name}.damaged")
            remove(aside)
            os.replace(folder, aside)
            flush(folder.parent)
            say(f"{damage}; the checkpoint of step {step} is not used, it is now {aside.name}: delete it when you like")


def _plan_schedule(run: Path, state: TrainerState, total_steps: int) -> TrainerState:
    """Gives steps that were added to a finished run a schedule of their own, a warm restart (arXiv 1608.03983).

    Raises:
        CheckpointError: the run is not finished, or was longer.
    """
    planned = state.schedule_end
    if total_steps == planned:
        return state
    if state.step == planned < total_steps:
        return replace(state, schedule_start=planned, schedule_end=total_steps)
    if state.step == planned:
        raise CheckpointError(
            f"{run} holds a finished run of {planned} steps, and optimization.epochs and max_steps now make "
            f"{total_steps}; give a new folder as out to train less"
        )
    raise CheckpointError(
        f"{run} holds a run that was planned for {planned} steps, with a learning rate that falls towards the last, "
        f"and optimization.epochs and max_steps now make {total_steps}; finish it as it was planned first (then more "
        "epochs can be added), or give a new folder as out"
    )


def resolved_config(config: TrainConfig, heads: Sequence[str]) -> dict[str, Any]:
    """The configuration as plain values, as it is written to <run>/config.yaml."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value

    return plain({**asdict(config), "heads": list(heads)})


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names, for comparing configurations."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
