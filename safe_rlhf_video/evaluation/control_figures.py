"""Computes the accuracy of each control, what the hidden truth predicts for it, and how far a model is above the best.

A model is held against the strongest of its controls: the one with the highest figure among those that cannot judge the
video. The model itself on changed inputs is none of these; that it stays as accurate says what it does not look at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from safe_rlhf_video.data.labelled_pairs import Labelled, Scores, preference_margin, select_labelled
from safe_rlhf_video.data.records import PairSample
from safe_rlhf_video.evaluation import controls
from safe_rlhf_video.evaluation.changed_inputs import CONTROLS as CHANGED_INPUTS
from safe_rlhf_video.evaluation.distinct_clips import DistinctClips
from safe_rlhf_video.evaluation.results import ControlGap, Standing
from safe_rlhf_video.heads import HEAD_OF_DIMENSION, LOGIT_HEADS
from safe_rlhf_video.kinds.targets import label_columns
from safe_rlhf_video.stats.checks import MIN_COMPARISONS, FloatArray, too_few
from safe_rlhf_video.stats.credit import credit, expected_credit
from safe_rlhf_video.stats.intervals import Interval, difference_interval, two_class_difference_interval
from safe_rlhf_video.stats.separation import auroc_parts, balanced_parts

# control -> dimension, "cost_sign" or "cost_sign_auroc" -> figure
Table = dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class ControlFigures:
    """Accuracy of each control, what the truth predicts, and the standard error of the difference.

    Attributes:
        gaps: dimension, "cost_sign" or "cost_sign_auroc" -> the model against its strongest control.
    """

    measured: Table
    expected: Table
    standard_error: Table
    gaps: dict[str, ControlGap]


def judge_controls(
    labelled_of: Mapping[str, Labelled],
    train_pairs: Sequence[PairSample],
    clips: DistinctClips,
    train_clips: DistinctClips,
    scores: Scores,
    scores_of: Mapping[str, Scores],
    has_zero: bool = True,
) -> ControlFigures:
    """Computes the figures of all controls.

    Args:
        labelled_of: dimension -> its comparisons.
        train_pairs: comparisons that controls are fitted to.
        clips, train_clips: the distinct clips of either file.
        scores: of the model.
        scores_of: control -> scores, of controls that are models.
        has_zero: whether the model's cost was trained to be above 0 for unsafe clips.
    """
    figures = ControlFigures({}, {}, {}, {})
    for dimension, labelled in labelled_of.items():
        if labelled.pairs:
            _judge_dimension(figures, dimension, labelled, train_pairs, clips, scores, scores_of)
    if np.any(clips.signs):
        _judge_sign(figures, clips, train_clips, scores, scores_of, has_zero)
    return figures


def judge_label_controls(
    signs: np.ndarray,
    train_signs: np.ndarray,
    clips: DistinctClips,
    train_clips: DistinctClips,
    scores: Scores,
    scores_of: Mapping[str, Scores],
) -> dict[str, ControlGap]:
    """Holds the AUROC of each harm label against that of the prompt's words and of models that are controls.

    Args:
        signs, train_signs: (N, C) and (N', C) label targets, as `harm_signs`, of the clips and those of training.
        clips, train_clips, scores, scores_of: as for `judge_controls`.
    """
    gaps: dict[str, ControlGap] = {}
    for head in LOGIT_HEADS:
        if head not in next(iter(scores.values())):
            continue
        column = label_columns(head).start
        known, said = signs[:, column] != 0, np.sign(train_signs[:, column])
        applies = signs[known, column] > 0
        if len(applies) < MIN_COMPARISONS or applies.all() or not applies.any():
            continue
        answers = {name: _column(of, clips, head) for name, of in scores_of.items() if head in next(iter(of.values()))}
        if {1, -1} <= set(said.tolist()):
            answers["prompt_only"] = controls.prompt_only_unsafe(train_clips.texts, -said, clips.texts)
        rivals = {name: auroc_parts(answer[known], applies) for name, answer in answers.items()}
        interval_of = partial(two_class_difference_interval, is_first=applies, prompts=clips.prompts[known])
        own = auroc_parts(_column(scores, clips, head)[known], applies)
        gaps.update(_find_gap(head, own, rivals, interval_of))
    return gaps


def _column(scores: Scores, clips: DistinctClips, head: str) -> FloatArray:
    return np.array([scores[name][head] for name in clips.names], dtype=np.float64)


def _judge_dimension(
    figures: ControlFigures,
    dimension: str,
    labelled: Labelled,
    train_pairs: Sequence[PairSample],
    clips: DistinctClips,
    scores: Scores,
    scores_of: Mapping[str, Scores],
) -> None:
    training, head = select_labelled(train_pairs, dimension, None), HEAD_OF_DIMENSION[dimension]
    rights = {}
    for name, margin in _margins(dimension, labelled, training, clips, scores_of).items():
        rights[name] = credit(margin * labelled.sign)
        measured, expected, standard_error = _judge(labelled, margin, rights[name])
        figures.measured.setdefault(name, {})[dimension] = measured
        figures.expected.setdefault(name, {})[dimension] = expected
        figures.standard_error.setdefault(name, {})[dimension] = standard_error
    if head in next(iter(scores.values())) and too_few(len(labelled.pairs)) is None:
        own = credit(preference_margin(labelled.pairs, scores, head) * labelled.sign)
        figures.gaps.update(_find_gap(dimension, own, rights, partial(difference_interval, prompts=labelled.prompts)))


def _judge_sign(
    figures: ControlFigures,
    clips: DistinctClips,
    train_clips: DistinctClips,
    scores: Scores,
    scores_of: Mapping[str, Scores],
    has_zero: bool,
) -> None:
    """Adds balanced accuracy, where a constant answer gives one half, and AUROC, which needs no place to cut."""
    known = clips.signs != 0
    is_unsafe, prompts = clips.signs[known] < 0, clips.prompts[known]
    is_known = len(is_unsafe) >= MIN_COMPARISONS and is_unsafe.any() and not is_unsafe.all()
    balanced: dict[str, FloatArray] = {}
    auroc: dict[str, FloatArray] = {}
    for name, costs in _costs(clips, train_clips, scores_of).items():
        if is_known:
            auroc[name] = auroc_parts(costs[known], is_unsafe)
        if is_known and train_clips.has_both_signs:
            cut = controls.cut_at_prevalence(costs[known], train_clips.signs)
            balanced[name] = balanced_parts(_sign_credit(cut, is_unsafe), is_unsafe)
        figures.measured.setdefault(name, {}).update(
            cost_sign=_mean(balanced.get(name)), cost_sign_auroc=_mean(auroc.get(name))
        )
        figures.expected.setdefault(name, {})
        figures.standard_error.setdefault(name, {})
    if is_known and "cost" in next(iter(scores.values())):
        own = _column(scores, clips, "cost")[known]
        interval_of = partial(two_class_difference_interval, is_first=is_unsafe, prompts=prompts)
        if has_zero:
            own_balanced = balanced_parts(_sign_credit(own, is_unsafe), is_unsafe)
            figures.gaps.update(_find_gap("cost_sign", own_balanced, balanced, interval_of))
        figures.gaps.update(_find_gap("cost_sign_auroc", auroc_parts(own, is_unsafe), auroc, interval_of))


def _find_gap(
    figure: str,
    own: FloatArray,
    of_controls: Mapping[str, FloatArray],
    interval_of: Callable[[FloatArray], Interval | None],
) -> dict[str, ControlGap]:
    """The model against its strongest control, on the same comparisons or clips; empty without a control.

    Args:
        own: (N,) values, whose mean is the model's figure.
        of_controls: control -> (N,) the same of it.
        interval_of: (N,) differences -> the interval of their mean.
    """
    blind = {name: values for name, values in of_controls.items() if name not in CHANGED_INPUTS}
    if not blind:
        return {}
    name = max(blind, key=lambda each: float(blind[each].mean()))
    interval = interval_of(own - blind[name])
    standing: Standing = "not clearly above"
    if interval is not None and interval[0] > 0:
        standing = "above"
    elif interval is not None and interval[1] < 0:
        standing = "below"
    return {
        figure: ControlGap(
            control=name,
            own_figure=float(own.mean()),
            control_figure=float(blind[name].mean()),
            difference=float((own - blind[name]).mean()),
            interval=interval,
            standing=standing,
        )
    }


def _sign_credit(costs: np.ndarray, is_unsafe: np.ndarray) -> FloatArray:
    """Credit of calling clips with a cost above 0 unsafe; exactly 0 counts half, as in `stats.credit.sign_accuracy`."""
    return credit(np.where(is_unsafe, costs, -costs), tie_tolerance=0.0)


def _mean(values: FloatArray | None) -> float | None:
    return None if values is None else float(values.mean())


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
    if train_clips.has_both_signs:
        costs["prompt_only"] = controls.prompt_only_unsafe(train_clips.texts, train_clips.signs, clips.texts)
    for name, scores in scores_of.items():
        if "cost" in next(iter(scores.values())):
            costs[name] = np.array([scores[key]["cost"] for key in clips.names])
    return costs


def _judge(
    labelled: Labelled, margin: np.ndarray, right: np.ndarray
) -> tuple[float | None, float | None, float | None]:
    """Accuracy, what the truth predicts, and the standard error of the difference."""
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
