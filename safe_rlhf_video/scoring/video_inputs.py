"""Reads the videos that users hand in: files, bytes, arrays, tensors and PIL images."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL.Image import Image

from safe_rlhf_video.errors import SampleError, VideoDecodeError
from safe_rlhf_video.responses import Response, TextResponse
from safe_rlhf_video.video.pool import DecodePool
from safe_rlhf_video.video.sampling import Sampling, Video, sample_video

# A path, bytes of a file, a Video, a TextResponse, or, with fps=, a uint8 array or tensor (T, H, W, 3) or a list of PIL
# images.
VideoLike: TypeAlias = Any

# Rounding to bfloat16 moves a number between 0 and 1 by at most this.
_RANGE_TOLERANCE = 0.004


def read_videos(videos: Sequence[VideoLike], fps: float | None, sampling: Sampling, pool: DecodePool) -> list[Response]:
    """Decodes files and bytes, and samples all videos as the model expects; texts stay as they are.

    Args:
        fps: frames per second of arrays and images.

    Raises:
        VideoDecodeError: a file cannot be read.
        SampleError: an array without `fps`, or of a wrong form.
    """
    # Arrays first: a wrong one is reported before any file is decoded.
    sampled: list[Response | None] = [
        None if isinstance(video, str | Path | bytes) else _sample(video, fps, sampling) for video in videos
    ]
    decoded = iter(_decode(videos, pool))
    return [next(decoded) if video is None else video for video in sampled]


def as_frames(video: VideoLike, place: int = 0) -> VideoLike:
    """Converts the output of generators to uint8 frames (T, H, W, 3); returns anything but arrays unchanged.

    Args:
        video: array or tensor (T, H, W, 3), (T, 3, H, W), (H, W, 3) or (3, H, W), of uint8 or of floats in [0, 1].
        place: index of the video, for messages.

    Raises:
        SampleError: its floats are not in [0, 1], or it may be (T, 3, H, W) as well as (3, T, H, W).
    """
    if isinstance(video, torch.Tensor):
        video = (video.float() if video.is_floating_point() else video).detach().cpu().numpy()
    if not isinstance(video, np.ndarray):
        return video
    if video.ndim == 3:
        video = video[None]
    if video.ndim == 4 and video.shape[3] != 3 and video.shape[:2] == (3, 3):
        raise SampleError(f"video {place}: shape {video.shape} may be (T, 3, H, W) or (3, T, H, W); give (T, H, W, 3)")
    if video.ndim == 4 and video.shape[3] != 3 and video.shape[1] == 3:
        video = video.transpose(0, 2, 3, 1)
    if np.issubdtype(video.dtype, np.floating) and video.size:
        low, high = float(video.min()), float(video.max())
        # A NaN compares as false.
        if not (low >= -_RANGE_TOLERANCE and high <= 1.0 + _RANGE_TOLERANCE):
            raise SampleError(
                f"video {place}: its floats go from {low:g} to {high:g}; bring them to [0, 1], or give uint8"
            )
        video = (video * 255.0).round().clip(0, 255).astype(np.uint8)
    return video


def _decode(videos: Sequence[VideoLike], pool: DecodePool) -> list[Video]:
    """Decodes the paths and bytes among some videos; bytes are written to a temporary folder for the decoder."""
    if not any(isinstance(video, bytes) for video in videos):
        return pool.read([video for video in videos if isinstance(video, str | Path)])
    with tempfile.TemporaryDirectory(prefix="safe_rlhf_video-") as scratch:
        paths: list[Path] = []
        name_of: dict[Path, str] = {}  # of files with bytes
        for place, video in enumerate(videos):
            if isinstance(video, bytes):
                paths.append(Path(scratch, str(place)))
                paths[-1].write_bytes(video)
                name_of[paths[-1]] = f"videos[{place}], given as bytes"
            elif isinstance(video, str | Path):
                paths.append(Path(video))
        try:
            return pool.read(paths)
        except VideoDecodeError as error:
            path, _, reason = str(error).partition(": ")
            raise VideoDecodeError(f"{name_of.get(Path(path), path)}: {reason}") from error


def _sample(video: VideoLike, fps: float | None, sampling: Sampling) -> Response:
    if isinstance(video, TextResponse):
        return video
    if isinstance(video, Video):
        frames, timestamps = video.frames, video.timestamps
    else:
        frames = _stack_frames(video)
        if fps is None:
            raise SampleError("a video given as an array needs fps= (frames a second): the backbone reads times")
        if not (isinstance(fps, int | float | np.number) and math.isfinite(fps) and fps > 0):
            raise SampleError(f"fps: expected a positive number of frames a second, got {fps!r}")
        timestamps = np.arange(len(frames)) / float(fps)
    try:
        return sample_video(frames, timestamps, sampling)
    except VideoDecodeError as error:
        raise SampleError(f"a video given as an array: {error}") from error


def _stack_frames(video: VideoLike) -> np.ndarray:
    if isinstance(video, torch.Tensor):
        if video.dtype != torch.uint8:  # NumPy has no bfloat16, for one
            raise SampleError(f"a video given as a tensor: expected uint8 of shape (T, H, W, 3), got {video.dtype}")
        frames: np.ndarray = video.detach().cpu().numpy()
        return frames
    if isinstance(video, np.ndarray):
        return video
    if isinstance(video, list | tuple) and video and all(isinstance(frame, Image) for frame in video):
        if len({frame.size for frame in video}) > 1:
            raise SampleError("a video given as PIL images: its frames have different sizes; resize them to one")
        if deep := [frame.mode for frame in video if frame.mode.startswith(("I", "F"))]:
            # Pillow cuts them off at 255.
            raise SampleError(f"a video given as PIL images: mode {deep[0]} has more than 8 bits a channel; give RGB")
        return np.stack([np.asarray(frame.convert("RGB")) for frame in video])
    raise SampleError(
        f"a video must be a path, bytes, a Video, a uint8 array or tensor (T, H, W, 3) or a list of PIL images, "
        f"got {type(video).__name__}"
    )
