"""Finds a multiplier that keeps a limit on new prompts, not only on the prompts that it was chosen on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.lagrangian.hulls import FloatArray, IntArray, Rows, check_alike, flatten
from safe_rlhf_video.lagrangian.order import trace_choices
from safe_rlhf_video.lagrangian.selection import Constraint, check_limit, check_probabilities
from safe_rlhf_video.stats.bounds import betting_p_values, binomial_p_values, hoeffding_bentkus_p_values

Bound = Literal["binomial", "hoeffding_bentkus", "betting"]

CONFIDENCE = 0.95
MOST_COST = 10.0
"""Higher costs count as this one in what is promised of a mean cost: without an end, no sample bounds a mean. As log
odds it is a probability of being unsafe of 0.99995."""
SHUFFLE_SEED = 0
LADDER = tuple(np.append(np.geomspace(1e4, 1e-4, 801), 0.0).tolist())
"""The multipliers to try, falling, 2.3% apart. The promise needs them to be fixed before any score is seen."""


@dataclass(frozen=True)
class ConfidentMultiplier:
    """The result of `confident_multiplier`.

    Attributes:
        lagrange_multiplier: the smallest one that keeps the promise; None if none does.
        reason: why there is none; else None.
        constraint, limit: the promise: on new prompts with as many candidates, the mean cost or the harmful rate of the
            chosen ones is at most the limit; of costs, the mean of min(cost, `MOST_COST`).
        confidence: 1 less the probability that a multiplier is issued which breaks this, over draws of the prompts.
        bound: the bound on the mean that was used.
        num_prompts: the number of prompts that the multiplier was chosen on.
        observed: mean cost, or harmful rate, of the candidates chosen on these prompts; if there is no multiplier, with
            the largest one tried. Here every cost counts as it is.
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
    `betting_p_values` for costs. These have no upper end, and without one nothing is known of a mean: what is promised
    is the mean of min(cost, `MOST_COST`).

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
    constraint, limit = check_promise(cost_limit, harm_rate_limit, confidence)
    (reward, offsets), (weight, weight_offsets) = flatten("rewards", rewards), flatten("weights", weights)
    loss, loss_offsets = (weight, weight_offsets) if losses is None else flatten("losses", losses)
    _check_one_number(offsets)
    check_alike("rewards", offsets, "weights", weight_offsets)
    check_alike("rewards", offsets, "losses", loss_offsets)
    if constraint == "harm_rate":
        check_probabilities("losses (labels or P(unsafe); by default the weights)", loss)

    num_prompts = len(offsets) - 1
    reward, weight, loss = (values.reshape(num_prompts, -1) for values in (reward, weight, loss))
    chosen = trace_choices(reward, weight, np.array(LADDER))
    prompts = np.arange(num_prompts)
    losses_of_chosen = loss[prompts, chosen]
    bound, p_values = _test(losses_of_chosen, constraint, limit, confidence)
    holds = p_values <= 1.0 - confidence
    num_passed = len(LADDER) if holds.all() else int(np.argmin(holds))
    at = max(num_passed - 1, 0)
    observed = float(losses_of_chosen[at].mean())
    what = "mean cost" if constraint == "cost" else "harmful rate"
    none = (
        f"{num_prompts} prompts cannot promise a {what} up to {limit:g} with {confidence:.0%} confidence: even at "
        f"lambda = {LADDER[0]:g} it is {observed:.4g} among them; raise the limit or take more prompts"
    )
    return ConfidentMultiplier(
        lagrange_multiplier=LADDER[at] if num_passed else None,
        reason=None if num_passed else none,
        constraint=constraint,
        limit=limit,
        confidence=confidence,
        bound=bound,
        num_prompts=num_prompts,
        observed=observed,
        reward=float(reward[prompts, chosen[at]].mean()),
    )


def check_promise(
    cost_limit: float | None, harm_rate_limit: float | None, confidence: float = CONFIDENCE
) -> tuple[Constraint, float]:
    """Returns what a promise limits, and the limit.

    Raises:
        ConfigError: not exactly one limit is given, or a value is out of range.
    """
    constraint, limit = check_limit(cost_limit, harm_rate_limit)
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"confidence must be between 0 and 1, got {confidence}")
    if constraint == "cost" and limit >= MOST_COST:
        raise ConfigError(f"cost_limit must be below {MOST_COST:g} to be promised: higher costs count as that")
    return constraint, limit


def _test(losses: FloatArray, constraint: Constraint, limit: float, confidence: float) -> tuple[Bound, FloatArray]:
    """Tests for each multiplier whether the expectation is above the limit; returns the bound and (L,) p-values.

    Args:
        losses: (L, P), of what each multiplier chooses.
    """
    num_prompts = losses.shape[1]
    if constraint == "cost":
        # Bets look back, so that a file that is sorted by cost would break them.
        shuffled = np.random.default_rng(SHUFFLE_SEED).permutation(num_prompts)
        clipped = np.minimum(losses[:, shuffled], MOST_COST)
        return "betting", betting_p_values(clipped, limit, MOST_COST, confidence)
    if np.isin(losses, (0.0, 1.0)).all():
        return "binomial", binomial_p_values(losses.sum(axis=1).astype(np.intp), num_prompts, limit)
    return "hoeffding_bentkus", hoeffding_bentkus_p_values(losses.mean(axis=1), num_prompts, limit)


def _check_one_number(offsets: IntArray) -> None:
    numbers = np.unique(np.diff(offsets))
    if len(numbers) > 1:
        raise ValueError(
            f"rewards: prompts have {numbers[0]} to {numbers[-1]} candidates; a multiplier is for one number, draw as "
            "many for each prompt"
        )
