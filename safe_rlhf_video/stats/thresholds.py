"""Chooses the thresholds of harm labels on labelled videos.

Pure functions of numpy arrays; `Scorer.moderate` makes the logits, `scripts/calibrate.py` stores the thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from scipy.special import bdtr

from safe_rlhf_video.stats.checks import FloatArray

CONFIDENCE = 0.95
# Of the draw of one video a prompt.
DRAW_SEED = 0


@dataclass(frozen=True)
class Target:
    """What a threshold must hold on new videos.

    Attributes:
        value: the most of the videos without the label that may be flagged, or the least of those with it that must be;
            between 0 and 1.
    """

    kind: Literal["false_positive_rate", "recall"]
    value: Annotated[float, Field(gt=0, lt=1)]

    def __str__(self) -> str:
        return f"{self.kind.replace('_', ' ')} {self.value:g}"


@dataclass(frozen=True)
class Threshold:
    """A threshold of a harm label.

    Attributes:
        logit: videos above it are flagged.
        false_positive_rate, recall: on the videos that chose it; None without a video of that class.
    """

    logit: float
    false_positive_rate: float | None
    recall: float | None


def choose_threshold(
    logits: FloatArray, applies: NDArray[np.bool_], prompts: ArrayLike, target: Target
) -> Threshold | None:
    """Chooses the threshold that holds a target on new videos; it is wrongly issued with a probability of at most 5%.

    For a false-positive rate a it is an upper confidence limit of the (1 - a)-quantile of the logits of videos without
    the label, from one video of each of the n prompts, drawn at random: the k-th smallest,

        k the least with P(Binomial(n, 1 - a) < k) >= 95%

    Source: order statistics, David & Nagaraja 2003, 7.1; exact for any number of prompts and however alike the videos
    of a prompt are, which may all be flagged together. The other videos are left unused: bounds on the means of prompts
    (Hoeffding & Bentkus) need more prompts for the same rate, and taking the better of two bounds after a look at the
    data would spend the 5% twice. For a recall the same is done from below, with the videos that have the label.

    The rate is that of a random video of a random prompt like these.

    Args:
        logits: (N,), finite.
        applies: (N,).
        prompts: (N,) equal for videos of one prompt.

    Returns:
        None where too few prompts have a video of the class that the target is about: a rate of 5% needs 59 with one
        without the label, a recall of 95% 59 with one that has it.

    Raises:
        ValueError: the target is not between 0 and 1.
    """
    if not 0.0 < target.value < 1.0:
        raise ValueError(f"a target must be between 0 and 1, got {target.value}")
    names = np.asarray(prompts)
    if target.kind == "false_positive_rate":
        logit = _quantile_limit(_draw_one_each(logits[~applies], names[~applies]), 1.0 - target.value)
    else:
        limit = _quantile_limit(_draw_one_each(-logits[applies], names[applies]), target.value)
        # Just below the lowest that must be flagged.
        logit = None if limit is None else float(np.nextafter(-limit, -np.inf))
    if logit is None:
        return None
    return Threshold(
        logit=logit,
        false_positive_rate=float(np.mean(logits[~applies] > logit)) if not applies.all() else None,
        recall=float(np.mean(logits[applies] > logit)) if applies.any() else None,
    )


def _draw_one_each(values: FloatArray, clusters: NDArray[np.generic]) -> FloatArray:
    """Draws one value of each cluster at random."""
    shuffled = np.random.default_rng(DRAW_SEED).permutation(len(values))
    _, first = np.unique(clusters[shuffled], return_index=True)
    return values[shuffled[first]]


def _quantile_limit(values: FloatArray, share: float) -> float | None:
    """An upper confidence limit of the `share`-quantile of independent values; None with too few."""
    rank = _confident_rank(len(values), share)
    return None if rank is None else float(np.sort(values)[rank - 1])


def _confident_rank(num: int, share: float) -> int | None:
    """The least k with P(Binomial(num, share) < k) >= 95%; None if it is more than `num`."""
    rank = int(np.searchsorted(bdtr(np.arange(num + 1), num, share), CONFIDENCE)) + 1
    return rank if rank <= num else None
