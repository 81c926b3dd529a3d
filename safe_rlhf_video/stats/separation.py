"""Computes how well scores separate two classes, as one value an item.

Each function returns values whose mean is the figure and whose deviations from it are the influence of single items.
The standard error of the mean of these values, by clusters, is that of the figure; the mean of the difference of two
such rows is the difference of two figures on the same items.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safe_rlhf_video.stats.checks import FloatArray, check_same_length, finite_row


def balanced_parts(credit: ArrayLike, is_positive: ArrayLike) -> FloatArray:
    """Divides a balanced accuracy, the mean of the accuracies of the two classes, among N items.

        part_i = B + N / (2 N_c) (credit_i - A_c),   B = (A_0 + A_1) / 2

    A_c is the mean credit of the N_c items of class c, the class of item i.

    Source: linearisation of a sum of ratios (Woodruff 1971).

    Args:
        credit: (N,) 1 where an item is judged rightly, 0 where wrongly.
        is_positive: (N,) the classes; both must occur.

    Raises:
        ValueError: there is one class alone, the lengths differ, or a credit is not finite.
    """
    values, positive = _two_classes("credit", credit, is_positive)
    figure = (values[positive].mean() + values[~positive].mean()) / 2
    parts = np.empty(len(values))
    for rows in (positive, ~positive):
        parts[rows] = figure + len(values) / (2 * np.count_nonzero(rows)) * (values[rows] - values[rows].mean())
    return parts


def auroc_parts(scores: ArrayLike, is_positive: ArrayLike) -> FloatArray:
    """Divides an AUROC, the chance that a positive item scores above a negative one, ties half, among N items.

        part_i = A + N / N_c (V_i - A),   V_i: share of the other class that item i is ordered rightly against

    Source: Mann & Whitney 1947; V_i are the structural components of DeLong et al. 1988, for clusters Obuchowski 1997.

    Args:
        scores: (N,) higher for the positive class.
        is_positive: (N,) the classes; both must occur.

    Raises:
        ValueError: there is one class alone, the lengths differ, or a score is not finite.
    """
    values, positive = _two_classes("scores", scores, is_positive)
    placement = np.empty(len(values))
    placement[positive] = _share_below(values[positive], values[~positive])
    placement[~positive] = 1.0 - _share_below(values[~positive], values[positive])
    figure = placement[positive].mean()
    size = np.where(positive, np.count_nonzero(positive), np.count_nonzero(~positive))
    return np.asarray(figure + len(values) / size * (placement - figure), dtype=np.float64)


def _share_below(values: FloatArray, others: FloatArray) -> FloatArray:
    """For each value the share of the others below it; equal ones count half."""
    ordered = np.sort(others)
    below, not_above = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    return np.asarray((below + not_above) / (2 * len(others)), dtype=np.float64)


def _two_classes(name: str, values: ArrayLike, is_positive: ArrayLike) -> tuple[FloatArray, NDArray[np.bool_]]:
    row, positive = finite_row(name, values), np.asarray(is_positive, dtype=bool)
    check_same_length(name, row, "is_positive", positive)
    if positive.all() or not positive.any():
        raise ValueError("both classes must occur")
    return row, positive
