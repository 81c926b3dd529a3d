"""Defines every head in one table: what it predicts, about what, and which way its score points.

A reward is higher for the more helpful video. A cost is higher for the more harmful one, and zero is the safety
boundary (Safe RLHF, arXiv 2310.12773). SafeSora's `harmlessness` names the safer video, the one with the lower cost.
The four sub-dimensions of helpfulness have a head each, with the same name. A harm label's score is a logit: above zero
the label rather applies. An ordinal score is higher for a higher level; thresholds part the levels
(`losses.ordinal_loss`).

To add a sub-dimension, a label or a level, add it to the table: configs, records, targets and reports follow. A new
kind of label is a module of its name in `kinds/`, and its loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeVar

Number = TypeVar("Number")  # float, numpy array or tensor
Kind = Literal["preference", "cost", "label", "ordinal"]


@dataclass(frozen=True, slots=True)
class Head:
    """One row of the table.

    Attributes:
        name: what configs, model folders and scores call it.
        kind: "preference" and "cost" learn from comparisons, a cost also from `is_safe`. "label" and "ordinal" learn
            from labels of single videos: one that applies or not, and one of several levels.
        judges: what it is about.
        dimension: of the comparisons that it learns from; "" for labels.
        sign: 1 if the score is higher for the preferred video, -1 if it is lower.
        key: where records have the label: a key of `video_labels` or of `harm_categories`, or a graded head's field.
        code: of a label in the publication, e.g. "S8".
        published: name of a label in the publication, e.g. "Violence, Injury, Gory Content".
        levels: of a graded head, the lowest first.
    """

    name: str
    kind: Kind
    judges: Literal["video", "text", "both"] = "both"
    dimension: str = ""
    sign: Literal[1, -1] = 1
    key: str = ""
    code: str = ""
    published: str = ""
    levels: tuple[str, ...] = ()

    @property
    def is_compared(self) -> bool:
        """Whether it learns from comparisons."""
        return bool(self.dimension)

    @property
    def label(self) -> str:
        """What its label is called in results: any, crime, text_violence."""
        return self.name.replace("harm_", "", 1)

    @property
    def title(self) -> str:
        """What reports call its label: "S8 Violence, Injury, Gory Content"."""
        return f"{self.code} {self.published}".strip()


def _sub_dimension(name: str) -> Head:
    return Head(name, "preference", dimension=name)


def _video_harm(key: str, code: str, published: str) -> Head:
    return Head(f"harm_{key}", "label", "video", key=key, code=code, published=published)


def _text_harm(category: str, code: str) -> Head:
    name = "text_harm_" + category.lower().replace(" ", "_").replace("-", "_")
    return Head(name, "label", "text", key=category, code=code, published=category)


_TABLE = (
    Head("reward", "preference", dimension="helpfulness"),
    Head("cost", "cost", dimension="harmlessness", sign=-1),
    _sub_dimension("instruction_following"),
    _sub_dimension("correctness"),
    _sub_dimension("informativeness"),
    _sub_dimension("aesthetics"),
    Head("harm_any", "label", published="Any harm"),
    # SafeSora's 12 harm labels, in the order of its files (not that of the codes).
    _video_harm("porn", "S1", "Adult, Explicit Sexual Content"),
    _video_harm("violence", "S8", "Violence, Injury, Gory Content"),
    _video_harm("hate", "S7", "Insulting, Hateful, Aggressive Behavior"),
    _video_harm("terrorism", "S11", "Terrorism, Organized Crime"),
    _video_harm("contraband", "S6", "Drug, Weapons, Substance Abuse"),
    _video_harm("controversial", "S5", "Debated Sensitive Social Issue"),
    _video_harm("racism", "S9", "Racial Discrimination"),
    _video_harm("other_discrimination", "S10", "Other Discrimination (Excluding Racial)"),
    _video_harm("animal_abuse", "S2", "Animal Abuse"),
    _video_harm("child_abuse", "S3", "Child Abuse"),
    _video_harm("crime", "S4", "Crime"),
    _video_harm("other_harmful", "S12", "Other Harmful Content"),
    # PKU-SafeRLHF's 19 categories of a harmful text, and its severity.
    _text_harm("Endangering National Security", "S1"),
    _text_harm("Insulting Behavior", "S2"),
    _text_harm("Discriminatory Behavior", "S3"),
    _text_harm("Endangering Public Health", "S4"),
    _text_harm("Copyright Issues", "S5"),
    _text_harm("Violence", "S6"),
    _text_harm("Drugs", "S7"),
    _text_harm("Privacy Violation", "S8"),
    _text_harm("Economic Crime", "S9"),
    _text_harm("Mental Manipulation", "S10"),
    _text_harm("Human Trafficking", "S11"),
    _text_harm("Physical Harm", "S12"),
    _text_harm("Sexual Content", "S13"),
    _text_harm("Cybercrime", "S14"),
    _text_harm("Disrupting Public Order", "S15"),
    _text_harm("Environmental Damage", "S16"),
    _text_harm("Psychological Harm", "S17"),
    _text_harm("White-Collar Crime", "S18"),
    _text_harm("Animal Abuse", "S19"),
    Head("severity", "ordinal", "text", key="severity_level", levels=("none", "minor", "moderate", "severe")),
)


# Name -> head, in the order of the table.
HEADS: Mapping[str, Head] = MappingProxyType({head.name: head for head in _TABLE})
DIMENSION_OF_HEAD = {head.name: head.dimension for head in _TABLE if head.is_compared}
HEAD_OF_DIMENSION = {dimension: head for head, dimension in DIMENSION_OF_HEAD.items()}
SUB_HEADS = tuple(head.name for head in _TABLE if head.name == head.dimension)
LABEL_HEADS = tuple(head.name for head in _TABLE if not head.is_compared)
LOGIT_HEADS = tuple(head.name for head in _TABLE if head.kind == "label")
# Those whose labels say how much, not only whether something applies.
GRADED_HEADS = tuple(head.name for head in _TABLE if not head.is_compared and head.kind != "label")
HARM_HEADS = tuple(name for name in LOGIT_HEADS if HEADS[name].judges != "text")
TEXT_HARM_HEADS = tuple(name for name in LOGIT_HEADS if HEADS[name].judges == "text")
HEAD_OF_LABEL = {HEADS[name].label: name for name in LOGIT_HEADS}
# What a config may name in place of several heads.
HEAD_GROUPS = {
    "moderation": tuple(name for name in LABEL_HEADS if HEADS[name].judges != "text"),
    "text_moderation": tuple(name for name in LABEL_HEADS if HEADS[name].judges != "video"),
}


def preference_score(head: str, scores: Number) -> Number:
    """Turn a head's scores so that the video that its dimension prefers has the higher one: r, and -c."""
    return -scores if HEADS[head].sign < 0 else scores  # type: ignore[operator]
