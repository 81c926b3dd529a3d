"""Finds a multiplier that keeps a limit on new prompts, not only on the prompts that it was chosen on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.lagrangian.hulls import FloatArray, IntArray, Rows, check_alike, flatten, make_hulls
from safe_rlhf_video.lagrangian.selection import Constraint, check_limit, check_probabilities
from safe_rlhf_video.stats.bounds import binomial_p_values, hoeffding_bentkus_p_values, student_upper_bound

Bound = Literal["binomial", "hoeffding_bentkus", "student_t"]

CONFIDENCE = 0.95
LADDER = tuple(np.append(np.geomspace(1e4, 1e-4, 801), 0.0).tolist())
"""The multipliers to try, falling, 2.3% apart. The promise needs them to be fixed before any score is seen."""


@dataclass(frozen=True)
class ConfidentMultiplier:
    """The result of `confident_multiplier`.

    Attributes:
        lagrange_multiplier: the smallest one that keeps the promise; None if none does.
        reason: why there is none; else None.
        constraint, limit: the promise: on new prompts with as many candidates, the mean cost or the harmful rate of the
            chosen ones is at most the limit.
        confidence: 1 less the probability that a multiplier is issued which breaks this, over draws of the prompts.
        bound: the bound on the mean that was used.
        num_prompts: the number of prompts that the multiplier was chosen on.
        observed: mean cost, or harmful rate, of the candidates chosen on these prompts; if there is no multiplier, with
            the largest one tried.
        reward: mean reward of these candidates.
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
    """Finds the smallest lambda that passes tests that choosing max r - lambda w keeps a limit on new prompts.

    The probability that a lambda is issued which breaks the limit is at most 5%, over draws of prompts like these.

    The multipliers of `LADDER` are tested from the largest, the safest, downwards, each at the full level of 5%, up to
    the first that fails. A wrong one can pass only if the first wrong one does, so trying many costs nothing, and
    losses need not fall with lambda. Source: Learn then Test (arXiv 2110.01052), fixed-sequence testing. A test passes
    if, with the expectation at the limit, at most 5% of draws would give a mean as low as the observed one:
    `stats.bounds.binomial_p_values` for labels (0, 1), `hoeffding_bentkus_p_values` for losses in [0, 1], and
    `student_upper_bound` for costs, which have no bounds; it needs at least 30 prompts.

    The promise is about prompts and candidates drawn like these, with exactly as many candidates: best of another
    number is another rule. Calling this again until a lambda is issued spends the 5%. With P(unsafe) as losses, the
    promise depends on their calibration; with labels it does not.

    Args:
        rewards: (P, n), one row of candidates for each prompt.
        weights: same shape, what lambda weighs when choosing: costs, or P(unsafe).
        losses: same shape, the limited quantity: for `harm_rate_limit` labels (1 harmful, 0 not) or P(unsafe); for
            `cost_limit` costs. The weights by default.
        cost_limit: the highest mean cost of the chosen candidates.
        harm_rate_limit: their highest harmful rate.
        confidence: in (0, 1).

    Raises:
        ConfigError: not exactly one limit is given, or a setting is out of range.
        ValueError: a score is not finite, prompts or arguments differ in the number of candidates, or a loss for
            `harm_rate_limit` is not in [0, 1].
    """
    constraint, limit = check_limit(cost_limit, harm_rate_limit)
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"confidence must be between 0 and 1, got {confidence}")
    (reward, offsets), (weight, weight_offsets) = flatten("rewards", rewards), flatten("weights", weights)
    loss, loss_offsets = (weight, weight_offsets) if losses is None else flatten("losses", losses)
    _check_one_number(offsets)
    check_alike("rewards", offsets, "weights", weight_offsets)
    check_alike("rewards", offsets, "losses", loss_offsets)
    if constraint == "harm_rate":
        check_probabilities("losses (labels or P(unsafe); by default the weights)", loss)

    hulls = make_hulls(reward, weight, offsets)
    num_prompts = len(offsets) - 1
    # Segments are sorted by slope, so prefix sums give the sums over the chosen candidates at all multipliers.
    num_segments = np.searchsorted(-hulls.slope, -np.array(LADDER), side="left")

    def means(values: FloatArray) -> FloatArray:
        steps = np.append(0.0, np.cumsum(values[hulls.end] - values[hulls.begin]))
        return (math.fsum(values[hulls.least].tolist()) + steps[num_segments]) / num_prompts

    mean = means(loss)
    bound: Bound
    if constraint == "cost":
        bound = "student_t"
        # Centred, so that the squares do not cancel.
        centred = loss - loss.mean()
        variance = np.maximum(means(centred**2) - means(centred) ** 2, 0.0) * num_prompts / max(num_prompts - 1, 1)
        holds = student_upper_bound(mean, variance, num_prompts, confidence) <= limit
    elif np.isin(loss, (0.0, 1.0)).all():
        bound = "binomial"
        counts = np.rint(mean * num_prompts).astype(np.intp)
        holds = binomial_p_values(counts, num_prompts, limit) <= 1.0 - confidence
    else:
        bound = "hoeffding_bentkus"
        holds = hoeffding_bentkus_p_values(mean, num_prompts, limit) <= 1.0 - confidence
    num_passed = len(LADDER) if holds.all() else int(np.argmin(holds))
    at = max(num_passed - 1, 0)
    what = "mean cost" if constraint == "cost" else "harmful rate"
    none = (
        f"{num_prompts} prompts cannot promise a {what} up to {limit:g} with {confidence:.0%} confidence: even at "
        f"lambda = {LADDER[0]:g} it is {mean[0]:.4g} among them; raise the limit or take more prompts"
    )
    return ConfidentMultiplier(
        lagrange_multiplier=LADDER[at] if num_passed else None,
        reason=None if num_passed else none,
        constraint=constraint,
        limit=limit,
        confidence=confidence,
        bound=bound,
        num_prompts=num_prompts,
        observed=float(mean[at]),
        reward=float(means(reward)[at]),
    )


def _check_one_number(offsets: IntArray) -> None:
    numbers = np.unique(np.diff(offsets))
    if len(numbers) > 1:
        raise ValueError(
            f"rewards: prompts have {numbers[0]} to {numbers[-1]} candidates; a multiplier is for one number, draw as "
            "many for each prompt"
        )
