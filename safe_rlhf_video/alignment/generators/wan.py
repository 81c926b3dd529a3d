"""Wan 2.1 and 2.2 (arXiv 2503.20314)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from safe_rlhf_video.alignment.generators.video_generator import ClipShape, Condition, VideoGenerator, to_frames
from safe_rlhf_video.errors import ConfigError

NUM_TRAIN_TIMESTEPS = 1000


class Wan(VideoGenerator):
    """A flow: x_t = (1 - t) x_0 + t e; the network says the velocity e - x_0.

    Raises:
        ConfigError: a model of two experts, which share out the times, or one that predicts something else.
    """

    text_tokens = 512
    frame_rate = 16
    usual_shape = ClipShape(81, 480, 832)
    usual_guidance = 5.0

    def __init__(self, pipeline: Any, shape: ClipShape) -> None:
        super().__init__(pipeline, shape)
        self.require_prediction("flow_prediction")
        if getattr(pipeline, "transformer_2", None) is not None:
            raise ConfigError(
                "generator.path: a Wan 2.2 of two experts is not supported, both would have to be trained; take Wan "
                "2.1 or Wan 2.2 TI2V-5B"
            )

        size, patch = self.network.config.rope_max_seq_len, self.network.config.patch_size
        if any(length // step > size for length, step in zip(self.latent_shape()[1:], patch, strict=True)):
            raise ConfigError(
                f"{shape.num_frames} frames of {shape.height} x {shape.width} are more than the network has places "
                "for; lower num_frames, height or width"
            )

    def latent_shape(self) -> tuple[int, ...]:
        vae, shape = self.pipeline.vae.config, self.shape
        return (
            self.network.config.in_channels,
            (shape.num_frames - 1) // vae.scale_factor_temporal + 1,
            shape.height // vae.scale_factor_spatial,
            shape.width // vae.scale_factor_spatial,
        )

    def granularity(self) -> tuple[int, int]:
        vae = self.pipeline.vae.config
        return vae.scale_factor_temporal, vae.scale_factor_spatial * self.network.config.patch_size[1]

    def times(self, num_steps: int) -> Tensor:
        self.pipeline.scheduler.set_timesteps(num_steps)
        return self.pipeline.scheduler.sigmas.float()

    def predict(self, noisy: Tensor, times: Tensor, condition: Condition) -> Tensor:
        output = self.network(
            hidden_states=noisy.to(self.network.dtype),
            timestep=NUM_TRAIN_TIMESTEPS * times,
            encoder_hidden_states=condition.states,
            return_dict=False,
        )[0].float()
        return noisy - times.view(-1, *[1] * (noisy.dim() - 1)) * output

    def decode(self, latents: Tensor) -> np.ndarray:
        vae = self.pipeline.vae
        mean, std = (torch.tensor(one, device=latents.device).view(1, -1, 1, 1, 1)
                     for one in (vae.config.latents_mean, vae.config.latents_std))  # fmt: skip
        return to_frames(vae.decode((latents * std + mean).to(vae.dtype), return_dict=False)[0])
