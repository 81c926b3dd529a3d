"""LTX-Video (arXiv 2501.00103)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift
from torch import Tensor

from safe_rlhf_video.alignment.generators.video_generator import ClipShape, Condition, VideoGenerator, to_frames


class LTX(VideoGenerator):
    """A flow on packed latents (B, tokens, channels): x_t = (1 - t) x_0 + t e; the network says e - x_0."""

    text_tokens = 128
    frame_rate = 25
    usual_shape = ClipShape(161, 512, 704)
    usual_guidance = 3.0

    @property
    def _grid(self) -> tuple[int, int, int]:
        pipeline, shape = self.pipeline, self.shape
        return (
            (shape.num_frames - 1) // pipeline.vae_temporal_compression_ratio + 1,
            shape.height // pipeline.vae_spatial_compression_ratio,
            shape.width // pipeline.vae_spatial_compression_ratio,
        )

    def encode(self, prompts: Sequence[str]) -> Condition:
        states, mask, *_ = self.encode_prompt(prompts)
        return Condition(states, mask)

    def latent_shape(self) -> tuple[int, ...]:
        unpacked = torch.zeros(1, self.network.config.in_channels, *self._grid, device="meta")
        return tuple(self.pipeline._pack_latents(unpacked, *self._patches).shape[1:])

    def granularity(self) -> tuple[int, int]:
        pipeline, (spatial, temporal) = self.pipeline, self._patches
        return pipeline.vae_temporal_compression_ratio * temporal, pipeline.vae_spatial_compression_ratio * spatial

    @property
    def _patches(self) -> tuple[int, int]:
        return self.pipeline.transformer_spatial_patch_size, self.pipeline.transformer_temporal_patch_size

    def times(self, num_steps: int) -> Tensor:
        frames, height, width = self._grid
        config = self.pipeline.scheduler.config
        shift = calculate_shift(
            frames * height * width,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        self.pipeline.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=shift)
        return self.pipeline.scheduler.sigmas.float()

    def predict(self, noisy: Tensor, times: Tensor, condition: Condition) -> Tensor:
        frames, height, width = self._grid
        seconds = self.pipeline.vae_temporal_compression_ratio / self.frame_rate
        spatial = self.pipeline.vae_spatial_compression_ratio
        output = self.network(
            hidden_states=noisy.to(self.network.dtype),
            encoder_hidden_states=condition.states,
            timestep=1000 * times,
            encoder_attention_mask=condition.mask,
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(seconds, spatial, spatial),
            return_dict=False,
        )[0].float()
        return noisy - times.view(-1, 1, 1) * output

    def decode(self, latents: Tensor) -> np.ndarray:
        pipeline, vae = self.pipeline, self.pipeline.vae
        latents = pipeline._unpack_latents(latents, *self._grid, *self._patches)
        latents = pipeline._denormalize_latents(latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
        time = None
        if vae.config.timestep_conditioning:  # a decoder that can denoise, too; its pipeline lets it not, by default
            time = torch.zeros(len(latents), device=latents.device, dtype=vae.dtype)
        return to_frames(vae.decode(latents.to(vae.dtype), time, return_dict=False)[0])
