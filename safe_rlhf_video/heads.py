"""What each head predicts; the one place that knows which way a score points.

A reward is higher for the more helpful video. A cost is higher for the more harmful one, and zero is the safety
boundary (Safe RLHF, arXiv 2310.12773). SafeSora's `harmlessness` names the safer video, the one of the lower cost. Its
four sub-dimensions of helpfulness have a head each, called as they are; higher is better.
"""

from __future__ import annotations

from typing import TypeVar

Number = TypeVar("Number")  # float, numpy array or tensor

SUB_HEADS = ("instruction_following", "correctness", "informativeness", "aesthetics")
DIMENSION_OF_HEAD = {"reward": "helpfulness", "cost": "harmlessness", **{head: head for head in SUB_HEADS}}
HEADS = tuple(DIMENSION_OF_HEAD)


def preference_score(head: str, scores: Number) -> Number:
    """Turn a head's scores so that the video that its dimension prefers has the higher one: r, and -c."""
    return -scores if head == "cost" else scores  # type: ignore[operator]
