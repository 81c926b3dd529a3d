"""Draws clips as small pictures for a page: a few frames side by side, as JPEG."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from safe_rlhf_video.errors import VideoDecodeError
from safe_rlhf_video.evaluation.judgements import JudgedClip
from safe_rlhf_video.video.frame_store import FrameStore
from safe_rlhf_video.video.pool import DecodePool
from safe_rlhf_video.video.sampling import Sampling, Video

NUM_FRAMES = 4
MAX_HEIGHT = 120
QUALITY = 82
GAP = 3
# No larger than a picture of MAX_HEIGHT needs, however wide.
SAMPLING = Sampling(num_frames=NUM_FRAMES, min_pixels=1, max_pixels=2 * MAX_HEIGHT * MAX_HEIGHT, size_multiple=1)


def draw_thumbnails(
    clips: Sequence[JudgedClip], files: Mapping[str, Path], frame_store: str | None, workers: int
) -> dict[str, str | VideoDecodeError]:
    """Pictures of clips, decoded in child processes, or from a frame store where a clip has no file.

    Args:
        clips: each once.
        files: name -> clip; it need not be there.

    Returns:
        name -> `data:` URI, or what is wrong with the clip.
    """
    there = [clip.name for clip in clips if clip.name in files and (frame_store is None or files[clip.name].is_file())]
    pictures: dict[str, str | VideoDecodeError] = {}
    if frame_store is not None and len(there) < len(clips):
        gone = [clip.name for clip in clips if clip.name not in there]
        try:
            store = FrameStore(frame_store)
            pictures = {name: _read_stored(store, name) for name in gone}
        except VideoDecodeError as error:
            if not files:  # the store was asked for
                raise
            pictures = dict.fromkeys(gone, error)
    if there:
        with DecodePool(SAMPLING, workers) as pool:
            for name, video in zip(there, pool.attempt([files[name] for name in there]), strict=True):
                pictures[name] = video if isinstance(video, VideoDecodeError) else encode_strip(video)
    return pictures


def find_files(clips: Sequence[JudgedClip], video_dir: Path | None) -> dict[str, Path]:
    """Where clips are: where they were evaluated, or in a folder that they moved to.

    Args:
        video_dir: a clip is the file in it that shares the longest end of the old path.
    """
    files = {clip.name: Path(clip.video_file) for clip in clips if clip.video_file is not None}
    if video_dir is None:
        return files
    return {name: _find_file(file, video_dir) for name, file in files.items()}


def _find_file(file: Path, folder: Path) -> Path:
    moved = [folder.joinpath(*file.parts[start:]) for start in range(1, len(file.parts))]
    return next((path for path in moved if path.is_file()), folder.joinpath(*file.parts[-2:]))


def encode_strip(video: Video) -> str:
    """The clip's first to last frame, a few of them side by side, as a `data:` URI."""
    chosen = np.linspace(0, len(video.frames) - 1, min(NUM_FRAMES, len(video.frames))).round().astype(int)
    frames = [_resize(Image.fromarray(frame)) for frame in video.frames[chosen]]
    width, height = frames[0].size
    strip = Image.new("RGB", (len(frames) * (width + GAP) - GAP, height), "gray")
    for place, frame in enumerate(frames):
        strip.paste(frame, (place * (width + GAP), 0))
    file = io.BytesIO()
    strip.save(file, "JPEG", quality=QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _resize(frame: Image.Image) -> Image.Image:
    if frame.height > MAX_HEIGHT:
        return frame.resize((max(1, frame.width * MAX_HEIGHT // frame.height), MAX_HEIGHT))
    # What a model saw may be tiny: its own pixels, not a blur.
    times = MAX_HEIGHT // frame.height
    return frame.resize((frame.width * times, frame.height * times), Image.Resampling.NEAREST)


def _read_stored(store: FrameStore, name: str) -> str | VideoDecodeError:
    try:
        return encode_strip(store.read(name))
    except VideoDecodeError as error:
        return error
