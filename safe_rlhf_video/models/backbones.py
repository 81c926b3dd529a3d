"""Loading a video-language backbone: the embedded one, a checkpoint folder or a hub id, all by the same code."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from safe_rlhf_video.errors import CheckpointError
from safe_rlhf_video.models.config import EMBEDDED_BACKBONE, BackboneConfig

SUPPORTED_FAMILIES = ("qwen3_vl",)
EMBEDDED_FOLDER = Path(__file__).parents[1] / "assets" / "tiny_backbone"


@dataclass(frozen=True)
class Preprocessing:
    """How uint8 frames become the vision tower's patches (the family's video_preprocessor_config.json)."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patch_size: int
    temporal_patch_size: int
    merge_size: int

    @property
    def size_multiple(self) -> int:
        """Frames must be multiples of this in height and width."""
        return self.patch_size * self.merge_size


@dataclass(frozen=True)
class Backbone:
    """A frozen backbone with all that is needed to feed it.

    Attributes:
        model: Returns `last_hidden_state` (N, L, E); it has no language-model head.
        fingerprint: Identifies the weights; a model folder names the one it was trained on.
        max_tokens: The longest input the backbone was made for.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    preprocessing: Preprocessing
    config: BackboneConfig
    fingerprint: str
    hidden_size: int
    max_tokens: int


def load_backbone(config: BackboneConfig, device: torch.device | str = "cpu") -> Backbone:
    """Load weights, tokenizer and preprocessing of one backbone, frozen and in evaluation mode.

    Raises:
        CheckpointError: the folder or hub id is missing or incomplete, or its family is not supported.
    """
    source = str(EMBEDDED_FOLDER) if config.path == EMBEDDED_BACKBONE else config.path
    model_config = _load_part(AutoConfig.from_pretrained, source, config)
    if model_config.model_type not in SUPPORTED_FAMILIES:
        raise CheckpointError(
            f"{source}: backbones of the family {model_config.model_type!r} are not supported; "
            f"supported: {', '.join(SUPPORTED_FAMILIES)}"
        )
    tokenizer = _load_part(AutoTokenizer.from_pretrained, source, config)
    preprocessing = load_preprocessing(source, config)
    dtype = _resolve_dtype(config.dtype, torch.device(device))
    if config.initialization == "random":
        # A fixed seed of its own: the control must not depend on what ran before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.random_seed)
            model = AutoModel.from_config(model_config, dtype=dtype)
        fingerprint = f"random-{config.random_seed}-{_digest(model_config.to_json_string().encode())}"
    else:
        model, loading_info = _load_part(
            AutoModel.from_pretrained, source, config, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
        if loading_info["missing_keys"]:
            raise CheckpointError(
                f"{source}: weights are missing for {sorted(loading_info['missing_keys'])[0]} and "
                f"{len(loading_info['missing_keys']) - 1} more; download the checkpoint again"
            )
        fingerprint = _fingerprint_weights(source, config)
    model.requires_grad_(False).eval().to(device)
    text_config = model_config.get_text_config()
    return Backbone(
        model, tokenizer, preprocessing, config, fingerprint, text_config.hidden_size, text_config.max_position_embeddings
    )


def load_size_multiple(config: BackboneConfig) -> int:
    """What frame height and width must be multiples of, without loading any weights."""
    source = str(EMBEDDED_FOLDER) if config.path == EMBEDDED_BACKBONE else config.path
    return load_preprocessing(source, config).size_multiple


def _load_part(load: Any, source: str, config: BackboneConfig, **options: Any) -> Any:
    try:
        return load(source, revision=config.revision, **options)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{source}: cannot load this backbone ({reason}); give a checkpoint folder, a hub id, "
            f"or {EMBEDDED_BACKBONE!r} for the embedded one"
        ) from error


def load_preprocessing(source: str, config: BackboneConfig) -> Preprocessing:
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        found = _load_part(cached_file, source, config, filename=name, _raise_exceptions_for_missing_entries=False)
        if found is None:
            continue
        fields = json.loads(Path(found).read_text(encoding="utf-8"))
        try:
            return Preprocessing(
                mean=tuple(fields["image_mean"]),
                std=tuple(fields["image_std"]),
                patch_size=fields["patch_size"],
                temporal_patch_size=fields["temporal_patch_size"],
                merge_size=fields["merge_size"],
            )
        except KeyError as error:
            raise CheckpointError(f"{found}: the field {error} is missing; download the checkpoint again") from error
    raise CheckpointError(f"{source}: has no video_preprocessor_config.json; download the checkpoint's processor files")


def _resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def _fingerprint_weights(source: str, config: BackboneConfig) -> str:
    index = cached_file(
        source, "model.safetensors.index.json", revision=config.revision, _raise_exceptions_for_missing_entries=False
    )
    names = ["model.safetensors"]
    if index is not None:
        names = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    digest = hashlib.sha256()
    for name in names:
        with open(_load_part(cached_file, source, config, filename=name), "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def _digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()[:16]
