"""Computes the accuracy of each control, beside what the hidden truth predicts for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from safe_rlhf_video.data.labelled_pairs import Labelled, Scores, preference_margin, select_labelled
from safe_rlhf_video.data.records import PairSample
from safe_rlhf_video.evaluation import controls
from safe_rlhf_video.evaluation.distinct_clips import DistinctClips
from safe_rlhf_video.heads import HEAD_OF_DIMENSION
from safe_rlhf_video.stats.checks import MIN_COMPARISONS, too_few
from safe_rlhf_video.stats.credit import credit, expected_credit, sign_accuracy

Table = dict[str, dict[str, float | None]]  # control -> dimension, or "cost_sign" -> figure


@dataclass(frozen=True)
class ControlFigures:
    """Accuracy of each control, what the truth predicts, and the standard error of the difference."""

    measured: Table
    expected: Table
    standard_error: Table


def judge_controls(
    labelled_of: Mapping[str, Labelled],
    train_pairs: Sequence[PairSample],
    clips: DistinctClips,
    train_clips: DistinctClips,
    scores_of: Mapping[str, Scores],
) -> ControlFigures:
    """Computes the figures of all controls.

    Args:
        labelled_of: dimension -> its comparisons.
        train_pairs: comparisons that controls are fitted to.
        clips, train_clips: the distinct clips of either file.
        scores_of: control -> scores, of controls that are models.
    """
    figures = ControlFigures({}, {}, {})
    for dimension, labelled in labelled_of.items():
        if labelled.pairs:
            training = select_labelled(train_pairs, dimension, None)
            for name, margin in _margins(dimension, labelled, training, clips, scores_of).items():
                measured, expected, standard_error = _judge(labelled, margin)
                figures.measured.setdefault(name, {})[dimension] = measured
                figures.expected.setdefault(name, {})[dimension] = expected
                figures.standard_error.setdefault(name, {})[dimension] = standard_error
    if np.any(clips.signs):
        # Balanced accuracy, where a constant answer gives one half. Without preferences it is a control's only figure.
        is_known = np.count_nonzero(clips.signs) >= MIN_COMPARISONS
        for name, costs in _costs(clips, train_clips, scores_of).items():
            balanced = sign_accuracy(costs, clips.signs).balanced_accuracy if is_known else None
            figures.measured.setdefault(name, {})["cost_sign"] = balanced
            figures.expected.setdefault(name, {})
            figures.standard_error.setdefault(name, {})
    return figures


def _margins(
    dimension: str, labelled: Labelled, training: Labelled, clips: DistinctClips, scores_of: Mapping[str, Scores]
) -> dict[str, np.ndarray]:
    """Each control's (M,) margins of video_0 over video_1."""
    pairs, margins = labelled.pairs, {}
    if training.pairs:
        label = np.array([pair.preferences[dimension] for pair in training.pairs])
        margins["generator_only"] = controls.generator_only(_generators(training.pairs), label, _generators(pairs))
    margins["prompt_only"] = controls.prompt_only([pair.prompt_text for pair in pairs])
    if dimension == "harmlessness":
        first, second = (
            np.array([clips.sign_of[video.prompt_id, video.video_id] for video in videos])
            for videos in ([pair.video_0 for pair in pairs], [pair.video_1 for pair in pairs])
        )
        if np.any(first) or np.any(second):
            margins["is_safe_only"] = controls.is_safe_only(first, second)
    head = HEAD_OF_DIMENSION[dimension]
    for name, scores in scores_of.items():
        if head in next(iter(scores.values())):
            margins[name] = preference_margin(pairs, scores, head)
    return margins


def _costs(clips: DistinctClips, train_clips: DistinctClips, scores_of: Mapping[str, Scores]) -> dict[str, np.ndarray]:
    """Each control's (N,) costs of the clips."""
    costs = {}
    if {1, -1} <= set(train_clips.signs.tolist()):
        costs["prompt_only"] = controls.prompt_only_unsafe(train_clips.texts, train_clips.signs, clips.texts)
    for name, scores in scores_of.items():
        if "cost" in next(iter(scores.values())):
            costs[name] = np.array([scores[key]["cost"] for key in clips.names])
    return costs


def _judge(labelled: Labelled, margin: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """Accuracy, what the truth predicts, and the standard error of the difference."""
    right = credit(margin * labelled.sign)
    if too_few(len(right)):
        return None, None, None
    if labelled.true_margin is None:
        return float(right.mean()), None, None
    expectation = expected_credit(margin, labelled.true_margin)
    return float(right.mean()), float(expectation.mean()), _standard_error(right - expectation, labelled.prompts)


def _standard_error(values: np.ndarray, prompts: np.ndarray) -> float | None:
    """Of the mean of (M,) values, with the values of a prompt taken together; None with a single prompt.

    sqrt(K / (K - 1) sum_k s_k^2) / M, where s_k sums the values of prompt k of K, less their mean (Liang & Zeger 1986).
    """
    _, index = np.unique(prompts, return_inverse=True)
    sums = np.bincount(index, weights=values - values.mean())
    if len(sums) < 2:
        return None
    return float(np.sqrt(len(sums) / (len(sums) - 1) * np.square(sums).sum()) / len(values))


def _generators(pairs: Sequence[PairSample]) -> list[tuple[str, str]]:
    return [(pair.video_0.generated_from or "unknown", pair.video_1.generated_from or "unknown") for pair in pairs]
