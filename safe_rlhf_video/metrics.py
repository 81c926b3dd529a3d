"""Figures of a trained model on labelled comparisons and videos, with intervals that respect prompts.

Pure functions of float64 numpy arrays. A margin is chosen minus rejected where the label is known, and video_0 minus
video_1 where it is not. Margins within the tie tolerance of 0 are ties and earn half a credit, as a coin flip would:
counting them as wins would reward a model that gives every video the same score.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safe_rlhf_video.lagrangian import TIE_TOLERANCE

FloatArray = NDArray[np.float64]


class SignAccuracy(NamedTuple):
    """How well the sign of the cost tells safe from unsafe; None where a figure is undefined."""

    accuracy: float | None
    """Share of the videos with a known label that are right; None without any."""
    balanced_accuracy: float | None
    """Mean of the shares within the safe and within the unsafe videos; None unless both occur."""
    num_safe: int
    num_unsafe: int


def credit(margin: ArrayLike, tie_tolerance: float = TIE_TOLERANCE) -> FloatArray:
    """Credit of each comparison: 1 where the margin is positive, 0 where it is negative, 0.5 within the tie tolerance.

    With the true margin in the direction of the label this is the credit of a model that knows the truth.

    Args:
        margin: (M,) chosen minus rejected.
        tie_tolerance: margins with ``|margin| <= tie_tolerance`` are ties.

    Returns:
        (M,) values 0, 0.5 or 1.

    Raises:
        ValueError: the margins are not one finite row; a NaN would pass for a lost comparison.
    """
    margins = _finite_row("margin", margin)
    return np.where(np.abs(margins) <= tie_tolerance, 0.5, (margins > 0).astype(np.float64))


def expected_credit(
    predicted_margin: ArrayLike, true_margin: ArrayLike, tie_tolerance: float = TIE_TOLERANCE
) -> FloatArray:
    """Mean credit of a fixed prediction over labels drawn from the true utilities, free of the noise of one draw.

        expected_credit_m = sigmoid(direction_m * true_margin_m),   direction_m = sign(predicted_margin_m), 0 for a tie

    Source: Bradley & Terry 1952, P(video_0 wins) = sigmoid(utility_0 - utility_1); the expectation is ours.

    Args:
        predicted_margin: (M,) predicted score of video_0 minus that of video_1.
        true_margin: (M,) true utility of video_0 minus that of video_1, in log odds.
        tie_tolerance: predictions with ``|margin| <= tie_tolerance`` are ties and earn 0.5.

    Returns:
        (M,) values in [0, 1].

    Raises:
        ValueError: an argument is not one finite row, or their lengths differ.
    """
    predicted = _finite_row("predicted_margin", predicted_margin)
    true = _finite_row("true_margin", true_margin)
    _check_same_length("predicted_margin", predicted, "true_margin", true)
    direction = np.where(np.abs(predicted) <= tie_tolerance, 0.0, np.sign(predicted))
    # sigmoid(x) = (1 + tanh(x / 2)) / 2, which cannot overflow.
    return 0.5 * (1.0 + np.tanh(0.5 * direction * true))


def sign_accuracy(costs: ArrayLike, safety_sign: ArrayLike) -> SignAccuracy:
    """Compare the sign of each cost with the safety label: cost > 0 predicts unsafe, a cost of exactly 0 counts half.

    Source: sign accuracy of the cost model in Safe RLHF (arXiv 2310.12773); the balanced form is added because three
    quarters of SafeSora's videos are safe (arXiv 2406.14477).

    Args:
        costs: (N,) cost of each distinct video; may be anything where the label is unknown.
        safety_sign: (N,) +1 safe, -1 unsafe, 0 unknown; unknown videos are left out.

    Raises:
        ValueError: a sign is not -1, 0 or +1, the lengths differ, or the cost of a labelled video is not finite.
    """
    cost, sign = np.asarray(costs, dtype=np.float64), np.asarray(safety_sign)
    _check_same_length("costs", cost, "safety_sign", sign)
    if not np.isin(sign, (-1, 0, 1)).all():
        raise ValueError("safety_sign must hold only +1 (safe), -1 (unsafe) and 0 (unknown)")
    is_safe, is_unsafe = sign == 1, sign == -1
    # A safe video is right when its cost is negative. No tolerance here: 0 is a threshold, not a noisy difference.
    safe_credit = credit(-cost[is_safe], tie_tolerance=0.0)
    unsafe_credit = credit(cost[is_unsafe], tie_tolerance=0.0)
    num_safe, num_unsafe = len(safe_credit), len(unsafe_credit)
    overall = balanced = None
    if num_safe + num_unsafe > 0:
        overall = float((safe_credit.sum() + unsafe_credit.sum()) / (num_safe + num_unsafe))
    if num_safe > 0 and num_unsafe > 0:
        balanced = float((safe_credit.mean() + unsafe_credit.mean()) / 2)
    return SignAccuracy(overall, balanced, num_safe, num_unsafe)


def mean_interval(
    values: ArrayLike, clusters: ArrayLike, num_samples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``values``, resampling whole clusters.

    Comparisons of one prompt share videos and are not independent; resampling comparisons one by one would give an
    interval that is too narrow. Source: cluster bootstrap, Field & Welsh 2007 (JRSS B 69, 369-390).

    Args:
        values: (M,) for instance the result of ``credit``.
        clusters: (M,) integers or strings that say which values belong together (the prompt ids).
        num_samples: number of resamples.
        seed: the same arguments and seed give the same interval.
        level: coverage, in (0, 1).

    Returns:
        Lower and upper end, in units of ``values``.

    Raises:
        ValueError: ``values`` is not one finite row, the lengths differ, there are fewer than two clusters, or
            ``num_samples`` or ``level`` is out of range.
    """
    row = _finite_row("values", values)
    sums = _resampled_sums(np.stack([row, np.ones_like(row)], axis=1), clusters, num_samples, seed)
    return _percentile_interval(sums[:, 0] / sums[:, 1], level)


def ratio_interval(
    numerator: ArrayLike,
    denominator: ArrayLike,
    clusters: ArrayLike,
    num_samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of mean(numerator) / mean(denominator), e.g. accuracy as a share of its ceiling.

    Both means come from the same resample, so what makes a prompt hard for both cancels. Source: as ``mean_interval``.

    Args:
        numerator: (M,) for instance the credit of a model.
        denominator: (M,) for instance the credit of the truth on the same comparisons.
        clusters, num_samples, seed, level: as in ``mean_interval``.

    Returns:
        Lower and upper end, a pure number.

    Raises:
        ValueError: as ``mean_interval``, or the denominator sums to 0 on some resample, which leaves no ratio.
    """
    top, bottom = _finite_row("numerator", numerator), _finite_row("denominator", denominator)
    _check_same_length("numerator", top, "denominator", bottom)
    sums = _resampled_sums(np.stack([top, bottom], axis=1), clusters, num_samples, seed)
    if (sums[:, 1] == 0).any():
        raise ValueError("denominator sums to 0 on a resample of the clusters; the ratio has no interval")
    return _percentile_interval(sums[:, 0] / sums[:, 1], level)


def _resampled_sums(values: FloatArray, clusters: ArrayLike, num_samples: int, seed: int) -> FloatArray:
    """Column sums of ``values`` (M, K) on each resample of the clusters: (num_samples, K)."""
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    cluster_ids = np.asarray(clusters)
    _check_same_length("values", values, "clusters", cluster_ids)
    names, cluster_index = np.unique(cluster_ids, return_inverse=True)
    num_clusters = len(names)
    if num_clusters < 2:
        raise ValueError(f"an interval needs at least two clusters (prompts), got {num_clusters}")
    # A resample only counts how often each cluster is drawn, so sums per cluster are all that is ever needed.
    cluster_sums = np.stack(
        [np.bincount(cluster_index, weights=column, minlength=num_clusters) for column in values.T], axis=1
    )
    random = np.random.default_rng(seed)
    sums = np.empty((num_samples, values.shape[1]))
    # One resample at a time: as one matrix the counts of SafeSora's 14,711 prompts would take 235 MB.
    for sample in range(num_samples):
        drawn = random.integers(num_clusters, size=num_clusters)
        sums[sample] = np.bincount(drawn, minlength=num_clusters) @ cluster_sums
    return sums


def _percentile_interval(replicates: FloatArray, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _finite_row(name: str, values: ArrayLike) -> FloatArray:
    row = np.asarray(values, dtype=np.float64)
    if row.ndim != 1:
        raise ValueError(f"{name} must have one dimension, got shape {row.shape}")
    if not np.isfinite(row).all():
        raise ValueError(f"{name} holds NaN or infinite values")
    return row


def _check_same_length(
    first_name: str, first: NDArray[np.generic], second_name: str, second: NDArray[np.generic]
) -> None:
    if len(first) != len(second):
        raise ValueError(f"{first_name} has {len(first)} entries but {second_name} has {len(second)}")
