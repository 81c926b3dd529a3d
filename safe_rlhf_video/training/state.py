"""Writes and reads checkpoints of a run: whole or not at all, and enough to resume as if nothing had happened.

    <run>/checkpoints/step_N/model/            the model folder
    <run>/checkpoints/step_N/training_state/   optimizer.safetensors, trainer.json
    <run>/model/                               a copy of the best checkpoint's model folder

A checkpoint counts only once its folder has been renamed into place.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from safe_rlhf_video.errors import CheckpointError
from safe_rlhf_video.training.config import OPERATIONAL_FIELDS, TrainConfig


@dataclass(frozen=True)
class TrainerState:
    """The state of a run after `step` updates.

    Attributes:
        data_fingerprint: identifies the training records.
        best_step: the checkpoint with the lowest validation loss; 0 before the first.
        best_loss: that loss; None without validation.
        wandb_id: the W&B run to go on with.
    """

    step: int
    data_fingerprint: str
    best_step: int = 0
    best_loss: float | None = None
    wandb_id: str | None = None


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
            f"{run} holds a run on other data (comparisons, texts, clips left out, or JPEG frames in place of exact "
            "ones); go back to those, or give a new folder as out"
        )
    return steps[-1]


def resolved_config(config: TrainConfig, heads: Sequence[str]) -> dict[str, Any]:
    """The configuration as plain values, as it is written to <run>/config.yaml."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value

    return plain({**asdict(config), "heads": list(heads)})


def checkpoint_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step}"


def find_checkpoints(run: Path) -> list[int]:
    """The steps of all complete checkpoints, rising."""
    folders = (run / "checkpoints").glob("step_*")
    return sorted(int(folder.name.removeprefix("step_")) for folder in folders if folder.name[5:].isdigit())


def save_checkpoint(
    run: Path, state: TrainerState, moments: Mapping[str, Tensor], save_model: Callable[[Path], None], keep_last: int
) -> None:
    """Write a checkpoint, make it the run's model if it is the best, and delete those no longer needed.

    Raises:
        CheckpointError: the disk is full or cannot be written; all earlier checkpoints stay as they are.
    """
    folder = checkpoint_folder(run, state.step)
    partial = folder.with_name(f".{folder.name}.partial")
    with writing(run):
        for leftover in (run / "checkpoints").glob(".step_*"):  # of a run that was killed while it saved or dropped
            shutil.rmtree(leftover)
        try:
            save_model(partial / "model")
            (partial / "training_state").mkdir()
            save_file(dict(moments), partial / "training_state" / "optimizer.safetensors")
            (partial / "training_state" / "trainer.json").write_text(json.dumps(asdict(state), indent=2) + "\n")
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        publish_model(run, state.best_step)
        for step in find_checkpoints(run)[:-keep_last]:
            if step != state.best_step:
                # Renamed first: a kill must not leave half a checkpoint under a complete one's name.
                dropped = folder.with_name(f".step_{step}.dropped")
                os.replace(checkpoint_folder(run, step), dropped)
                shutil.rmtree(dropped)


@contextmanager
def writing(run: Path) -> Iterator[None]:
    """Turn a disk that is full or cannot be written into one line; all complete checkpoints stay as they are.

    Raises:
        CheckpointError: says from where the run can go on.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        kept = find_checkpoints(run)
        raise CheckpointError(
            f"{run}: could not be written ({error}); make room or give access, then run the same command again: it "
            f"goes on from {f'step {kept[-1]}' if kept else 'the start'}"
        ) from error


def publish_model(run: Path, best_step: int) -> None:
    """Make <run>/model the best checkpoint's model folder; a kill at any point is mended by the next call.

    Its files are links: one that is written in place is changed in the checkpoint too.
    """
    target, incoming, outgoing = run / "model", run / ".model.incoming", run / ".model.outgoing"
    shutil.rmtree(incoming, ignore_errors=True)
    shutil.rmtree(outgoing, ignore_errors=True)
    try:
        # Links: nothing writes into a model folder, and one with a language model in it has tens of gigabytes.
        shutil.copytree(checkpoint_folder(run, best_step) / "model", incoming, copy_function=_link_or_copy)
    except OSError:
        shutil.rmtree(incoming, ignore_errors=True)
        raise
    if target.exists():
        os.replace(target, outgoing)
    os.replace(incoming, target)
    shutil.rmtree(outgoing, ignore_errors=True)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def load_checkpoint(run: Path, step: int) -> tuple[TrainerState, dict[str, Tensor]]:
    """Read a checkpoint's trainer state and Adam moments.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    folder = checkpoint_folder(run, step) / "training_state"
    try:
        state = TrainerState(**json.loads((folder / "trainer.json").read_text()))
        moments = load_file(folder / "optimizer.safetensors")
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{folder}: damaged ({error}); delete {folder.parent} and run the same command again, it goes on from the "
            "checkpoint before, or from the start"
        ) from error
    if not checkpoint_folder(run, state.best_step).is_dir():
        # Dropped when a later one was better, and that one has been deleted since: the next validation decides anew.
        state = replace(state, best_step=step, best_loss=None)
    return state, moments


def with_validation(state: TrainerState, loss: float | None) -> TrainerState:
    """Mark this step as the best if its validation loss is; without validation the last step is the best."""
    if loss is None:
        return replace(state, best_step=state.step)
    if state.best_loss is None or math.isnan(state.best_loss) or loss < state.best_loss:
        return replace(state, best_step=state.step, best_loss=loss)
    return state


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names, for comparing configurations."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
