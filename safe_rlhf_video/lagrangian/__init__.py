"""Weigh helpfulness against safety: scores and choices. Pure numpy."""

from safe_rlhf_video.lagrangian.score import TIE_TOLERANCE, Choice, choose, explain_choice, lagrangian_score

__all__ = ["TIE_TOLERANCE", "Choice", "choose", "explain_choice", "lagrangian_score"]
