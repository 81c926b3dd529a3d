"""Loads what a run trains on: records read, unusable ones left out and counted, validation split off."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from safe_rlhf_video.data.preferences import PromptGroup, build_groups, leave_out, split_by_prompt, split_pairs
from safe_rlhf_video.data.prompt_hashes import PromptHashes, hash_prompts
from safe_rlhf_video.errors import ConfigError, SampleError, VideoDecodeError
from safe_rlhf_video.heads import DIMENSION_OF_HEAD, GRADED_HEADS, HEADS, LABEL_HEADS
from safe_rlhf_video.kinds.targets import (
    columns_of_texts,
    columns_of_videos,
    count_classes,
    weigh_classes,
    weigh_targets,
)
from safe_rlhf_video.training.config import TrainConfig
from safe_rlhf_video.training.corpus import Corpus, hold_out_prompts, leave_out_generators, read_corpus
from safe_rlhf_video.training.lessons import Lessons, lessons_of
from safe_rlhf_video.video.frame_store import FrameStore
from safe_rlhf_video.wording import with_article, words

NUM_HASHED = 64


@dataclass(frozen=True)
class TrainingData:
    """Prompt groups to train on and to choose the checkpoint by, and what was left out on the way.

    Attributes:
        clip_files: name of a video -> its clip; text responses have none.
        frame_store: where clips are read from in place of their files, if there is one.
        fingerprint: identifies all that the weights depend on.
        notes: lines for the user.
        class_weights: each head of a label that is trained -> what a video of each class weighs in its loss.
        sign_labels: number of safe and of unsafe videos in `train` that give a cost its zero; None without a cost.
        prompts: hashes of the prompts in `train` and `validation`.
    """

    train: list[PromptGroup]
    validation: list[PromptGroup]
    clip_files: Mapping[str, Path]
    frame_store: FrameStore | None
    fingerprint: str
    notes: list[str]
    class_weights: Mapping[str, tuple[float, ...]]
    prompts: PromptHashes
    sign_labels: tuple[int, int] | None = None


def load_data(config: TrainConfig, heads: Sequence[str]) -> TrainingData:
    """Loads what some heads learn from; every step that leaves something out says so in a note.

    Raises:
        SampleError: a wrong record, an unknown generator, or no label for one of the heads.
        VideoDecodeError: clips are missing or in quarantine; whether the others can be read turns out when it is their
            turn.
        ConfigError: the frame store holds clips of another sampling.
    """
    lessons = lessons_of(heads, config.loss)
    if lessons.labels and config.optimization.batching == "pairwise":
        raise ConfigError(
            "optimization.batching: pairwise takes comparisons alone, so that harm labels would be lost; set grouped"
        )
    corpus = read_corpus(config.data, heads)
    corpus, of_generators = leave_out_generators(corpus, config.data.leave_out_generators)
    corpus, held_out = hold_out_prompts(corpus, config.data.calibration_fraction, config.seed)
    groups, doubtful = build_groups(corpus.pairs, corpus.videos)
    useful, useless = _keep_useful(groups, lessons, corpus)
    store, useful, unreadable = _keep_readable(useful, config, lessons, corpus)
    train, validation = _split_off_validation(useful, config, lessons, corpus.name)
    train, validation, weights = _balance_classes(train, validation, lessons, config.loss.harm_balance)
    if config.optimization.batching == "pairwise":
        train = split_pairs(train, list(lessons.dimensions.values()))
    fingerprint = _fingerprint(train, validation, corpus.clip_files, store, lessons.reads_text_labels)
    return TrainingData(
        train=train,
        validation=validation,
        clip_files=corpus.clip_files,
        frame_store=store,
        fingerprint=fingerprint,
        notes=[
            *_count_records(groups, len(corpus.pairs)),
            *_count_doubtful(doubtful, lessons),
            *of_generators,
            *held_out,
            *useless,
            *(_count_unknown_signs(groups, doubtful, lessons) if "cost" in heads else ()),
            *unreadable,
        ],
        class_weights=weights,
        prompts=hash_prompts((group.prompt_text for group in (*train, *validation)), salt=fingerprint),
        sign_labels=_count_signs(train, lessons) if "cost" in heads else None,
    )


def _keep_useful(
    groups: Sequence[PromptGroup], lessons: Lessons, corpus: Corpus
) -> tuple[list[PromptGroup], list[str]]:
    """Keeps the videos that a loss term reads; there must be some for each head."""
    useful = lessons.keep(groups)
    if lacking := lessons.lacking_dimension(useful):
        head, dimension = lacking
        raise SampleError(
            f"{corpus.name}: none of its {len(corpus.pairs)} comparisons has {with_article(words(dimension))} label, "
            f"so there is nothing to train the head {head} on; {_offer_heads(groups, lessons)}"
        )
    lessons.check_classes(useful, corpus.name)
    notes = []
    if dropped := len(groups) - len(useful):
        notes.append(f"{dropped} prompts have no label for this model and are not used")
    kept_prompts = {group.prompt_id for group in useful}
    of_kept_prompts = sum(len(group.videos) for group in groups if group.prompt_id in kept_prompts)
    if dropped := of_kept_prompts - sum(len(group.videos) for group in useful):
        notes.append(f"{dropped} videos are in no labelled comparison and are not used")
    return useful, notes


def _offer_heads(groups: Sequence[PromptGroup], lessons: Lessons) -> str:
    """Says which heads could be trained in the place of those that have no label."""
    labelled = [head for head, dimension in DIMENSION_OF_HEAD.items() if any(g.num_labels(dimension) for g in groups)]
    heads = [*labelled, *lessons.labels]
    return f"it has labels for heads: [{', '.join(heads)}]" if heads else "give other data"


def _keep_readable(
    groups: list[PromptGroup], config: TrainConfig, lessons: Lessons, corpus: Corpus
) -> tuple[FrameStore | None, list[PromptGroup], list[str]]:
    """Leaves out the quarantine of the frame store; without a store, the files of all clips must be there."""
    names = [video.name for group in groups for video in group.videos if video.response_text is None]
    if not config.data.frame_store:
        _check_files([corpus.clip_files[name] for name in names])
        return None, groups, []
    store = FrameStore.open(config.data.frame_store, config.sampling)
    store.check_clips({name: corpus.clip_files[name] for name in names})
    notes = []
    if bad := {name for name in names if name in store.quarantined}:
        kept = leave_out(groups, bad)
        lost = f"{len(bad)} of its clips cannot be read, which costs {_count_lost(groups, kept, bad)}"
        if config.data.unreadable == "refuse":
            reason = store.quarantined[min(bad)].split(";")[0]
            raise VideoDecodeError(
                f"{config.data.frame_store}: {lost}; the first is {min(bad)} ({reason}); see quarantine.jsonl in it, "
                "replace the clips and run scripts/prepare_videos.py again, or set data.unreadable to drop"
            )
        notes.append(f"{config.data.frame_store}: {lost}")
        groups = kept
    if names:
        notes.append(f"clips are read from the frame store {config.data.frame_store}, none is decoded")
    groups = lessons.keep(groups)
    if lacking := lessons.lacking_dimension(groups):
        raise SampleError(f"{corpus.name}: no {lacking[1]} label is left without the clips in quarantine; replace them")
    return store, groups, notes


def _check_files(files: Sequence[Path]) -> None:
    if missing := [file for file in files if not file.is_file()]:
        raise VideoDecodeError(
            f"{missing[0]}: no such file, {len(missing)} of {len(files)} clips are missing; put them there or set "
            "data.video_dir to the folder with <prompt_id>/<video_id>.mp4"
        )


def _count_lost(groups: Sequence[PromptGroup], kept: Sequence[PromptGroup], bad: set[str]) -> str:
    """The labels that go with some clips."""
    lost = []
    for name in groups[0].comparisons:
        before, after = (sum(group.num_labels(name) for group in side) for side in (groups, kept))
        if before:
            lost.append(f"{before - after} of {before} {name} comparisons")
    rows = [(group, row) for group in groups for row, video in enumerate(group.videos) if video.name in bad]
    if signs := sum(bool(group.safety_sign[row]) for group, row in rows):
        lost.append(f"{signs} is_safe labels")
    if harms := sum(bool(group.harm_targets[row].any()) for group, row in rows):
        lost.append(f"the harm labels of {harms}")
    return ", ".join(lost)


def _split_off_validation(
    groups: list[PromptGroup], config: TrainConfig, lessons: Lessons, where: str
) -> tuple[list[PromptGroup], list[PromptGroup]]:
    """Splits by prompt; both sides must have comparisons of every dimension, and training all classes of labels."""
    train, validation = groups, list[PromptGroup]()
    if config.data.validation_fraction:
        train, validation = split_by_prompt(groups, config.data.validation_fraction, config.seed)
        if lacking := lessons.lacking_dimension(train) or lessons.lacking_dimension(validation):
            raise SampleError(
                f"{where}: too few {lacking[1]} labels to validate on other prompts than those trained on; add data or "
                "set data.validation_fraction to 0"
            )
    # Without the clips in quarantine and those to validate on, a class may be gone.
    lessons.check_classes(train, where)
    return train, validation


def _balance_classes(
    train: list[PromptGroup], validation: list[PromptGroup], lessons: Lessons, power: float
) -> tuple[list[PromptGroup], list[PromptGroup], dict[str, tuple[float, ...]]]:
    """Weighs the classes of labels by how rare they are in training."""
    if not lessons.labels:
        return train, validation, {}
    weights = class_weights(train, power)
    trained = {head: tuple(weights[head].tolist()) for head in lessons.labels}
    return weigh_labels(train, weights), weigh_labels(validation, weights), trained


def class_weights(groups: Sequence[PromptGroup], power: float) -> dict[str, np.ndarray]:
    """Computes what a video of each class weighs in the loss of each label: head -> (C,), see `weigh_classes`."""
    targets = np.concatenate([group.harm_targets for group in groups])
    return {head: weigh_classes(count_classes(head, targets), power) for head in LABEL_HEADS}


def weigh_labels(groups: Sequence[PromptGroup], weights: Mapping[str, np.ndarray]) -> list[PromptGroup]:
    """The groups with these weights in place of 1 in their label targets."""
    return [replace(group, harm_targets=weigh_targets(group.harm_targets, weights)) for group in groups]


def _count_records(groups: Sequence[PromptGroup], num_pairs: int) -> list[str]:
    videos = [video for group in groups for video in group.videos]
    num_texts = sum(video.response_text is not None for video in videos)
    counts = ((len(videos) - num_texts, "videos"), (num_texts, "texts"))
    what = " and ".join(f"{count} {name}" for count, name in counts if count)
    return [f"{num_pairs} comparisons of {what} for {len(groups)} prompts"]


def _count_doubtful(doubtful: Mapping[str, int], lessons: Lessons) -> list[str]:
    """What is missing, tied or contradictory, as `build_groups` counts it."""
    notes = []
    for name in lessons.dimensions.values():
        if missing_labels := doubtful.get(f"missing/{name}"):
            notes.append(f"{missing_labels} comparisons have no {name} label and are not used")
        if ties := doubtful.get(f"ties/{name}"):
            fate = (
                "and train the ties loss" if lessons.ties else "and are not used; loss.ties rao_kupper would use them"
            )
            notes.append(f"{ties} comparisons are ties in {name} {fate}")
    for label in ("is_safe", *(HEADS[head].key for head in GRADED_HEADS)):
        if count := doubtful.get(f"contradictory {label}"):
            notes.append(f"{count} videos have contradictory {label} labels, taken as unknown")
    return notes


def _count_signs(groups: Sequence[PromptGroup], lessons: Lessons) -> tuple[int, int]:
    """Numbers of safe and of unsafe videos that the loss of the cost's sign reads; none where it is off."""
    if not lessons.signs:
        return 0, 0
    signs = {video.name: sign for group in groups for video, sign in zip(group.videos, group.safety_sign, strict=True)}
    # Whole numbers of Python: model.json holds them, and JSON knows none of numpy's.
    return sum(int(sign > 0) for sign in signs.values()), sum(int(sign < 0) for sign in signs.values())


def _count_unknown_signs(groups: Sequence[PromptGroup], doubtful: Mapping[str, int], lessons: Lessons) -> list[str]:
    unknown = sum(int((group.safety_sign == 0).sum()) for group in groups)
    unlabelled = unknown - doubtful.get("contradictory is_safe", 0)
    num_videos = sum(len(group.videos) for group in groups)
    if unknown == num_videos or not lessons.signs:
        why = "loss.sign is 0" if unknown < num_videos else "no video has an is_safe label"
        return [f"{why}: the cost learns to order clips, but not where zero is, so is_safe of its scores means nothing"]
    return [f"{unlabelled} of {num_videos} videos have no is_safe label"] if unlabelled else []


def _contents(
    names: Sequence[str], clip_files: Mapping[str, Path], store: FrameStore | None
) -> Iterator[tuple[int | None, str]]:
    """Size of each clip's file, and SHA-256 for NUM_HASHED of them: to read all would take minutes of a network disk.

    Another data set with the same names has other sizes, and a store knows both of the files that it was made from.
    """
    by_chance = sorted(names, key=lambda name: hashlib.sha256(name.encode(errors="surrogatepass")).digest())
    hashed = set(by_chance[:NUM_HASHED])
    for name in names:
        if store is not None:
            size, sha256 = store.file_of(name)
            yield size, sha256 if name in hashed else ""
            continue
        try:
            size, sha256 = os.path.getsize(clip_files[name]), ""
            if name in hashed:
                with clip_files[name].open("rb") as file:
                    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise VideoDecodeError(
                f"{clip_files[name]}: cannot be read ({error.strerror}); give access to it"
            ) from error
        yield size, sha256


def _fingerprint(
    train: Sequence[PromptGroup],
    validation: Sequence[PromptGroup],
    clip_files: Mapping[str, Path],
    store: FrameStore | None,
    with_text_labels: bool,
) -> str:
    columns = [columns_of_videos(), *([columns_of_texts()] if with_text_labels else [])]
    digest = hashlib.sha256()
    for group in (*train, *validation):
        contents = [(video.video_id, video.response_text) for video in group.videos]
        digest.update(repr((group.prompt_id, group.prompt_text, contents)).encode())
        labels = [group.harm_targets[:, one] for one in columns]
        for rows in (*group.comparisons.values(), *group.ties.values(), group.safety_sign, *labels):
            digest.update(rows.tobytes())
    groups = (*train, *validation)
    names = {video.name for group in groups for video in group.videos if video.response_text is None}
    for size, sha256 in _contents(sorted(names), clip_files, store):
        digest.update(f"{size} {sha256}".encode())
    # Decoded frames and raw stored ones are the same; JPEG changes them.
    if store is not None and store.codec_name != "raw":
        digest.update(store.codec_name.encode())
    return digest.hexdigest()[:32]
