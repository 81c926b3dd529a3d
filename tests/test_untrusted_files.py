"""Files that strangers may have written: bombs, pipes and nesting are one line each, in every reader."""

import gzip
import importlib.util
import itertools
import json
import lzma
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from conftest import launch, write_training_config
from hostile_clips import tricks_with_bait
from running_server import running_server
from small_models import one_line, write_model

from safe_rlhf_video import reading
from safe_rlhf_video.data.config_files import read_records
from safe_rlhf_video.data.sources.pku_saferlhf import read_rows as read_pku_rows
from safe_rlhf_video.data.sources.video_align import convert_csv
from safe_rlhf_video.errors import CheckpointError, SafeRLHFVideoError
from safe_rlhf_video.evaluation.results import read_evaluation
from safe_rlhf_video.lagrangian.multiplier import LagrangeMultiplier
from safe_rlhf_video.models.backbones import EMBEDDED_FOLDER, load_reader
from safe_rlhf_video.models.config import BackboneConfig
from safe_rlhf_video.models.folder import load_models
from safe_rlhf_video.models.record import read_record
from safe_rlhf_video.scoring.input_rows import read_rows
from safe_rlhf_video.worlds.truth import read_truth

Reader = Callable[[Path], Any]

# The name of a file, and what reads it.
DATA_FILES: tuple[tuple[str, Reader], ...] = (
    ("config.json", read_records),
    ("config.json.gz", read_records),
    ("rows.jsonl", read_rows),
    ("rows.parquet", read_rows),
    ("train.jsonl.gz", lambda path: list(read_pku_rows(path))),
    ("train.jsonl.xz", lambda path: list(read_pku_rows(path))),
    ("train.json.xz", lambda path: list(read_pku_rows(path))),
    ("pairs.csv", lambda path: convert_csv(path, path.parent)),
    ("truth.json.gz", read_truth),
)
SETTINGS_FILES: tuple[tuple[str, Reader], ...] = (
    ("evaluation.json", read_evaluation),
    ("multiplier.json", LagrangeMultiplier.load),
    ("model.json", lambda path: read_record(path.parent)),
)


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    """A reader that waits for a pipe fails, and does not hang."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("a reader waits for a pipe"))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(("name", "read"), DATA_FILES, ids=[name for name, _ in DATA_FILES])
def test_a_file_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, read: Reader
) -> None:
    monkeypatch.setattr(reading, "MAX_DATA_BYTES", 1 << 20)
    path = tmp_path / name
    content = b'["' + bytes([97]) * (2 << 20) + b'"]\n'
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a" * 1000] * 2000, "videos": [["b"]] * 2000}), path)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(content))
    elif name.endswith(".xz"):
        path.write_bytes(lzma.compress(content))
    else:
        path.write_bytes(content)
    if name.endswith((".gz", ".xz", ".parquet")):
        assert path.stat().st_size < 20_000
    with one_line(SafeRLHFVideoError, f"{path}: ", "GiB when unpacked, split it"):
        read(path)
    if name.endswith(".parquet"):  # no bomb where the values are as many as the bytes say
        pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"] * 99, "videos": [["b"]] * 99}), path)
        assert len(read_rows(path)[0]) == 99


@pytest.mark.parametrize(
    ("name", "read"), DATA_FILES + SETTINGS_FILES, ids=[name for name, _ in DATA_FILES + SETTINGS_FILES]
)
def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(tmp_path: Path, name: str, read: Reader) -> None:
    os.mkfifo(tmp_path / name)
    with one_line(SafeRLHFVideoError, name):
        read(tmp_path / name)


@pytest.mark.parametrize(("name", "read"), SETTINGS_FILES, ids=[name for name, _ in SETTINGS_FILES])
def test_nesting_too_deep_is_one_line(tmp_path: Path, name: str, read: Reader) -> None:
    (tmp_path / name).write_text("[" * 100_000)
    with one_line(SafeRLHFVideoError, name):
        read(tmp_path / name)


def test_a_pipe_or_a_huge_file_in_a_model_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_model(tmp_path / "reward")
    inside = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    assert len(inside) >= 4
    for place, name in enumerate(inside):
        folder = tmp_path / f"reward_{place}"
        shutil.copytree(whole, folder)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with one_line(CheckpointError, f"{name}: is no regular file"):
            load_models([folder])
    backbone = tmp_path / "backbone"
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        shutil.copytree(EMBEDDED_FOLDER, backbone)
        (backbone / name).unlink()
        os.mkfifo(backbone / name)
        with one_line(CheckpointError, f"{backbone / name}: is no regular file"):
            load_reader(BackboneConfig(path=str(backbone)))
        shutil.rmtree(backbone)
    monkeypatch.setattr(reading, "MAX_SETTINGS_BYTES", 100)
    with one_line(CheckpointError, "bytes, at most 100 are read"):
        load_models([whole])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who opens a file")
def test_no_command_has_a_clip_open_another_file(tmp_path: Path) -> None:
    signal.alarm(0)
    model, data = write_model(tmp_path / "reward"), tmp_path / "data"
    with tricks_with_bait(tmp_path) as (tricks, check):
        rows, out = tmp_path / "rows.jsonl", tmp_path / "scores.jsonl"
        rows.write_text("".join(json.dumps({"prompt": "a film", "video": str(path)}) + "\n" for path in tricks))
        arguments = ["--model", model, "--input", rows, "--out", out, "--bad_rows", "drop"]
        assert launch("scripts/score.py", *arguments, check=False).returncode == 2
        check("score.py")
        outcomes = [line for path in (out, Path(f"{out}.bad.jsonl")) for line in path.read_text().splitlines()]
        assert len(outcomes) == len(tricks)

        # As a data set, in which every clip is an .mp4.
        whole = [{"video_id": str(number), "video_path": f"videos/p/{number}.mp4"} for number in range(len(tricks))]
        for video, path in zip(whole, tricks, strict=True):
            target = data / video["video_path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        prompt = {"prompt_id": "p", "prompt_text": "a film", "prompt_type": None}
        records = [{**prompt, "pair_id": str(row), "video_0": {**prompt, **one}, "video_1": {**prompt, **other},
                    "helpfulness": "video_0", "harmlessness": None}
                   for row, (one, other) in enumerate(itertools.pairwise(whole))]  # fmt: skip
        listing = data / "config-train.json.gz"
        listing.write_bytes(gzip.compress(json.dumps(records).encode()))
        for backend in ("pyav", "decord") if importlib.util.find_spec("decord") else ("pyav",):
            arguments = ["--data", listing, "--out", tmp_path / backend, "--num_frames", 4, "--backend", backend]
            stored = launch("scripts/prepare_videos.py", *arguments)
            check(f"prepare_videos.py with {backend}")
            assert f"{len(tricks)} clips" in stored.stdout
        config = write_training_config(tmp_path / "run.yaml", data, data={"validation_fraction": 0.0})
        trained = launch("scripts/train_reward.py", "--config", config, check=False)
        check("train_reward.py")
        assert trained.returncode == 1
        assert trained.stderr.startswith("error: ")

        with running_server(tmp_path, "--model", model, "--video_root", tmp_path) as server:
            for path in tricks:
                by_path = {"prompt": "a film", "video": {"path": str(path.relative_to(tmp_path))}}
                answers = [server.upload("/score", [("prompt", "a film"), ("video", path)]),
                           server.post("/score", by_path)]  # fmt: skip
                check(path)
                assert {answer.status for answer in answers} <= {200, 400}, path


def test_json_is_read_as_before(tmp_path: Path) -> None:
    path = tmp_path / "config.json.gz"
    path.write_bytes(gzip.compress(json.dumps([{"a": 1}]).encode()))
    assert read_records(path) == [{"a": 1}]
    path.write_bytes(path.read_bytes()[:-4])
    with one_line(SafeRLHFVideoError, "not a whole gzip file"):
        read_records(path)
