"""Counts how often each label, harm, prompt type and generator occurs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from safe_rlhf_video.audit.comparisons import (
    MISSING,
    OTHER_GENERATORS,
    TIED,
    UNKNOWN,
    Comparisons,
    frequent_generators,
)
from safe_rlhf_video.audit.sections import Balance, FlagCounts, GeneratorCounts, HarmCounts, SideCounts
from safe_rlhf_video.audit.shares import share
from safe_rlhf_video.data.records import ALL_DIMENSIONS, DIMENSIONS, HARM_LABELS, PromptSample, VideoSample


def audit_balance(
    comparisons: Comparisons,
    mentions: Sequence[VideoSample],
    prompts: Sequence[VideoSample | PromptSample],
    has_pairs: bool,
) -> Balance:
    """Counts all labels; gives shares with intervals if there are comparisons.

    Args:
        comparisons: has no rows for a list of single videos.
        mentions: every record of a video.
        prompts: one record of each prompt.
        has_pairs: whether there are comparisons.
    """
    generator_of: dict[str, str | None] = {}
    for video in mentions:
        if generator_of.get(video.name) is None:
            generator_of[video.name] = video.generated_from
    named = {name: generator or UNKNOWN for name, generator in generator_of.items()}
    kept = frequent_generators(named.values())
    num_generators = len(set(named.values()))
    return Balance(
        preferences={name: _audit_dimension(comparisons, name) for name in ALL_DIMENSIONS} if has_pairs else None,
        is_safe=_count_flags([(video.name, video.is_safe) for video in mentions]),
        harm_labels=_audit_harms([(video.name, video.harm_labels) for video in mentions]),
        prompt_harm_labels=_audit_harms([(prompt.prompt_id, prompt.prompt_labels) for prompt in prompts]),
        prompt_types=dict(Counter(prompt.prompt_type or UNKNOWN for prompt in prompts).most_common()),
        generators=_audit_generators(
            comparisons, {name: each if each in kept else OTHER_GENERATORS for name, each in named.items()}, has_pairs
        ),
        generators_taken_as_one=num_generators - len(kept),
    )


def _audit_dimension(comparisons: Comparisons, dimension: str) -> SideCounts:
    """Counts labels, and the share of preferences for video_0: far from one half, the position predicts the label."""
    label = comparisons.labels[dimension]
    strict = (label == 0) | (label == 1)
    return SideCounts(
        video_0=int((label == 0).sum()),
        video_1=int((label == 1).sum()),
        tie=int((label == TIED).sum()),
        missing=int((label == MISSING).sum()),
        share_video_0=share((label[strict] == 0).astype(float), comparisons.text[strict]),
    )


def _audit_harms(labels: Sequence[tuple[str, Mapping[str, bool] | None]]) -> dict[str, HarmCounts]:
    """Counts the names that have each of the 12 harms; `labels` may hold a name several times."""
    return {
        key: HarmCounts(
            code=harm.code,
            name=harm.published,
            **vars(_count_flags([(name, None if given is None else given.get(key)) for name, given in labels])),
        )
        for key, harm in HARM_LABELS.items()
    }


def _count_flags(flags: Sequence[tuple[str, bool | None]]) -> FlagCounts:
    """Counts each name once: labelled true, false, both, or never."""
    # Bits: 1 false, 2 true. Sets would take several times as long.
    said: dict[str, int] = {}
    for name, flag in flags:
        said[name] = said.get(name, 0) | (0 if flag is None else 2 if flag else 1)
    counts = Counter(said.values())
    known = counts[2] + counts[1]
    return FlagCounts(
        true=counts[2],
        false=counts[1],
        contradictory=counts[3],
        unknown=counts[0],
        share_true=counts[2] / known if known else None,
    )


def _audit_generators(
    comparisons: Comparisons, generator_of: dict[str, str], has_pairs: bool
) -> dict[str, GeneratorCounts]:
    """Counts the videos of each generator, and how often it wins against the others; a tie is half a win."""
    num_videos = Counter(generator_of.values())
    number_of = {name: number for number, (name, _) in enumerate(num_videos.most_common())}
    generator = np.array([number_of[generator_of[name]] for name in comparisons.video_names], np.int64)
    sides = generator[comparisons.videos] if len(comparisons.videos) else np.zeros((0, 2), np.int64)
    found = {}
    for name, number in number_of.items():
        against_others = (sides == number).sum(axis=1) == 1
        win_rates = {}
        for dimension in DIMENSIONS if has_pairs else ():
            label = comparisons.labels[dimension]
            rows = np.flatnonzero(against_others & (label != MISSING))
            own_side = (sides[rows, 1] == number).astype(np.int64)
            credit = np.where(label[rows] == TIED, 0.5, (label[rows] == own_side).astype(float))
            win_rates[dimension] = share(credit, comparisons.text[rows])
        found[name] = GeneratorCounts(num_videos[name], num_videos[name] / num_videos.total(), win_rates)
    return found
