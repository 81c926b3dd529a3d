"""Reads labels that apply or not, and lays them out as one signed column."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from safe_rlhf_video.heads import HARM_HEADS, HEADS, TEXT_HARM_HEADS, Head
from safe_rlhf_video.kinds.kind import FloatArray, LabelKind
from safe_rlhf_video.wording import words

if TYPE_CHECKING:
    from safe_rlhf_video.data.records import VideoSample

ANY = "harm_any"
_OF_VIDEO = {HEADS[name].key: name for name in HARM_HEADS if name != ANY}
_OF_TEXT = {HEADS[name].key: name for name in TEXT_HARM_HEADS}


class Label(LabelKind):
    """A label that applies or not; its score is a logit, which moderation flags."""

    def classes(self, head: Head) -> tuple[str, ...]:
        """What a video can be: without the label, with it."""
        return ("does_not", "applies")

    def num_columns(self, head: Head) -> int:
        """One, whose sign says whether the label applies."""
        return 1

    def said(self, video: VideoSample) -> Iterator[tuple[str, int]]:
        """What one record says: names of heads, each with 1 if its label applies and 0 if not.

        A video is harmful in any way if a label applies or it is not safe. It is not if it is safe, or if nobody says
        whether it is safe and none of all labels applies; a text likewise with its harm categories. A record may say
        both.
        """
        of_video, of_text = video.harm_labels or {}, video.harm_categories or {}
        for key, applies in of_video.items():
            yield _OF_VIDEO[key], int(applies)
        for key, applies in of_text.items():
            yield _OF_TEXT[key], int(applies)
        is_harmful = any(of_video.values()) or any(of_text.values())
        if is_harmful or video.is_safe is False:
            yield ANY, 1
        is_complete = len(of_video) == len(_OF_VIDEO) or len(of_text) == len(_OF_TEXT)
        if video.is_safe or (is_complete and not is_harmful and video.is_safe is None):
            yield ANY, 0

    def encode(self, known: NDArray[np.int64], weights: FloatArray) -> FloatArray:
        """The class's weight, negative where the label does not apply: (N, 1)."""
        signed = np.array([-weights[0], weights[1], 0.0])  # the last is also that of -1
        return signed[known][:, None]

    def decode(self, targets: NDArray[np.floating]) -> NDArray[np.int64]:
        """The classes by the sign of (N, 1)."""
        column = targets[:, 0]
        return np.where(column > 0, 1, np.where(column < 0, 0, -1))

    def meaning(self, head: Head) -> str:
        if head.judges == "text":
            what = f"PKU-SafeRLHF's category {words(head.name.removeprefix('text_harm_'))} applies to a text"
            return f"how likely {what}, as a logit with the weights that its classes had in training"
        return (
            f"how likely the label {words(head.name.removeprefix('harm_'))} applies, as a logit with the weights that "
            "its classes had in training (`Scorer.moderate` takes them out)"
        )


KIND = Label("label")
