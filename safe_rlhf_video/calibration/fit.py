"""Fits what scores mean to comparisons and labelled clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from safe_rlhf_video.calibration.store import (
    NUM_QUANTILES,
    Calibration,
    HeadCalibration,
    LabelCalibration,
    ReferenceScores,
)
from safe_rlhf_video.data.labelled_pairs import Scores, preference_margin
from safe_rlhf_video.data.preferences import harm_signs, number_prompts, videos_of
from safe_rlhf_video.data.records import HARM_LABELS, TIE, PairSample, VideoSample
from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.heads import DIMENSION_OF_HEAD, HEAD_OF_LABEL, LOGIT_HEADS
from safe_rlhf_video.kinds.targets import label_columns
from safe_rlhf_video.stats.checks import MIN_COMPARISONS
from safe_rlhf_video.stats.logistic import fit_logistic
from safe_rlhf_video.stats.probabilities import fit_temperature, fit_tie_threshold
from safe_rlhf_video.stats.thresholds import Target, choose_threshold


def calibrate_head(
    margin: ArrayLike, is_tie: ArrayLike, prompts: ArrayLike, reference_scores: ArrayLike
) -> HeadCalibration:
    """Calibrates a head that learns from comparisons.

    Args:
        margin: (M,) chosen minus rejected, preference scores; for a tie in either order.
        is_tie: (M,) whether people called it a tie; ties fit the tie threshold alone.
        prompts: (M,) equal for comparisons of one prompt.
        reference_scores: (N,) the head's scores of the reference clips.
    """
    margins, tied = np.asarray(margin, dtype=np.float64), np.asarray(is_tie, dtype=bool)
    names = np.asarray(prompts)[~tied]
    fitted = fit_temperature(margins[~tied], names)
    return HeadCalibration(
        temperature=fitted.temperature,
        fitted=fitted.fitted,
        standard_error=fitted.standard_error,
        reason=fitted.reason,
        num_comparisons=fitted.num,
        num_prompts=len(np.unique(names)),
        log_loss_before=fitted.log_loss_before,
        log_loss=fitted.log_loss,
        tie_threshold=fit_tie_threshold(margins, tied),
        reference=describe_reference(reference_scores),
    )


def calibrate_label(logits: ArrayLike, applies: ArrayLike, prompts: ArrayLike, target: Target) -> LabelCalibration:
    """Calibrates the head of a harm label.

    Args:
        logits, applies, prompts: (N,) of the clips whose label is known, as for `choose_threshold`.
    """
    values, is_positive = np.asarray(logits, dtype=np.float64), np.asarray(applies, dtype=bool)
    num_positive = int(is_positive.sum())
    num_negative = len(values) - num_positive
    missing = []
    threshold = choose_threshold(values, is_positive, prompts, target)
    if threshold is None:
        names = np.asarray(prompts)
        missing.append(
            f"no threshold: {num_positive} clips of {len(np.unique(names[is_positive]))} prompts with the label and "
            f"{num_negative} of {len(np.unique(names[~is_positive]))} without are too few for a {target}"
        )
    slope = intercept = None
    if min(num_positive, num_negative) < MIN_COMPARISONS:
        missing.append(
            f"no probability: {num_positive} clips with the label and {num_negative} without, fewer than "
            f"{MIN_COMPARISONS}"
        )
    else:
        slope, intercept = fit_logistic(values, is_positive)
        if slope <= 0:
            slope = intercept = None
            missing.append("no probability: higher logits do not make the label more likely")
    reason = "; ".join(missing) or None
    return LabelCalibration(slope, intercept, target, threshold, reason, num_positive, num_negative)


def describe_reference(scores: ArrayLike) -> ReferenceScores | None:
    """Computes quantiles, mean and standard deviation of (N,) finite scores; None without any."""
    values = np.asarray(scores, dtype=np.float64)
    if not len(values):
        return None
    return ReferenceScores(
        num=len(values),
        mean=float(values.mean()),
        std=float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        # Sorted again: interpolation may break the order of two equal quantiles by a last bit.
        quantiles=tuple(np.sort(np.quantile(values, np.linspace(0.0, 1.0, NUM_QUANTILES))).tolist()),
    )


def fit_heads(pairs: Sequence[PairSample], videos: Sequence[VideoSample], scores: Scores) -> dict[str, HeadCalibration]:
    """Calibrates each head that learns from comparisons; the reference set is all distinct clips.

    Args:
        pairs, videos: the records of the clips.
        scores: of every clip, by name.
    """
    samples: list[PairSample | VideoSample] = [*pairs, *videos]
    names = dict.fromkeys(video.name for sample in samples for video in videos_of(sample))
    fitted = {}
    for head, dimension in DIMENSION_OF_HEAD.items():
        if head not in _heads(scores):
            continue
        labelled = [pair for pair in pairs if pair.preferences.get(dimension) is not None]
        label = [pair.preferences[dimension] for pair in labelled]
        sign = np.array([-1.0 if one == 1 else 1.0 for one in label])
        is_tie = np.array([one == TIE for one in label], dtype=bool)
        fitted[head] = calibrate_head(
            preference_margin(labelled, scores, head) * sign,
            is_tie,
            number_prompts(labelled),
            [scores[name][head] for name in names],
        )
    return fitted


def fit_labels(
    pairs: Sequence[PairSample], videos: Sequence[VideoSample], scores: Scores, targets: Mapping[str, Target]
) -> dict[str, LabelCalibration]:
    """Calibrates each head of a harm label on the clips whose label is known.

    Args:
        pairs, videos: the records of the clips.
        scores: of every clip, by name.
        targets: head -> what its threshold has to hold.
    """
    samples: list[PairSample | VideoSample] = [*pairs, *videos]
    prompt_of = dict(zip([sample.prompt_id for sample in samples], number_prompts(samples).tolist(), strict=True))
    sign_of = harm_signs(pairs, videos)
    keys, signs = list(sign_of), np.stack(list(sign_of.values()))
    fitted = {}
    for head in LOGIT_HEADS:
        if head not in _heads(scores):
            continue
        column = label_columns(head).start
        rows = np.flatnonzero(signs[:, column])
        fitted[head] = calibrate_label(
            np.array([scores[f"{keys[row][0]}/{keys[row][1]}"][head] for row in rows]),
            signs[rows, column] > 0,
            np.array([prompt_of[keys[row][0]] for row in rows]),
            targets[head],
        )
    return fitted


def keep_earlier(fitted: Calibration, earlier: Calibration) -> tuple[Calibration, list[str]]:
    """Adds an earlier calibration of the heads that the new data have no label for, and its multiplier.

    Returns:
        The calibration, and the names of these heads.
    """
    kept_heads = {
        head: one
        for head, one in earlier.heads.items()
        if head in fitted.heads and not fitted.heads[head].num_comparisons and one.temperature is not None
    }
    kept_labels = {
        head: one
        for head, one in earlier.labels.items()
        if head in fitted.labels and not (fitted.labels[head].num_positive or fitted.labels[head].num_negative)
    }
    kept = [*kept_heads, *kept_labels]
    data = {**fitted.data, "kept": {"heads": kept, **earlier.data}} if kept else fitted.data
    return (
        Calibration(
            {**fitted.heads, **kept_heads},
            {**fitted.labels, **kept_labels},
            data,
            fitted.multiplier or earlier.multiplier,
        ),
        kept,
    )


def parse_targets(words: Sequence[str]) -> dict[str, Target]:
    """Parses what the threshold of each harm label has to hold: head -> target.

    Args:
        words: "KIND=VALUE" for all labels and "LABEL:KIND=VALUE" for one; the last of a label counts.

    Raises:
        ConfigError: a word has another form, or a label has no target.
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


def _heads(scores: Scores) -> Mapping[str, float]:
    return next(iter(scores.values()), {})
