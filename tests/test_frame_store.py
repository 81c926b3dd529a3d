"""The frame store: what it gives back, how it is built, and what it does not accept."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from clips import write_clip, write_size_changing_clip, write_sound
from conftest import command, environment, launch

from safe_rlhf_video.errors import ConfigError, SampleError, VideoDecodeError
from safe_rlhf_video.video.codec import Codec
from safe_rlhf_video.video.decoding import read_video
from safe_rlhf_video.video.frame_store import FrameStore, seal, shard_file
from safe_rlhf_video.video.sampling import Sampling
from safe_rlhf_video.video.store_builder import ClipFile, StoreReport, build_store

SAMPLING = Sampling(num_frames=4, min_pixels=32 * 32, max_pixels=64 * 64)
CLIP_BYTES = 4 * 64 * 64 * 3
SHARD_BYTES = 3 * CLIP_BYTES + 1

NUM_CLIPS = 9


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[ClipFile]:
    """Nine clips; the fourth is broken, and the sixth is a copy of the second."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(NUM_CLIPS):
        write_clip(folder / f"{number}.mp4", num_frames=4 + number, seed=number)
    (folder / "3.mp4").write_text("no video")
    shutil.copy(folder / "1.mp4", folder / "5.mp4")
    return [ClipFile(f"prompt/{number}", folder / f"{number}.mp4") for number in range(NUM_CLIPS)]


@pytest.fixture(scope="module")
def whole(clips: list[ClipFile], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of all clips, built without an interruption; do not change it."""
    folder = tmp_path_factory.mktemp("stores") / "whole"
    build(folder, clips)
    return folder


def build(folder: Path, clips: list[ClipFile], **options: object) -> StoreReport:
    return build_store(folder, SAMPLING, clips, len(clips), **{"shard_bytes": SHARD_BYTES} | options)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- reading ----------------------------------------------------------------------------------------------------------


def test_raw_frames_come_back_bit_for_bit(clips: list[ClipFile], whole: Path) -> None:
    store = FrameStore.open(whole, SAMPLING)
    assert len(store) == NUM_CLIPS - 1
    assert store.codec_name == "raw"
    for clip in clips:
        if clip.name == "prompt/3":
            continue
        assert clip.name in store
        video = store.read(clip.name)
        assert video == read_video(clip.path, SAMPLING)
        assert not video.frames.flags.writeable
        assert not video.frames.flags.owndata
    store.verify()
    # The copy shares its original's frames.
    assert sum(path.stat().st_size for path in whole.glob("frames-*.bin")) == 7 * CLIP_BYTES
    assert len(list(whole.glob("frames-*.bin"))) == 3


def test_a_forked_process_reads_the_same(clips: list[ClipFile], whole: Path) -> None:
    store = FrameStore(whole)
    here = store.read("prompt/0").frames.tobytes()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, store.read("prompt/0").frames.tobytes()[:60_000])
        os.write(writing, b"end" if store.read("prompt/8") == read_video(clips[8].path, SAMPLING) else b"no ")
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == here + b"end"
    os.waitpid(child, 0)


def test_a_shard_that_is_cut_off_while_it_is_read(whole: Path, tmp_path: Path) -> None:
    """Frames that were mapped into memory would end the process that looks at them (SIGBUS)."""
    folder = Path(shutil.copytree(whole, tmp_path / "store"))
    child = os.fork()
    if not child:
        outcome = 1
        try:
            store = FrameStore(folder)
            video = store.read("prompt/0")
            os.truncate(shard_file(folder, 0), 100)
            assert video == FrameStore(whole).read("prompt/0")
            with pytest.raises(VideoDecodeError, match=r"frames-00000\.bin: the frames of prompt/1 have changed"):
                store.read("prompt/1")
            outcome = 0
        finally:
            os._exit(outcome)
    assert os.waitpid(child, 0)[1] == 0


def test_jpeg_frames_differ_little(clips: list[ClipFile], tmp_path: Path) -> None:
    # Noise is the worst case for JPEG; a smooth picture shows what a film frame loses.
    rows, columns = np.mgrid[0:48, 0:64]
    smooth = write_clip(
        tmp_path / "smooth.mp4", picture=np.stack([rows * 4, columns * 3, rows + columns], -1).astype("u1")
    )
    folder = tmp_path / "store"
    codec = Codec("jpeg", 95)
    build(folder, [*clips[:3], ClipFile("smooth", smooth)], codec=codec)
    store = FrameStore(folder)
    assert store.codec_name == "jpeg-95"
    for clip, mean, largest in ((clips[0], 3.0, 20), (clips[1], 3.0, 20), (ClipFile("smooth", smooth), 1.0, 8)):
        decoded, stored = read_video(clip.path, SAMPLING), store.read(clip.name)
        assert np.array_equal(decoded.timestamps, stored.timestamps)
        difference = np.abs(decoded.frames.astype(int) - stored.frames.astype(int))
        assert 0 < difference.mean() < mean
        assert difference.max() <= largest
    with pytest.raises(
        ConfigError, match=r"has codec \{'name': 'jpeg', 'quality': 95\}, not \{'name': 'raw'\} as asked"
    ):
        build(folder, clips[:3])
    with pytest.raises(ConfigError, match=r"codec\.quality: expected an integer from 1 to 100, got 0"):
        Codec("jpeg", 0)


def test_what_a_store_does_not_hold_is_an_error_that_says_so(whole: Path, tmp_path: Path) -> None:
    store = FrameStore(whole)
    with pytest.raises(
        VideoDecodeError, match=r"other/1: is not in the frame store .*; run scripts/prepare_videos\.py"
    ):
        store.read("other/1")
    assert "prompt/3" not in store
    with pytest.raises(VideoDecodeError, match=r"prompt/3: is in the quarantine of .* \(is not a readable video"):
        store.read("prompt/3")
    with pytest.raises(VideoDecodeError, match="none: no such file or folder; make a frame store with"):
        FrameStore(tmp_path / "none")
    other = Sampling(num_frames=8, min_pixels=32 * 32, max_pixels=96 * 96)
    for attempt in (lambda: FrameStore.open(whole, other), lambda: build_store(whole, other, [], 0)):
        with pytest.raises(
            ConfigError, match=r"store\.json: .* num_frames 4, not 8; max_pixels 4096, not 9216 as asked"
        ):
            attempt()


@pytest.mark.parametrize("name", ["store.json", "index.jsonl", "frames-00000.bin", "frames-00002.bin"])
def test_a_changed_byte_anywhere_is_rejected_by_the_file_s_name(whole: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(whole, tmp_path / "store")
    path = tmp_path / "store" / name
    content = path.read_bytes()
    rng = random.Random(name)
    positions = [0, len(content) - 1, len(content) - 2, *(rng.randrange(len(content)) for _ in range(150))]
    for position in positions:
        changed = bytearray(content)
        changed[position] ^= rng.randrange(1, 256)
        path.write_bytes(changed)
        with pytest.raises(VideoDecodeError) as caught:
            FrameStore(tmp_path / "store").verify()
        assert str(caught.value).startswith(f"{path}: "), position
        assert "\n" not in str(caught.value)
    path.write_bytes(content)
    FrameStore(tmp_path / "store").verify()


def test_missing_rows_and_frames_are_rejected(whole: Path, clips: list[ClipFile], tmp_path: Path) -> None:
    folder = tmp_path / "store"
    lines = (whole / "index.jsonl").read_bytes().splitlines(keepends=True)
    forged = json.loads(lines[2]) | {"offset": 7}
    forged.pop("checksum")
    damages = {
        "index.jsonl": [
            b"".join(lines[:4] + lines[5:]),
            b"".join([lines[1], lines[0], *lines[2:]]),
            b"".join([*lines[:2], seal(forged, "")[0], *lines[3:]]),
            None,
        ],
        "frames-00001.bin": [(whole / "frames-00001.bin").read_bytes()[:-1], b"", None],
    }
    for name, versions in damages.items():
        for version in versions:
            shutil.copytree(whole, folder)
            if version is None:
                (folder / name).unlink()
            else:
                (folder / name).write_bytes(version)
            for attempt in (lambda: FrameStore(folder), lambda: build(folder, clips)):
                if name == "index.jsonl" and version is None and attempt is not None:
                    continue
                with pytest.raises(VideoDecodeError) as caught:
                    attempt()
                assert str(caught.value).startswith(f"{folder / name}: ")
            shutil.rmtree(folder)
    other = tmp_path / "other"
    other.mkdir()
    for version in (1, 3):
        (other / "store.json").write_bytes(seal({"format_version": version}, "")[0])
        match = f"format_version is {version}, this release reads 2; make the store anew"
        with pytest.raises(VideoDecodeError, match=match):
            FrameStore(other)


# --- building ---------------------------------------------------------------------------------------------------------


def test_workers_and_order_of_answers_change_nothing(clips: list[ClipFile], whole: Path, tmp_path: Path) -> None:
    report = build(tmp_path / "store", clips, num_workers=1)
    assert contents(tmp_path / "store") == contents(whole)
    reason = (
        "is not a readable video (Invalid data found when processing input); use mp4, mov, mkv, webm, avi, ts or gif"
    )
    assert report == StoreReport(NUM_CLIPS, NUM_CLIPS - 1, 0, 0, {"prompt/3": reason}, 7 * CLIP_BYTES)
    assert build(tmp_path / "store", clips) == StoreReport(NUM_CLIPS, 0, 0, NUM_CLIPS, {"prompt/3": reason}, 0)
    assert contents(tmp_path / "store") == contents(whole)


def test_what_a_kill_can_leave_behind_is_finished(clips: list[ClipFile], whole: Path, tmp_path: Path) -> None:
    """Frames are written before their row: all cuts through both, with rows that are behind or exactly there."""
    rng = random.Random(0)
    lines = (whole / "index.jsonl").read_bytes().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines]
    for case in range(6):
        folder = tmp_path / str(case)
        shutil.copytree(whole, folder)
        (folder / "quarantine.jsonl").unlink()
        num_rows = rng.randrange(len(rows) - 1)
        begun = rng.choice([b"", lines[num_rows][: rng.randrange(len(lines[num_rows]))]])
        (folder / "index.jsonl").write_bytes(b"".join(lines[:num_rows]) + begun)
        # Of the frames, those of the next clip may be there in part.
        ends: dict[int, int] = {}
        for row in rows[: num_rows + 1]:
            if "shard" in row:
                ends[row["shard"]] = max(row["offset"] + sum(row["piece_bytes"]), ends.get(row["shard"], 0))
        if "shard" in (row := rows[num_rows]) and ends[row["shard"]] == row["offset"] + CLIP_BYTES:
            ends[row["shard"]] = row["offset"] + rng.randrange(CLIP_BYTES)
        for shard in range(3):
            if shard in ends:
                os.truncate(shard_file(folder, shard), ends[shard])
            else:
                shard_file(folder, shard).unlink()
        if begun:
            with pytest.raises(
                VideoDecodeError, match=r"index\.jsonl: its last row is cut short.* run scripts/prepare"
            ):
                FrameStore(folder)
        build(folder, clips)
        assert contents(folder) == contents(whole), case
    for case, names in enumerate([[], ["index.jsonl"], ["index.jsonl", ".store.json.partial"]]):
        folder = tmp_path / f"begun {case}"
        folder.mkdir()
        for name in names:
            (folder / name).touch()
        build(folder, clips)
        assert contents(folder) == contents(whole), names


BUILD = """
import json, resource, sys
from pathlib import Path
from safe_rlhf_video.cli import run_script
from safe_rlhf_video.video.sampling import Sampling
from safe_rlhf_video.video.store_builder import ClipFile, build_store

task = json.loads(sys.argv[1])
clips = [ClipFile(name, Path(path)) for name, path in task["clips"]]
if task["file_bytes"]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (task["file_bytes"], task["file_bytes"]))
arguments = (task["folder"], Sampling(**task["sampling"]), clips, len(clips))
run_script(lambda: build_store(*arguments, shard_bytes=task["shard_bytes"]))
"""


def start_build(
    folder: Path, clips: list[ClipFile], file_bytes: int = 0, shard_bytes: int = SHARD_BYTES
) -> subprocess.Popen[str]:
    task = {
        "folder": str(folder),
        "sampling": SAMPLING.to_dict(),
        "clips": [[clip.name, str(clip.path)] for clip in clips],
        "file_bytes": file_bytes,
        "shard_bytes": shard_bytes,
    }
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, json.dumps(task)], stderr=subprocess.PIPE, text=True, env=environment()
    )


def kill_at_random_moments(tmp_path: Path, num_clips: int, num_kills: int) -> None:
    """Builds that are killed, each at a random moment between its first row and its end, and then finished."""
    clips = [
        ClipFile(f"prompt/{number}", write_clip(tmp_path / f"{number}.mp4", num_frames=40, seed=number))
        for number in range(num_clips)
    ]
    whole = tmp_path / "whole"
    build(whole, clips)
    size = (whole / "index.jsonl").stat().st_size
    rng = random.Random(num_kills)
    num_cut = 0
    for kill in range(num_kills):
        folder = tmp_path / str(kill)
        process = start_build(folder, clips)
        index = folder / "index.jsonl"
        wanted = rng.randrange(size)
        while process.poll() is None and not (index.exists() and index.stat().st_size >= wanted):
            time.sleep(0.0005)
        time.sleep(rng.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        num_cut += index.stat().st_size < size
        build(folder, clips, num_workers=1 + kill % 2)
        assert contents(folder) == contents(whole), kill
        shutil.rmtree(folder)
    assert num_cut >= num_kills // 2


def test_a_killed_build_ends_with_the_same_bytes(tmp_path: Path) -> None:
    kill_at_random_moments(tmp_path, num_clips=20, num_kills=2)


@pytest.mark.slow
def test_a_build_killed_at_20_random_moments_ends_with_the_same_bytes(tmp_path: Path) -> None:
    kill_at_random_moments(tmp_path, num_clips=40, num_kills=20)


def test_a_full_disk_leaves_what_is_there(clips: list[ClipFile], tmp_path: Path) -> None:
    """The limit of a process on its files stands for the disk: writing fails halfway through some clip's frames."""
    folder = tmp_path / "store"
    process = start_build(folder, clips, file_bytes=100_000, shard_bytes=1 << 30)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    message = errors.splitlines()[-1]
    assert message.startswith(f"error: {folder}: the disk is full (File too large); what is there is good: free 0.1 GB")
    assert message.endswith("or more and run the same command again")
    assert (folder / "frames-00000.bin").stat().st_size == 100_000
    assert len(FrameStore(folder)) == 2
    build(folder, clips, shard_bytes=1 << 30)
    build(tmp_path / "whole", clips, shard_bytes=1 << 30)
    assert contents(folder) == contents(tmp_path / "whole")


def test_two_builders_do_not_meet(clips: list[ClipFile], tmp_path: Path) -> None:
    folder = tmp_path / "store"

    def during_the_build() -> Iterator[ClipFile]:
        yield clips[0]
        with pytest.raises(ConfigError, match=r"store: another process is writing it; wait until"):
            build(folder, clips)
        yield clips[1]

    build_store(folder, SAMPLING, during_the_build(), 2)
    assert len(FrameStore(folder)) == 2
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"holds other files \(notes\.txt\) and no frame store; name a new or empty"):
        build(foreign, clips)


def test_a_changed_file_is_decoded_anew_and_a_lost_one_is_kept(clips: list[ClipFile], tmp_path: Path) -> None:
    folder = tmp_path / "store"
    own = [ClipFile(clip.name, tmp_path / clip.path.name) for clip in clips]
    for clip, copy in zip(clips, own, strict=True):
        shutil.copy(clip.path, copy.path)
    build(folder, own)
    before = contents(folder)

    own[1].path.unlink()
    assert build(folder, own).num_decoded == 0
    assert contents(folder) == before
    own[0].path.touch()  # another time, the same bytes: the time is noted, so that they are hashed once
    assert build(folder, own).num_decoded == 0
    noted = contents(folder)
    assert noted["index.jsonl"].startswith(before["index.jsonl"])
    assert build(folder, own).num_decoded == 0
    assert contents(folder) == noted
    FrameStore(folder).check_clips({clip.name: clip.path for clip in own})

    write_clip(own[0].path, num_frames=7, seed=99)
    write_clip(own[3].path, num_frames=5, seed=98)  # the one in quarantine
    own[4].path.write_text("broken now")
    with pytest.raises(VideoDecodeError, match=r"0\.mp4: is not the file whose frames .* so for 2 of 9 clips"):
        FrameStore(folder).check_clips({clip.name: clip.path for clip in own})
    report = build(folder, own)
    assert (report.num_decoded, report.num_replaced, report.num_kept) == (2, 1, NUM_CLIPS - 2)
    assert not report.quarantined
    store = FrameStore(folder)
    for number in (0, 3):
        assert store.read(f"prompt/{number}") == read_video(own[number].path, SAMPLING)
    for number in (1, 4):  # what is stored is good, whatever became of the file; a run tells it by its size
        assert store.read(f"prompt/{number}") == read_video(clips[number].path, SAMPLING)
    with pytest.raises(VideoDecodeError, match=r"4\.mp4: is not the file whose frames"):
        store.check_clips({own[4].name: own[4].path})
    assert contents(folder)["frames-00000.bin"] == before["frames-00000.bin"]


def test_damaged_frames_are_mended_one_by_one(clips: list[ClipFile], whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    shutil.copytree(whole, folder)
    shard = shard_file(folder, 0)
    content = bytearray(shard.read_bytes())
    content[CLIP_BYTES + 5] ^= 1  # the second clip, whose frames the sixth shares
    shard.write_bytes(content)
    with pytest.raises(VideoDecodeError, match=r"frames-00000\.bin: the frames of prompt/1 .*--verify"):
        FrameStore(folder).verify()
    assert build(folder, clips).num_decoded == 0  # a build alone does not look
    assert build(folder, clips, verify=True).num_decoded == 2
    store = FrameStore(folder)
    store.verify()
    for number in (1, 5):
        assert store.read(f"prompt/{number}") == read_video(clips[number].path, SAMPLING)
    assert build(folder, clips, verify=True).num_decoded == 0
    with shard.open("r+b") as file:  # cut off while it is mapped
        file.truncate(CLIP_BYTES)
    with pytest.raises(VideoDecodeError, match=r"frames-00000\.bin"):
        store.read("prompt/2")


def test_one_name_means_one_content(clips: list[ClipFile], tmp_path: Path) -> None:
    folder = tmp_path / "store"
    copy = ClipFile("prompt/0", tmp_path / "copy.mp4")
    shutil.copy(clips[0].path, copy.path)
    missing = ClipFile("prompt/0", tmp_path / "missing.mp4")
    broken = ClipFile("prompt/0", clips[3].path)
    for _ in range(3):
        assert build(folder, [missing, broken, clips[0], copy, clips[0], missing]).quarantined == {}
        assert FrameStore(folder).read("prompt/0") == read_video(clips[0].path, SAMPLING)
    with pytest.raises(ConfigError, match=r"prompt/0: two different files have this name, .*0\.mp4 and .*1\.mp4"):
        build(tmp_path / "other", [clips[0], ClipFile("prompt/0", clips[1].path)])


def test_each_kind_of_bad_clip_goes_into_quarantine_with_its_reason(clips: list[ClipFile], tmp_path: Path) -> None:
    good = clips[0].path.read_bytes()
    index_first = write_clip(tmp_path / "index_first.mp4", container_options={"movflags": "faststart"}).read_bytes()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "truncated.mp4").write_bytes(good[: len(good) // 2])
    (tmp_path / "cut.mp4").write_bytes(index_first[: len(index_first) * 2 // 3])
    (tmp_path / "text.mp4").write_text("not a video\n" * 50)
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it would wait for a writer that never comes
    (tmp_path / "endless.mp4").touch()
    os.truncate(tmp_path / "endless.mp4", 1 << 40)  # sparse: hashing it takes hours
    write_sound(tmp_path / "sound.mp4")
    write_clip(tmp_path / "narrow.mp4", codec="mpeg4", width=1000, height=4)
    write_size_changing_clip(tmp_path / "changing.ts")
    reasons = {
        "missing.mp4": "no such file",
        "empty.mp4": "the file is empty",
        "truncated.mp4": "is not a readable video",
        "cut.mp4": "the file is truncated",
        "text.mp4": "is not a readable video",
        "folder.mp4": "is a folder",
        "pipe.mp4": "cannot be opened (is no regular file)",
        "endless.mp4": "took longer than 2 s",
        "sound.mp4": "has no video stream",
        "narrow.mp4": "frames of 8000x32 pixels are too narrow",
        "changing.ts": "the frame size changes within the clip",
    }
    folder = tmp_path / "store"
    bad = [ClipFile(f"bad/{name}", tmp_path / name) for name in reasons]
    report = build(folder, [clips[0], *bad, clips[1]], timeout_s=2.0)
    store = FrameStore(folder)
    assert report.quarantined == store.quarantined
    assert {name.removeprefix("bad/"): None for name in store.quarantined} == dict.fromkeys(reasons)
    for name, reason in reasons.items():
        message = store.quarantined[f"bad/{name}"]
        assert message.startswith(reason)
        assert str(tmp_path) not in message
    assert [store.read(clip.name) for clip in clips[:2]] == [read_video(clip.path, SAMPLING) for clip in clips[:2]]
    listed = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert {row["name"]: row["error"] for row in listed} == store.quarantined

    # They are tried again, since it may have been the machine's fault; as long as it is not, nothing is written.
    bad = [clip for clip in bad if clip.path.name != "endless.mp4"]
    before = contents(folder)
    assert build(folder, [clips[0], *bad]).num_kept == len(bad) + 1
    assert contents(folder) == before
    shutil.copy(clips[2].path, tmp_path / "empty.mp4")
    report = build(folder, [clips[0], *bad])
    assert (report.num_decoded, report.num_replaced, report.num_kept) == (1, 0, len(bad))
    assert len((folder / "quarantine.jsonl").read_text().splitlines()) == len(reasons) - 1


def test_a_clip_that_was_late_once_is_not_lost(clips: list[ClipFile], tmp_path: Path) -> None:
    folder = tmp_path / "store"
    assert "took longer" in build(folder, clips[:1], timeout_s=1e-6).quarantined["prompt/0"]
    assert build(folder, clips[:1]).quarantined == {}
    assert FrameStore(folder).read("prompt/0") == read_video(clips[0].path, SAMPLING)


def test_temporary_files_are_deleted_and_a_source_that_breaks_off_costs_nothing(
    clips: list[ClipFile], tmp_path: Path
) -> None:
    folder = tmp_path / "store"

    def stream(num_good: int) -> Iterator[ClipFile]:
        for clip in clips[:num_good]:
            path = tmp_path / f"incoming-{clip.path.name}"
            shutil.copy(clip.path, path)
            assert len(list(tmp_path.glob("incoming-*"))) <= 33
            yield ClipFile(clip.name, path, is_temporary=True)
        raise SampleError("the archive ends too early")

    with pytest.raises(SampleError, match="the archive ends too early"):
        build_store(folder, SAMPLING, stream(5), NUM_CLIPS)
    assert not list(tmp_path.glob("incoming-*"))
    store = FrameStore(folder)
    assert len(store) == 4
    assert list(store.quarantined) == ["prompt/3"]
    with pytest.raises(SampleError, match="the archive ends too early"):
        build_store(folder, SAMPLING, stream(NUM_CLIPS), NUM_CLIPS)
    assert len(FrameStore(folder)) == NUM_CLIPS - 1
    assert not list(tmp_path.glob("incoming-*"))


def test_opening_a_store_takes_a_few_calls_a_clip(tmp_path: Path) -> None:
    """Counted, not timed: whatever else a machine does, SafeSora's 57,000 clips are no more work than they must be."""
    num_clips, num_calls = 10_000, 0

    def count(*_: object) -> None:
        nonlocal num_calls
        num_calls += 1

    folder = tmp_path / "store"
    build(folder, [])
    checksum = json.loads((folder / "store.json").read_bytes())["checksum"]
    shard_file(folder, 0).write_bytes(bytes(1000))
    with (folder / "index.jsonl").open("wb") as index:
        for number in range(num_clips):
            row = {
                "name": f"{number // 4:064x}/{number:064x}",
                "file_sha256": f"{number:064x}",
                "file_size": 500_000,
                "file_mtime_ns": 1_700_000_000_000_000_000,
                "shard": 0,
                "offset": 0,
                "piece_bytes": [1000],
                "shape": [8, 224, 224, 3],
                "timestamps": [0.123456789 * index for index in range(8)],
                "payload_checksum": "0" * 32,
            }
            line, checksum = seal(row, checksum)
            index.write(line)
    sys.setprofile(count)
    try:
        store = FrameStore(folder)
    finally:
        sys.setprofile(None)
    assert len(store) == num_clips
    assert num_calls < 100 * num_clips


# --- scripts/prepare_videos.py ----------------------------------------------------------------------------------------


def write_config(path: Path, clips: list[ClipFile]) -> Path:
    """A config of neighbouring pairs, each preferring its first video, and the clips' videos in its `videos/`."""
    videos = []
    for clip in clips:
        prompt_id, video_id = clip.name.split("/")
        target = path.parent / "videos" / prompt_id / f"{video_id}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip.path, target)
        videos.append({"video_id": video_id, "video_path": f"videos/{clip.name}", "generated_from": "test"})
    prompt = {"prompt_id": "prompt", "prompt_text": "a film", "prompt_type": "safety_neutral"}
    records = [
        {**prompt, "pair_id": str(number), "video_0": {**prompt, **first}, "video_1": {**prompt, **second}}
        | {"helpfulness": "video_0", "harmlessness": "tie" if number else None}
        for number, (first, second) in enumerate(itertools.pairwise(videos))
    ]
    path.write_bytes(gzip.compress(json.dumps(records).encode()))
    return path


def test_prepare_videos_from_files_and_from_an_archive(clips: list[ClipFile], tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    config = write_config(data / "config.json.gz", clips)
    options = ["--num_frames", 4, "--min_pixels", 1024, "--max_pixels", 4096]
    from_files = launch("scripts/prepare_videos.py", "--data", config, "--out", tmp_path / "files", *options)
    assert "9 clips: at most 442.4 kB; " in from_files.stdout
    assert "files: 9 clips, 8 of them decoded now" in from_files.stdout
    assert "clips in quarantine: 1 " in from_files.stdout
    assert "comparisons lost with them: 2 of 8 helpfulness, 2 of 7 harmlessness" in from_files.stdout
    assert "9/9" in from_files.stderr
    assert "clip/s" in from_files.stderr

    # An archive in another order, which lacks a clip.
    with tarfile.open(tmp_path / "videos.tar.gz", "w:gz") as archive:
        for clip in reversed(clips[1:]):
            archive.add(data / "videos" / f"{clip.name}.mp4", f"videos/{clip.name}.mp4")
    shutil.rmtree(data / "videos")
    training = tmp_path / "train.yaml"
    training.write_text(
        f"out: {tmp_path / 'run'}\ndata: {{path: {config}}}\nsampling: {json.dumps(SAMPLING.to_dict())}\n"
    )
    arguments = ["--config", training, "--out", tmp_path / "archive", "--archive", tmp_path / "videos.tar.gz"]
    for _ in range(2):
        from_archive = launch("scripts/prepare_videos.py", *arguments)
        assert "clips in quarantine: 2 " in from_archive.stdout
    assert "0 of them decoded now" in from_archive.stdout
    assert {path.name for path in (tmp_path / "archive").iterdir()} == {
        path.name for path in (tmp_path / "files").iterdir()
    }
    stores = [FrameStore.open(tmp_path / name, SAMPLING) for name in ("files", "archive")]
    assert stores[1].quarantined["prompt/0"] == "no such file; check the path or the video folder"
    for clip in clips[1:]:
        if clip.name != "prompt/3":
            assert stores[0].read(clip.name) == stores[1].read(clip.name) == read_video(clip.path, SAMPLING)

    with tarfile.open(tmp_path / "videos.tar.gz", "w:gz") as archive:  # mended
        archive.add(clips[0].path, "videos/prompt/0.mp4")
        archive.add(clips[1].path, "videos/prompt/3.mp4")
    mended = launch("scripts/prepare_videos.py", *arguments)
    assert "2 of them decoded now" in mended.stdout
    assert "no clip is in quarantine" in mended.stdout
    assert FrameStore(tmp_path / "archive").read("prompt/3") == read_video(clips[1].path, SAMPLING)

    refused = launch("scripts/prepare_videos.py", *arguments, "--num_frames", 2, check=False)
    assert refused.returncode == 1
    assert refused.stderr.strip() == "error: --num_frames: the sampling is that of --config; leave one of them away"


def test_ctrl_c_leaves_a_store_to_go_on_with(clips: list[ClipFile], tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    config = write_config(data / "config.json.gz", clips)
    endless = data / "videos" / "prompt" / "4.mp4"
    os.truncate(endless, 1 << 40)  # sparse: hashing it takes hours
    out = tmp_path / "store"
    process = subprocess.Popen(
        command("scripts/prepare_videos.py", "--data", config, "--out", out, "--num_frames", 4),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    while not (out / "index.jsonl").exists() or (out / "index.jsonl").read_bytes().count(b"\n") < 4:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "interrupted; run the same command again to go on"
    store = FrameStore(out)
    assert len(store) == 3
    assert list(store.quarantined) == ["prompt/3"]
    assert len((out / "quarantine.jsonl").read_text().splitlines()) == 1
