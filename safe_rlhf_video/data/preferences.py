"""Groups comparisons by prompt, and splits groups so that no two sides share a prompt."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from safe_rlhf_video.data.records import ALL_DIMENSIONS, TIE, PairSample, PromptSample, VideoSample
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.heads import GRADED_HEADS, HEADS
from safe_rlhf_video.kinds.targets import label_columns, label_targets


@dataclass(frozen=True)
class PromptGroup:
    """One prompt with its distinct videos and the comparisons between them.

    Attributes:
        videos: N distinct videos.
        comparisons: dimension -> int (M, 2), columns chosen and rejected, indices into `videos`; any M, also 0.
        ties: dimension -> int (K, 2), videos that people found equal; any K.
        safety_sign: int (N,), +1 safe, -1 unsafe, 0 unknown.
        harm_targets: float32 (N, C), the label targets: the columns of each of `LABEL_HEADS`
            (`kinds.targets.label_columns`) hold the weight of the video's class, 1 as `build_groups` makes it, and 0
            where the class is unknown.
    """

    prompt_id: str
    prompt_text: str
    videos: tuple[VideoSample, ...]
    comparisons: Mapping[str, np.ndarray]
    ties: Mapping[str, np.ndarray]
    safety_sign: np.ndarray
    harm_targets: np.ndarray

    def num_comparisons(self, dimension: str) -> int:
        return len(self.comparisons[dimension])

    def num_labels(self, dimension: str) -> int:
        """Comparisons and ties together."""
        return len(self.comparisons[dimension]) + len(self.ties[dimension])


def safety_signs(pairs: Iterable[PairSample], videos: Iterable[VideoSample] = ()) -> dict[tuple[str, str], int]:
    """Reads whether each video is safe from all its records: the one rule for training and evaluation.

    Args:
        videos: further records.

    Returns:
        (prompt_id, video_id) -> +1 safe, -1 unsafe, 0 where no record has a label or two contradict each other; in
        the order of first appearance.
    """
    said: dict[tuple[str, str], set[int]] = {}
    for video in _all_records(pairs, videos):
        labels = said.setdefault((video.prompt_id, video.video_id), set())
        if video.is_safe is not None:
            labels.add(1 if video.is_safe else -1)
    # No label sums to 0, and so do two that contradict each other.
    return {key: sum(labels) for key, labels in said.items()}


def harm_signs(pairs: Iterable[PairSample], videos: Iterable[VideoSample] = ()) -> dict[tuple[str, str], np.ndarray]:
    """Reads the label targets of each video from all its records.

    Returns:
        (prompt_id, video_id) -> float32 (C,), a row of `kinds.targets.label_targets`; in the order of first appearance.
    """
    records: dict[tuple[str, str], list[VideoSample]] = {}
    for video in _all_records(pairs, videos):
        records.setdefault((video.prompt_id, video.video_id), []).append(video)
    return dict(zip(records, label_targets(list(records.values())), strict=True))


def videos_of(sample: PairSample | VideoSample) -> tuple[VideoSample, ...]:
    """The two videos of a pair, or the one of a labelled video."""
    return (sample.video_0, sample.video_1) if isinstance(sample, PairSample) else (sample,)


def names_of_generators(samples: Iterable[PairSample | VideoSample], generators: Collection[str]) -> set[str]:
    """Names of the videos that one of some generators made; by name, since not every record of one has to say it."""
    return {video.name for sample in samples for video in videos_of(sample) if video.generated_from in generators}


def _all_records(pairs: Iterable[PairSample], videos: Iterable[VideoSample]) -> Iterator[VideoSample]:
    for pair in pairs:
        yield from videos_of(pair)
    yield from videos


def normalise_prompt(text: str) -> str:
    """Two prompts that differ in case and white space alone are one prompt."""
    return " ".join(text.lower().split())


def number_prompts(samples: Iterable[PairSample | VideoSample | PromptSample]) -> np.ndarray:
    """Numbers the prompts of N records, by their texts, in the order of first appearance: int (N,).

    Intervals go by these numbers: what a model gets right of a text it often gets right again under another prompt_id,
    and two ids that counted as two independent prompts would make intervals too narrow. Only where the text is blank
    does the id tell prompts apart.
    """
    index: dict[str, int] = {}
    # No normalised text begins with a space.
    keys = (normalise_prompt(sample.prompt_text) or f" {sample.prompt_id}" for sample in samples)
    return np.array([index.setdefault(key, len(index)) for key in keys], dtype=np.int64)


def build_groups(
    pairs: Sequence[PairSample], videos: Sequence[VideoSample] = ()
) -> tuple[list[PromptGroup], dict[str, int]]:
    """Gather the pairs of every prompt, and further videos of it, in the order of first appearance.

    Returns:
        The groups, and what a reader should know of the labels: `missing/<dimension>` and `ties/<dimension>` counts,
        and `contradictory is_safe` and the same of the fields of graded labels: videos whose records disagree and
        whose label therefore counts as unknown.
    """
    pairs_of: dict[str, list[PairSample]] = {}
    for pair in pairs:
        pairs_of.setdefault(pair.prompt_id, []).append(pair)
    further: dict[str, list[VideoSample]] = {}
    for video in videos:
        pairs_of.setdefault(video.prompt_id, [])
        further.setdefault(video.prompt_id, []).append(video)
    sign_of, harms_of = safety_signs(pairs, videos), harm_signs(pairs, videos)
    counts: Counter[str] = Counter()
    groups = []
    for prompt_id, members in pairs_of.items():
        shown: dict[str, VideoSample] = {}
        labelled: set[str] = set()
        graded: dict[str, set[str]] = {head: set() for head in GRADED_HEADS}
        for video in _all_records(members, further.get(prompt_id, ())):
            shown.setdefault(video.video_id, video)
            if video.is_safe is not None:
                labelled.add(video.video_id)
            for head, ids in graded.items():
                if HEADS[head].key in video.grades:
                    ids.add(video.video_id)
        index = {video_id: place for place, video_id in enumerate(shown)}
        rows: dict[str, list[tuple[int, int]]] = {name: [] for name in ALL_DIMENSIONS}
        ties: dict[str, list[tuple[int, int]]] = {name: [] for name in rows}
        for pair in members:
            sides = (index[pair.video_0.video_id], index[pair.video_1.video_id])
            for name, row in rows.items():
                preferred = pair.preferences.get(name)
                if preferred is None:
                    counts[f"missing/{name}"] += 1
                elif preferred == TIE:
                    counts[f"ties/{name}"] += 1
                    ties[name].append(sides)
                else:
                    row.append((sides[preferred], sides[1 - preferred]))
        counts["contradictory is_safe"] += sum(sign_of[prompt_id, video_id] == 0 for video_id in labelled)
        for head, ids in graded.items():
            counts[f"contradictory {HEADS[head].key}"] += sum(
                not harms_of[prompt_id, video_id][label_columns(head)].any() for video_id in ids
            )
        groups.append(
            PromptGroup(
                prompt_id=prompt_id,
                prompt_text=next(iter(shown.values())).prompt_text,
                videos=tuple(shown.values()),
                comparisons=_as_arrays(rows),
                ties=_as_arrays(ties),
                safety_sign=np.array([sign_of[prompt_id, video_id] for video_id in shown]),
                harm_targets=np.stack([harms_of[prompt_id, video_id] for video_id in shown]),
            )
        )
    return groups, dict(counts)


def _as_arrays(rows: Mapping[str, list[tuple[int, int]]]) -> dict[str, np.ndarray]:
    return {name: np.array(row, dtype=np.int64).reshape(-1, 2) for name, row in rows.items()}


def leave_out(groups: Sequence[PromptGroup], names: Collection[str]) -> list[PromptGroup]:
    """The groups without the videos of these names (prompt_id/video_id), nor any comparison or tie that has one."""
    kept = []
    for group in groups:
        keep = np.array([video.name not in names for video in group.videos])
        if keep.all():
            kept.append(group)
        elif keep.any():
            kept.append(_select_videos(group, keep))
    return kept


def split_pairs(groups: Sequence[PromptGroup], dimensions: Sequence[str]) -> list[PromptGroup]:
    """One group for each two videos that are compared or tied in one of these dimensions, with all labels of the two.

    A video of several comparisons is in several groups; a video of none is in none.
    """
    split = []
    for group in groups:
        couples = sorted(
            {
                (min(pair), max(pair))
                for labels in (group.comparisons, group.ties)
                for name in dimensions
                for pair in labels[name].tolist()
            }
        )
        for first, second in couples:
            keep = np.zeros(len(group.videos), bool)
            keep[[first, second]] = True
            split.append(_select_videos(group, keep))
    return split


def keep_useful(
    groups: Sequence[PromptGroup],
    dimensions: Sequence[str],
    signs: bool,
    ties: bool = False,
    labels: Sequence[int] = (),
) -> list[PromptGroup]:
    """Drop the videos that no loss term would read, and prompts without any left.

    Args:
        dimensions: whose comparisons are trained on.
        signs: whether a known safety sign alone makes a video useful.
        ties: whether ties are trained on too.
        labels: columns of `harm_targets`; a known label in one of them alone makes a video useful.
    """
    kept = []
    for group in groups:
        comparisons = {name: rows if name in dimensions else rows[:0] for name, rows in group.comparisons.items()}
        tied = {name: rows if name in dimensions and ties else rows[:0] for name, rows in group.ties.items()}
        useful = np.zeros(len(group.videos), bool)
        for rows in (*comparisons.values(), *tied.values()):
            useful[rows.ravel()] = True
        if signs:
            useful |= group.safety_sign != 0
        useful |= group.harm_targets[:, list(labels)].any(axis=1)
        if useful.any():
            kept.append(_select_videos(replace(group, comparisons=comparisons, ties=tied), useful))
    return kept


def _select_videos(group: PromptGroup, keep: np.ndarray) -> PromptGroup:
    """The group with some of its videos, and the comparisons and ties between them."""
    new_index = np.cumsum(keep) - 1
    comparisons, ties = (
        {name: new_index[rows[keep[rows].all(axis=1)]] for name, rows in labels.items()}
        for labels in (group.comparisons, group.ties)
    )
    return replace(
        group,
        videos=tuple(video for video, is_kept in zip(group.videos, keep, strict=True) if is_kept),
        comparisons=comparisons,
        ties=ties,
        safety_sign=group.safety_sign[keep],
        harm_targets=group.harm_targets[keep],
    )


def split_by_prompt(
    groups: Sequence[PromptGroup], fraction: float, seed: int
) -> tuple[list[PromptGroup], list[PromptGroup]]:
    """Split off about `fraction` of the prompts; the same text under two ids stays on one side.

    A prompt's side depends on its text and the seed alone, so adding data moves no prompt across.

    Returns:
        The groups to train on, and the groups that were split off.

    Raises:
        SampleError: one of the two sides would be empty.
    """
    sides: tuple[list[PromptGroup], list[PromptGroup]] = ([], [])
    for group in groups:
        sides[_place(group.prompt_text, seed) < fraction].append(group)
    if not all(sides):
        raise SampleError(
            f"{len(groups)} prompts are too few to split off {fraction:.0%} of them; add data or set "
            "data.validation_fraction to 0"
        )
    return sides


def is_for_calibration(prompt_text: str, fraction: float, seed: int) -> bool:
    """Whether a prompt is among about `fraction` that training leaves alone, for scores to be calibrated on.

    As in `split_by_prompt` the text and the seed decide. They are taken from the other end, so that the prompts of the
    validation split stay the same whatever this fraction is, and none is in both unless the fractions exceed 1.
    """
    return fraction > 0 and _place(prompt_text, seed) >= 1.0 - fraction


def _place(prompt_text: str, seed: int) -> float:
    """The place of a prompt from 0 to 1, evenly spread over prompts."""
    digest = hashlib.sha256(f"{seed}/{normalise_prompt(prompt_text)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
