"""Writes and reads checkpoints of a run: whole or not at all, and enough to resume as if nothing had happened.

    <run>/checkpoints/step_N/model/            the model folder
    <run>/checkpoints/step_N/training_state/   optimizer.safetensors, trainer.json
    <run>/checkpoints/step_N/checksums.json    of all files above, so that damage is seen
    <run>/model/                               a copy of the best checkpoint's model folder

A checkpoint counts only once its folder has been renamed into place. A damaged one that is not used is renamed to
step_N.damaged.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from safe_rlhf_video.contracts import STRICT, read_json, write_json
from safe_rlhf_video.errors import CheckpointError
from safe_rlhf_video.files import flush, make_folder, put_in_place, remove
from safe_rlhf_video.models.weight_files import check_checksums, checksum_file, save_tensors

# 2: the schedule; checksums of a checkpoint's files.
FORMAT_VERSION = 2
CHECKSUMS_NAME = "checksums.json"

Step = Annotated[int, Field(ge=0, le=10**15)]
# Not int(): it reads digits of other scripts too.
_FOLDER_NAME = re.compile(r"step_([1-9][0-9]{0,14})")


@dataclass(frozen=True)
class TrainerState:
    """The state of a run after `step` updates.

    Attributes:
        data_fingerprint: identifies the training records.
        schedule_start, schedule_end: the steps between which the learning rate rises and falls; a run to which steps
            were added has a schedule of its own for them.
        best_step: the checkpoint with the lowest validation loss; 0 before the first.
        best_loss: that loss; None without validation.
        wandb_id: the W&B run to go on with.
    """

    __pydantic_config__ = STRICT

    step: Step
    data_fingerprint: str
    schedule_end: Step
    schedule_start: Step = 0
    best_step: Step = 0
    best_loss: float | None = None
    wandb_id: str | None = None
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class _Checksums:
    """The content of checksums.json: path in the checkpoint -> checksum."""

    __pydantic_config__ = STRICT

    checksums: Mapping[str, str]


def checkpoint_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step}"


def find_checkpoints(run: Path) -> list[int]:
    """The steps of all complete checkpoints, rising."""
    names = (_FOLDER_NAME.fullmatch(folder.name) for folder in (run / "checkpoints").glob("step_*"))
    return sorted(int(name[1]) for name in names if name)


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
            remove(leftover)
        make_folder(folder.parent)
        try:
            save_model(partial / "model")
            (partial / "training_state").mkdir()
            save_tensors(moments, partial / "training_state" / "optimizer.safetensors")
            write_json(partial / "training_state" / "trainer.json", state)
            files = sorted(path for path in partial.rglob("*") if path.is_file())
            checksums = {path.relative_to(partial).as_posix(): checksum_file(path) for path in files}
            write_json(partial / CHECKSUMS_NAME, _Checksums(checksums))
            put_in_place(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        publish_model(run, state.best_step)
        for step in find_checkpoints(run)[:-keep_last]:
            if step != state.best_step:
                # Renamed first: a kill must not leave half a checkpoint under a complete one's name.
                dropped = folder.with_name(f".step_{step}.dropped")
                os.replace(checkpoint_folder(run, step), dropped)
                flush(folder.parent)
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

    Raises:
        OSError: the disk is full or cannot be written.
    """
    target, incoming, outgoing = run / "model", run / ".model.incoming", run / ".model.outgoing"
    remove(incoming)
    remove(outgoing)
    try:
        # Links: nothing writes into a model folder, and one with a language model in it has tens of gigabytes.
        shutil.copytree(checkpoint_folder(run, best_step) / "model", incoming, copy_function=_link_or_copy)
    except OSError:
        shutil.rmtree(incoming, ignore_errors=True)
        raise
    if target.exists():
        os.replace(target, outgoing)
    put_in_place(incoming, target)
    remove(outgoing)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def find_damage(run: Path, step: int) -> str | None:
    """Reads all files of a checkpoint; says in a line which of them is damaged, or None."""
    folder = checkpoint_folder(run, step)
    if not (folder / CHECKSUMS_NAME).exists():
        return f"{folder / CHECKSUMS_NAME}: missing, so the checkpoint is damaged or of an earlier release"
    try:
        listed = read_json(_Checksums, folder / CHECKSUMS_NAME, CheckpointError, "").checksums
        check_checksums(folder, listed, "")
        if missing := {"training_state/trainer.json", "training_state/optimizer.safetensors"} - set(listed):
            raise CheckpointError(f"{folder / CHECKSUMS_NAME}: damaged, it lacks {min(missing)}; ")
        read_state(run, step)
    except CheckpointError as damage:
        return str(damage).rstrip("; ")
    return None


def read_state(run: Path, step: int) -> TrainerState:
    """Reads a checkpoint's trainer.json.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = checkpoint_folder(run, step) / "training_state" / "trainer.json"
    state = read_json(TrainerState, path, CheckpointError, "")
    if (state.step, state.format_version) != (step, FORMAT_VERSION):
        raise CheckpointError(f"{path}: damaged, it is of step {state.step}, format version {state.format_version}")
    if not checkpoint_folder(run, state.best_step).is_dir():
        # Dropped when a later one was better, and that one is gone since: the next validation decides anew.
        state = replace(state, best_step=step, best_loss=None)
    return state


def read_moments(run: Path, step: int) -> dict[str, Tensor]:
    """Reads a checkpoint's Adam moments, and weights if its model has averages; `find_damage` has compared checksums.

    Raises:
        CheckpointError: they cannot be read.
    """
    path = checkpoint_folder(run, step) / "training_state" / "optimizer.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); run the same command again") from error


def with_validation(state: TrainerState, loss: float | None) -> TrainerState:
    """Mark this step as the best if its validation loss is; without validation the last step is the best."""
    if loss is None:
        return replace(state, best_step=state.step)
    if state.best_loss is None or loss < state.best_loss:
        return replace(state, best_step=state.step, best_loss=loss if math.isfinite(loss) else None)
    return state
