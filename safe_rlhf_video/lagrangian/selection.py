"""Solves best-of-n over many prompts under one limit: the optimal multiplier, and the candidate of each prompt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.lagrangian.branch_and_bound import improve
from safe_rlhf_video.lagrangian.hulls import FloatArray, Hulls, IntArray, Rows, check_alike, flatten, make_hulls
from safe_rlhf_video.lagrangian.order import order_candidates
from safe_rlhf_video.lagrangian.score import check_cost_limit, check_multiplier

Constraint = Literal["cost", "harm_rate"]

# A mean above the limit by less than this, as a share of the limit or of 1, counts as within it: 3 of 10 is a rate of
# 0.3, although ten times the float 0.3 is less than 3.
_ROUNDING = 1e-12


class Randomisation(NamedTuple):
    """The one prompt whose candidate is drawn at random."""

    prompt: int
    candidate: int
    """Taken in place of the chosen one, with `probability`."""
    probability: float


@dataclass(frozen=True)
class Selection:
    """One candidate of each prompt.

    Attributes:
        chosen: (P,) index among the prompt's candidates.
        randomised: the prompt that takes another candidate with some probability; None if nothing is random.
        reward, cost: expected means over prompts.
        harmful_rate: expected mean of P(unsafe), or the share of costs above 0 if that was not given.
    """

    chosen: IntArray
    randomised: Randomisation | None
    reward: float
    cost: float
    harmful_rate: float


@dataclass(frozen=True)
class Solution:
    """The best selections under a limit; rewards are means over prompts. See `solve_multiplier`.

    Attributes:
        constraint, limit: the limited quantity, and its limit.
        is_feasible: whether any selection meets the limit; if not, the fields after `least` are None.
        least: the selection with the least mean of the limited quantity; among equals, the one with the most reward.
        lagrange_multiplier: lambda*, the smallest optimal one; 0 if the limit does not bind.
        dual_value: the least upper bound on the mean reward that a multiplier proves; the mean reward of `mixed`.
        mixed: the best selection if candidates may be drawn at random; at most one prompt is randomised.
        rule: the choice of max r - lambda* w for each prompt, among equals the least w; it meets the limit.
        deterministic: the best selection without randomness that the search found.
        is_optimal: whether no deterministic selection is better than `deterministic`.
        duality_gap: dual_value less the reward of `deterministic`.
        remaining_gap: upper bound on how much better the best deterministic selection is; 0 if it was found.
    """

    constraint: Constraint
    limit: float
    is_feasible: bool
    least: Selection
    lagrange_multiplier: float | None = None
    dual_value: float | None = None
    mixed: Selection | None = None
    rule: Selection | None = None
    deterministic: Selection | None = None
    is_optimal: bool | None = None
    duality_gap: float | None = None
    remaining_gap: float | None = None


def solve_multiplier(
    rewards: Rows,
    costs: Rows,
    p_unsafe: Rows | None = None,
    *,
    cost_limit: float | None = None,
    harm_rate_limit: float | None = None,
    node_limit: int = 1_000_000,
) -> Solution:
    """Chooses one candidate of each prompt: the most mean reward at a limited mean cost, or a limited harmful rate.

        max  mean_p sum_j x_pj r_pj   s.t.  mean_p sum_j x_pj w_pj <= limit,   sum_j x_pj = 1,  x >= 0
        dual(lambda) = mean_p max_j (r_pj - lambda w_pj) + lambda limit,   lambda* = argmin over lambda >= 0

    w is the cost, or P(unsafe) for the harmful rate. With mixed selections this is the linear relaxation of the
    multiple-choice knapsack problem, and the solution is exact: take all hulls' segments by falling slope until the
    limit is reached. lambda* is the slope of the last segment, and the fraction of it that fits is the probability of
    the one randomised prompt (Sinha & Zoltners 1979; Dyer 1984). Without randomness (x in {0, 1}), branch and bound
    solves it.

    Args:
        rewards, costs: one row of candidates a prompt, of any lengths >= 1, or a (P, n) array; units of the heads.
        p_unsafe: likewise, calibrated probabilities of being unsafe; needed for `harm_rate_limit`, otherwise only for
            `Selection.harmful_rate`.
        cost_limit: d, the highest mean cost of the chosen candidates.
        harm_rate_limit: in [0, 1], their highest mean P(unsafe). lambda then weighs P(unsafe), not the cost.
        node_limit: the most partial selections that the search for the best deterministic one examines.

    Raises:
        ConfigError: not exactly one limit is given (two limits would need two multipliers), or it is out of range.
        ValueError: a score is not finite, a probability is not in [0, 1], or the arguments differ in their prompts.
    """
    constraint, limit = check_limit(cost_limit, harm_rate_limit)
    if node_limit < 0:
        raise ConfigError(f"node_limit must be at least 0, got {node_limit}")
    reward, offsets = flatten("rewards", rewards)
    cost, cost_offsets = flatten("costs", costs)
    check_alike("rewards", offsets, "costs", cost_offsets)
    if p_unsafe is not None:
        harm, harm_offsets = flatten("p_unsafe", p_unsafe)
        check_alike("rewards", offsets, "p_unsafe", harm_offsets)
        check_probabilities("p_unsafe", harm)
    elif constraint == "harm_rate":
        raise ConfigError("harm_rate_limit needs p_unsafe, the probability of being unsafe of each candidate")
    else:
        harm = (cost > 0).astype(np.float64)
    weight = harm if constraint == "harm_rate" else cost
    num_prompts = len(offsets) - 1
    hulls = make_hulls(reward, weight, offsets)

    def describe(candidates: IntArray, randomised: Randomisation | None = None) -> Selection:
        return _describe(candidates, randomised, reward, cost, harm, offsets)

    least = describe(hulls.least)
    # How much all prompts together may add to their least weights; exactly rounded, so that its sign is right.
    budget = math.fsum([*[limit] * num_prompts, *(-weight[hulls.least]).tolist()])
    tolerance = num_prompts * _ROUNDING * max(1.0, abs(limit))
    if budget < -tolerance:
        return Solution(constraint, limit, is_feasible=False, least=least)

    multiplier, mixed_candidates, segment, fraction = _fill(hulls, weight, max(budget, 0.0), tolerance)
    randomised = None
    if segment is not None:
        prompt = int(hulls.prompt[segment])
        randomised = Randomisation(prompt, int(hulls.end[segment] - offsets[prompt]), fraction)
    mixed = describe(mixed_candidates, randomised)
    rule = describe(hulls.choose(multiplier))
    # The search for the deterministic selection starts from the same choice without its random part.
    slack = max(0.0, math.fsum([*[limit] * num_prompts, *(-weight[mixed_candidates]).tolist()]))
    dual_value = describe(mixed_candidates).reward + multiplier * (slack / num_prompts)
    candidates, is_optimal = improve(
        reward, weight, offsets, mixed_candidates, multiplier, slack, tolerance, node_limit
    )
    deterministic = describe(candidates)
    gap = max(0.0, dual_value - deterministic.reward)
    return Solution(
        constraint,
        limit,
        is_feasible=True,
        least=least,
        lagrange_multiplier=multiplier,
        dual_value=dual_value,
        mixed=mixed,
        rule=rule,
        deterministic=deterministic,
        is_optimal=is_optimal,
        duality_gap=gap,
        remaining_gap=0.0 if is_optimal else gap,
    )


def select(rewards: Rows, weights: Rows, lagrange_multiplier: float) -> list[int]:
    """Returns the candidate of each prompt with the most r - lambda w, of tied ones the one with the least weight.

    It is the first of `order_candidates`. A higher lambda never gives a higher mean weight or a higher mean reward of
    the chosen candidates.

    Args:
        rewards, weights: one row of candidates a prompt, as for `solve_multiplier`.
        lagrange_multiplier: lambda >= 0.

    Raises:
        ConfigError: lambda is out of range, see `check_multiplier`.
        ValueError: as `solve_multiplier`.
    """
    check_multiplier(lagrange_multiplier)
    reward, offsets = flatten("rewards", rewards)
    weight, weight_offsets = flatten("weights", weights)
    check_alike("rewards", offsets, "weights", weight_offsets)
    net = reward - lagrange_multiplier * weight
    return [order_candidates(net[begin:end], weight[begin:end])[0] for begin, end in pairwise(offsets)]


def check_limit(cost_limit: float | None, harm_rate_limit: float | None) -> tuple[Constraint, float]:
    """Returns the one limit that was given, and what it limits.

    Raises:
        ConfigError: both limits or neither are given, or the limit is out of range.
    """
    if (cost_limit is None) == (harm_rate_limit is None):
        raise ConfigError("give either cost_limit or harm_rate_limit: one multiplier keeps one limit")
    if cost_limit is not None:
        check_cost_limit(cost_limit)
        return "cost", float(cost_limit)
    assert harm_rate_limit is not None
    if not 0.0 <= harm_rate_limit <= 1.0:
        raise ConfigError(f"harm_rate_limit must be in [0, 1], got {harm_rate_limit}")
    return "harm_rate", float(harm_rate_limit)


def check_probabilities(name: str, values: FloatArray) -> None:
    """Checks that all values are in [0, 1].

    Raises:
        ValueError: a value is outside.
    """
    outside = (values < 0) | (values > 1)
    if outside.any():
        raise ValueError(f"{name} must be in [0, 1], got {values[outside][0]}")


def _fill(
    hulls: Hulls, weight: FloatArray, budget: float, tolerance: float
) -> tuple[float, IntArray, int | None, float]:
    """Spends the budget on segments by falling slope.

    Returns lambda*, the choice, the segment that fits only in part, and the part of it that fits.
    """
    added = weight[hulls.end] - weight[hulls.begin]
    spent = np.cumsum(added)
    num_whole = int(np.searchsorted(spent, budget + tolerance, side="right"))
    chosen = hulls.least.copy()
    chosen[hulls.prompt[:num_whole]] = hulls.end[:num_whole]
    if num_whole == len(added):
        return 0.0, chosen, None, 0.0
    left = budget - (spent[num_whole - 1] if num_whole else 0.0)
    multiplier = float(hulls.slope[num_whole])
    if left <= tolerance:
        return multiplier, chosen, None, 0.0
    return multiplier, chosen, num_whole, float(left / added[num_whole])


def _describe(
    candidates: IntArray,
    randomised: Randomisation | None,
    reward: FloatArray,
    cost: FloatArray,
    harm: FloatArray,
    offsets: IntArray,
) -> Selection:
    means = []
    for values in (reward, cost, harm):
        terms = values[candidates].tolist()
        if randomised is not None:
            prompt, candidate, probability = randomised
            terms.append(probability * (values[offsets[prompt] + candidate] - values[candidates[prompt]]))
        means.append(math.fsum(terms) / len(candidates))
    return Selection(candidates - offsets[:-1], randomised, *means)
