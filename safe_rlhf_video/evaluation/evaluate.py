"""Evaluates scores on labelled comparisons and clips: accuracy, its ceiling, calibration, moderation and controls.

Everything here is a pure function of scores and records; `evaluation.run` makes the scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from safe_rlhf_video.calibration.store import HeadCalibration
from safe_rlhf_video.data.labelled_pairs import Scores, preference_margin, select_labelled
from safe_rlhf_video.data.preferences import harm_signs
from safe_rlhf_video.data.records import ALL_DIMENSIONS, DIMENSIONS, TIE, PairSample, VideoSample
from safe_rlhf_video.evaluation.control_figures import judge_controls, judge_label_controls
from safe_rlhf_video.evaluation.dimension_figures import judge_dimension
from safe_rlhf_video.evaluation.distinct_clips import DistinctClips, distinct_clips
from safe_rlhf_video.evaluation.harm_figures import compare_with_cost, judge_labels
from safe_rlhf_video.evaluation.results import DimensionFigures, Evaluation, ModerationFigures
from safe_rlhf_video.evaluation.sign_figures import judge_sign
from safe_rlhf_video.heads import HEAD_OF_DIMENSION
from safe_rlhf_video.kinds.targets import NUM_LABEL_COLUMNS

if TYPE_CHECKING:
    # Only its annotations; torch is slow to import.
    from safe_rlhf_video.scoring.harms import Moderation


def evaluate(
    pairs: Sequence[PairSample],
    scores: Scores,
    *,
    videos: Sequence[VideoSample] = (),
    train_pairs: Sequence[PairSample] = (),
    train_videos: Sequence[VideoSample] = (),
    truth: Mapping[str, Mapping[str, float]] | None = None,
    random_scores: Scores | None = None,
    calibrations: Mapping[str, HeadCalibration] | None = None,
    changed_scores: Mapping[str, Scores] | None = None,
    moderations: Mapping[str, Moderation] | None = None,
    unseen_generators: Mapping[str, Sequence[str]] | None = None,
    no_zero: str | None = None,
) -> Evaluation:
    """Computes all figures of one evaluation.

    Args:
        pairs: the test comparisons.
        scores: of every video in them, by name; a dimension without a score of its head has no figures.
        videos: further labelled clips, or those of a file without comparisons.
        train_pairs, train_videos: the training data, for the controls that are fitted to them.
        truth: video id -> hidden utilities.
        random_scores: scores of the same heads trained on a randomly initialised backbone.
        calibrations: head -> its calibration in the model folder.
        changed_scores: name of a control by changed inputs -> scores of the same model on these.
        moderations: name -> the model's judgement of a clip's harms, if it has heads for them.
        unseen_generators: head -> generators that were left out of its training.
        no_zero: why the zero of the cost means nothing; its sign then has no figures.
    """
    heads = next(iter(scores.values())).keys()
    labelled_of = {dimension: select_labelled(pairs, dimension, truth) for dimension in ALL_DIMENSIONS}
    dimensions: dict[str, DimensionFigures | None] = {}
    for dimension, labelled in labelled_of.items():
        head = HEAD_OF_DIMENSION[dimension]
        dimensions[dimension] = None
        if head in heads and labelled.pairs:
            ties = [pair for pair in pairs if pair.preferences[dimension] == TIE]
            dimensions[dimension] = judge_dimension(
                labelled,
                preference_margin(labelled.pairs, scores, head),
                ties,
                preference_margin(ties, scores, head),
                (calibrations or {}).get(head),
                (unseen_generators or {}).get(head, ()),
            )
    clips, train_clips = distinct_clips(pairs, videos), distinct_clips(train_pairs, train_videos)
    judged = [dimension for dimension in ALL_DIMENSIONS if dimension in DIMENSIONS or dimensions[dimension]]
    rivals = {**({} if random_scores is None else {"random_backbone": random_scores}), **(changed_scores or {})}
    controls = judge_controls(
        {dimension: labelled_of[dimension] for dimension in judged},
        train_pairs,
        clips,
        train_clips,
        scores,
        rivals,
        has_zero=no_zero is None,
    )
    moderation, label_gaps = None, {}
    if moderations:
        signs = _label_signs(pairs, videos)
        moderation = _judge_moderation(signs, clips, scores, moderations, no_zero is None)
        train_signs = _label_signs(train_pairs, train_videos)
        label_gaps = judge_label_controls(signs, train_signs, clips, train_clips, scores, rivals)
    shared = clips.distinct_texts & train_clips.distinct_texts
    cost_sign = None
    if "cost" in heads:
        cost_sign = judge_sign(clips, scores, (unseen_generators or {}).get("cost", ()), no_zero)
    return Evaluation(
        dimensions=dimensions,
        cost_sign=cost_sign,
        moderation=moderation,
        controls=controls.measured,
        controls_expected=controls.expected,
        controls_standard_error=controls.standard_error,
        control_gaps=controls.gaps | label_gaps,
        num_prompts_also_in_training=len(shared) if train_clips.texts else None,
    )


def _label_signs(pairs: Sequence[PairSample], videos: Sequence[VideoSample]) -> np.ndarray:
    """(N, C): the label targets of the distinct clips."""
    return np.array(list(harm_signs(pairs, videos).values())).reshape(-1, NUM_LABEL_COLUMNS)


def _judge_moderation(
    signs: np.ndarray,
    clips: DistinctClips,
    scores: Scores,
    moderations: Mapping[str, Moderation],
    has_zero: bool,
) -> ModerationFigures:
    agreement = None
    if has_zero and {"cost", "harm_any"} <= next(iter(scores.values())).keys():
        costs = {name: row["cost"] for name, row in scores.items()}
        agreement = compare_with_cost(clips.sign_of, costs, moderations)
    return judge_labels(signs, clips.names, clips.prompts, scores, moderations, agreement)
