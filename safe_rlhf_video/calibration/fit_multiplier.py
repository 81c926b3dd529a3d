"""The multiplier that holds a limit on new prompts, from a reward's and a cost's scores of labelled candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safe_rlhf_video.calibration.fit import (
    MultiplierCalibration,
    calibrate_multiplier,
    read_calibration,
    write_calibration,
)
from safe_rlhf_video.data.preferences import normalise_prompt, safety_signs, videos_of
from safe_rlhf_video.data.records import PairSample, VideoSample
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.models.fingerprints import fingerprint_trained
from safe_rlhf_video.models.record import read_record, resolve_model_folder


@dataclass(frozen=True)
class Candidates:
    """Prompts with two or more candidates; a row a prompt.

    Attributes:
        is_unsafe: 1 or 0; of candidates without a label, where those were not asked for, 0.
        num_unlabelled: candidates that were left out for want of a safety label, or of two that agree.
        num_single: prompts that were left out since there is nothing to choose.
    """

    rewards: list[list[float]]
    costs: list[list[float]]
    is_unsafe: list[list[int]]
    num_unlabelled: int
    num_single: int


def folders_of_choice(model_dirs: Sequence[str | Path]) -> list[tuple[str, Path]]:
    """The reward and cost heads of some model folders, each with the folder that holds model.json."""
    return [
        (head, resolve_model_folder(folder))
        for folder in model_dirs
        for heads in read_record(folder).heads_of_adapter.values()
        for head in heads
        if head in ("reward", "cost")
    ]


def group_candidates(
    samples: Sequence[PairSample | VideoSample],
    rewards: Mapping[str, float],
    costs: Mapping[str, float],
    labelled: bool,
) -> Candidates:
    """The clips of each prompt as the candidates among which one would be chosen.

    Args:
        samples: that speak of the clips.
        rewards, costs: of every clip, by name.
        labelled: leave out clips whose safety no label tells.
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
            # By its text: under two ids it would count as two draws of a prompt, which they are not.
            names.setdefault(normalise_prompt(video.prompt_text), {})[video.name] = sign
    rows = [list(row.items()) for row in names.values() if len(row) > 1]
    return Candidates(
        rewards=[[rewards[name] for name, _ in row] for row in rows],
        costs=[[costs[name] for name, _ in row] for row in rows],
        is_unsafe=[[int(sign < 0) for _, sign in row] for row in rows],
        num_unlabelled=num_unlabelled,
        num_single=len(names) - len(rows),
    )


def fit_multiplier(
    candidates: Candidates,
    folder_of: Mapping[str, Path],
    *,
    cost_limit: float | None = None,
    harm_rate_limit: float | None = None,
    confidence: float,
) -> MultiplierCalibration:
    """As `calibration.calibrate_multiplier`, for the folders of a reward and a cost.

    Args:
        folder_of: "reward" and "cost" -> the folder with model.json.

    Raises:
        SampleError: no prompt has two candidates, or no multiplier holds the limit with so few prompts.
    """
    if not candidates.rewards:
        raise SampleError("no prompt has two candidates to choose between; give comparisons, or several clips a prompt")
    return calibrate_multiplier(
        candidates.rewards,
        candidates.costs,
        {head: fingerprint_trained(folder) for head, folder in folder_of.items()},
        candidates.is_unsafe,
        cost_limit=cost_limit,
        harm_rate_limit=harm_rate_limit,
        confidence=confidence,
    )


def store_multiplier(fitted: MultiplierCalibration, folder_of: Mapping[str, Path]) -> list[Path]:
    """Write it into the calibrations of the folders of the reward and the cost; returns the files."""
    folders = dict.fromkeys(folder_of.values())
    # Both are read before either is written: a stale one is told with nothing changed.
    earlier = {folder: read_calibration(folder) for folder in folders}
    return [write_calibration(folder, replace(found, multiplier=fitted)) for folder, found in earlier.items()]
