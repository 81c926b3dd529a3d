"""Loads a text-to-video model from a folder or the hub, by diffusers, and checks that it can be used here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError, safe_open

from safe_rlhf_video.alignment.config import GeneratorConfig
from safe_rlhf_video.alignment.generators import FAMILIES, ClipShape, VideoGenerator
from safe_rlhf_video.errors import CheckpointError, ConfigError
from safe_rlhf_video.files import is_only_a_path
from safe_rlhf_video.reading import load_json, read_regular

LORA_NAME = "pytorch_lora_weights.safetensors"


def load_generator(config: GeneratorConfig, device: torch.device | str = "cpu") -> VideoGenerator:
    """Loads all parts of a pipeline, and a LoRA if one is named.

    The network and the text encoder are bfloat16 on CUDA and float32 elsewhere; the autoencoder is float32.

    Raises:
        CheckpointError: the folder or hub id is missing or damaged, its family is not supported, or the LoRA is of
            another generator.
        ConfigError: the clips' shape does not fit the generator.
    """
    source = config.path
    family = FAMILIES[_pipeline_class(config)]
    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            source, revision=config.revision, dtype={"default": dtype, "vae": torch.float32}, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, HfHubHTTPError) as error:
        raise CheckpointError(f"{source}: cannot be loaded as a pipeline ({_first_line(error)})") from error
    pipeline.set_progress_bar_config(disable=True)
    if config.lora is not None:
        _load_lora(pipeline, Path(config.lora), source)
    pipeline.to(device)
    usual = family.usual_shape
    shape = ClipShape(config.num_frames or usual.num_frames, config.height or usual.height, config.width or usual.width)
    generator = family(pipeline, shape)
    _check_shape(generator, config.path)
    generator.network.requires_grad_(False).eval()
    return generator


def find_source(path: str) -> str:
    """A folder's path without detours, or a hub id as it is.

    Raises:
        CheckpointError: there is no such folder, and it cannot be a hub id.
    """
    if Path(path).is_dir():
        return str(Path(path).resolve())
    if is_only_a_path(path):
        raise CheckpointError(f"{path}: no such folder; give a pipeline's folder in the form of diffusers, or a hub id")
    return path


def _pipeline_class(config: GeneratorConfig) -> str:
    source = config.path
    try:
        if Path(source).is_dir():
            index: Any = load_json(read_regular(Path(source) / "model_index.json"))
        else:
            index = DiffusionPipeline.load_config(source, revision=config.revision)
        name = index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError, HFValidationError, HfHubHTTPError) as error:
        what = "is no pipeline of diffusers" if Path(source).is_dir() else "cannot be read from the hub"
        raise CheckpointError(
            f"{source}: {what} ({_first_line(error)}); give a folder with model_index.json, or the id of a hub in reach"
        ) from error
    if name not in FAMILIES:
        raise CheckpointError(
            f"{source}: pipelines of the class {name!r} are not supported; supported: {', '.join(FAMILIES)}"
        )
    return str(name)


def _load_lora(pipeline: Any, folder: Path, source: str) -> None:
    file = folder / LORA_NAME
    try:
        with safe_open(file, "pt") as tensors:
            wanted = len(list(tensors.keys()))
        pipeline.load_lora_weights(folder, weight_name=LORA_NAME)
    # diffusers indexes into names that it does not find
    except (OSError, ValueError, RuntimeError, SafetensorError, LookupError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{file}: cannot be laid over {source} ({_first_line(error)}); is it there, and of this generator?"
        ) from error
    laid = sum("lora_" in name for name, _ in pipeline.transformer.named_parameters())
    if laid != wanted:  # diffusers only warns of what it passes over
        raise CheckpointError(
            f"{file}: cannot be laid over {source} (of its {wanted} tensors, {laid} fit); is it of another generator?"
        )


def _check_shape(generator: VideoGenerator, path: str) -> None:
    """Raises ConfigError unless the clips that would be made are those that were asked for."""
    asked, made = generator.shape, generator.made_shape()
    if made != asked:
        raise ConfigError(
            f"{asked.num_frames} frames of {asked.height} x {asked.width} do not fit {path}; it would make "
            f"{made.num_frames} frames of {made.height} x {made.width}: set num_frames, height and width"
        )


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
