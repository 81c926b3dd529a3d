"""Frames of any size as Qwen-VL's patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from safe_rlhf_video.models.families.base import EncodedVideo

VIDEO_TOKEN_TYPE = 2  # the backbones' mark for video tokens: text 0, image 1, video 2


@dataclass(frozen=True)
class PatchSize:
    """Pixels a side of a patch, frames in one, and patches a side that make one token together."""

    spatial: int
    temporal: int
    merge: int

    @classmethod
    def read(cls, processor: Mapping[str, Any]) -> PatchSize:
        """From the fields of a processor's JSON file."""
        names = ("patch_size", "temporal_patch_size", "merge_size")
        size = cls(*(int(processor[name]) for name in names))
        if min(size.spatial, size.temporal, size.merge) < 1:
            raise ValueError(f"one of {', '.join(names)} is less than 1")
        return size

    @property
    def size_multiple(self) -> int:
        """Frames must be multiples of this in height and width."""
        return self.spatial * self.merge

    def grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Patches in time, height and width."""
        return -(-num_frames // self.temporal), height // self.spatial, width // self.spatial

    def cut(self, pixels: Tensor) -> Tensor:
        """Cut frames into patches.

        Args:
            pixels: (T, H, W, 3); a T that is no multiple of the temporal patch repeats the last frame.

        Returns:
            (grid_t * grid_h * grid_w, 3 * temporal * spatial * spatial) in the tower's order: merge blocks together.
        """
        num_frames, height, width, channels = pixels.shape
        if missing := -num_frames % self.temporal:
            pixels = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])
        steps, rows, columns = self.grid(num_frames, height, width)
        merge, spatial = self.merge, self.spatial
        patches = pixels.reshape(
            steps, self.temporal, rows // merge, merge, spatial, columns // merge, merge, spatial, channels
        ).permute(0, 2, 5, 3, 6, 8, 1, 4, 7)
        return patches.reshape(steps * rows * columns, -1)


def qwen_inputs(patches: PatchSize, videos: Sequence[EncodedVideo], is_video: Tensor) -> dict[str, Tensor]:
    """mm_token_type_ids (N, L) and, where there is a video, pixel_values_videos (all patches) and video_grid_thw."""
    inputs = {"mm_token_type_ids": is_video * VIDEO_TOKEN_TYPE}
    if videos:
        grids = [patches.grid(len(video.times), *video.size) for video in videos]
        inputs["pixel_values_videos"] = torch.cat([video.pixels for video in videos])
        inputs["video_grid_thw"] = torch.tensor(grids, device=is_video.device)
    return inputs


def add_qwen_positions(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """As `Family.add_positions`: position_ids (3, N, L) of time, height and width, where there is a video."""
    if "video_grid_thw" not in inputs:
        return inputs
    named = {name: tensor for name, tensor in inputs.items() if name != "pixel_values_videos"}
    return {**inputs, "position_ids": model.get_rope_index(**named)[0]}


def run_qwen_vision(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """As `Family.run_vision`."""
    rest = dict(inputs)
    pixels = rest.pop("pixel_values_videos", None)
    if pixels is None:
        return rest
    states = model.get_video_features(pixels, rest["video_grid_thw"], return_dict=True)
    return {**rest, "mm_encoder_outputs": {"video": states}}
