"""Finds the fields of a configuration that have no effect in a run, so that none is passed over without a word."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict

from safe_rlhf_video.data.config_files import is_config_name
from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.heads import HEADS
from safe_rlhf_video.training.config import DataConfig, TrainConfig
from safe_rlhf_video.training.run_folder import flatten


def note_unused_fields(config: TrainConfig, heads: Sequence[str], overrides: Collection[str]) -> list[str]:
    """Returns a line for each field that is set and has no effect.

    A file may serve several runs, so a field in it gets a line; one that the command line sets for this run is an
    error.

    Args:
        heads: that the run trains, groups written out.
        overrides: fields that the command line sets, as `loss.sign`.

    Raises:
        ConfigError: one of the overrides has no effect.
    """
    values, defaults = (flatten(asdict(one)) for one in (config, TrainConfig("run", DataConfig("data"))))
    lines = []
    for path, reason in _find_unused(config, heads).items():
        if path in overrides:
            raise ConfigError(f"--{path}: has no effect, because {reason}; leave it out")
        if values[path] != defaults[path]:
            lines.append(f"{path} has no effect, because {reason}")
    return lines


def _find_unused(config: TrainConfig, heads: Sequence[str]) -> dict[str, str]:
    """Field -> why it has no effect."""
    kinds = {HEADS[head].kind for head in heads}
    model, loss, tracking = config.model, config.loss, config.tracking
    is_compared = bool(kinds & {"preference", "cost"})
    trains_language_model = "language_model" in model.trained_parts
    groups: list[tuple[bool, str, tuple[str, ...]]] = [
        (
            not is_compared,
            "no head that is trained learns from comparisons",
            ("loss.comparison", "loss.regularization", "loss.unit", "loss.ties", "loss.tie_threshold"),
        ),
        (loss.ties == "leave_out", "loss.ties is leave_out", ("loss.tie_threshold",)),
        ("cost" not in kinds, "no cost is trained", ("loss.sign",)),
        (not kinds & {"label", "ordinal"}, "no label is trained", ("loss.harm", "loss.harm_balance")),
        (
            not model.lora.rank,
            "model.lora.rank is 0",
            ("model.lora.alpha", "model.lora.dropout", "model.lora.target_modules", "optimization.learning_rate"),
        ),
        (
            "projector" not in model.trained_parts,
            "model.trained_parts does not name the projector",
            ("optimization.projector_learning_rate",),
        ),
        (
            not trains_language_model,
            "model.trained_parts does not name the language_model",
            ("optimization.language_model_learning_rate",),
        ),
        (
            model.backbone.initialization == "pretrained",
            "model.backbone.initialization is pretrained",
            ("model.backbone.random_seed",),
        ),
        (
            all(map(is_config_name, config.data.paths)),
            "data.path names files and no folder",
            ("data.config_filename",),
        ),
        (
            config.data.frame_store is not None,
            "clips come from data.frame_store and none is decoded",
            ("data.workers", "data.timeout_s"),
        ),
        (tracking.wandb == "disabled", "tracking.wandb is disabled", ("tracking.project", "tracking.media")),
    ]
    return {path: reason for holds, reason, paths in groups if holds for path in paths}
