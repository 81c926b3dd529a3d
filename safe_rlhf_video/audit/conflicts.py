"""Finds labels that contradict one another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from safe_rlhf_video.audit.comparisons import MISSING, TIED, Comparisons
from safe_rlhf_video.audit.sections import (
    Conflicts,
    Contradictions,
    HarmContradictions,
    HarmExamples,
    RepeatedPairs,
    SafetyOrder,
)
from safe_rlhf_video.audit.shares import share
from safe_rlhf_video.audit.splits import NUM_EXAMPLES
from safe_rlhf_video.audit.triangles import flip_rate_of_repeats
from safe_rlhf_video.data.records import ALL_DIMENSIONS, HARM_LABELS, VideoSample


def audit_conflicts(comparisons: Comparisons, mentions: Sequence[VideoSample]) -> Conflicts:
    """Compares repeated labels of a pair, safety labels with harm labels, and `harmlessness` with `is_safe`."""
    return Conflicts(
        repeated_pairs={name: _audit_repeats(comparisons, name) for name in ALL_DIMENSIONS},
        is_safe=_find_contradictions((video.name, video.is_safe) for video in mentions),
        generators=_find_contradictions((video.name, video.generated_from) for video in mentions),
        harm_labels=_audit_harm_labels(mentions),
        harmlessness_against_is_safe=_audit_order(comparisons),
    )


def _audit_repeats(comparisons: Comparisons, dimension: str) -> RepeatedPairs:
    """Finds videos that were compared more than once, and whether all their labels agree."""
    label = comparisons.labels[dimension]
    rows = np.flatnonzero(label != MISSING)
    # Turned so that a label does not depend on which of the two came first.
    swapped = comparisons.videos[rows, 0] > comparisons.videos[rows, 1]
    turned = np.where(label[rows] == TIED, TIED, np.where(swapped, 1 - label[rows], label[rows]))
    _, pair, times = np.unique(comparisons.pair_key[rows], return_inverse=True, return_counts=True)
    counts = np.zeros((len(times), 3), np.int64)
    np.add.at(counts, (pair, turned), 1)
    zeros, ones = counts[:, 0], counts[:, 1]
    repeated, contradictory = times > 1, (zeros > 0) & (ones > 0)
    strict = zeros + ones
    # All couples of labels of one pair, and the couples that disagree.
    couples, disagreeing = int((strict * (strict - 1) // 2).sum()), int((zeros * ones).sum())
    first_rows = np.flatnonzero(np.isin(pair, np.flatnonzero(contradictory)))[: 2 * NUM_EXAMPLES]
    return RepeatedPairs(
        pairs=int(repeated.sum()),
        comparisons=int(times[repeated].sum()),
        contradictory=int(contradictory.sum()),
        tie_and_preference=int(((counts[:, TIED] > 0) & (strict > 0)).sum()),
        disagreement=disagreeing / couples if couples else None,
        flip_rate=flip_rate_of_repeats(disagreeing / couples) if couples else None,
        reason=None if couples else "no pair has two preferences",
        examples=[comparisons.pairs[rows[row]].pair_id for row in first_rows],
    )


def _find_contradictions(said: Iterable[tuple[str, bool | str | None]]) -> Contradictions:
    """Finds videos of which two records say different things; None says nothing."""
    first: dict[str, bool | str] = {}
    contradictory: set[str] = set()
    for name, value in said:
        if value is not None and first.setdefault(name, value) != value:
            contradictory.add(name)
    return Contradictions(len(first), len(contradictory), sorted(contradictory)[:NUM_EXAMPLES])


def _audit_harm_labels(mentions: Sequence[VideoSample]) -> HarmContradictions:
    # One bit for each harm; sets would take several times as long.
    bits = {key: 1 << place for place, key in enumerate(HARM_LABELS)}
    given: dict[str, int] = {}
    denied: dict[str, int] = {}
    safe_with_harm: set[str] = set()
    unsafe_without_harm: set[str] = set()
    for video in mentions:
        if not video.harm_labels:
            continue
        name = video.name
        harms = sum(bits[key] for key, applies in video.harm_labels.items() if applies)
        others = sum(bits[key] for key, applies in video.harm_labels.items() if not applies)
        given[name], denied[name] = given.get(name, 0) | harms, denied.get(name, 0) | others
        if video.is_safe is True and harms:
            safe_with_harm.add(name)
        if video.is_safe is False and len(video.harm_labels) == len(HARM_LABELS) and not harms:
            unsafe_without_harm.add(name)
    both_ways = sorted(name for name in given if given[name] & denied[name])
    return HarmContradictions(
        videos=len(given),
        contradictory=len(both_ways),
        safe_with_harm=len(safe_with_harm),
        unsafe_without_harm=len(unsafe_without_harm),
        examples=HarmExamples(
            contradictory=both_ways[:NUM_EXAMPLES],
            safe_with_harm=sorted(safe_with_harm)[:NUM_EXAMPLES],
            unsafe_without_harm=sorted(unsafe_without_harm)[:NUM_EXAMPLES],
        ),
    )


def _audit_order(comparisons: Comparisons) -> SafetyOrder:
    """Checks PKU-SafeRLHF's order: a safe video is never less harmless than an unsafe one of the same prompt."""
    label = comparisons.labels["harmlessness"]
    sign = comparisons.safety_sign[comparisons.videos]
    mixed = sign[:, 0] * sign[:, 1] == -1
    strict = np.flatnonzero(mixed & ((label == 0) | (label == 1)))
    preferred_unsafe = sign[strict, label[strict]] == -1
    return SafetyOrder(
        safe_unsafe_pairs=int(mixed.sum()),
        without_label=int((mixed & (label == MISSING)).sum()),
        tied=int((mixed & (label == TIED)).sum()),
        contradicting=share(preferred_unsafe.astype(float), comparisons.text[strict]),
        examples=[comparisons.pairs[row].pair_id for row in strict[preferred_unsafe][:NUM_EXAMPLES]],
    )
