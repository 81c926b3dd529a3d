"""Sampling, decoding and the decode pool, on small clips written here."""

import contextlib
import importlib.util
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import forked_decoders
import numpy as np
import pytest
from clips import write_clip, write_size_changing_clip, write_sound
from hostile_clips import tricks_with_bait
from PIL import Image

from safe_rlhf_video.errors import ConfigError, DecoderError, VideoDecodeError
from safe_rlhf_video.video import decoding
from safe_rlhf_video.video import pool as video_pool
from safe_rlhf_video.video.decoding import read_video
from safe_rlhf_video.video.pool import DecodePool
from safe_rlhf_video.video.sampling import (
    Sampling,
    Video,
    choose_frames,
    fit_frames,
    resize_frames,
    sample_video,
    target_size,
)

SMALL = Sampling(num_frames=4, min_pixels=32 * 32, max_pixels=96 * 96)
# Every frame in its own size: what the decoder gives, untouched.
BACKENDS: tuple[decoding.Backend, ...] = ("pyav", "decord") if importlib.util.find_spec("decord") else ("pyav",)
NATIVE = Sampling(num_frames=1000, min_pixels=1, max_pixels=1 << 30, size_multiple=1)


@pytest.fixture(autouse=True)
def launched_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding processes as users have them, and no forks."""
    monkeypatch.setattr(video_pool, "subprocess", subprocess)


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_target_size_is_the_size_of_the_official_processor() -> None:
    smart_resize = pytest.importorskip("transformers.models.qwen3_vl.video_processing_qwen3_vl").smart_resize
    sizes = (1, 7, 31, 33, 48, 64, 200, 333, 480, 720, 1361)
    num_frames = 6
    compared = 0
    for sampling in (Sampling(), Sampling(size_multiple=28), SMALL, Sampling(min_pixels=60_000, max_pixels=70_000)):
        for height in sizes:
            for width in sizes:
                limits = {
                    "min_pixels": num_frames * sampling.min_pixels,
                    "max_pixels": num_frames * sampling.max_pixels,
                }
                try:
                    expected = smart_resize(num_frames, height, width, factor=sampling.size_multiple, **limits)
                except ValueError:
                    with pytest.raises(VideoDecodeError, match="too narrow"):
                        target_size(height, width, sampling)
                    continue
                assert target_size(height, width, sampling) == expected
                compared += 1
    assert compared > 400


def test_chosen_frames_spread_over_the_clip_and_keep_short_clips_whole() -> None:
    assert choose_frames(np.arange(16.0), 4)[0].tolist() == [0, 5, 10, 15]
    assert choose_frames(np.array([0.0, 0.1, 5.0]), 8)[0].tolist() == [0, 1, 2]
    # 0, 2.5, 5: a half goes to the even neighbour
    assert choose_frames(np.arange(6.0), 3)[0].tolist() == [0, 2, 5]
    with pytest.raises(VideoDecodeError, match="the clip has no frames"):
        choose_frames(np.zeros(0), 8)


def test_sampling_goes_through_a_dict_and_rejects_what_it_does_not_know() -> None:
    assert Sampling.from_dict(SMALL.to_dict()) == SMALL
    with pytest.raises(ConfigError, match=r"sampling\.num_frame: unknown key, expected one of num_frames, min_pixels"):
        Sampling.from_dict({"num_frame": 8})
    with pytest.raises(ConfigError, match=r"sampling\.num_frames: expected an integer of at least 1, got True"):
        Sampling(num_frames=True)
    with pytest.raises(ConfigError, match=r"sampling\.min_pixels: 9 exceeds sampling\.max_pixels, 4"):
        Sampling(min_pixels=9, max_pixels=4)


def test_video_rejects_wrong_arrays() -> None:
    frames = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    with pytest.raises(VideoDecodeError, match=r"frames: expected a uint8 array .* got float32 \(2, 4, 4, 3\)"):
        Video(frames.astype(np.float32), np.array([0.0, 1.0]))
    with pytest.raises(VideoDecodeError, match=r"timestamps: expected float64 of shape \(2,\), got float64 \(3,\)"):
        Video(frames, np.array([0.0, 1.0, 2.0]))
    with pytest.raises(VideoDecodeError, match="strictly increasing"):
        Video(frames, np.array([0.0, 0.0]))


def test_frames_of_the_right_size_are_not_touched() -> None:
    frames = np.zeros((2, 32, 64, 3), dtype=np.uint8)
    assert resize_frames(frames, 32, 64) is frames
    assert resize_frames(frames, 64, 32).shape == (2, 64, 32, 3)


def test_squares_are_stretched_or_cut_out_of_the_middle() -> None:
    stretch, crop = (Sampling(2, 64 * 64, 64 * 64, 64, fit=fit) for fit in ("stretch", "crop"))
    for height, width in ((64, 64), (63, 200), (200, 65), (30, 47), (20, 3000)):
        frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        assert target_size(height, width, stretch) == target_size(height, width, crop) == (64, 64)
        assert np.array_equal(fit_frames(frames, stretch), resize_frames(frames, 64, 64))
        cut = fit_frames(frames, crop)
        for frame, found in zip(frames, cut, strict=True):
            image = Image.fromarray(frame)
            # Integer arithmetic as transformers has it: the longer side, then the edge of the cut, both downwards.
            new_width, new_height = (int(64 * width / height), 64) if height < width else (64, int(64 * height / width))
            left, top = int((new_width - 64) / 2.0), int((new_height - 64) / 2.0)
            image = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
            image = image.crop((left, top, left + 64, top + 64))
            assert np.array_equal(np.asarray(image), found)
        assert cut.flags.c_contiguous
        video = sample_video(frames, np.arange(2.0), crop)
        assert np.array_equal(video.frames, cut)
    with pytest.raises(VideoDecodeError, match="too narrow"):
        fit_frames(np.zeros((1, 2, 900, 3), np.uint8), crop)
    assert Sampling.from_dict(crop.to_dict()) == crop != stretch
    # Whatever was written before there were squares.
    assert Sampling.from_dict({"num_frames": 8}).fit == "aspect"
    with pytest.raises(ConfigError, match=r"sampling\.fit: expected one of aspect, stretch, crop, got 'pad'"):
        Sampling(fit="pad")
    with pytest.raises(ConfigError, match=r"sampling\.fit: with crop .* set sampling\.min_pixels .* to 50176"):
        Sampling(size_multiple=224, fit="crop")


# --- decoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "clip",
    [
        {},
        {"codec_options": {"bf": "3", "g": "7"}, "num_frames": 24},
        {"width": 130, "height": 98},
        {"width": 322, "height": 182, "num_frames": 5},
        {"width": 63, "height": 46, "codec": "mpeg4"},
        {"width": 63, "height": 47, "pixel_format": "yuv444p"},
        {"pixel_format": "yuvj420p"},
        {"codec": "libx265", "codec_options": {"x265-params": "log-level=none"}},
        {"ticks": [0, 7, 31, 32, 90, 200], "num_frames": 6},
        {"ticks": [1000, 1015, 1045], "num_frames": 3},
        {"num_frames": 1},
        {"num_frames": 2},
        {"num_frames": 200},  # more frames than a low DECORD_EOF_RETRY_MAX would allow
    ],
    ids=str,
)
def test_backends_agree_bit_for_bit(tmp_path: Path, clip: dict) -> None:
    pytest.importorskip("decord")
    path = write_clip(tmp_path / "clip.mp4", **clip)
    with_pyav = read_video(path, NATIVE, "pyav")
    assert with_pyav == read_video(path, NATIVE, "decord")
    num_frames, width, height = (
        clip.get(key, value) for key, value in [("num_frames", 16), ("width", 64), ("height", 48)]
    )
    assert with_pyav.frames.shape == (num_frames, height, width, 3)
    ticks = np.array(clip.get("ticks", range(0, 15 * num_frames, 15)))
    np.testing.assert_allclose(with_pyav.timestamps, (ticks - ticks[0]) / 120, atol=1e-9)
    assert read_video(path, SMALL, "pyav") == read_video(path, SMALL, "decord")


REAL_VIDEOS = Path(__file__).resolve().parents[2] / "shared" / "realvideo" / "videos"


@pytest.mark.skipif(not REAL_VIDEOS.is_dir(), reason="the published generations are not here")
@pytest.mark.parametrize("step", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_backends_agree_bit_for_bit_on_published_generations(step: int) -> None:
    pytest.importorskip("decord")
    paths = sorted(REAL_VIDEOS.glob("*/*.mp4"))
    assert len(paths) == 52
    paths = paths[::step]
    with (
        DecodePool(replace(NATIVE, num_frames=4), backend="pyav") as with_pyav,
        DecodePool(replace(NATIVE, num_frames=4), backend="decord") as with_decord,
    ):
        for path, one, other in zip(
            paths, with_pyav.iterate(paths, ahead=4), with_decord.iterate(paths, ahead=4), strict=True
        ):
            assert one == other, path


def test_an_array_is_sampled_as_its_file_is(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", width=200, height=120, ticks=[5, 7, 31, 32, 90, 200, 210], num_frames=7)
    whole = read_video(path, NATIVE)
    sampled = sample_video(whole.frames, whole.timestamps + 40.0, SMALL)
    from_file = read_video(path, SMALL)
    assert np.array_equal(sampled.frames, from_file.frames)
    np.testing.assert_allclose(sampled.timestamps, from_file.timestamps, atol=1e-9)
    assert sample_video(whole.frames, whole.timestamps, SMALL) == from_file
    assert from_file.frames.shape == (4, 64, 96, 3)
    for fit in ("stretch", "crop"):
        squares = Sampling(4, 64 * 64, 64 * 64, 64, fit=fit)
        assert sample_video(whole.frames, whole.timestamps, squares) == read_video(path, squares)


def test_what_decord_would_get_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changing = write_size_changing_clip(tmp_path / "changing.ts")
    with pytest.raises(VideoDecodeError, match=r"changing\.ts: the frame size changes within the clip"):
        read_video(changing, NATIVE)
    trimmed = write_clip(tmp_path / "trimmed.mp4", ticks=list(range(-75, 165, 15)), codec_options={"bf": "0"})
    assert len(read_video(trimmed, NATIVE).frames) == 11
    pytest.importorskip("decord")
    with pytest.raises(VideoDecodeError, match=r'trimmed\.mp4: is trimmed by an edit list.*use backend="pyav"'):
        read_video(trimmed, NATIVE, "decord")
    with pytest.raises(ConfigError, match="backend: expected one of pyav, decord, got 'ffmpeg'"):
        read_video(trimmed, NATIVE, "ffmpeg")  # type: ignore[arg-type]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="decord is not installed"):
        read_video(trimmed, NATIVE, "decord")


@pytest.mark.skipif(
    not hasattr(av.VideoStream, "set_display_matrix"), reason="before 17.1, PyAV reads a display matrix but writes none"
)
@pytest.mark.parametrize(
    "matrix",
    [(x, 0, 0, y) for x in (1, -1) for y in (1, -1)] + [(0, x, y, 0) for x in (1, -1) for y in (1, -1)]
    + [(0, 0, 0, 0), (1, 1, 1, 1)],
)  # fmt: skip
def test_a_clip_is_read_as_players_show_it(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    path = write_clip(tmp_path / "turned.mp4", matrix=matrix)
    with av.open(str(path)) as container:
        stored = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    a, b, c, d = matrix if matrix[0] * matrix[3] != matrix[1] * matrix[2] else (1, 0, 0, 1)
    y, x = np.mgrid[: stored.shape[1], : stored.shape[2]]
    column, row = a * x + c * y, b * x + d * y
    column, row = column - column.min(), row - row.min()
    shown = np.zeros((len(stored), row.max() + 1, column.max() + 1, 3), np.uint8)
    shown[:, row, column] = stored[:, y, x]
    assert np.array_equal(read_video(path, NATIVE).frames, shown)
    if importlib.util.find_spec("decord") and (a, b, c, d) != (1, 0, 0, 1):
        with pytest.raises(VideoDecodeError, match=r'turned\.mp4: is shown turned or mirrored.*use backend="pyav"'):
            read_video(path, NATIVE, "decord")


def test_a_clip_without_its_repeated_frames_is_sampled_like_one_with_them(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), np.uint8)
    # From tick 16 on, the picture changes at every eighth tick only.
    shown = np.array([*range(16), *(16 + tick // 8 for tick in range(65))])
    changes = np.flatnonzero(np.diff(shown, prepend=-1))
    sampling = Sampling(6, 32 * 32, 32 * 32, 32)
    constant = sample_video(frames[shown], np.arange(81) / 30, sampling)
    variable = sample_video(frames[shown[changes]], changes / 30, sampling)
    assert np.array_equal(variable.frames, constant.frames)
    np.testing.assert_allclose(variable.timestamps, constant.timestamps, atol=1e-9)
    # Two of the times are within one held frame.
    held = sample_video(frames[:8], np.array([0, 1, 2, 3, 4, 5, 6, 30]) / 30, sampling)
    assert np.array_equal(held.frames, frames[[0, 6, 6, 6, 6, 7]])
    # Times that a container has rounded are an even rate.
    rounded = sample_video(frames, (np.arange(30) / 29.97).round(3), sampling)
    assert np.array_equal(rounded.frames, frames[np.linspace(0, 29, 6).round().astype(int)])


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_what_is_no_clip_is_an_error_that_names_the_file(tmp_path: Path, backend: decoding.Backend) -> None:
    if backend == "decord":
        pytest.importorskip("decord")
    whole = write_clip(tmp_path / "whole.mp4").read_bytes()
    index_first = write_clip(tmp_path / "index_first.mp4", container_options={"movflags": "faststart"}).read_bytes()
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video\n" * 50)
    (tmp_path / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "index_only.mp4").write_bytes(index_first[: len(index_first) * 2 // 3])
    # A playlist would have the decoder open other files.
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path / 'whole.mp4'}\n")
    (tmp_path / "stream.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nwhole.mp4\n#EXT-X-ENDLIST\n")
    write_sound(tmp_path / "sound.mp4")
    write_clip(tmp_path / "narrow.mp4", codec="mpeg4", width=1000, height=4)

    for name, reason in {
        "missing": "no such file; check the path or the video folder",
        "nul\0": "cannot be opened (embedded null byte)",
        "folder": "is a folder, expected a video file",
        "pipe": "cannot be opened (is no regular file)",
        "empty": "the file is empty; fetch it again",
        "text": "is not a readable video (Invalid data found when processing input); use mp4, mov, mkv",
        "truncated": "is not a readable video (Invalid data found when processing input); use mp4, mov, mkv",
        "index_only": "the file is truncated:",
        "list": "is not a readable video",
        "stream": "is not a readable video",
        "sound": "has no video stream",
        "narrow": "frames of 8000x32 pixels are too narrow",
    }.items():
        with pytest.raises(VideoDecodeError) as caught:
            read_video(tmp_path / f"{name}.mp4", SMALL, backend)
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / name}.mp4: {reason}"), message
        assert "\n" not in message


def test_frames_of_an_avi_without_bytes_show_the_frame_before(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "sparse.avi", codec="mpeg4")  # 120 chunks a second, of which 8 hold a frame
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        promised = container.streams.video[0].frames
        stored = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert (len(stored), promised) == (16, 226)
    repeated = stored[np.arange(promised) // 15]
    for backend in BACKENDS:
        for sampling in (NATIVE, SMALL):
            assert read_video(path, sampling, backend) == sample_video(repeated, np.arange(promised) / 120, sampling)

    # The last frame becomes such a chunk too, and one that readers pass over.
    last = content.rindex(b"00dc", 0, content.index(b"idx1"))
    length = int.from_bytes(content[last + 4 : last + 8], "little")
    content[last : last + 16] = b"00dc" + bytes(4) + b"JUNK" + (length - 8).to_bytes(4, "little")
    content[-4:] = bytes(4)  # its length in the index
    path.write_bytes(content)
    assert np.array_equal(read_video(path, NATIVE).frames[-20:], stored[[13] * 4 + [14] * 16])
    for size in range(len(content) // 4, last, 37):
        path.write_bytes(content[:size])
        with pytest.raises(VideoDecodeError, match=r"sparse\.avi: the file is truncated: \d+ of 226 frames found"):
            read_video(path, NATIVE)


def test_bare_frames_are_read_at_the_rate_that_they_tell(tmp_path: Path) -> None:
    for ending, codec, options in (
        ("h264", "libx264", {"bf": "2"}),
        ("hevc", "libx265", {"x265-params": "log-level=none"}),
    ):
        whole = read_video(write_clip(tmp_path / "a.mp4", codec=codec, codec_options=options), NATIVE)
        bare = write_clip(tmp_path / f"a.{ending}", codec=codec, codec_options=options)
        assert read_video(bare, NATIVE) == Video(whole.frames, np.arange(16) / 120)
    cut = tmp_path / "cut.h264"
    cut.write_bytes((tmp_path / "a.h264").read_bytes()[:-400])
    with pytest.raises(VideoDecodeError, match=r"cut\.h264: frame \d+ is damaged or cut off; fetch it again"):
        read_video(cut, NATIVE)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who opens a file")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_clip_opens_nothing_but_itself(tmp_path: Path, backend: decoding.Backend) -> None:
    with tricks_with_bait(tmp_path) as (tricks, check):
        stream = read_video(tmp_path / "own.ts", SMALL)
        with DecodePool(SMALL, num_workers=1, backend=backend, timeout_s=20) as pool:
            for path, outcome in zip(tricks, pool.attempt(tricks, ahead=1), strict=True):
                check(path)
                assert isinstance(outcome, VideoDecodeError) or outcome == stream, path
        for path in tricks:  # without the limits of a decoding process
            with contextlib.suppress(VideoDecodeError):
                read_video(path, SMALL, backend)
            check(path)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists the threads of a process")
def test_a_clip_is_decoded_without_threads(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", width=640, height=480)
    before, counts, is_done = len(os.listdir("/proc/self/task")), [0], threading.Event()

    def watch() -> None:
        while not is_done.is_set():
            counts.append(len(os.listdir("/proc/self/task")))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(5):
            read_video(path, NATIVE)
    finally:
        is_done.set()
        watcher.join()
    assert 0 < max(counts) <= before + 1


def test_clips_are_opened_in_one_place() -> None:
    folder = Path(decoding.__file__).parents[1]
    openers = {
        str(path.relative_to(folder))
        for path in folder.rglob("*.py")
        if re.search(r"\bav\.open\(|VideoReader\(|\bcv2\b|torchcodec", path.read_text())
    }
    assert openers == {"video/containers.py", "video/decoding.py", "video/encoding.py"}  # the last one writes clips


# --- the pool ---------------------------------------------------------------------------------------------------------


def test_a_clip_of_an_unknown_codec_is_named(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4")
    content = path.read_bytes()
    assert content.count(b"avc1") >= 1
    path.write_bytes(content.replace(b"avc1", b"zzzz"))
    with pytest.raises(VideoDecodeError, match=r"a\.mp4: .*codec"):
        read_video(path, SMALL)


def test_a_fragmented_clip_is_whole_or_truncated_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mp4", container_options={"movflags": "frag_keyframe+empty_moov"})
    content = whole.read_bytes()
    assert len(read_video(whole, replace(SMALL, num_frames=16)).frames) == 16
    tagged = tmp_path / "tagged.mp4"  # some programs write a tag behind the clip
    tagged.write_bytes(write_clip(tmp_path / "plain.mp4").read_bytes() + b"TAG" + bytes(125))
    assert len(read_video(tagged, SMALL).frames) == SMALL.num_frames
    last_box = content.rindex(b"mfra") - 4  # behind it lies nothing but an index of the fragments
    cut = tmp_path / "cut.mp4"
    for size in range(last_box - 400, last_box):
        cut.write_bytes(content[:size])
        with pytest.raises(VideoDecodeError, match=r"cut\.mp4: "):
            read_video(cut, SMALL)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    return [write_clip(folder / f"{seed}.mp4", num_frames=2 + 30 * (seed % 2), seed=seed) for seed in range(6)]


@pytest.fixture
def pool() -> Iterator[DecodePool]:
    with DecodePool(SMALL, num_workers=2, timeout_s=20.0) as pool:
        yield pool


def test_pool_keeps_the_order(clips: list[Path], pool: DecodePool) -> None:
    expected = [read_video(path, SMALL) for path in clips]
    assert pool.read(clips * 3) == expected * 3
    assert pool.read([]) == []
    assert list(pool.iterate(map(str, clips), ahead=1)) == expected


def test_pool_pulls_no_more_paths_than_asked_for(clips: list[Path], pool: DecodePool) -> None:
    pulled: list[Path] = []

    def source() -> Iterator[Path]:
        for path in clips:
            pulled.append(path)
            yield path

    videos = pool.iterate(source(), ahead=3)
    assert pulled == []
    next(videos)
    assert len(pulled) == 3
    next(videos)
    assert len(pulled) == 4


def test_an_error_stands_at_its_place_and_an_abandoned_iteration_leaves_nothing_behind(
    clips: list[Path], pool: DecodePool, tmp_path: Path
) -> None:
    bad = tmp_path / "bad\udcff.mp4"  # a name that is no UTF-8
    bad.write_text("no video")
    videos = pool.iterate([*clips[:3], bad, *clips[3:]])
    assert [next(videos) for _ in range(3)] == [read_video(path, SMALL) for path in clips[:3]]
    with pytest.raises(VideoDecodeError) as caught:
        next(videos)
    assert str(caught.value).startswith(f"{bad}: is not a readable video")
    abandoned = pool.iterate(clips * 5)
    assert isinstance(abandoned, Generator)
    next(abandoned)
    abandoned.close()
    assert pool.read(clips[::-1]) == [read_video(path, SMALL) for path in reversed(clips)]


def stop(process: subprocess.Popen[bytes]) -> None:
    """Returns once it has stopped: until then it may answer, or take a later signal first."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


def test_a_hanging_clip_is_given_up_and_a_killed_worker_is_replaced(
    clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = write_clip(tmp_path / "late.mp4")
    expected = read_video(clips[0], SMALL)
    with DecodePool(SMALL, num_workers=1, timeout_s=1.0) as pool:
        videos = pool.iterate([clips[0], late, clips[0]], ahead=1)
        assert next(videos) == expected
        (worker,) = pool._workers
        stop(worker.process)
        with pytest.raises(VideoDecodeError) as caught:
            next(videos)
        assert str(caught.value) == f"{late}: took longer than 1 s; remove this clip or replace it"
        assert pool.read([clips[0]]) == [expected]

    with DecodePool(SMALL, num_workers=1) as pool:
        assert pool.read([clips[0]]) == [expected]
        # A worker that is killed says nothing about its clip: another one reads it.
        killed: list[int] = []
        ask = video_pool._Worker.ask

        def kill_and_ask(worker: Any, *arguments: Any) -> Any:
            if len(killed) < kills:
                killed.append(worker.process.pid)
                worker.process.send_signal(signal.SIGKILL)
            return ask(worker, *arguments)

        monkeypatch.setattr(video_pool._Worker, "ask", kill_and_ask)
        kills = 1
        assert pool.read([clips[0]]) == [expected]
        assert len(killed) == 1
        kills = 3
        with pytest.raises(DecoderError) as lost:
            pool.read([clips[0]])
        assert str(lost.value).startswith(f"{clips[0]}: 2 decoding processes, one after the other, were killed")
        assert "signal 9, SIGKILL" in str(lost.value)
        assert len(set(killed)) == 3
        assert pool.read([clips[0]]) == [expected]
        # One that crashes does.
        (worker,) = pool._workers
        stop(worker.process)
        worker.process.send_signal(signal.SIGSEGV)  # takes effect when it goes on
        threading.Timer(0.3, worker.process.send_signal, [signal.SIGCONT]).start()
        with pytest.raises(VideoDecodeError) as caught:
            pool.read([late])
        assert str(caught.value).startswith(f"{late}: the decoder crashed (signal 11, SIGSEGV)")
        assert pool.read([clips[0]]) == [expected]
        # One that dies while nothing is asked of it costs no clip.
        (worker,) = pool._workers
        worker.process.kill()
        worker.process.wait()
        assert pool.read([clips[0]]) == [expected]
        assert worker not in pool._workers
        assert worker.process.stdin.closed
        assert worker.process.stdout.closed


def test_a_pool_is_started_once_a_worker_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    waits, goes_on = threading.Event(), threading.Event()
    set_up = video_pool._Worker.set_up

    def wait_and_set_up(worker: Any, setup: Any) -> None:
        waits.set()
        assert goes_on.wait(60)
        set_up(worker, setup)

    monkeypatch.setattr(video_pool._Worker, "set_up", wait_and_set_up)
    with DecodePool(SMALL, num_workers=1) as pool:
        started = pool.start()
        assert waits.wait(60)
        assert not pool.is_started  # the process runs, and may never read a clip
        goes_on.set()
        started.result(60)
        assert pool.is_started


def test_bad_clips_leave_no_file_open_in_a_worker(clips: list[Path], tmp_path: Path) -> None:
    # Titles that are not UTF-8, and clips that are broken at any place: a worker may open two files at once.
    titled = write_clip(tmp_path / "titled.mp4")
    content = titled.read_bytes()
    assert b"Lavf" in content  # the name of the program that wrote it
    titled.write_bytes(content.replace(b"Lavf", b"L\xefvf"))
    broken = []
    for place in range(8):
        broken.append(tmp_path / f"broken{place}.mp4")
        broken[-1].write_bytes(content[: len(content) * (place + 1) // 9])
    expected = read_video(clips[0], SMALL)
    with DecodePool(SMALL, num_workers=1) as pool:
        found = list(pool.attempt([titled, *broken, titled, titled, titled, clips[0]]))
        (worker,) = pool._workers
        assert len(list(Path(f"/proc/{worker.process.pid}/fd").iterdir())) <= 6
    assert found[0] == found[9] == found[-2] == read_video(titled, SMALL)
    assert all("open files" not in str(one) for one in found[1:9])
    assert found[-1] == expected


def test_a_worker_knows_no_secrets(clips: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ("SAFE_RLHF_VIDEO_API_KEY", "HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN")
    for name in secrets:
        monkeypatch.setenv(name, "a secret")
    monkeypatch.delenv(forked_decoders.ADDRESS, raising=False)
    with DecodePool(SMALL, num_workers=1) as pool:
        assert not pool.is_started
        pool.start().result(60)
        assert pool.is_started
        assert pool.read(clips[:1]) == [read_video(clips[0], SMALL)]
        (worker,) = pool._workers
        known = Path(f"/proc/{worker.process.pid}/environ").read_bytes().decode()
    names = {entry.partition("=")[0] for entry in known.split("\0")}
    assert "PATH" in names
    assert not names & set(secrets)
    assert "a secret" not in known


def test_a_clip_that_goes_away_while_it_is_read_is_an_error(clips: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: Path) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(decoding, "_read_index", gone)
    with pytest.raises(VideoDecodeError, match=r"0\.mp4: cannot be read \(No such file or directory\)"):
        read_video(clips[0], SMALL)


def test_decoding_needs_no_stderr_and_only_strings_in_sys_path(clips: list[Path]) -> None:
    program = f"""
import os, sys
from pathlib import Path
from safe_rlhf_video.video.pool import DecodePool
from safe_rlhf_video.video.sampling import Sampling
os.close(2)
sys.path.insert(0, Path("somewhere"))
with DecodePool(Sampling.from_dict({SMALL.to_dict()}), num_workers=1) as pool:
    print(len(pool.read([sys.argv[1]])[0].frames))
"""
    alone = {name: value for name, value in os.environ.items() if name != forked_decoders.ADDRESS}
    words = [sys.executable, "-c", program, str(clips[0])]
    done = subprocess.run(words, capture_output=True, text=True, env=alone, timeout=120, check=False)
    assert done.stdout == f"{len(read_video(clips[0], SMALL).frames)}\n", done


def test_failures_are_values_where_they_are_wanted(clips: list[Path], pool: DecodePool, tmp_path: Path) -> None:
    good, missing, again = pool.attempt([clips[0], tmp_path / "missing.mp4", clips[1]])
    assert [good, again] == pool.read(clips[:2])
    assert str(missing) == f"{tmp_path / 'missing.mp4'}: no such file; check the path or the video folder"


def test_a_clip_that_takes_more_memory_than_allowed_is_named(
    clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 8 frames of 2560 x 1440 take 88 MB, from a file of a few kilobytes.
    large = tmp_path / "large.mp4"
    with av.open(str(large), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 2560, 1440, "yuv420p"
        black = av.VideoFrame.from_ndarray(np.zeros((1440 * 3 // 2, 2560), dtype=np.uint8), format="yuv420p")
        for index in range(8):
            black.pts = index
            container.mux(stream.encode(black))
        container.mux(stream.encode(None))
    sampling = Sampling(num_frames=8)
    with DecodePool(sampling, num_workers=1, backend="pyav", memory_bytes=80 << 20) as pool:
        too_large, good = pool.attempt([large, clips[0]])
        assert str(too_large) == f"{large}: takes more than 0.0839 GB of memory to decode; write it anew, smaller"
        assert good == read_video(clips[0], sampling)
    assert len(read_video(large, sampling).frames) == 8
    monkeypatch.setattr(decoding, "MAX_FRAME_BYTES", 80 << 20)
    with pytest.raises(VideoDecodeError, match=r"8 frames of 2560x1440 pixels take 0\.1 GB, at most 0\.1 GB are read"):
        read_video(large, sampling)


def test_more_pixels_than_the_budget_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 5,000 frames of 8192x8192 pixels in 115 kB: each frame changes one pixel of a screen.
    screen = b"GIF89a" + struct.pack("<HH", 8192, 8192) + b"\x80\0\0\0\0\0\xff\xff\xff"
    frame = b"\x21\xf9\x04\0\x05\0\0\0\x2c" + struct.pack("<HHHH", 0, 0, 1, 1) + b"\0\x02\x02\x44\x01\0"
    large, tiny = tmp_path / "large.gif", tmp_path / "tiny.gif"
    large.write_bytes(screen + 5000 * frame + b";")
    tiny.write_bytes(screen[:6] + struct.pack("<HH", 16, 16) + screen[10:] + 40 * frame + b";")
    assert large.stat().st_size < 130_000
    with monkeypatch.context() as patched:
        patched.setattr(decoding, "_decode", lambda *_: pytest.fail("was decoded"))
        with pytest.raises(
            VideoDecodeError, match=r"5000 frames take 336 x 10\^9 pixels to decode, at most 20 x 10\^9"
        ):
            read_video(large, SMALL)
        # Many frames without pixels take long too.
        with DecodePool(SMALL, num_workers=1, max_pixels=10**6) as pool:
            (refused,) = pool.attempt([tiny])
        assert "40 frames take 0.00131 x 10^9 pixels to decode, at most 0.001 x 10^9 are read" in str(refused)
    assert len(read_video(tiny, SMALL).frames) == SMALL.num_frames
    # A container may say that its frames are smaller than they are.
    read_index = decoding._read_index
    monkeypatch.setattr(decoding, "_read_index", lambda path: replace(read_index(path), height=1, width=1))
    monkeypatch.setattr(decoding, "MIN_FRAME_PIXELS", 1)
    with pytest.raises(VideoDecodeError, match="frames take"):
        read_video(tiny, SMALL, max_pixels=1000)


def test_closing_ends_the_workers_even_within_a_clip(clips: list[Path]) -> None:
    pool = DecodePool(SMALL, num_workers=2)
    pool.read(clips[:2])
    processes = [worker.process for worker in pool._workers]
    for process in processes:
        stop(process)
    pool.submit(clips[0])
    pool.close()
    pool.close()
    assert processes
    assert all(process.returncode is not None for process in processes)
    with pytest.raises(RuntimeError, match="this DecodePool is closed"):
        pool.read(clips)


def test_pool_rejects_wrong_arguments() -> None:
    with pytest.raises(ConfigError, match="num_workers: expected at least 1, got 0"):
        DecodePool(SMALL, num_workers=0)
    with pytest.raises(ConfigError, match="timeout_s: expected a positive number of seconds, got inf"):
        DecodePool(SMALL, timeout_s=float("inf"))
    with DecodePool(SMALL) as pool, pytest.raises(ConfigError, match="ahead: expected at least 1, got 0"):
        next(pool.iterate([], ahead=0))


def test_pool_works_from_an_unguarded_script_in_another_folder(clips: list[Path], tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the working folder must not reach a worker')")
    program = f"""
import sys
sys.path.insert(0, {str(Path(decoding.__file__).parents[2])!r})
from safe_rlhf_video.video.pool import DecodePool
from safe_rlhf_video.video.sampling import Sampling
print(len(DecodePool(Sampling()).read({[str(clips[0])]!r})), "torch" in sys.modules)
"""
    # -P: this process itself must not meet json.py either. The pool is left unclosed on purpose.
    run = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.stdout == "1 False\n", run.stderr


def test_worker_answers_in_spite_of_printing_and_ends_with_its_input(clips: list[Path]) -> None:
    program = """
import os
from safe_rlhf_video.video import worker
read = worker.read_video
def noisy(*arguments):
    print("noise")
    os.write(1, b"noise")
    return read(*arguments)
worker.read_video = noisy
worker.main()
"""
    requests = b""
    setup = {"sampling": SMALL.to_dict(), "backend": "pyav", "timeout_s": 20.0, "memory_bytes": 1 << 30}
    setup |= {"max_seconds": None, "max_pixels": 10**9}
    for header in (setup, {"path": str(clips[0]), "folder": ""}):
        text = json.dumps(header).encode()
        requests += struct.pack("<I", len(text)) + text
    started = time.monotonic()
    run = subprocess.run([sys.executable, "-c", program], input=requests, capture_output=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert time.monotonic() - started < 60

    answers = io.BytesIO(run.stdout)

    def read_header() -> dict:
        return json.loads(answers.read(struct.unpack("<I", answers.read(4))[0]))

    assert read_header() == {"ready": True}
    expected = read_video(clips[0], SMALL)
    assert read_header() == {"shape": list(expected.frames.shape)}
    assert answers.read() == expected.timestamps.tobytes() + expected.frames.tobytes()
    assert b"noise" in run.stderr
