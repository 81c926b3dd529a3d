"""Clips as small pictures within a page: frames side by side, as JPEG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from safe_rlhf_video.errors import VideoDecodeError
from safe_rlhf_video.evaluation.labelled_clips import LabelledClips
from safe_rlhf_video.video.pool import DecodePool
from safe_rlhf_video.video.sampling import Sampling, Video

NUM_FRAMES = 4
MAX_HEIGHT = 120
QUALITY = 82
GAP = 3
# No larger than a picture of MAX_HEIGHT needs, however wide.
SAMPLING = Sampling(num_frames=NUM_FRAMES, min_pixels=1, max_pixels=2 * MAX_HEIGHT * MAX_HEIGHT, size_multiple=1)


def draw_thumbnails(clips: LabelledClips, names: Sequence[str], workers: int) -> dict[str, str | VideoDecodeError]:
    """Pictures of clips, from the frame store or else decoded in child processes.

    Args:
        names: of clips; each once.

    Returns:
        name -> `data:` URI, or what is wrong with the clip.
    """
    if clips.store is not None:
        return {name: _read_stored(clips, name) for name in names}
    if not names:
        return {}
    with DecodePool(SAMPLING, workers) as pool:
        read = pool.attempt([clips.files[name] for name in names])
        return {
            name: video if isinstance(video, VideoDecodeError) else encode_strip(video)
            for name, video in zip(names, read, strict=True)
        }


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


def _read_stored(clips: LabelledClips, name: str) -> str | VideoDecodeError:
    assert clips.store is not None
    try:
        return encode_strip(clips.store.read(name))
    except VideoDecodeError as error:
        return error
