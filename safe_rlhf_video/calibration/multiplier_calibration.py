"""Calibrates and stores the multipliers with which choosing by a reward and a cost holds a limit on new prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from safe_rlhf_video.calibration.store import (
    COMMAND,
    MultiplierCalibration,
    MultiplierOfN,
    add_prompts,
    read_calibration,
    write_calibration,
)
from safe_rlhf_video.data.preferences import normalise_prompt, safety_signs, videos_of
from safe_rlhf_video.data.records import PairSample, VideoSample
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.lagrangian import (
    CONFIDENCE,
    ConfidentMultiplier,
    Weighed,
    check_promise,
    confident_multiplier,
    weigh,
)

# A number of candidates that fewer prompts have gets no multiplier; the tests themselves ask for more.
MIN_PROMPTS = 10
# Of the draw of n candidates from prompts that have more.
DRAW_SEED = 0


@dataclass(frozen=True)
class Limit:
    """What the chosen clips have to hold on new prompts: one of both limits.

    Attributes:
        cost: the highest mean cost.
        harm_rate: the highest share of unsafe clips by labels, in [0, 1].
        confidence: 1 less the probability that a wrong multiplier is issued, in (0, 1).

    Raises:
        ConfigError: not exactly one limit is given, or a value is out of range.
    """

    cost: float | None = None
    harm_rate: float | None = None
    confidence: float = CONFIDENCE

    def __post_init__(self) -> None:
        check_promise(self.cost, self.harm_rate, self.confidence)


@dataclass(frozen=True)
class Candidates:
    """Prompts with two or more candidates; one row per prompt.

    Attributes:
        rewards, costs: scores.
        is_unsafe: 1 or 0; 0 for candidates without a label, where labels are not required.
        num_unlabelled: candidates left out because they have no safety label, or contradictory ones.
        num_single: prompts left out because they have one candidate.
    """

    rewards: Sequence[Sequence[float]]
    costs: Sequence[Sequence[float]]
    is_unsafe: Sequence[Sequence[int]]
    num_unlabelled: int = 0
    num_single: int = 0


def group_candidates(
    samples: Sequence[PairSample | VideoSample],
    rewards: Mapping[str, float],
    costs: Mapping[str, float],
    labelled: bool,
) -> Candidates:
    """Takes the clips of each prompt as the candidates of one choice.

    Args:
        samples: the records of the clips.
        rewards, costs: clip name -> score, for every clip.
        labelled: leave out clips without a safety label.
    """
    pairs = [sample for sample in samples if isinstance(sample, PairSample)]
    videos = [sample for sample in samples if isinstance(sample, VideoSample)]
    signs = safety_signs(pairs, videos)
    names: dict[str, dict[str, int]] = {}
    num_unlabelled = 0
    for video in {video.name: video for sample in samples for video in videos_of(sample)}.values():
        sign = signs[video.prompt_id, video.video_id]
        if labelled and sign == 0:
            num_unlabelled += 1
        else:
            # Keyed by the text: one prompt under two ids would count as two independent prompts.
            names.setdefault(normalise_prompt(video.prompt_text), {})[video.name] = sign
    rows = [list(row.items()) for row in names.values() if len(row) > 1]
    return Candidates(
        rewards=[[rewards[name] for name, _ in row] for row in rows],
        costs=[[costs[name] for name, _ in row] for row in rows],
        is_unsafe=[[int(sign < 0) for _, sign in row] for row in rows],
        num_unlabelled=num_unlabelled,
        num_single=len(names) - len(rows),
    )


def calibrate_multiplier(candidates: Candidates, models: Mapping[str, str], limit: Limit) -> MultiplierCalibration:
    """Finds for each number of candidates the smallest lambda that holds a limit on new prompts.

    A multiplier for best of n keeps nothing for another number: calibrated on 4 and used on 2, it breaks always. So
    each n gets its own, from 2 up to the most that `MIN_PROMPTS` prompts have. From a prompt with more candidates n are
    drawn at random, with `DRAW_SEED`. See `lagrangian.confident_multiplier`.

    Args:
        models: "reward" and "cost" -> `fingerprint_trained` of the folder with this head.

    Raises:
        SampleError: too few prompts have two candidates, or no number of candidates gets a multiplier.
    """
    counts = np.sort([len(row) for row in candidates.rewards])[::-1]
    if len(counts) < MIN_PROMPTS:
        raise SampleError(
            f"{len(counts)} prompts have two candidates to choose between, fewer than {MIN_PROMPTS}; give comparisons, "
            "or several clips a prompt"
        )
    weighed: Weighed = "cost" if limit.harm_rate is None else "p_unsafe"
    found = [_calibrate_best_of(n, candidates, weighed, limit) for n in range(2, int(counts[MIN_PROMPTS - 1]) + 1)]
    if all(one.lagrange_multiplier is None for _, one in found):
        numbers = "2" if len(found) == 1 else f"2 to {len(found) + 1}"
        raise SampleError(f"no multiplier for {numbers} candidates; of {len(found) + 1}: {found[-1][1].reason}")
    first = found[0][0]
    return MultiplierCalibration(
        weighed=weighed,
        constraint=first.constraint,
        limit=first.limit,
        confidence=first.confidence,
        bound=first.bound,
        multipliers=tuple(one for _, one in found),
        models=dict(models),
    )


def _calibrate_best_of(
    num: int, candidates: Candidates, weighed: Weighed, limit: Limit
) -> tuple[ConfidentMultiplier, MultiplierOfN]:
    random = np.random.default_rng([DRAW_SEED, num])
    places = [
        (row, random.choice(len(rewards), num, replace=False))
        for row, rewards in enumerate(candidates.rewards)
        if len(rewards) >= num
    ]
    rewards, costs, labels = (
        np.array([np.asarray(rows[row])[drawn] for row, drawn in places], dtype=np.float64)
        for rows in (candidates.rewards, candidates.costs, candidates.is_unsafe)
    )
    found = confident_multiplier(
        rewards,
        weigh(costs, weighed),
        None if limit.harm_rate is None else labels,
        cost_limit=limit.cost,
        harm_rate_limit=limit.harm_rate,
        confidence=limit.confidence,
    )
    reason = found.reason
    if reason is not None and limit.harm_rate is not None and (share := labels.all(axis=1).mean()) > limit.harm_rate:
        reason = (
            f"in {share:.1%} of {len(labels)} prompts all {num} candidates are unsafe, so that no choice keeps a "
            f"harmful rate of {limit.harm_rate:g}; choose among more"
        )
    return found, MultiplierOfN(
        num_candidates=num,
        lagrange_multiplier=found.lagrange_multiplier,
        reason=reason,
        num_prompts=found.num_prompts,
        observed=found.observed,
        reward=found.reward,
    )


def store_multiplier(fitted: MultiplierCalibration, folders: Sequence[Path], prompts: Sequence[str]) -> list[Path]:
    """Writes multipliers into the calibrations of the folders of its reward and cost; returns the files.

    Args:
        prompts: the texts that they were calibrated on.

    Raises:
        CheckpointError: a calibration is stale or damaged, or cannot be written.
    """
    # Both are read before either is written: a stale one is refused with nothing changed.
    earlier = {folder: read_calibration(folder) for folder in folders}
    return [
        write_calibration(folder, replace(add_prompts(found, folder, prompts), multiplier=fitted))
        for folder, found in earlier.items()
    ]


@dataclass(frozen=True)
class StoredMultiplier:
    """The multipliers that model folders hold for these two models, or why what they hold cannot be used."""

    multiplier: MultiplierCalibration | None = None
    problem: str | None = None


def find_multiplier(
    found: Sequence[MultiplierCalibration], models: Mapping[str, str], folder_of: Mapping[str, Path]
) -> StoredMultiplier:
    """Finds the multipliers that were calibrated with these two models, in either of their folders.

    Args:
        found: what the folders hold.
        models: "reward" and "cost" -> `fingerprint_trained` of the folder with this head.
        folder_of: likewise, the folders themselves.
    """
    fitting = [one for one in found if one.models == models]
    advice = f"run {COMMAND} with these two and a limit, or give lagrange_multiplier"
    if found and not fitting:
        head = next(head for head, name in models.items() if name != found[-1].models[head])
        return StoredMultiplier(
            problem=f"{folder_of[head]}: the stored multiplier was calibrated with another {head} model; {advice}"
        )
    if any(one != fitting[0] for one in fitting):
        return StoredMultiplier(problem=f"the folders hold two multipliers, {fitting[0]} and {fitting[1]}; {advice}")
    return StoredMultiplier(fitting[0] if fitting else None)
