"""Chooses the thresholds of harm labels on labelled videos.

Pure functions of numpy arrays; `Scorer.moderate` makes the logits, `scripts/calibrate.py` stores the thresholds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from scipy.special import bdtr

FloatArray = NDArray[np.float64]

CONFIDENCE = 0.95
MIN_PROMPTS = 30
"""With fewer, nobody can estimate how alike the videos of a prompt are, and so how many independent ones they equal."""


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
    """Chooses the threshold that holds a target on new videos, with a confidence of 95%.

    For a false-positive rate a it is an upper confidence limit of the (1 - a)-quantile of the logits of the n videos
    without the label, their k-th smallest:

        k / m = share,   k the least with P(Binomial(m, 1 - a) < k) >= 95%,   m = n / design effect

    With m = n this is exact for independent videos (David & Nagaraja 2003, Order Statistics, 7.1). Videos of a prompt
    are alike and count for fewer: the design effect is how many times more the number above the quantile varies by
    prompts than by videos (Kish 1965, Survey Sampling, 8.2). For a recall the same is done from below, with the videos
    that have the label.

    Args:
        logits: (N,), finite.
        applies: (N,).
        prompts: (N,) equal for videos of one prompt.

    Returns:
        None where there are too few videos of the class that the target is about: a rate of 5% needs 59 independent
        ones without the label, a recall of 95% 59 with it; either, of `MIN_PROMPTS` prompts at least.

    Raises:
        ValueError: the target is not between 0 and 1.
    """
    if not 0.0 < target.value < 1.0:
        raise ValueError(f"a target must be between 0 and 1, got {target.value}")
    names = np.asarray(prompts)
    if target.kind == "false_positive_rate":
        limit = _quantile_limit(logits[~applies], names[~applies], 1.0 - target.value)
        logit = limit
    else:
        limit = _quantile_limit(-logits[applies], names[applies], target.value)
        # Just below the lowest that must be flagged.
        logit = None if limit is None else float(np.nextafter(-limit, -np.inf))
    if logit is None:
        return None
    return Threshold(
        logit=logit,
        false_positive_rate=float(np.mean(logits[~applies] > logit)) if not applies.all() else None,
        recall=float(np.mean(logits[applies] > logit)) if applies.any() else None,
    )


def _quantile_limit(values: FloatArray, clusters: NDArray[np.generic], share: float) -> float | None:
    """An upper confidence limit of the `share`-quantile; None with too few values."""
    num = len(values)
    names, cluster = np.unique(clusters, return_inverse=True)
    if len(names) < MIN_PROMPTS or _confident_rank(num, share) is None:
        return None
    ordered = np.sort(values)
    is_above = values > ordered[math.ceil(share * num) - 1]
    deviation = is_above - is_above.mean()
    of_cluster = np.bincount(cluster, weights=deviation)
    design_effect = 1.0
    if is_above.any():
        by_prompts = of_cluster @ of_cluster * len(of_cluster) / (len(of_cluster) - 1)
        by_videos = deviation @ deviation * num / (num - 1)
        design_effect = max(1.0, by_prompts / by_videos)
    num_independent = int(num / design_effect)
    rank = _confident_rank(num_independent, share)
    return None if rank is None else float(ordered[math.ceil(rank / num_independent * num) - 1])


def _confident_rank(num: int, share: float) -> int | None:
    """The least k with P(Binomial(num, share) < k) >= 95%; None if it is more than `num`."""
    rank = int(np.searchsorted(bdtr(np.arange(num + 1), num, share), CONFIDENCE)) + 1
    return rank if rank <= num else None
