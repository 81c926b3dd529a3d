"""What each head predicts; the one place that knows which way a score points.

A reward is higher for the more helpful video. A cost is higher for the more harmful one, and zero is the safety
boundary (Safe RLHF, arXiv 2310.12773). SafeSora's `harmlessness` names the safer video, the one of the lower cost. Its
four sub-dimensions of helpfulness have a head each, called as they are; higher is better. The heads for moderation are
logits: above zero is rather harmful, in the way that the label names. The severity is an ordinal score: higher is more
severe, and above zero is rather minor, moderate or severe than none at all (`losses.severity_loss`).
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
# PKU-SafeRLHF's categories of a text, in the order of `data.samples.HARM_CATEGORIES`; any harm is `harm_any` again.
TEXT_HARM_HEADS = (
    "text_harm_endangering_national_security",
    "text_harm_insulting_behavior",
    "text_harm_discriminatory_behavior",
    "text_harm_endangering_public_health",
    "text_harm_copyright_issues",
    "text_harm_violence",
    "text_harm_drugs",
    "text_harm_privacy_violation",
    "text_harm_economic_crime",
    "text_harm_mental_manipulation",
    "text_harm_human_trafficking",
    "text_harm_physical_harm",
    "text_harm_sexual_content",
    "text_harm_cybercrime",
    "text_harm_disrupting_public_order",
    "text_harm_environmental_damage",
    "text_harm_psychological_harm",
    "text_harm_white_collar_crime",
    "text_harm_animal_abuse",
)
SEVERITY = "severity"
SEVERITIES = ("none", "minor", "moderate", "severe")
LOGIT_HEADS = (*HARM_HEADS, *TEXT_HARM_HEADS)  # a label each, that applies or not
LABEL_HEADS = (*LOGIT_HEADS, SEVERITY)
NUM_LABEL_COLUMNS = len(HARM_HEADS) + len(TEXT_HARM_HEADS) + len(SEVERITIES)
HEADS = (*DIMENSION_OF_HEAD, *LABEL_HEADS)
# What a config may say in the place of several heads.
HEAD_GROUPS = {"moderation": HARM_HEADS, "text_moderation": ("harm_any", *TEXT_HARM_HEADS, SEVERITY)}
MODERATION = (*HEAD_GROUPS, *LABEL_HEADS)


def label_name(head: str) -> str:
    """What a label is called where its head is not meant: any, crime, text_violence."""
    return head.replace("harm_", "", 1)


def label_columns(head: str) -> slice:
    """Where in the label targets of a video a head's own stand: one column, of the severity one for each level."""
    start = LABEL_HEADS.index(head)
    return slice(start, start + (len(SEVERITIES) if head == SEVERITY else 1))


def preference_score(head: str, scores: Number) -> Number:
    """Turn a head's scores so that the video that its dimension prefers has the higher one: r, and -c."""
    return -scores if head == "cost" else scores  # type: ignore[operator]
