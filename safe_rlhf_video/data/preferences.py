"""Which videos are compared with which: one group a prompt, and splits that never share a prompt."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.data.samples import DIMENSIONS, SUB_DIMENSIONS, PairSample, VideoSample
from safe_rlhf_video.errors import SampleError


@dataclass(frozen=True)
class PromptGroup:
    """One prompt with its distinct videos and the comparisons between them.

    Attributes:
        videos: N distinct videos.
        comparisons: dimension -> int (M, 2), columns chosen and rejected, indices into `videos`; any M, also 0.
        safety_sign: int (N,), +1 safe, -1 unsafe, 0 unknown.
    """

    prompt_id: str
    prompt_text: str
    videos: tuple[VideoSample, ...]
    comparisons: Mapping[str, np.ndarray]
    safety_sign: np.ndarray

    def num_comparisons(self, dimension: str) -> int:
        return len(self.comparisons[dimension])


def safety_signs(pairs: Iterable[PairSample]) -> dict[tuple[str, str], int]:
    """Whether each video is safe, from all the records that speak of it: the one rule for training and evaluation.

    Returns:
        (prompt_id, video_id) -> +1 safe, -1 unsafe, 0 where no record says it or two contradict each other; in the
        order of first appearance.
    """
    said: dict[tuple[str, str], set[int]] = {}
    for pair in pairs:
        for video in (pair.video_0, pair.video_1):
            labels = said.setdefault((video.prompt_id, video.video_id), set())
            if video.is_safe is not None:
                labels.add(1 if video.is_safe else -1)
    # No label sums to 0, and so do two that contradict each other.
    return {key: sum(labels) for key, labels in said.items()}


def normalise_prompt(text: str) -> str:
    """Two prompts that differ in case and white space alone are one prompt."""
    return " ".join(text.lower().split())


def build_groups(dataset: PairDataset) -> tuple[list[PromptGroup], dict[str, int]]:
    """Gather the pairs of every prompt, in the order of first appearance.

    Returns:
        The groups, and what a reader should know was not used: `missing/<dimension>` labels, and
        `contradictory is_safe`, videos whose records disagree and whose sign therefore counts as unknown.
    """
    pairs_of: dict[str, list] = {}
    for pair in dataset.pairs:
        pairs_of.setdefault(pair.prompt_id, []).append(pair)
    sign_of = safety_signs(dataset.pairs)
    counts: Counter[str] = Counter()
    groups = []
    for prompt_id, pairs in pairs_of.items():
        index: dict[str, int] = {}
        videos: list[VideoSample] = []
        labelled: set[str] = set()
        rows: dict[str, list[tuple[int, int]]] = {name: [] for name in (*DIMENSIONS, *SUB_DIMENSIONS)}
        for pair in pairs:
            for video in (pair.video_0, pair.video_1):
                if video.video_id not in index:
                    index[video.video_id] = len(videos)
                    videos.append(video)
                if video.is_safe is not None:
                    labelled.add(video.video_id)
            sides = (index[pair.video_0.video_id], index[pair.video_1.video_id])
            for name, row in rows.items():
                preferred = pair.preferences.get(name)
                if preferred is None:
                    counts[f"missing/{name}"] += 1
                else:
                    row.append((sides[preferred], sides[1 - preferred]))
        counts["contradictory is_safe"] += sum(sign_of[prompt_id, video_id] == 0 for video_id in labelled)
        groups.append(
            PromptGroup(
                prompt_id=prompt_id,
                prompt_text=pairs[0].prompt_text,
                videos=tuple(videos),
                comparisons={name: np.array(row, dtype=np.int64).reshape(-1, 2) for name, row in rows.items()},
                safety_sign=np.array([sign_of[prompt_id, video.video_id] for video in videos]),
            )
        )
    return groups, dict(counts)


def keep_useful(groups: Sequence[PromptGroup], dimensions: Sequence[str], signs: bool) -> list[PromptGroup]:
    """Drop the videos that no loss term would read, and prompts without any left.

    Args:
        dimensions: whose comparisons are trained on.
        signs: whether a known safety sign alone makes a video useful.
    """
    kept = []
    for group in groups:
        useful = np.zeros(len(group.videos), bool)
        for name in dimensions:
            useful[group.comparisons[name].ravel()] = True
        if signs:
            useful |= group.safety_sign != 0
        if not useful.any():
            continue
        new_index = np.cumsum(useful) - 1
        comparisons = {
            name: new_index[rows] if name in dimensions else rows[:0] for name, rows in group.comparisons.items()
        }
        videos = tuple(video for video, keep in zip(group.videos, useful, strict=True) if keep)
        kept.append(PromptGroup(group.prompt_id, group.prompt_text, videos, comparisons, group.safety_sign[useful]))
    return kept


def split_by_prompt(
    groups: Sequence[PromptGroup], fraction: float, seed: int
) -> tuple[list[PromptGroup], list[PromptGroup]]:
    """Split off about `fraction` of the prompts; the same text under two ids stays on one side.

    A prompt's side depends on its text and the seed alone, so adding data moves no prompt across.

    Raises:
        SampleError: one of the two sides would be empty.
    """
    sides: tuple[list[PromptGroup], list[PromptGroup]] = ([], [])
    for group in groups:
        digest = hashlib.sha256(f"{seed}/{normalise_prompt(group.prompt_text)}".encode()).digest()
        sides[int.from_bytes(digest[:8], "big") / 2**64 < fraction].append(group)
    if not all(sides):
        raise SampleError(
            f"{len(groups)} prompts are too few to split off {fraction:.0%} of them; add data or set "
            "data.validation_fraction to 0"
        )
    return sides
