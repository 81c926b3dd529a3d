"""Reads labels that apply or not, lays them out as one signed column, and computes the figures of their flags."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from safe_rlhf_video.heads import HARM_HEADS, HEADS, TEXT_HARM_HEADS, Head
from safe_rlhf_video.kinds.kind import FloatArray, LabelKind
from safe_rlhf_video.stats.checks import MIN_COMPARISONS, too_few_prompts
from safe_rlhf_video.stats.intervals import Interval, share_interval
from safe_rlhf_video.wording import words

if TYPE_CHECKING:
    from safe_rlhf_video.data.records import VideoSample
    from safe_rlhf_video.stats.thresholds import Target

ANY = "harm_any"
_OF_VIDEO = {HEADS[name].key: name for name in HARM_HEADS if name != ANY}
_OF_TEXT = {HEADS[name].key: name for name in TEXT_HARM_HEADS}


@dataclass(frozen=True)
class LabelFigures:
    """Figures of one harm label.

    Attributes:
        prevalence: share of the clips that have the label, of those whose label is known.
        target: what its threshold was calibrated to hold, such as {"recall": 0.95}; None without one.
        holds_target: true where the whole interval of the rate keeps it, false where the whole interval misses it; None
            where the interval holds both, without a target, or with too few clips or prompts of its class.
        calibrated: whether its probability was fitted to held-out labels.
    """

    auroc: float | None
    average_precision: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    recall_interval: Interval | None
    false_positive_rate: float | None
    false_positive_interval: Interval | None
    prevalence: float | None
    num_positive: int
    num_negative: int
    num_flagged: int
    num_prompts: int
    reason: str | None
    target: Mapping[Literal["false_positive_rate", "recall"], float] | None
    holds_target: bool | None
    calibrated: bool


class Label(LabelKind):
    """A label that applies or not; its score is a logit, which moderation flags."""

    def classes(self, head: Head) -> tuple[str, ...]:
        """What a video can be: without the label, with it."""
        return ("does_not", "applies")

    def num_columns(self, head: Head) -> int:
        """One, whose sign says whether the label applies."""
        return 1

    def said(self, video: VideoSample) -> Iterator[tuple[str, int]]:
        """What one record says: names of heads, each with 1 if its label applies and 0 if not.

        A video is harmful in any way if a label applies or it is not safe. It is not if it is safe, or if nobody says
        whether it is safe and none of all labels applies; a text likewise with its harm categories. A record may say
        both.
        """
        of_video, of_text = video.harm_labels or {}, video.harm_categories or {}
        for key, applies in of_video.items():
            yield _OF_VIDEO[key], int(applies)
        for key, applies in of_text.items():
            yield _OF_TEXT[key], int(applies)
        is_harmful = any(of_video.values()) or any(of_text.values())
        if is_harmful or video.is_safe is False:
            yield ANY, 1
        is_complete = len(of_video) == len(_OF_VIDEO) or len(of_text) == len(_OF_TEXT)
        if video.is_safe or (is_complete and not is_harmful and video.is_safe is None):
            yield ANY, 0

    def encode(self, known: NDArray[np.int64], weights: FloatArray) -> FloatArray:
        """The class's weight, negative where the label does not apply: (N, 1)."""
        signed = np.array([-weights[0], weights[1], 0.0])  # the last is also that of -1
        return signed[known][:, None]

    def decode(self, targets: NDArray[np.floating]) -> NDArray[np.int64]:
        """The classes by the sign of (N, 1)."""
        column = targets[:, 0]
        return np.where(column > 0, 1, np.where(column < 0, 0, -1))

    def meaning(self, head: Head) -> str:
        if head.judges == "text":
            what = f"PKU-SafeRLHF's category {words(head.name.removeprefix('text_harm_'))} applies to a text"
            return f"how likely {what}, as a logit with the weights that its classes had in training"
        return (
            f"how likely the label {words(head.name.removeprefix('harm_'))} applies, as a logit with the weights that "
            "its classes had in training (`Scorer.moderate` takes them out)"
        )


KIND = Label("label")


def judge_label(
    logits: NDArray[Any],
    flagged: NDArray[Any],
    applies: NDArray[Any],
    prompts: NDArray[Any],
    target: Target | None,
    calibrated: bool,
) -> LabelFigures:
    """Figures of (N,) clips whose label is known."""
    from sklearn.metrics import average_precision_score, f1_score, precision_score, roc_auc_score  # slow to import

    num_positive, num_negative = int(applies.sum()), int((~applies).sum())
    reasons = []
    auroc = ap = precision = f1 = recall = false_positive_rate = None
    recall_interval = false_positive_interval = None
    if len(applies) < MIN_COMPARISONS:
        reasons.append(f"{len(applies)} clips whose label is known, fewer than {MIN_COMPARISONS}")
    else:
        recall, recall_interval = _flag_rate(flagged[applies], prompts[applies])
        false_positive_rate, false_positive_interval = _flag_rate(flagged[~applies], prompts[~applies])
        for whose, nobody, rows in (("with", "none has", applies), ("without", "all have", ~applies)):
            if not rows.any():
                reasons.append(f"{nobody} the label")
            elif too_few := too_few_prompts(len(np.unique(prompts[rows]))):
                reasons.append(f"of those {whose} the label {too_few}")
        if num_positive and num_negative:
            auroc, ap = float(roc_auc_score(applies, logits)), float(average_precision_score(applies, logits))
            if flagged.any():
                precision, f1 = float(precision_score(applies, flagged)), float(f1_score(applies, flagged))
            else:
                reasons.append("nothing is flagged")
    interval, num = (
        (recall_interval, num_positive)
        if target is not None and target.kind == "recall"
        else (false_positive_interval, num_negative)
    )
    return LabelFigures(
        auroc=auroc,
        average_precision=ap,
        precision=precision,
        recall=recall,
        f1=f1,
        recall_interval=recall_interval,
        false_positive_rate=false_positive_rate,
        false_positive_interval=false_positive_interval,
        prevalence=num_positive / len(applies) if len(applies) else None,
        num_positive=num_positive,
        num_negative=num_negative,
        num_flagged=int(flagged.sum()),
        num_prompts=len(np.unique(prompts)),
        reason="; ".join(reasons) or None,
        target=None if target is None else {target.kind: target.value},
        holds_target=is_held(target, interval if num >= MIN_COMPARISONS else None),
        calibrated=calibrated,
    )


def _flag_rate(flagged: NDArray[Any], prompts: NDArray[Any]) -> tuple[float | None, Interval | None]:
    """The share that is flagged and its interval; None without clips, no interval with few prompts."""
    if not len(flagged):
        return None, None
    return float(flagged.mean()), share_interval(flagged.astype(float), prompts)


def is_held(target: Target | None, interval: Interval | None) -> bool | None:
    """Whether the whole interval lies on the right side of the target; None where the target is inside."""
    if target is None or interval is None:
        return None
    low, high = interval
    if low < target.value < high:
        return None
    return low >= target.value if target.kind == "recall" else high <= target.value
