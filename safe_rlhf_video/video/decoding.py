"""Reads one video file, in this process; read untrusted files with `pool.DecodePool`.

PyAV first lists a clip's packets without decoding them, which gives the number of frames and their exact times. Then
PyAV decodes the chosen frames, or decord if asked. decord is faster with small clips, and bit-equal on whole H.264 and
HEVC clips of even height in 8-bit 4:2:0. It is not the default, because it silently replaces a frame that it cannot
decode by the one before.
"""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import av
import numpy as np

from safe_rlhf_video.errors import ConfigError, VideoDecodeError
from safe_rlhf_video.reading import open_regular
from safe_rlhf_video.video.containers import (
    BARE_STREAMS,
    CONTAINERS_TO_USE,
    check_boxes,
    count_null_frames,
    name_for_decord,
    open_clip,
)
from safe_rlhf_video.video.sampling import Sampling, Video, choose_frames, fit_frames, repeat_frames

Backend = Literal["pyav", "decord"]

# Frames keep their native size until they are resized: 690 of 1080p. A small file can claim any number of pixels.
MAX_FRAME_BYTES = 4 << 30

# Frames x height x width of a clip. All frames up to the last chosen one are decoded, at about 10^9 pixels a second
# (measured on one core: H.264 of 1080p and GIF). A GIF of 100 kB can claim 335 x 10^9.
MAX_CLIP_PIXELS = 20 * 10**9
MIN_FRAME_PIXELS = 1 << 15  # a smaller frame takes as long


# (a, b, c, d): the point (x, y) of a frame is shown at (a x + c y, b x + d y), but for scale and place.
_Matrix: TypeAlias = tuple[int, int, int, int]
_UPRIGHT: _Matrix = (1, 0, 0, 1)


@dataclass(frozen=True)
class _ClipIndex:
    """What the packets of a clip show without decoding it."""

    timestamps: np.ndarray  # float64 (T,), seconds from the first shown frame
    stored: np.ndarray  # int64 (T,), rising: which of the frames that a decoder gives is shown then
    num_hidden: int  # frames that are stored but that the container cuts away
    height: int
    width: int

    @property
    def num_shown(self) -> int:
        """How many frames a decoder gives."""
        return int(self.stored[-1]) + 1


def read_video(
    path: str | os.PathLike[str],
    sampling: Sampling,
    backend: Backend = "pyav",
    max_seconds: float | None = None,
    max_pixels: int = MAX_CLIP_PIXELS,
) -> Video:
    """Decodes, samples and resizes one clip.

    Args:
        path: the video file.
        sampling: which frames to keep, and their size.
        backend: the decoder. decord reads fewer clips: only mp4, mov, mkv, webm and avi, and none that an edit list
            trims, or that is shown turned or mirrored.
        max_seconds: a clip whose last frame begins later is not decoded; None for any length.
        max_pixels: a clip with more in all its frames together is not decoded; a frame counts for 2^15 at least.

    Returns:
        The clip, with frames turned and mirrored as the container says. Pixels are taken as square, whatever it says of
        their shape: so do the backbones' own processors.

    Raises:
        VideoDecodeError: the file cannot be read as a video; the one-line message names it and the reason.
        ConfigError: `backend` is unknown, or decord is not installed.
    """
    check_backend(backend)
    path = Path(path)
    try:
        check_file(path)
        index = _read_index(path)
        kept, places, seconds = choose_frames(index.timestamps, sampling.num_frames)
        _check_frame_bytes(index, len(kept))
        if max_seconds is not None and index.timestamps[-1] > max_seconds:
            raise VideoDecodeError(f"lasts {index.timestamps[-1]:.1f} s, at most {max_seconds:g} s are read; cut it")
        num_frames = index.num_shown + index.num_hidden
        _check_clip_pixels(num_frames * _frame_pixels(index.height, index.width), num_frames, max_pixels)
        stored, repeats = np.unique(index.stored[kept], return_inverse=True)
        frames = fit_frames(_decode(path, index, stored, backend, max_pixels), sampling)
        return Video(repeat_frames(frames, repeats[places]), seconds)
    except VideoDecodeError as error:
        raise VideoDecodeError(f"{path}: {error}") from error
    except OSError as error:  # it was there a moment ago
        raise VideoDecodeError(f"{path}: cannot be read ({_reason(error)}); check the file and its disk") from error


def check_backend(backend: str) -> None:
    """Raises ConfigError unless `backend` is known and can run here."""
    if backend not in get_args(Backend):
        raise ConfigError(f"backend: expected one of {', '.join(get_args(Backend))}, got {backend!r}")
    if backend == "decord" and importlib.util.find_spec("decord") is None:
        raise ConfigError('backend: decord is not installed; install it or use "pyav"')


def check_file(path: Path) -> None:
    """Raises VideoDecodeError, without the path, unless `path` is a regular file with content that can be opened."""
    try:
        if path.is_dir():
            raise VideoDecodeError("is a folder, expected a video file")
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise VideoDecodeError("the file is empty; fetch it again")
    except FileNotFoundError:
        raise VideoDecodeError("no such file; check the path or the video folder") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise VideoDecodeError(f"cannot be opened ({_reason(error)})") from error


def _read_index(path: Path) -> _ClipIndex:
    try:
        with open_clip(path) as container:
            stream = _video_stream(container)
            codec = stream.codec_context
            if codec is None:
                raise VideoDecodeError("its codec is unknown; write it anew as H.264 in mp4")
            if "mp4" in container.format.name:
                check_boxes(path)
            packets = [packet for packet in container.demux(stream) if packet.size]
            timestamps, stored = _timeline(path, stream, packets)
            return _ClipIndex(
                timestamps=timestamps,
                stored=stored,
                num_hidden=sum(packet.is_discard for packet in packets),
                height=codec.height,
                width=codec.width,
            )
    except MemoryError:  # one of FFmpeg's errors too
        raise
    except (av.FFmpegError, ValueError) as error:
        raise VideoDecodeError(f"is not a readable video ({_reason(error)}); use {CONTAINERS_TO_USE}") from error


def _check_frame_bytes(index: _ClipIndex, num_frames: int) -> None:
    num_bytes = 3 * num_frames * index.height * index.width
    if num_bytes > MAX_FRAME_BYTES:
        raise VideoDecodeError(
            f"{num_frames} frames of {index.width}x{index.height} pixels take {num_bytes / 1e9:.1f} GB, at most "
            f"{MAX_FRAME_BYTES / 1e9:.1f} GB are read; write it anew, smaller"
        )


def _frame_pixels(height: int, width: int) -> int:
    return max(height * width, MIN_FRAME_PIXELS)


def _check_clip_pixels(num_pixels: int, num_frames: int, max_pixels: int) -> None:
    if num_pixels > max_pixels:
        raise VideoDecodeError(
            f"{num_frames} frames take {num_pixels / 1e9:.3g} x 10^9 pixels to decode, at most {max_pixels / 1e9:.3g} "
            "x 10^9 are read; write it anew, smaller or shorter"
        )


def _timeline(path: Path, stream: av.VideoStream, packets: Sequence[av.Packet]) -> tuple[np.ndarray, np.ndarray]:
    """When frames are shown, and which: the first two arrays of a `_ClipIndex`."""
    kind = stream.container.format.name
    early = num_null = 0
    if kind == "avi" and len(packets) < stream.frames:
        early, num_null = count_null_frames(path, stream.index)
    num_found = len(packets) + early + num_null
    shown = [packet for packet in packets if not packet.is_discard]
    # The container's own count holds only if nothing is cut away: an edit list may drop whole packets.
    is_cut_short = num_found < stream.frames and len(shown) == len(packets)
    if is_cut_short or any(packet.is_corrupt for packet in packets):
        raise VideoDecodeError(f"the file is truncated: {num_found} of {stream.frames} frames found; fetch it again")
    if not shown:
        raise VideoDecodeError("the video stream has no frames")
    step = stream.time_base
    if kind in BARE_STREAMS:  # bare frames, with a rate at most; FFmpeg takes 25 a second where there is none
        times, step = list(range(len(shown))), 1 / (stream.codec_context.framerate or Fraction(25))
    else:  # an AVI only counts its chunks
        times = [packet.dts if kind == "avi" else packet.pts for packet in shown]
    ticks = np.array(sorted(tick for tick in times if tick is not None), dtype=np.int64)
    if step is None or len(ticks) < len(shown) or (np.diff(ticks) < 1).any():
        raise VideoDecodeError("its frames have no usable timestamps; write it anew as mp4")
    ticks, stored = _fill_gaps(ticks, num_null)
    # Exact integers are subtracted before the only rounding, so a clip's late start costs no precision.
    return np.array([float(int(tick - ticks[0]) * step) for tick in ticks], dtype=np.float64), stored


def _fill_gaps(ticks: np.ndarray, num_null: int) -> tuple[np.ndarray, np.ndarray]:
    """The ticks with those of an AVI's frames without bytes, which show the frame before; and which is shown then."""
    every = ticks[0] + np.arange(len(ticks) + num_null)
    if num_null == 0 or ticks[-1] > every[-1]:
        return ticks, np.arange(len(ticks))
    return every, np.searchsorted(ticks, every, side="right") - 1


def _decode(path: Path, index: _ClipIndex, indices: np.ndarray, backend: Backend, max_pixels: int) -> np.ndarray:
    """The frames at `indices`: uint8 (T, H, W, 3) at their native size."""
    if backend == "decord":
        return _decode_with_decord(path, index, indices)
    return _decode_with_pyav(path, index, indices, max_pixels)


def _decode_with_pyav(path: Path, index: _ClipIndex, indices: np.ndarray, max_pixels: int) -> np.ndarray:
    wanted = set(indices.tolist())
    kept: list[np.ndarray] = []
    num_decoded, num_pixels, matrix = 0, 0, _UPRIGHT
    try:
        with open_clip(path) as container:
            stream = _video_stream(container)
            # Frame threads decode ahead, and not all are joined when a container closes early.
            stream.thread_type = "SLICE"
            stream.codec_context.thread_count = 1
            is_bare = container.format.name in BARE_STREAMS
            for frame in container.decode(stream):
                if is_bare and frame.is_corrupt:  # no container says how many frames there are
                    raise VideoDecodeError(f"frame {num_decoded} is damaged or cut off; fetch it again")
                if num_decoded == 0:
                    matrix = _display_matrix(frame)
                if num_decoded in wanted:
                    # A thread for each frame gains nothing, and under load the system may refuse one.
                    kept.append(_orient(frame.to_ndarray(format="rgb24", threads=1), matrix))
                num_decoded += 1
                # The frames may be larger than the container says.
                num_pixels += _frame_pixels(frame.height, frame.width)
                _check_clip_pixels(num_pixels, num_decoded, max_pixels)
    except MemoryError:
        raise
    except (av.FFmpegError, ValueError) as error:
        raise VideoDecodeError(f"decoding failed at frame {num_decoded} ({_reason(error)}); fetch it again") from error
    _check_frame_count(num_decoded, index.num_shown)
    if len({frame.shape for frame in kept}) > 1:
        raise VideoDecodeError("the frame size changes within the clip; write it anew at one size")
    return np.stack(kept)


def _display_matrix(frame: av.VideoFrame) -> _Matrix:
    """The display matrix of a clip, of which every frame has a copy.

    A frame whose side data were read lives until the next garbage collection, so ask a single one. A matrix without an
    inverse shows nothing; players ignore it, and so does this.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return _UPRIGHT
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    return (a, b, c, d) if a * d != b * c else _UPRIGHT


def _orient(picture: np.ndarray, matrix: _Matrix) -> np.ndarray:
    """Turns and mirrors a picture (H, W, 3), which FFmpeg leaves to the player; other angles become right ones."""
    a, b, c, d = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):
        picture, a, d = picture.transpose(1, 0, 2), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _is_turned(path: Path) -> bool:
    try:
        with open_clip(path) as container:
            frame = next(container.decode(_video_stream(container)), None)
    except (av.FFmpegError, ValueError):
        return False  # decord reports what is wrong
    a, b, c, d = _UPRIGHT if frame is None else _display_matrix(frame)
    return a < 0 or d < 0 or b != 0 or c != 0


def _decode_with_decord(path: Path, index: _ClipIndex, indices: np.ndarray) -> np.ndarray:
    if index.num_hidden:
        raise VideoDecodeError('is trimmed by an edit list, where decord repeats frames; use backend="pyav"')
    if _is_turned(path):
        raise VideoDecodeError('is shown turned or mirrored, which decord heeds in part; use backend="pyav"')
    import decord  # not imported at the top of the file, because it is optional

    decord.logging.set_level(decord.logging.QUIET)
    # DECORD_EOF_RETRY_MAX keeps its default: a clip with more frames than that fails now and then, even a whole one.
    try:
        with name_for_decord(path) as name:
            reader = decord.VideoReader(name, num_threads=1)
        _check_frame_count(len(reader), index.num_shown)
        frames: np.ndarray = reader.get_batch(indices).asnumpy()
    except (OSError, decord.DECORDError, RuntimeError) as error:
        raise VideoDecodeError(f"decord cannot decode it ({_reason(error)})") from error
    return frames


def _check_frame_count(num_decoded: int, num_expected: int) -> None:
    if num_decoded != num_expected:
        raise VideoDecodeError(f"{num_decoded} of {num_expected} frames can be decoded; fetch it again")


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    stream = container.streams.best("video")
    if not isinstance(stream, av.VideoStream):
        raise VideoDecodeError("has no video stream")
    return stream


def _reason(error: Exception) -> str:
    """The cause in one line, without source positions of the library that reports it."""
    if isinstance(error, (OSError, av.FFmpegError)) and error.strerror:
        return error.strerror
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first_line.rsplit("] ", maxsplit=1)[-1].split(": ", maxsplit=1)[-1]
