"""Small video files that tests write for themselves."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_clip(
    path: Path,
    num_frames: int = 16,
    width: int = 64,
    height: int = 48,
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    ticks: list[int] | None = None,  # times of the frames in 1/120 s; 8 frames a second otherwise
    codec_options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    matrix: tuple[int, int, int, int] | None = None,  # a point (x, y) is shown at (a x + c y, b x + d y)
    seed: int = 0,
    picture: np.ndarray | None = None,  # what drifts through the clip; noise otherwise
) -> Path:
    """A clip of drifting noise, so that no two of its frames are equal."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if picture is not None:
        noise = picture
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=120, options=codec_options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        if matrix is not None:
            a, b, c, d = (factor << 16 for factor in matrix)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.roll(noise, 3 * index, axis=1) // (1 + index % 3), format="rgb24")
            frame.pts = ticks[index] if ticks else 15 * index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_size_changing_clip(path: Path) -> Path:
    """A .ts file whose frames are 64 x 48 at first and 96 x 64 from the ninth on."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        larger = av.CodecContext.create("libx264", "w")
        larger.width, larger.height, larger.pix_fmt, larger.time_base = 96, 64, "yuv420p", Fraction(1, 8)
        for index in range(16):
            encoder = stream.codec_context if index < 8 else larger
            picture = np.ascontiguousarray(noise[: encoder.height, : encoder.width])
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 8)
            packets = encoder.encode(frame)
            if index in (7, 15):
                packets += encoder.encode(None)
            for packet in packets:
                packet.stream = stream
                container.mux(packet)
    return path
