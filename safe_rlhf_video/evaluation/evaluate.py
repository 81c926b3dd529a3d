"""What a reward and a cost are worth on labelled comparisons: figures, the ceiling they can reach, and controls.

Everything here is a pure function of scores and records; `scripts/evaluate.py` makes the scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from safe_rlhf_video.calibration.fit import HeadCalibration
from safe_rlhf_video.data.labelled_pairs import Labelled, Scores, preference_margin, select_labelled
from safe_rlhf_video.data.preferences import harm_signs, normalise_prompt, safety_signs
from safe_rlhf_video.data.records import ALL_DIMENSIONS, DIMENSIONS, TIE, VIDEO_NAMES, PairSample, VideoSample
from safe_rlhf_video.evaluation import controls
from safe_rlhf_video.evaluation.breakdown import break_down, judge_unseen, judge_unseen_signs
from safe_rlhf_video.evaluation.harm_figures import compare_with_cost, judge_labels
from safe_rlhf_video.heads import DIMENSION_OF_HEAD
from safe_rlhf_video.lagrangian import TIE_TOLERANCE
from safe_rlhf_video.stats.metrics import (
    MIN_COMPARISONS,
    calibration,
    credit,
    expected_credit,
    mean_interval,
    preference_probability,
    ratio_interval,
    sign_accuracy,
    tie_aware_credit,
    too_few,
)

if TYPE_CHECKING:
    # Only its annotations; torch is slow to import.
    from safe_rlhf_video.scoring import Moderation

HEAD_OF_DIMENSION = {dimension: head for head, dimension in DIMENSION_OF_HEAD.items()}


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
    seed: int = 0,
) -> dict[str, Any]:
    """All figures of one evaluation.

    Args:
        pairs: the test comparisons.
        scores: of every video in them, by name; a head that is missing leaves its dimension out.
        videos: further labelled clips, or those of a file without comparisons.
        train_pairs, train_videos: what training was given, for the controls that are fitted to it.
        truth: video id -> hidden utilities.
        random_scores: scores of the same heads trained on a randomly initialised backbone.
        calibrations: head -> what the model folder says of it.
        changed_scores: name of a control by changed inputs -> scores of the same model on these.
        moderations: name -> what the model says of a clip's harms, if it has heads for them.
        unseen_generators: head -> generators that were left out of its training.
        seed: of the bootstrap.

    Returns:
        `helpfulness`, `harmlessness` and the four sub-dimensions (accuracy, interval, ceiling, ..., `tie_aware`,
        `calibration`, `breakdown`), `cost_sign` (all with `unseen_generators`, where their head has some), `moderation`
        (of `judge_labels`, and `cost_sign_against_any`), `controls` and `controls_expected` (name -> dimension ->
        accuracy, measured and as the truth predicts it), `controls_standard_error` (of measured less expected, by
        prompts) and `num_prompts_also_in_training`. A figure that cannot be had is null.
    """
    heads = next(iter(scores.values())).keys()
    result: dict[str, Any] = {}
    for dimension in ALL_DIMENSIONS:
        result[dimension] = None
        head = HEAD_OF_DIMENSION[dimension]
        if head not in heads:
            continue
        labelled = select_labelled(pairs, dimension, truth)
        if not labelled.pairs:
            continue
        fitted = (calibrations or {}).get(head)
        margin = preference_margin(labelled.pairs, scores, head)
        right = credit(margin * labelled.sign)
        ties = [pair for pair in pairs if pair.preferences[dimension] == TIE]
        result[dimension] = {
            **_judge(labelled, margin, seed),
            "num_tied_labels": len(ties),
            "tie_aware": _judge_ties(labelled, margin, ties, preference_margin(ties, scores, head), fitted, seed),
            "calibration": _judge_probabilities(labelled, margin, fitted),
            "breakdown": break_down(labelled.pairs, right, seed),
        }
        if unseen := (unseen_generators or {}).get(head):
            result[dimension]["unseen_generators"] = judge_unseen(labelled.pairs, right, unseen, seed)
    clips, train_clips = _distinct_clips(pairs, videos), _distinct_clips(train_pairs, train_videos)
    result["cost_sign"] = (
        _judge_sign(clips, scores, (unseen_generators or {}).get("cost", ()), seed) if "cost" in heads else None
    )
    result["moderation"] = None
    if moderations:
        result["moderation"] = judge_labels(harm_signs(pairs, videos), scores, moderations, seed)
        if {"cost", "harm_any"} <= heads:
            costs = {name: row["cost"] for name, row in scores.items()}
            result["moderation"]["cost_sign_against_any"] = compare_with_cost(clips.sign_of, costs, moderations)
    judged = [dimension for dimension in ALL_DIMENSIONS if dimension in DIMENSIONS or result[dimension]]
    scored = {"random_backbone": random_scores} if random_scores is not None else {}
    names = ("controls", "controls_expected", "controls_standard_error")
    found = _run_controls(pairs, judged, train_pairs, clips, train_clips, truth, {**scored, **(changed_scores or {})})
    result |= dict(zip(names, found, strict=True))
    shared = clips.prompts & train_clips.prompts
    result["num_prompts_also_in_training"] = len(shared) if train_clips.prompts else None
    result["bootstrap_seed"] = seed
    return result


def _judge(labelled: Labelled, margin: np.ndarray, seed: int) -> dict[str, Any]:
    num_prompts = len(np.unique(labelled.prompts))
    figures: dict[str, Any] = dict.fromkeys(
        ("accuracy", "interval", "ceiling", "fraction_of_ceiling", "fraction_of_ceiling_interval",
         "true_order_accuracy", "num_true_ties", "tie_rate", "mean_margin")
    )  # fmt: skip
    figures |= {
        "num_comparisons": len(labelled.pairs),
        "num_prompts": num_prompts,
        "reason": too_few(len(labelled.pairs)),
    }
    if figures["reason"] is not None:
        return figures
    right = credit(margin * labelled.sign)
    has_interval = num_prompts > 1
    if not has_interval:
        figures["reason"] = "one prompt alone, which gives no interval"
    figures |= {
        "accuracy": float(right.mean()),
        "interval": list(mean_interval(right, labelled.prompts, seed=seed)) if has_interval else None,
        "tie_rate": float(np.mean(right == 0.5)),
        "mean_margin": float(np.mean(margin * labelled.sign)),
    }
    if labelled.true_margin is not None:
        best = credit(labelled.true_margin * labelled.sign)
        ordered = labelled.true_margin != 0
        figures |= {
            "ceiling": float(best.mean()),
            "fraction_of_ceiling": float(right.mean() / best.mean()),
            "true_order_accuracy": float(credit(margin * np.sign(labelled.true_margin))[ordered].mean()),
            "num_true_ties": int(np.count_nonzero(~ordered)),
        }
        if has_interval:
            figures["fraction_of_ceiling_interval"] = list(ratio_interval(right, best, labelled.prompts, seed=seed))
    return figures


def _judge_probabilities(labelled: Labelled, margin: np.ndarray, fitted: HeadCalibration | None) -> dict[str, Any]:
    """How well P(video_0 preferred) agrees with the labels; without a temperature, as it is.

    `mean_absolute_error` is the mean |P - true probability|, where the truth is known.
    """
    temperature = fitted.temperature if fitted is not None else None
    probability = preference_probability(margin, temperature or 1.0)
    figures = calibration(probability, labelled.sign > 0)
    error = None
    if labelled.true_margin is not None and figures.reason is None:
        error = float(np.abs(probability - preference_probability(labelled.true_margin)).mean())
    return {
        "is_calibrated": temperature is not None,
        "temperature": temperature,
        "ece": figures.ece,
        "brier": figures.brier,
        "log_loss": figures.log_loss,
        "mean_absolute_error": error,
        "bins": [one._asdict() for one in figures.bins],
        "num_comparisons": figures.num,
        "reason": figures.reason,
    }


def _judge_ties(
    labelled: Labelled,
    margin: np.ndarray,
    ties: Sequence[PairSample],
    tied_margin: np.ndarray,
    fitted: HeadCalibration | None,
    seed: int,
) -> dict[str, Any]:
    """Accuracy with ties as a third answer, at the threshold of the calibration, or the one of `credit` without."""
    threshold = fitted.tie_threshold if fitted is not None else None
    is_tie = np.arange(len(labelled.pairs) + len(ties)) >= len(labelled.pairs)
    right = tie_aware_credit(
        np.append(margin * labelled.sign, tied_margin), is_tie, TIE_TOLERANCE if threshold is None else threshold
    )
    prompts = np.append(labelled.prompts, [pair.prompt_id for pair in ties])
    reason = too_few(len(right)) if ties else "no comparison is labelled a tie"
    has_interval = reason is None and len(np.unique(prompts)) > 1
    return {
        "accuracy": float(right.mean()) if reason is None else None,
        "interval": list(mean_interval(right, prompts, seed=seed)) if has_interval else None,
        "threshold": threshold,
        "num_comparisons": len(right),
        "num_tied_labels": len(ties),
        "reason": reason,
    }


def _judge_sign(clips: DistinctClips, scores: Scores, unseen: Sequence[str], seed: int) -> dict[str, Any] | None:
    if not np.any(clips.signs):
        return None
    costs = np.array([scores[name]["cost"] for name in clips.names])
    figures: dict[str, Any] = {**sign_accuracy(costs, clips.signs)._asdict(), "reason": None}
    num = figures["num_safe"] + figures["num_unsafe"]
    if num < MIN_COMPARISONS:
        figures |= {"accuracy": None, "balanced_accuracy": None}
        figures["reason"] = f"{num} clips with an is_safe label, fewer than {MIN_COMPARISONS}"
    elif not (figures["num_safe"] and figures["num_unsafe"]):
        figures["reason"] = f"every clip is labelled {'safe' if figures['num_safe'] else 'unsafe'}"
    if unseen:
        prompts = np.array([prompt_id for prompt_id, _ in clips.sign_of])
        figures["unseen_generators"] = judge_unseen_signs(costs, clips.signs, clips.made_by, prompts, unseen, seed)
    return figures


@dataclass(frozen=True)
class DistinctClips:
    """The distinct clips of a file.

    Attributes:
        sign_of: (prompt_id, video_id) -> +1 safe, -1 unsafe, 0 unknown.
        signs: (N,) the same.
        names: (N,) prompt_id/video_id.
        texts: (N,) of their prompts.
        made_by: (N,) the generator's name, where it is known.
    """

    sign_of: Mapping[tuple[str, str], int]
    signs: np.ndarray
    names: list[str]
    texts: list[str]
    made_by: list[str | None]

    @property
    def prompts(self) -> set[str]:
        return {normalise_prompt(text) for text in self.texts}


def _distinct_clips(pairs: Sequence[PairSample], videos: Sequence[VideoSample]) -> DistinctClips:
    every = [video for pair in pairs for video in (pair.video_0, pair.video_1)] + list(videos)
    video_of = {(video.prompt_id, video.video_id): video for video in every}
    sign_of = safety_signs(pairs, videos)
    distinct = [video_of[key] for key in sign_of]
    return DistinctClips(
        sign_of,
        np.array(list(sign_of.values())),
        [video.name for video in distinct],
        [video.prompt_text for video in distinct],
        [video.generated_from for video in distinct],
    )


def _run_controls(
    pairs: Sequence[PairSample],
    dimensions: Sequence[str],
    train_pairs: Sequence[PairSample],
    clips: DistinctClips,
    train_clips: DistinctClips,
    truth: Mapping[str, Mapping[str, float]] | None,
    scores_of_control: Mapping[str, Scores],
) -> tuple[dict[str, dict[str, float | None]], ...]:
    measured: dict[str, dict[str, float | None]] = {}
    expected: dict[str, dict[str, float | None]] = {}
    standard_error: dict[str, dict[str, float | None]] = {}

    def add(name: str, dimension: str, labelled: Labelled, margin: np.ndarray) -> None:
        right = credit(margin * labelled.sign)
        is_known = too_few(len(right)) is None
        by_truth = error = None
        if labelled.true_margin is not None and is_known:
            expectation = expected_credit(margin, labelled.true_margin)
            by_truth = float(expectation.mean())
            error = _standard_error(right - expectation, labelled.prompts)
        measured.setdefault(name, {})[dimension] = float(right.mean()) if is_known else None
        expected.setdefault(name, {})[dimension] = by_truth
        standard_error.setdefault(name, {})[dimension] = error

    for dimension in dimensions:
        labelled, training = select_labelled(pairs, dimension, truth), select_labelled(train_pairs, dimension, None)
        if not labelled.pairs:
            continue
        if training.pairs:
            label = np.array([pair.preferences[dimension] for pair in training.pairs])
            margin = controls.generator_only(_generators(training.pairs), label, _generators(labelled.pairs))
            add("generator_only", dimension, labelled, margin)
        add("prompt_only", dimension, labelled, controls.prompt_only([pair.prompt_text for pair in labelled.pairs]))
        if dimension == "harmlessness":
            sides = [
                np.array([clips.sign_of[pair.prompt_id, getattr(pair, side).video_id] for pair in labelled.pairs])
                for side in VIDEO_NAMES
            ]
            if np.any(sides):
                add("is_safe_only", dimension, labelled, controls.is_safe_only(*sides))
        head = HEAD_OF_DIMENSION[dimension]
        for name, scores in scores_of_control.items():
            if head in next(iter(scores.values())):
                add(name, dimension, labelled, preference_margin(labelled.pairs, scores, head))

    def add_sign(name: str, costs: np.ndarray) -> None:
        # Without preference labels these are a control's only figures.
        is_known = np.count_nonzero(clips.signs) >= MIN_COMPARISONS
        balanced = sign_accuracy(costs, clips.signs).balanced_accuracy if is_known else None
        measured.setdefault(name, {})["cost_sign"] = balanced
        expected.setdefault(name, {})
        standard_error.setdefault(name, {})

    # Controls of the cost's sign: balanced accuracy, where a constant answer gives one half.
    if np.any(clips.signs) and {1, -1} <= set(train_clips.signs.tolist()):
        fitted = controls.prompt_only_unsafe(train_clips.texts, train_clips.signs, clips.texts)
        add_sign("prompt_only", fitted)
    for name, scores in scores_of_control.items():
        if np.any(clips.signs) and "cost" in next(iter(scores.values())):
            add_sign(name, np.array([scores[key]["cost"] for key in clips.names]))
    return measured, expected, standard_error


def _standard_error(values: np.ndarray, prompts: np.ndarray) -> float | None:
    """Of the mean of (M,) values, those of a prompt taken together; None with one prompt alone.

    sqrt(K / (K - 1) sum_k s_k^2) / M, where s_k sums the values of prompt k of K, less their mean (Liang & Zeger 1986).
    """
    _, index = np.unique(prompts, return_inverse=True)
    sums = np.bincount(index, weights=values - values.mean())
    if len(sums) < 2:
        return None
    return float(np.sqrt(len(sums) / (len(sums) - 1) * np.square(sums).sum()) / len(values))


def _generators(pairs: Sequence[PairSample]) -> list[tuple[str, str]]:
    return [(pair.video_0.generated_from or "unknown", pair.video_1.generated_from or "unknown") for pair in pairs]
