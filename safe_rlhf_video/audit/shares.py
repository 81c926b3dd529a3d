"""Computes shares with counts and an interval by prompts."""

from __future__ import annotations

import numpy as np

from safe_rlhf_video.audit.sections import CountedShare
from safe_rlhf_video.stats.checks import too_few_prompts
from safe_rlhf_video.stats.intervals import share_interval


def share(credits: np.ndarray, prompts: np.ndarray) -> CountedShare:
    """Computes a share as every section reports it.

    Args:
        credits: (N,) 1 if an item counts, 0 if not, 0.5 for a tie.
        prompts: (N,) index of each item's prompt.
    """
    if not len(credits):
        return CountedShare(0, 0, 0, None, None, "there is nothing to count")
    count, num_prompts = float(np.sum(credits)), len(np.unique(prompts))
    return CountedShare(
        count=int(count) if count.is_integer() else count,
        total=len(credits),
        prompts=num_prompts,
        share=count / len(credits),
        interval=share_interval(credits, prompts),
        reason=too_few_prompts(num_prompts),
    )
