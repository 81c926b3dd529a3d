"""Qwen2.5-VL: patches of any size in merge blocks; time is in the positions of the video tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from safe_rlhf_video.models.families.base import EncodedVideo, Family, three_numbers
from safe_rlhf_video.models.families.patches import PatchSize, add_qwen_positions, qwen_inputs, run_qwen_vision
from safe_rlhf_video.models.prompts import Special, Template

IM_START, IM_END = Special("<|im_start|>"), Special("<|im_end|>")
VISION_START, VIDEO_PAD, VISION_END = (Special(f"<|{name}|>") for name in ("vision_start", "video_pad", "vision_end"))


@dataclass(frozen=True)
class Qwen25VL(Family):
    """Source: transformers, models/qwen2_5_vl; the system turn is the one that its chat template writes."""

    patches: PatchSize

    template = Template(
        name="qwen2.5-chat-v1",
        before=(IM_START, "system\nYou are a helpful assistant.", IM_END, "\n", IM_START, "user\n"),
        before_prompt=("Prompt: ",),
        after_prompt=(IM_END, "\n", IM_START, "assistant\n"),
        before_response=(),
        after_response=(IM_END,),
    )
    video_token = VIDEO_PAD
    specials = (IM_START, IM_END, VISION_START, VIDEO_PAD, VISION_END)
    vision_tower = "visual"
    projector = ("visual.merger",)

    @classmethod
    def build(cls, processor: Mapping[str, Any], config: PreTrainedConfig) -> Qwen25VL:
        return cls(
            three_numbers(processor["image_mean"]), three_numbers(processor["image_std"]), PatchSize.read(processor)
        )

    @staticmethod
    def token_ids(config: PreTrainedConfig) -> dict[Special, int]:
        return {VIDEO_PAD: config.video_token_id, VISION_START: config.vision_start_token_id}

    @property
    def size_multiple(self) -> int:
        return self.patches.size_multiple

    def count_steps(self, num_frames: int) -> int:
        return -(-num_frames // self.patches.temporal)

    def count_step_tokens(self, height: int, width: int) -> int:
        return height * width // self.size_multiple**2

    def encode(self, pixels: Tensor) -> Tensor:
        return self.patches.cut(pixels)

    @classmethod
    def video_segments(cls, seconds: Sequence[float], step_tokens: int) -> list[Special | str]:
        return [VISION_START, *[VIDEO_PAD] * (len(seconds) * step_tokens), VISION_END]

    def step_seconds(self, times: Sequence[float]) -> list[float]:
        """The time of the first frame of every temporal patch."""
        return list(times[:: self.patches.temporal])

    def collate(self, videos: Sequence[EncodedVideo], is_video: Tensor) -> dict[str, Tensor]:
        inputs = qwen_inputs(self.patches, videos, is_video)
        if videos:
            seconds = [self.patches.temporal * _frame_seconds(video.times) for video in videos]
            inputs["second_per_grid_ts"] = torch.tensor(seconds, device=is_video.device)
        return inputs

    def add_positions(self, model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return add_qwen_positions(model, inputs)

    def run_vision(self, model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        return run_qwen_vision(model, inputs)


def _frame_seconds(times: Sequence[float]) -> float:
    """Seconds between two frames, a mean; of one frame the model makes no use of it."""
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1.0
