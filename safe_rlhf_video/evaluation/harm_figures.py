"""Computes the figures of harm labels, and where the sign of the cost disagrees with the flag of any harm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from safe_rlhf_video.evaluation.results import (
    Agreement,
    AgreementCell,
    DifferingClips,
    MacroFigures,
    ModerationFigures,
)
from safe_rlhf_video.heads import GRADED_HEADS, HEADS, LOGIT_HEADS
from safe_rlhf_video.kinds.kind import GradedFigures
from safe_rlhf_video.kinds.label import LabelFigures, judge_label
from safe_rlhf_video.kinds.targets import graded_kind_of, label_columns
from safe_rlhf_video.stats.checks import MIN_COMPARISONS

if TYPE_CHECKING:
    # Only its annotations; torch is slow to import.
    from safe_rlhf_video.scoring.harms import Moderation

NUM_EXAMPLES = 20


def judge_labels(
    signs: np.ndarray,
    names: list[str],
    prompts: np.ndarray,
    logits: Mapping[str, Mapping[str, float]],
    judged: Mapping[str, Moderation],
    agreement: Agreement | None = None,
) -> ModerationFigures:
    """Computes the figures of every harm label that has a head.

    Args:
        signs: (N, C) label targets of the clips, as `harm_signs`.
        names, prompts: N names, and (N,) of `number_prompts`.
        logits: prompt_id/video_id -> head -> score.
        judged: prompt_id/video_id -> the model's judgement of the clip.
        agreement: of `compare_with_cost`, becomes part of the result.
    """
    heads = logits[names[0]].keys()
    labels = {}
    for head in LOGIT_HEADS:
        if head in heads:
            column = label_columns(head).start
            label, rows = HEADS[head].label, np.flatnonzero(signs[:, column])
            one = next((judged[name] for name in names if label in judged[name].probabilities), None)
            labels[label] = judge_label(
                np.array([logits[names[row]][head] for row in rows]),
                np.array([label in judged[names[row]].flags for row in rows], dtype=bool),
                signs[rows, column] > 0,
                prompts[rows],
                one.targets[label] if one else None,
                bool(one and one.calibrated[label]),
            )
    graded: dict[str, GradedFigures | None] = dict.fromkeys(GRADED_HEADS)
    for head in GRADED_HEADS:
        shown = [getattr(judged[name], head) for name in names]
        if any(one is not None for one in shown):
            kind = graded_kind_of(head)
            graded[head] = kind.judge(HEADS[head], signs[:, label_columns(head)], shown, prompts)
    return ModerationFigures(
        labels=labels,
        macro=_average({label: one for label, one in labels.items() if label != "any"}),
        graded=graded,
        cost_sign_against_any=agreement,
    )


def compare_with_cost(
    safety: Mapping[tuple[str, str], int], costs: Mapping[str, float], judged: Mapping[str, Moderation]
) -> Agreement:
    """Counts the clips that the sign of the cost and the flag of any harm call harmful.

    Args:
        safety: (prompt_id, video_id) -> +1 safe, -1 unsafe, 0 unknown.
        costs: prompt_id/video_id -> cost.
        judged: as for `judge_labels`.
    """
    counts: Counter[tuple[str, int]] = Counter()
    examples: dict[str, list[str]] = {"cost_only": [], "any_only": []}
    for (prompt_id, video_id), sign in safety.items():
        name = f"{prompt_id}/{video_id}"
        by_cost, by_any = costs[name] > 0, "any" in judged[name].flags
        cell = ("both" if by_any else "cost_only") if by_cost else ("any_only" if by_any else "neither")
        counts[cell, sign] += 1
        if cell in examples and len(examples[cell]) < NUM_EXAMPLES:
            examples[cell].append(name)

    def count(cell: str) -> AgreementCell:
        unsafe, unknown, safe = (counts[cell, sign] for sign in (-1, 0, 1))
        return AgreementCell(num=unsafe + unknown + safe, num_unsafe=unsafe, num_safe=safe)

    differing = DifferingClips(tuple(examples["cost_only"]), tuple(examples["any_only"]))
    return Agreement(count("both"), count("cost_only"), count("any_only"), count("neither"), differing)


def _average(labels: Mapping[str, LabelFigures]) -> MacroFigures:
    enough = [one for one in labels.values() if min(one.num_positive, one.num_negative) >= MIN_COMPARISONS]

    def mean(values: Sequence[float | None]) -> tuple[float | None, int]:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None, len(known)

    return MacroFigures(
        *mean([one.auroc for one in enough]),
        *mean([one.average_precision for one in enough]),
        *mean([one.f1 for one in enough]),
    )
