"""What a run can be trained on besides loose clips: texts, texts and clips together, ties, a frame store."""

from __future__ import annotations

import gzip
import json
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Record, command, environment, launch, read_records, read_rows, write_training_config

from safe_rlhf_video.config_parser import parse_config
from safe_rlhf_video.errors import ConfigError, SampleError, VideoDecodeError
from safe_rlhf_video.responses import TextResponse
from safe_rlhf_video.scoring.scorer import Scorer
from safe_rlhf_video.training.config import TrainConfig
from safe_rlhf_video.training.data import load_data

SHORT: dict[str, Any] = {"optimization": {"epochs": 1, "prompts_per_step": 8}, "checkpoint": {"every_steps": 0}}
SHORTEST = SHORT | {"optimization": SHORT["optimization"] | {"max_steps": 1}}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config made of rows in PKU-SafeRLHF's form."""
    folder = tmp_path_factory.mktemp("texts")
    launch("scripts/make_synthetic_text.py", "--out", folder, "--num_pairs", 24, "--num_test_pairs", 4)
    config = folder / "config.json.gz"
    launch("scripts/convert.py", "saferlhf", "--input", folder / "train.jsonl", "--out", config)
    return config


@pytest.fixture(scope="module")
def store(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frame store of the world's training clips, with the sampling of `write_training_config`."""
    folder = tmp_path_factory.mktemp("store")
    config = write_training_config(folder / "run.yaml", world)
    launch("scripts/prepare_videos.py", "--config", config, "--out", folder / "store")
    return folder / "store"


def sources(kind: str, world: Path, texts: Path) -> dict[str, Any]:
    video = str(world / "config-train.json.gz")
    return {"path": {"text": str(texts), "video": video, "mixed": [video, str(texts)]}[kind]}


def validation_losses(run: Path) -> list[float]:
    return [row["eval/loss"] for row in read_rows(run) if "eval/loss" in row]


def load(config: Path, *heads: str) -> Any:
    return load_data(parse_config(TrainConfig, ["--config", str(config)], ""), heads)


def test_texts_and_clips_in_one_run_on_two_ranks(world: Path, texts: Path, tmp_path: Path) -> None:
    config = write_training_config(tmp_path / "run.yaml", world, data=sources("mixed", world, texts), **SHORTEST)
    printed = launch("scripts/train_cost.py", "--config", config, ranks=2).stdout
    assert "videos and" in printed
    assert "texts for" in printed
    with Scorer.from_pretrained(tmp_path / "run") as scorer:
        safe, other = (scorer.score("a red circle", TextResponse(text)) for text in ("a red circle.", "a blue square."))
    assert safe["cost"] != other["cost"]


@pytest.mark.parametrize("is_safe", [True, False, None])
def test_the_zero_of_a_cost_is_learned_from_both_classes(
    edited_world: Callable[[Callable[[list[Record]], Any]], Path], tmp_path: Path, is_safe: bool | None
) -> None:
    def change(records: list[Record]) -> None:
        for record in records:
            record["video_0"]["is_safe"] = record["video_1"]["is_safe"] = is_safe

    data = edited_world(change)
    without = write_training_config(tmp_path / "without.yaml", data, loss={"sign": 0.0})
    means_nothing = "not where zero is, so is_safe of its scores means nothing"
    assert any(means_nothing in note for note in load(without, "cost").notes)
    config = write_training_config(tmp_path / "run.yaml", data)
    if is_safe is None:
        assert any(means_nothing in note for note in load(config, "cost").notes)
    else:
        with pytest.raises(SampleError, match=f"add {'unsafe' if is_safe else 'safe'} clips, or set loss.sign to 0"):
            load(config, "cost")
    assert not any(means_nothing in note for note in load(config, "reward").notes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "video", "mixed"])
def test_sources_x_zero_x_ranks(kind: str, world: Path, texts: Path, tmp_path: Path) -> None:
    """Every combination trains, and to the same validation loss, since the plan does not depend on them."""
    losses = {}
    for zero_stage in (0, 2):
        for ranks in (1, 2):
            path = tmp_path / f"{zero_stage}-{ranks}.yaml"
            engine = {"zero_stage": zero_stage}
            write_training_config(path, world, data=sources(kind, world, texts), engine=engine, **SHORT)
            launch("scripts/train_cost.py", "--config", path, ranks=ranks)
            losses[zero_stage, ranks] = validation_losses(path.with_suffix(""))
    reference = losses[0, 1]
    assert reference
    for case, found in losses.items():
        assert found == pytest.approx(reference, rel=1e-4), case


@pytest.mark.slow
def test_a_cost_learns_its_zero_from_text(tmp_path: Path) -> None:
    """The commands in the header of configs/text.yaml."""
    launch("scripts/make_synthetic_text.py", "--out", tmp_path, "--num_pairs", 2000, "--num_test_pairs", 600)
    configs = {split: tmp_path / f"config-{split}.json.gz" for split in ("train", "test")}
    for split, config in configs.items():
        launch("scripts/convert.py", "saferlhf", "--input", tmp_path / f"{split}.jsonl", "--out", config)
    run = tmp_path / "cost"
    overrides = ("--out", run, "--data.path", configs["train"])
    launch("scripts/train_cost.py", "--config", ROOT / "configs/text.yaml", *overrides)
    launch("scripts/evaluate.py", "--model", run, "--data", configs["test"], "--train_data", configs["train"],
           "--out", tmp_path)  # fmt: skip
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["cost_sign"]["balanced_accuracy"] >= 0.95
    assert result["controls"]["prompt_only"]["cost_sign"] < 0.75


def test_a_run_from_the_store_equals_one_that_decodes(
    world: Path, store: Path, reward_run: Path, tmp_path: Path
) -> None:
    path = write_training_config(tmp_path / "run.yaml", world, data={"frame_store": str(store)})
    # Where the clips do not lie: nothing may be decoded.
    config = world / "config-train.json.gz"
    printed = launch(
        "scripts/train_reward.py", "--config", path, "--data.path", config, "--data.video_dir", tmp_path / "nowhere"
    ).stdout
    assert f"clips are read from the frame store {store}, none is decoded" in printed
    timing = ("train/videos_per_second", "train/tokens_per_second")
    rows = [[{k: v for k, v in row.items() if k not in timing} for row in read_rows(run)]
            for run in (tmp_path / "run", reward_run)]  # fmt: skip
    assert rows[0] == rows[1]


def test_a_store_of_another_sampling_or_lacking_clips_is_refused(
    world: Path, store: Path, edited_world: Callable[[Callable[[list[Record]], Any]], Path], tmp_path: Path
) -> None:
    other = write_training_config(
        tmp_path / "other.yaml", world, data={"frame_store": str(store)}, sampling={"num_frames": 2}
    )
    with pytest.raises(ConfigError, match="num_frames"):
        load(other, "reward")

    def rename(records: list[Record]) -> None:
        records[0]["video_0"] = {**records[0]["video_0"], "video_id": "new"}

    more = write_training_config(tmp_path / "more.yaml", edited_world(rename), data={"frame_store": str(store)})
    with pytest.raises(VideoDecodeError, match=r"lacks the clip \w+/new, 1 of"):
        load(more, "reward")


def test_comparisons_of_quarantined_clips_are_refused_or_dropped_and_counted(
    world: Path, edited_world: Callable[[Callable[[list[Record]], Any]], Path], tmp_path: Path
) -> None:
    bad: dict[str, str] = {}

    def break_one(records: list[Record]) -> None:
        video = records[0]["video_0"]
        bad.update(name=f"{video['prompt_id']}/{video['video_id']}", video_id=video["video_id"])
        for one in (record[side] for record in records for side in ("video_0", "video_1")):
            one["is_safe"] = one["video_id"] != bad["video_id"]

    folder = edited_world(break_one)
    (folder / "videos").unlink()
    for clip in (world / "videos").glob("*/*.mp4"):
        link = folder / "videos" / clip.parent.name / clip.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.hardlink_to(clip)
    broken = folder / "videos" / f"{bad['name']}.mp4"
    content = broken.read_bytes()
    broken.unlink()
    broken.write_bytes(content[: len(content) // 2])
    path = write_training_config(tmp_path / "run.yaml", folder, data={"frame_store": str(tmp_path / "store")})
    prepared = launch("scripts/prepare_videos.py", "--config", path, "--out", tmp_path / "store")
    (row,) = [json.loads(line) for line in (tmp_path / "store" / "quarantine.jsonl").read_text().splitlines()]
    assert row["name"] == bad["name"]
    records = read_records(folder)
    lost = sum(bad["video_id"] in (record[side]["video_id"] for side in ("video_0", "video_1")) for record in records)
    expected = f"{lost} of {len(records)} helpfulness"
    assert expected in prepared.stdout
    with pytest.raises(
        VideoDecodeError, match=rf"1 of its clips cannot be read, which costs {expected}.*{bad['name']}"
    ):
        load(path, "reward")
    path = write_training_config(
        tmp_path / "drop.yaml", folder, data={"frame_store": str(tmp_path / "store"), "unreadable": "drop"}
    )
    data = load(path, "reward")
    assert any(expected in note for note in data.notes)
    kept = [video.name for group in (*data.train, *data.validation) for video in group.videos]
    assert bad["name"] not in kept
    total = sum(group.num_comparisons("helpfulness") for group in (*data.train, *data.validation))
    assert total == len(records) - lost
    # It is the only unsafe clip.
    config = parse_config(TrainConfig, ["--config", str(path), "--data.validation_fraction", "0"], "")
    with pytest.raises(SampleError, match="add unsafe clips, or set loss"):
        load_data(config, ["cost"])


def test_data_are_known_by_their_clips(world: Path, store: Path, tmp_path: Path) -> None:
    """Not by their names alone: a run does not go on with other clips of the same names."""
    other = Path(shutil.copytree(world, tmp_path / "other"))
    configs = [write_training_config(tmp_path / f"{folder.name}.yaml", folder) for folder in (world, other)]
    stored = write_training_config(tmp_path / "stored.yaml", world, data={"frame_store": str(store)})
    fingerprint = load(configs[0], "reward").fingerprint
    assert load(configs[1], "reward").fingerprint == fingerprint
    assert load(stored, "reward").fingerprint == fingerprint
    clips = sorted((other / "videos").rglob("*.mp4"))
    contents = [clip.read_bytes() for clip in clips]
    for clip, content in zip(clips, contents[1:] + contents[:1], strict=True):
        clip.write_bytes(content)
    assert load(configs[1], "reward").fingerprint != fingerprint
    # Not by their sizes alone either.
    for clip, content in zip(clips, contents, strict=True):
        clip.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert load(configs[1], "reward").fingerprint != fingerprint


def test_dropping_without_a_store_is_refused(world: Path, tmp_path: Path) -> None:
    path = write_training_config(tmp_path / "run.yaml", world, data={"unreadable": "drop"})
    with pytest.raises(ConfigError, match=r"data\.frame_store"):
        load(path, "reward")


def test_ties_train_by_rao_kupper_or_are_left_out(
    edited_world: Callable[[Callable[[list[Record]], Any]], Path], tmp_path: Path
) -> None:
    def tie(records: list[Record]) -> None:
        for record in records[::3]:
            record["helpfulness"] = "tie"

    folder = edited_world(tie)
    left_out = load(write_training_config(tmp_path / "out.yaml", folder), "reward")
    assert any("20 comparisons are ties in helpfulness and are not used" in note for note in left_out.notes)
    path = write_training_config(tmp_path / "run.yaml", folder, loss={"ties": "rao_kupper"}, **SHORTEST)
    used = load(path, "reward")
    ties = sum(len(group.ties["helpfulness"]) for group in (*used.train, *used.validation))
    assert ties == 20
    assert used.fingerprint != left_out.fingerprint
    printed = launch("scripts/train_reward.py", "--config", path).stdout
    assert "20 comparisons are ties in helpfulness and train the ties loss" in printed


def test_configs_that_contradict_each_other_are_refused(
    world: Path, texts: Path, edited_world: Callable[[Callable[[list[Record]], Any]], Path], tmp_path: Path
) -> None:
    def read(*paths: Path) -> Any:
        data = {"path": [str(path) for path in paths]}
        return load(write_training_config(tmp_path / "run.yaml", world, data=data), "reward")

    with pytest.raises(SampleError, match=r"field pair_id: .* is in an earlier config too"):
        read(texts, texts)

    def other_ids(records: list[Record]) -> None:
        for record in records:
            record["pair_id"] += "-again"

    own, copy = world / "config-train.json.gz", edited_world(other_ids)
    (copy / "videos").unlink()
    for clip in sorted((world / "videos").glob("*/*.mp4")):
        target = copy / "videos" / clip.parent.name / clip.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, target)
    assert len(read(own, copy / "config-train.json.gz").clip_files) == 72  # the same bytes
    target = min(path for path in (copy / "videos").glob("*/*.mp4") if path.name != clip.name)
    shutil.copy(clip, target)
    with pytest.raises(SampleError, match=rf"video \w+/{target.stem}: is another clip or text than in"):
        read(own, copy / "config-train.json.gz")


def test_clips_that_changed_since_they_were_prepared_are_told(
    world: Path, store: Path, edited_world: Callable[[Callable[[list[Record]], Any]], Path], tmp_path: Path
) -> None:
    folder = edited_world(lambda records: None)
    (folder / "videos").unlink()
    shutil.copytree(world / "videos", folder / "videos")
    path = write_training_config(tmp_path / "run.yaml", folder, data={"frame_store": str(store)})
    name = load(path, "reward").train[0].videos[0].name
    clip = folder / "videos" / f"{name}.mp4"
    clip.write_bytes(clip.read_bytes() + bytes(8))
    with pytest.raises(VideoDecodeError, match=rf"{name}\.mp4: is not the file whose frames .* so for 1 of 72 clips"):
        load(path, "reward")


@pytest.mark.slow
def test_ranks_with_other_data_do_not_train(
    world: Path, edited_world: Callable[[Callable[[list[Record]], Any]], Path], tmp_path: Path
) -> None:
    worlds = (world, edited_world(lambda records: records.pop()))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = []
    for rank, folder in enumerate(worlds):
        config = write_training_config(tmp_path / f"{rank}.yaml", folder)
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        processes.append(
            subprocess.Popen(
                command("scripts/train_reward.py", "--config", config, "--out", tmp_path / "run"),
                env=environment(**ranks, MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    printed = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert "error: rank 1 has other data than rank 0" in printed[0]
    assert not (tmp_path / "run" / "model").exists()


def test_a_text_that_is_too_long_is_told_before_the_first_step(texts: Path, tmp_path: Path) -> None:
    records = json.loads(gzip.decompress(texts.read_bytes()))
    records[7]["video_1"]["response_text"] = "a red circle. " * 2000
    config = tmp_path / "long.json"
    config.write_text(json.dumps(records))
    path = write_training_config(tmp_path / "run.yaml", tmp_path, data={"path": str(config)})
    done = launch("scripts/train_cost.py", "--config", path, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    name = f"{records[7]['prompt_id']}/{records[7]['video_1']['video_id']}"
    assert f"responses longer than the backbone takes (4096 tokens): 1, {name}" in line
    assert "step 1" not in done.stdout


def test_evaluation_reads_the_store_and_counts_what_it_lacks(world: Path, reward_run: Path, tmp_path: Path) -> None:
    config = tmp_path / "config-test.json"
    records = read_records(world, "test")
    config.write_text(json.dumps(records))
    shutil.copytree(world / "videos", tmp_path / "videos")
    sampling = ("--num_frames", 4, "--min_pixels", 1024, "--max_pixels", 1024, "--size_multiple", 8)
    evaluate = ("scripts/evaluate.py", "--model", reward_run, "--data", config, "--frame_store", tmp_path / "store")
    launch("scripts/prepare_videos.py", "--data", config, "--out", tmp_path / "store", *sampling)
    launch("scripts/evaluate.py", "--model", reward_run, "--data", config, "--out", tmp_path / "decoded")
    printed = launch(*evaluate, "--out", tmp_path / "stored").stdout
    assert "clips are read from the frame store" in printed
    scores = [(tmp_path / name / "scores.jsonl").read_text() for name in ("decoded", "stored")]
    assert scores[0] == scores[1]

    video = records[0]["video_0"]
    lost = sum(video["video_id"] in (record[side]["video_id"] for side in ("video_0", "video_1")) for record in records)
    (tmp_path / "videos" / video["prompt_id"] / f"{video['video_id']}.mp4").write_text("no video")
    shutil.rmtree(tmp_path / "store")
    launch("scripts/prepare_videos.py", "--data", config, "--out", tmp_path / "store", *sampling)
    refused = launch(*evaluate, "--out", tmp_path / "refused", check=False)
    assert refused.returncode == 1
    assert f"1 clips are in its quarantine, with {lost} of {len(records)} comparisons" in refused.stderr
    dropped = launch(*evaluate, "--out", tmp_path / "dropped", "--unreadable", "drop").stdout
    assert f"with {lost} of {len(records)} comparisons, which are left out" in dropped
    result = json.loads((tmp_path / "dropped" / "evaluation.json").read_text())
    assert result["helpfulness"]["num_comparisons"] == len(records) - lost
