"""Writes frames as a clip that every player and this package's decoders read."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np


def encode_mp4(frames: np.ndarray, fps: Fraction | int) -> bytes:
    """H.264 in MP4; one thread, so that the same frames always give the same bytes.

    Args:
        frames: uint8 (T, H, W, 3), H and W even.
        fps: frames a second.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        # No macroblock trees: with them, x264 reads memory that it has not written, and some clips differ between runs.
        stream.options = {"preset": "veryfast", "crf": "16", "threads": "1", "x264-params": "mbtree=0"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
