"""Which comparisons and clips a model may be calibrated on, and what is fitted to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from safe_rlhf_video.calibration import Calibration, HeadCalibration, LabelCalibration, calibrate_head, calibrate_label
from safe_rlhf_video.data.preferences import (
    harm_signs,
    is_for_calibration,
    names_of_generators,
    normalise_prompt,
    videos_of,
)
from safe_rlhf_video.data.samples import HARM_LABELS, TIE, PairSample, VideoSample
from safe_rlhf_video.errors import ConfigError, SampleError
from safe_rlhf_video.evaluation.breakdown import unseen_generators
from safe_rlhf_video.evaluation.evaluate import Scores, preference_margin
from safe_rlhf_video.heads import DIMENSION_OF_HEAD, LOGIT_HEADS, label_name
from safe_rlhf_video.moderation import Target

Sample = PairSample | VideoSample
HEAD_OF_LABEL = {label_name(head): head for head in LOGIT_HEADS}


def held_out(
    samples: Sequence[Sample],
    data: str,
    folder: str | Path,
    training: Mapping[str, Any],
    train_prompts: Sequence[str] | None = None,
) -> list[Sample]:
    """The comparisons or clips whose prompts a model's training did not read, neither to learn nor to choose.

    Those with a clip of a generator that was left out of the training are no part of them.

    Args:
        samples, data: those of a file, and its name.
        folder, training: the model folder and its training facts. With a `calibration_fraction` above 0 these say which
            prompts were held out, and exactly those are taken.
        train_prompts: for a model that was trained without one, the texts of all prompts that its training was given;
            `samples` must share none with them.

    Raises:
        SampleError: it cannot be told, a prompt was trained on, or nothing is left.
    """
    if unseen := unseen_generators(training):
        names = names_of_generators(samples, unseen)
        samples = [sample for sample in samples if not any(video.name in names for video in videos_of(sample))]
        if not samples:
            raise SampleError(
                f"{data}: every record has a clip of {', '.join(unseen)}, which the training of {folder} left out; "
                "give clips of other generators"
            )
    fraction, seed = training.get("calibration_fraction", 0), training.get("seed")
    if isinstance(fraction, float) and fraction > 0 and isinstance(seed, int):
        kept = [sample for sample in samples if is_for_calibration(sample.prompt_text, fraction, seed)]
        if not kept:
            raise SampleError(
                f"{data}: has none of the prompts that the training of {folder} held out (data.calibration_fraction "
                f"{fraction:g}); give the file that it was trained on"
            )
        return kept
    if train_prompts is None:
        raise SampleError(
            f"{folder}: was trained without data.calibration_fraction, so nothing says that it has not seen the "
            f"prompts of {data}; name all that it was trained on with --train_data"
        )
    seen = {normalise_prompt(text) for text in train_prompts}
    shared = {text: None for sample in samples if (text := normalise_prompt(sample.prompt_text)) in seen}
    if shared:
        raise SampleError(
            f"{data}: {len(shared)} of its prompts were trained on, the first is {next(iter(shared))[:60]!r}; give "
            "other prompts"
        )
    return list(samples)


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
    """A calibration with what an earlier one says of heads that the new data have no label for.

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
    return Calibration(heads, labels, data), kept


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
    for column, head in enumerate(LOGIT_HEADS):
        if head not in heads:
            continue
        rows = np.flatnonzero(signs[:, column])
        fitted[head] = calibrate_label(
            np.array([scores[f"{keys[row][0]}/{keys[row][1]}"][head] for row in rows]),
            signs[rows, column] > 0,
            np.array([keys[row][0] for row in rows]),
            targets[head],
        )
    return fitted
