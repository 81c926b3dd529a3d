"""Encodes the frames of a clip for the frame store: raw, or each as a JPEG."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from safe_rlhf_video.errors import ConfigError

CodecName = Literal["raw", "jpeg"]


@dataclass(frozen=True)
class Codec:
    """How frames are stored.

    Attributes:
        name: "raw" gives back the decoded frames bit for bit, without work; "jpeg" takes a fraction of the space,
            decodes at every read and changes pixels a little.
        quality: of JPEG, 1 to 100; colour is never subsampled. Raw frames ignore it.

    Raises:
        ConfigError: a value is wrong.
    """

    name: CodecName = "raw"
    quality: int = 95

    def __post_init__(self) -> None:
        if self.name not in get_args(CodecName):
            raise ConfigError(f"codec: expected one of {', '.join(get_args(CodecName))}, got {self.name!r}")
        if type(self.quality) is not int or not 1 <= self.quality <= 100:
            raise ConfigError(f"codec.quality: expected an integer from 1 to 100, got {self.quality!r}")

    def to_dict(self) -> dict[str, Any]:
        """The fields that matter, as plain values; `from_dict` reads them back."""
        return {"name": self.name, "quality": self.quality} if self.name == "jpeg" else {"name": self.name}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Codec":
        """Builds a codec from plain values; raises ConfigError if one is wrong."""
        return cls(**values)


def encode_frames(frames: np.ndarray, codec: Codec) -> list[memoryview]:
    """The bytes to store for frames uint8 (T, H, W, 3): one piece for all raw frames, one per JPEG frame."""
    if codec.name == "raw":
        return [np.ascontiguousarray(frames).data.cast("B")]
    pieces = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=codec.quality, subsampling=0)
        pieces.append(buffer.getbuffer())
    return pieces


def decode_frames(payload: memoryview, shape: Sequence[int], piece_bytes: Sequence[int], codec: Codec) -> np.ndarray:
    """Decodes what `encode_frames` gave to frames uint8 (T, H, W, 3); raw frames are a view of `payload`.

    Args:
        payload: the pieces one after the other.
        shape: (T, H, W, 3).
        piece_bytes: the length of each piece.
        codec: of the pieces.
    """
    if codec.name == "raw":
        return np.frombuffer(payload, dtype=np.uint8).reshape(shape)
    frames = np.empty(shape, dtype=np.uint8)
    start = 0
    for frame, length in zip(frames, piece_bytes, strict=True):
        with Image.open(io.BytesIO(payload[start : start + length]), formats=["JPEG"]) as image:
            frame[:] = np.asarray(image)
        start += length
    return frames
