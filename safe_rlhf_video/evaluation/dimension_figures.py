"""Computes the figures of one dimension: accuracy, its ceiling, ties and the calibration of probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from safe_rlhf_video.calibration.store import HeadCalibration
from safe_rlhf_video.data.labelled_pairs import Labelled
from safe_rlhf_video.data.preferences import number_prompts
from safe_rlhf_video.data.records import PairSample
from safe_rlhf_video.evaluation.breakdown import break_down, judge_unseen
from safe_rlhf_video.evaluation.results import DimensionFigures, ProbabilityFigures, TieFigures
from safe_rlhf_video.stats.checks import too_few, too_few_prompts
from safe_rlhf_video.stats.credit import TIE_TOLERANCE, credit, tie_aware_credit
from safe_rlhf_video.stats.intervals import ratio_interval, share_interval
from safe_rlhf_video.stats.probabilities import preference_probability, reliability


def judge_dimension(
    labelled: Labelled,
    margin: np.ndarray,
    ties: Sequence[PairSample],
    tied_margin: np.ndarray,
    fitted: HeadCalibration | None,
    unseen: Sequence[str],
) -> DimensionFigures:
    """Computes all figures of one dimension.

    Args:
        labelled: M comparisons with a label that is not a tie.
        margin: (M,) preference score of video_0 minus that of video_1.
        ties: K comparisons that are labelled ties.
        tied_margin: (K,) their margins.
        fitted: the head's calibration.
        unseen: generators that were left out of the head's training.
    """
    num_prompts = len(np.unique(labelled.prompts))
    reason = too_few(len(labelled.pairs))
    is_known = reason is None
    right = credit(margin * labelled.sign)
    ceiling = fraction = fraction_interval = order_accuracy = num_true_ties = None
    if labelled.true_margin is not None and is_known:
        best = credit(labelled.true_margin * labelled.sign)
        ordered = labelled.true_margin != 0
        ceiling = float(best.mean())
        num_true_ties = int(np.count_nonzero(~ordered))
        if ordered.any():
            order_accuracy = float(credit(margin * np.sign(labelled.true_margin))[ordered].mean())
        if best.any():
            fraction = float(right.mean() / best.mean())
            fraction_interval = ratio_interval(right, best, labelled.prompts)
    return DimensionFigures(
        accuracy=float(right.mean()) if is_known else None,
        interval=share_interval(right, labelled.prompts) if is_known else None,
        ceiling=ceiling,
        fraction_of_ceiling=fraction,
        fraction_of_ceiling_interval=fraction_interval,
        true_order_accuracy=order_accuracy,
        num_true_ties=num_true_ties,
        tie_rate=float(np.mean(right == 0.5)) if is_known else None,
        mean_margin=float(np.mean(margin * labelled.sign)) if is_known else None,
        num_comparisons=len(labelled.pairs),
        num_prompts=num_prompts,
        reason=reason or too_few_prompts(num_prompts),
        num_tied_labels=len(ties),
        tie_aware=_judge_ties(labelled, margin, ties, tied_margin, fitted),
        calibration=_judge_probabilities(labelled, margin, fitted),
        breakdown=break_down(labelled.pairs, right),
        unseen_generators=judge_unseen(labelled.pairs, right, unseen) if unseen else None,
    )


def _judge_ties(
    labelled: Labelled,
    margin: np.ndarray,
    ties: Sequence[PairSample],
    tied_margin: np.ndarray,
    fitted: HeadCalibration | None,
) -> TieFigures:
    """Accuracy with ties as a third answer, at the calibrated threshold, or without one at the tie tolerance."""
    threshold = fitted.tie_threshold if fitted is not None else None
    right = tie_aware_credit(
        np.append(margin * labelled.sign, tied_margin),
        np.arange(len(labelled.pairs) + len(ties)) >= len(labelled.pairs),
        TIE_TOLERANCE if threshold is None else threshold,
    )
    prompts = number_prompts([*labelled.pairs, *ties])
    reason = too_few(len(right)) if ties else "no comparison is labelled a tie"
    return TieFigures(
        accuracy=float(right.mean()) if reason is None else None,
        interval=share_interval(right, prompts) if reason is None else None,
        threshold=threshold,
        num_comparisons=len(right),
        num_tied_labels=len(ties),
        reason=reason or too_few_prompts(len(np.unique(prompts))),
    )


def _judge_probabilities(labelled: Labelled, margin: np.ndarray, fitted: HeadCalibration | None) -> ProbabilityFigures:
    """How well the probabilities of the preferred videos agree with the labels."""
    temperature = fitted.temperature if fitted is not None else None
    figures = reliability(margin * labelled.sign, temperature or 1.0)
    error = None
    if labelled.true_margin is not None and figures.reason is None:
        # Of the video that the model prefers, so that the last bits do not depend on which is video_0 either.
        side = np.where(margin < 0, -1.0, 1.0)
        said = preference_probability(np.abs(margin), temperature or 1.0)
        error = float(np.abs(said - preference_probability(side * labelled.true_margin)).mean())
    return ProbabilityFigures(
        is_calibrated=temperature is not None,
        temperature=temperature,
        ece=figures.ece,
        perfect_ece=figures.perfect_ece,
        perfect_ece_95=figures.perfect_ece_95,
        brier=figures.brier,
        log_loss=figures.log_loss,
        mean_absolute_error=error,
        bins=figures.bins,
        num_comparisons=figures.num,
        reason=figures.reason,
    )
