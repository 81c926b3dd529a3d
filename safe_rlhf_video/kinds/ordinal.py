"""Reads labels of several levels, lays them out as one column a level, and computes how likely each level is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from safe_rlhf_video.heads import HEADS, ORDINAL_HEADS, Head

if TYPE_CHECKING:
    from safe_rlhf_video.data.records import VideoSample

FloatArray = NDArray[np.float64]


def classes(head: Head) -> tuple[str, ...]:
    """The head's levels, the lowest first."""
    return head.levels


def num_columns(head: Head) -> int:
    """One a level."""
    return len(head.levels)


def said(video: VideoSample) -> Iterator[tuple[str, int]]:
    """What one record says: names of heads and the level of each."""
    for name in ORDINAL_HEADS:
        level = getattr(video, HEADS[name].key)
        if level is not None:
            yield name, level


def encode(known: NDArray[np.int64], weights: FloatArray) -> FloatArray:
    """Targets (N, K) of videos of some levels: the level's weight in its column, 0 in the others.

    Args:
        known: (N,), the level, -1 where it is unknown.
        weights: (K,).
    """
    return (known[:, None] == np.arange(len(weights))) * weights


def decode(targets: NDArray[np.floating]) -> NDArray[np.int64]:
    """The levels (N,) of targets (N, K), -1 where they are unknown."""
    return np.where(targets.any(axis=1), targets.argmax(axis=1), -1)


def probabilities(
    scores: FloatArray, thresholds: FloatArray, class_weights: Sequence[float] | None = None
) -> FloatArray:
    """Computes how likely each level is, by the proportional-odds model of `losses.ordinal_loss`.

        P(level >= k) = sigmoid(score - threshold_k),   p_k = P(level >= k) - P(level >= k + 1)

    Weighing a class multiplies its odds in what is learned, so its weight is divided out again (King & Zeng 2001).

    Args:
        scores: (N,), or one score of shape ().
        thresholds: (K - 1,), rising, as `ScoreModel.thresholds` gives them.
        class_weights: (K,), what the levels weighed in training; None for equal ones.

    Returns:
        (N, K), or (K,): probabilities of the levels; a row sums to 1.
    """
    margins = np.asarray(scores, np.float64)[..., None] - thresholds
    # Each side by itself: 1 - sigmoid would lose what is small.
    above, below = (np.exp(-np.logaddexp(0.0, -sign * margins)) for sign in (1.0, -1.0))
    gaps = np.concatenate([[1.0], -np.expm1(-np.diff(thresholds)), [1.0]])
    ends = np.ones((*margins.shape[:-1], 1))
    weighted = np.concatenate([ends, above], axis=-1) * np.concatenate([below, ends], axis=-1) * gaps
    weighted = weighted / (1.0 if class_weights is None else np.asarray(class_weights))
    found: FloatArray = weighted / weighted.sum(axis=-1, keepdims=True)
    return found
