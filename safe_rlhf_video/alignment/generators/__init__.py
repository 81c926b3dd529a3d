"""The families of text-to-video models, by their pipeline in diffusers. A new one is a module here."""

from __future__ import annotations

from collections.abc import Mapping

from safe_rlhf_video.alignment.generators.cogvideox import CogVideoX
from safe_rlhf_video.alignment.generators.ltx import LTX
from safe_rlhf_video.alignment.generators.video_generator import ClipShape, Condition, VideoGenerator
from safe_rlhf_video.alignment.generators.wan import Wan

FAMILIES: Mapping[str, type[VideoGenerator]] = {"WanPipeline": Wan, "LTXPipeline": LTX, "CogVideoXPipeline": CogVideoX}

__all__ = ["FAMILIES", "ClipShape", "Condition", "VideoGenerator"]
