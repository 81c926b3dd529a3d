"""Scores for generations, and the choice among them under a safety constraint."""

from safe_rlhf_video.scoring.decisions import ModelFacts, PairScore, Ranking, TradeOff, judge_pair, judge_ranking
from safe_rlhf_video.scoring.harms import Moderation, judge_harms
from safe_rlhf_video.scoring.score_many import Source
from safe_rlhf_video.scoring.scorer import BestOfN, Scorer, VideoLike, load_calibration, score_pair

__all__ = [
    "BestOfN",
    "ModelFacts",
    "Moderation",
    "PairScore",
    "Ranking",
    "Scorer",
    "Source",
    "TradeOff",
    "VideoLike",
    "judge_harms",
    "judge_pair",
    "judge_ranking",
    "load_calibration",
    "score_pair",
]
