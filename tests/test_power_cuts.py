"""After a power cut, what is there is whole: checkpoints, stores, scores and small files."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import write_clip
from conftest import ROOT, environment
from power_cut import power_cuts

from safe_rlhf_video.files import whole_lines, write_whole
from safe_rlhf_video.responses import TextResponse
from safe_rlhf_video.scoring import score_parts
from safe_rlhf_video.scoring.devices import Shard
from safe_rlhf_video.scoring.score_files import score_to_file
from safe_rlhf_video.scoring.score_many import ScoreRequest
from safe_rlhf_video.scoring.score_parts import content_key, score_in_parts
from safe_rlhf_video.training.config import DataConfig, TrackingConfig, TrainConfig
from safe_rlhf_video.training.run_folder import find_start
from safe_rlhf_video.training.state import TrainerState, save_checkpoint, with_validation
from safe_rlhf_video.training.tracking import Tracker
from safe_rlhf_video.video.frame_store import FrameStore
from safe_rlhf_video.video.sampling import Sampling
from safe_rlhf_video.video.store_builder import ClipFile, build_store

SAMPLING = Sampling(num_frames=2, min_pixels=32 * 32, max_pixels=32 * 32)


def test_a_small_file_is_the_old_one_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, versions, seen = tmp_path / "root", [f"version {number}" * 9 for number in range(4)], set()
    root.mkdir()
    written: list[str] = []

    def check(image: Path) -> None:
        path = image / "new" / "folder" / "file"
        found = path.read_text() if path.exists() else None
        assert found in versions[max(len(written) - 1, 0) : len(written) + 1] or (found is None and not written)
        seen.add(found)

    with power_cuts(monkeypatch, root, tmp_path / "image", check, seed=1) as disk:
        for version in versions:
            write_whole(root / "new" / "folder" / "file", version)
            written.append(version)
    assert seen == {None, *versions}
    assert disk.num_cuts > 20


def save_model(step: int, folder: Path) -> None:
    (folder / "adapters" / "reward").mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps({"step": step}))
    (folder / "adapters" / "reward" / "adapter_model.safetensors").write_bytes(bytes([step]) * 999)


def check_model(folder: Path) -> None:
    """Between two renames it is not there."""
    if folder.exists():
        step = json.loads((folder / "model.json").read_text())["step"]
        weights = folder / "adapters" / "reward" / "adapter_model.safetensors"
        assert weights.read_bytes() == bytes([step]) * 999


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_goes_on_from_a_checkpoint_that_it_had_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    saved, num_steps = 0, 4
    config = TrainConfig("run", DataConfig("data.json"))

    def check(image: Path) -> None:
        said: list[str] = []
        state = find_start(image, config, "data", num_steps, said.append)  # refuses a damaged one
        assert state.step in (saved, saved + 1)
        if state.step:
            with Tracker(image, TrackingConfig(wandb="disabled"), {}, state.step, None):
                rows = [json.loads(line) for line in (image / "metrics.jsonl").read_text().splitlines()]
            assert [row["step"] for row in rows] == list(range(1, state.step + 1))
        check_model(image / "model")
        # What a cut left is in nobody's way.
        save_checkpoint(image, replace(state, step=num_steps + 1, best_step=num_steps + 1), {}, save_last, 1)

    def save_last(folder: Path) -> None:
        save_model(num_steps + 1, folder)

    state = TrainerState(0, "data", schedule_end=num_steps)
    with (
        power_cuts(monkeypatch, run, tmp_path / "image", check, seed=2, every=every) as disk,
        Tracker(run, TrackingConfig(wandb="disabled"), {}, 0, None) as tracker,
    ):
        for step, loss in enumerate((3.0, 1.0, 2.0, 0.5), start=1):
            state = with_validation(replace(state, step=step), loss)
            tracker.log(step, {"eval/loss": loss})
            tracker.flush()
            moments = {"exp_avg.x": torch.full((99,), float(step))}
            save_checkpoint(run, state, moments, lambda folder, step=step: save_model(step, folder), keep_last=1)
            saved = step
    assert disk.num_cuts > 200 / every


def test_a_store_has_the_frames_of_all_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [ClipFile(f"prompt/{n}", write_clip(tmp_path / f"{n}.mp4", 2, 32, 32, seed=n)) for n in range(8)]
    whole, store = tmp_path / "whole", tmp_path / "root" / "store"
    store.parent.mkdir()
    shard_bytes = 5 * 2 * 32 * 32 * 3
    build_store(whole, SAMPLING, clips, len(clips), shard_bytes=shard_bytes)
    is_built, num_rows = False, set()

    def check(image: Path) -> None:
        folder = image / "store"
        index = folder / "index.jsonl"
        if is_built:
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == of_whole
            return
        if not (folder / "store.json").exists():
            assert not index.exists() or not index.read_bytes()
            return
        with contextlib.suppress(FileNotFoundError):  # what the next build cuts off
            rows = whole_lines(index.read_bytes())
            index.write_bytes(rows)
            found = FrameStore.open(folder, SAMPLING)
            found.verify()
            num_rows.add(len(found))

    of_whole = {path.name: path.read_bytes() for path in whole.iterdir()}
    with power_cuts(monkeypatch, store.parent, tmp_path / "image", check, seed=3) as disk:
        build_store(store, SAMPLING, clips[:4], 4, shard_bytes=shard_bytes, num_workers=1)
        build_store(store, SAMPLING, clips, len(clips), shard_bytes=shard_bytes, num_workers=1)
        is_built = True
    assert disk.num_cuts > 20
    assert {0, 4} <= num_rows
    # And the next build ends as one without an interruption.
    shutil.rmtree(store)
    rng = random.Random(4)

    def go_on(image: Path) -> None:
        if (image / "store").exists() and rng.random() < 0.1:
            build_store(image / "store", SAMPLING, clips, len(clips), shard_bytes=shard_bytes, num_workers=1)
            assert {path.name: path.read_bytes() for path in (image / "store").iterdir()} == of_whole

    with power_cuts(monkeypatch, store.parent, tmp_path / "image", go_on, seed=5):
        build_store(store, SAMPLING, clips, len(clips), shard_bytes=shard_bytes, num_workers=1)


class CountingScorer:
    """Scores a text by its length."""

    fingerprint = "counting"

    def __init__(self, on_batch: Callable[[], None] = lambda: None) -> None:
        self.pool = self
        self._on_batch = on_batch

    def attempt(self, *_: object, **__: object) -> Iterator[None]:
        yield from ()

    def score_batch(self, prompts: Sequence[str], responses: Sequence[TextResponse]) -> dict[str, np.ndarray]:
        self._on_batch()
        return {"reward": np.array([float(len(one.text)) for one in responses])}


@pytest.mark.parametrize("into", ["parts", "file"])
def test_scores_are_right_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, into: str) -> None:
    monkeypatch.setattr(score_parts, "SYNC_S", 0.0)
    texts = [TextResponse("x" * number) for number in range(1, 13)]
    requests = [ScoreRequest(content_key("a", text), "a", text) for text in texts]
    expected = {request.key: {"reward": float(len(text.text))} for request, text in zip(requests, texts, strict=True)}

    def score(folder: Path, scorer: CountingScorer) -> object:
        if into == "file":
            return score_to_file(scorer, requests, folder / "scores.jsonl", 2)
        return score_in_parts(scorer, requests, folder / "parts", Shard(0, 1), 2)

    def check(image: Path) -> None:
        assert score(image, CountingScorer()) == expected

    root = tmp_path / "root"
    root.mkdir()
    with power_cuts(monkeypatch, root, tmp_path / "image", check, seed=6) as disk:
        score(root, CountingScorer(disk.before_change))
    assert disk.num_cuts > 6


@contextlib.contextmanager
def mounted(image: Path, folder: Path) -> Iterator[Path]:
    """A file system image, mounted; data are left in memory for half a minute, names for a second."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-o", "loop,commit=1", image, folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("needs the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_images_of_a_file_system_that_were_copied_in_mid_run(tmp_path: Path) -> None:
    """The writer stands still while its file system's image is copied, with all that had not reached it in memory."""
    image, copy, clips = tmp_path / "image", tmp_path / "copy", tmp_path / "clips"
    clips.mkdir()
    with image.open("wb") as file:
        file.truncate(256 << 20)
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("needs mkfs.ext4")
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    rng = random.Random(7)
    turns: list[int] = []
    with mounted(image, tmp_path / "disk") as disk:
        writer = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "image_writer.py", disk, clips],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment(),
        )  # fmt: skip
        assert writer.stdout is not None
        try:
            for number in range(10):
                turns.append(int(writer.stdout.readline()))
                time.sleep(rng.random() * 1.5)
                writer.send_signal(signal.SIGSTOP)
                shutil.copy(image, f"{copy}-{number}")
                writer.send_signal(signal.SIGCONT)
        finally:
            writer.kill()
            writer.communicate()
    for number, finished in enumerate(turns):
        with mounted(tmp_path / f"copy-{number}", tmp_path / "after") as disk:
            state = find_start(disk / "run", TrainConfig("run", DataConfig("data.json")), "data", 10**6, pytest.fail)
            assert state.step >= finished
            check_model(disk / "run" / "model")
            for turn in range(1, finished + 1):
                FrameStore.open(disk / f"store-{turn}", SAMPLING).verify()
                assert (disk / f"scores-{turn}.jsonl").read_text() == "scores\n" * turn
