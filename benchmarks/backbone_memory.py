"""Video tokens and memory of the backbones in configs/backbones/, derived from shapes; nothing is downloaded.

    python benchmarks/backbone_memory.py

What a run of LoRA with both heads needs at ZeRO 0, as training/estimate.py says it, for one prompt at a time. Not in
the sum: the allocator's slack, the CUDA context. The shapes are those of the hub's config.json files.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.config_parser import parse_config
from safe_rlhf_video.models.config import ModelConfig
from safe_rlhf_video.models.families import FAMILIES, Family
from safe_rlhf_video.training.config import TrainConfig
from safe_rlhf_video.training.estimate import GB, TEXT_TOKENS, build_on_meta, count_micro_batch, estimate_memory
from safe_rlhf_video.video.sampling import Sampling, target_size

CONFIGS = Path(__file__).parents[1] / "configs" / "backbones"
CLIP_HEIGHT, CLIP_WIDTH = 320, 512  # a size of text-to-video generators
CLIPS_A_PROMPT = 4  # of SafeSora's training prompts, 3.9 in the mean
QWEN = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "temporal_patch_size": 2, "merge_size": 2}
MROPE = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}


@dataclass(frozen=True)
class Shape:
    """What config.json and the processor's file say of one backbone."""

    config: dict[str, Any]
    processor: dict[str, Any]


def _qwen3_vl(hidden: int, inner: int, layers: int, heads: int, vision: dict[str, Any], **more: Any) -> Shape:
    text = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "head_dim": 128}
    text |= {"num_attention_heads": heads, "num_key_value_heads": 8, "vocab_size": 151936, "rope_parameters": MROPE}
    text["max_position_embeddings"] = 262144
    vision = {"out_hidden_size": hidden, "patch_size": 16, "num_heads": 16, **vision}
    return Shape(
        {"model_type": "qwen3_vl", "text_config": text, "vision_config": vision, **more}, QWEN | {"patch_size": 16}
    )


def _qwen2_5_vl(hidden: int, inner: int, layers: int, heads: int, groups: int, vocabulary: int) -> Shape:
    text = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": vocabulary}
    text |= {"num_attention_heads": heads, "num_key_value_heads": groups, "rope_parameters": MROPE}
    text["max_position_embeddings"] = 128000
    vision = {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": hidden, "depth": 32}
    return Shape({"model_type": "qwen2_5_vl", "text_config": text, "vision_config": vision}, QWEN | {"patch_size": 14})


def _smolvlm(text: dict[str, Any], vision: dict[str, Any], scale: int) -> Shape:
    text = {"model_type": "llama", "vocab_size": 49280, "max_position_embeddings": 8192, "pad_token_id": 2, **text}
    vision = {"model_type": "smolvlm_vision", **vision}
    config = {"model_type": "smolvlm", "scale_factor": scale, "text_config": text, "vision_config": vision}
    side = vision["image_size"]
    return Shape(config, {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "max_image_size": {"longest_edge": side}})


SHAPES = {
    "Qwen/Qwen3-VL-2B-Instruct": _qwen3_vl(
        2048, 6144, 28, 16, {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096}
    ),
    "Qwen/Qwen3-VL-8B-Instruct": _qwen3_vl(
        4096, 12288, 36, 32, {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304}
    ),
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen2_5_vl(2048, 11008, 36, 16, 2, 151936),
    "Qwen/Qwen2.5-VL-7B-Instruct": _qwen2_5_vl(3584, 18944, 28, 28, 4, 152064),
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": _smolvlm(
        {
            "hidden_size": 960,
            "intermediate_size": 2560,
            "num_hidden_layers": 32,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
            "head_dim": 64,
        },
        {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
        },
        4,
    ),
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": _smolvlm(
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
        },
        {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 14,
        },
        3,
    ),
    "LanguageBind/Video-LLaVA-7B-hf": Shape(
        {
            "model_type": "video_llava",
            "text_config": {"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096},
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": 224,
                "patch_size": 14,
            },
        },
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "crop_size": {"height": 224, "width": 224}},
    ),
}


def build_config(shape: Shape) -> PreTrainedConfig:
    fields = copy.deepcopy(shape.config)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def fit_sampling(sampling: Sampling, family: Family) -> Sampling:
    """The same, or for a backbone of another size of the family the frames that it takes."""
    side = family.size_multiple
    if side == sampling.size_multiple:
        return sampling
    return Sampling(sampling.num_frames, side**2, side**2, side, family.fit)


def main() -> None:
    Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"clips of {CLIP_WIDTH}x{CLIP_HEIGHT}; memory in GB (1e9 bytes); derived, not measured on a GPU")
    for path in sorted(CONFIGS.glob("*.yaml")):
        run = parse_config(TrainConfig, ["--config", str(path)], "")
        asked = run.model.backbone.path
        for name, shape in SHAPES.items():
            config = build_config(shape)
            if config.model_type != build_config(SHAPES[asked]).model_type:
                continue
            family = FAMILIES[config.model_type].build(shape.processor, config)
            own = fit_sampling(run.sampling, family)
            size = target_size(CLIP_HEIGHT, CLIP_WIDTH, own)
            family.check_sampling(own, name, config.get_text_config().max_position_embeddings)
            model = build_on_meta(config, family, ModelConfig(lora=run.model.lora), ("reward", "cost"), torch.bfloat16)
            one, prompt = (count_micro_batch(family, own, size, clips) for clips in (1, CLIPS_A_PROMPT))
            whole = estimate_memory(model, prompt)
            clip = estimate_memory(model, one).saved_states
            checkpointed = estimate_memory(model, prompt, gradient_checkpointing=True)
            adapter = whole.trained_weights + whole.gradients + whole.optimiser_state
            print(
                f"{path.name:18s} {name:43s} {whole.frozen_weights / 2e9:.2f} B parameters, adapter and heads "
                f"{whole.trained_weights / 4e6:.1f} M; frames {size[1]}x{size[0]}, {one.video_tokens} video tokens a "
                f"clip, {one.tokens - one.video_tokens - TEXT_TOKENS} around them\n"
                f"{'':18s} weights {whole.frozen_weights / GB:.1f} + adapter {adapter / GB:.2f} + vision tower "
                f"{whole.vision_states / GB:.1f} + states of {CLIPS_A_PROMPT} clips {whole.saved_states / GB:.1f} "
                f"({clip / GB:.2f} one) = {whole.total / GB:.0f}; with gradient checkpointing "
                f"{checkpointed.total / GB:.0f}"
            )


if __name__ == "__main__":
    run_script(main)
