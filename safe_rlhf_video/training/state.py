"""Checkpoints of a run: written whole or not at all, and enough to go on as if nothing had happened.

    <run>/checkpoints/step_N/model/            the model folder
    <run>/checkpoints/step_N/training_state/   optimizer.safetensors, trainer.json
    <run>/model/                               a copy of the best checkpoint's model folder

A checkpoint counts only once its folder has been renamed into place.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from safe_rlhf_video.errors import CheckpointError


@dataclass(frozen=True)
class TrainerState:
    """Where a run stands after `step` updates.

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


def checkpoint_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step}"


def find_checkpoints(run: Path) -> list[int]:
    """The steps of all complete checkpoints, rising."""
    folders = (run / "checkpoints").glob("step_*")
    return sorted(int(folder.name.removeprefix("step_")) for folder in folders if folder.name[5:].isdigit())


def save_checkpoint(
    run: Path, state: TrainerState, moments: Mapping[str, Tensor], save_model: Callable[[Path], None], keep_last: int
) -> None:
    """Write a checkpoint, make it the run's model if it is the best, and drop those no longer needed.

    Raises:
        CheckpointError: the disk is full or cannot be written; all earlier checkpoints stay as they are.
    """
    folder = checkpoint_folder(run, state.step)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        save_model(partial / "model")
        (partial / "training_state").mkdir()
        save_file(dict(moments), partial / "training_state" / "optimizer.safetensors")
        (partial / "training_state" / "trainer.json").write_text(json.dumps(asdict(state), indent=2) + "\n")
        if folder.exists():  # left by a run that was killed between this save and the next
            shutil.rmtree(folder)
        os.replace(partial, folder)
        publish_model(run, state.best_step)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        kept = find_checkpoints(run)
        raise CheckpointError(
            f"{folder}: could not be written ({error}); free some space and run the same command again, it goes on from "
            f"{f'step {kept[-1]}' if kept else 'the start'}"
        ) from error
    steps = find_checkpoints(run)
    for step in steps[:-keep_last]:
        if step != state.best_step:
            shutil.rmtree(checkpoint_folder(run, step))


def publish_model(run: Path, best_step: int) -> None:
    """Make <run>/model a copy of the best checkpoint's model folder; a kill at any point is mended by the next call."""
    target, incoming, outgoing = run / "model", run / ".model.incoming", run / ".model.outgoing"
    shutil.rmtree(incoming, ignore_errors=True)
    shutil.rmtree(outgoing, ignore_errors=True)
    shutil.copytree(checkpoint_folder(run, best_step) / "model", incoming)
    if target.exists():
        os.replace(target, outgoing)
    os.replace(incoming, target)
    shutil.rmtree(outgoing, ignore_errors=True)


def load_checkpoint(run: Path, step: int) -> tuple[TrainerState, dict[str, Tensor]]:
    """Read a checkpoint's trainer state and Adam moments.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    folder = checkpoint_folder(run, step) / "training_state"
    try:
        state = TrainerState(**json.loads((folder / "trainer.json").read_text()))
        return state, load_file(folder / "optimizer.safetensors")
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{folder}: damaged ({error}); delete {folder.parent} and run the same command again, it goes on from the "
            "checkpoint before"
        ) from error


def with_validation(state: TrainerState, loss: float | None) -> TrainerState:
    """Mark this step as the best if its validation loss is; without validation the last step is the best."""
    if loss is None:
        return replace(state, best_step=state.step)
    if state.best_loss is None or loss < state.best_loss:
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
