"""Estimates the tokens and memory of a run before its first step; loads no weights."""

from __future__ import annotations

import torch

from safe_rlhf_video.models.backbones import Reader
from safe_rlhf_video.training.estimate import MicroBatch, describe_memory, estimate_run
from safe_rlhf_video.training.plan import divide, plan_epoch
from safe_rlhf_video.training.run import Run


def describe_needs(run: Run, reader: Reader) -> list[str]:
    """Lines for the user: tokens of an input and of a micro-batch, and an estimate of the memory they take."""
    config, data, sizes, world_size = run.config, run.data, run.sizes, run.ranks.world_size
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
    estimate = estimate_run(config, run.heads, batch, world_size, "cuda" if has_cuda else "cpu")
    device_memory = torch.cuda.get_device_properties(0).total_memory if has_cuda else None
    return lines + describe_memory(estimate, device_memory)
