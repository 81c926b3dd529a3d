"""A batch is a set of distinct videos plus comparisons between them, never two parallel lists of clips.

In a text corpus, texts take the place of videos; one batch may hold both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from safe_rlhf_video.data.preferences import PromptGroup
from safe_rlhf_video.data.records import ALL_DIMENSIONS
from safe_rlhf_video.kinds.targets import NUM_LABEL_COLUMNS
from safe_rlhf_video.responses import Response


@dataclass(frozen=True)
class Batch:
    """N distinct videos, each to be encoded once, and what is known of them.

    Attributes:
        names: N strings `prompt_id/video_id`, for messages.
        prompts: N prompt texts.
        responses: N videos or texts.
        comparisons: dimension -> int (M, 2), columns chosen and rejected, indices into the N videos.
        ties: dimension -> int (K, 2), videos that people found equal.
        label_weights: dimension -> float32 (M + K,), of the comparisons and then the ties: one over the labels that
            their prompt has in this dimension.
        safety_sign: int (N,), +1 safe, -1 unsafe, 0 unknown.
        harm_targets: float32 (N, C), as of a `PromptGroup`.
        counted: bool (N,), whether a video counts in a loss; False only for a blank that keeps a rank in step.
    """

    names: tuple[str, ...]
    prompts: tuple[str, ...]
    responses: tuple[Response, ...]
    comparisons: Mapping[str, np.ndarray]
    ties: Mapping[str, np.ndarray]
    label_weights: Mapping[str, np.ndarray]
    safety_sign: np.ndarray
    harm_targets: np.ndarray
    counted: np.ndarray


def collate(groups: Sequence[PromptGroup], responses: Sequence[Response], blanks: Sequence[Response] = ()) -> Batch:
    """Join the groups of some prompts; `responses` holds the clips or texts of all groups, in order.

    Args:
        blanks: put behind them, without a prompt or any label: they keep a rank in step without adding to a loss.
    """
    starts = np.cumsum([0, *(len(group.videos) for group in groups)])
    if starts[-1] != len(responses):
        raise ValueError(f"expected the {starts[-1]} videos of {len(groups)} groups, got {len(responses)}")

    def join(labels: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        nothing = np.zeros((0, 2), np.int64)
        return {
            name: np.concatenate(
                [nothing, *(rows[name] + start for rows, start in zip(labels, starts[:-1], strict=True))]
            )
            for name in (labels[0] if labels else ALL_DIMENSIONS)
        }

    comparisons = join([group.comparisons for group in groups])
    ties = join([group.ties for group in groups])
    return Batch(
        names=(*(video.name for group in groups for video in group.videos), *["(blank)"] * len(blanks)),
        prompts=(*(group.prompt_text for group in groups for _ in group.videos), *[""] * len(blanks)),
        responses=(*responses, *blanks),
        comparisons=comparisons,
        ties=ties,
        label_weights={name: _label_weights(groups, name) for name in comparisons},
        safety_sign=np.concatenate([*(group.safety_sign for group in groups), np.zeros(len(blanks), np.int64)]),
        harm_targets=np.concatenate(
            [*(group.harm_targets for group in groups), np.zeros((len(blanks), NUM_LABEL_COLUMNS), np.float32)]
        ),
        counted=np.arange(len(responses) + len(blanks)) < len(responses),
    )


def _label_weights(groups: Sequence[PromptGroup], dimension: str) -> np.ndarray:
    weights = np.array([1.0 / max(group.num_labels(dimension), 1) for group in groups], np.float32)
    comparisons = [len(group.comparisons[dimension]) for group in groups]
    ties = [len(group.ties[dimension]) for group in groups]
    return np.concatenate([np.repeat(weights, np.array(counts, np.int64)) for counts in (comparisons, ties)])
