"""The training scripts as a user runs them: what a run folder holds, and one line for whatever is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT, Record, command, environment, launch, read_records, read_rows, write_training_config
from safetensors.torch import load_file
from tiny_backbones import SAMPLINGS, write_tiny_backbone
from wandb_files import figures, read_history

from safe_rlhf_video.config_parser import parse_config
from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.files import lock_folder
from safe_rlhf_video.scoring.scorer import Scorer
from safe_rlhf_video.stats.credit import credit
from safe_rlhf_video.training.config import OptimizationConfig, TrainConfig
from safe_rlhf_video.training.data import load_data
from safe_rlhf_video.training.loop import train

Edit = Callable[[Callable[[list[Record]], Any]], Path]


def fail(script: str | Path, *arguments: object, **options: Any) -> str:
    """Run a script that must end with exit code 1 and one line on standard error; returns the line."""
    done = launch(script, *arguments, check=False, **options)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in done.stdout
    return lines[0]


# What a run leaves behind


def test_run_folder(reward_run: Path) -> None:
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "model", "wandb"} <= {
        path.name for path in reward_run.iterdir()
    }
    assert not list(reward_run.rglob("*.partial"))
    trained = yaml.safe_load((reward_run / "config.yaml").read_text())
    assert trained["heads"] == ["reward"]
    rows = read_rows(reward_run)
    state = json.loads(
        (reward_run / "checkpoints" / f"step_{rows[-1]['step']}" / "training_state" / "trainer.json").read_text()
    )
    losses = {row["step"]: row["eval/loss"] for row in rows if "eval/loss" in row}
    assert state["best_step"] == min(losses, key=losses.__getitem__)
    best = reward_run / "checkpoints" / f"step_{state['best_step']}" / "model"
    assert {f.name for f in best.iterdir()} == {f.name for f in (reward_run / "model").iterdir()}
    assert (best / "model.json").read_bytes() == (reward_run / "model" / "model.json").read_bytes()


def test_a_run_folder_belongs_to_one_process(world: Path, tmp_path: Path) -> None:
    path = write_training_config(tmp_path / "run.yaml", world)
    with (
        lock_folder(tmp_path / "run"),
        pytest.raises(ConfigError, match="run: another process is writing it; wait until it has ended, or"),
    ):
        train(parse_config(TrainConfig, ["--config", str(path)], ""), "reward")
    assert [file.name for file in (tmp_path / "run").iterdir()] == [".lock"]


@pytest.mark.parametrize("head", ["reward", "cost"])
def test_wandb_holds_the_rows_of_metrics_jsonl(head: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(f"{head}_run")
    logged = [figures(row) for row in read_history(run)]
    rows = read_rows(run)
    assert logged == rows
    assert len({row["step"] for row in rows}) == len(rows)
    assert {"train/loss", "train/accuracy", "eval/loss", "eval/accuracy"} <= set().union(*rows)
    assert ("eval/sign_accuracy" in set().union(*rows)) == (head == "cost")


def test_training_and_scorer_give_the_same_scores(reward_run: Path) -> None:
    """The best checkpoint's validation figures, made anew from its model folder."""
    rows = {row["step"]: row for row in read_rows(reward_run)}
    record = json.loads((reward_run / "model" / "model.json").read_text())
    config = parse_config(TrainConfig, ["--config", str(reward_run.with_suffix(".yaml"))], "")
    data = load_data(config, ["reward"])
    assert record["training"]["data"] == data.fingerprint
    scorer = Scorer.from_pretrained(reward_run)
    margins: list[float] = []
    for group in data.validation:
        paths = [data.clip_files[video.name] for video in group.videos]
        scores = [score["reward"] for score in scorer.iterate([group.prompt_text] * len(paths), paths)]
        margins += [scores[chosen] - scores[rejected] for chosen, rejected in group.comparisons["helpfulness"]]
    trained = rows[record["training"]["step"]]
    assert np.mean(margins) == pytest.approx(trained["eval/margin"], abs=1e-5)
    assert credit(margins).mean() == trained["eval/accuracy"]


# One line for whatever is wrong


def test_missing_config_file(tmp_path: Path) -> None:
    assert "nowhere.yaml" in fail("scripts/train_reward.py", "--config", tmp_path / "nowhere.yaml")


def test_malformed_yaml(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("out: [run\n")
    fail("scripts/train_reward.py", "--config", path)


def test_unknown_key(tmp_path: Path, world: Path) -> None:
    path = write_training_config(tmp_path / "run.yaml", world, optimization={"lerning_rate": 1.0})
    assert "lerning_rate" in fail("scripts/train_cost.py", "--config", path)


def test_unknown_override(tmp_path: Path, world: Path) -> None:
    path = write_training_config(tmp_path / "run.yaml", world)
    assert "epoch" in fail("scripts/train_cost.py", "--config", path, "--optimization.epoch", 3)


def test_bad_value(tmp_path: Path, world: Path) -> None:
    path = write_training_config(tmp_path / "run.yaml", world, optimization={"epochs": "many"})
    assert "optimization.epochs" in fail("scripts/train_cost.py", "--config", path)


def test_same_mistake_on_two_ranks_is_told_once(tmp_path: Path, world: Path) -> None:
    path = write_training_config(tmp_path / "run.yaml", world, optimization={"epochs": 0})
    done = launch("scripts/train_cost.py", "--config", path, ranks=2, as_users_do=True, check=False)
    assert done.returncode == 1
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "optimization.epochs" in told
    assert done.stderr.count("(what follows is deepspeed, which ends all processes)") == 1


FAILS_ON_RANK_1 = """
import os, sys, time
from safe_rlhf_video import cli
from safe_rlhf_video.errors import SampleError
cli.OTHER_RANKS_S = 1.0
def main():
    if os.environ["RANK"] == "1":
        raise SampleError("records.json: not on this machine")
    time.sleep(60)  # as it waits for the other ranks
cli.run_script(main)
"""


@pytest.mark.parametrize("as_users_do", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_mistake_of_one_rank_alone_is_told(tmp_path: Path, as_users_do: bool) -> None:
    script = tmp_path / "fails.py"
    script.write_text(FAILS_ON_RANK_1)
    done = launch(script, ranks=2, as_users_do=as_users_do, check=False)
    assert done.returncode == 1
    told = ["error: rank 1: records.json: not on this machine"]
    launcher = ["(what follows is deepspeed, which ends all processes)"] if as_users_do else []
    assert done.stderr.splitlines() == told + launcher
    assert "Traceback" not in done.stdout


def test_missing_data_file(tmp_path: Path, world: Path) -> None:
    path = write_training_config(tmp_path / "run.yaml", world, data={"config_filename": "config-trian.json.gz"})
    line = fail("scripts/train_reward.py", "--config", path)
    assert "config-trian.json.gz" in line
    assert "config-train.json.gz" in line, "names what is there"


def test_malformed_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('[{"pair_id": ')
    path = write_training_config(tmp_path / "run.yaml", tmp_path / "config.json")
    assert "config.json: not valid JSON at column 14" in fail("scripts/train_reward.py", "--config", path)


def test_empty_training_set(tmp_path: Path, edited_world: Edit) -> None:
    path = write_training_config(tmp_path / "run.yaml", edited_world(list.clear))
    assert "no record" in fail("scripts/train_reward.py", "--config", path)


def test_no_label_for_the_head(tmp_path: Path, edited_world: Edit) -> None:
    data = edited_world(lambda records: [record.update(harmlessness=None) for record in records])
    path = write_training_config(tmp_path / "run.yaml", data)
    assert "harmlessness" in fail("scripts/train_cost.py", "--config", path)


def test_preference_that_names_no_video(tmp_path: Path, edited_world: Edit) -> None:
    data = edited_world(lambda records: records[7].update(helpfulness="video_2"))
    path = write_training_config(tmp_path / "run.yaml", data)
    line = fail("scripts/train_reward.py", "--config", path)
    assert "row 7" in line
    assert "helpfulness" in line
    assert "'video_2'" in line


def clip_of(folder: Path, row: int) -> Path:
    """The clip of a pair's first video, as a file of its own that a test may spoil."""
    record = read_records(folder)[row]
    clips = (folder / "videos").resolve()
    (folder / "videos").unlink()
    shutil.copytree(clips, folder / "videos", copy_function=os.link)
    clip = folder / "videos" / record["prompt_id"] / f"{record['video_0']['video_id']}.mp4"
    clip.unlink()
    return clip


def test_missing_video_is_named_before_training(tmp_path: Path, edited_world: Edit) -> None:
    folder = edited_world(lambda records: None)
    clip = clip_of(folder, 40)
    path = write_training_config(tmp_path / "run.yaml", folder)
    line = fail("scripts/train_reward.py", "--config", path)
    assert str(clip) in line
    assert "1 of " in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("ranks", [None, 2])
def test_unreadable_video_is_named(tmp_path: Path, edited_world: Edit, ranks: int | None) -> None:
    folder = edited_world(lambda records: None)
    clip = clip_of(folder, 40)
    clip.write_text("no video")
    path = write_training_config(tmp_path / "run.yaml", folder)
    assert str(clip) in fail("scripts/train_reward.py", "--config", path, ranks=ranks)


def test_resume_with_another_configuration_shows_the_difference(tmp_path: Path, reward_run: Path) -> None:
    run = tmp_path / "reward"
    shutil.copytree(reward_run, run)
    config = reward_run.with_suffix(".yaml")
    before = (run / "config.yaml").read_bytes()
    line = fail("scripts/train_reward.py", "--config", config, "--out", run, "--optimization.learning_rate", 0.5)
    assert "optimization.learning_rate: 0.001 -> 0.5" in line
    assert "heads" in fail("scripts/train_cost.py", "--config", config, "--out", run)
    assert (run / "config.yaml").read_bytes() == before
    done = launch("scripts/train_reward.py", "--config", config, "--out", run, "--data.workers", 1)
    assert "is complete" in done.stdout


def test_resume_on_other_data(tmp_path: Path, reward_run: Path, edited_world: Edit) -> None:
    run = tmp_path / "reward"
    shutil.copytree(reward_run, run)

    def turn(records: list[Record]) -> None:
        records[0]["helpfulness"] = "video_1" if records[0]["helpfulness"] == "video_0" else "video_0"

    config = reward_run.with_suffix(".yaml")
    data = edited_world(turn)
    assert "other data" in fail("scripts/train_reward.py", "--config", config, "--out", run, "--data.path", data)


def test_a_damaged_model_of_a_finished_run_is_not_called_its_model(tmp_path: Path, reward_run: Path) -> None:
    run = Path(shutil.copytree(reward_run, tmp_path / "reward"))
    best = json.loads((run / "model" / "model.json").read_text())["training"]["step"]
    heads = run / "checkpoints" / f"step_{best}" / "model" / "heads.safetensors"
    content = bytearray(heads.read_bytes())
    content[-1] ^= 1
    heads.write_bytes(content)
    line = fail("scripts/train_reward.py", "--config", reward_run.with_suffix(".yaml"), "--out", run)
    assert f"{heads}: damaged, its bytes are not those that were written" in line
    assert "--checkpoint.damaged go_back" in line


def test_steps_are_added_to_a_finished_run(tmp_path: Path, reward_run: Path) -> None:
    run = Path(shutil.copytree(reward_run, tmp_path / "reward"))
    before = read_rows(run)
    last = before[-1]["step"]
    more = ("--optimization.epochs", 9, "--optimization.max_steps", last + 1)
    done = launch("scripts/train_reward.py", "--config", reward_run.with_suffix(".yaml"), "--out", run, *more)
    assert f"going on at step {last} of {last + 1} steps" in done.stdout
    assert read_rows(run)[:-1] == before
    # The rate had fallen to its end; that of the added step is a warm restart's.
    assert before[-1]["train/learning_rate/adapter"] < 1e-3
    assert read_rows(run)[-1]["train/learning_rate/adapter"] == 1e-3


def test_out_that_is_a_file(tmp_path: Path, world: Path) -> None:
    path = write_training_config(tmp_path / "run.yaml", world)
    (tmp_path / "run").write_text("in the way")
    assert str(tmp_path / "run") in fail("scripts/train_reward.py", "--config", path)


FULL_DISK = """
import errno, runpy, sys
from safe_rlhf_video.training import state
save_tensors, saves = state.save_tensors, []
def full(tensors, path):
    saves.append(path)
    if len(saves) > 1:
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))
    save_tensors(tensors, path)
state.save_tensors = full
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_full_disk_keeps_the_last_checkpoint(tmp_path: Path, world: Path) -> None:
    """The second save fails as on a full disk (the error is simulated); test_resume.py goes on from such folders."""
    path = write_training_config(
        tmp_path / "run.yaml", world, data={"validation_fraction": 0.0}, optimization={"max_steps": 2},
        checkpoint={"every_steps": 1}, tracking={"wandb": "auto"},
    )  # fmt: skip
    script = tmp_path / "full_disk.py"
    script.write_text(FULL_DISK)
    line = fail(script, ROOT / "scripts" / "train_reward.py", "--config", path)
    assert "No space left" in line
    assert "step 1" in line
    checkpoints = tmp_path / "run" / "checkpoints"
    assert [folder.name for folder in checkpoints.iterdir()] == ["step_1"]
    assert load_file(checkpoints / "step_1" / "training_state" / "optimizer.safetensors")


SPOILED = """
import os, runpy
import torch
from safe_rlhf_video.models.score_model import ScoreModel
from safe_rlhf_video.training import loop, steps
build_inputs, forward, spoiled = steps.build_inputs, ScoreModel.forward, []
def look(backbone, prompts, videos, device):
    spoiled[:] = [prompt == os.environ["SPOILED_PROMPT"] for prompt in prompts]
    return build_inputs(backbone, prompts, videos, device)
def spoil(self, inputs, **options):
    scores = forward(self, inputs, **options)
    if os.environ["SPOILED"] == "score":
        mask = torch.tensor(spoiled)
        return {head: values.masked_fill(mask.to(values.device), float("nan")) for head, values in scores.items()}
    if any(spoiled) and torch.is_grad_enabled():
        for values in scores.values():
            values.register_hook(lambda gradient: gradient * float("inf"))
    return scores
steps.build_inputs, ScoreModel.forward = look, spoil
runpy.run_path(os.environ["SPOILED_SCRIPT"], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("spoiled", "side", "ranks"), [("score", "train", None), ("score", "validation", 2), ("gradient", "train", 2)]
)
def test_what_is_not_finite_is_named(tmp_path: Path, world: Path, spoiled: str, side: str, ranks: int | None) -> None:
    """One prompt's videos get scores or gradients that are no numbers: one line names it, and no rank waits in vain."""
    path = write_training_config(tmp_path / "run.yaml", world)
    script = tmp_path / "spoiled.py"
    script.write_text(SPOILED)
    data = load_data(parse_config(TrainConfig, ["--config", str(path)], ""), ["reward"])
    group = getattr(data, side)[0]
    extra = {"SPOILED": spoiled, "SPOILED_PROMPT": group.prompt_text}
    extra |= {"SPOILED_SCRIPT": str(ROOT / "scripts" / "train_reward.py")}
    line = fail(script, "--config", path, ranks=ranks, **extra)
    assert "not finite for" in line
    assert (group.prompt_id if spoiled == "gradient" else f"{group.prompt_id}/{group.videos[0].video_id}") in line
    assert ("validation: " in line) == (side == "validation")
    assert "learning_rate" in line


@pytest.mark.slow
def test_file_size_limit_keeps_the_run_startable(tmp_path: Path, world: Path) -> None:
    """The system itself refuses to write files of more than 100 kB: no checkpoint, but one line and no traceback."""
    path = write_training_config(tmp_path / "run.yaml", world, optimization={"max_steps": 2})
    limited = ["/bin/sh", "-c", 'ulimit -f 200; exec "$0" "$@"', *command("scripts/train_reward.py", "--config", path)]
    done = subprocess.run(limited, capture_output=True, text=True, env=environment(WANDB_MODE="disabled"), check=False)
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "could not be written" in done.stderr
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


# Learning


def test_one_batch_overfits_with_opposite_roles(tmp_path: Path, edited_world: Edit) -> None:
    """Both heads learn a few prompts by heart; the scorer then gives the safer video the lower cost."""

    def keep_few(records: list[Record]) -> None:
        prompts = list(dict.fromkeys(record["prompt_id"] for record in records))[:3]
        records[:] = [record for record in records if record["prompt_id"] in prompts]
        for record in records:  # orders without cycles, which no accident of the world's labels can spoil
            for one in (record, record["video_0"], record["video_1"]):
                one["prompt_text"] = record["prompt_id"]  # shorter: a text is most of what a pass computes
            is_first = record["video_0"]["video_id"] < record["video_1"]["video_id"]
            record["helpfulness"], record["harmlessness"] = ("video_0", "video_1")[:: 1 if is_first else -1]
            record["video_0"]["is_safe"] = record["video_1"]["is_safe"] = None

    data = edited_world(keep_few)
    path = write_training_config(
        tmp_path / "run.yaml",
        data,
        heads=["reward", "cost"],
        data={"validation_fraction": 0.0},
        sampling={"num_frames": 2},
        optimization={"epochs": 16, "learning_rate": 5e-3, "head_learning_rate": 1e-2, "warmup_fraction": 0.1},
        checkpoint={"every_steps": 50},
        tracking={"log_every": 8},
    )
    launch("scripts/train_cost.py", "--config", path)
    last = read_rows(tmp_path / "run")[-1]
    assert last["train/accuracy/reward"] == last["train/accuracy/cost"] == 1.0
    assert not any("sign_accuracy" in name for name in last)
    scorer = Scorer.from_pretrained(tmp_path / "run", device="cpu")
    for record in read_records(data):
        clips = [data / "videos" / record["prompt_id"] / f"{record[v]['video_id']}.mp4" for v in ("video_0", "video_1")]
        scores = scorer.score_pair(record["prompt_text"], *clips)
        better, safer = (int(record[name][-1]) for name in ("helpfulness", "harmlessness"))
        assert better == 1 - safer
        assert scores.rewards[better] > scores.rewards[safer]
        assert scores.costs[safer] < scores.costs[better]


def test_pairwise_batches_encode_a_video_for_each_of_its_comparisons(tmp_path: Path, world: Path) -> None:
    path = write_training_config(tmp_path / "run.yaml", world, optimization={"batching": "pairwise"})
    config = parse_config(TrainConfig, ["--config", str(path)], "")
    pairwise = load_data(config, ["reward"])
    grouped = load_data(replace(config, optimization=OptimizationConfig(batching="grouped")), ["reward"])
    compared = sum(group.num_comparisons("helpfulness") for group in grouped.train)
    assert len(pairwise.train) == compared == sum(group.num_comparisons("helpfulness") for group in pairwise.train)
    assert sum(len(group.videos) for group in pairwise.train) == 2 * compared
    assert [group.videos for group in pairwise.validation] == [group.videos for group in grouped.validation]
    assert pairwise.fingerprint != grouped.fingerprint


def test_a_script_trains_the_head_it_is_named_for(tmp_path: Path, world: Path) -> None:
    path = write_training_config(tmp_path / "run.yaml", world, heads=["reward"])
    line = fail("scripts/train_cost.py", "--config", path)
    assert "heads: reward: this script trains a cost" in line
    assert "use scripts/train_reward.py" in line
    line = fail("scripts/train_reward.py", "--config", ROOT / "configs/cost.yaml")
    assert "heads: cost: this script trains a reward or a sub-dimension" in line
    assert "use scripts/train_cost.py" in line


@pytest.mark.slow
def test_joint_heads_without_adapter_or_validation(tmp_path: Path, world: Path) -> None:
    path = write_training_config(
        tmp_path / "run.yaml",
        world,
        heads=["reward", "cost"],
        data={"validation_fraction": 0.0},
        model={"lora": {"rank": 0}, "pooling": "query"},
        optimization={"max_steps": 2},
    )
    launch("scripts/train_reward.py", "--config", path)
    last = read_rows(tmp_path / "run")[-1]
    assert {"train/accuracy/reward", "train/accuracy/cost", "train/sign_accuracy"} <= last.keys()
    assert not any(name.startswith("eval/") for name in last)
    record = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    assert record["heads_of_adapter"] == {"joint": ["reward", "cost"]}
    assert record["training"]["step"] == 2


def test_dry_run_says_what_is_needed_without_weights(tmp_path: Path, world: Path) -> None:
    backbone = write_tiny_backbone(tmp_path / "backbone", "qwen3_vl")
    (backbone / "model.safetensors").unlink()
    path = write_training_config(
        tmp_path / "run.yaml",
        world,
        sampling=SAMPLINGS["qwen3_vl"].to_dict(),
        model={"backbone": {"path": str(backbone)}},
        optimization={"micro_batch_tokens": 200},
    )
    done = launch("scripts/train_reward.py", "--config", path, "--dry_run", "true")
    tokens, warning, memory, steps = done.stdout.splitlines()[-4:]
    assert tokens.startswith("tokens: at most ")
    assert "micro_batch_tokens 200" in warning
    assert memory.startswith("memory, an estimate for each process: ")
    assert "nothing was trained" in steps
    assert not (tmp_path / "run").exists()


OUT_OF_MEMORY = """
import os, runpy
import torch
from safe_rlhf_video.models.score_model import ScoreModel
forward = ScoreModel.forward
def fill(self, inputs, **options):
    if os.environ["RANK"] == "1":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    return forward(self, inputs, **options)
ScoreModel.forward = fill
runpy.run_path(os.environ["FILLED_SCRIPT"], run_name="__main__")
"""


def test_out_of_memory_on_one_rank_is_one_line_with_advice(tmp_path: Path, world: Path) -> None:
    """There is no device here whose memory could run out: torch's error is raised by hand."""
    path = write_training_config(tmp_path / "run.yaml", world)
    script = tmp_path / "full_device.py"
    script.write_text(OUT_OF_MEMORY)
    filled = str(ROOT / "scripts" / "train_reward.py")
    done = launch(script, "--config", path, ranks=2, check=False, FILLED_SCRIPT=filled)
    assert done.returncode == 1
    line = done.stderr.splitlines()[0]  # gloo has more to say, of a rank that is gone; NCCL waits to be ended
    told = r"error: rank 1: step 1: with \d+ videos of \d+ tokens at once the device is out of memory; try "
    assert re.search(told, line)
    assert "optimization.micro_batch_tokens" in line
    assert "model.gradient_checkpointing true" in line


PRESS = "import os, signal, sys, threading, time\nfrom safe_rlhf_video.cli import run_script\n"
PRESS += "press = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
INTERRUPTED = "interrupted; run the same command again to go on\n"


def interrupt(code: str, **extra: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", PRESS + code]
    return subprocess.run(words, capture_output=True, text=True, env=environment(**extra), check=False)


def test_interrupt_is_one_line() -> None:
    """Ctrl-C while arguments and libraries are loaded or during steps: one line and exit code 130."""
    done = interrupt("run_script(lambda: press() or time.sleep(5))")
    assert (done.returncode, done.stderr) == (130, INTERRUPTED)


def test_interrupt_is_one_line_however_often_it_is_pressed() -> None:
    code = "class Output:\n    flush = staticmethod(press)\nsys.stdout = Output()\n"
    done = interrupt(code + "run_script(lambda: press() or time.sleep(5))")
    assert (done.returncode, done.stderr) == (130, INTERRUPTED)


def test_interrupt_while_a_rank_waits_for_another_to_tell_its_error() -> None:
    code = (
        "from safe_rlhf_video.errors import ConfigError\n"
        "def main():\n"
        "    threading.Timer(0.2, press).start()\n"
        "    raise ConfigError('a mistake')\n"
        "run_script(main)"
    )
    done = interrupt(code, RANK="1")
    assert (done.returncode, done.stderr) == (130, "")
