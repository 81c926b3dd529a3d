"""Compares two models on the same comparisons: is one better than chance would make it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from safe_rlhf_video.data.labelled_pairs import Scores, preference_margin, select_labelled
from safe_rlhf_video.data.records import ALL_DIMENSIONS, PairSample
from safe_rlhf_video.evaluation.results import ComparisonFigures
from safe_rlhf_video.heads import HEAD_OF_DIMENSION
from safe_rlhf_video.stats.checks import too_few_prompts
from safe_rlhf_video.stats.credit import credit
from safe_rlhf_video.stats.intervals import difference_interval
from safe_rlhf_video.stats.significance import holm, sign_flip


def compare(pairs: Sequence[PairSample], first: Scores, second: Scores) -> dict[str, ComparisonFigures]:
    """Runs the exact test of `sign_flip` in every dimension that both models have a head for, with Holm's correction.

    Args:
        pairs: the test comparisons; ties are left out.
        first, second: scores of every video in them.

    Returns:
        dimension -> figures.
    """
    heads = set(next(iter(first.values()))) & set(next(iter(second.values())))
    result: dict[str, ComparisonFigures] = {}
    for dimension in ALL_DIMENSIONS:
        head = HEAD_OF_DIMENSION[dimension]
        labelled = select_labelled(pairs, dimension, None)
        if head not in heads or not labelled.pairs:
            continue
        one, other = (
            credit(preference_margin(labelled.pairs, scores, head) * labelled.sign) for scores in (first, second)
        )
        test = sign_flip(one, other, labelled.prompts)
        is_known = test.reason is None
        result[dimension] = ComparisonFigures(
            accuracy_first=float(one.mean()) if is_known else None,
            accuracy_second=float(other.mean()) if is_known else None,
            difference=float(one.mean() - other.mean()) if is_known else None,
            interval=difference_interval(one - other, labelled.prompts) if is_known else None,
            first_better=test.first_better,
            second_better=test.second_better,
            p_value=test.p_value,
            p_value_holm=None,
            num_comparisons=test.num,
            reason=test.reason or too_few_prompts(len(np.unique(labelled.prompts))),
        )
    p_values = {name: figures.p_value for name, figures in result.items() if figures.p_value is not None}
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return {name: replace(figures, p_value_holm=corrected.get(name)) for name, figures in result.items()}
