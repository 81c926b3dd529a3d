"""Weighs helpfulness against safety: scores, choices under a limit, and the multiplier that keeps it."""

from safe_rlhf_video.lagrangian.candidates import ensemble_scores, pareto_front
from safe_rlhf_video.lagrangian.confidence import (
    CONFIDENCE,
    MOST_COST,
    Bound,
    ConfidentMultiplier,
    check_promise,
    confident_multiplier,
)
from safe_rlhf_video.lagrangian.multiplier import LagrangeMultiplier
from safe_rlhf_video.lagrangian.order import order_candidates
from safe_rlhf_video.lagrangian.score import (
    MAX_COST_LIMIT,
    MAX_LAGRANGE_MULTIPLIER,
    Choice,
    Weighed,
    choose,
    explain_choice,
    explain_choice_by_one,
    lagrangian_score,
    net_reward,
    weigh,
)
from safe_rlhf_video.lagrangian.selection import (
    Constraint,
    Randomisation,
    Selection,
    Solution,
    select,
    solve_multiplier,
)

__all__ = [
    "CONFIDENCE",
    "MAX_COST_LIMIT",
    "MAX_LAGRANGE_MULTIPLIER",
    "MOST_COST",
    "Bound",
    "Choice",
    "ConfidentMultiplier",
    "Constraint",
    "LagrangeMultiplier",
    "Randomisation",
    "Selection",
    "Solution",
    "Weighed",
    "check_promise",
    "choose",
    "confident_multiplier",
    "ensemble_scores",
    "explain_choice",
    "explain_choice_by_one",
    "lagrangian_score",
    "net_reward",
    "order_candidates",
    "pareto_front",
    "select",
    "solve_multiplier",
    "weigh",
]
