"""Selects the comparisons that have a label in a dimension, and their margins by some scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from safe_rlhf_video.data.preferences import number_prompts
from safe_rlhf_video.data.records import PairSample
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.heads import preference_score

Scores = Mapping[str, Mapping[str, float]]  # prompt_id/video_id -> head -> score


@dataclass(frozen=True)
class Labelled:
    """The comparisons of one dimension that have a label and are no tie.

    Attributes:
        sign: (M,), +1 where video_0 is preferred, -1 where video_1 is.
        prompts: (M,) of `number_prompts`.
        true_margin: (M,) hidden utility of video_0 minus that of video_1, in logits; None without a truth file
            that knows the dimension.
    """

    pairs: list[PairSample]
    sign: np.ndarray
    prompts: np.ndarray
    true_margin: np.ndarray | None


def select_labelled(
    pairs: Sequence[PairSample], dimension: str, truth: Mapping[str, Mapping[str, float]] | None
) -> Labelled:
    """The comparisons of a dimension that have a label and are no tie.

    Args:
        truth: video id -> hidden utilities, if they are known.

    Raises:
        SampleError: the truth is that of other videos.
    """
    # A tie names no winner that a score could agree with.
    chosen = [pair for pair in pairs if pair.preferences.get(dimension) in (0, 1)]
    true_margin = None
    # A world hides no utility of a dimension that it does not have.
    if truth is not None and (not truth or any(dimension in utilities for utilities in truth.values())):
        try:
            true_margin = np.array(
                [truth[pair.video_0.video_id][dimension] - truth[pair.video_1.video_id][dimension] for pair in chosen]
            )
        except KeyError as error:
            raise SampleError(f"the truth file does not know the video {error}; it belongs to another world") from error
    return Labelled(
        pairs=chosen,
        sign=np.array([1.0 - 2.0 * pair.preferences[dimension] for pair in chosen]),  # type: ignore[operator]
        prompts=number_prompts(chosen),
        true_margin=true_margin,
    )


def preference_margin(pairs: Sequence[PairSample], scores: Scores, head: str) -> np.ndarray:
    """Preference score of video_0 minus that of video_1: (M,)."""
    values = [[scores[video.name][head] for video in (pair.video_0, pair.video_1)] for pair in pairs]
    preference = preference_score(head, np.array(values, dtype=np.float64).reshape(-1, 2))
    return preference[:, 0] - preference[:, 1]
