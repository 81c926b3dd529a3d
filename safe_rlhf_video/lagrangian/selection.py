"""Best-of-n over many prompts under one limit: the multiplier that is optimal for it, and what to choose."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.lagrangian.branch_and_bound import improve
from safe_rlhf_video.lagrangian.hulls import FloatArray, Hulls, IntArray, Rows, check_alike, flatten, make_hulls

Constraint = Literal["cost", "harm_rate"]

# A mean above the limit by less than this, as a share of the limit or of 1, is within it: 3 of 10 is a rate of 0.3,
# though ten times the float 0.3 is less than 3.
_ROUNDING = 1e-12


class Randomisation(NamedTuple):
    """The one prompt whose candidate is drawn by chance."""

    prompt: int
    candidate: int
    """Taken in place of the chosen one, with `probability`."""
    probability: float


@dataclass(frozen=True)
class Selection:
    """One candidate of each prompt.

    Attributes:
        chosen: (P,) index among the prompt's candidates.
        randomised: the prompt for which another candidate is taken now and then; None where nothing is left to chance.
        reward, cost: expected means over prompts.
        harmful_rate: expected mean of P(unsafe), or share of costs above 0 where that was not given.
    """

    chosen: IntArray
    randomised: Randomisation | None
    reward: float
    cost: float
    harmful_rate: float


@dataclass(frozen=True)
class Solution:
    """What is best under a limit; rewards are means over prompts. See `solve_multiplier`.

    Attributes:
        constraint, limit: what was limited, and to what.
        is_feasible: whether any selection meets the limit; the fields below are None where none does.
        least: the selection with the least mean of what is limited, among equals of the most reward.
        lagrange_multiplier: lambda*, the smallest that is optimal; 0 where the limit does not bind.
        dual_value: the least upper bound of the mean reward that a multiplier proves; the mean reward of `mixed`.
        mixed: the best selection where one may draw by chance; at most one prompt is randomised.
        rule: what max r - lambda* w chooses prompt by prompt, of equals the least w; it meets the limit.
        deterministic: the best selection that leaves nothing to chance, as far as it was searched for.
        is_optimal: whether no deterministic selection is better than `deterministic`.
        duality_gap: dual_value less the reward of `deterministic`.
        remaining_gap: how much better the best deterministic selection may be at most; 0 where it was found.
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
    """Choose one candidate of each prompt: the most mean reward at a limited mean cost, or a limited harmful rate.

        max  mean_p sum_j x_pj r_pj   s.t.  mean_p sum_j x_pj w_pj <= limit,   sum_j x_pj = 1,  x >= 0
        dual(lambda) = mean_p max_j (r_pj - lambda w_pj) + lambda limit,   lambda* = argmin over lambda >= 0

    w is the cost, or P(unsafe) for the harmful rate. With mixed selections this is the linear relaxation of the
    multiple-choice knapsack problem, and exact: walk all hulls' segments by falling slope until the limit is reached;
    lambda* is the slope of the segment that it is reached in, and the fraction of it that fits is the chance of the one
    randomised prompt (Sinha & Zoltners 1979; Dyer 1984). Without chance (x in {0, 1}) it is solved by branch and bound.

    Args:
        rewards, costs: one row of candidates a prompt, of any lengths >= 1, or a (P, n) array; units of the heads.
        p_unsafe: likewise, calibrated probabilities of being unsafe; needed for `harm_rate_limit`, otherwise only for
            `Selection.harmful_rate`.
        cost_limit: d, what the mean cost of the chosen may be.
        harm_rate_limit: in [0, 1], what their mean P(unsafe) may be. lambda then weighs P(unsafe), not the cost.
        node_limit: partial selections to look at in the search for the best deterministic one.

    Raises:
        ConfigError: not exactly one limit (two limits would need two multipliers), or one that is out of range.
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
    # Exactly rounded, so that its sign is right: how much all prompts together may add to their least weights.
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
    # The same choice without its chance is where the search for the deterministic one begins.
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
    """The candidate of each prompt with the most r - lambda w, among equals the one of the least weight.

    With a higher lambda neither the mean weight nor the mean reward of the chosen is ever higher.

    Args:
        rewards, weights: one row of candidates a prompt, as for `solve_multiplier`.
        lagrange_multiplier: lambda >= 0.

    Raises:
        ConfigError: lambda is negative or not finite.
        ValueError: as `solve_multiplier`.
    """
    if not (math.isfinite(lagrange_multiplier) and lagrange_multiplier >= 0):
        raise ConfigError(f"lagrange_multiplier must be a finite number >= 0, got {lagrange_multiplier}")
    reward, offsets = flatten("rewards", rewards)
    weight, weight_offsets = flatten("weights", weights)
    check_alike("rewards", offsets, "weights", weight_offsets)
    chosen: list[int] = (make_hulls(reward, weight, offsets).choose(lagrange_multiplier) - offsets[:-1]).tolist()
    return chosen


def check_limit(cost_limit: float | None, harm_rate_limit: float | None) -> tuple[Constraint, float]:
    """The one limit that was given.

    Raises:
        ConfigError: both or none are given, or it is out of range.
    """
    if (cost_limit is None) == (harm_rate_limit is None):
        raise ConfigError("give either cost_limit or harm_rate_limit: one multiplier holds one limit")
    if cost_limit is not None:
        if not math.isfinite(cost_limit):
            raise ConfigError(f"cost_limit must be a finite number, got {cost_limit}")
        return "cost", float(cost_limit)
    assert harm_rate_limit is not None
    if not 0.0 <= harm_rate_limit <= 1.0:
        raise ConfigError(f"harm_rate_limit must lie in [0, 1], got {harm_rate_limit}")
    return "harm_rate", float(harm_rate_limit)


def check_probabilities(name: str, values: FloatArray) -> None:
    """Refuse what is outside [0, 1].

    Raises:
        ValueError: there is such a value.
    """
    outside = (values < 0) | (values > 1)
    if outside.any():
        raise ValueError(f"{name} must lie in [0, 1], got {values[outside][0]}")


def _fill(
    hulls: Hulls, weight: FloatArray, budget: float, tolerance: float
) -> tuple[float, IntArray, int | None, float]:
    """Spend the budget on segments by falling slope; lambda*, the choice, the segment that fits in part, its part."""
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
