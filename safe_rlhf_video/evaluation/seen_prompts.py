"""Counts the evaluated prompts that a model has seen, and marks the figures that are in-sample for it.

A model folder keeps hashes of the prompts that it was trained and calibrated on (`data.prompt_hashes`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from safe_rlhf_video.calibration.store import read_calibration
from safe_rlhf_video.data.preferences import normalise_prompt
from safe_rlhf_video.data.prompt_hashes import read_trained_prompts
from safe_rlhf_video.evaluation.results import Evaluation, SeenPrompts
from safe_rlhf_video.heads import HEAD_OF_DIMENSION, HEAD_OF_LABEL
from safe_rlhf_video.models.record import read_record, resolve_model_folder

MARK = "*"
"""Beside every figure that is in-sample."""


def count_seen(folder: str | Path, prompts: Sequence[str]) -> SeenPrompts:
    """Counts the prompts that a model folder was trained and calibrated on.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    own = resolve_model_folder(folder)
    trained, calibration = read_trained_prompts(own), read_calibration(own)
    texts = set(map(normalise_prompt, prompts))
    return SeenPrompts(
        heads=tuple(head for heads in read_record(own).heads_of_adapter.values() for head in heads),
        num_prompts=len(texts),
        num_trained=None if trained is None else len(trained.among(texts)),
        num_calibrated=0 if calibration.prompts is None else len(calibration.prompts.among(texts)),
    )


def describe_seen(seen: Mapping[str, SeenPrompts]) -> list[str]:
    """A line for each model folder that saw prompts of the data, and one that names those that do not say."""
    folders: dict[str, list[str]] = {}
    for folder, one in seen.items():
        for text in say_seen(one):
            folders.setdefault(text, []).append(folder)
    return [f"{', '.join(names)}: {text}" for text, names in folders.items()]


def say_seen(seen: SeenPrompts) -> Iterator[str]:
    """Says what a model saw of the data, if anything, and what cannot be checked."""
    if seen.num_trained is None:
        yield "cannot be checked for training on these prompts, without a prompts.json in the model folder"
    found = {"trained": seen.num_trained, "calibrated": seen.num_calibrated}
    if text := " and ".join(f"{how} on {num}" for how, num in found.items() if num):
        yield f"in-sample, {text} of the {seen.num_prompts} prompts"


def mark_in_sample(evaluation: Evaluation, seen: Mapping[str, SeenPrompts], compared: Sequence[str]) -> dict[str, str]:
    """Names the figures of an evaluation that are in-sample: place in evaluation.json -> why.

    What a head was trained on touches all of its figures; what it was calibrated on touches its probabilities, its
    threshold of ties and its flags.

    Args:
        seen: model folder -> counts, of the evaluated, compared and control models.
        compared: the folders of the other model.
    """
    own = {folder: one for folder, one in seen.items() if folder in evaluation.models}
    marks: dict[str, str] = {}
    for dimension, figures in evaluation.dimensions.items():
        head = HEAD_OF_DIMENSION[dimension]
        if figures is not None:
            marks |= _trained(dimension, head, own)
            if figures.calibration.is_calibrated:
                marks |= _calibrated(f"{dimension}.calibration", head, own)
            if figures.tie_aware.threshold is not None:
                marks |= _calibrated(f"{dimension}.tie_aware", head, own)
        if dimension in (evaluation.comparison or {}):
            others = {folder: one for folder, one in seen.items() if folder in compared}
            marks |= _trained(f"comparison.{dimension}", head, {**own, **others})
    if evaluation.cost_sign is not None:
        marks |= _trained("cost_sign", "cost", own)
    if evaluation.moderation is not None:
        for label in evaluation.moderation.labels:
            place, head = f"moderation.labels.{label}", HEAD_OF_LABEL[label]
            marks |= _calibrated(place, head, own) | _trained(place, head, own)
        for head, graded in evaluation.moderation.graded.items():
            marks |= _trained(f"moderation.{head}", head, own) if graded else {}
    return marks


def in_sample_heads(seen: Mapping[str, SeenPrompts]) -> dict[str, str]:
    """The reward and the cost, as far as either saw the prompts -> why its scores are in-sample."""
    return _trained("reward", "reward", seen) | _trained("cost", "cost", seen)


def in_sample_multiplier(seen: Mapping[str, SeenPrompts]) -> dict[str, str]:
    """The calibrated multiplier, if prompts that a model was calibrated on are judged by it -> why it is in-sample."""
    counts = {folder: one.num_calibrated for folder, one in seen.items()}
    return _mark("lagrange_multiplier", "calibrated", counts, seen)


def _trained(place: str, head: str, seen: Mapping[str, SeenPrompts]) -> dict[str, str]:
    return _mark(
        place, "trained", {folder: one.num_trained or 0 for folder, one in seen.items() if head in one.heads}, seen
    )


def _calibrated(place: str, head: str, seen: Mapping[str, SeenPrompts]) -> dict[str, str]:
    counts = {folder: one.num_calibrated for folder, one in seen.items() if head in one.heads}
    return _mark(place, "calibrated", counts, seen)


def _mark(place: str, how: str, counts: Mapping[str, int], seen: Mapping[str, SeenPrompts]) -> dict[str, str]:
    told = [
        f"{folder} was {how} on {num} of {seen[folder].num_prompts} prompts" for folder, num in counts.items() if num
    ]
    return {place: "; ".join(told)} if told else {}
