"""Qwen3-VL: patches of any size in merge blocks, the time of every temporal patch written before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from safe_rlhf_video.models.families.base import EncodedVideo, Family, three_numbers
from safe_rlhf_video.models.families.patches import PatchSize, add_qwen_positions, qwen_inputs, run_qwen_vision
from safe_rlhf_video.models.prompts import Special, Template

IM_START, IM_END = Special("<|im_start|>"), Special("<|im_end|>")
VISION_START, VIDEO_PAD, VISION_END = (Special(f"<|{name}|>") for name in ("vision_start", "video_pad", "vision_end"))


@dataclass(frozen=True)
class Qwen3VL(Family):
    """Source: transformers, models/qwen3_vl."""

    patches: PatchSize

    template = Template(
        name="qwen-chat-v2",
        before=(IM_START, "user\n"),
        before_prompt=("Prompt: ",),
        after_prompt=(IM_END, "\n", IM_START, "assistant\n"),
        before_response=(),
        after_response=(IM_END,),
    )
    video_token = VIDEO_PAD
    specials = (IM_START, IM_END, VISION_START, VIDEO_PAD, VISION_END)
    vision_tower = "visual"
    projector = ("visual.merger", "visual.deepstack_merger_list")

    @classmethod
    def build(cls, processor: Mapping[str, Any], config: PreTrainedConfig) -> Qwen3VL:
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

    def step_seconds(self, times: Sequence[float]) -> list[float]:
        """The mean of the first and the last frame's time of every temporal patch."""
        temporal = self.patches.temporal
        padded = [*times, *[times[-1]] * (-len(times) % temporal)]
        return [(padded[i] + padded[i + temporal - 1]) / 2 for i in range(0, len(padded), temporal)]

    @classmethod
    def video_segments(cls, seconds: Sequence[float], step_tokens: int) -> list[Special | str]:
        segments: list[Special | str] = []
        for second in seconds:
            segments += [f"<{second:.1f} seconds>", VISION_START, *[VIDEO_PAD] * step_tokens, VISION_END]
        return segments

    def collate(self, videos: Sequence[EncodedVideo], is_video: Tensor) -> dict[str, Tensor]:
        return qwen_inputs(self.patches, videos, is_video)

    def add_positions(self, model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return add_qwen_positions(model, inputs)

    def run_vision(self, model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        return run_qwen_vision(model, inputs)
