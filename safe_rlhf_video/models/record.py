"""Reads and writes model.json, which says what a model folder holds and how it was trained."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safe_rlhf_video.contracts import STRICT, parse_json
from safe_rlhf_video.errors import CheckpointError, ConfigError
from safe_rlhf_video.files import require_path
from safe_rlhf_video.heads import HEADS
from safe_rlhf_video.models.config import (
    BackboneConfig,
    Dtype,
    Initialization,
    LoraConfig,
    Pooling,
    TrainedPart,
    check_trained_parts,
)
from safe_rlhf_video.models.families import FAMILIES
from safe_rlhf_video.models.hub import fetch_model, parse_hub_id
from safe_rlhf_video.models.weight_files import naming
from safe_rlhf_video.reading import find_unfit, load_json, read_regular
from safe_rlhf_video.video.sampling import Sampling

# 5: checksums of the weights, and how many labels gave the cost its zero.
FORMAT_VERSION = 5
MODEL_FOLDER = (
    "<run>/model as written by train_reward.py or train_cost.py, a folder of export.py, or its owner/name on the hub"
)

# Fields of the backbone's configuration that whoever loads a folder decides, not the folder.
NOT_OF_A_FOLDER = ("trust_remote_code", "attention", "liger")


NO_ZERO = "the cost was trained without labels of what is safe, so its zero means nothing"


@dataclass(frozen=True)
class MergedFrom:
    """What was merged into the backbone of a merged model.

    Attributes:
        backbone_fingerprint: of the backbone before the merge.
        lora, trained_parts: what was trained on it.
    """

    backbone_fingerprint: str
    lora: LoraConfig
    trained_parts: tuple[TrainedPart, ...]

    def __post_init__(self) -> None:
        check_trained_parts(self.trained_parts, self.lora)


@dataclass(frozen=True)
class TrainingFacts:
    """How a model was trained, as far as its use depends on it.

    Attributes:
        step: optimiser steps.
        data: fingerprint of the training data.
        metrics: of the validation after that step.
        seed: of the run; with `calibration_fraction` it says which prompts were held out (`calibration.held_out`).
        calibration_fraction: share of prompts that training did not read.
        leave_out_generators: generators whose clips training did not read.
        class_weights: head of a label -> what each class weighed in its loss, in the order of
            `kinds.targets.classes_of`. Its logits favour a class by the logarithm of its weight.
        merged_from: of a merged model, what was merged.
        sign_labels: number of safe and of unsafe clips whose labels gave the cost its zero, in training; (0, 0) where
            its zero means nothing. None without a cost, and in folders of earlier releases, which do not say.
    """

    step: int = 0
    data: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    calibration_fraction: float = 0.0
    leave_out_generators: tuple[str, ...] = ()
    class_weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    merged_from: MergedFrom | None = None
    sign_labels: tuple[int, int] | None = None

    @property
    def no_zero(self) -> str | None:
        """Why the zero of the cost means nothing; None where it means something, or where nothing says."""
        return NO_ZERO if self.sign_labels == (0, 0) else None


@dataclass(frozen=True)
class ModelRecord:
    """What a model folder is.

    Attributes:
        backbone_fingerprint: of the backbone that the folder is loaded onto, before its own weights come in.
        heads_of_adapter: adapter name -> heads on it.
        trained_parts: parts of the backbone that were trained in full and are in backbone.safetensors.
        backbone_in_folder: whether the backbone is in the folder (a merged model): `backbone.path` then only says where
            it came from, and there are neither adapters nor trained parts.
        checksums: path in the folder -> checksum, of each file of trained weights; none before format version 5.

    Raises:
        ConfigError: the fields contradict each other.
    """

    backbone: BackboneConfig
    backbone_fingerprint: str
    sampling: Sampling
    lora: LoraConfig
    heads_of_adapter: Mapping[str, tuple[str, ...]]
    training: TrainingFacts = field(default_factory=TrainingFacts)
    pooling: Pooling = "last_token"
    trained_parts: tuple[TrainedPart, ...] = ()
    backbone_in_folder: bool = False
    checksums: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        check_trained_parts(self.trained_parts, self.lora)
        if self.backbone_in_folder and (self.trained_parts or self.lora.rank):
            raise ConfigError("backbone_in_folder: expected false beside adapters or trained parts")
        for adapter in self.heads_of_adapter:
            # It is the name of a folder: anything else could lead out of the model folder.
            if not adapter.isidentifier():
                raise ConfigError(f"heads_of_adapter: {adapter!r} is no name of an adapter")
        if not self.heads_of_adapter or not all(self.heads_of_adapter.values()):
            raise ConfigError("heads_of_adapter names no head")
        names = [head for heads in self.heads_of_adapter.values() for head in heads]
        if unknown := [name for name in names if name not in HEADS]:
            raise ConfigError(f"heads_of_adapter: there is no head {unknown[0]!r}")
        if len(set(names)) < len(names):
            raise ConfigError(f"heads_of_adapter: expected each head at most once, got {names}")


@dataclass(frozen=True)
class _BackboneFields:
    """What model.json holds of a `BackboneConfig`, but for its path."""

    fingerprint: str
    revision: str | None = None
    initialization: Initialization = "pretrained"
    random_seed: int = 0
    dtype: Dtype = "auto"


@dataclass(frozen=True)
class _TemplateFields:
    name: str
    hash: str


@dataclass(frozen=True)
class _ModelFile:
    """The content of model.json, but for the backbone's path."""

    __pydantic_config__ = STRICT

    format_version: int
    backbone: _BackboneFields
    sampling: Sampling
    template: _TemplateFields
    lora: LoraConfig
    pooling: Pooling
    trained_parts: tuple[TrainedPart, ...]
    backbone_in_folder: bool
    heads_of_adapter: Mapping[str, tuple[str, ...]]
    training: TrainingFacts
    versions: Mapping[str, str]
    checksums: Mapping[str, str]


def write_record(folder: Path, record: ModelRecord, template_name: str, template_hash: str) -> None:
    """Writes model.json.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    backbone = asdict(record.backbone)
    for name in NOT_OF_A_FOLDER:
        del backbone[name]
    training = {name: value for name, value in asdict(record.training).items() if value not in (None, {}, ())}
    fields = {
        "format_version": FORMAT_VERSION,
        "backbone": {**backbone, "fingerprint": record.backbone_fingerprint},
        "sampling": record.sampling.to_dict(),
        "template": {"name": template_name, "hash": template_hash},
        "lora": asdict(record.lora),
        "pooling": record.pooling,
        "trained_parts": record.trained_parts,
        "backbone_in_folder": record.backbone_in_folder,
        "heads_of_adapter": dict(record.heads_of_adapter),
        "training": training,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "checksums": dict(record.checksums),
    }
    write_readable_json(folder / "model.json", fields)


def read_record(folder: str | Path) -> ModelRecord:
    """Reads and checks a model folder's model.json; given a run folder, the model folder in it.

    Raises:
        CheckpointError: no model folder, another format version or template, or a damaged file.
    """
    path = resolve_model_folder(folder) / "model.json"
    try:
        fields = load_json(read_regular(path))
        found_version = fields["format_version"]
        if found_version in (3, 4):
            fields = _upgrade(fields)
        elif found_version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: format version {found_version}, this package reads 3 to {FORMAT_VERSION}; install the "
                "release that wrote it, or train again"
            )
        template, known = fields["template"], {one.template.name: one.template_hash() for one in FAMILIES.values()}
        if known.get(template["name"]) != template["hash"]:
            raise CheckpointError(
                f"{path}: trained with the template {template['name']} ({template['hash']}), this package writes "
                f"{', '.join(f'{name} ({known[name]})' for name in known)}; install the release that wrote it"
            )
        # A folder's name need not be UTF-8, which pydantic asks for.
        backbone_path = fields["backbone"].pop("path", None)
        for name in NOT_OF_A_FOLDER:
            fields["backbone"].pop(name, None)
        read = parse_json(_ModelFile, json.dumps(fields), "model.json", ConfigError, "")
        backbone = {name: value for name, value in vars(read.backbone).items() if name != "fingerprint"}
        return ModelRecord(
            backbone=BackboneConfig(path=backbone_path, **backbone),
            backbone_fingerprint=read.backbone.fingerprint,
            sampling=read.sampling,
            lora=read.lora,
            heads_of_adapter=read.heads_of_adapter,
            training=read.training,
            pooling=read.pooling,
            trained_parts=read.trained_parts,
            backbone_in_folder=read.backbone_in_folder,
            checksums=read.checksums,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(
            f"{path}: damaged ({type(error).__name__}: {str(error).rstrip('; ')}); copy the model folder again"
        ) from error


def _upgrade(fields: dict[str, Any]) -> dict[str, Any]:
    """Turns the fields of format versions 3 and 4 into fields of version 5.

    Training such a folder again would cost days of a GPU, and reading it costs these lines. Delete them, and what
    mentions them in `read_record`, when nobody has such folders any more.
    """
    facts = fields["training"]
    # ln of how much more a video with a label weighed than one without.
    weights = {head: (1.0, math.exp(odds)) for head, odds in facts.pop("harm_log_odds", {}).items()}
    if levels := facts.pop("severity_weights", None):
        weights["severity"] = levels
    return fields | {"training": facts | ({"class_weights": weights} if weights else {}), "checksums": {}}


def write_readable_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Writes JSON that people can read in any script; an OSError names the file."""
    # Half a character, as in a path that is no UTF-8, has no bytes; a backslash and its number is how JSON spells it.
    content = json.dumps(fields, indent=2, ensure_ascii=False).encode(errors="backslashreplace")
    with naming(path):
        path.write_bytes(content + b"\n")


def resolve_model_folder(folder: str | Path) -> Path:
    """The model folder itself, the one inside a run folder, or that of a hub repository ("owner/name[@revision]").

    A folder that is there goes before a repository of the same name. Of a repository, only JSON, safetensors, the card
    and tokenizer files are fetched.

    Raises:
        CheckpointError: there is none, or a link in it leads out of it.
    """
    candidates = [Path(folder), Path(folder) / "model"]
    if not Path(folder).exists():
        hub_id = parse_hub_id(folder) if isinstance(folder, str) else None
        if hub_id is None:
            require_path(folder, CheckpointError, f"give {MODEL_FOLDER}")
        else:
            candidates = [fetch_model(*hub_id)]
    for candidate in candidates:
        if (candidate / "model.json").exists():
            _check_links(candidate)
            if unfit := find_unfit(candidate.rglob("*")):
                raise CheckpointError(f"{unfit[0]}: {unfit[1]}; copy the model folder again")
            return candidate
    raise CheckpointError(f"{folder}: is no model folder (it has no model.json); give {MODEL_FOLDER}")


def _check_links(folder: Path) -> None:
    """A folder of somebody else's must not have files of this machine read, or exported, as its own."""
    root = Path(os.path.realpath(folder))  # not Path.resolve, which fails on links in a circle
    inside = [root]
    if root.parent.name == "snapshots":  # the hub's cache, where files are links to blobs beside it
        inside.append(root.parents[1] / "blobs")
    for path in folder.rglob("*"):
        if path.is_symlink() and not any(Path(os.path.realpath(path)).is_relative_to(place) for place in inside):
            raise CheckpointError(f"{path}: is a link that leads out of the model folder; put the file itself there")
