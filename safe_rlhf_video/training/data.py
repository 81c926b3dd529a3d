"""What a run trains on: records read, unusable ones left out and counted, validation prompts split off."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.data.preferences import PromptGroup, build_groups, keep_useful, split_by_prompt
from safe_rlhf_video.errors import SampleError, VideoDecodeError
from safe_rlhf_video.heads import DIMENSION_OF_HEAD
from safe_rlhf_video.training.config import TrainConfig


@dataclass(frozen=True)
class TrainingData:
    """Prompt groups to train on and to choose the checkpoint by, and what was left out on the way."""

    train: list[PromptGroup]
    validation: list[PromptGroup]
    dataset: PairDataset
    fingerprint: str
    notes: list[str]


def load_data(config: TrainConfig, heads: Sequence[str]) -> TrainingData:
    """Read the records, keep what the heads can learn from, split off the validation prompts.

    Raises:
        SampleError: a wrong record, or no label for one of the heads.
        VideoDecodeError: clips are missing; whether the others can be read turns out when it is their turn.
    """
    dataset = PairDataset.load(config.data.path, config.data.config_filename, config.data.video_dir)
    if not len(dataset):
        raise SampleError(f"{config.data.path}: holds no comparison; there is nothing to train on")
    groups, unused = build_groups(dataset)
    dimensions = [DIMENSION_OF_HEAD[head] for head in heads]
    for head, dimension in zip(heads, dimensions, strict=True):
        if not any(group.num_comparisons(dimension) for group in groups):
            raise SampleError(
                f"{config.data.path}: none of its {len(dataset)} comparisons has a {dimension} label, so there is "
                f"nothing to train a {head} model on"
            )
    useful = keep_useful(groups, dimensions, signs="cost" in heads and config.loss.sign > 0)
    notes = [f"{dataset.num_pairs} comparisons of {dataset.num_videos} videos for {len(groups)} prompts"]
    for name in dimensions:
        if missing_labels := unused.get(f"missing/{name}"):
            notes.append(f"{missing_labels} comparisons have no {name} label and are not used")
    if unused.get("contradictory is_safe"):
        notes.append(f"{unused['contradictory is_safe']} videos have contradictory is_safe labels, taken as unknown")
    if dropped := len(groups) - len(useful):
        notes.append(f"{dropped} prompts have no label for this model and are not used")
    kept_prompts = {group.prompt_id for group in useful}
    of_kept_prompts = sum(len(group.videos) for group in groups if group.prompt_id in kept_prompts)
    if dropped := of_kept_prompts - sum(len(group.videos) for group in useful):
        notes.append(f"{dropped} videos stand in no labelled comparison and are not used")
    if "cost" in heads:
        unknown = sum(int((group.safety_sign == 0).sum()) for group in groups)
        if unlabelled := unknown - unused.get("contradictory is_safe", 0):
            notes.append(f"{unlabelled} of {dataset.num_videos} videos have no is_safe label")
    files = [dataset.video_file(video) for group in useful for video in group.videos]
    if missing := [file for file in files if not file.is_file()]:
        raise VideoDecodeError(
            f"{missing[0]}: no such file, {len(missing)} of {len(files)} clips are missing; put them there or set "
            "data.video_dir to the folder with <prompt_id>/<video_id>.mp4"
        )
    validation: list[PromptGroup] = []
    if config.data.validation_fraction:
        useful, validation = split_by_prompt(useful, config.data.validation_fraction, config.seed)
        for dimension in dimensions:
            if not all(any(group.num_comparisons(dimension) for group in side) for side in (useful, validation)):
                raise SampleError(
                    f"{config.data.path}: too few {dimension} labels to validate on other prompts than those trained "
                    "on; add data or set data.validation_fraction to 0"
                )
    digest = hashlib.sha256()
    for group in (*useful, *validation):
        digest.update(repr((group.prompt_id, group.prompt_text, [video.video_id for video in group.videos])).encode())
        for rows in (*group.comparisons.values(), group.safety_sign):
            digest.update(rows.tobytes())
    return TrainingData(useful, validation, dataset, digest.hexdigest()[:32], notes)
