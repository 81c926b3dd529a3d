"""Computes accuracy on parts of the comparisons: by generators, prompt type, harm category and unseen generators."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from safe_rlhf_video.data.preferences import number_prompts, videos_of
from safe_rlhf_video.data.records import HARM_LABELS, PairSample, VideoSample
from safe_rlhf_video.evaluation.results import Breakdown, PartFigures, UnseenFigures
from safe_rlhf_video.stats.checks import too_few, too_few_prompts
from safe_rlhf_video.stats.intervals import share_interval

NO_HARM = "none"
UNKNOWN = "unknown"


def break_down(pairs: Sequence[PairSample], right: np.ndarray) -> Breakdown:
    """Computes accuracy in parts of the comparisons; a part with few comparisons has a reason in place of a figure.

    A comparison belongs to every harm category that either video has; to "none" if both have labels and no harm; else
    to "unknown".

    Args:
        pairs: M comparisons.
        right: (M,) credit of each.
    """
    prompts = number_prompts(pairs)

    def parts(names_of: Callable[[PairSample], Sequence[str]], expected: Sequence[str] = ()) -> tuple[PartFigures, ...]:
        rows: dict[str, list[int]] = {name: [] for name in expected}
        for row, pair in enumerate(pairs):
            for name in names_of(pair):
                rows.setdefault(name, []).append(row)
        return tuple(_judge_part(name, right[rows[name]], prompts[rows[name]]) for name in sorted(rows, key=_place))

    has_harm_labels = any(video.harm_labels for pair in pairs for video in videos_of(pair))
    return Breakdown(
        generator_pair=parts(lambda pair: (" / ".join(sorted(_generators(pair))),)),
        prompt_type=parts(lambda pair: (pair.prompt_type or UNKNOWN,)),
        harm_category=parts(_harm_categories, [_harm_name(key) for key in HARM_LABELS]) if has_harm_labels else (),
    )


def num_unseen(sample: PairSample | VideoSample, generators: Collection[str]) -> int:
    """Counts the videos that one of the generators made."""
    return sum(video.generated_from in generators for video in videos_of(sample))


def judge_unseen(pairs: Sequence[PairSample], right: np.ndarray, generators: Sequence[str]) -> UnseenFigures:
    """Computes accuracy on comparisons with videos of generators that training left out, and on the others.

    Args:
        pairs: M comparisons.
        right: (M,) credit of each.
    """
    count = np.array([num_unseen(pair, generators) for pair in pairs])
    prompts = number_prompts(pairs)
    parts = {"any": count > 0, "both": count == 2, "none": count == 0}
    return UnseenFigures(
        generators=tuple(generators),
        **{name: _judge_part(name, right[rows], prompts[rows]) for name, rows in parts.items()},
    )


def _judge_part(name: str, right: np.ndarray, prompts: np.ndarray) -> PartFigures:
    num_prompts = len(np.unique(prompts))
    reason = too_few(len(right))
    is_known = reason is None
    return PartFigures(
        name=name,
        num_comparisons=len(right),
        num_prompts=num_prompts,
        accuracy=float(right.mean()) if is_known else None,
        interval=share_interval(right, prompts) if is_known else None,
        reason=reason or too_few_prompts(num_prompts),
    )


def _generators(pair: PairSample) -> list[str]:
    return [video.generated_from or UNKNOWN for video in videos_of(pair)]


def _harm_categories(pair: PairSample) -> list[str]:
    labels = [video.harm_labels for video in videos_of(pair)]
    found = [key for key in HARM_LABELS if any(one is not None and one.get(key) for one in labels)]
    if found:
        return [_harm_name(key) for key in found]
    return [NO_HARM if all(labels) else UNKNOWN]


def _harm_name(key: str) -> str:
    return f"{HARM_LABELS[key].title}"


def _place(name: str) -> tuple[bool, int, str]:
    """Sorts S2 before S10, and the parts that are no category last."""
    code = name.split()[0]
    number = int(code[1:]) if code[:1] == "S" and code[1:].isdigit() else 0
    return name in (NO_HARM, UNKNOWN), number, name
