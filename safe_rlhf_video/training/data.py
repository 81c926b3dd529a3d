"""What a run trains on: records read, unusable ones left out and counted, validation and calibration split off."""

from __future__ import annotations

import filecmp
import hashlib
import os
from collections.abc import Mapping, Sequence
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
from safe_rlhf_video.heads import (
    DIMENSION_OF_HEAD,
    HARM_HEADS,
    LABEL_HEADS,
    NUM_LABEL_COLUMNS,
    SEVERITIES,
    SEVERITY,
    label_columns,
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
        harm_log_odds: head of a harm label -> ln of how much more a video with it weighs than one without; what its
            logits have too much.
        severity_weights: what a text of each severity weighs, (4,); empty where no severity is trained.
    """

    train: list[PromptGroup]
    validation: list[PromptGroup]
    clip_files: Mapping[str, Path]
    frame_store: FrameStore | None
    fingerprint: str
    notes: list[str]
    harm_log_odds: Mapping[str, float]
    severity_weights: list[float]


def load_data(config: TrainConfig, heads: Sequence[str]) -> TrainingData:
    """Read the records, leave out generators and calibration prompts, keep what heads learn from, split off validation.

    Raises:
        SampleError: a wrong record, an unknown generator, or no label for one of the heads.
        VideoDecodeError: clips are missing or in quarantine; whether the others can be read turns out when it is their
            turn.
        ConfigError: the frame store holds clips of another sampling.
    """
    where = ", ".join(config.data.paths)
    records, labelled, clip_files = _load_records(config.data, SEVERITY in heads)
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
    harm_log_odds: dict[str, float] = {}
    severity_weights: list[float] = []
    if label_heads:
        positive, negative = harm_weights(useful, config.loss.harm_balance)
        useful, validation = (weigh_harms(side, positive, negative) for side in (useful, validation))
        columns = {head: label_columns(head).start for head in label_heads if head != SEVERITY}
        harm_log_odds = {head: float(np.log(positive[i] / negative[i])) for head, i in columns.items()}
        severity_weights = positive[label_columns(SEVERITY)].tolist() if SEVERITY in label_heads else []
    if config.optimization.batching == "pairwise":
        useful = split_pairs(useful, dimensions)
    with_text_labels = not set(label_heads) <= set(HARM_HEADS)
    fingerprint = _fingerprint(useful, validation, store, with_text_labels)
    return TrainingData(useful, validation, clip_files, store, fingerprint, notes, harm_log_odds, severity_weights)


def _useful_columns(heads: Sequence[str]) -> list[int]:
    """Columns of `PromptGroup.harm_targets` that make a video worth reading: all of a video's or of a text's labels."""
    columns: list[int] = []
    if set(heads) & set(HARM_HEADS):
        columns += range(len(HARM_HEADS))
    if set(heads) - set(HARM_HEADS):
        columns += range(len(HARM_HEADS), NUM_LABEL_COLUMNS)
    return columns


def _check_label_classes(groups: Sequence[PromptGroup], heads: Sequence[str], where: str) -> None:
    """A head that has seen one answer alone would give it to everything."""
    if not heads:
        return
    targets = np.concatenate([np.zeros((0, NUM_LABEL_COLUMNS)), *(group.harm_targets for group in groups)])
    columns = {head: targets[:, label_columns(head)] for head in heads if head != SEVERITY}
    lacking = [head for head, known in columns.items() if not ((known > 0).any() and (known < 0).any())]
    if lacking:
        rest = [head for head in heads if head not in lacking]
        raise SampleError(
            f"{where}: no training video for which {', '.join(lacking)} applies, or none for which not, so that there "
            f"is nothing to learn; add data, or leave them out (heads: [{', '.join(rest)}])"
        )
    counts = np.count_nonzero(targets[:, label_columns(SEVERITY)], axis=0)
    if SEVERITY in heads and not counts.all():
        absent = [f"{level} ({name})" for level, name in enumerate(SEVERITIES) if not counts[level]]
        rest = [head for head in heads if head != SEVERITY]
        raise SampleError(
            f"{where}: no training text of the severity {', '.join(absent)}, so that its threshold cannot be learned; "
            f"add data, or leave the severity out (heads: [{', '.join(rest)}])"
        )


def harm_weights(groups: Sequence[PromptGroup], power: float) -> tuple[np.ndarray, np.ndarray]:
    """What a video weighs in each harm label's loss, by class.

        weight_c = (n / n_c)^power / mean weight        n_c of n videos with a known label are of class c

    A severity has four classes, its levels.

    Args:
        power: 0 to 1; 1 is the usual inverse class frequency.

    Returns:
        Weights (36,) where the label applies, and where it does not.
    """
    targets = np.concatenate([group.harm_targets for group in groups])
    counts = np.stack([np.count_nonzero(targets * sign > 0, axis=0) for sign in (1, -1)])
    positive, negative = _class_weights(counts, power)
    levels = label_columns(SEVERITY)
    positive[levels] = _class_weights(counts[0, levels], power)
    return positive, negative


def _class_weights(counts: np.ndarray, power: float) -> np.ndarray:
    """Weights (C, ...) of C classes from their counts (C, ...)."""
    known = np.maximum(counts.sum(axis=0), 1)
    weights = np.power(known / np.maximum(counts, 1), power)
    scaled: np.ndarray = weights * (known / np.maximum((counts * weights).sum(axis=0), 1e-9))
    return scaled


def weigh_harms(groups: Sequence[PromptGroup], positive: np.ndarray, negative: np.ndarray) -> list[PromptGroup]:
    """The groups with these weights in the place of 1 in their harm targets."""
    return [
        replace(
            group,
            harm_targets=np.where(group.harm_targets > 0, positive, -negative * (group.harm_targets < 0)).astype(
                np.float32
            ),
        )
        for group in groups
    ]


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
    for label in ("is_safe", "severity_level"):
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
    digest = hashlib.sha256()
    for group in (*train, *validation):
        contents = [(video.video_id, video.response_text) for video in group.videos]
        digest.update(repr((group.prompt_id, group.prompt_text, contents)).encode())
        of_video, of_text = np.split(group.harm_targets, [len(HARM_HEADS)], axis=1)
        labels = (of_video, of_text) if with_text_labels else (of_video,)
        for rows in (*group.comparisons.values(), *group.ties.values(), group.safety_sign, *labels):
            digest.update(rows.tobytes())
    # Decoded frames and raw stored ones are the same; JPEG changes them.
    if store is not None and store.codec_name != "raw":
        digest.update(store.codec_name.encode())
    return digest.hexdigest()[:32]
