"""Which harms a video or a text shows, from the logits of its labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np

from safe_rlhf_video.calibration.fit import LabelCalibration
from safe_rlhf_video.data.records import PUBLISHED_LABELS
from safe_rlhf_video.heads import LOGIT_HEADS, SEVERITIES, SEVERITY, TEXT_HARM_HEADS, label_name
from safe_rlhf_video.models.folder import ModelRecord
from safe_rlhf_video.scoring.decisions import sigmoid
from safe_rlhf_video.stats.thresholds import Target, severity_probabilities


@dataclass(frozen=True)
class Moderation:
    """Which harms a video or a text shows.

    Attributes:
        probabilities: label -> that it applies: "any", and the keys of `PUBLISHED_LABELS` that the model has heads for:
            SafeSora's of a video, and those that begin with "text_" of a text.
        flags: labels whose logit is above the threshold that `scripts/calibrate.py` chose, or without one, whose
            probability is above one half; the most probable first.
        names: of these flags, as SafeSora and PKU-SafeRLHF publish them, e.g. "S8 Violence, Injury, Gory Content".
        calibrated: label -> whether its probability was fitted to held-out labels. Of the others the weights that rare
            labels had in training are taken out, no more.
        targets: label -> what its threshold holds on new clips; None without one.
        severity: level of `SEVERITIES` -> probability; None without a head for it. Not fitted to held-out labels.
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
    severity_thresholds: np.ndarray | None = None,
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
        severity_thresholds: `Scorer.severity_thresholds`; without them nothing is said of the severity.
    """
    log_odds: dict[str, float] = {}
    weights: Any = None
    for record in records:
        log_odds |= cast(dict[str, float], record.training.get("harm_log_odds", {}))
        weights = record.training.get("severity_weights", weights)
    probabilities: dict[str, float] = {}
    calibrated: dict[str, bool] = {}
    targets: dict[str, Target | None] = {}
    flagged: list[str] = []
    for head in LOGIT_HEADS:
        if head not in scores or (head != "harm_any" and (head in TEXT_HARM_HEADS) != is_text):
            continue
        label, fitted = label_name(head), (calibrations or {}).get(head)
        probability = fitted.probability(scores[head]) if fitted else None
        calibrated[label] = probability is not None
        probabilities[label] = sigmoid(scores[head] - log_odds.get(head, 0.0)) if probability is None else probability
        threshold = fitted.threshold if fitted else None
        targets[label] = None if fitted is None or threshold is None else fitted.target
        if probabilities[label] > 0.5 if threshold is None else scores[head] > threshold.logit:
            flagged.append(label)
    flags = tuple(sorted(flagged, key=lambda label: -probabilities[label]))
    names = tuple(PUBLISHED_LABELS[label] for label in flags if label in PUBLISHED_LABELS)
    severity = None
    if is_text and SEVERITY in scores and severity_thresholds is not None:
        levels = severity_probabilities(np.array(scores[SEVERITY]), severity_thresholds, weights)
        severity = dict(zip(SEVERITIES, levels.tolist(), strict=True))
    return Moderation(probabilities, flags, names, calibrated, targets, severity)
