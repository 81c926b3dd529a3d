"""Two models on the same comparisons: is one better than chance would make it?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from safe_rlhf_video.data.labelled_pairs import Scores, preference_margin, select_labelled
from safe_rlhf_video.data.records import ALL_DIMENSIONS, PairSample
from safe_rlhf_video.evaluation.evaluate import HEAD_OF_DIMENSION
from safe_rlhf_video.stats.metrics import credit, holm, mcnemar, mean_interval


def compare(pairs: Sequence[PairSample], first: Scores, second: Scores, seed: int = 0) -> dict[str, Any]:
    """McNemar's exact test in every dimension that both models have a head for, corrected for their number by Holm.

    Args:
        pairs: the test comparisons; ties are left out.
        first, second: scores of every video in them.
        seed: of the bootstrap.

    Returns:
        dimension -> `accuracy_first`, `accuracy_second`, `difference` (first minus second) with `interval` by prompts,
        `first_better` and `second_better` (credit that one earned and the other did not), `p_value`, `p_value_holm`,
        `num_comparisons` and `reason`, why a figure is null.
    """
    heads = set(next(iter(first.values()))) & set(next(iter(second.values())))
    result: dict[str, Any] = {}
    for dimension in ALL_DIMENSIONS:
        head = HEAD_OF_DIMENSION[dimension]
        labelled = select_labelled(pairs, dimension, None)
        if head not in heads or not labelled.pairs:
            continue
        one, other = (
            credit(preference_margin(labelled.pairs, scores, head) * labelled.sign) for scores in (first, second)
        )
        test = mcnemar(one, other)
        is_known = test.reason is None
        has_interval = is_known and len(np.unique(labelled.prompts)) > 1
        result[dimension] = {
            "accuracy_first": float(one.mean()) if is_known else None,
            "accuracy_second": float(other.mean()) if is_known else None,
            "difference": float(one.mean() - other.mean()) if is_known else None,
            "interval": list(mean_interval(one - other, labelled.prompts, seed=seed)) if has_interval else None,
            "first_better": test.first_better,
            "second_better": test.second_better,
            "p_value": test.p_value,
            "p_value_holm": None,
            "num_comparisons": test.num,
            "reason": test.reason,
        }
    tested = [dimension for dimension, figures in result.items() if figures["p_value"] is not None]
    for dimension, p_value in zip(tested, holm([result[name]["p_value"] for name in tested]), strict=True):
        result[dimension]["p_value_holm"] = p_value
    return result
