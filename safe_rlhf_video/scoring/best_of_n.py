"""Chooses one candidate for each of many prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from safe_rlhf_video import lagrangian
from safe_rlhf_video.scoring.decisions import DecidedBy, TradeOff, name_decider

Rows = Sequence[Sequence[float]]  # one row of candidates per prompt


@dataclass(frozen=True)
class BestOfN:
    """One of the candidates of each of P prompts; tuples are (P,).

    Attributes:
        chosen: index among the prompt's candidates.
        decided_by: the models that decide, and the one that is missing.
        rewards, costs: scores of the chosen; None without such a model.
        trade_offs: what decided for each prompt, by its number of candidates; empty where nothing meets the given cost
            limit, or one of the two models is missing.
        is_feasible: whether any choice meets the cost limit; if not, the chosen are the least costly. None without one.
    """

    chosen: tuple[int, ...]
    decided_by: DecidedBy
    rewards: tuple[float, ...] | None
    costs: tuple[float, ...] | None
    trade_offs: tuple[TradeOff, ...]
    is_feasible: bool | None


def choose_by_score(scores: Mapping[str, Rows], trade_offs: Sequence[TradeOff]) -> BestOfN:
    """Chooses the highest Lagrangian score of each prompt, and the lowest cost among equal ones.

    Args:
        scores: head -> rows of a reward, a cost, or both.
        trade_offs: weigh both, one per prompt; empty where one is missing, so that the highest reward or the lowest
            cost is chosen.
    """
    some = next(iter(scores.values()))
    nothing = [[0.0] * len(row) for row in some]
    rewards, costs = scores.get("reward", nothing), scores.get("cost", nothing)
    if not trade_offs:
        # Of the one that is there, any positive price gives the same order.
        return _collect(lagrangian.select(rewards, costs, float("cost" in scores)), scores, trade_offs, None)
    chosen = [
        lagrangian.select([reward], [lagrangian.weigh(np.array(cost), one.weighed)], one.lagrange_multiplier)[0]
        for reward, cost, one in zip(rewards, costs, trade_offs, strict=True)
    ]
    return _collect(chosen, scores, trade_offs, None)


def choose_within_limit(scores: Mapping[str, Rows], cost_limit: float) -> BestOfN:
    """Chooses the highest mean reward of all choices whose mean cost is within a limit.

    Args:
        scores: head -> rows, of a reward and a cost.
    """
    solution = lagrangian.solve_multiplier(scores["reward"], scores["cost"], cost_limit=cost_limit)
    chosen = (solution.deterministic or solution.least).chosen.tolist()
    trade_offs: list[TradeOff] = []
    if solution.lagrange_multiplier is not None:
        source = f"the best for a mean cost up to {cost_limit:g} on these prompts"
        trade_offs = [TradeOff(solution.lagrange_multiplier, cost_limit, source)] * len(chosen)
    return _collect(chosen, scores, trade_offs, solution.is_feasible)


def _collect(
    chosen: Sequence[int], scores: Mapping[str, Rows], trade_offs: Sequence[TradeOff], is_feasible: bool | None
) -> BestOfN:
    of_chosen = {head: tuple(row[at] for row, at in zip(rows, chosen, strict=True)) for head, rows in scores.items()}
    return BestOfN(
        chosen=tuple(chosen),
        decided_by=name_decider(scores),
        rewards=of_chosen.get("reward"),
        costs=of_chosen.get("cost"),
        trade_offs=tuple(trade_offs),
        is_feasible=is_feasible,
    )
