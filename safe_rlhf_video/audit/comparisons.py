"""Turns comparisons into index arrays, which all sections of an audit read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from safe_rlhf_video.data.preferences import number_prompts, safety_signs
from safe_rlhf_video.data.records import ALL_DIMENSIONS, TIE, PairSample

# Labels as numbers; 0 and 1 name the preferred video.
TIED, MISSING = 2, -1
# Generator names are free text. One name for each video would make every figure by generator cubic in the videos.
MAX_GENERATORS = 100
UNKNOWN, OTHER_GENERATORS = "unknown", "other generators"


@dataclass(frozen=True)
class Comparisons:
    """M comparisons between V videos of P prompts; rows keep the order of the original pairs.

    Attributes:
        pairs: the M records themselves.
        video_names: V strings `prompt_id/video_id`.
        prompt_of_video: int (V,), index of each video's prompt_id.
        num_prompts: P.
        text_of_video: int (V,), of `number_prompts`; by it go all intervals.
        videos: int (M, 2), indices of video_0 and video_1.
        labels: dimension -> int (M,): 0 or 1, the preferred video, TIED or MISSING.
        safety_sign: int (V,), +1 safe, -1 unsafe, 0 unknown or contradictory, as training reads it.
        generators: V names, each the first that any record of the video gives, or None.
    """

    pairs: Sequence[PairSample]
    video_names: Sequence[str]
    prompt_of_video: np.ndarray
    num_prompts: int
    text_of_video: np.ndarray
    videos: np.ndarray
    labels: Mapping[str, np.ndarray]
    safety_sign: np.ndarray
    generators: Sequence[str | None]

    @property
    def text(self) -> np.ndarray:
        """Number of each comparison's prompt, (M,)."""
        return self.text_of_video[self.videos[:, 0]]

    @property
    def pair_key(self) -> np.ndarray:
        """A number that two comparisons share exactly if they compare the same two videos, (M,)."""
        return self.videos.min(axis=1) * np.int64(len(self.video_names)) + self.videos.max(axis=1)


def build_comparisons(pairs: Sequence[PairSample]) -> Comparisons:
    """Numbers prompts and videos in the order of first appearance; prompt id and video id together identify a video."""
    prompt_index: dict[str, int] = {}
    video_index: dict[tuple[str, str], int] = {}
    prompt_of_video: list[int] = []
    generators: list[str | None] = []
    videos = np.empty((len(pairs), 2), np.int64)
    for row, pair in enumerate(pairs):
        prompt = prompt_index.setdefault(pair.prompt_id, len(prompt_index))
        for side, video in enumerate((pair.video_0, pair.video_1)):
            index = video_index.setdefault((pair.prompt_id, video.video_id), len(video_index))
            if index == len(prompt_of_video):
                prompt_of_video.append(prompt)
                generators.append(video.generated_from)
            elif generators[index] is None:
                generators[index] = video.generated_from
            videos[row, side] = index
    number_of = {0: 0, 1: 1, TIE: TIED, None: MISSING}
    sign_of = safety_signs(pairs)
    texts = number_prompts(pairs)
    text_of_video = np.empty(len(video_index), np.int64)
    text_of_video[videos] = texts[:, None]
    return Comparisons(
        pairs=pairs,
        video_names=[f"{prompt_id}/{video_id}" for prompt_id, video_id in video_index],
        prompt_of_video=np.array(prompt_of_video, np.int64),
        num_prompts=len(prompt_index),
        text_of_video=text_of_video,
        videos=videos,
        labels={
            name: np.array([number_of[pair.preferences.get(name)] for pair in pairs], np.int64)
            for name in ALL_DIMENSIONS
        },
        safety_sign=np.array([sign_of[key] for key in video_index], np.int64),
        generators=generators,
    )


def frequent_generators(names: Iterable[str]) -> set[str]:
    """Returns the MAX_GENERATORS most frequent names; among equals, the alphabetically first."""
    counts = Counter(names)
    return set(sorted(counts, key=lambda name: (-counts[name], name))[:MAX_GENERATORS])
