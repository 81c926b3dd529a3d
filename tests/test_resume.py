"""Runs that are killed at any moment and started again end where an uninterrupted run ends, to the last bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, command, environment, launch, read_rows, write_training_config
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 27
SCRIPT = ROOT / "scripts" / "train_cost.py"
# From here on a run goes on with another number of ranks: 20 steps before the last but one.
CHANGED_AT = 6

Reference = Callable[[int, int, float], Path]


def write_config(path: Path, world: Path, zero_stage: int, dropout: float = 0.1) -> Path:
    return write_training_config(
        path,
        world,
        model={"lora": {"rank": 4, "dropout": dropout}},
        # 3 prompts a step, each a micro-batch of its own: with 2 ranks one of the 4 shares stays empty.
        optimization={"epochs": 100, "max_steps": STEPS, "prompts_per_step": 3, "micro_batch_tokens": 1},
        engine={"zero_stage": zero_stage},
        checkpoint={"every_steps": 3, "keep_last": 100},
    )


@pytest.fixture(scope="module")
def reference(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """The run folder of an uninterrupted run (ZeRO stage, ranks, dropout); each is made once."""
    made: dict[tuple[int, int, float], Path] = {}

    def make(zero_stage: int, ranks: int, dropout: float) -> Path:
        if (zero_stage, ranks, dropout) not in made:
            folder = tmp_path_factory.mktemp("reference")
            config = write_config(folder / "run.yaml", world, zero_stage, dropout)
            launch(SCRIPT, "--config", config, ranks=ranks)
            made[zero_stage, ranks, dropout] = folder / "run"
        return made[zero_stage, ranks, dropout]

    return make


def kill_when(is_time: Callable[[], bool], script: Path, *arguments: object, ranks: int, **extra: str) -> None:
    """Launch a script and kill its whole process group with SIGKILL as soon as `is_time`."""
    process = subprocess.Popen(
        command(script, *arguments, ranks=ranks),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(**extra),
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while not is_time():
        assert process.poll() is None, f"{script} ended before it was to be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


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


def without_speed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "train/videos_per_second"} for row in rows]


@pytest.mark.parametrize(
    ("zero_stage", "ranks", "kills"),
    [
        (0, 1, ("step", "save", "step", "publish")),
        (0, 2, ("save", "step")),
        (1, 2, ("step", "save")),
        (2, 2, ("step", "publish")),
        (2, 1, ("step", "save")),
        (3, 2, ("step",) * 10),
    ],
)
def test_killed_run_ends_bit_identical(
    world: Path, reference: Reference, tmp_path: Path, zero_stage: int, ranks: int, kills: tuple[str, ...]
) -> None:
    dropout = 0.1 if zero_stage != 2 else 0.0
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
    done = launch(SCRIPT, "--config", config, ranks=ranks)
    assert "going on at step" in done.stdout
    uninterrupted = reference(zero_stage, ranks, dropout)
    last = Path("checkpoints") / f"step_{STEPS}"
    assert_same_tensors(run / last, uninterrupted / last)
    assert_same_tensors(run / "model", uninterrupted / "model")
    assert without_speed(read_rows(run)) == without_speed(read_rows(uninterrupted))
    assert not list((run / "checkpoints").glob(".*"))


@pytest.mark.parametrize(
    ("zero_stage", "ranks"), [(0, (1, 2, 1)), (0, (2, 1)), (2, (1, 2)), (2, (2, 1)), (3, (1, 2, 1))]
)
def test_resume_with_another_number_of_ranks(
    world: Path, tmp_path: Path, zero_stage: int, ranks: tuple[int, ...], reference: Reference
) -> None:
    uninterrupted = reference(zero_stage, ranks[0], 0.0)  # dropout draws differ between numbers of ranks
    config = write_config(tmp_path / "run.yaml", world, zero_stage, 0.0)
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run, ignore=shutil.ignore_patterns("wandb"))
    for folder in (run / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step_")) > CHANGED_AT:
            shutil.rmtree(folder)
    for between in ranks[1:-1]:
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in read_rows(run)[:CHANGED_AT]))
        kill_when(lambda: last_step(run) >= CHANGED_AT + 8, SCRIPT, "--config", config, ranks=between)
    assert "going on at step" in launch(SCRIPT, "--config", config, ranks=ranks[-1]).stdout
    rows, expected = read_rows(run), read_rows(uninterrupted)
    assert [row["step"] for row in rows] == [row["step"] for row in expected] == list(range(1, STEPS + 1))
    for row, other in list(zip(rows, expected, strict=True))[CHANGED_AT:]:
        assert row["train/loss"] == pytest.approx(other["train/loss"], abs=1e-4)
