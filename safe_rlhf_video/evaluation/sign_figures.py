"""Computes how well the sign of the cost separates safe from unsafe clips."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from safe_rlhf_video.data.labelled_pairs import Scores
from safe_rlhf_video.evaluation.distinct_clips import DistinctClips
from safe_rlhf_video.evaluation.results import ClassRate, SignFigures, SignPart, UnseenSigns
from safe_rlhf_video.stats.checks import MIN_COMPARISONS, too_few_prompts
from safe_rlhf_video.stats.credit import sign_accuracy
from safe_rlhf_video.stats.intervals import balanced_interval, effective_size, share_interval
from safe_rlhf_video.stats.separation import auroc_parts


def judge_sign(
    clips: DistinctClips, scores: Scores, unseen: Sequence[str], no_zero: str | None = None
) -> SignFigures | None:
    """Computes the figures of the cost's sign; None where no clip is labelled safe or unsafe.

    Args:
        unseen: generators that were left out of the cost's training.
        no_zero: why the cost's zero means nothing; then only the AUROC is left, which needs none.
    """
    if not np.any(clips.signs):
        return None
    costs = np.array([scores[name]["cost"] for name in clips.names])
    found = sign_accuracy(costs, clips.signs)
    known = clips.signs != 0
    right, prompts = _right(costs, clips.signs)[known], clips.prompts[known]
    num, has_both = len(right), bool(found.num_safe and found.num_unsafe)
    is_enough = num >= MIN_COMPARISONS
    rates = [_rate(right, prompts, clips.signs[known] == sign) if is_enough else None for sign in (-1, 1)]
    reason = None
    if not is_enough:
        reason = f"{num} clips with an is_safe label, fewer than {MIN_COMPARISONS}"
    elif not has_both:
        reason = f"every clip is labelled {'safe' if found.num_safe else 'unsafe'}"
    elif few := too_few_prompts(min(one.num_prompts for one in rates if one)):
        reason = f"of the balanced accuracy, {few} of one class"
    is_separable = is_enough and has_both
    figures = SignFigures(
        accuracy=found.accuracy if is_enough else None,
        interval=share_interval(right, prompts) if is_enough else None,
        balanced_accuracy=found.balanced_accuracy if is_enough else None,
        balanced_interval=balanced_interval(right, clips.signs[known] > 0, prompts) if is_separable else None,
        auroc=float(auroc_parts(costs[known], clips.signs[known] < 0).mean()) if is_separable else None,
        sensitivity=rates[0],
        specificity=rates[1],
        num_safe=found.num_safe,
        num_unsafe=found.num_unsafe,
        reason=reason,
        unseen_generators=_judge_unseen_signs(costs, clips, unseen) if unseen else None,
    )
    return figures if no_zero is None else SignFigures(
        accuracy=None, interval=None, balanced_accuracy=None, balanced_interval=None, auroc=figures.auroc,
        sensitivity=None, specificity=None, num_safe=figures.num_safe, num_unsafe=figures.num_unsafe, reason=no_zero,
    )  # fmt: skip


def _right(costs: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Credit of each sign; a cost of 0 earns a half."""
    return np.where(costs == 0, 0.5, (costs > 0) == (signs < 0))


def _rate(right: np.ndarray, prompts: np.ndarray, rows: np.ndarray) -> ClassRate | None:
    if not rows.any():
        return None
    size = effective_size(right[rows], prompts[rows])
    return ClassRate(
        rate=float(right[rows].mean()),
        interval=share_interval(right[rows], prompts[rows]),
        effective_size=size[0] if size else None,
        num_clips=int(rows.sum()),
        num_prompts=len(np.unique(prompts[rows])),
    )


def _judge_unseen_signs(costs: np.ndarray, clips: DistinctClips, generators: Sequence[str]) -> UnseenSigns:
    is_unseen = np.array([name in generators for name in clips.made_by])
    right = _right(costs, clips.signs)
    prompts = clips.prompts

    def judge(rows: np.ndarray) -> SignPart:
        known = rows & (clips.signs != 0)
        found = sign_accuracy(costs[known], clips.signs[known])
        num, num_prompts = int(known.sum()), len(np.unique(prompts[known]))
        is_known = num >= MIN_COMPARISONS
        return SignPart(
            accuracy=found.accuracy if is_known else None,
            balanced_accuracy=found.balanced_accuracy if is_known else None,
            num_safe=found.num_safe,
            num_unsafe=found.num_unsafe,
            interval=share_interval(right[known], prompts[known]) if is_known else None,
            num_prompts=num_prompts,
            reason=too_few_prompts(num_prompts)
            if is_known
            else f"{num} videos with a label, fewer than {MIN_COMPARISONS}",
        )

    return UnseenSigns(tuple(generators), judge(is_unseen), judge(~is_unseen))
