"""Where a model is right and where it is not: by generators, seen in training or not, prompt type and harm category."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from safe_rlhf_video.data.preferences import videos_of
from safe_rlhf_video.data.records import HARM_LABELS, PairSample, VideoSample
from safe_rlhf_video.stats.metrics import MIN_COMPARISONS, mean_interval, sign_accuracy, too_few

NO_HARM = "none"
UNKNOWN = "unknown"


def break_down(pairs: Sequence[PairSample], right: np.ndarray, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Accuracy in parts of the comparisons, each with its count and interval.

    Args:
        pairs: M comparisons.
        right: (M,) credit of each.
        seed: of the bootstrap.

    Returns:
        `generator_pair`, `prompt_type` and `harm_category` -> parts, each `name`, `num_comparisons`, `num_prompts`,
        `accuracy`, `interval`, `reason`. A comparison is in every harm category that either of its videos has, so that
        these overlap; it is in "none" if both have labels and no harm, else in "unknown". A part with few comparisons
        has no figure, but a reason.
    """
    prompts = np.array([pair.prompt_id for pair in pairs])

    def parts(names_of: Callable[[PairSample], Sequence[str]], expected: Sequence[str] = ()) -> list[dict[str, Any]]:
        rows: dict[str, list[int]] = {name: [] for name in expected}
        for row, pair in enumerate(pairs):
            for name in names_of(pair):
                rows.setdefault(name, []).append(row)
        return [_judge_part(name, right[rows[name]], prompts[rows[name]], seed) for name in sorted(rows, key=_place)]

    has_harm_labels = any(video.harm_labels for pair in pairs for video in (pair.video_0, pair.video_1))
    return {
        "generator_pair": parts(lambda pair: (" / ".join(sorted(_generators(pair))),)),
        "prompt_type": parts(lambda pair: (pair.prompt_type or UNKNOWN,)),
        "harm_category": parts(_harm_categories, [_harm_name(key) for key in HARM_LABELS]) if has_harm_labels else [],
    }


def num_unseen(sample: PairSample | VideoSample, generators: Collection[str]) -> int:
    """How many of the videos one of the generators made."""
    return sum(video.generated_from in generators for video in videos_of(sample))


def judge_unseen(
    pairs: Sequence[PairSample], right: np.ndarray, generators: Sequence[str], seed: int
) -> dict[str, Any]:
    """Accuracy on comparisons with videos of generators that training did not see, and on those without.

    Args:
        pairs: M comparisons.
        right: (M,) credit of each.

    Returns:
        `generators`, and the parts `any` (one of the videos, or both), `both` and `none`, as in `break_down`.
    """
    count = np.array([num_unseen(pair, generators) for pair in pairs])
    prompts = np.array([pair.prompt_id for pair in pairs])
    rows = {"any": count > 0, "both": count == 2, "none": count == 0}
    parts = {name: _judge_part(name, right[chosen], prompts[chosen], seed) for name, chosen in rows.items()}
    return {"generators": list(generators), **parts}


def judge_unseen_signs(
    costs: np.ndarray, signs: np.ndarray, made_by: Sequence[str | None], prompts: np.ndarray, generators: Sequence[str],
    seed: int,
) -> dict[str, Any]:  # fmt: skip
    """The cost's sign on videos of generators that training did not see, and on the others.

    Args:
        costs, signs: (N,) costs and safety signs, 0 where unknown.
        made_by: N generators.
        prompts: (N,) prompt ids.

    Returns:
        `generators`, and for `unseen` and `seen` the figures of `sign_accuracy`, an `interval` of the accuracy and a
        `reason` where these are null.
    """
    is_unseen = np.array([name in generators for name in made_by])
    right = np.where(costs == 0, 0.5, (costs > 0) == (signs < 0))
    result: dict[str, Any] = {"generators": list(generators)}
    for name, chosen in (("unseen", is_unseen), ("seen", ~is_unseen)):
        known = chosen & (signs != 0)
        num, num_prompts = int(known.sum()), len(np.unique(prompts[known]))
        is_known = num >= MIN_COMPARISONS
        has_interval = is_known and num_prompts > 1
        result[name] = {
            **sign_accuracy(costs[known], signs[known])._asdict(),
            **({} if is_known else {"accuracy": None, "balanced_accuracy": None}),
            "interval": list(mean_interval(right[known], prompts[known], seed=seed)) if has_interval else None,
            "num_prompts": num_prompts,
            "reason": None if is_known else f"{num} videos with a label, fewer than {MIN_COMPARISONS}",
        }
    return result


def _judge_part(name: str, right: np.ndarray, prompts: np.ndarray, seed: int) -> dict[str, Any]:
    num_prompts = len(np.unique(prompts))
    reason = too_few(len(right))
    is_known = reason is None
    if is_known and num_prompts < 2:
        reason = "one prompt alone has no interval"
    return {
        "name": name,
        "num_comparisons": len(right),
        "num_prompts": num_prompts,
        "accuracy": float(right.mean()) if is_known else None,
        "interval": list(mean_interval(right, prompts, seed=seed)) if reason is None else None,
        "reason": reason,
    }


def _generators(pair: PairSample) -> list[str]:
    return [video.generated_from or UNKNOWN for video in (pair.video_0, pair.video_1)]


def _harm_categories(pair: PairSample) -> list[str]:
    labels = [video.harm_labels for video in (pair.video_0, pair.video_1)]
    found = [key for key in HARM_LABELS if any(one is not None and one.get(key) for one in labels)]
    if found:
        return [_harm_name(key) for key in found]
    return [NO_HARM if all(labels) else UNKNOWN]


def _harm_name(key: str) -> str:
    return f"{HARM_LABELS[key].title}"


def _place(name: str) -> tuple[bool, int, str]:
    """S2 before S10, and what is no category at the end."""
    code = name.split()[0]
    number = int(code[1:]) if code[:1] == "S" and code[1:].isdigit() else 0
    return name in (NO_HARM, UNKNOWN), number, name
