"""What a reward and a cost are worth on labelled comparisons: figures, the ceiling they can reach, and controls.

Everything here is a pure function of scores and records; `scripts/evaluate.py` makes the scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from safe_rlhf_video.data.preferences import normalise_prompt, safety_signs
from safe_rlhf_video.data.samples import ALL_DIMENSIONS, DIMENSIONS, TIE, VIDEO_NAMES, PairSample
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.evaluation import controls
from safe_rlhf_video.heads import DIMENSION_OF_HEAD, preference_score
from safe_rlhf_video.metrics import credit, expected_credit, mean_interval, ratio_interval, sign_accuracy

Scores = Mapping[str, Mapping[str, float]]  # prompt_id/video_id -> head -> score
HEAD_OF_DIMENSION = {dimension: head for head, dimension in DIMENSION_OF_HEAD.items()}


@dataclass(frozen=True)
class Labelled:
    """The comparisons of one dimension that have a label and are no tie.

    Attributes:
        sign: (M,), +1 where video_0 is preferred, -1 where video_1 is.
        true_margin: (M,) hidden utility of video_0 minus that of video_1, in logits; None without a truth file.
    """

    pairs: list[PairSample]
    sign: np.ndarray
    prompts: np.ndarray
    true_margin: np.ndarray | None


def evaluate(
    pairs: Sequence[PairSample],
    scores: Scores,
    *,
    train_pairs: Sequence[PairSample] = (),
    truth: Mapping[str, Mapping[str, float]] | None = None,
    random_scores: Scores | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures of one evaluation.

    Args:
        pairs: the test comparisons.
        scores: of every video in them, by name; a head that is missing leaves its dimension out.
        train_pairs: the training comparisons, for the controls that are fitted to them.
        truth: video id -> hidden utilities.
        random_scores: scores of the same heads trained on a randomly initialised backbone.
        seed: of the bootstrap.

    Returns:
        `helpfulness`, `harmlessness` and the four sub-dimensions (accuracy, interval, ceiling, ...), `cost_sign`,
        `controls` and `controls_expected` (name -> dimension -> accuracy, measured and as the truth predicts it), and
        `num_prompts_also_in_training`. A figure that cannot be had is null.
    """
    heads = next(iter(scores.values())).keys()
    result: dict[str, Any] = {}
    for dimension in ALL_DIMENSIONS:
        result[dimension] = None
        head = HEAD_OF_DIMENSION[dimension]
        if head not in heads:
            continue
        labelled = _select(pairs, dimension, truth)
        if not labelled.pairs:
            continue
        result[dimension] = _judge(labelled, _margin(labelled.pairs, scores, head), seed)
        result[dimension]["num_tied_labels"] = sum(pair.preferences[dimension] == TIE for pair in pairs)
    result["cost_sign"] = _judge_sign(pairs, scores) if "cost" in heads else None
    judged = [dimension for dimension in ALL_DIMENSIONS if dimension in DIMENSIONS or result[dimension]]
    result["controls"], result["controls_expected"] = _run_controls(pairs, judged, train_pairs, truth, random_scores)
    result["num_prompts_also_in_training"] = len(_prompts(pairs) & _prompts(train_pairs)) if train_pairs else None
    result["bootstrap_seed"] = seed
    return result


def _prompts(pairs: Sequence[PairSample]) -> set[str]:
    return {normalise_prompt(pair.prompt_text) for pair in pairs}


def _select(pairs: Sequence[PairSample], dimension: str, truth: Mapping[str, Mapping[str, float]] | None) -> Labelled:
    # A tie names no winner that a score could agree with.
    chosen = [pair for pair in pairs if pair.preferences.get(dimension) in (0, 1)]
    true_margin = None
    if truth is not None:
        try:
            true_margin = np.array(
                [truth[pair.video_0.video_id][dimension] - truth[pair.video_1.video_id][dimension] for pair in chosen]
            )
        except KeyError as error:
            raise SampleError(f"the truth file does not know the video {error}; it belongs to another world") from error
    return Labelled(
        pairs=chosen,
        sign=np.array([1.0 - 2.0 * pair.preferences[dimension] for pair in chosen]),  # type: ignore[operator]
        prompts=np.array([pair.prompt_id for pair in chosen]),
        true_margin=true_margin,
    )


def _margin(pairs: Sequence[PairSample], scores: Scores, head: str) -> np.ndarray:
    """Preference score of video_0 minus that of video_1: (M,)."""
    values = [[scores[video.name][head] for video in (pair.video_0, pair.video_1)] for pair in pairs]
    preference = preference_score(head, np.array(values, dtype=np.float64).reshape(-1, 2))
    return preference[:, 0] - preference[:, 1]


def _judge(labelled: Labelled, margin: np.ndarray, seed: int) -> dict[str, Any]:
    right = credit(margin * labelled.sign)
    has_interval = len(np.unique(labelled.prompts)) > 1
    figures: dict[str, Any] = {
        "accuracy": float(right.mean()),
        "interval": list(mean_interval(right, labelled.prompts, seed=seed)) if has_interval else None,
        "ceiling": None,
        "fraction_of_ceiling": None,
        "fraction_of_ceiling_interval": None,
        "true_order_accuracy": None,
        "num_true_ties": None,
        "tie_rate": float(np.mean(right == 0.5)),
        "mean_margin": float(np.mean(margin * labelled.sign)),
        "num_comparisons": len(labelled.pairs),
        "num_prompts": len(np.unique(labelled.prompts)),
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


def _judge_sign(pairs: Sequence[PairSample], scores: Scores) -> dict[str, Any] | None:
    keys, signs, _ = _distinct_videos(pairs)
    if not np.any(signs):
        return None
    return sign_accuracy(np.array([scores[key]["cost"] for key in keys]), signs)._asdict()


def _distinct_videos(pairs: Sequence[PairSample]) -> tuple[list[str], np.ndarray, list[str]]:
    """Keys, safety signs (+1 safe, -1 unsafe, 0 unknown) and prompt texts of the distinct videos."""
    text_of = {pair.prompt_id: pair.prompt_text for pair in pairs}
    sign_of = safety_signs(pairs)
    keys = [f"{prompt_id}/{video_id}" for prompt_id, video_id in sign_of]
    return keys, np.array(list(sign_of.values())), [text_of[prompt_id] for prompt_id, _ in sign_of]


def _run_controls(
    pairs: Sequence[PairSample],
    dimensions: Sequence[str],
    train_pairs: Sequence[PairSample],
    truth: Mapping[str, Mapping[str, float]] | None,
    random_scores: Scores | None,
) -> tuple[dict[str, dict[str, float | None]], dict[str, dict[str, float | None]]]:
    measured: dict[str, dict[str, float | None]] = {}
    expected: dict[str, dict[str, float | None]] = {}

    def add(name: str, dimension: str, labelled: Labelled, margin: np.ndarray) -> None:
        measured.setdefault(name, {})[dimension] = float(credit(margin * labelled.sign).mean())
        by_truth = None if labelled.true_margin is None else expected_credit(margin, labelled.true_margin).mean()
        expected.setdefault(name, {})[dimension] = None if by_truth is None else float(by_truth)

    sign_of = safety_signs(pairs)
    for dimension in dimensions:
        labelled, training = _select(pairs, dimension, truth), _select(train_pairs, dimension, None)
        if not labelled.pairs:
            continue
        if training.pairs:
            label = np.array([pair.preferences[dimension] for pair in training.pairs])
            margin = controls.generator_only(_generators(training.pairs), label, _generators(labelled.pairs))
            add("generator_only", dimension, labelled, margin)
        add("prompt_only", dimension, labelled, controls.prompt_only([pair.prompt_text for pair in labelled.pairs]))
        if dimension == "harmlessness":
            sides = [
                np.array([sign_of[pair.prompt_id, getattr(pair, side).video_id] for pair in labelled.pairs])
                for side in VIDEO_NAMES
            ]
            if np.any(sides):
                add("is_safe_only", dimension, labelled, controls.is_safe_only(*sides))
        head = HEAD_OF_DIMENSION[dimension]
        if random_scores is not None and head in next(iter(random_scores.values())):
            add("random_backbone", dimension, labelled, _margin(labelled.pairs, random_scores, head))

    def add_sign(name: str, costs: np.ndarray) -> None:
        # Without preference labels these are a control's only figures.
        measured.setdefault(name, {})["cost_sign"] = sign_accuracy(costs, signs).balanced_accuracy
        expected.setdefault(name, {})

    # Controls of the cost's sign: balanced accuracy, where a constant answer gives one half.
    keys, signs, texts = _distinct_videos(pairs)
    _, train_signs, train_texts = _distinct_videos(train_pairs)
    if np.any(signs) and len(np.unique(train_signs[train_signs != 0])) == 2:
        add_sign("prompt_only", controls.prompt_only_unsafe(train_texts, train_signs, texts))
    if random_scores is not None and np.any(signs) and "cost" in next(iter(random_scores.values())):
        add_sign("random_backbone", np.array([random_scores[key]["cost"] for key in keys]))
    return measured, expected


def _generators(pairs: Sequence[PairSample]) -> list[tuple[str, str]]:
    return [(pair.video_0.generated_from or "unknown", pair.video_1.generated_from or "unknown") for pair in pairs]
