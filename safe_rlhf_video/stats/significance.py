"""Tests whether two models differ by more than chance, and corrects for the number of tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safe_rlhf_video.stats.checks import check_same_length, finite_row, too_few


@dataclass(frozen=True)
class SignFlip:
    """Two models on the same comparisons; no p-value, but the reason, where it is undefined.

    Attributes:
        first_better: credit that the first earned and the second did not: comparisons, halves where one model tied.
    """

    p_value: float | None
    first_better: float
    second_better: float
    num: int
    reason: str | None


def sign_flip(first: ArrayLike, second: ArrayLike, prompts: ArrayLike) -> SignFlip:
    """Tests whether two models are right equally often, by flipping the signs of whole prompts, exactly.

    If neither model is better, it is a matter of chance which of them gains by a prompt. The p-value is the chance that
    fair coins, one a prompt, divide the prompts' sums of differences at least as unevenly as found. Comparisons of a
    prompt stand and fall together, so that flipping them one by one, as McNemar's test does, finds a difference too
    often where there is none. Sums are whole numbers of half credits, so the distribution is computed by convolution;
    nothing is drawn at random. Source: the randomisation test of Fisher 1935 (The Design of Experiments, 21); of
    clusters, Gail et al. 1996 (Stat. Med. 15, 1069-1092).

    Args:
        first, second: (M,) credits 0, 0.5 or 1 of each model, as `credit` gives them.
        prompts: (M,) equal for comparisons of one prompt.

    Raises:
        ValueError: a credit is something else, or the lengths differ.
    """
    one, other, names = finite_row("first", first), finite_row("second", second), np.asarray(prompts)
    check_same_length("first", one, "second", other)
    check_same_length("first", one, "prompts", names)
    if not (np.isin(one, (0, 0.5, 1)).all() and np.isin(other, (0, 0.5, 1)).all()):
        raise ValueError("credits must be 0, 0.5 or 1")
    difference = one - other
    won, lost = float(difference[difference > 0].sum()), float(-difference[difference < 0].sum())
    if reason := too_few(len(one)):
        return SignFlip(None, won, lost, len(one), reason)
    _, index = np.unique(names, return_inverse=True)
    in_halves = np.rint(2 * np.bincount(index, weights=difference)).astype(np.int64)
    return SignFlip(_flip_p_value(in_halves), won, lost, len(one), None)


def _flip_p_value(sums: NDArray[np.int64]) -> float:
    """P(|sum of +-s_k| >= |sum of s_k|) for whole numbers s_k (K,) with random signs."""
    sizes = np.sort(np.abs(sums[sums != 0]))
    # chances[j]: that the sums with a plus add up to j.
    chances = np.zeros(int(sizes.sum()) + 1)
    chances[0] = 1.0
    so_far = 0
    for size in sizes.tolist():
        so_far += size
        known = 0.5 * chances[: so_far + 1]
        chances[: so_far + 1] = known
        chances[size : so_far + 1] += known[: so_far + 1 - size]
    # Twice the plus sums less all of them is the sum with its signs; whole numbers, so equal ones compare as equal.
    unevenness = np.abs(2 * np.arange(len(chances)) - so_far)
    return float(min(1.0, chances[unevenness >= abs(int(sums.sum()))].sum()))


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
