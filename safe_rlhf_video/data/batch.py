"""A batch is a set of distinct videos plus comparisons between them, never two parallel lists of clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from safe_rlhf_video.data.preferences import PromptGroup
from safe_rlhf_video.video.sampling import Video


@dataclass(frozen=True)
class Batch:
    """N distinct videos, each to be encoded once, and what is known of them.

    Attributes:
        names: N strings `prompt_id/video_id`, for messages.
        prompts: N prompt texts.
        videos: N videos.
        comparisons: dimension -> int (M, 2), columns chosen and rejected, indices into the N videos.
        safety_sign: int (N,), +1 safe, -1 unsafe, 0 unknown.
        counted: whether these videos count in a loss; False only for the batch of a rank that has nothing to do.
    """

    names: tuple[str, ...]
    prompts: tuple[str, ...]
    videos: tuple[Video, ...]
    comparisons: Mapping[str, np.ndarray]
    safety_sign: np.ndarray
    counted: bool = True


def collate(groups: Sequence[PromptGroup], videos: Sequence[Video], counted: bool = True) -> Batch:
    """Join the groups of some prompts; `videos` holds the clips of all groups, in order.

    With `counted=False` the batch has its videos but no label: it keeps a rank in step without adding to a loss.
    """
    dimensions = groups[0].comparisons.keys()
    starts = np.cumsum([0, *(len(group.videos) for group in groups)])
    if starts[-1] != len(videos):
        raise ValueError(f"expected the {starts[-1]} videos of {len(groups)} groups, got {len(videos)}")
    comparisons = {
        name: np.concatenate(
            [group.comparisons[name] + start for group, start in zip(groups, starts[:-1], strict=True)]
        )
        for name in dimensions
    }
    safety_sign = np.concatenate([group.safety_sign for group in groups])
    return Batch(
        names=tuple(f"{video.prompt_id}/{video.video_id}" for group in groups for video in group.videos),
        prompts=tuple(group.prompt_text for group in groups for _ in group.videos),
        videos=tuple(videos),
        comparisons=comparisons if counted else {name: rows[:0] for name, rows in comparisons.items()},
        safety_sign=safety_sign if counted else np.zeros_like(safety_sign),
        counted=counted,
    )
