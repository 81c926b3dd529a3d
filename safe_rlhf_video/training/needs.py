"""What a run needs of tokens and memory, said before its first step; no weights are loaded for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from safe_rlhf_video.data.preferences import PromptGroup
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.models.backbones import Reader
from safe_rlhf_video.models.inputs import count_text_tokens, count_video_tokens
from safe_rlhf_video.training.config import TrainConfig
from safe_rlhf_video.training.data import TrainingData
from safe_rlhf_video.training.objectives import name_some
from safe_rlhf_video.training.plan import GroupSize, divide, plan_epoch
from safe_rlhf_video.video.sampling import Sampling


@dataclass(frozen=True)
class Sizes:
    """Those of the training and of the validation groups, in order."""

    train: list[GroupSize]
    validation: list[GroupSize]


def measure_groups(reader: Reader, groups: Iterable[PromptGroup], sampling: Sampling) -> list[GroupSize]:
    """How long the inputs of each group are at most.

    Raises:
        SampleError: some are longer than the backbone takes; they are named before a step is made in vain.
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


def describe_needs(
    config: TrainConfig, heads: Sequence[str], data: TrainingData, sizes: Sizes, world_size: int
) -> list[str]:
    """Lines for the user: tokens of a micro-batch and what pads them, and memory."""
    steps = plan_epoch(data.train, config.optimization.prompts_per_step, config.seed, 0)
    budget = config.optimization.micro_batch_tokens
    shares = [
        [sizes.train[i] for i in share]
        for step in steps
        for micro_batch in divide(step.groups, sizes.train, world_size, budget)
        for share in micro_batch
        if share
    ]
    padded = [sum(size.num_videos for size in share) * max(size.num_tokens for size in share) for share in shares]
    largest = max(range(len(shares)), key=padded.__getitem__)
    videos = sum(size.num_videos for size in shares[largest])
    lines = [
        f"tokens: at most {max(size.num_tokens for size in sizes.train)} a video or text; the largest of "
        f"{len(shares) / len(steps):.1f} micro-batches a step has {padded[largest]} in {videos}"
    ]
    if budget and padded[largest] > budget:
        over = sum(count > budget for count in padded)
        lines.append(
            f"warning: {over} prompts alone have more tokens than optimization.micro_batch_tokens {budget}; each makes "
            "a micro-batch by itself"
        )
    return lines
