"""What a run needs of tokens and memory, said before its first step; no weights are loaded for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from safe_rlhf_video.data.preferences import PromptGroup
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.models.backbones import Reader
from safe_rlhf_video.models.inputs import count_text_tokens, count_video_tokens
from safe_rlhf_video.training.config import TrainConfig
from safe_rlhf_video.training.data import TrainingData
from safe_rlhf_video.training.estimate import MicroBatch, describe_memory, estimate_run
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
    config: TrainConfig, heads: Sequence[str], reader: Reader, data: TrainingData, sizes: Sizes, world_size: int
) -> list[str]:
    """Lines for the user: tokens of an input and of a micro-batch, and an estimate of the memory they take."""
    steps = plan_epoch(data.train, config.optimization.prompts_per_step, config.seed, 0)
    budget = config.optimization.micro_batch_tokens
    micro_batches = [one for step in steps for one in divide(step.groups, sizes.train, world_size, budget)]
    shares = [share for micro_batch in micro_batches for share in micro_batch if share]
    rows = [sum(sizes.train[i].num_videos for i in share) for share in shares]
    lengths = [max(sizes.train[i].num_tokens for i in share) for share in shares]
    largest = max(range(len(shares)), key=lambda number: rows[number] * lengths[number])
    tokens = rows[largest] * lengths[largest]
    lines = [
        f"tokens: at most {max(lengths)} a video or text, {rows[largest]} of them and {tokens} tokens in the largest "
        f"micro-batch of a process, {len(micro_batches) / len(steps):.1f} micro-batches a step"
    ]
    if budget and (over := sum(row * length > budget for row, length in zip(rows, lengths, strict=True))):
        lines.append(
            f"warning: {over} prompts alone have more tokens than optimization.micro_batch_tokens {budget}; each makes "
            "a micro-batch by itself"
        )
    videos = [video for i in shares[largest] for video in data.train[i].videos]
    clips = sum(video.response_text is None for video in videos)
    family, sampling = reader.family, config.sampling
    batch = MicroBatch(
        tokens,
        rows[largest],
        clips * family.most_video_tokens(sampling),
        clips * family.count_steps(sampling.num_frames),
    )
    has_cuda = torch.cuda.is_available()
    estimate = estimate_run(config, heads, batch, world_size, "cuda" if has_cuda else "cpu")
    device_memory = torch.cuda.get_device_properties(0).total_memory if has_cuda else None
    return lines + describe_memory(estimate, device_memory)
