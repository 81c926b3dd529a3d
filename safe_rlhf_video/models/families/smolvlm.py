"""SmolVLM2: every frame is one square image of few tokens, with its time written before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.models.families.base import EncodedVideo, Family, three_numbers
from safe_rlhf_video.models.prompts import Special, Template

IM_START, END = Special("<|im_start|>"), Special("<end_of_utterance>")
AROUND_IMAGE, GLOBAL_IMAGE, IMAGE = Special("<fake_token_around_image>"), Special("<global-img>"), Special("<image>")

# fmt: off
UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
# fmt: on


@dataclass(frozen=True)
class SmolVLM(Family):
    """Source: transformers, models/smolvlm, with its chat template for videos; frames are not split into tiles."""

    side: int
    frame_tokens: int

    template = Template(
        name="smolvlm-chat-v1",
        before=(IM_START, "User: "),
        before_prompt=("Prompt: ",),
        after_prompt=(END, "\nAssistant:"),
        before_response=(" ",),
        after_response=(END,),
    )
    video_token = IMAGE
    specials = (IM_START, END, AROUND_IMAGE, GLOBAL_IMAGE, IMAGE)
    language_model = "text_model"
    vision_tower = "vision_model"
    projector = ("connector",)
    fit = "stretch"

    @classmethod
    def build(cls, processor: Mapping[str, Any], config: PreTrainedConfig) -> SmolVLM:
        side = int(processor["max_image_size"]["longest_edge"])
        if side != config.vision_config.image_size:
            raise ValueError(
                f"max_image_size is {side}, but config.json has an image_size of {config.vision_config.image_size}"
            )
        patches = side // config.vision_config.patch_size
        return cls(
            three_numbers(processor["image_mean"]),
            three_numbers(processor["image_std"]),
            side,
            (patches // config.scale_factor) ** 2,
        )

    @staticmethod
    def token_ids(config: PreTrainedConfig) -> dict[Special, int]:
        return {IMAGE: config.image_token_id}

    @property
    def size_multiple(self) -> int:
        return self.side

    def count_steps(self, num_frames: int) -> int:
        return num_frames

    def count_step_tokens(self, height: int, width: int) -> int:
        return self.frame_tokens

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels.permute(0, 3, 1, 2)  # size = (T, 3, H, W)

    @classmethod
    def video_segments(cls, seconds: Sequence[float], step_tokens: int) -> list[Special | str]:
        segments: list[Special | str] = [
            f"You are provided the following series of {number_words(len(seconds))} frames from a "
            f"{timedelta(seconds=int(seconds[-1]))} [H:MM:SS] video.\n"
        ]
        for second in seconds:
            minutes = f"{int(second // 60):02d}:{int(second % 60):02d}"
            segments += [f"\nFrame from {minutes}:", AROUND_IMAGE, GLOBAL_IMAGE, *[IMAGE] * step_tokens, AROUND_IMAGE]
        return [*segments, "\n\n"]

    def collate(self, videos: Sequence[EncodedVideo], is_video: Tensor) -> dict[str, Tensor]:
        if not videos:
            return {}
        # All frames as the images of one row: the model takes them in order, and so needs no frames of padding.
        return {"pixel_values": torch.cat([video.pixels for video in videos]).unsqueeze(0)}

    def run_vision(self, model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        rest = dict(inputs)
        pixels = rest.pop("pixel_values", None)
        if pixels is None:
            return rest
        return {**rest, "mm_encoder_outputs": {"image": model.get_image_features(pixels, return_dict=True)}}


def number_words(number: int) -> str:
    """A number below 1000 in English, as num2words writes it.

    Raises:
        ConfigError: the number is larger: no backbone of the family takes so many frames.
    """
    if number > 999:
        raise ConfigError(f"sampling.num_frames: SmolVLM2 takes at most 999 frames, got {number}; lower it")
    if number < 20:
        return UNITS[number]
    if number < 100:
        return TENS[number // 10 - 2] + (f"-{UNITS[number % 10]}" if number % 10 else "")
    return f"{UNITS[number // 100]} hundred" + (f" and {number_words(number % 100)}" if number % 100 else "")
