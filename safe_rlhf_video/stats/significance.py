"""Tests whether two models differ by more than chance, and corrects for the number of tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from safe_rlhf_video.stats.checks import check_same_length, finite_row, too_few


@dataclass(frozen=True)
class McNemar:
    """Two models on the same comparisons; no p-value, but the reason, where it is undefined.

    Attributes:
        first_better: credit that the first earned and the second did not: comparisons, halves where one model tied.
    """

    p_value: float | None
    first_better: float
    second_better: float
    num: int
    reason: str | None


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """Runs the exact two-sided McNemar test of whether two models are right equally often on the same comparisons.

    Only comparisons on which the models earn different credit count. If neither is better, each such difference is
    as likely to be for the one as for the other, and the p-value is the chance that fair coins divide them at least as
    unevenly as found. A tie has earned half a credit and so makes a difference of one half, which counts half: the
    coins are then weighted, and the test stays exact. Without ties it is McNemar's binomial test. It takes comparisons
    for independent; where prompts have many, read the interval of the difference by prompts beside it. Source: McNemar
    1947; weights: the sign-flip (randomisation) test, Fisher 1935.

    Args:
        first, second: (M,) credits 0, 0.5 or 1 of each model, as `credit` gives them.

    Raises:
        ValueError: a credit is something else, or the lengths differ.
    """
    one, other = finite_row("first", first), finite_row("second", second)
    check_same_length("first", one, "second", other)
    if not (np.isin(one, (0, 0.5, 1)).all() and np.isin(other, (0, 0.5, 1)).all()):
        raise ValueError("credits must be 0, 0.5 or 1")
    difference = one - other
    won, lost = float(difference[difference > 0].sum()), float(-difference[difference < 0].sum())
    if reason := too_few(len(one)):
        return McNemar(None, won, lost, len(one), reason)
    from scipy.stats import binom  # takes half a second to import

    num_whole = int(np.count_nonzero(np.abs(difference) == 1))
    num_half = int(np.count_nonzero(np.abs(difference) == 0.5))
    # In half credits: twice the heads of whole differences, and the heads of half ones.
    doubled = np.zeros(2 * num_whole + 1)
    doubled[::2] = binom.pmf(np.arange(num_whole + 1), num_whole, 0.5)
    chances = np.convolve(doubled, binom.pmf(np.arange(num_half + 1), num_half, 0.5))
    middle = (len(chances) - 1) / 2
    unevenness = np.abs(np.arange(len(chances)) - middle)
    p_value = chances[unevenness >= abs(2 * won - middle)].sum()
    return McNemar(float(min(1.0, p_value)), won, lost, len(one), None)


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects p-values for their number: rejecting all below a level makes an error at most that often.

        adjusted_(k) = max_{j <= k} min(1, (m - j + 1) p_(j)),   p_(1) <= ... <= p_(m)

    Source: Holm 1979 (Scandinavian Journal of Statistics 6, 65-70).
    """
    row = finite_row("p_values", p_values)
    order = np.argsort(row, kind="stable")
    adjusted = np.maximum.accumulate(np.minimum(1.0, (len(row) - np.arange(len(row))) * row[order]))
    result = np.empty(len(row))
    result[order] = adjusted
    return result.tolist()
