"""A multiplier whose promise holds on new prompts, not only on those that it was chosen on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.lagrangian.hulls import FloatArray, Rows, check_alike, flatten, make_hulls
from safe_rlhf_video.lagrangian.selection import Constraint, check_limit, check_probabilities

Bound = Literal["binomial", "hoeffding_bentkus", "student_t"]

CONFIDENCE = 0.95
LADDER = tuple(np.append(np.geomspace(1e4, 1e-4, 801), 0.0).tolist())
"""Multipliers that are tried, falling: 2.3% apart, set before any score is seen, which the promise needs."""

# Fewer prompts leave the mean of scores without bounds too far from a normal distribution.
_MIN_PROMPTS = 30


@dataclass(frozen=True)
class ConfidentMultiplier:
    """See `confident_multiplier`.

    Attributes:
        lagrange_multiplier: the smallest that the promise holds for; None where it holds for none.
        reason: why there is none.
        constraint, limit: what is promised of the chosen on new prompts: a mean cost or a harmful rate up to the limit.
        confidence: of the promise, over the draw of the prompts that it was chosen on.
        bound: how the mean was bounded.
        num_prompts: it was chosen on.
        observed: mean cost, or harmful rate, of the chosen of these prompts; at the largest multiplier tried where
            there is none.
        reward: their mean reward.
    """

    lagrange_multiplier: float | None
    reason: str | None
    constraint: Constraint
    limit: float
    confidence: float
    bound: Bound
    num_prompts: int
    observed: float
    reward: float


def confident_multiplier(
    rewards: Rows,
    weights: Rows,
    losses: Rows | None = None,
    *,
    cost_limit: float | None = None,
    harm_rate_limit: float | None = None,
    confidence: float = CONFIDENCE,
) -> ConfidentMultiplier:
    """The smallest lambda for which choosing max r - lambda w keeps a limit on new prompts, with a confidence of 95%.

    The multipliers of `LADDER` are tested from the largest, the safest, downwards, each at the full level of 5%, up to
    the first that fails: a wrong one can only pass if the first wrong one does, so that trying many costs nothing and
    losses need not fall with lambda. Source: Learn then Test (arXiv 2110.01052), fixed-sequence testing. A test passes
    if a mean of k / P or m over P prompts would be that low in at most 5% of draws were the expectation the limit:

        labels (0, 1)     P(Binomial(P, limit) <= k) <= 5%, exact: the upper end of Clopper & Pearson 1934
        losses in [0, 1]  min(exp(-P KL(m, limit)), e P(Binomial(P, limit) <= ceil(P m))) <= 5%: Hoeffding-Bentkus
                          (arXiv 2101.02703); KL between Bernoulli distributions, 0 for m above the limit
        costs             m + t_95%(P - 1) s / sqrt(P) <= limit, Student's t: scores have no bounds, so this is
                          right only as P grows; at least 30 prompts

    The promise is about prompts drawn as these were, with as many candidates as theirs: more candidates are another
    rule. With P(unsafe) as losses it is as true as these are calibrated; labels need no such trust.

    Args:
        rewards: one row of candidates a prompt, of any lengths >= 1, or a (P, n) array.
        weights: likewise, what lambda weighs when choosing: costs, or P(unsafe).
        losses: likewise, what is limited: for `harm_rate_limit` labels (1 harmful, 0 not) or P(unsafe); for
            `cost_limit` costs. By default the weights.
        cost_limit: for the mean cost of the chosen.
        harm_rate_limit: for their harmful rate.
        confidence: in (0, 1).

    Raises:
        ConfigError: not exactly one limit, or a setting is out of range.
        ValueError: a score is not finite, a loss for `harm_rate_limit` is not in [0, 1], or the arguments differ in
            their prompts.
    """
    constraint, limit = check_limit(cost_limit, harm_rate_limit)
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"confidence must lie between 0 and 1, got {confidence}")
    reward, offsets = flatten("rewards", rewards)
    weight, weight_offsets = flatten("weights", weights)
    check_alike("rewards", offsets, "weights", weight_offsets)
    loss = weight
    if losses is not None:
        loss, loss_offsets = flatten("losses", losses)
        check_alike("rewards", offsets, "losses", loss_offsets)
    if constraint == "harm_rate":
        check_probabilities("losses (labels or P(unsafe); by default the weights)", loss)

    hulls = make_hulls(reward, weight, offsets)
    num_prompts = len(offsets) - 1
    # Segments are sorted by slope, so the sums of the chosen at all multipliers are prefix sums.
    num_segments = np.searchsorted(-hulls.slope, -np.array(LADDER), side="left")

    def means(values: FloatArray) -> FloatArray:
        steps = np.append(0.0, np.cumsum(values[hulls.end] - values[hulls.begin]))
        return (math.fsum(values[hulls.least].tolist()) + steps[num_segments]) / num_prompts

    mean = means(loss)
    bound: Bound
    if constraint == "cost":
        bound = "student_t"
        # About their mean, so that the squares do not cancel.
        centred = loss - loss.mean()
        variance = np.maximum(means(centred**2) - means(centred) ** 2, 0.0) * num_prompts / max(num_prompts - 1, 1)
        holds = _student_t(mean, variance, num_prompts, limit, confidence)
    elif np.isin(loss, (0.0, 1.0)).all():
        bound = "binomial"
        p_values = _binomial_cumulative(num_prompts, limit)
        holds = p_values[np.rint(mean * num_prompts).astype(np.intp)] <= 1.0 - confidence
    else:
        bound = "hoeffding_bentkus"
        holds = _hoeffding_bentkus(mean, num_prompts, limit) <= 1.0 - confidence
    num_passed = len(LADDER) if holds.all() else int(np.argmin(holds))
    at = max(num_passed - 1, 0)
    reason = None
    if num_passed == 0:
        what = "mean cost" if constraint == "cost" else "harmful rate"
        reason = (
            f"{num_prompts} prompts cannot promise a {what} up to {limit:g} with {confidence:.0%} confidence: even at "
            f"lambda = {LADDER[0]:g} it is {mean[0]:.4g} among them; raise the limit or take more prompts"
        )
    return ConfidentMultiplier(
        lagrange_multiplier=LADDER[at] if num_passed else None,
        reason=reason,
        constraint=constraint,
        limit=limit,
        confidence=confidence,
        bound=bound,
        num_prompts=num_prompts,
        observed=float(mean[at]),
        reward=float(means(reward)[at]),
    )


def _student_t(mean: FloatArray, variance: FloatArray, num: int, limit: float, confidence: float) -> NDArray[np.bool_]:
    if num < _MIN_PROMPTS:
        return np.zeros(len(mean), dtype=bool)
    return mean + _student_quantile(confidence, num - 1) * np.sqrt(variance / num) <= limit


def _binomial_cumulative(num: int, rate: float) -> FloatArray:
    """(num + 1,) P(Binomial(num, rate) <= k) for k = 0, ..., num."""
    if rate in (0.0, 1.0):
        return np.ones(num + 1) if rate == 0.0 else np.append(np.zeros(num), 1.0)
    log_factorial = np.array([math.lgamma(k + 1) for k in range(num + 1)])
    successes = np.arange(num + 1)
    log_chance = log_factorial[-1] - log_factorial - log_factorial[::-1]
    log_chance = log_chance + successes * math.log(rate) + (num - successes) * math.log1p(-rate)
    return np.minimum(np.cumsum(np.exp(log_chance)), 1.0)


def _hoeffding_bentkus(mean: FloatArray, num: int, limit: float) -> FloatArray:
    """P-values of mean losses in [0, 1] for "the expectation is above the limit"."""
    # Rounded down by less than matters, so that a sum that is whole is not taken for one more.
    successes = np.clip(np.ceil(mean * num - 1e-9), 0, num).astype(np.intp)
    bentkus = math.e * _binomial_cumulative(num, limit)[successes]
    if not 0.0 < limit < 1.0:
        return bentkus
    low = np.clip(mean, 0.0, limit)
    divergence = np.where(low > 0, low * np.log(np.maximum(low, 1e-300) / limit), 0.0)
    divergence = divergence + (1 - low) * np.log((1 - low) / (1 - limit))
    return np.minimum(bentkus, np.exp(-num * np.maximum(divergence, 0.0)))


def _student_quantile(level: float, degrees: int) -> float:
    """Of Student's t, by its expansion about the normal one (Abramowitz & Stegun 26.7.5); to 1e-4 from 29 degrees."""
    z = NormalDist().inv_cdf(level)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / degrees ** (power + 1) for power, term in enumerate(terms))
