"""Checkpoints and the rows of a run: whole or not at all, and what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
import torch
import wandb

from safe_rlhf_video.errors import CheckpointError, ConfigError
from safe_rlhf_video.training import state as states
from safe_rlhf_video.training.config import TrackingConfig
from safe_rlhf_video.training.state import (
    TrainerState,
    find_checkpoints,
    load_checkpoint,
    save_checkpoint,
    with_validation,
)
from safe_rlhf_video.training.tracking import Tracker


def save(run: Path, state: TrainerState, keep_last: int = 1) -> None:
    def save_model(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "model.json").write_text(str(state.step))

    save_checkpoint(run, state, {"exp_avg.x": torch.full((3,), float(state.step))}, save_model, keep_last)


def run_with_losses(run: Path, losses: list[float], keep_last: int = 1) -> TrainerState:
    state = TrainerState(0, "data")
    for step, loss in enumerate(losses, start=1):
        state = with_validation(TrainerState(step, "data", state.best_step, state.best_loss), loss)
        save(run, state, keep_last)
    return state


def test_best_and_last_are_kept_and_the_best_is_published(tmp_path: Path) -> None:
    state = run_with_losses(tmp_path, [3.0, 1.0, 2.0, 2.5])
    assert (state.best_step, state.best_loss) == (2, 1.0)
    assert find_checkpoints(tmp_path) == [2, 4]
    assert (tmp_path / "model" / "model.json").read_text() == "2"
    assert load_checkpoint(tmp_path, 4)[0] == state
    assert not list(tmp_path.rglob(".*"))


def test_keep_last(tmp_path: Path) -> None:
    run_with_losses(tmp_path, [1.0, 2.0, 3.0, 4.0, 5.0], keep_last=3)
    assert find_checkpoints(tmp_path) == [1, 3, 4, 5]


def test_a_loss_that_is_no_number_is_beaten_by_any(tmp_path: Path) -> None:
    assert run_with_losses(tmp_path, [float("nan"), 2.0, float("nan")]).best_step == 2


def test_leftovers_of_a_kill_do_not_count_and_go(tmp_path: Path) -> None:
    for name in (".step_2.partial", ".step_1.dropped"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert find_checkpoints(tmp_path) == []
    run_with_losses(tmp_path, [1.0])
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["step_1"]


@pytest.mark.parametrize("failing", ["save_file", "publish_model"])
def test_failed_write_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    run_with_losses(tmp_path, [2.0, 1.0])

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(states, failing, fail)
    with pytest.raises(CheckpointError, match=r"No space left on device.*goes on from step") as raised:
        save(tmp_path, TrainerState(3, "data", 3, 0.5))
    assert "\n" not in str(raised.value)
    assert 2 in find_checkpoints(tmp_path)
    assert (tmp_path / "model" / "model.json").read_text() == "2"
    assert not list((tmp_path / "checkpoints").glob(".*"))
    load_checkpoint(tmp_path, 2)


@pytest.mark.parametrize("name", ["trainer.json", "optimizer.safetensors"])
def test_damaged_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    run_with_losses(tmp_path, [2.0])
    (tmp_path / "checkpoints" / "step_1" / "training_state" / name).write_text('{"st')
    with pytest.raises(CheckpointError, match=r"step_1.*delete") as raised:
        load_checkpoint(tmp_path, 1)
    assert "\n" not in str(raised.value)


def test_going_back_where_the_best_was_dropped(tmp_path: Path) -> None:
    run_with_losses(tmp_path, [1.0, 2.0, 0.5], keep_last=2)
    assert find_checkpoints(tmp_path) == [2, 3]
    for file in sorted((tmp_path / "checkpoints" / "step_3").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    (tmp_path / "checkpoints" / "step_3").rmdir()
    state, _ = load_checkpoint(tmp_path, 2)
    assert (state.best_step, state.best_loss) == (2, None)


def test_tracker_cuts_rows_that_are_repeated(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"step": step, "x": 1.0}) + "\n" for step in (1, 2, 3))
    (tmp_path / "metrics.jsonl").write_text(rows + '{"step": 4, "x"')
    with Tracker(tmp_path, TrackingConfig(wandb="disabled"), {}, 2, None) as tracker:
        tracker.log(3, {"x": float("inf")})
    kept = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert kept == [{"step": 1, "x": 1.0}, {"step": 2, "x": 1.0}, {"step": 3, "x": None}]


@pytest.mark.parametrize(("setting", "mode"), [("online", "online"), ("auto", "online"), ("online", "offline")])
def test_online_without_a_key_is_refused_and_never_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: Literal["online", "auto"], mode: str
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("wandb.init would ask"))
    with pytest.raises(ConfigError, match=r"online needs an API key; set WANDB_API_KEY"):
        Tracker(tmp_path, TrackingConfig(wandb=setting), {}, 0, None)


def test_wandb_that_does_not_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise wandb.errors.CommError("no\nanswer")

    monkeypatch.setattr(wandb, "init", fail)
    with pytest.raises(ConfigError, match=r"no answer.*tracking\.wandb offline"):
        Tracker(tmp_path, TrackingConfig(wandb="offline"), {}, 0, None)
