"""What every family of text-to-video models answers; objectives and the loop know nothing else of a generator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from safe_rlhf_video.errors import ConfigError


@dataclass(frozen=True)
class ClipShape:
    """The clips that are generated: frames, and pixels."""

    num_frames: int
    height: int
    width: int


@dataclass(frozen=True)
class Condition:
    """Prompts as the network reads them: states (B, L, E), and for some families a mask (B, L)."""

    states: Tensor
    mask: Tensor | None = None


class VideoGenerator(ABC):
    """A pipeline of diffusers, seen as a network that predicts the clean clip from a noisy one.

    A noisy clip is alpha x_0 + sigma e. Times go from 1, all noise, to 0; a family says what they mean.

    Args:
        pipeline: as diffusers loaded it; it is not called, its parts are.
        shape: of all clips.
    """

    text_tokens: int  # the most that the network reads of a prompt
    frame_rate: int  # frames a second that it was trained on
    usual_shape: ClassVar[ClipShape]  # of its clips
    usual_guidance: ClassVar[float]

    def __init__(self, pipeline: Any, shape: ClipShape) -> None:
        self.pipeline = pipeline
        self.shape = shape

    def require_prediction(self, kind: str) -> None:
        """Raises ConfigError if the scheduler says that the network predicts something else."""
        found = self.pipeline.scheduler.config.get("prediction_type", kind)  # that of flows alone says nothing
        if found != kind:
            raise ConfigError(f"scheduler_config.json: prediction_type {found!r} is not supported here, only {kind!r}")

    @property
    def network(self) -> Any:
        """What predicts."""
        return self.pipeline.transformer

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Reads prompts; of one that is too long (`count_tokens`), only the beginning."""
        states, *_ = self.encode_prompt(prompts)
        return Condition(states)

    def encode_prompt(self, prompts: Sequence[str]) -> tuple[Any, ...]:
        """What the pipeline's own method of that name answers: states, and for some families more."""
        return self.pipeline.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, max_sequence_length=self.text_tokens, device=self.device
        )

    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of a clip's latents, without the batch."""

    @abstractmethod
    def granularity(self) -> tuple[int, int]:
        """Frames after the first, and pixels of a side, that can only be had together."""

    @abstractmethod
    def times(self, num_steps: int) -> Tensor:
        """The times (num_steps + 1,) at which the pipeline's own scheduler samples, falling to 0."""

    def levels(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """The alpha and sigma of times, (B,) each; those of flows unless a family says otherwise."""
        return 1.0 - times, times

    @abstractmethod
    def predict(self, noisy: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """The clean latents, float32, for noisy ones (B, ...) at times (B,)."""

    @abstractmethod
    def decode(self, latents: Tensor) -> np.ndarray:
        """From latents to uint8 frames (B, T, H, W, 3)."""

    def made_shape(self) -> ClipShape:
        """The shape that clips will have: other frames and pixels than asked for are left out."""
        frames, pixels = self.granularity()
        height, width = (max(1, side // pixels) * pixels for side in (self.shape.height, self.shape.width))
        return ClipShape((self.shape.num_frames - 1) // frames * frames + 1, height, width)

    def count_tokens(self, prompt: str) -> int:
        """The tokens of a prompt, of which the generator reads `text_tokens` at most."""
        return len(self.pipeline.tokenizer(prompt).input_ids)

    def draw_noise(self, seeds: Sequence[int]) -> Tensor:
        """Standard normal latents, a seed a clip: the same on every device and in every batch."""
        shape = self.latent_shape()
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(rows).to(self.device)

    @torch.no_grad()
    def sample(self, condition: Condition, noise: Tensor, num_steps: int, guidance: float = 1.0) -> Tensor:
        """Clean latents from noise, by DDIM's steps (arXiv 2010.02502), which are Euler's for flows.

        Args:
            noise: (B, ...), of `draw_noise`.
            guidance: classifier-free guidance (arXiv 2207.12598), which takes a second call a step; 1 is none.
        """
        times = self.times(num_steps).to(noise.device)
        empty = self.encode([""] * len(noise)) if guidance != 1.0 else condition
        latents = noise
        for now, then in pairwise(times):
            at = now.expand(len(noise))
            clean = self.predict(latents, at, condition)
            if guidance != 1.0:
                without = self.predict(latents, at, empty)
                clean = without + guidance * (clean - without)
            (alpha, sigma), (next_alpha, next_sigma) = self.levels(now), self.levels(then)
            latents = next_alpha * clean + next_sigma / sigma * (latents - alpha * clean)
        return latents


def to_frames(pixels: Tensor) -> np.ndarray:
    """From (B, 3, T, H, W), from -1 to 1, to uint8 (B, T, H, W, 3)."""
    frames = (pixels.float().clamp(-1.0, 1.0) + 1.0).mul(127.5).round().to(torch.uint8)
    return frames.permute(0, 2, 3, 4, 1).cpu().numpy()
