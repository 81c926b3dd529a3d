"""Weigh helpfulness against safety: scores, choices under a limit, and the multiplier that keeps it. Pure numpy."""

from safe_rlhf_video.lagrangian.candidates import ensemble_scores, pareto_front
from safe_rlhf_video.lagrangian.confidence import ConfidentMultiplier, confident_multiplier
from safe_rlhf_video.lagrangian.multiplier import LagrangeMultiplier
from safe_rlhf_video.lagrangian.score import TIE_TOLERANCE, Choice, choose, explain_choice, lagrangian_score
from safe_rlhf_video.lagrangian.selection import Randomisation, Selection, Solution, select, solve_multiplier

__all__ = [
    "TIE_TOLERANCE",
    "Choice",
    "ConfidentMultiplier",
    "LagrangeMultiplier",
    "Randomisation",
    "Selection",
    "Solution",
    "choose",
    "confident_multiplier",
    "ensemble_scores",
    "explain_choice",
    "lagrangian_score",
    "pareto_front",
    "select",
    "solve_multiplier",
]
