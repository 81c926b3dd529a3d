"""Figures of a trained model on labelled comparisons and videos, with intervals that respect prompts.

Pure functions of float64 numpy arrays. A margin is chosen minus rejected where the label is known, and video_0 minus
video_1 where it is not. Margins within the tie tolerance of 0 are ties and earn half a credit, as a coin flip would:
counting them as wins would reward a model that gives every video the same score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safe_rlhf_video.lagrangian import TIE_TOLERANCE

FloatArray = NDArray[np.float64]

MIN_COMPARISONS = 30
"""With fewer, a calibration or a figure of a part is null: its interval would span most of what is possible."""


class SignAccuracy(NamedTuple):
    """How well the sign of the cost tells safe from unsafe; None where a figure is undefined."""

    accuracy: float | None
    """Share of the videos with a known label that are right; None without any."""
    balanced_accuracy: float | None
    """Mean of the shares within the safe and within the unsafe videos; None unless both occur."""
    num_safe: int
    num_unsafe: int


class ReliabilityBin(NamedTuple):
    """Comparisons of about the same predicted probability."""

    predicted: float
    """Mean predicted probability."""
    observed: float
    """Share of outcomes."""
    num: int


class Calibration(NamedTuple):
    """How well predicted probabilities agree with outcomes; figures are None, with the reason, where undefined."""

    ece: float | None
    """Expected calibration error: mean |predicted - observed| of the bins, weighted by their numbers."""
    brier: float | None
    """Mean (predicted - outcome)^2; 0.25 for a coin flip that says so."""
    log_loss: float | None
    """Mean -log likelihood, nats; ln 2 for a coin flip that says so."""
    bins: tuple[ReliabilityBin, ...]
    num: int
    reason: str | None


class Temperature(NamedTuple):
    """A temperature of maximum likelihood, or the reason why there is none."""

    temperature: float | None
    log_loss_before: float | None
    """Mean -log likelihood at temperature 1, nats."""
    log_loss: float | None
    """The same at `temperature`."""
    num: int
    reason: str | None


class McNemar(NamedTuple):
    """Two models on the same comparisons; None, with the reason, where undefined."""

    p_value: float | None
    first_better: float
    """Credit that the first earned and the second did not: comparisons, halves where one model tied."""
    second_better: float
    num: int
    reason: str | None


class BinaryFigures(NamedTuple):
    """Flags against labels; None where undefined."""

    precision: float | None
    recall: float | None
    f1: float | None
    num_positive: int
    num_negative: int
    num_flagged: int


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


def preference_probability(margin: ArrayLike, temperature: float = 1.0) -> FloatArray:
    """P(video_0 preferred) = sigmoid(margin / temperature). Source: Bradley & Terry 1952; Guo et al. 2017.

    Args:
        margin: (M,) score of video_0 minus that of video_1, higher is preferred, in log odds.
        temperature: above 0.

    Returns:
        (M,) values in [0, 1].
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be positive, got {temperature}")
    return 0.5 * (1.0 + np.tanh(0.5 * _finite_row("margin", margin) / temperature))


def calibration(probability: ArrayLike, outcome: ArrayLike, num_bins: int = 10) -> Calibration:
    """Reliability, expected calibration error and Brier score of predicted probabilities.

        ECE = sum_b n_b / n |mean predicted in b - share of outcomes in b|,   b: bins of equal mass

    Equal mass, because most margins of a good model lie far from 0 and bins of equal width would be all but empty in
    the middle. Equal probabilities count with the mean of their outcomes, so that the order of the data never matters.
    Source: Naeini et al. 2015 (AAAI) and Guo et al. 2017 (ICML) for the ECE, Brier 1950 for the score.

    Args:
        probability: (M,) predicted, in [0, 1].
        outcome: (M,) 1 where it came true, else 0.
        num_bins: of as equal counts as M allows.

    Raises:
        ValueError: a probability is out of range, an outcome is neither 0 nor 1, or the lengths differ.
    """
    predicted, observed = _finite_row("probability", probability), _finite_row("outcome", outcome)
    _check_same_length("probability", predicted, "outcome", observed)
    if len(predicted) and not (predicted.min() >= 0 and predicted.max() <= 1):
        raise ValueError("probability must lie in [0, 1]")
    if not np.isin(observed, (0, 1)).all():
        raise ValueError("outcome must hold only 0 and 1")
    if reason := too_few(len(predicted)):
        return Calibration(None, None, None, (), len(predicted), reason)
    values, group = np.unique(predicted, return_inverse=True)
    shares = np.bincount(group, weights=observed) / np.bincount(group)
    order = np.argsort(predicted, kind="stable")
    bins = tuple(
        ReliabilityBin(float(values[group[rows]].mean()), float(shares[group[rows]].mean()), len(rows))
        for rows in np.array_split(order, num_bins)
        if len(rows)
    )
    ece = sum(one.num * abs(one.predicted - one.observed) for one in bins) / len(predicted)
    # A probability that rounded to 0 or 1 would make the loss infinite for what a margin of 37 is finite for.
    of_outcome = np.where(observed == 1, predicted, 1.0 - predicted)
    log_loss = -np.log(np.maximum(of_outcome, np.finfo(np.float64).tiny)).mean()
    return Calibration(
        ece=float(ece),
        brier=float(np.mean((predicted - observed) ** 2)),
        log_loss=float(log_loss),
        bins=bins,
        num=len(predicted),
        reason=None,
    )


def fit_temperature(margin: ArrayLike) -> Temperature:
    """The temperature T that makes the labels most likely under P = sigmoid(margin / T).

        minimise over b = 1 / T > 0:   sum_m log(1 + exp(-b margin_m))

    The sum is convex in b and its derivative is found to be 0 by bisection. Only chosen minus rejected enters, so that
    the sides of a comparison cannot matter. Source: Guo et al. 2017 (ICML), temperature scaling of one logit.

    Args:
        margin: (M,) chosen minus rejected, in log odds.

    Returns:
        No temperature, but the reason, with fewer than `MIN_COMPARISONS`, or where no T > 0 is best: all comparisons
        predicted rightly (T would be 0), or the scores no better than none (T would be infinite).
    """
    margins = _finite_row("margin", margin)
    num = len(margins)

    def log_loss(inverse: float) -> float:
        return float(np.logaddexp(0.0, -inverse * margins).mean())

    def derivative(inverse: float) -> float:
        # -margin sigmoid(-b margin), with a sigmoid that cannot overflow.
        return float(np.mean(-margins * 0.5 * (1.0 - np.tanh(0.5 * inverse * margins))))

    before = log_loss(1.0) if num else None
    reason = too_few(num)
    if reason is None and not (margins < 0).any():
        reason = "every comparison is predicted rightly, so that no temperature is the most likely; give more"
    if reason is None and derivative(0.0) >= 0:
        reason = "the scores do not agree with the labels at all, so that no temperature makes them likelier"
    if reason is not None:
        return Temperature(None, before, None, num, reason)
    low, high = 0.0, 1.0 / float(np.abs(margins).mean())
    while derivative(high) < 0:
        low, high = high, 2.0 * high
    while True:
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        low, high = (middle, high) if derivative(middle) < 0 else (low, middle)
    return Temperature(1.0 / high, before, log_loss(high), num, None)


def fit_logistic(score: ArrayLike, outcome: ArrayLike) -> tuple[float, float]:
    """Slope and intercept that make P = sigmoid(slope score + intercept) the probability of an outcome.

    Maximum likelihood with the outcomes drawn in a little, to (N1 + 1) / (N1 + 2) and 1 / (N0 + 2), so that scores
    which part the two perfectly still have a finite slope. Source: Platt 1999; Newton's method with halved steps, Lin,
    Lin & Weng 2007 (Machine Learning 68, 267-276).

    Args:
        score: (N,).
        outcome: (N,) 1 where it came true, else 0; both occur.

    Raises:
        ValueError: the outcomes are all alike, or the lengths differ.
    """
    scores, is_true = _scores_and_labels(score, outcome)
    num_true = int(is_true.sum())
    num_false = len(scores) - num_true
    if not (num_true and num_false):
        raise ValueError("a logistic fit needs both outcomes")
    target = np.where(is_true, (num_true + 1.0) / (num_true + 2.0), 1.0 / (num_false + 2.0))
    if scores.max() == scores.min():
        return 0.0, math.log(target.mean() / (1.0 - target.mean()))
    # Standard units, so that steps and their end mean the same for any scores.
    centre, unit = float(scores.mean()), float(scores.std())
    design = np.stack([(scores - centre) / unit, np.ones_like(scores)], axis=1)

    def loss(weights: FloatArray) -> float:
        logit = design @ weights
        return float(np.mean(np.logaddexp(0.0, logit) - target * logit))

    weights = np.array([0.0, math.log((num_true + 1.0) / (num_false + 1.0))])
    for _ in range(100):
        probability = 0.5 * (1.0 + np.tanh(0.5 * (design @ weights)))
        gradient = design.T @ (probability - target) / len(scores)
        curvature = (design.T * (probability * (1.0 - probability))) @ design / len(scores)
        step = np.linalg.solve(curvature + 1e-12 * np.eye(2), gradient)
        size = 1.0
        while loss(weights - size * step) > loss(weights) and size > 1e-10:
            size /= 2.0
        weights = weights - size * step
        if np.abs(size * step).max() < 1e-10:
            break
    slope = float(weights[0]) / unit
    return slope, float(weights[1]) - slope * centre


def tie_aware_credit(margin: ArrayLike, is_tie: ArrayLike, threshold: float) -> FloatArray:
    """Credit with ties as a third answer: a model calls a tie where ``|margin| <= threshold``.

    1 where it calls a labelled tie, or orders rightly what is labelled with an order; else 0. Source: Deutsch et al.
    2023 (EMNLP, "Ties Matter"), accuracy with ties.

    Args:
        margin: (M,) chosen minus rejected; for a tie either order.
        is_tie: (M,) whether people called it a tie.
        threshold: 0 or more.
    """
    margins, tied = _finite_row("margin", margin), np.asarray(is_tie, dtype=bool)
    _check_same_length("margin", margins, "is_tie", tied)
    return np.where(tied, np.abs(margins) <= threshold, margins > threshold).astype(np.float64)


def fit_tie_threshold(margin: ArrayLike, is_tie: ArrayLike) -> float | None:
    """The threshold of `tie_aware_credit` with the most credit, the smallest of equals; None without both labels.

    Source: tie calibration of Deutsch et al. 2023, on other comparisons than those that it is used on.
    """
    margins, tied = _finite_row("margin", margin), np.asarray(is_tie, dtype=bool)
    _check_same_length("margin", margins, "is_tie", tied)
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


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """Exact two-sided McNemar test of whether two models are right equally often on the same comparisons.

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
    one, other = _finite_row("first", first), _finite_row("second", second)
    _check_same_length("first", one, "second", other)
    if not (np.isin(one, (0, 0.5, 1)).all() and np.isin(other, (0, 0.5, 1)).all()):
        raise ValueError("credits must be 0, 0.5 or 1")
    difference = one - other
    won, lost = float(difference[difference > 0].sum()), float(-difference[difference < 0].sum())
    if reason := too_few(len(one)):
        return McNemar(None, won, lost, len(one), reason)
    num_whole = int(np.count_nonzero(np.abs(difference) == 1))
    num_half = int(np.count_nonzero(np.abs(difference) == 0.5))
    # In half credits: twice the heads of whole differences, and the heads of half ones.
    doubled = np.zeros(2 * num_whole + 1)
    doubled[::2] = _fair_coins(num_whole)
    chances = np.convolve(doubled, _fair_coins(num_half))
    middle = (len(chances) - 1) / 2
    unevenness = np.abs(np.arange(len(chances)) - middle)
    p_value = chances[unevenness >= abs(2 * won - middle)].sum()
    return McNemar(float(min(1.0, p_value)), won, lost, len(one), None)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for how many there are: rejecting those below a level errs anywhere at most that often.

        adjusted_(k) = max_{j <= k} min(1, (m - j + 1) p_(j)),   p_(1) <= ... <= p_(m)

    Source: Holm 1979 (Scandinavian Journal of Statistics 6, 65-70).
    """
    row = _finite_row("p_values", p_values)
    order = np.argsort(row, kind="stable")
    adjusted = np.maximum.accumulate(np.minimum(1.0, (len(row) - np.arange(len(row))) * row[order]))
    result = np.empty(len(row))
    result[order] = adjusted
    return result.tolist()


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Area under the precision-recall curve as a sum of steps: sum_k (recall_k - recall_(k-1)) precision_k.

    k runs over the distinct scores from the highest: equal scores are flagged together. No interpolation, which would
    flatter. Source: Manning et al. 2008, Introduction to Information Retrieval, 8.4.

    Args:
        scores: (N,) higher is more positive.
        labels: (N,) 1 positive, 0 negative.

    Returns:
        None without a positive.
    """
    score, is_positive = _scores_and_labels(scores, labels)
    if not is_positive.any():
        return None
    order = np.argsort(-score, kind="stable")
    is_last = np.append(score[order][1:] != score[order][:-1], True)
    hits = np.cumsum(is_positive[order])[is_last]
    flagged = np.arange(1, len(score) + 1)[is_last]
    return float(np.sum(np.diff(hits, prepend=0) / hits[-1] * hits / flagged))


def roc_auc(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Chance that a positive scores higher than a negative, equal scores half: the area under the ROC curve.

    Source: Mann & Whitney 1947; Hanley & McNeil 1982.

    Args:
        scores, labels: as in `average_precision`.

    Returns:
        None unless both labels occur.
    """
    score, is_positive = _scores_and_labels(scores, labels)
    num_positive = int(is_positive.sum())
    num_negative = len(score) - num_positive
    if num_positive == 0 or num_negative == 0:
        return None
    _, group, counts = np.unique(score, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - 0.5 * (counts - 1)  # of equal scores, from 1
    rank_sum = mean_rank[group][is_positive].sum()
    return float((rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def precision_recall_f1(flagged: ArrayLike, labels: ArrayLike) -> BinaryFigures:
    """Precision, recall and F1 of flags, with support.

    Args:
        flagged: (N,) whether each is flagged.
        labels: (N,) 1 positive, 0 negative.

    Returns:
        Precision is None where nothing is flagged; recall and F1 are None where nothing is positive.
    """
    flag, is_positive = _scores_and_labels(flagged, labels)
    is_flagged = flag != 0
    num_positive, num_flagged = int(is_positive.sum()), int(is_flagged.sum())
    hits = int((is_flagged & is_positive).sum())
    return BinaryFigures(
        precision=hits / num_flagged if num_flagged else None,
        recall=hits / num_positive if num_positive else None,
        f1=2 * hits / (num_positive + num_flagged) if num_positive else None,
        num_positive=num_positive,
        num_negative=len(flag) - num_positive,
        num_flagged=num_flagged,
    )


def weighted_kappa(first: ArrayLike, second: ArrayLike) -> float | None:
    """Agreement of two ordinal ratings: 1 less their mean squared distance over what chance would make of it.

    Source: Cohen 1968, with quadratic weights.

    Args:
        first, second: (N,) levels of the same things.

    Returns:
        None where every pair of ratings is alike, which leaves nothing to chance.
    """
    one, other = _finite_row("first", first), _finite_row("second", second)
    _check_same_length("first", one, "second", other)
    by_chance = one.var() + other.var() + (one.mean() - other.mean()) ** 2 if len(one) else 0.0
    return float(1.0 - np.mean((one - other) ** 2) / by_chance) if by_chance else None


def too_few(num_comparisons: int) -> str | None:
    """Why a figure of so few comparisons is null; None where there are enough."""
    if num_comparisons >= MIN_COMPARISONS:
        return None
    return f"{num_comparisons} comparisons, fewer than {MIN_COMPARISONS}"


def _fair_coins(num: int) -> FloatArray:
    """Chance of 0 to `num` heads: (num + 1,)."""
    log_factorial = np.array([math.lgamma(k + 1) for k in range(num + 1)])
    return np.exp(log_factorial[-1] - log_factorial - log_factorial[::-1] - num * math.log(2))


def _scores_and_labels(scores: ArrayLike, labels: ArrayLike) -> tuple[FloatArray, NDArray[np.bool_]]:
    score, label = _finite_row("scores", scores), np.asarray(labels)
    _check_same_length("scores", score, "labels", label)
    if not np.isin(label, (0, 1)).all():
        raise ValueError("labels must hold only 1 (positive) and 0 (negative)")
    return score, label == 1


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
