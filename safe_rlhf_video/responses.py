"""Defines what a model judges: a generated video, or in text corpora (PKU-SafeRLHF) a written response."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from safe_rlhf_video.video.sampling import Video


@dataclass(frozen=True)
class TextResponse:
    """A written response to a prompt; the same model judges it as a video, without frames."""

    text: str


Response: TypeAlias = Video | TextResponse


def content_digest(response: Response) -> str:
    """SHA-256 of a response, hexadecimal; two responses with the same digest get the same score for a prompt."""
    if isinstance(response, TextResponse):
        return hashlib.sha256(b"text" + response.text.encode(errors="surrogatepass")).hexdigest()
    digest = hashlib.sha256(repr(response.frames.shape).encode())
    digest.update(np.ascontiguousarray(response.frames).data)
    digest.update(np.ascontiguousarray(response.timestamps).data)
    return digest.hexdigest()
