"""Measures how long the inputs of prompts are, from their texts and the sampling alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from safe_rlhf_video.data.preferences import PromptGroup
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.models.backbones import Reader
from safe_rlhf_video.models.inputs import count_text_tokens, count_video_tokens
from safe_rlhf_video.training.data import TrainingData
from safe_rlhf_video.training.objectives import name_some
from safe_rlhf_video.training.plan import GroupSize
from safe_rlhf_video.video.sampling import Sampling


@dataclass(frozen=True)
class Sizes:
    """Sizes of the training groups and of the validation groups, in order."""

    train: list[GroupSize]
    validation: list[GroupSize]


def measure_data(reader: Reader, data: TrainingData, sampling: Sampling) -> Sizes:
    """Measures all groups of a run; errors are those of `measure_groups`."""
    return Sizes(measure_groups(reader, data.train, sampling), measure_groups(reader, data.validation, sampling))


def measure_groups(reader: Reader, groups: Iterable[PromptGroup], sampling: Sampling) -> list[GroupSize]:
    """Computes how long the inputs of each group are at most.

    Raises:
        SampleError: some are longer than the backbone takes; the message names them before a step is made in vain.
    """
    sizes = []
    too_long = []
    for group in groups:
        of_video = count_video_tokens(reader, group.prompt_text, sampling)
        tokens = [
            of_video
            if video.response_text is None
            else count_text_tokens(reader, group.prompt_text, video.response_text)
            for video in group.videos
        ]
        too_long += [
            f"{video.name} ({count} tokens)"
            for video, count in zip(group.videos, tokens, strict=True)
            if count > reader.max_tokens
        ]
        sizes.append(GroupSize(len(tokens), max(tokens)))
    if too_long:
        raise SampleError(
            f"responses longer than the backbone takes ({reader.max_tokens} tokens): {len(too_long)}, "
            f"{name_some(too_long)}; shorten them or leave them out, or for videos lower sampling.max_pixels"
        )
    return sizes
