"""Gathers the distinct clips of a file, each with its safety label, prompt and generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from safe_rlhf_video.data.preferences import normalise_prompt, number_prompts, safety_signs, videos_of
from safe_rlhf_video.data.records import PairSample, VideoSample


@dataclass(frozen=True)
class DistinctClips:
    """The N distinct clips of a file.

    Attributes:
        sign_of: (prompt_id, video_id) -> +1 safe, -1 unsafe, 0 unknown.
        signs: (N,) the same.
        names: prompt_id/video_id.
        prompts: (N,) of `number_prompts`.
        texts: their prompts.
        made_by: the generator's name; None where it is unknown.
    """

    sign_of: Mapping[tuple[str, str], int]
    signs: np.ndarray
    names: list[str]
    prompts: np.ndarray
    texts: list[str]
    made_by: list[str | None]

    @property
    def distinct_texts(self) -> set[str]:
        return {normalise_prompt(text) for text in self.texts}

    @property
    def has_both_signs(self) -> bool:
        """Whether there are both safe and unsafe clips."""
        return {1, -1} <= set(self.signs.tolist())


def distinct_clips(pairs: Sequence[PairSample], videos: Sequence[VideoSample]) -> DistinctClips:
    """Gathers the clips of comparisons and of further records; of equal names the last record counts."""
    samples: list[PairSample | VideoSample] = [*pairs, *videos]
    video_of = {(video.prompt_id, video.video_id): video for sample in samples for video in videos_of(sample)}
    sign_of = safety_signs(pairs, videos)
    distinct = [video_of[key] for key in sign_of]
    return DistinctClips(
        sign_of,
        np.array(list(sign_of.values())),
        [video.name for video in distinct],
        number_prompts(distinct),
        [video.prompt_text for video in distinct],
        [video.generated_from for video in distinct],
    )
