"""What a run trains on: records read, unusable ones left out and counted, validation and calibration split off."""

from __future__ import annotations

import filecmp
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from safe_rlhf_video.data.datasets import PairDataset, PromptDataset, load_any
from safe_rlhf_video.data.preferences import (
    PromptGroup,
    build_groups,
    is_for_calibration,
    keep_useful,
    leave_out,
    names_of_generators,
    split_by_prompt,
    split_pairs,
)
from safe_rlhf_video.data.records import VIDEO_NAMES, PairSample, VideoSample, contradicts_severity
from safe_rlhf_video.errors import ConfigError, SampleError, VideoDecodeError
from safe_rlhf_video.heads import DIMENSION_OF_HEAD, HEADS, LABEL_HEADS, ORDINAL_HEADS
from safe_rlhf_video.kinds.targets import (
    NUM_LABEL_COLUMNS,
    classes_of,
    count_classes,
    label_columns,
    weigh_classes,
    weigh_targets,
)
from safe_rlhf_video.training.config import DataConfig, TrainConfig
from safe_rlhf_video.video.frame_store import FrameStore


@dataclass(frozen=True)
class TrainingData:
    """Prompt groups to train on and to choose the checkpoint by, and what was left out on the way.

    Attributes:
        clip_files: name of a video -> its clip; text responses have none.
        frame_store: where clips are read from in place of their files, if there is one.
        fingerprint: identifies all that the weights depend on.
        notes: lines for the user.
        class_weights: each head of a label that is trained -> what a video of each class weighs in its loss.
    """

    train: list[PromptGroup]
    validation: list[PromptGroup]
    clip_files: Mapping[str, Path]
    frame_store: FrameStore | None
    fingerprint: str
    notes: list[str]
    class_weights: Mapping[str, tuple[float, ...]]


def load_data(config: TrainConfig, heads: Sequence[str]) -> TrainingData:
    """Read the records, leave out generators and calibration prompts, keep what heads learn from, split off validation.

    Raises:
        SampleError: a wrong record, an unknown generator, or no label for one of the heads.
        VideoDecodeError: clips are missing or in quarantine; whether the others can be read turns out when it is their
            turn.
        ConfigError: the frame store holds clips of another sampling.
    """
    where = ", ".join(config.data.paths)
    records, labelled, clip_files = _load_records(config.data, bool(set(ORDINAL_HEADS) & set(heads)))
    records, labelled, notes_of_generators = _without_generators(records, labelled, config.data, where)
    fraction = config.data.calibration_fraction
    is_out = partial(is_for_calibration, fraction=fraction, seed=config.seed)
    pairs = [pair for pair in records if not is_out(pair.prompt_text)]
    videos = [video for video in labelled if not is_out(video.prompt_text)]
    num_held_out = len(records) - len(pairs) + len(labelled) - len(videos)
    if fraction and not (num_held_out and (pairs or videos)):
        raise SampleError(
            f"{where}: has too few prompts to hold out {fraction:.0%} of them; add data or set "
            "data.calibration_fraction to 0"
        )
    groups, unused = build_groups(pairs, videos)
    dimension_of = {head: DIMENSION_OF_HEAD[head] for head in heads if head in DIMENSION_OF_HEAD}
    dimensions, label_heads = list(dimension_of.values()), [head for head in heads if head in LABEL_HEADS]
    if label_heads and config.optimization.batching == "pairwise":
        raise ConfigError(
            "optimization.batching: pairwise takes comparisons alone, so that harm labels would be lost; set grouped"
        )
    with_ties = config.loss.ties == "rao_kupper"
    learnable = partial(
        keep_useful,
        dimensions=dimensions,
        signs="cost" in heads and config.loss.sign > 0,
        ties=with_ties,
        labels=_useful_columns(label_heads),
    )
    useful = learnable(groups)
    for head, dimension in dimension_of.items():
        if not any(group.num_labels(dimension) for group in useful):
            raise SampleError(
                f"{where}: none of its {len(pairs)} comparisons has a {dimension} label, so there is nothing to train "
                f"a {head} model on"
            )
    _check_label_classes(useful, label_heads, where)
    notes = _describe_labels(groups, unused, len(pairs), dimensions, with_ties) + notes_of_generators
    if num_held_out:
        notes.append(f"{num_held_out} further records are held out for calibration")
    kept_prompts = {group.prompt_id for group in useful}
    if dropped := len(groups) - len(useful):
        notes.append(f"{dropped} prompts have no label for this model and are not used")
    of_kept_prompts = sum(len(group.videos) for group in groups if group.prompt_id in kept_prompts)
    if dropped := of_kept_prompts - sum(len(group.videos) for group in useful):
        notes.append(f"{dropped} videos stand in no labelled comparison and are not used")
    if "cost" in heads:
        unknown = sum(int((group.safety_sign == 0).sum()) for group in groups)
        if unlabelled := unknown - unused.get("contradictory is_safe", 0):
            notes.append(f"{unlabelled} of {sum(len(group.videos) for group in groups)} videos have no is_safe label")

    store = FrameStore.open(config.data.frame_store, config.sampling) if config.data.frame_store else None
    names = [video.name for group in useful for video in group.videos if video.response_text is None]
    if store is None:
        _check_files([clip_files[name] for name in names])
    else:
        store.check_clips({name: clip_files[name] for name in names})
        useful = learnable(_without_quarantined(useful, store, config.data, notes))
        if names:
            notes.append(f"clips are read from the frame store {config.data.frame_store}, none is decoded")

    for dimension in dimensions:
        if not any(group.num_labels(dimension) for group in useful):
            raise SampleError(f"{where}: no {dimension} label is left without the clips in quarantine; replace them")
    validation: list[PromptGroup] = []
    if config.data.validation_fraction:
        useful, validation = split_by_prompt(useful, config.data.validation_fraction, config.seed)
        for dimension in dimensions:
            sides = (useful, validation)
            if not all(any(group.num_labels(dimension) for group in side) for side in sides):
                raise SampleError(
                    f"{where}: too few {dimension} labels to validate on other prompts than those trained on; add data "
                    "or set data.validation_fraction to 0"
                )
        _check_label_classes(useful, label_heads, where)
    weights: dict[str, np.ndarray] = {}
    if label_heads:
        weights = class_weights(useful, config.loss.harm_balance)
        useful, validation = (weigh_labels(side, weights) for side in (useful, validation))
    if config.optimization.batching == "pairwise":
        useful = split_pairs(useful, dimensions)
    fingerprint = _fingerprint(useful, validation, store, any(HEADS[head].judges == "text" for head in label_heads))
    trained = {head: tuple(weights[head].tolist()) for head in label_heads}
    return TrainingData(useful, validation, clip_files, store, fingerprint, notes, trained)


def _columns(about: Callable[[str], bool]) -> list[int]:
    """Columns of the label targets of what is about videos, or texts, or both."""
    return [
        column
        for head in LABEL_HEADS
        if about(HEADS[head].judges)
        for column in range(NUM_LABEL_COLUMNS)[label_columns(head)]
    ]


def _useful_columns(heads: Sequence[str]) -> list[int]:
    """Columns whose labels make a video worth reading: all labels of videos, or of texts, or both."""
    judged = {HEADS[head].judges for head in heads}
    of_videos = _columns(lambda judges: judges != "text") if judged - {"text"} else []
    return of_videos + (_columns(lambda judges: judges == "text") if "text" in judged else [])


def _check_label_classes(groups: Sequence[PromptGroup], heads: Sequence[str], where: str) -> None:
    """A head that has seen one answer alone would give it to everything."""
    if not heads:
        return
    targets = np.concatenate([np.zeros((0, NUM_LABEL_COLUMNS)), *(group.harm_targets for group in groups)])
    lacking: dict[str, str] = {}
    for head in heads:
        names = classes_of(head)
        missing = [name for name, count in zip(names, count_classes(head, targets), strict=True) if not count]
        if missing:
            lacking[head] = f"{head} ({', '.join(missing)})"
    if lacking:
        rest = [head for head in heads if head not in lacking]
        raise SampleError(
            f"{where}: no training example of {', '.join(lacking.values())}, so these heads cannot learn what it looks "
            f"like; add data, or leave them out (heads: [{', '.join(rest)}])"
        )


def class_weights(groups: Sequence[PromptGroup], power: float) -> dict[str, np.ndarray]:
    """What a video of each class weighs in the loss of each label: head -> (C,), see `weigh_classes`."""
    targets = np.concatenate([group.harm_targets for group in groups])
    return {head: weigh_classes(count_classes(head, targets), power) for head in LABEL_HEADS}


def weigh_labels(groups: Sequence[PromptGroup], weights: Mapping[str, np.ndarray]) -> list[PromptGroup]:
    """The groups with these weights in place of 1 in their label targets."""
    return [replace(group, harm_targets=weigh_targets(group.harm_targets, weights)) for group in groups]


def _load_records(
    config: DataConfig, with_severity: bool
) -> tuple[list[PairSample], list[VideoSample], dict[str, Path]]:
    """The comparisons and labelled videos of all configs, and where each video's clip lies."""
    pairs: list[PairSample] = []
    labelled: list[VideoSample] = []
    clip_files: dict[str, Path] = {}
    text_of: dict[str, tuple[str, str]] = {}
    content_of: dict[str, tuple[Path | str, str]] = {}
    for path in config.paths:
        dataset = load_any(path, config.config_filename, config.video_dir)
        if isinstance(dataset, PromptDataset):
            raise SampleError(f"{path}: holds prompts without videos; there is nothing to train on")
        ids = {pair.pair_id for pair in pairs}
        rows: Sequence[PairSample | VideoSample] = dataset.videos
        if isinstance(dataset, PairDataset):
            rows = dataset.pairs
            pairs += dataset.pairs
        else:
            labelled += dataset.videos
        for row, sample in enumerate(rows):
            text, first = text_of.setdefault(sample.prompt_id, (sample.prompt_text, path))
            if isinstance(sample, PairSample) and sample.pair_id in ids:
                raise SampleError(f"{path} row {row} field pair_id: {sample.pair_id!r} stands in an earlier config too")
            if text != sample.prompt_text:
                raise SampleError(
                    f"{path} row {row} field prompt_text: differs from that of the same prompt_id in {first}; give "
                    "different prompts different ids"
                )
            if with_severity:
                _check_severities(sample, f"{path} row {row}")
        videos = [video for video in dataset.videos if video.response_text is None]
        files = dict(zip((video.name for video in videos), dataset.video_files(videos), strict=True))
        for video in dataset.videos:
            content = files.get(video.name, video.response_text or "")
            known, first = content_of.setdefault(video.name, (content, path))
            # One name, one content: of two, only one would be seen, and labels of the other be learned with it.
            if known != content and not _is_same_clip(known, content):
                raise SampleError(
                    f"{path} video {video.name}: is another clip or text than in {first}; give different ones "
                    "different ids"
                )
        clip_files = files | clip_files
    return pairs, labelled, clip_files


def _without_generators(
    pairs: list[PairSample], labelled: list[VideoSample], config: DataConfig, where: str
) -> tuple[list[PairSample], list[VideoSample], list[str]]:
    """The records without a clip of `leave_out_generators`, and a line that counts the others."""
    unwanted = set(config.leave_out_generators)
    if not unwanted:
        return pairs, labelled, []
    videos = [*labelled, *(video for pair in pairs for video in (pair.video_0, pair.video_1))]
    known = sorted({video.generated_from for video in videos if video.generated_from})
    if unknown := sorted(unwanted - set(known)):
        raise SampleError(
            f"data.leave_out_generators: {unknown[0]!r} made no clip of {where}; known are "
            f"{', '.join(known) or 'none, generated_from is given nowhere'}"
        )
    names = names_of_generators(videos, unwanted)
    kept = [pair for pair in pairs if pair.video_0.name not in names and pair.video_1.name not in names]
    kept_labelled = [video for video in labelled if video.name not in names]
    made_by = ", ".join(sorted(unwanted))
    if not kept and not kept_labelled:
        raise SampleError(
            f"data.leave_out_generators: every record of {where} has a clip of {made_by}; name fewer, or add data"
        )
    counts = ((len(pairs), len(kept), "comparisons"), (len(labelled), len(kept_labelled), "labelled videos"))
    lost = " and ".join(f"{before - after} of {before} {what}" for before, after, what in counts if before)
    return kept, kept_labelled, [f"{lost} have a clip of {made_by} and are left out (data.leave_out_generators)"]


def _check_severities(sample: PairSample | VideoSample, where: str) -> None:
    """A severity is of a harm: 0 exactly where a text is safe."""
    if isinstance(sample, PairSample):
        videos = {f"{name}.": video for name, video in zip(VIDEO_NAMES, (sample.video_0, sample.video_1), strict=True)}
    else:
        videos = {"": sample}
    for field, video in videos.items():
        if contradicts_severity(video.is_safe, video.severity_level):
            expected = "0" if video.is_safe else "1 to 3"
            raise SampleError(
                f"{where} field {field}severity_level: expected {expected} where is_safe is {video.is_safe}, got "
                f"{video.severity_level}; correct one of them or set it to null (convert.py saferlhf "
                "--unlabel_violations does)"
            )


def _is_same_clip(one: Path | str, other: Path | str) -> bool:
    """Whether two files are there with the same bytes."""
    if isinstance(one, str) or isinstance(other, str) or not (os.path.isfile(one) and os.path.isfile(other)):
        return False
    return filecmp.cmp(one, other, shallow=False)


def _describe_labels(
    groups: Sequence[PromptGroup],
    unused: Mapping[str, int],
    num_pairs: int,
    dimensions: Sequence[str],
    with_ties: bool,
) -> list[str]:
    videos = [video for group in groups for video in group.videos]
    num_texts = sum(video.response_text is not None for video in videos)
    what = f"{len(videos) - num_texts} videos" if num_texts < len(videos) else ""
    what += (" and " if what and num_texts else "") + (f"{num_texts} texts" if num_texts else "")
    notes = [f"{num_pairs} comparisons of {what} for {len(groups)} prompts"]
    for name in dimensions:
        if missing_labels := unused.get(f"missing/{name}"):
            notes.append(f"{missing_labels} comparisons have no {name} label and are not used")
        if ties := unused.get(f"ties/{name}"):
            fate = "and train the ties loss" if with_ties else "and are not used; loss.ties rao_kupper would use them"
            notes.append(f"{ties} comparisons are ties in {name} {fate}")
    for label in ("is_safe", *(HEADS[head].key for head in ORDINAL_HEADS)):
        if count := unused.get(f"contradictory {label}"):
            notes.append(f"{count} videos have contradictory {label} labels, taken as unknown")
    return notes


def _check_files(files: Sequence[Path]) -> None:
    if missing := [file for file in files if not file.is_file()]:
        raise VideoDecodeError(
            f"{missing[0]}: no such file, {len(missing)} of {len(files)} clips are missing; put them there or set "
            "data.video_dir to the folder with <prompt_id>/<video_id>.mp4"
        )


def _without_quarantined(
    groups: list[PromptGroup], store: FrameStore, config: DataConfig, notes: list[str]
) -> list[PromptGroup]:
    """Leave out what the store could not read, or refuse; either way the loss is counted and said."""
    bad = {video.name for group in groups for video in group.videos if video.name in store.quarantined}
    if not bad:
        return groups
    kept = leave_out(groups, bad)
    lost = []
    for name in groups[0].comparisons:
        before, after = (sum(group.num_labels(name) for group in side) for side in (groups, kept))
        if before:
            lost.append(f"{before - after} of {before} {name} comparisons")
    signs = sum(video.name in bad and sign != 0 for group in groups
                for video, sign in zip(group.videos, group.safety_sign, strict=True))  # fmt: skip
    if signs:
        lost.append(f"{signs} is_safe labels")
    harms = sum(video.name in bad and targets.any() for group in groups
                for video, targets in zip(group.videos, group.harm_targets, strict=True))  # fmt: skip
    if harms:
        lost.append(f"the harm labels of {harms}")
    summary = f"{len(bad)} of its clips cannot be read, which costs {', '.join(lost)}"
    if config.unreadable == "refuse":
        first = min(bad)
        raise VideoDecodeError(
            f"{config.frame_store}: {summary}; the first is {first} ({store.quarantined[first].split(';')[0]}); see "
            "quarantine.jsonl in it, replace the clips and run scripts/prepare_videos.py again, or set data.unreadable "
            "to drop"
        )
    notes.append(f"{config.frame_store}: {summary}")
    return kept


def _fingerprint(
    train: Sequence[PromptGroup],
    validation: Sequence[PromptGroup],
    store: FrameStore | None,
    with_text_labels: bool,
) -> str:
    read = [_columns(lambda judges: judges != "text")]
    if with_text_labels:
        read.append(_columns(lambda judges: judges == "text"))
    digest = hashlib.sha256()
    for group in (*train, *validation):
        contents = [(video.video_id, video.response_text) for video in group.videos]
        digest.update(repr((group.prompt_id, group.prompt_text, contents)).encode())
        labels = [group.harm_targets[:, columns] for columns in read]
        for rows in (*group.comparisons.values(), *group.ties.values(), group.safety_sign, *labels):
            digest.update(rows.tobytes())
    # Decoded frames and raw stored ones are the same; JPEG changes them.
    if store is not None and store.codec_name != "raw":
        digest.update(store.codec_name.encode())
    return digest.hexdigest()[:32]
