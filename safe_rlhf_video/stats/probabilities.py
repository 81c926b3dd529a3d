"""Turns margins into probabilities, measures their reliability, and fits a temperature and a tie threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, stdtrit

from safe_rlhf_video.stats.checks import MIN_PROMPTS, FloatArray, check_same_length, finite_row, too_few

CONFIDENCE = 0.95
ENOUGH_COMPARISONS = 300
"""With so many, a temperature that is no better than 1 says that the scores are calibrated as they are."""
# Sets of outcomes that tell the ECE of true probabilities; its 95% point is then exceeded in 5 +- 0.5% of draws.
_NUM_DRAWS = 2000
_OUTCOMES_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class ReliabilityBin:
    """Comparisons with about the same probability of the video that the model prefers.

    Attributes:
        predicted: mean probability of that video, 0.5 to 1.
        observed: share of labels that agree; a tie of the model counts half.
    """

    predicted: float
    observed: float
    num: int


@dataclass(frozen=True)
class Reliability:
    """How well predicted probabilities agree with labels; figures are None, with the reason, where undefined.

    Attributes:
        ece: expected calibration error: mean |predicted - observed| of the bins, weighted by their numbers.
        perfect_ece: its mean if the probabilities were true, on as many comparisons with the same probabilities.
        perfect_ece_95: what it exceeds one time in twenty then.
        brier: mean (1 - probability of the label)^2; 0.25 for a coin flip that says so.
        log_loss: mean -log likelihood, nats; ln 2 for a coin flip that says so.
    """

    ece: float | None
    perfect_ece: float | None
    perfect_ece_95: float | None
    brier: float | None
    log_loss: float | None
    bins: tuple[ReliabilityBin, ...]
    num: int
    reason: str | None


@dataclass(frozen=True)
class Temperature:
    """A temperature of maximum likelihood if it is better than none, or the reason why there is none.

    Attributes:
        temperature: `fitted` if it is better than 1, 1 if enough comparisons do not show that, else None.
        fitted: of maximum likelihood; None where none is the most likely.
        standard_error: of `fitted`, by prompts.
        log_loss_before: mean -log likelihood at temperature 1, nats.
        log_loss: the same at `temperature`.
        reason: why there is no temperature.
    """

    temperature: float | None
    fitted: float | None
    standard_error: float | None
    log_loss_before: float | None
    log_loss: float | None
    num: int
    reason: str | None


def preference_probability(margin: ArrayLike, temperature: float = 1.0) -> FloatArray:
    """Computes P(video_0 preferred) = sigmoid(margin / temperature). Source: Bradley & Terry 1952; Guo et al. 2017.

    Args:
        margin: (M,) score of video_0 minus that of video_1, higher is preferred, in log odds.
        temperature: above 0.

    Returns:
        (M,) values in [0, 1].
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be positive, got {temperature}")
    return np.asarray(expit(finite_row("margin", margin) / temperature), dtype=np.float64)


def reliability(margin: ArrayLike, temperature: float = 1.0, num_bins: int = 10) -> Reliability:
    """Computes the reliability curve, expected calibration error and Brier score of P = sigmoid(margin / temperature).

        ECE = sum_b n_b / n |mean confidence in b - share right in b|,   b: bins of equal mass

    The confidence is the probability of the video that the model prefers, 0.5 to 1, and a comparison is right if its
    label agrees. P(video_0) itself would depend on which of the two is called video_0. Equal mass, because most margins
    of a good model lie far from 0 and bins of equal width would be all but empty in the middle. Equal confidences count
    with the mean of their outcomes, so that the order of the data never matters. Finite numbers of labels are off by
    chance, so that even true probabilities have an ECE above 0: it is drawn, with a fixed seed, from labels that follow
    the confidences independently. Source: Naeini et al. 2015 (AAAI) and Guo et al. 2017 (ICML) for the ECE,
    Vaicenavicius et al. 2019 (AISTATS) for the comparison with true probabilities, Brier 1950 for the score.

    Args:
        margin: (M,) chosen minus rejected, in log odds.
        temperature: above 0.
        num_bins: of as equal counts as M allows.

    Raises:
        ValueError: a margin is not finite, or the temperature is not positive.
    """
    margins = finite_row("margin", margin)
    of_label = preference_probability(margins, temperature)
    num = len(margins)
    if reason := too_few(num):
        return Reliability(None, None, None, None, None, (), num, reason)
    order = np.argsort(np.abs(margins), kind="stable")
    ordered = margins[order]
    confidence = preference_probability(np.abs(ordered), temperature)
    right = np.where(ordered == 0, 0.5, (ordered > 0).astype(np.float64))
    # Where equal confidences begin, how many there are, and where bins begin.
    _, first, equal = np.unique(confidence, return_index=True, return_counts=True)
    sizes = np.array([len(rows) for rows in np.array_split(order, num_bins) if len(rows)])
    starts = np.cumsum(sizes) - sizes

    def observe(outcomes: FloatArray) -> FloatArray:
        """(..., M) outcomes -> (..., B) share right in each bin."""
        shares = np.repeat(np.add.reduceat(outcomes, first, axis=-1) / equal, equal, axis=-1)
        return np.asarray(np.add.reduceat(shares, starts, axis=-1) / sizes)

    predicted, observed = np.add.reduceat(confidence, starts) / sizes, observe(right)
    random = np.random.default_rng(0)
    perfect: list[float] = []
    while len(perfect) < _NUM_DRAWS:
        some = max(1, min(_NUM_DRAWS - len(perfect), _OUTCOMES_AT_ONCE // num))
        drawn = np.where(ordered == 0, 0.5, random.random((some, num)) < confidence)
        perfect += (np.abs(observe(drawn) - predicted) @ sizes / num).tolist()
    return Reliability(
        ece=float(np.abs(observed - predicted) @ sizes / num),
        perfect_ece=float(np.mean(perfect)),
        perfect_ece_95=float(np.quantile(perfect, 0.95)),
        brier=float(np.mean((1.0 - of_label) ** 2)),
        log_loss=float(np.logaddexp(0.0, -margins / temperature).mean()),
        bins=tuple(map(ReliabilityBin, predicted.tolist(), observed.tolist(), sizes.tolist())),
        num=num,
        reason=None,
    )


def fit_temperature(margin: ArrayLike, prompts: ArrayLike) -> Temperature:
    """Finds the temperature T that makes the labels most likely under P = sigmoid(margin / T), if one is better than 1.

        minimise over b = 1 / T > 0:   sum_m log(1 + exp(-b margin_m))

    The sum is convex in b; its derivative is 0 at the minimum. Only chosen minus rejected enters, so that
    the sides of a comparison cannot matter. Source: Guo et al. 2017 (ICML), temperature scaling of one logit.

    A temperature from few comparisons is worse than none in most draws. So it is tested against 1:

        |b - 1| > t(K - 1) sqrt(J) / H

    H is the second derivative at b, J the sum of the squared first derivatives of whole prompts, times K / (K - 1) for
    K prompts, but no less than H; t is Student's 97.5% quantile. Comparisons of a prompt are alike, and J / H is how
    much less they say than as many independent ones (Huber 1967; Liang & Zeger 1986). Where none is needed one is
    issued in 3 to 6% of draws from 30 prompts up; the ratio of likelihoods over J / H (Chandler & Bate 2007) did so in
    up to 9%. The standard error of T is T^2 sqrt(J) / H.

    Args:
        margin: (M,) chosen minus rejected, in log odds.
        prompts: (M,) equal for comparisons of one prompt.

    Returns:
        No temperature, but the reason, with fewer than `MIN_COMPARISONS` comparisons or `MIN_PROMPTS` prompts; where no
        T > 0 is best: all comparisons predicted rightly (T would be 0), or the scores no better than none (T would be
        infinite); or where fewer than `ENOUGH_COMPARISONS` do not show that it is not 1; of more, T is then 1.
    """
    margins = finite_row("margin", margin)
    _, cluster = np.unique(np.asarray(prompts), return_inverse=True)
    check_same_length("margin", margins, "prompts", cluster)
    num, num_prompts = len(margins), int(cluster.max(initial=-1)) + 1
    before = _log_loss(margins, 1.0) if num else None
    reason = too_few(num)
    if reason is None and num_prompts < MIN_PROMPTS:
        reason = f"comparisons of {num_prompts} prompts, fewer than {MIN_PROMPTS}"
    if reason is None and margins.sum() <= 0:
        reason = "the scores do not agree with the labels at all, so that no temperature makes them likelier"
    if reason is None and not (margins < 0).any():
        reason = "every comparison is predicted rightly, so that no temperature is the most likely; give more"
    if before is None or reason is not None:
        return Temperature(None, None, None, before, None, num, reason)
    inverse = _most_likely_inverse(margins)
    slopes = -margins * expit(-inverse * margins)
    curvature = float(np.sum(margins**2 * expit(inverse * margins) * expit(-inverse * margins)))
    of_prompts = np.bincount(cluster, weights=slopes)
    spread = max(float(of_prompts @ of_prompts) * num_prompts / (num_prompts - 1), curvature)
    fitted, error = 1.0 / inverse, math.sqrt(spread) / curvature / inverse**2
    after = _log_loss(margins, inverse)
    tolerated = float(stdtrit(num_prompts - 1, 0.5 + 0.5 * CONFIDENCE)) * math.sqrt(spread) / curvature
    if abs(inverse - 1.0) > tolerated:
        return Temperature(fitted, fitted, error, before, after, num, None)
    if num >= ENOUGH_COMPARISONS:
        return Temperature(1.0, fitted, error, before, before, num, None)
    reason = (
        f"{num} comparisons do not show that the fitted {fitted:.3g} (standard error {error:.2g}) is better than none; "
        f"give {ENOUGH_COMPARISONS} or more"
    )
    return Temperature(None, fitted, error, before, None, num, reason)


def _log_loss(margins: FloatArray, inverse: float) -> float:
    return float(np.logaddexp(0.0, -inverse * margins).mean())


def _most_likely_inverse(margins: FloatArray) -> float:
    """1 / T of maximum likelihood, where one is."""
    from scipy.optimize import brentq  # only calibrating needs it

    def derivative(inverse: float) -> float:
        return float(np.mean(-margins * expit(-inverse * margins)))

    high = 1.0 / float(np.abs(margins).mean())
    while derivative(high) < 0:
        high *= 2.0
    return float(brentq(derivative, 0.0, high, xtol=1e-300, rtol=4 * np.finfo(np.float64).eps))


def fit_tie_threshold(margin: ArrayLike, is_tie: ArrayLike) -> float | None:
    """Finds the threshold of `tie_aware_credit` with the most credit, the smallest of equals; None without both labels.

    Source: tie calibration of Deutsch et al. 2023, on other comparisons than those that it is used on.
    """
    margins, tied = finite_row("margin", margin), np.asarray(is_tie, dtype=bool)
    check_same_length("margin", margins, "is_tie", tied)
    if tied.all() or not tied.any():
        return None
    # Raising the threshold past a margin gains a labelled tie, or loses a right order.
    order = np.argsort(np.abs(margins), kind="stable")
    sizes = np.abs(margins)[order]
    gain = np.cumsum(np.where(tied, 1.0, -(margins > 0).astype(np.float64))[order])
    is_last = np.append(sizes[1:] > sizes[:-1], True)  # equal margins are passed together
    thresholds, gains = np.append(0.0, sizes[is_last]), np.append(0.0, gain[is_last])
    if sizes[0] == 0:  # a threshold of 0 passes the margins of 0
        thresholds, gains = thresholds[1:], gains[1:]
    return float(thresholds[np.argmax(gains)])
