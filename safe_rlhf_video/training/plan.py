"""Which prompts make up each optimiser step, who encodes them, and every loss term's global denominator.

The plan depends on the data and the seed alone, never on the number of ranks: a run can go on with more or fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from safe_rlhf_video.data.preferences import PromptGroup


@dataclass(frozen=True)
class StepPlan:
    """One optimiser step.

    Attributes:
        groups: indices of its prompts' groups.
        num_comparisons: dimension -> comparisons of all of them.
        num_ties: dimension -> ties that are trained on.
        num_prompts: dimension -> prompts with a comparison or tie.
        comparison_shares: dimension -> over those prompts, the sum of the comparisons' share in their labels.
        num_signs: videos whose safety is known.
        num_harms: int (36,), videos with a known label in each column of `PromptGroup.harm_targets`.
        num_videos: distinct videos.
    """

    groups: tuple[int, ...]
    num_comparisons: dict[str, int]
    num_ties: dict[str, int]
    num_prompts: dict[str, int]
    comparison_shares: dict[str, float]
    num_signs: int
    num_harms: tuple[int, ...]
    num_videos: int

    def num_labels(self, dimension: str) -> int:
        """Comparisons and ties together."""
        return self.num_comparisons[dimension] + self.num_ties[dimension]


def plan_epoch(groups: Sequence[PromptGroup], prompts_per_step: int, seed: int, epoch: int) -> list[StepPlan]:
    """Shuffle the prompts and cut them into steps; the last step may be smaller, no prompt is left out."""
    order = np.random.default_rng([seed, epoch]).permutation(len(groups))
    return [
        plan_step([int(i) for i in order[start : start + prompts_per_step]], groups)
        for start in range(0, len(groups), prompts_per_step)
    ]


def plan_step(members: Sequence[int], groups: Sequence[PromptGroup]) -> StepPlan:
    """Count what the groups of one step bring to each loss term."""
    chosen = [groups[i] for i in members]
    return StepPlan(
        groups=tuple(members),
        num_comparisons={name: sum(len(group.comparisons[name]) for group in chosen) for name in chosen[0].comparisons},
        num_ties={name: sum(len(group.ties[name]) for group in chosen) for name in chosen[0].ties},
        num_prompts={name: sum(group.num_labels(name) > 0 for group in chosen) for name in chosen[0].ties},
        comparison_shares={
            name: sum(len(group.comparisons[name]) / max(group.num_labels(name), 1) for group in chosen)
            for name in chosen[0].ties
        },
        num_signs=sum(int(np.count_nonzero(group.safety_sign)) for group in chosen),
        num_harms=tuple(sum(np.count_nonzero(group.harm_targets, axis=0) for group in chosen).tolist()),
        num_videos=sum(len(group.videos) for group in chosen),
    )


@dataclass(frozen=True)
class GroupSize:
    """What a group costs its backbone.

    Attributes:
        num_videos: its distinct videos or texts.
        num_tokens: of the longest of them.
    """

    num_videos: int
    num_tokens: int


def divide(
    members: Sequence[int], sizes: Sequence[GroupSize], ranks: int, token_budget: int = 0
) -> list[list[tuple[int, ...]]]:
    """Cut groups into micro-batches of similar length, and each of those into a share for every rank.

    Within a micro-batch the ranks have about equally many videos; a share may stay empty. A share, padded to the
    longest of its micro-batch, keeps within the budget unless it is a single group.

    Args:
        members: the groups, as indices into `sizes`.
        token_budget: tokens of a share with its padding; 0 sets no limit.

    Returns:
        The micro-batches: for each rank the indices of its groups.
    """
    micro_batches: list[list[tuple[int, ...]]] = []
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    width = 0

    def close() -> None:
        micro_batches.append([tuple(share) for share in shares])

    # The longest first: what follows a micro-batch's first group is padded to it, and no more than it needs to be.
    for index in sorted(members, key=lambda i: (-sizes[i].num_tokens, -sizes[i].num_videos, i)):
        size = sizes[index]
        lightest = loads.index(min(loads))
        if token_budget and loads[lightest] and (loads[lightest] + size.num_videos) * width > token_budget:
            close()
            shares, loads, lightest = [[] for _ in range(ranks)], [0] * ranks, 0
        if not any(loads):
            width = size.num_tokens
        shares[lightest].append(index)
        loads[lightest] += size.num_videos
    close()
    return micro_batches
