"""Which harms a video shows: probabilities, and flags by thresholds that were chosen on labelled videos.

Pure functions of numpy arrays; `Scorer.moderate` makes the logits, `scripts/calibrate.py` stores the thresholds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Threshold:
    """Where a label's flag begins.

    Attributes:
        logit: videos above it are flagged.
        false_positive_rate, recall: on the videos that it was chosen on.
        num_positive, num_negative: of them.
    """

    logit: float
    false_positive_rate: float
    recall: float
    num_positive: int
    num_negative: int


def choose_threshold(
    logits: FloatArray,
    applies: NDArray[np.bool_],
    *,
    false_positive_rate: float | None = None,
    recall: float | None = None,
) -> Threshold | None:
    """The threshold that meets a target on labelled videos.

    For a false-positive rate a, the lowest logit that flags at most the share a of the videos without the label: the
    ceil((n + 1)(1 - a))-th smallest of their n logits, which keeps the expected rate on new videos at a or less (split
    conformal prediction, arXiv 2107.07511). For a recall b, the highest that flags at least the share b of those with
    it.

    Args:
        logits: (N,), finite.
        applies: (N,).

    Returns:
        None where there are too few videos of the class that the target is about: a rate of a needs 1/a - 1 of them.

    Raises:
        ValueError: not exactly one target is given, or it is not between 0 and 1.
    """
    targets = [target for target in (false_positive_rate, recall) if target is not None]
    if len(targets) != 1 or not 0.0 < targets[0] < 1.0:
        raise ValueError(f"give one target between 0 and 1, got {false_positive_rate} and {recall}")
    positive, negative = np.sort(logits[applies]), np.sort(logits[~applies])
    if false_positive_rate is not None:
        rank = math.ceil((len(negative) + 1) * (1.0 - false_positive_rate) - 1e-9)
        if rank > len(negative):
            return None
        logit = float(negative[rank - 1])
    else:
        assert recall is not None
        missed = math.floor(len(positive) * (1.0 - recall) + 1e-9)
        if not len(positive):
            return None
        # Just below the lowest that must be flagged.
        logit = float(np.nextafter(positive[missed], -np.inf))
    return Threshold(
        logit=logit,
        false_positive_rate=float(np.mean(negative > logit)) if len(negative) else math.nan,
        recall=float(np.mean(positive > logit)) if len(positive) else math.nan,
        num_positive=len(positive),
        num_negative=len(negative),
    )
