"""Computes 95% intervals over prompts, in closed form.

Comparisons and clips of one prompt are alike, so prompts are what is drawn at random. All intervals need `MIN_PROMPTS`
prompts and are None with fewer; `checks.too_few_prompts` says so in words. `benchmarks/promises.py` measures how often
each holds the true value; a percentile bootstrap of prompts does not with few prompts or few errors.

The variance of a mean is robust: the spread of the prompts' sums (Liang & Zeger 1986, Biometrika 73, 13-22). Where few
prompts hold all errors it is far off by chance, and too small most of the time. A second one takes all values of a
prompt for equally correlated, with the correlation of a one-way analysis of variance (Donner 1986, Int. Stat. Rev. 54,
67-82), and knows the sizes of all prompts. Where it is larger, the mean of both is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, stdtrit

from safe_rlhf_video.stats.checks import MIN_PROMPTS, FloatArray, check_same_length, finite_row

Interval = tuple[float, float]  # lower and upper end

TAIL = 0.025
# Variances below this are rounding errors: the least real one, of one error in 10^9 comparisons, is 10^-18.
_NO_VARIANCE = 1e-24


def share_interval(shares: ArrayLike, prompts: ArrayLike) -> Interval | None:
    """Computes the interval of a share, such as an accuracy.

        n = p (1 - p) / var(p), at most the number of values; the number of prompts where var(p) = 0
        (p + t^2 / 2n +- t sqrt(p (1 - p) / n + t^2 / 4n^2)) / (1 + t^2 / n),   t of Student with one less than prompts

    This is Wilson's score interval with the effective sample size of Korn & Graubard 1998 (Survey Methodology 24,
    193-201). Close to 0 and 1 Wilson's covers too seldom (Brown, Cai & DasGupta 2001, Stat. Sci. 16, 101-133): an end
    is that of Clopper & Pearson for n values where this lies further out. It has a width even where all are right.

    Args:
        shares: (M,) in [0, 1], for instance the result of `credit`.
        prompts: (M,) integers or strings, equal for values of one prompt.

    Raises:
        ValueError: `shares` is not one finite row, a share is out of range, or the lengths differ.
    """
    found = effective_size(shares, prompts)
    return None if found is None else score_interval(float(np.asarray(shares, np.float64).mean()), *found)


def effective_size(shares: ArrayLike, prompts: ArrayLike) -> tuple[float, int] | None:
    """The number of independent values that a share is worth (n of `share_interval`), and of prompts; None with few."""
    row = _in_range("shares", shares)
    spread = _spread(row, prompts)
    return None if spread is None else (spread.size(row.mean() * (1 - row.mean())), spread.num_prompts)


def prompt_share_interval(shares: ArrayLike, num_clips: int) -> Interval | None:
    """Computes the interval of the mean of prompts' shares, in which each prompt counts the same.

    Args:
        shares: (K,) one of each prompt.
        num_clips: of all prompts; more independent values there are not.
    """
    found = prompt_effective_size(shares, num_clips)
    return None if found is None else score_interval(float(np.asarray(shares, np.float64).mean()), *found)


def prompt_effective_size(shares: ArrayLike, num_clips: int) -> tuple[float, int] | None:
    """As `effective_size`, of the mean of (K,) prompts' shares."""
    row = _in_range("shares", shares)
    if len(row) < MIN_PROMPTS:
        return None
    variance, mean = float(row.var(ddof=1)) / len(row), float(row.mean())
    if variance < _NO_VARIANCE:
        return float(len(row)), len(row)
    return min(mean * (1 - mean) / variance, float(num_clips)), len(row)


def score_interval(share: float, size: float, num_prompts: int) -> Interval:
    """The interval of `share_interval`, from the share, n and the number of prompts."""
    t = student(num_prompts)
    centre = share + t**2 / (2 * size)
    half = t * math.sqrt(share * (1 - share) / size + t**2 / (4 * size**2))
    low, high = ((centre + sign * half) / (1 + t**2 / size) for sign in (-1.0, 1.0))
    some, others = size * share, size * (1 - share)
    if some > 0:
        low = min(low, float(betaincinv(some, others + 1, TAIL)))
    if others > 0:
        high = max(high, 1 - float(betaincinv(others, some + 1, TAIL)))
    # Of nothing, or of everything, Wilson's ends are 0 and 1 exactly but for rounding.
    return 0.0 if some == 0 else max(0.0, low), 1.0 if others == 0 else min(1.0, high)


def difference_interval(differences: ArrayLike, prompts: ArrayLike) -> Interval | None:
    """Computes the interval of the mean of paired differences, such as that of two models' accuracies.

        m' = n m / (n + 2),   q' = (n q + 2) / (n + 2),   m' +- t sqrt((q' - m'^2) / (n + 2)),   n = (q - m^2) / var(m)

    with the mean square q of the differences; n is bounded as for a share. This is the interval of Bonett & Price 2012
    (J. Educ. Behav. Stat. 37, 479-488), which counts one more win and one more loss, with an effective sample size.

    Args:
        differences: (M,) for instance the credit of one model less that of another; the mean lies in [-1, 1].
        prompts: as for `share_interval`.

    Raises:
        ValueError: as for `share_interval`.
    """
    row = finite_row("differences", differences)
    spread = _spread(row, prompts)
    if spread is None:
        return None
    mean, square = float(row.mean()), float(np.mean(row**2))
    return paired_interval(mean, square, spread.size(square - mean**2), spread.num_prompts)


def two_class_difference_interval(differences: ArrayLike, is_first: ArrayLike, prompts: ArrayLike) -> Interval | None:
    """Computes the interval of a difference of figures that compare two classes, such as two models' AUROCs.

    As `difference_interval`, with Student's t of the class with fewer prompts: what one item of a rare class adds is
    the larger, the rarer its class.

    Args:
        differences: (M,) of `separation` parts, or of others of two classes.
        is_first: (M,) bool, the class of each.
        prompts: (M,); with fewer than `MIN_PROMPTS` of one class there is no interval.

    Raises:
        ValueError: as for `share_interval`.
    """
    row, names, first = finite_row("differences", differences), np.asarray(prompts), np.asarray(is_first, dtype=bool)
    check_same_length("differences", row, "is_first", first)
    spread = _spread(row, names)
    fewest = min(len(np.unique(names[rows])) for rows in (first, ~first))
    if spread is None or fewest < MIN_PROMPTS:
        return None
    mean, square = float(row.mean()), float(np.mean(row**2))
    return paired_interval(mean, square, spread.size(square - mean**2), fewest)


def paired_interval(mean: float, square: float, size: float, num_prompts: int) -> Interval:
    """The interval of `difference_interval`, from the mean m, the mean square q, n and the number of prompts."""
    middle = size * mean / (size + 2)
    half = student(num_prompts) * math.sqrt(((size * square + 2) / (size + 2) - middle**2) / (size + 2))
    return max(-1.0, middle - half), min(1.0, middle + half)


def ratio_interval(numerator: ArrayLike, denominator: ArrayLike, prompts: ArrayLike) -> Interval | None:
    """Computes the interval of mean(numerator) / mean(denominator), such as an accuracy in parts of its ceiling.

        f +- t sqrt(n q + 2) / (n + 2) / mean(denominator),   q the mean square of numerator - f denominator

    This is the linearised variance of a ratio (Cochran 1977, Sampling Techniques, 6.4), in which what makes a prompt
    hard for both cancels, with one more win and one more loss as in `difference_interval`.

    Args:
        numerator: (M,) in [0, 1], for instance the credit of a model.
        denominator: (M,) in [0, 1], for instance the credit of the truth on the same comparisons.
        prompts: as for `share_interval`.

    Raises:
        ValueError: as for `share_interval`, or the denominators sum to 0.
    """
    top, bottom = _in_range("numerator", numerator), _in_range("denominator", denominator)
    check_same_length("numerator", top, "denominator", bottom)
    if bottom.sum() == 0:
        raise ValueError("denominator sums to 0; there is no ratio")
    ratio = float(top.sum() / bottom.sum())
    error = top - ratio * bottom
    spread = _spread(error, prompts)
    if spread is None:
        return None
    square = float(np.mean(error**2))
    low, high = paired_interval(0.0, square, spread.size(square), spread.num_prompts)
    return max(0.0, ratio + low / float(bottom.mean())), ratio + high / float(bottom.mean())


def balanced_interval(right: ArrayLike, is_first: ArrayLike, prompts: ArrayLike) -> Interval | None:
    """Computes the interval of a balanced accuracy, the mean of the shares of two classes.

    The intervals of both shares are put together by `sum_interval`, with the correlation of what their prompts add.

    Args:
        right: (M,) credits in [0, 1].
        is_first: (M,) bool, the class of each.
        prompts: (M,); with fewer than `MIN_PROMPTS` of one class there is no interval.

    Raises:
        ValueError: as for `share_interval`.
    """
    row, names, first = _in_range("right", right), np.asarray(prompts), np.asarray(is_first, dtype=bool)
    check_same_length("right", row, "is_first", first)
    check_same_length("right", row, "prompts", names)
    ends = [share_interval(row[rows], names[rows]) for rows in (first, ~first)]
    if ends[0] is None or ends[1] is None:
        return None
    _, index = np.unique(names, return_inverse=True)
    shares = [float(row[rows].mean()) for rows in (first, ~first)]
    one, other = (
        np.bincount(index, weights=np.where(rows, row - share, 0.0))
        for rows, share in zip((first, ~first), shares, strict=True)
    )
    low, high = sum_interval(shares[0], ends[0], shares[1], ends[1], _correlation(one, other))
    return max(0.0, low / 2), min(1.0, high / 2)


def rate_difference_interval(first: ArrayLike, second: ArrayLike, num_first: int, num_second: int) -> Interval | None:
    """Computes the interval of the difference of two mean shares of the same prompts.

    The intervals of `prompt_share_interval` are put together by `sum_interval`.

    Args:
        first, second: (K,) shares of each prompt, in [0, 1].
        num_first, num_second: clips behind them.
    """
    one, other = _in_range("first", first), _in_range("second", second)
    check_same_length("first", one, "second", other)
    ends, others = prompt_share_interval(one, num_first), prompt_share_interval(other, num_second)
    if ends is None or others is None:
        return None
    correlation = _correlation(one - one.mean(), other.mean() - other)
    low, high = sum_interval(float(one.mean()), ends, -float(other.mean()), (-others[1], -others[0]), correlation)
    return max(-1.0, low), min(1.0, high)


def mean_interval(values: ArrayLike) -> Interval | None:
    """Computes the interval of the mean of values without bounds, one of each prompt; None where all are equal.

    Student's, widened on the side of the longer tail to the end of Hall 1992 (JRSS B 54, 221-228), who transforms
    Student's t so that skewness does not matter:

        m - s / sqrt(n) T(+-t),   T(t) = 3 / a ((1 + a (t - a / 6))^(1/3) - 1),   a = skewness / sqrt(n)

    Args:
        values: (K,) finite.
    """
    row = finite_row("values", values)
    num = len(row)
    if num < MIN_PROMPTS or np.ptp(row) == 0:
        return None
    t, mean, error = student(num), float(row.mean()), float(row.std(ddof=1)) / math.sqrt(num)
    skew = float(np.mean((row - mean) ** 3)) / float(row.std()) ** 3 / math.sqrt(num)

    def transformed(quantile: float) -> float:
        if abs(skew) < 1e-8:
            return quantile
        return 3 / skew * (float(np.cbrt(1 + skew * (quantile - skew / 6))) - 1)

    return mean - error * max(t, transformed(t)), mean - error * min(-t, transformed(-t))


def sum_interval(
    first: float, first_ends: Interval, second: float, second_ends: Interval, correlation: float
) -> Interval:
    """Computes the interval of first + second from the interval of each.

        first + second - sqrt(x^2 + y^2 + 2 correlation x y),   x = first - low_1, y = second - low_2; likewise upwards

    Source: MOVER, Zou & Donner 2008 (Stat. Med. 27, 1693-1702).
    """
    middle = first + second
    low, high = (
        math.sqrt(max(0.0, x**2 + y**2 + 2 * correlation * x * y))
        for x, y in ((first - a, second - b) for a, b in zip(first_ends, second_ends, strict=True))
    )
    return middle - low, middle + high


def _correlation(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Of deviations from means; 0 where one does not vary."""
    product = float(first @ first) * float(second @ second)
    return float(first @ second) / math.sqrt(product) if product > _NO_VARIANCE else 0.0


def student(num_prompts: int) -> float:
    """The 97.5% point of Student's t, with one degree of freedom less than prompts."""
    return float(stdtrit(num_prompts - 1, 1 - TAIL))


@dataclass(frozen=True)
class _Spread:
    """How a mean varies, and what bounds its effective size."""

    variance: float
    num_values: int
    num_prompts: int

    def size(self, of_one: float) -> float:
        """The number of independent values of variance `of_one` whose mean varies as much."""
        if self.variance < _NO_VARIANCE:
            return float(self.num_prompts)
        return min(of_one / self.variance, float(self.num_values))


def _spread(row: FloatArray, prompts: ArrayLike) -> _Spread | None:
    names = np.asarray(prompts)
    check_same_length("values", row, "prompts", names)
    _, index = np.unique(names, return_inverse=True)
    counts = np.bincount(index)
    num, num_prompts = len(row), len(counts)
    if num_prompts < MIN_PROMPTS:
        return None
    sums = np.bincount(index, weights=row)
    deviations = sums - counts * row.mean()
    robust = float(deviations @ deviations) * num_prompts / (num_prompts - 1) / num**2
    if robust < _NO_VARIANCE:
        return _Spread(0.0, num, num_prompts)
    alike = 0.0
    if num > num_prompts:
        inside = float(row @ row - (sums**2 / counts).sum()) / (num - num_prompts)
        between = float((deviations**2 / counts).sum()) / (num_prompts - 1)
        mean_count = (num - float(counts @ counts) / num) / (num_prompts - 1)
        alike = min(1.0, max(0.0, (between - inside) / (between + (mean_count - 1) * inside)))
    design_effect = 1 + alike * (float(counts @ counts) / num - 1)
    modelled = float(row.var()) / num * design_effect
    return _Spread(max(robust, (robust + modelled) / 2), num, num_prompts)


def _in_range(name: str, values: ArrayLike) -> FloatArray:
    row = finite_row(name, values)
    if len(row) and not (row.min() >= 0 and row.max() <= 1):
        raise ValueError(f"{name} must lie in [0, 1]")
    return row
