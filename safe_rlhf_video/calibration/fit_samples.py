"""What is fitted to the comparisons and clips that a model is calibrated on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from safe_rlhf_video.calibration.fit import (
    Calibration,
    HeadCalibration,
    LabelCalibration,
    calibrate_head,
    calibrate_label,
)
from safe_rlhf_video.data.labelled_pairs import Scores, preference_margin
from safe_rlhf_video.data.preferences import harm_signs, videos_of
from safe_rlhf_video.data.records import HARM_LABELS, TIE, PairSample, VideoSample
from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.heads import DIMENSION_OF_HEAD, HEAD_OF_LABEL, LOGIT_HEADS
from safe_rlhf_video.kinds.targets import label_columns
from safe_rlhf_video.stats.thresholds import Target

Sample = PairSample | VideoSample


def fit_heads(
    pairs: Sequence[PairSample], videos: Sequence[VideoSample], scores: Scores, heads: Sequence[str]
) -> dict[str, HeadCalibration]:
    """Fit a calibration of each head that learns from comparisons; the reference set are all distinct clips.

    Args:
        pairs, videos: records that speak of the clips.
        scores: of every one of these, by name.
    """
    samples: list[Sample] = [*pairs, *videos]
    names = dict.fromkeys(video.name for sample in samples for video in videos_of(sample))
    fitted = {}
    for head in heads:
        if head not in DIMENSION_OF_HEAD:
            continue
        dimension = DIMENSION_OF_HEAD[head]
        labelled = [pair for pair in pairs if pair.preferences.get(dimension) is not None]
        label = [pair.preferences[dimension] for pair in labelled]
        sign = np.array([-1.0 if one == 1 else 1.0 for one in label])
        is_tie = np.array([one == TIE for one in label], dtype=bool)
        fitted[head] = calibrate_head(
            preference_margin(labelled, scores, head) * sign,
            is_tie,
            len({pair.prompt_id for pair, tied in zip(labelled, is_tie, strict=True) if not tied}),
            [scores[name][head] for name in names],
        )
    return fitted


def keep_earlier(fitted: Calibration, earlier: Calibration) -> tuple[Calibration, list[str]]:
    """A calibration with what an earlier one says of heads that the new data have no label for, and its multiplier.

    Returns:
        The calibration, and the names of these heads.
    """
    heads, labels, kept = dict(fitted.heads), dict(fitted.labels), []
    for head, one in earlier.heads.items():
        if head in heads and not heads[head].num_comparisons and one.temperature is not None:
            heads[head] = one
            kept.append(head)
    for head, label in earlier.labels.items():
        if head in labels and not (labels[head].num_positive or labels[head].num_negative):
            labels[head] = label
            kept.append(head)
    data = {**fitted.data, "kept": {"heads": kept, **earlier.data}} if kept else fitted.data
    return Calibration(heads, labels, data, fitted.multiplier or earlier.multiplier), kept


def parse_targets(words: Sequence[str]) -> dict[str, Target]:
    """What each harm label's threshold is to hold: head -> target.

    Args:
        words: "KIND=VALUE" for all labels and "LABEL:KIND=VALUE" for one; the last of a label counts.

    Raises:
        ConfigError: a word is something else, or a label has no target.
    """
    found: dict[str, Target] = {}
    for word in words:
        label, _, rest = word.rpartition(":")
        kind, _, number = rest.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = 0.0
        if kind not in ("false_positive_rate", "recall") or not 0.0 < value < 1.0:
            raise ConfigError(
                f"--targets: expected false_positive_rate=A or recall=B with a number between 0 and 1, got {word!r}"
            )
        if label and label not in HEAD_OF_LABEL:
            raise ConfigError(
                f"--targets: {label!r} is no harm label; give any, {', '.join(HARM_LABELS)}, or text_CATEGORY"
            )
        target = Target(kind, value)  # type: ignore[arg-type]
        found |= {HEAD_OF_LABEL[label]: target} if label else dict.fromkeys(LOGIT_HEADS, target)
    if missing := [label for label, head in HEAD_OF_LABEL.items() if head not in found]:
        raise ConfigError(f"--targets: {missing[0]} has none; begin with one for all labels")
    return found


def fit_labels(
    pairs: Sequence[PairSample],
    videos: Sequence[VideoSample],
    scores: Scores,
    heads: Sequence[str],
    targets: Mapping[str, Target],
) -> dict[str, LabelCalibration]:
    """Fit a calibration of each head of a harm label, to the clips whose label is known.

    Args:
        pairs, videos: records that speak of the clips.
        scores: of every one of these, by name.
        targets: head -> what its threshold is to hold.
    """
    sign_of = harm_signs(pairs, videos)
    keys, signs = list(sign_of), np.stack(list(sign_of.values()))
    fitted = {}
    for head in LOGIT_HEADS:
        if head not in heads:
            continue
        column = label_columns(head).start
        rows = np.flatnonzero(signs[:, column])
        fitted[head] = calibrate_label(
            np.array([scores[f"{keys[row][0]}/{keys[row][1]}"][head] for row in rows]),
            signs[rows, column] > 0,
            np.array([keys[row][0] for row in rows]),
            targets[head],
        )
    return fitted
