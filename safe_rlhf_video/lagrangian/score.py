"""Computes the Lagrangian score, chooses between two videos, and explains the choice in words.

A cost above the cost limit means unsafe. Everything here is plain arithmetic on floats or numpy arrays.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.stats.credit import TIE_TOLERANCE

Choice = Literal["v1", "v2", "tie"]
Weighed = Literal["cost", "p_unsafe"]
ScoreT = TypeVar("ScoreT", float, NDArray[np.floating[Any]])

# With larger ones, products with a score are no longer exact enough to tell clips apart: at 1e17 every pair was a tie.
MAX_LAGRANGE_MULTIPLIER = 1e6
MAX_COST_LIMIT = 1e6

_MAX_DECIMALS = 9


def check_multiplier(lagrange_multiplier: float, name: str = "lagrange_multiplier") -> None:
    """Raises ConfigError unless a lambda is in [0, `MAX_LAGRANGE_MULTIPLIER`]."""
    if not (math.isfinite(lagrange_multiplier) and lagrange_multiplier >= 0):
        raise ConfigError(f"{name} must be a finite number >= 0, got {lagrange_multiplier}")
    if lagrange_multiplier > MAX_LAGRANGE_MULTIPLIER:
        raise ConfigError(f"{name} must be at most {MAX_LAGRANGE_MULTIPLIER:g}, got {lagrange_multiplier:g}")


def check_cost_limit(cost_limit: float) -> None:
    """Raises ConfigError unless a cost limit is finite and at most `MAX_COST_LIMIT` from 0."""
    if not math.isfinite(cost_limit):
        raise ConfigError(f"cost_limit must be a finite number, got {cost_limit}")
    if abs(cost_limit) > MAX_COST_LIMIT:
        raise ConfigError(f"cost_limit must be at most {MAX_COST_LIMIT:g} from 0, got {cost_limit:g}")


def weigh(cost: ScoreT, weighed: Weighed = "cost") -> ScoreT:
    """Returns the quantity that lambda puts a price on: the cost itself, or the probability of being unsafe.

        P(unsafe) = 1 / (1 + e^-c)

    The sign term of the cost's loss trains the cost to be these log odds. A price on P(unsafe) buys more helpfulness at
    the same harmful rate than a price on the cost, which keeps falling among clips that are already safe;
    docs/lagrangian.md has figures.

    Raises:
        ConfigError: ``weighed`` is neither "cost" nor "p_unsafe".
    """
    if weighed == "cost":
        return cost
    if weighed != "p_unsafe":
        raise ConfigError(f"weighed must be cost or p_unsafe, got {weighed!r}")
    # By tanh, which never overflows.
    return 0.5 * (1.0 + np.tanh(0.5 * cost))


def lagrangian_score(
    reward: ScoreT,
    cost: ScoreT,
    lagrange_multiplier: float = 1.0,
    cost_limit: float = 0.0,
    weighed: Weighed = "cost",
) -> ScoreT:
    """Subtracts the weighted excess cost from the reward, on a scale that does not grow with the weight.

        score = (r - lambda * (w(c) - w(d))) / (1 + lambda)        w(c) = c, or P(unsafe), see `weigh`

    Source: the Lagrangian of Safe RLHF (arXiv 2310.12773), with its normalisation by 1 / (1 + lambda); w(c) = c there.

    Args:
        reward: float or array of any shape, in units of the reward head.
        cost: same kind and shape as ``reward``; > 0 means unsafe.
        lagrange_multiplier: lambda >= 0; 0 ignores cost, large values follow cost alone.
        cost_limit: d, in units of the cost head. It shifts all scores equally, so it never changes which video wins.
        weighed: what lambda puts a price on, see `weigh`.

    Returns:
        Score of the kind and shape of ``reward``; higher is better.

    Raises:
        ConfigError: lambda or the cost limit is out of range (`check_multiplier`, `check_cost_limit`), or ``weighed``
            is unknown.
    """
    check_multiplier(lagrange_multiplier)
    check_cost_limit(cost_limit)
    excess = weigh(cost, weighed) - weigh(float(cost_limit), weighed)
    return (reward - lagrange_multiplier * excess) / (1.0 + lagrange_multiplier)


def net_reward(reward: ScoreT, cost: ScoreT, lagrange_multiplier: float = 1.0, weighed: Weighed = "cost") -> ScoreT:
    """Returns r - lambda w(c), which every choice and order goes by.

    It orders as `lagrangian_score` does, but without the limit and the division: those round, and would make the
    tolerance of ties grow with lambda.

    Raises:
        ConfigError: as `lagrangian_score`.
    """
    check_multiplier(lagrange_multiplier)
    return reward - lagrange_multiplier * weigh(cost, weighed)


def choose(score_0: float, score_1: float, tolerance: float = TIE_TOLERANCE) -> Choice:
    """Names the video with the higher net reward, or a tie if the two differ by ``tolerance`` or less.

    Swapping the scores swaps ``"v1"`` and ``"v2"`` exactly, since ``a - b`` is ``-(b - a)`` in floating point.

    Raises:
        ConfigError: the tolerance is negative or not finite.
        ValueError: a score is not finite, so the two have no order.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ConfigError(f"tolerance must be a finite number >= 0, got {tolerance}")
    if not (math.isfinite(score_0) and math.isfinite(score_1)):
        raise ValueError(f"cannot choose between scores {score_0} and {score_1}: both must be finite")
    difference = score_0 - score_1
    if abs(difference) <= tolerance:
        return "tie"
    return "v1" if difference > 0 else "v2"


def explain_choice(
    rewards: tuple[float, float],
    costs: tuple[float, float],
    lagrange_multiplier: float,
    cost_limit: float,
    preferred: Choice,
    names: tuple[str, str] = ("v1", "v2"),
    weighed: Weighed = "cost",
    has_zero: bool = True,
) -> str:
    """Explains in one plain sentence why ``preferred`` is preferred, e.g.

        v2 is preferred: v1 is more helpful (reward 1.90 against 0.85) but unsafe (cost +2.10 > limit 0.00), and at
        lambda = 5.00 its extra cost outweighs its extra reward.

    Swapping the two videos swaps the words v1 and v2 and nothing else. Numbers get as many decimals (2 to 9) as
    are needed to show that they differ.

    Args:
        rewards: rewards of v1 and v2.
        costs: costs of v1 and v2.
        lagrange_multiplier: lambda, as in ``lagrangian_score``.
        cost_limit: d, as in ``lagrangian_score``.
        preferred: the answer of ``choose`` for the two net rewards.
        names: what to call the two videos.
        weighed: as in ``lagrangian_score``.
        has_zero: whether the cost was trained to be above 0 for unsafe videos; if not, none is called unsafe.

    Raises:
        ConfigError: as ``lagrangian_score``.
        ValueError: a reward or cost is not finite, or ``preferred`` names the video with the lower score.
    """
    if not all(math.isfinite(value) for value in (*rewards, *costs)):
        raise ValueError(f"cannot explain rewards {rewards} and costs {costs}: all must be finite")
    if preferred not in ("v1", "v2", "tie"):
        raise ValueError(f"preferred must be 'v1', 'v2' or 'tie', got {preferred!r}")
    check_cost_limit(cost_limit)
    scores = [net_reward(r, c, lagrange_multiplier, weighed) for r, c in zip(rewards, costs, strict=True)]
    winner, loser = (1, 0) if preferred == "v2" else (0, 1)
    if preferred != "tie" and not scores[winner] > scores[loser]:
        raise ValueError(f"{preferred} does not have the higher net reward: {scores[0]} (v1), {scores[1]} (v2)")

    over = "unsafe" if has_zero else "over the limit"
    if preferred == "tie":
        reason = _tie_reason(rewards, costs, lagrange_multiplier, cost_limit, names)
    elif lagrange_multiplier == 0:
        reason = _reward_only_reason(rewards, costs, cost_limit, winner, loser, names, over)
    elif rewards[winner] >= rewards[loser] and costs[winner] <= costs[loser]:
        reason = _better_on_both_reason(rewards, costs, cost_limit, winner, loser, names)
    else:
        price = "cost" if weighed == "cost" else "risk of harm"
        reason = _trade_off_reason(rewards, costs, lagrange_multiplier, cost_limit, winner, names, price, over)
    if min(costs) > cost_limit:
        reason += f"; both are above the cost limit {_cost_texts(costs, cost_limit)[2]}"
    return f"{reason}."


def explain_choice_by_one(
    head: Literal["reward", "cost"],
    scores: tuple[float, float],
    preferred: Choice,
    names: tuple[str, str] = ("v1", "v2"),
) -> str:
    """Explains a choice by a reward or a cost alone, and says that the other model is missing, e.g.

        v2 is preferred: it is more helpful (reward 1.90 against 0.85); no cost model says which is safer.

    Args:
        head: what decides: the higher reward, or the lower cost.
        scores: of v1 and v2.
        preferred: the answer of ``choose`` for the two rewards, or for the two costs with their signs turned.
        names: what to call the two videos.
    """
    texts = _reward_texts(scores) if head == "reward" else _cost_texts(scores, 0.0)[:2]
    better, missing = ("more helpful", "cost") if head == "reward" else ("safer", "reward")
    if preferred != "tie":
        winner, loser = (0, 1) if preferred == "v1" else (1, 0)
        reason = f"{names[winner]} is preferred: it is {better} ({head} {texts[winner]} against {texts[loser]})"
    elif scores[0] == scores[1]:
        reason = f"neither is preferred: both have {head} {texts[0]}"
    else:
        first, second = (0, 1) if scores[0] > scores[1] else (1, 0)
        reason = (
            f"neither is preferred: {names[first]} has {head} {texts[first]}, {names[second]} has {head} "
            f"{texts[second]}, equal within the tolerance"
        )
    unknown = "safer" if missing == "cost" else "more helpful"
    return f"{reason}; no {missing} model says which is {unknown}."


def _tie_reason(
    rewards: tuple[float, float], costs: tuple[float, float], multiplier: float, limit: float, names: tuple[str, str]
) -> str:
    reward, cost = _reward_texts(rewards), _cost_texts(costs, limit)
    # Listed by value and not by position, so that swapping the videos swaps only their names.
    first, second = (0, 1) if (-rewards[0], costs[0]) <= (-rewards[1], costs[1]) else (1, 0)
    if rewards[0] == rewards[1] and costs[0] == costs[1]:
        return f"neither is preferred: both have reward {reward[0]} and cost {cost[0]}"
    numbers = (
        f"{names[first]} has reward {reward[first]} and cost {cost[first]}, "
        f"{names[second]} has reward {reward[second]} and cost {cost[second]}"
    )
    if multiplier == 0:
        return (
            f"neither is preferred: {numbers}; the rewards are equal within the tolerance, and lambda = 0 ignores cost"
        )
    return f"neither is preferred: {numbers}, and {_at(multiplier)} their scores are equal within the tolerance"


def _reward_only_reason(
    rewards: tuple[float, float],
    costs: tuple[float, float],
    limit: float,
    winner: int,
    loser: int,
    names: tuple[str, str],
    over: str,
) -> str:
    reward, cost = _reward_texts(rewards), _cost_texts(costs, limit)
    reason = (
        f"{names[winner]} is preferred: it is more helpful (reward {reward[winner]} against {reward[loser]}), "
        "and lambda = 0 ignores cost"
    )
    if costs[winner] > limit >= costs[loser]:
        reason += f"; it is {over} (cost {cost[winner]} > limit {cost[2]})"
    return reason


def _better_on_both_reason(
    rewards: tuple[float, float],
    costs: tuple[float, float],
    limit: float,
    winner: int,
    loser: int,
    names: tuple[str, str],
) -> str:
    reward, cost = _reward_texts(rewards), _cost_texts(costs, limit)
    helpful = f"more helpful (reward {reward[winner]} against {reward[loser]})"
    if rewards[winner] == rewards[loser]:
        helpful = f"equally helpful (reward {reward[winner]})"
    safe = f"safer (cost {cost[winner]} against {cost[loser]})"
    if costs[winner] == costs[loser]:
        safe = f"equally safe (cost {cost[winner]})"
    return f"{names[winner]} is preferred: it is {helpful} and {safe}"


def _trade_off_reason(
    rewards: tuple[float, float],
    costs: tuple[float, float],
    multiplier: float,
    limit: float,
    winner: int,
    names: tuple[str, str],
    price: str,
    over: str,
) -> str:
    reward, cost = _reward_texts(rewards), _cost_texts(costs, limit)
    helpful, safe = (0, 1) if rewards[0] > rewards[1] else (1, 0)
    harm = f"less safe (cost {cost[helpful]} against {cost[safe]})"
    if costs[helpful] > limit >= costs[safe]:
        harm = f"{over} (cost {cost[helpful]} > limit {cost[2]})"
    subject = "it" if helpful == winner else f"{names[helpful]}"
    stronger, weaker = ("reward", price) if helpful == winner else (price, "reward")
    return (
        f"{names[winner]} is preferred: {subject} is more helpful (reward {reward[helpful]} against {reward[safe]}) "
        f"but {harm}, and {_at(multiplier)} its extra {stronger} outweighs its extra {weaker}"
    )


def _at(multiplier: float) -> str:
    return f"at lambda = {multiplier:z.{_decimals(multiplier, 0.0)}f}"


def _reward_texts(rewards: tuple[float, float]) -> tuple[str, str]:
    decimals = _decimals(*rewards)
    return f"{rewards[0]:z.{decimals}f}", f"{rewards[1]:z.{decimals}f}"


def _cost_texts(costs: tuple[float, float], limit: float) -> tuple[str, str, str]:
    decimals = _decimals(*costs, limit)
    return f"{costs[0]:+z.{decimals}f}", f"{costs[1]:+z.{decimals}f}", f"{limit:z.{decimals}f}"


def _decimals(*values: float) -> int:
    """Returns the fewest decimals, 2 to 9, at which different values look different: not "0.00 > 0.00"."""
    for decimals in range(2, _MAX_DECIMALS):
        if len({round(value, decimals) for value in values}) == len(set(values)):
            return decimals
    return _MAX_DECIMALS
