"""Picks the frames of a clip to keep, and resizes them; no other module of the project does either."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from safe_rlhf_video.errors import ConfigError, VideoDecodeError

MAX_ASPECT_RATIO = 200

Fit = Literal["aspect", "stretch", "crop"]


@dataclass(frozen=True, eq=False)
class Video:
    """A sampled clip.

    Attributes:
        frames: uint8, (T, H, W, 3), RGB, T >= 1.
        timestamps: float64, (T,), seconds from the first frame of the clip, strictly increasing.

    Raises:
        VideoDecodeError: an array has another dtype or shape, or the timestamps do not increase.
    """

    frames: np.ndarray
    timestamps: np.ndarray

    def __post_init__(self) -> None:
        _check_frames(self.frames)
        _check_timestamps(self.timestamps, len(self.frames))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Video):
            return NotImplemented
        return np.array_equal(self.frames, other.frames) and np.array_equal(self.timestamps, other.timestamps)

    __hash__ = None  # type: ignore[assignment]  # arrays can be changed in place


@dataclass(frozen=True)
class Sampling:
    """How many frames of a clip are kept, and how large they are.

    Attributes:
        num_frames: frames per clip, spread evenly over it; a shorter clip keeps all of its frames.
        min_pixels: height * width of a frame after resizing is at least this.
        max_pixels: height * width of a frame after resizing is at most this, unless `size_multiple` squared is more.
        size_multiple: height and width become multiples of this, the backbone's patch size times its merge size.
        fit: "aspect" keeps a clip's shape as nearly as the multiples allow. For backbones that take only squares of one
            size, `size_multiple` is the side: "stretch" resizes any shape to it (SmolVLM2), "crop" resizes the shorter
            side to it and cuts the middle out (Video-LLaVA).

    Raises:
        ConfigError: a number is not a positive integer, `min_pixels` exceeds `max_pixels`, `fit` is unknown, or the
            pixels differ from those of the square.
    """

    num_frames: int = 8
    min_pixels: int = 128 * 128
    max_pixels: int = 448 * 448
    size_multiple: int = 32
    fit: Fit = "aspect"

    def __post_init__(self) -> None:
        for name in ("num_frames", "min_pixels", "max_pixels", "size_multiple"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(f"sampling.{name}: expected an integer of at least 1, got {value!r}")
        if self.fit not in get_args(Fit):
            raise ConfigError(f"sampling.fit: expected one of {', '.join(get_args(Fit))}, got {self.fit!r}")
        if self.min_pixels > self.max_pixels:
            raise ConfigError(
                f"sampling.min_pixels: {self.min_pixels} exceeds sampling.max_pixels, {self.max_pixels}; lower it"
            )
        area = self.size_multiple**2
        if self.fit != "aspect" and (self.min_pixels, self.max_pixels) != (area, area):
            raise ConfigError(
                f"sampling.fit: with {self.fit} frames are squares of sampling.size_multiple, {self.size_multiple}; "
                f"set sampling.min_pixels and sampling.max_pixels to {area}"
            )

    def to_dict(self) -> dict[str, int | str]:
        """The fields as plain values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Sampling":
        """Builds a sampling from plain values; a missing field takes its default.

        Raises:
            ConfigError: a key is unknown or a value is wrong.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(f"sampling.{unknown[0]}: unknown key, expected one of {', '.join(known)}")
        return cls(**values)


def choose_frames(timestamps: np.ndarray, num_frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chooses frames evenly over the time of a clip, the first and the last included; all of a clip that has few.

    At an even rate these are the frames that Qwen3-VL's own processor chooses, which counts frames. A clip that leaves
    out repeated frames, as screen recordings and GIFs do, is treated like one that has them: for each time it gives the
    frame that a player shows then, so a frame may be chosen several times.

    Args:
        timestamps: (T,), seconds, strictly increasing.

    Returns:
        Indices of the distinct frames, int64 (K,), rising; the place among them of each chosen frame, int64 (N,), for
        `repeat_frames`; and seconds from the first frame, float64 (N,). N = min(num_frames, T).

    Raises:
        VideoDecodeError: there is no frame.
    """
    num_available = len(timestamps)
    if num_available < 1:
        raise VideoDecodeError("the clip has no frames")
    seconds = timestamps - timestamps[0]
    if num_available <= num_frames:
        return np.arange(num_available), np.arange(num_available), seconds
    evenly = np.linspace(0.0, seconds[-1], num_available)
    # Half a step of leeway: containers round times, and a rate may waver.
    if np.abs(seconds - evenly).max() <= evenly[1] / 2:
        # NumPy rounds halves to even, like that processor; other rounding would pick other frames.
        indices = np.linspace(0, num_available - 1, num_frames).round().astype(np.int64)
        return indices, np.arange(num_frames), seconds[indices]
    wanted = np.linspace(0.0, seconds[-1], num_frames)
    # A millisecond of leeway, to which containers round times.
    kept, places = np.unique(np.searchsorted(seconds, wanted + 1e-3, side="right") - 1, return_inverse=True)
    return kept, places, wanted


def repeat_frames(frames: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The frames at rising `places`, where one may occur several times; without a copy if none does."""
    return frames if len(frames) == len(places) else frames[places]


def target_size(height: int, width: int, sampling: Sampling) -> tuple[int, int]:
    """Size (height, width) that frames of `height` x `width` get.

    With fit "aspect" the rule is that of Qwen-VL's training, per frame: the nearest multiples of `size_multiple`,
    scaled down or up if the area would leave `min_pixels` .. `max_pixels`.

    Raises:
        VideoDecodeError: one side is more than 200 times the other, or a side is 0.
    """
    multiple = sampling.size_multiple
    if min(height, width) < 1:
        raise VideoDecodeError(f"frames of {width}x{height} pixels are empty")
    if sampling.fit != "aspect":
        _check_aspect_ratio(height, width)
        return multiple, multiple
    if min(height, width) < multiple:
        enlargement = max(multiple / height, multiple / width)
        height, width = int(height * enlargement), int(width * enlargement)
    _check_aspect_ratio(height, width)

    new_height = round(height / multiple) * multiple
    new_width = round(width / multiple) * multiple
    if new_height * new_width > sampling.max_pixels:
        shrink = math.sqrt(height * width / sampling.max_pixels)
        new_height = max(multiple, math.floor(height / shrink / multiple) * multiple)
        new_width = max(multiple, math.floor(width / shrink / multiple) * multiple)
    elif new_height * new_width < sampling.min_pixels:
        grow = math.sqrt(sampling.min_pixels / (height * width))
        new_height = math.ceil(height * grow / multiple) * multiple
        new_width = math.ceil(width * grow / multiple) * multiple
    return new_height, new_width


def resize_frames(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes frames uint8 (T, H, W, 3) to uint8 (T, height, width, 3), bicubic with antialiasing.

    Frames that have the size already are returned without a copy.
    """
    if frames.shape[1:3] == (height, width):
        return frames
    resized = np.empty((len(frames), height, width, 3), dtype=np.uint8)
    for index, frame in enumerate(frames):
        resized[index] = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
    return resized


def fit_frames(frames: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Brings frames uint8 (T, H, W, 3) to the size that `sampling` asks for; frames of that size are not copied.

    Raises:
        VideoDecodeError: one side is more than 200 times the other, or a side is 0.
    """
    height, width = frames.shape[1:3]
    new_height, new_width = target_size(height, width, sampling)
    if sampling.fit != "crop":
        return resize_frames(frames, new_height, new_width)
    # Rounded down to whole pixels, in the longer side and in the cut, like the official image processors.
    side = sampling.size_multiple
    short = min(height, width)
    frames = resize_frames(frames, side * height // short, side * width // short)
    top, left = (frames.shape[1] - side) // 2, (frames.shape[2] - side) // 2
    return np.ascontiguousarray(frames[:, top : top + side, left : left + side])


def sample_video(frames: np.ndarray, timestamps: np.ndarray, sampling: Sampling) -> Video:
    """Samples a decoded clip; reading its file with the same sampling gives an equal `Video`.

    Args:
        frames: uint8, (T, H, W, 3), RGB, all frames of the clip.
        timestamps: (T,), seconds on any clock; the result counts them from the first frame of the clip.
        sampling: which frames to keep and their size.

    Raises:
        VideoDecodeError: an array has a wrong dtype or shape, or the clip cannot be sampled.
    """
    _check_frames(frames)
    timestamps = np.asarray(timestamps, dtype=np.float64)
    _check_timestamps(timestamps, len(frames))
    kept, places, seconds = choose_frames(timestamps, sampling.num_frames)
    return Video(repeat_frames(fit_frames(frames[kept], sampling), places), seconds)


def _check_aspect_ratio(height: int, width: int) -> None:
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise VideoDecodeError(f"frames of {width}x{height} pixels are too narrow: at most 1 to {MAX_ASPECT_RATIO}")


def _check_frames(frames: np.ndarray) -> None:
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise VideoDecodeError(f"frames: expected a uint8 array of shape (T, H, W, 3), got {_describe(frames)}")
    if len(frames) == 0:
        raise VideoDecodeError("the clip has no frames")


def _check_timestamps(timestamps: np.ndarray, num_frames: int) -> None:
    if not isinstance(timestamps, np.ndarray) or timestamps.dtype != np.float64 or timestamps.shape != (num_frames,):
        raise VideoDecodeError(f"timestamps: expected float64 of shape ({num_frames},), got {_describe(timestamps)}")
    if not np.isfinite(timestamps).all() or (np.diff(timestamps) <= 0).any():
        raise VideoDecodeError("timestamps: expected finite, strictly increasing seconds")


def _describe(value: object) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
