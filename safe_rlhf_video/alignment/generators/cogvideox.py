"""CogVideoX and CogVideoX 1.5 (arXiv 2408.06072)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from safe_rlhf_video.alignment.generators.video_generator import ClipShape, Condition, VideoGenerator, to_frames


class CogVideoX(VideoGenerator):
    """A diffusion with sqrt(a) x_0 + sqrt(1 - a) e, a at 1,000 times; the network says sqrt(a) e - sqrt(1 - a) x_0."""

    text_tokens = 226
    frame_rate = 8
    usual_shape = ClipShape(49, 480, 720)
    usual_guidance = 6.0

    def __init__(self, pipeline: Any, shape: ClipShape) -> None:
        super().__init__(pipeline, shape)
        self.require_prediction("v_prediction")
        frames = (shape.num_frames - 1) // pipeline.vae_scale_factor_temporal + 1
        patch = self.network.config.patch_size_t or 1  # of 1.5; its pipeline drops the frames that fill the last one
        self._surplus = -frames % patch
        self._frames = frames + self._surplus

    def latent_shape(self) -> tuple[int, ...]:
        spatial = self.pipeline.vae_scale_factor_spatial
        return self._frames, self.network.config.in_channels, self.shape.height // spatial, self.shape.width // spatial

    def granularity(self) -> tuple[int, int]:
        pipeline = self.pipeline
        return pipeline.vae_scale_factor_temporal, pipeline.vae_scale_factor_spatial * self.network.config.patch_size

    def times(self, num_steps: int) -> Tensor:
        scheduler = self.pipeline.scheduler
        scheduler.set_timesteps(num_steps)
        # As numbers of the 1,000 times, counted from 1; 0 is the clean clip.
        steps = [*(int(step) + 1 for step in scheduler.timesteps), 0]
        return torch.tensor(steps) / scheduler.config.num_train_timesteps

    def levels(self, times: Tensor) -> tuple[Tensor, Tensor]:
        scheduler = self.pipeline.scheduler
        kept = torch.cat([scheduler.final_alpha_cumprod.view(1), scheduler.alphas_cumprod]).to(times.device)
        a = kept[self._number(times)]
        return a.sqrt(), (1.0 - a).sqrt()

    def _number(self, times: Tensor) -> Tensor:
        return (times * self.pipeline.scheduler.config.num_train_timesteps).round().long()

    def predict(self, noisy: Tensor, times: Tensor, condition: Condition) -> Tensor:
        config, rotary = self.network.config, None
        if config.use_rotary_positional_embeddings:
            rotary = self.pipeline._prepare_rotary_positional_embeddings(
                self.shape.height, self.shape.width, noisy.shape[1], self.device
            )
        output = self.network(
            hidden_states=noisy.to(self.network.dtype),
            encoder_hidden_states=condition.states,
            timestep=self._number(times) - 1,
            image_rotary_emb=rotary,
            return_dict=False,
        )[0].float()
        alpha, sigma = (level.view(-1, 1, 1, 1, 1) for level in self.levels(times))
        return alpha * noisy - sigma * output

    def decode(self, latents: Tensor) -> np.ndarray:
        return to_frames(self.pipeline.decode_latents(latents[:, self._surplus :].to(self.pipeline.vae.dtype)))
