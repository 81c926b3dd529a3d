"""Which harms a video or a text shows, from the logits of its labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from safe_rlhf_video.calibration.store import LabelCalibration
from safe_rlhf_video.heads import GRADED_HEADS, HEAD_OF_LABEL, HEADS, LOGIT_HEADS
from safe_rlhf_video.kinds.targets import graded_kind_of
from safe_rlhf_video.models.record import ModelRecord
from safe_rlhf_video.scoring.decisions import sigmoid
from safe_rlhf_video.stats.thresholds import Target

T = TypeVar("T")


def _with_graded_heads(moderation: type[T]) -> type[T]:
    """Adds a field for each graded head, None by default."""
    for head in GRADED_HEADS:
        moderation.__annotations__[head] = graded_kind_of(head).shown | None
        setattr(moderation, head, None)
    return moderation


@dataclass(frozen=True)
@_with_graded_heads
class Moderation:
    """Which harms a video or a text shows.

    Under the name of each graded head it has what the head's kind shows, such as `severity`: level -> probability; None
    without such a head. These are not fitted to held-out labels.

    Attributes:
        probabilities: label -> that it applies, for the labels (`Head.label`) that the model has heads for: "any",
            SafeSora's of a video, and those that begin with "text_" of a text.
        flags: labels whose logit is above the threshold that `scripts/calibrate.py` chose, or without one, whose
            probability is above one half; the most probable first.
        names: of these flags, as SafeSora and PKU-SafeRLHF publish them, e.g. "S8 Violence, Injury, Gory Content".
        calibrated: label -> whether its probability was fitted to held-out labels. Of the others the weights that rare
            labels had in training are taken out, no more.
        targets: label -> what its threshold holds on new clips; None without one.
    """

    probabilities: Mapping[str, float]
    flags: tuple[str, ...]
    names: tuple[str, ...]
    calibrated: Mapping[str, bool]
    targets: Mapping[str, Target | None]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def judge_harms(
    scores: Mapping[str, float],
    records: Sequence[ModelRecord],
    is_text: bool = False,
    calibrations: Mapping[str, LabelCalibration] | None = None,
    thresholds: Mapping[str, np.ndarray] | None = None,
) -> Moderation:
    """Probabilities of harm labels from their logits, which are flagged, and what graded heads say of it.

    Without a fitted probability

        p = sigmoid(logit - ln(w_1 / w_0))      w_c the weight that a video of class c had in training

    since weighing a class multiplies its odds in what is learned; source: King & Zeng 2001 (prior correction).

    Args:
        scores: head -> score.
        records: of the model folders, which tell these weights.
        is_text: labels of videos say nothing of a text, nor those of texts of a video; any harm is about both.
        calibrations: head -> calibration, `Scorer.calibration.labels`.
        thresholds: `Scorer.thresholds`; a head that needs them and has none says nothing.
    """

    def can_say(head: str) -> bool:
        return head in scores and HEADS[head].judges != ("video" if is_text else "text")

    weights = {head: one for record in records for head, one in record.training.class_weights.items()}
    probabilities: dict[str, float] = {}
    calibrated: dict[str, bool] = {}
    targets: dict[str, Target | None] = {}
    flagged: list[str] = []
    for head in LOGIT_HEADS:
        if not can_say(head):
            continue
        label, fitted = HEADS[head].label, (calibrations or {}).get(head)
        probability = fitted.probability(scores[head]) if fitted else None
        calibrated[label] = probability is not None
        if probability is None:
            without, with_label = weights.get(head, (1.0, 1.0))
            probability = sigmoid(scores[head] - math.log(with_label / without))
        probabilities[label] = probability
        threshold = fitted.threshold if fitted else None
        targets[label] = None if fitted is None or threshold is None else fitted.target
        if probabilities[label] > 0.5 if threshold is None else scores[head] > threshold.logit:
            flagged.append(label)
    flags = tuple(sorted(flagged, key=lambda label: -probabilities[label]))
    names = tuple(HEADS[HEAD_OF_LABEL[label]].title for label in flags if label != "any")
    shown: dict[str, Any] = {}
    for head in GRADED_HEADS:
        kind, of_head = graded_kind_of(head), (thresholds or {}).get(head)
        if can_say(head) and (of_head is not None or not kind.num_thresholds(HEADS[head])):
            shown[head] = kind.show(HEADS[head], scores[head], of_head, weights.get(head))
    return Moderation(probabilities, flags, names, calibrated, targets, **shown)
