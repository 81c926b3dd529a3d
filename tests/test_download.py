"""Fetching SafeSora from a stub hub: whole, after cuts and kills, and every refusal in one line."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, command, environment
from safesora_records import make_prompt_record, make_video_record
from stub_hub import COMMIT, StubHub

from safe_rlhf_video import PairDataset
from safe_rlhf_video.video.sampling import Sampling

SCRIPT = "scripts/download_safesora.py"
PAIRS, LABEL, EVAL = "PKU-Alignment/SafeSora", "PKU-Alignment/SafeSora-Label", "PKU-Alignment/SafeSora-Eval"
CHUNK_BYTES = 10 * 2**20  # what huggingface_hub gathers before it writes
MB = 2**20


def pair(number: int) -> dict[str, Any]:
    prompt = {"prompt_id": f"p{number}", "prompt_text": "a kite", "prompt_type": "safety_neutral"}
    videos = {
        f"video_{side}": {**prompt, "video_id": f"v{side}", "video_path": f"videos/p{number}/v{side}.mp4"}
        for side in range(2)
    }
    return {"pair_id": str(number), **prompt, **videos, "helpfulness": "video_0", "harmlessness": None}


@cache
def archive(clip_bytes: int) -> bytes:
    """An archive of a text and six clips that do not compress."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for number in range(6):
            info = tarfile.TarInfo(f"videos/p{number // 2}/v{number % 2}.mp4")
            info.size = clip_bytes
            tar.addfile(info, io.BytesIO(random.Random(number).randbytes(clip_bytes)))
        tar.addfile(tarfile.TarInfo("videos/README"))
    return buffer.getvalue()


CONFIG = gzip.compress(json.dumps([pair(number) for number in range(3)]).encode(), mtime=0)
LABELS = gzip.compress(json.dumps([make_video_record("p0", f"v{side}") for side in range(2)]).encode(), mtime=0)
SMALL_VIDEOS = archive(50_000)
FILES = {
    PAIRS: {".gitattributes": b"", "README.md": b"# SafeSora", "config-train.json.gz": CONFIG,
            "config-test.json.gz": CONFIG, "videos.tar.gz": SMALL_VIDEOS},
    LABEL: {"config-train.json.gz": LABELS, "videos.tar.gz": SMALL_VIDEOS},
    EVAL: {"README.md": b"# Eval", "data/config.json": json.dumps([make_prompt_record()]).encode()},
}  # fmt: skip


@pytest.fixture
def hub() -> Iterator[StubHub]:
    with StubHub({name: dict(files) for name, files in FILES.items()}) as hub:
        yield hub


def hub_environment(hub: StubHub, folder: Path, **extra: str) -> dict[str, str]:
    fixed = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "home"), "HF_TOKEN": "secret-token"}
    return environment(**(fixed | extra))


def download(
    hub: StubHub, folder: Path, *arguments: object, code: int = 0, out: Path | None = None, **extra: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(SCRIPT, "--out", out or folder / "data", *arguments),
        capture_output=True,
        text=True,
        env=hub_environment(hub, folder, **extra),
        timeout=60,
        check=False,
    )
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    assert "secret-token" not in done.stdout + done.stderr
    return done


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of an error; bars may stand before it."""
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.strip() and "B/s" not in line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_corpus_arrives_whole(hub: StubHub, tmp_path: Path) -> None:
    done = download(hub, tmp_path, "--corpus", "pairs", "--extract")
    assert done.stdout.startswith("SafeSora is licensed under CC BY-NC 4.0")
    assert "non-commercial" in done.stdout.split(PAIRS)[0]
    assert "deepspeed scripts/train_reward.py" in done.stdout
    assert "prepare_videos" not in done.stdout
    assert "1 members are no clips and were passed over, the first is 'videos/README'" in done.stdout
    data = tmp_path / "data"
    files = {name: content for name, content in FILES[PAIRS].items() if name != ".gitattributes"}
    assert {name: content for name, content in contents(data).items() if not name.startswith("videos/")} == files
    dataset = PairDataset.load(data, "config-train.json.gz")
    assert len(dataset) == 3
    assert all(dataset.video_file(video).stat().st_size == 50_000 for video in dataset.videos)
    assert {request.token for request in hub.requests} == {"Bearer secret-token"}

    hub.requests.clear()
    again = download(hub, tmp_path, "--corpus", "pairs", "--extract")
    assert len(hub.requests) == 1  # the list of files: what is whole is not fetched again
    assert "0 clips unpacked, 6 were there already" in again.stdout

    label = download(hub, tmp_path / "label", "--corpus", "label", "--no_videos")
    assert contents(tmp_path / "label" / "data") == {"config-train.json.gz": LABELS}
    assert f"the same file in {PAIRS} and {LABEL}" in label.stdout
    eval_ = download(hub, tmp_path / "eval", "--corpus", "eval", "--revision", COMMIT)
    assert contents(tmp_path / "eval" / "data") == FILES[EVAL]
    for printed, count, video_dir in ((label.stdout, 2, "SafeSora/videos"), (eval_.stdout, 1, None)):
        lines = [line.strip() for line in printed.partition("Next:")[2].splitlines() if line.startswith("    ")]
        assert (f'video_dir="{video_dir}"' in lines[-1]) == (video_dir is not None)
        program = "; ".join([*lines, "print(len(data))"])
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
        assert ran.stdout == f"{count}\n"


def test_next_commands_fit_the_configs(hub: StubHub, tmp_path: Path) -> None:
    printed = download(hub, tmp_path, "--corpus", "pairs").stdout.partition("Next:")[2].splitlines()
    prepare, train = [line.split() for line in printed if line]
    assert prepare[:2] == ["python", "scripts/prepare_videos.py"]
    assert prepare[-2] == "--max_pixels"
    assert train[1:4] == ["scripts/train_reward.py", "--config", "configs/joint.yaml"]
    assert train[-1] == prepare[prepare.index("--out") + 1]
    for name in ("joint", "reward", "cost"):
        config = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
        assert Sampling(**config["sampling"]) == Sampling(max_pixels=int(prepare[-1]))


def test_cut_connections_and_kills_lose_nothing(hub: StubHub, tmp_path: Path) -> None:
    videos = archive(6 * MB)
    hub.repositories[PAIRS]["videos.tar.gz"] = videos
    # Cut twice: the first time the hub comes back at once, the second time it stays away.
    hub.cut_after["videos.tar.gz"] = [CHUNK_BYTES + 5 * MB]
    hub.fail_after_cut = (503, "")
    message = complaint(download(hub, tmp_path, "--corpus", "pairs", code=1))
    assert "status 503" in message
    assert "what has arrived is kept" in message
    (partial,) = (tmp_path / "data").glob(".videos.tar.gz.*.partial")
    first = partial.stat().st_size
    assert first >= CHUNK_BYTES

    hub.fail_with = hub.fail_after_cut = None
    hub.requests.clear()
    hub.bytes_per_s = 12 * MB
    with subprocess.Popen(
        command(SCRIPT, "--out", tmp_path / "data", "--corpus", "pairs"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=hub_environment(hub, tmp_path),
    ) as process:
        deadline = time.monotonic() + 30
        while partial.stat().st_size <= first and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    second = partial.stat().st_size
    assert first < second < len(videos)
    assert hub.starts("videos.tar.gz")[0] == first

    hub.bytes_per_s = None
    hub.requests.clear()
    hub.cut_after["videos.tar.gz"] = [second + 1 * MB]
    done = download(hub, tmp_path, "--corpus", "pairs")
    # Redirected each time: twice the same place, then once more after the cut, which needed no new command.
    assert hub.starts("videos.tar.gz") == [second, second, second, second]
    assert hub.starts("config-train.json.gz") == []
    assert "have arrived" in done.stdout
    assert (tmp_path / "data" / "videos.tar.gz").read_bytes() == videos
    assert not list((tmp_path / "data").glob(".*"))


def test_other_files_are_left_alone_and_damaged_ones_not_kept(hub: StubHub, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    damaged = bytearray(SMALL_VIDEOS)
    damaged[1000] ^= 1
    for name, content in (("videos.tar.gz", bytes(damaged)), ("config-train.json.gz", b"of another corpus")):
        (data / name).write_bytes(content)
        message = complaint(download(hub, tmp_path, "--corpus", "label", code=1))
        assert f"{data / name}: is damaged, or of another corpus" in message
        assert contents(data) == {name: content}
        (data / name).unlink()

    # Partial files: of another revision, and one that is not the beginning of what the hub has.
    (data / ".videos.tar.gz.0123456789ab.partial").write_bytes(b"of another revision")
    partial = data / f".videos.tar.gz.{hashlib.sha256(SMALL_VIDEOS).hexdigest()[:12]}.partial"
    partial.write_bytes(b"x" * 1000)
    assert "does not have the checksum" in complaint(download(hub, tmp_path, "--corpus", "label", code=1))
    download(hub, tmp_path, "--corpus", "label")
    assert contents(data) == FILES[LABEL]


def test_refusals_are_one_line(hub: StubHub, tmp_path: Path) -> None:
    def refuse(*arguments: object, **extra: str) -> str:
        message = complaint(download(hub, tmp_path, "--corpus", "pairs", *arguments, code=1, **extra))
        assert not (tmp_path / "data").exists() or not contents(tmp_path / "data")
        return message

    assert "no revision 'v9'" in refuse("--revision", "v9")
    assert "HF_HUB_OFFLINE is set" in refuse(HF_HUB_OFFLINE="1")
    hub.listing_error = (401, "")
    assert f"accept its terms on {hub.url}/datasets/{PAIRS}" in refuse()
    hub.listing_error = None
    hub.fail_with = (403, "GatedRepo")
    assert "HF_TOKEN" in refuse("--no_videos")
    hub.fail_with = None
    hub.reported_sizes["videos.tar.gz"] = 10**16
    done = download(hub, tmp_path, "--corpus", "pairs", code=1)
    assert "10000.0 TB are needed" in complaint(done)
    assert "free in" in done.stdout
    hub.reported_sizes.clear()
    hub.repositories[PAIRS] = {"../evil": b"x"}
    assert "would lead out of the folder" in refuse()
    assert not (tmp_path / "evil").exists()
    assert "nothing to unpack" in refuse("--no_videos", "--extract")
    with StubHub({}) as gone:
        url = gone.url
    assert f"no connection to {url}" in refuse(HF_ENDPOINT=url)
    (tmp_path / "file").write_text("")
    hub.repositories[PAIRS] = dict(FILES[PAIRS])
    done = download(hub, tmp_path, "--corpus", "pairs", code=1, out=tmp_path / "file" / "data")
    assert "cannot be read or written" in complaint(done)


def test_full_disk_keeps_what_has_arrived(hub: StubHub, tmp_path: Path) -> None:
    limited = ["sh", "-c", 'ulimit -f 400; exec "$@"', "sh"]  # blocks of 512 bytes
    done = subprocess.run(
        [*limited, *command(SCRIPT, "--out", tmp_path / "data", "--corpus", "label")],
        capture_output=True,
        text=True,
        env=hub_environment(hub, tmp_path),
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "videos.tar.gz" in complaint(done)
    assert "(File too large); free space" in complaint(done)
    hub.requests.clear()
    download(hub, tmp_path, "--corpus", "label")
    assert hub.starts("videos.tar.gz") == [400 * 512] * 2
    assert contents(tmp_path / "data") == FILES[LABEL]


def test_interrupted_by_the_user(hub: StubHub, tmp_path: Path) -> None:
    hub.bytes_per_s = MB
    videos = archive(6 * MB)
    hub.repositories[PAIRS]["videos.tar.gz"] = videos
    with subprocess.Popen(
        command(SCRIPT, "--out", tmp_path / "data", "--corpus", "pairs"),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=hub_environment(hub, tmp_path) | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        deadline = time.monotonic() + 30
        while not hub.starts("videos.tar.gz") and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "run the same command again to go on" in errors.splitlines()[-1]
    assert "Traceback" not in errors
