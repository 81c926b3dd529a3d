"""Defines what a score model is built from; plain dataclasses, no torch, so that command lines answer at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from safe_rlhf_video.errors import ConfigError

EMBEDDED_BACKBONE = "tiny"

Initialization = Literal["pretrained", "random"]
Dtype = Literal["auto", "float32", "bfloat16"]
Pooling = Literal["last_token", "query"]
TrainedPart = Literal["projector", "language_model"]


@dataclass(frozen=True)
class BackboneConfig:
    """The video-language backbone.

    Attributes:
        path: A checkpoint folder, a hub id, or "tiny" for the backbone embedded in this package.
        revision: The hub revision (branch, tag or commit); None for a folder.
        initialization: "random" builds the same architecture without its weights: a control, not a model to use.
        random_seed: The seed of that random initialisation.
        dtype: The frozen weights' type; "auto" is float32 on CPU and bfloat16 on CUDA. What is trained is float32.
        trust_remote_code: Whether Python code beside the weights may run; no supported family needs it.
        attention: "auto" is FlashAttention 2 on CUDA in bfloat16 where it is installed, else PyTorch's ("sdpa").
        liger: "auto" takes the Liger kernels on CUDA where they are installed.
    """

    path: str = EMBEDDED_BACKBONE
    revision: str | None = None
    initialization: Initialization = "pretrained"
    random_seed: int = 0
    dtype: Dtype = "auto"
    trust_remote_code: bool = False
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "auto"
    liger: Literal["auto", "off"] = "auto"

    def __post_init__(self) -> None:
        for name, choices in (
            ("initialization", get_args(Initialization)),
            ("dtype", get_args(Dtype)),
            ("attention", ("auto", "sdpa", "flash_attention_2", "eager")),
            ("liger", ("auto", "off")),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"model.backbone.{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        if not isinstance(self.path, str):  # a command line checks the types, a model folder's path comes unchecked
            raise ConfigError(f"model.backbone.path: expected text, got {self.path!r}")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685) on the language model's linear layers; the vision tower stays frozen.

    Attributes:
        rank: Rank of every adapter matrix; 0 adds no adapter.
        alpha: Numerator of the scale alpha / rank.
        dropout: Dropout on the adapters' input while training.
        target_modules: Names of the linear layers inside the language model.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 0:
            raise ConfigError(f"model.lora.rank: expected an integer of 0 or more, got {self.rank!r}")
        if not math.isfinite(self.alpha):
            raise ConfigError(f"model.lora.alpha: expected a finite number, got {self.alpha}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"model.lora.dropout: expected 0 <= dropout < 1, got {self.dropout}")


@dataclass(frozen=True)
class ModelConfig:
    """A frozen backbone with one adapter; the heads on it are the caller's choice.

    Attributes:
        trained_parts: Parts of the backbone that are trained in full, in float32: "projector", what maps the vision
            tower's states to the language model's, and "language_model", in place of adapters. The vision tower stays
            frozen.
        gradient_checkpointing: Whether the backbone's layers are run again in the backward pass, in place of keeping
            what they computed: less memory, and one more forward pass of the language model.
        pooling: What a head reads of the backbone's token states: "last_token", the last attended one, or "query", a
            mean weighted by a learned query of its own (`pooling.attend`).
    """

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    pooling: Pooling = "last_token"
    trained_parts: tuple[TrainedPart, ...] = ()
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        check_trained_parts(self.trained_parts, self.lora)
        if self.gradient_checkpointing and not self.lora.rank and not self.trained_parts:
            raise ConfigError(
                "model.gradient_checkpointing: nothing but heads is trained, so that nothing is kept which it could "
                "spare; set it to false"
            )


def check_trained_parts(parts: Sequence[str], lora: LoraConfig) -> None:
    """Raise ConfigError where these parts of a backbone cannot be trained, or not beside such adapters."""
    known = get_args(TrainedPart)
    if isinstance(parts, str) or not set(parts) <= set(known) or len(set(parts)) < len(parts):
        raise ConfigError(
            f"model.trained_parts: expected a list of {' and '.join(known)}, each at most once, got {parts}; correct it"
        )
    if "language_model" in parts and lora.rank:
        raise ConfigError(
            f"model.trained_parts: the language_model is trained in full or through adapters, not both; set "
            f"model.lora.rank (now {lora.rank}) to 0, or leave the language_model out"
        )
