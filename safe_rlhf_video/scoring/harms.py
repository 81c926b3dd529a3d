"""Which harms a video or a text shows, from the logits of its labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from safe_rlhf_video.calibration.store import LabelCalibration
from safe_rlhf_video.heads import HEAD_OF_LABEL, HEADS, LOGIT_HEADS, ORDINAL_HEADS
from safe_rlhf_video.kinds import ordinal
from safe_rlhf_video.models.record import ModelRecord
from safe_rlhf_video.scoring.decisions import sigmoid
from safe_rlhf_video.stats.thresholds import Target


@dataclass(frozen=True)
class Moderation:
    """Which harms a video or a text shows.

    Attributes:
        probabilities: label -> that it applies, for the labels (`Head.label`) that the model has heads for: "any",
            SafeSora's of a video, and those that begin with "text_" of a text.
        flags: labels whose logit is above the threshold that `scripts/calibrate.py` chose, or without one, whose
            probability is above one half; the most probable first.
        names: of these flags, as SafeSora and PKU-SafeRLHF publish them, e.g. "S8 Violence, Injury, Gory Content".
        calibrated: label -> whether its probability was fitted to held-out labels. Of the others the weights that rare
            labels had in training are taken out, no more.
        targets: label -> what its threshold holds on new clips; None without one.
        severity: level -> probability; None without a head for it. Not fitted to held-out labels.
    """

    probabilities: Mapping[str, float]
    flags: tuple[str, ...]
    names: tuple[str, ...]
    calibrated: Mapping[str, bool]
    targets: Mapping[str, Target | None]
    severity: Mapping[str, float] | None = None

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
    """Probabilities of harm labels from their logits, which are flagged, and how severe the harm is.

    Without a fitted probability

        p = sigmoid(logit - ln(w_1 / w_0))      w_c the weight that a video of class c had in training

    since weighing a class multiplies its odds in what is learned; source: King & Zeng 2001 (prior correction).

    Args:
        scores: head -> score.
        records: of the model folders, which tell these weights.
        is_text: labels of videos say nothing of a text, nor those of texts of a video; any harm is about both.
        calibrations: head -> calibration, `Scorer.calibration.labels`.
        thresholds: of ordinal heads, `Scorer.thresholds`; without them nothing is said of the severity.
    """
    weights = {head: one for record in records for head, one in record.training.class_weights.items()}
    probabilities: dict[str, float] = {}
    calibrated: dict[str, bool] = {}
    targets: dict[str, Target | None] = {}
    flagged: list[str] = []
    for head in LOGIT_HEADS:
        if head not in scores or HEADS[head].judges == ("video" if is_text else "text"):
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
    severity = None
    for head in ORDINAL_HEADS:
        if is_text and head in scores and thresholds:
            levels = ordinal.probabilities(np.array(scores[head]), thresholds[head], weights.get(head))
            severity = dict(zip(HEADS[head].levels, levels.tolist(), strict=True))
    return Moderation(probabilities, flags, names, calibrated, targets, severity)
