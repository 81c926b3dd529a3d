"""Writes small random text-to-video models in the form of diffusers' folders, one of each family."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import AutoTokenizer, T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from safe_rlhf_video.models.backbones import EMBEDDED_FOLDER

TEXT = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "num_layers": 1, "dropout_rate": 0.0, "pad_token_id": 0}


def build_pipeline(family: str) -> Any:
    """A pipeline of a family: `wan`, `ltx`, `ltx_timed`, `cogvideox`, with weights that change what comes out."""
    torch.manual_seed(0)
    builders = {
        "wan": _build_wan,
        "ltx": _build_ltx,
        "ltx_timed": partial(_build_ltx, timestep_conditioning=True),
        "cogvideox": _build_cogvideox,
    }
    pipeline = builders[family]()
    for parameter in pipeline.transformer.parameters():  # some begin at zero
        torch.nn.init.normal_(parameter, std=0.2)
    return pipeline


def write_folder(family: str, folder: Path) -> Path:
    """Writes such a pipeline."""
    build_pipeline(family).save_pretrained(folder)
    return folder


def _build_wan() -> WanPipeline:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(UMT5Config(vocab_size=len(tokenizer), **TEXT)),
        vae=AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            text_dim=16,
            freq_dim=16,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=32,
        ),
    )


def _build_ltx(timestep_conditioning: bool = False) -> LTXPipeline:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    return LTXPipeline(
        tokenizer=tokenizer,
        text_encoder=T5EncoderModel(T5Config(vocab_size=len(tokenizer), **TEXT)),
        vae=AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            decoder_inject_noise=(False, False, False, False, False),
            upsample_residual=(False, False, False, False),
            upsample_factor=(1, 1, 1, 1),
            patch_size=1,
            patch_size_t=1,
            encoder_causal=True,
            decoder_causal=False,
            timestep_conditioning=timestep_conditioning,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        transformer=LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=4,
            attention_head_dim=8,
            cross_attention_dim=32,
            num_layers=1,
            caption_channels=16,
        ),
    )


def _build_cogvideox() -> CogVideoXPipeline:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    return CogVideoXPipeline(
        tokenizer=tokenizer,
        text_encoder=T5EncoderModel(T5Config(vocab_size=len(tokenizer), **TEXT)),
        vae=AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            temporal_compression_ratio=4,
        ),
        scheduler=CogVideoXDDIMScheduler(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            snr_shift_scale=3.0,
        ),
        transformer=CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=16,
            num_layers=1,
            sample_width=2,
            sample_height=2,
            sample_frames=9,
            patch_size=2,
            max_text_seq_length=226,
            use_rotary_positional_embeddings=True,
        ),
    )
