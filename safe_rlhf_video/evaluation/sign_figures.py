"""Computes how well the sign of the cost separates safe from unsafe clips."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from safe_rlhf_video.data.labelled_pairs import Scores
from safe_rlhf_video.evaluation.distinct_clips import DistinctClips
from safe_rlhf_video.evaluation.results import SignFigures, SignPart, UnseenSigns
from safe_rlhf_video.stats.checks import MIN_COMPARISONS
from safe_rlhf_video.stats.credit import sign_accuracy
from safe_rlhf_video.stats.intervals import interval_by_prompt
from safe_rlhf_video.stats.separation import auroc_parts


def judge_sign(clips: DistinctClips, scores: Scores, unseen: Sequence[str], seed: int) -> SignFigures | None:
    """Computes the figures of the cost's sign; None where no clip is labelled safe or unsafe.

    Args:
        unseen: generators that were left out of the cost's training.
        seed: of the bootstrap.
    """
    if not np.any(clips.signs):
        return None
    costs = np.array([scores[name]["cost"] for name in clips.names])
    found = sign_accuracy(costs, clips.signs)
    num = found.num_safe + found.num_unsafe
    reason = None
    if num < MIN_COMPARISONS:
        reason = f"{num} clips with an is_safe label, fewer than {MIN_COMPARISONS}"
    elif not (found.num_safe and found.num_unsafe):
        reason = f"every clip is labelled {'safe' if found.num_safe else 'unsafe'}"
    known = clips.signs != 0
    return SignFigures(
        accuracy=None if num < MIN_COMPARISONS else found.accuracy,
        balanced_accuracy=None if num < MIN_COMPARISONS else found.balanced_accuracy,
        auroc=float(auroc_parts(costs[known], clips.signs[known] < 0).mean()) if reason is None else None,
        num_safe=found.num_safe,
        num_unsafe=found.num_unsafe,
        reason=reason,
        unseen_generators=_judge_unseen_signs(costs, clips, unseen, seed) if unseen else None,
    )


def _judge_unseen_signs(costs: np.ndarray, clips: DistinctClips, generators: Sequence[str], seed: int) -> UnseenSigns:
    is_unseen = np.array([name in generators for name in clips.made_by])
    right = np.where(costs == 0, 0.5, (costs > 0) == (clips.signs < 0))
    prompts = clips.prompt_ids

    def judge(rows: np.ndarray) -> SignPart:
        known = rows & (clips.signs != 0)
        found = sign_accuracy(costs[known], clips.signs[known])
        num = int(known.sum())
        is_known = num >= MIN_COMPARISONS
        return SignPart(
            accuracy=found.accuracy if is_known else None,
            balanced_accuracy=found.balanced_accuracy if is_known else None,
            num_safe=found.num_safe,
            num_unsafe=found.num_unsafe,
            interval=interval_by_prompt(right[known], prompts[known], seed) if is_known else None,
            num_prompts=len(np.unique(prompts[known])),
            reason=None if is_known else f"{num} videos with a label, fewer than {MIN_COMPARISONS}",
        )

    return UnseenSigns(tuple(generators), judge(is_unseen), judge(~is_unseen))
