"""Builds what a run trains: backbone, adapters and heads, in DeepSpeed's engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from safe_rlhf_video.heads import LABEL_HEADS
from safe_rlhf_video.models.backbones import Backbone, load_backbone
from safe_rlhf_video.models.folder import load_weights
from safe_rlhf_video.models.record import ModelRecord
from safe_rlhf_video.models.score_model import ScoreModel
from safe_rlhf_video.training import distributed
from safe_rlhf_video.training import engine as engines
from safe_rlhf_video.training.config import TrainConfig
from safe_rlhf_video.training.messages import memory_hint
from safe_rlhf_video.training.run import Run
from safe_rlhf_video.training.state import checkpoint_folder, read_moments


@dataclass(frozen=True)
class Learner:
    """A model in training.

    Attributes:
        engine: DeepSpeed's, around `model`.
        record: what a model folder says of the model.
    """

    backbone: Backbone
    model: ScoreModel
    engine: Any
    record: ModelRecord

    @cached_property
    def parts(self) -> Mapping[str, Mapping[str, nn.Parameter]]:
        """What is trained, by part (`ScoreModel.trained`), found once: a walk over all modules takes milliseconds."""
        return self.model.trained()


def start_learner(run: Run) -> Learner:
    """Builds a fresh model, or one as the checkpoint has it that the run goes on from.

    Raises:
        CheckpointError: the backbone or the checkpoint cannot be read.
        DeviceMemoryError: the model does not fit the device.
    """
    config, ranks = run.config, run.ranks
    moments: dict[str, Tensor] = {}
    with distributed.together(ranks):
        with memory_hint(config, "loading the backbone"):
            backbone, model, record = build_model(config, run.heads, ranks.device)
        if run.first_step:
            moments = read_moments(run.folder, run.first_step)
            load_weights(model, record.heads_of_adapter, checkpoint_folder(run.folder, run.first_step) / "model")
            engines.restore_weights(model, moments)
    with memory_hint(config, "dividing the model among ranks"):
        engine = engines.build_engine(model, config, ranks.device)
    if run.first_step:
        engines.restore_moments(engine, moments, run.first_step)
    return Learner(backbone, model, engine, record)


def build_model(
    config: TrainConfig, heads: tuple[str, ...], device: torch.device
) -> tuple[Backbone, ScoreModel, ModelRecord]:
    """Builds backbone, model with fresh adapter and heads from `config.seed`, and what a model folder says of it."""
    backbone = load_backbone(config.model.backbone, device)
    torch.manual_seed(config.seed)
    adapter = "joint" if {"reward", "cost"} <= set(heads) else heads[0]
    adapter = "moderation" if adapter in LABEL_HEADS else adapter
    model = ScoreModel(
        backbone,
        {adapter: heads},
        config.model.lora,
        config.model.pooling,
        config.model.trained_parts,
        config.model.gradient_checkpointing,
    ).to(device)
    record = ModelRecord(
        backbone=config.model.backbone,
        backbone_fingerprint=backbone.fingerprint,
        sampling=config.sampling,
        lora=config.model.lora,
        heads_of_adapter={adapter: heads},
        pooling=config.model.pooling,
        trained_parts=tuple(config.model.trained_parts),
    )
    return backbone, model, record
