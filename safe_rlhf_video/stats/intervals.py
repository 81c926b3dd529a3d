"""Computes bootstrap intervals that resample whole prompts."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from safe_rlhf_video.stats.checks import FloatArray, check_same_length, finite_row

# Clusters drawn in one call, which costs as much as drawing some hundred of them.
_DRAWS_AT_ONCE = 1 << 17

Interval = tuple[float, float]  # lower and upper end


def mean_interval(
    values: ArrayLike, clusters: ArrayLike, num_samples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Computes the percentile bootstrap interval of the mean of ``values``, resampling whole clusters.

    Comparisons of one prompt share videos and are not independent; resampling comparisons one by one would give an
    interval that is too narrow. Source: cluster bootstrap, Field & Welsh 2007 (JRSS B 69, 369-390).

    Args:
        values: (M,) for instance the result of ``credit``.
        clusters: (M,) integers or strings, equal for values of one cluster (the prompt ids).
        num_samples: number of resamples.
        seed: the same arguments and seed give the same interval.
        level: coverage, in (0, 1).

    Returns:
        Lower and upper end, in units of ``values``.

    Raises:
        ValueError: ``values`` is not one finite row, the lengths differ, there are fewer than two clusters, or
            ``num_samples`` or ``level`` is out of range.
    """
    row = finite_row("values", values)
    sums = _resampled_sums(np.stack([row, np.ones_like(row)], axis=1), clusters, num_samples, seed)
    return _percentile_interval(sums[:, 0] / sums[:, 1], level)


def interval_by_prompt(values: ArrayLike, prompts: ArrayLike, seed: int) -> Interval | None:
    """As ``mean_interval``; None with a single prompt."""
    return mean_interval(values, prompts, seed=seed) if len(np.unique(prompts)) > 1 else None


def ratio_interval(
    numerator: ArrayLike,
    denominator: ArrayLike,
    clusters: ArrayLike,
    num_samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Computes the percentile bootstrap interval of mean(numerator) / mean(denominator).

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
    top, bottom = finite_row("numerator", numerator), finite_row("denominator", denominator)
    check_same_length("numerator", top, "denominator", bottom)
    sums = _resampled_sums(np.stack([top, bottom], axis=1), clusters, num_samples, seed)
    if (sums[:, 1] == 0).any():
        raise ValueError("denominator sums to 0 on a resample of the clusters; the ratio has no interval")
    return _percentile_interval(sums[:, 0] / sums[:, 1], level)


def _resampled_sums(values: FloatArray, clusters: ArrayLike, num_samples: int, seed: int) -> FloatArray:
    """Column sums of ``values`` (M, K) on each resample of the clusters: (num_samples, K)."""
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    cluster_ids = np.asarray(clusters)
    check_same_length("values", values, "clusters", cluster_ids)
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
    # Some at a time: as one matrix the counts of SafeSora's 14,711 prompts would take 235 MB.
    at_once = max(1, _DRAWS_AT_ONCE // num_clusters)
    for start in range(0, num_samples, at_once):
        part = sums[start : start + at_once]
        drawn = random.integers(num_clusters, size=(len(part), num_clusters))
        drawn += num_clusters * np.arange(len(part))[:, None]  # each resample counts in a range of its own
        counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(len(part), 1, num_clusters)
        part[:] = (counts @ cluster_sums)[:, 0]
    return sums


def _percentile_interval(replicates: FloatArray, level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
