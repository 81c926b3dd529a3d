"""Checkpoints and the rows of a run: whole or not at all, and what is kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
import wandb

from safe_rlhf_video.errors import CheckpointError, ConfigError
from safe_rlhf_video.models.weight_files import checksum_file
from safe_rlhf_video.training import state as states
from safe_rlhf_video.training.config import CheckpointConfig, DataConfig, TrackingConfig, TrainConfig
from safe_rlhf_video.training.run_folder import find_start
from safe_rlhf_video.training.state import (
    TrainerState,
    find_checkpoints,
    find_damage,
    publish_model,
    read_state,
    save_checkpoint,
    with_validation,
)
from safe_rlhf_video.training.tracking import Tracker


def save(run: Path, state: TrainerState, keep_last: int = 1) -> None:
    def save_model(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "model.json").write_text(str(state.step))

    save_checkpoint(run, state, {"exp_avg.x": torch.full((3,), float(state.step))}, save_model, keep_last)


def start(
    run: Path,
    damaged: Literal["refuse", "go_back"] = "refuse",
    total_steps: int = 9,
    say: Callable[[str], None] = lambda _: None,
) -> TrainerState:
    """The state from which a run would go on."""
    config = TrainConfig(str(run), DataConfig("data.json"), checkpoint=CheckpointConfig(damaged=damaged))
    return find_start(run, config, "data", total_steps, say)


def run_with_losses(run: Path, losses: list[float], keep_last: int = 1, planned: int = 9) -> TrainerState:
    state = TrainerState(0, "data", schedule_end=planned)
    for step, loss in enumerate(losses, start=1):
        state = with_validation(replace(state, step=step), loss)
        save(run, state, keep_last)
    return state


def test_best_and_last_are_kept_and_the_best_is_published(tmp_path: Path) -> None:
    state = run_with_losses(tmp_path, [3.0, 1.0, 2.0, 2.5])
    assert (state.best_step, state.best_loss) == (2, 1.0)
    assert find_checkpoints(tmp_path) == [2, 4]
    assert (tmp_path / "model" / "model.json").read_text() == "2"
    assert read_state(tmp_path, 4) == state
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


@pytest.mark.parametrize("failing", ["save_tensors", "publish_model"])
def test_failed_write_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    run_with_losses(tmp_path, [2.0, 1.0])

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(states, failing, fail)
    with pytest.raises(CheckpointError, match=r"No space left on device.*goes on from step") as raised:
        save(tmp_path, TrainerState(3, "data", schedule_end=3, best_step=3, best_loss=0.5))
    assert "\n" not in str(raised.value)
    assert 2 in find_checkpoints(tmp_path)
    assert (tmp_path / "model" / "model.json").read_text() == "2"
    assert not list((tmp_path / "checkpoints").glob(".*"))
    assert find_damage(tmp_path, 2) is None


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # its links keep the old bytes
    path.write_bytes(content)


FILES = ("model/model.json", "training_state/optimizer.safetensors", "training_state/trainer.json", "checksums.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip_bit, Path.unlink, lambda path: path.write_bytes(b"")])
def test_damage_is_named_with_the_checkpoint_to_go_back_to(
    tmp_path: Path, name: str, damage: Callable[[Path], object]
) -> None:
    run_with_losses(tmp_path, [1.0, 2.0, 3.0], keep_last=3)
    assert start(tmp_path).step == 3
    damage(tmp_path / "checkpoints" / "step_3" / name)
    with pytest.raises(CheckpointError, match=r"step_3/.*the one before it, of step 2, is good: .*go_back goes on"):
        start(tmp_path)
    damage(tmp_path / "checkpoints" / "step_2" / name)
    said: list[str] = []
    with pytest.raises(CheckpointError, match=r"step_3/.*step 2 is damaged too, .* before them, of step 1, is"):
        start(tmp_path)
    assert start(tmp_path, "go_back", say=said.append).step == 1
    assert [line.split("the checkpoint of ")[1][:6] for line in said] == ["step 3", "step 2"]
    assert find_checkpoints(tmp_path) == [1]
    assert (tmp_path / "checkpoints" / "step_3.damaged").is_dir()
    damage(tmp_path / "checkpoints" / "step_1" / name)
    with pytest.raises(CheckpointError, match=r"step_1/.*no good one before it: .*go_back starts anew") as raised:
        start(tmp_path)
    assert "\n" not in str(raised.value)
    assert start(tmp_path, "go_back").step == 0


def test_a_checkpoint_of_an_earlier_release_is_called_so(tmp_path: Path) -> None:
    run_with_losses(tmp_path, [1.0])
    (tmp_path / "checkpoints" / "step_1" / "checksums.json").unlink()
    with pytest.raises(CheckpointError, match=r"checksums\.json: missing, so .* damaged or of an earlier release; "):
        start(tmp_path)


def test_a_damaged_best_checkpoint_is_not_published(tmp_path: Path) -> None:
    run_with_losses(tmp_path, [1.0, 2.0])
    flip_bit(tmp_path / "checkpoints" / "step_1" / "model" / "model.json")
    with pytest.raises(CheckpointError, match=r"step_1/model/model.json.*best checkpoint, and the last one, of step 2"):
        start(tmp_path)
    state = start(tmp_path, "go_back")
    assert (state.step, state.best_step, state.best_loss) == (2, 2, None)


def nested(path: Path) -> None:
    path.write_text("[" * 100_000)


def of_another_step(path: Path) -> None:
    path.write_text(path.read_text().replace('"step": 2', f'"step": {10**400}'))


@pytest.mark.parametrize("damage", [nested, of_another_step])
def test_a_state_that_only_its_content_gives_away(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """Whoever changes a file may change its checksum too."""
    run_with_losses(tmp_path, [2.0, 1.0], keep_last=2)
    folder = tmp_path / "checkpoints" / "step_2"
    damage(folder / "training_state" / "trainer.json")
    checksums = json.loads((folder / "checksums.json").read_text())
    checksums["checksums"]["training_state/trainer.json"] = checksum_file(folder / "training_state" / "trainer.json")
    (folder / "checksums.json").write_text(json.dumps(checksums))
    with pytest.raises(CheckpointError, match=r"trainer\.json.*of step 1, is good"):
        start(tmp_path)


@pytest.mark.parametrize("name", ["step_²", "step_２", "step_02", "step_x", "step_" + "9" * 200, "step_"])
def test_only_plain_numbers_are_steps(tmp_path: Path, name: str) -> None:
    run_with_losses(tmp_path, [1.0])
    (tmp_path / "checkpoints" / name).mkdir()
    assert find_checkpoints(tmp_path) == [1]


@pytest.mark.parametrize("leftover", ["file", "folder", "links", "link"])
def test_whatever_a_kill_left_in_the_way_is_replaced(tmp_path: Path, leftover: str) -> None:
    run_with_losses(tmp_path, [1.0])
    for name in (".model.incoming", ".model.outgoing"):
        if leftover == "file":
            (tmp_path / name).touch()
        elif leftover == "link":
            (tmp_path / name).symlink_to(tmp_path / "model")
        else:
            shutil.copytree(tmp_path / "model", tmp_path / name, copy_function=os.link)
            (tmp_path / name).chmod(0o755 if leftover == "links" else 0o555)
    run_with_losses(tmp_path / "other", [1.0])
    publish_model(tmp_path, 1)
    assert (tmp_path / "model" / "model.json").read_text() == "1"
    assert not list(tmp_path.glob(".model*"))


def test_steps_are_added_to_a_finished_run_alone(tmp_path: Path) -> None:
    run_with_losses(tmp_path, [1.0, 2.0], planned=2)
    state = start(tmp_path, total_steps=5)
    assert (state.step, state.schedule_start, state.schedule_end) == (2, 2, 5)
    save(tmp_path, replace(state, step=3))
    # What was added is gone on with, on the same schedule.
    assert start(tmp_path, total_steps=5) == replace(state, step=3)
    with pytest.raises(CheckpointError, match=r"planned for 5 steps.*now make 7; finish it as it was planned first"):
        start(tmp_path, total_steps=7)
    save(tmp_path, replace(state, step=5))
    with pytest.raises(CheckpointError, match=r"finished run of 5 steps, and .* now make 2; give a new folder"):
        start(tmp_path, total_steps=2)


def test_files_have_the_rights_of_any_new_file(tmp_path: Path) -> None:
    """safetensors writes its files for their owner alone."""
    before = os.umask(0o027)
    try:
        run_with_losses(tmp_path, [1.0])
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()} == {0o640}


def test_going_back_where_the_best_was_dropped(tmp_path: Path) -> None:
    run_with_losses(tmp_path, [1.0, 2.0, 0.5], keep_last=2)
    assert find_checkpoints(tmp_path) == [2, 3]
    for file in sorted((tmp_path / "checkpoints" / "step_3").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    (tmp_path / "checkpoints" / "step_3").rmdir()
    state = read_state(tmp_path, 2)
    assert (state.best_step, state.best_loss) == (2, None)


@pytest.mark.parametrize("end", ["", "\0" * 9, "\n", "\n[]\n" + "[" * 100_000 + '\n{"step": "5"}\n'])
def test_tracker_cuts_rows_that_are_repeated(tmp_path: Path, end: str) -> None:
    rows = "".join(json.dumps({"step": step, "x": 1.0}) + "\n" for step in (1, 2, 3))
    (tmp_path / "metrics.jsonl").write_text(rows + '{"step": 4, "x"' + end)
    with Tracker(tmp_path, TrackingConfig(wandb="disabled"), {}, 2, None) as tracker:
        tracker.log(3, {"x": float("inf")})
    kept = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert kept == [{"step": 1, "x": 1.0}, {"step": 2, "x": 1.0}, {"step": 3, "x": None}]


@pytest.mark.parametrize("garbage", [b"\xff\xfe", b"[" * 100_000, b'{"step": "x"}', b"[]", b"1" * 9000, b"{}"])
def test_a_damaged_row_that_is_not_repeated_is_named(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + garbage + b'\n{"step": 2}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: line 2 is damaged; mend or delete it"):
        Tracker(tmp_path, TrackingConfig(wandb="disabled"), {}, 2, None)


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


def test_wandb_that_fails_later_costs_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing:
        id = "x"

        def define_metric(self, *_: object, **__: object) -> None:
            pass

        def log(self, *_: object, **__: object) -> None:
            raise ConnectionResetError("Connection lost")

        finish = log_artifact = log

    monkeypatch.setattr(wandb, "init", lambda **_: Failing())
    with Tracker(tmp_path, TrackingConfig(wandb="offline"), {}, 0, None) as tracker:
        tracker.log(1, {"x": 1.0})
        tracker.log(2, {"x": 2.0})
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    with Tracker(tmp_path, TrackingConfig(wandb="offline"), {}, 2, None) as tracker:
        tracker.log_model(tmp_path / "model", {})
    said = capsys.readouterr().out
    assert said.count("W&B has failed (ConnectionResetError: Connection lost) and gets nothing more") == 2


def test_wandb_that_does_not_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise wandb.errors.CommError("no\nanswer")

    monkeypatch.setattr(wandb, "init", fail)
    with pytest.raises(ConfigError, match=r"no answer.*tracking\.wandb offline"):
        Tracker(tmp_path, TrackingConfig(wandb="offline"), {}, 0, None)
