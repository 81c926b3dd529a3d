"""Runs that are killed at any moment and started again end where an uninterrupted run ends, to the last bit."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, MakeOnce, command, environment, launch, read_rows, start, write_training_config
from gradient_probe import PIECES
from safetensors.torch import load_file

from safe_rlhf_video.training.state import find_checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STEPS = 27
SCRIPT = ROOT / "scripts" / "train_cost.py"
# From here on a run goes on with other settings: 20 steps before the last but one.
CHANGED_AT = 6

Reference = Callable[[int, int, float | None], Path]


def write_config(path: Path, world: Path, zero_stage: int, dropout: float | None = 0.1) -> Path:
    """A run with adapters and their dropout, or with None the whole language model."""
    in_full = dropout is None
    return write_training_config(
        path,
        world,
        model={
            "lora": {"rank": 0} if in_full else {"rank": 4, "dropout": dropout},
            "trained_parts": ["language_model"] if in_full else [],
        },
        # 3 prompts a step, each a micro-batch of its own: with 2 ranks one of the 4 shares stays empty.
        optimization={
            "epochs": 100,
            "max_steps": STEPS,
            "prompts_per_step": 3,
            "micro_batch_tokens": 1,
            "language_model_learning_rate": 1e-4,
            "averaging": 0.3,
        },
        engine={"zero_stage": zero_stage, "deepspeed": {"zero_optimization": PIECES} if in_full else {}},
        checkpoint={"every_steps": 3, "keep_last": 100},
        tracking={"wandb": "auto"},
    )


@pytest.fixture(scope="session")
def reference(world: Path, make_once: MakeOnce) -> Reference:
    """The run folder of an uninterrupted run (ZeRO stage, ranks, dropout or None: in full); each is made once."""

    def make(zero_stage: int, ranks: int, dropout: float | None) -> Path:
        def train(folder: Path) -> None:
            config = write_config(folder / "run.yaml", world, zero_stage, dropout)
            launch(SCRIPT, "--config", config, ranks=ranks)

        return make_once(f"uninterrupted_{zero_stage}_{ranks}_{dropout}", train) / "run"

    return make


def kill_when(is_time: Callable[[], bool], script: Path, *arguments: object, ranks: int, **extra: str) -> None:
    """Launch a script and kill its whole process group with SIGKILL as soon as `is_time`."""
    with tempfile.TemporaryDirectory() as output:
        run = start(script, *arguments, output=Path(output), ranks=ranks, **extra)
        deadline = time.monotonic() + 200
        while not is_time():
            assert run.poll() is None, f"{script} ended before it was to be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        run.kill()


def last_step(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return read_rows(run)[-1]["step"] if metrics.exists() and metrics.read_text().endswith("\n") else 0


def assert_same_tensors(one: Path, other: Path) -> None:
    files = sorted(file.relative_to(one) for file in one.rglob("*.safetensors"))
    assert files
    assert files == sorted(file.relative_to(other) for file in other.rglob("*.safetensors"))
    for file in files:
        mine, theirs = load_file(one / file), load_file(other / file)
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert torch.equal(mine[name], theirs[name]), f"{file}: {name}"


def copy_until_change(uninterrupted: Path, run: Path) -> Path:
    """A run folder as it was at CHANGED_AT."""
    shutil.copytree(uninterrupted, run, ignore=shutil.ignore_patterns("wandb"))
    for folder in (run / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step_")) > CHANGED_AT:
            shutil.rmtree(folder)
    return run


def assert_like_losses(run: Path, uninterrupted: Path) -> None:
    rows, expected = read_rows(run), read_rows(uninterrupted)
    assert [row["step"] for row in rows] == [row["step"] for row in expected] == list(range(1, STEPS + 1))
    for row, other in list(zip(rows, expected, strict=True))[CHANGED_AT:]:
        assert row["train/loss"] == pytest.approx(other["train/loss"], abs=1e-4)


def without_speed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if not name.endswith("_per_second")} for row in rows]


@pytest.mark.parametrize(
    ("zero_stage", "ranks", "dropout", "kills"),
    [
        (0, 1, 0.1, ("step", "save", "step", "publish")),
        (0, 2, 0.1, ("save", "step")),
        (1, 2, 0.1, ("step", "save")),
        (2, 2, 0.0, ("step", "publish")),
        (2, 1, 0.0, ("step", "save")),
        (3, 2, 0.1, ("step",) * 10),
        (3, 2, None, ("step", "save")),
    ],
)
def test_killed_run_ends_bit_identical(
    world: Path,
    reference: Reference,
    tmp_path: Path,
    zero_stage: int,
    ranks: int,
    dropout: float | None,
    kills: tuple[str, ...],
) -> None:
    config = write_config(tmp_path / "run.yaml", world, zero_stage, dropout)
    run = tmp_path / "run"
    generator = random.Random(f"{zero_stage} {ranks}")
    for number, kill in enumerate(kills):
        if kill == "step":
            # Far enough to have saved something new, at any point between two saves.
            most = 3 if len(kills) > 4 else 6
            target = min(last_step(run) + generator.randint(1, most), STEPS - 4)
            kill_when(lambda target=target: last_step(run) >= target, SCRIPT, "--config", config, ranks=ranks)
        else:
            marker = tmp_path / f"marker_{number}"
            extra = {"STALLED_SCRIPT": str(SCRIPT), "STALL_AT": kill, "STALL_MARKER": str(marker)}
            script = ROOT / "tests" / "stalling_script.py"
            kill_when(marker.exists, script, "--config", config, ranks=ranks, **extra)
            if kill == "save":
                assert list((run / "checkpoints").glob(".step_*.partial"))
            else:
                assert not (run / "model").exists()
        assert last_step(run) < STEPS
    # By the launcher itself, and with other hashes than before: a set's order must not matter.
    done = launch(SCRIPT, "--config", config, ranks=ranks, as_users_do=True, PYTHONHASHSEED="1")
    assert "going on at step" in done.stdout
    uninterrupted = reference(zero_stage, ranks, dropout)
    last = Path("checkpoints") / f"step_{STEPS}"
    assert_same_tensors(run / last, uninterrupted / last)
    assert_same_tensors(run / "model", uninterrupted / "model")
    assert without_speed(read_rows(run)) == without_speed(read_rows(uninterrupted))
    assert not list((run / "checkpoints").glob(".*"))


def test_averaging_changes_what_is_validated_and_no_step(world: Path, tmp_path: Path, reference: Reference) -> None:
    config = write_config(tmp_path / "run.yaml", world, 0, 0.1)
    launch(SCRIPT, "--config", config, "--optimization.averaging", 0)
    rows, averaged = without_speed(read_rows(tmp_path / "run")), without_speed(read_rows(reference(0, 1, 0.1)))

    def of(side: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{name: value for name, value in row.items() if name.startswith(side)} for row in rows]

    assert of("train/", rows) == of("train/", averaged)
    assert rows[-1]["eval/loss"] != averaged[-1]["eval/loss"]


@pytest.mark.parametrize(
    ("zero_stage", "ranks"), [(0, (1, 2, 1)), (0, (2, 1)), (2, (1, 2)), (2, (2, 1)), (3, (1, 2, 1))]
)
def test_resume_with_another_number_of_ranks(
    world: Path, tmp_path: Path, zero_stage: int, ranks: tuple[int, ...], reference: Reference
) -> None:
    uninterrupted = reference(zero_stage, ranks[0], 0.0)  # dropout draws differ between numbers of ranks
    config = write_config(tmp_path / "run.yaml", world, zero_stage, 0.0)
    run = copy_until_change(uninterrupted, tmp_path / "run")
    for between in ranks[1:-1]:
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in read_rows(run)[:CHANGED_AT]))
        kill_when(lambda: last_step(run) >= CHANGED_AT + 8, SCRIPT, "--config", config, ranks=between)
    assert "going on at step" in launch(SCRIPT, "--config", config, ranks=ranks[-1]).stdout
    assert_like_losses(run, uninterrupted)


@pytest.mark.parametrize(("zero_stage", "dropout", "new_stage"), [(0, 0.0, 3), (3, None, 1)])
def test_resume_with_another_zero_stage_and_budget(
    world: Path, tmp_path: Path, reference: Reference, zero_stage: int, dropout: float | None, new_stage: int
) -> None:
    uninterrupted = reference(zero_stage, 2, dropout)
    config = write_config(tmp_path / "run.yaml", world, zero_stage, dropout)
    run = copy_until_change(uninterrupted, tmp_path / "run")
    changes = ("--engine.zero_stage", new_stage, "--optimization.micro_batch_tokens", 0)
    done = launch(SCRIPT, "--config", config, *changes, ranks=2)
    assert f"going on at step {CHANGED_AT} of {STEPS} steps on 2 process(es), ZeRO {new_stage}" in done.stdout
    assert_like_losses(run, uninterrupted)


STOPPED = """
import os, runpy, signal
from safe_rlhf_video.training import loop
take_step = loop.take_step
def take_and_signal(run, learner, batches, step):
    if step + 1 == int(os.environ["STOP_AT"]) and run.ranks.rank == run.ranks.world_size - 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return take_step(run, learner, batches, step)
loop.take_step = take_and_signal
runpy.run_path(os.environ["STOPPED_SCRIPT"], run_name="__main__")
"""


@pytest.mark.parametrize(("zero_stage", "ranks", "dropout", "stop_at"), [(0, 1, 0.1, 2), (2, 2, 0.0, 7)])
def test_a_run_that_one_rank_is_asked_to_end_saves_first(
    world: Path, reference: Reference, tmp_path: Path, zero_stage: int, ranks: int, dropout: float, stop_at: int
) -> None:
    config = write_config(tmp_path / "run.yaml", world, zero_stage, dropout)
    script = tmp_path / "stopped.py"
    script.write_text(STOPPED)
    extra = {"STOP_AT": str(stop_at), "STOPPED_SCRIPT": str(SCRIPT)}
    done = launch(script, "--config", config, ranks=ranks, check=False, **extra)
    assert done.returncode == 128 + signal.SIGTERM
    assert f"stopped by SIGTERM; step {stop_at} is saved, run the same command again to go on" in done.stdout
    assert "Traceback" not in done.stderr
    run = tmp_path / "run"
    assert find_checkpoints(run)[-1] == stop_at
    assert (run / "model" / "model.json").is_file()
    assert f"going on at step {stop_at} of" in launch(SCRIPT, "--config", config, ranks=ranks).stdout
    uninterrupted = reference(zero_stage, ranks, dropout)
    assert_same_tensors(run / "model", uninterrupted / "model")
    assert without_speed(read_rows(run)) == without_speed(read_rows(uninterrupted))


def test_a_job_that_is_asked_to_end_saves_first(world: Path, tmp_path: Path) -> None:
    """As a scheduler does it: the signal comes to launcher, ranks and decoding processes, to some of them twice."""
    path = write_training_config(
        tmp_path / "run.yaml",
        world,
        optimization={"epochs": 1000, "prompts_per_step": 2},
        checkpoint={"every_steps": 10**6},
        tracking={"wandb": "auto", "log_every": 1},
    )
    launcher = subprocess.Popen(
        command(SCRIPT, "--config", path, ranks=2), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment(), start_new_session=True,
    )  # fmt: skip
    try:
        while last_step(tmp_path / "run") < 2:
            assert launcher.poll() is None, launcher.communicate()[0]
            time.sleep(0.1)
        os.killpg(launcher.pid, signal.SIGTERM)
        said, _ = launcher.communicate(timeout=120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
    assert "stopped by SIGTERM; step" in said, said
    (step,) = find_checkpoints(tmp_path / "run")
    assert f"step {step} is saved" in said
    assert "Traceback" not in said
    assert launcher.returncode
