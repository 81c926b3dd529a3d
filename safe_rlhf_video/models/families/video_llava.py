"""Video-LLaVA, the backbone of SafeSora's own models: every frame is one square image; nothing is said of times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from safe_rlhf_video.models.families.base import EncodedVideo, Family, three_numbers
from safe_rlhf_video.models.prompts import Special, Template

BEGIN, END, VIDEO = Special("<s>"), Special("</s>"), Special("<video>")


@dataclass(frozen=True)
class VideoLlava(Family):
    """Source: transformers, models/video_llava."""

    side: int
    frame_tokens: int

    template = Template(
        name="video-llava-chat-v1",
        before=(BEGIN, "USER: "),
        before_prompt=("\nPrompt: ",),
        after_prompt=(" ASSISTANT:",),
        before_response=(" ",),
        after_response=(END,),
    )
    video_token = VIDEO
    specials = (BEGIN, END, VIDEO)
    vision_tower = "video_tower"
    projector = ("multi_modal_projector",)
    fit = "crop"

    @classmethod
    def build(cls, processor: Mapping[str, Any], config: PreTrainedConfig) -> VideoLlava:
        crop, side = processor["crop_size"], config.vision_config.image_size
        if (int(crop["height"]), int(crop["width"])) != (side, side):
            raise ValueError(f"crop_size is {crop}, but config.json has an image_size of {side}")
        return cls(
            three_numbers(processor["image_mean"]),
            three_numbers(processor["image_std"]),
            side,
            (side // config.vision_config.patch_size) ** 2 + 1,  # of videos, the class token is kept
        )

    @staticmethod
    def token_ids(config: PreTrainedConfig) -> dict[Special, int]:
        return {VIDEO: config.video_token_index}

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
        return [VIDEO] * (len(seconds) * step_tokens)

    def collate(self, videos: Sequence[EncodedVideo], is_video: Tensor) -> dict[str, Tensor]:
        if not videos:
            return {}
        # As one clip: the tower sees single frames, and so clips may differ in length.
        return {"pixel_values_videos": torch.cat([video.pixels for video in videos]).unsqueeze(0)}

    def run_vision(self, model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        rest = dict(inputs)
        pixels = rest.pop("pixel_values_videos", None)
        if pixels is None:
            return rest
        states = model.get_video_features(pixels, return_dict=True).pooler_output
        # These alone: beside them are the states of all the tower's layers, which may go now.
        return {**rest, "mm_encoder_outputs": {"video": BaseModelOutputWithPooling(pooler_output=states)}}
