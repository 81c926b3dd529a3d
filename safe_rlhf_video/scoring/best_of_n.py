"""Chooses one candidate for each of many prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from safe_rlhf_video import lagrangian
from safe_rlhf_video.scoring.decisions import TradeOff


@dataclass(frozen=True)
class BestOfN:
    """One of the candidates of each of P prompts; tuples are (P,).

    Attributes:
        chosen: index among the prompt's candidates.
        rewards, costs: scores of the chosen.
        trade_off: what decided; None where nothing meets the given cost limit.
        is_feasible: whether any choice meets the cost limit; if not, the chosen are the least costly. None without one.
    """

    chosen: tuple[int, ...]
    rewards: tuple[float, ...]
    costs: tuple[float, ...]
    trade_off: TradeOff | None
    is_feasible: bool | None


def choose_by_score(
    rewards: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], trade_off: TradeOff
) -> BestOfN:
    """Chooses the highest Lagrangian score of each prompt, and the lowest cost among equal ones.

    Args:
        rewards, costs: one row of candidates per prompt.
    """
    weights = [lagrangian.weigh(np.array(row), trade_off.weighed) for row in costs]
    chosen = lagrangian.select(rewards, weights, trade_off.lagrange_multiplier)
    return _collect(chosen, rewards, costs, trade_off, None)


def choose_within_limit(
    rewards: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], cost_limit: float
) -> BestOfN:
    """Chooses the highest mean reward of all choices whose mean cost is within a limit.

    Args:
        rewards, costs: one row of candidates per prompt.
    """
    solution = lagrangian.solve_multiplier(rewards, costs, cost_limit=cost_limit)
    chosen = (solution.deterministic or solution.least).chosen.tolist()
    trade_off = None
    if solution.lagrange_multiplier is not None:
        source = f"the best for a mean cost up to {cost_limit:g} on these prompts"
        trade_off = TradeOff(solution.lagrange_multiplier, cost_limit, source)
    return _collect(chosen, rewards, costs, trade_off, solution.is_feasible)


def _collect(
    chosen: Sequence[int],
    rewards: Sequence[Sequence[float]],
    costs: Sequence[Sequence[float]],
    trade_off: TradeOff | None,
    is_feasible: bool | None,
) -> BestOfN:
    return BestOfN(
        chosen=tuple(chosen),
        rewards=tuple(row[at] for row, at in zip(rewards, chosen, strict=True)),
        costs=tuple(row[at] for row, at in zip(costs, chosen, strict=True)),
        trade_off=trade_off,
        is_feasible=is_feasible,
    )
