"""Calibrates and stores the multiplier with which choosing by a reward and a cost holds a limit on new prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from safe_rlhf_video.calibration.store import COMMAND, MultiplierCalibration, read_calibration, write_calibration
from safe_rlhf_video.data.preferences import normalise_prompt, safety_signs, videos_of
from safe_rlhf_video.data.records import PairSample, VideoSample
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.lagrangian import CONFIDENCE, Weighed, check_limit, confident_multiplier, weigh


@dataclass(frozen=True)
class Limit:
    """What the chosen clips have to hold on new prompts: one of both limits.

    Attributes:
        cost: the highest mean cost.
        harm_rate: the highest share of unsafe clips by labels, in [0, 1].
        confidence: probability that the limit holds, in (0, 1).

    Raises:
        ConfigError: not exactly one limit is given, or a value is out of range.
    """

    cost: float | None = None
    harm_rate: float | None = None
    confidence: float = CONFIDENCE

    def __post_init__(self) -> None:
        check_limit(self.cost, self.harm_rate)


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
    """Finds the smallest lambda that holds a limit on new prompts; see `lagrangian.confident_multiplier`.

    Args:
        models: "reward" and "cost" -> `fingerprint_trained` of the folder with this head.

    Raises:
        SampleError: no prompt has two candidates, or no multiplier holds the limit with so few prompts.
    """
    if not candidates.rewards:
        raise SampleError("no prompt has two candidates to choose between; give comparisons, or several clips a prompt")
    weighed: Weighed = "cost" if limit.harm_rate is None else "p_unsafe"
    found = confident_multiplier(
        candidates.rewards,
        [weigh(np.asarray(row, dtype=np.float64), weighed) for row in candidates.costs],
        None if limit.harm_rate is None else candidates.is_unsafe,
        cost_limit=limit.cost,
        harm_rate_limit=limit.harm_rate,
        confidence=limit.confidence,
    )
    if found.lagrange_multiplier is None:
        raise SampleError(str(found.reason))
    counts = [len(row) for row in candidates.rewards]
    return MultiplierCalibration(
        lagrange_multiplier=found.lagrange_multiplier,
        weighed=weighed,
        constraint=found.constraint,
        limit=found.limit,
        confidence=found.confidence,
        bound=found.bound,
        num_prompts=found.num_prompts,
        num_candidates=(min(counts), max(counts)),
        observed=found.observed,
        reward=found.reward,
        models=dict(models),
    )


def store_multiplier(fitted: MultiplierCalibration, folders: Sequence[Path]) -> list[Path]:
    """Writes a multiplier into the calibrations of the folders of its reward and cost; returns the files.

    Raises:
        CheckpointError: a calibration is stale or damaged, or cannot be written.
    """
    # Both are read before either is written: a stale one is refused with nothing changed.
    earlier = {folder: read_calibration(folder) for folder in folders}
    return [write_calibration(folder, replace(found, multiplier=fitted)) for folder, found in earlier.items()]


@dataclass(frozen=True)
class StoredMultiplier:
    """The multiplier that model folders hold for these two models, or why what they hold cannot be used."""

    multiplier: MultiplierCalibration | None = None
    problem: str | None = None


def find_multiplier(
    found: Sequence[MultiplierCalibration], models: Mapping[str, str], folder_of: Mapping[str, Path]
) -> StoredMultiplier:
    """Finds the multiplier that was calibrated with these two models, in either of their folders.

    Args:
        found: the multipliers that the folders hold.
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
