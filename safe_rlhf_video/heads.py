"""What each head predicts; the one place that knows which way a score points.

A reward is higher for the more helpful video. A cost is higher for the more harmful one, and zero is the safety
boundary (Safe RLHF, arXiv 2310.12773). SafeSora's `harmlessness` names the safer video, the one of the lower cost. Its
four sub-dimensions of helpfulness have a head each, called as they are; higher is better. The heads for moderation are
logits: above zero is rather harmful, in the way that the label names.
"""

from __future__ import annotations

from typing import TypeVar

Number = TypeVar("Number")  # float, numpy array or tensor

SUB_HEADS = ("instruction_following", "correctness", "informativeness", "aesthetics")
DIMENSION_OF_HEAD = {"reward": "helpfulness", "cost": "harmlessness", **{head: head for head in SUB_HEADS}}
# Whether a video is harmful at all, and SafeSora's labels in the order of its files (`data.samples.HARM_LABELS`).
HARM_HEADS = (
    "harm_any",
    "harm_porn",
    "harm_violence",
    "harm_hate",
    "harm_terrorism",
    "harm_contraband",
    "harm_controversial",
    "harm_racism",
    "harm_other_discrimination",
    "harm_animal_abuse",
    "harm_child_abuse",
    "harm_crime",
    "harm_other_harmful",
)
HEADS = (*DIMENSION_OF_HEAD, *HARM_HEADS)
MODERATION = ("moderation", *HARM_HEADS)  # the first stands for all others


def preference_score(head: str, scores: Number) -> Number:
    """Turn a head's scores so that the video that its dimension prefers has the higher one: r, and -c."""
    return -scores if head == "cost" else scores  # type: ignore[operator]
