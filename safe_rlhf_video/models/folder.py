"""Model folders: what a trained score model is on disk.

    model/
      model.json                      format version, backbone (id, revision, fingerprint), sampling, template, heads
      heads.safetensors               float32 heads
      adapters/<name>/                adapter_config.json and adapter_model.safetensors, as PEFT writes them
      backbone.safetensors            the parts of the backbone that were trained in full, float32, if any
      backbone/                       of a merged model alone: its own backbone, an ordinary checkpoint folder

The backbone's frozen weights are referenced, not copied, but for a merged model's. Only JSON and safetensors are read:
no pickle.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from peft import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from safe_rlhf_video.errors import CheckpointError, ConfigError
from safe_rlhf_video.heads import HEADS
from safe_rlhf_video.models.backbones import Backbone, fill_backbone, identify_backbone, outline_backbone
from safe_rlhf_video.models.config import BackboneConfig, LoraConfig, Pooling, TrainedPart, check_trained_parts
from safe_rlhf_video.models.families import FAMILIES
from safe_rlhf_video.models.fingerprints import fingerprint_model
from safe_rlhf_video.models.hub import fetch_model, parse_hub_id
from safe_rlhf_video.models.score_model import ScoreModel, plain_name
from safe_rlhf_video.video.sampling import Sampling

FORMAT_VERSION = 3

# Fields of the backbone's configuration that whoever loads a folder decides, not the folder.
NOT_OF_A_FOLDER = ("trust_remote_code", "attention", "liger")
MISFIT = "give the backbone that it was trained on, or copy the model folder again"
# As safetensors' headers call them.
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class ModelRecord:
    """The content of model.json.

    Attributes:
        backbone_fingerprint: of the backbone that the folder is loaded onto, before its own weights come in.
        heads_of_adapter: adapter name -> heads on it.
        training: free facts about the run (step, data, validation metrics), for people to read.
        trained_parts: what of the backbone was trained in full and lies in backbone.safetensors.
        backbone_in_folder: whether the backbone lies in the folder (a merged model): `backbone.path` then only tells
            where it came from, and there are neither adapters nor trained parts.
    """

    backbone: BackboneConfig
    backbone_fingerprint: str
    sampling: Sampling
    lora: LoraConfig
    heads_of_adapter: Mapping[str, tuple[str, ...]]
    training: Mapping[str, object]
    pooling: Pooling = "last_token"
    trained_parts: tuple[TrainedPart, ...] = ()
    backbone_in_folder: bool = False


def save_model(model: ScoreModel, record: ModelRecord, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a model folder, all but the backbone of a merged model; the caller makes it appear atomically.

    Args:
        weights: name, as in `ScoreModel.trained` -> whole tensor on any device, for every part. They are not taken
            from the model, whose own may be shards.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name_of = {id(parameter): name for part in model.trained().values() for name, parameter in part.items()}
    for path, parameters in _files(model, model.heads_of_adapter, folder).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {name: weights[name_of[id(parameter)]] for name, parameter in parameters.items()}
        with naming(path):
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in whole.items()}, path)
    if model.peft_model is not None:
        for adapter in model.heads_of_adapter:
            peft_config = copy.copy(model.peft_model.peft_config[adapter])
            # As the user named it: PEFT's own entry would be a path of this machine.
            peft_config.base_model_name_or_path = record.backbone.path
            peft_config.save_pretrained(str(folder / "adapters" / adapter))
    backbone = asdict(record.backbone)
    for name in NOT_OF_A_FOLDER:
        del backbone[name]
    fields = {
        "format_version": FORMAT_VERSION,
        "backbone": {**backbone, "fingerprint": record.backbone_fingerprint},
        "sampling": record.sampling.to_dict(),
        "template": {"name": model.family.template.name, "hash": model.family.template_hash()},
        "lora": asdict(record.lora),
        "pooling": record.pooling,
        "trained_parts": list(record.trained_parts),
        "backbone_in_folder": record.backbone_in_folder,
        "heads_of_adapter": {name: list(heads) for name, heads in record.heads_of_adapter.items()},
        "training": dict(record.training),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }
    # Last, so that a folder with a model.json is a whole one.
    write_json(folder / "model.json", fields)


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Write JSON that people can read in any script; an OSError names the file."""
    # Half a character, as in a path that is no UTF-8, has no bytes; a backslash and its number is how JSON spells it.
    content = json.dumps(fields, indent=2, ensure_ascii=False).encode(errors="backslashreplace")
    with naming(path):
        path.write_bytes(content + b"\n")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors in writing are OSErrors with a path: Python names none on a full disk, and safetensors never."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from error
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def read_record(folder: str | Path) -> ModelRecord:
    """Read and check a model folder's model.json; a run folder stands for the model folder in it.

    Raises:
        CheckpointError: no model folder, another format version or template, or a damaged file.
    """
    folder = resolve_model_folder(folder)
    path = folder / "model.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        found_version = fields["format_version"]
        if found_version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: format version {found_version}, this package reads {FORMAT_VERSION}; install the release "
                "that wrote it, or train again"
            )
        template, known = fields["template"], _template_hashes()
        if known.get(template["name"]) != template["hash"]:
            raise CheckpointError(
                f"{path}: trained with the template {template['name']} ({template['hash']}), this package writes "
                f"{', '.join(f'{name} ({known[name]})' for name in known)}; install the release that wrote it"
            )
        backbone = dict(fields["backbone"])
        fingerprint = backbone.pop("fingerprint")
        for name in NOT_OF_A_FOLDER:
            backbone.pop(name, None)
        if not isinstance(fingerprint, str):
            raise ConfigError(f"backbone.fingerprint: expected text, got {fingerprint!r}")
        lora = _read_lora(fields["lora"])
        heads_of_adapter = {name: tuple(heads) for name, heads in fields["heads_of_adapter"].items()}
        _check_heads(heads_of_adapter)
        return ModelRecord(
            backbone=BackboneConfig(**backbone),
            backbone_fingerprint=fingerprint,
            sampling=Sampling.from_dict(fields["sampling"]),
            lora=lora,
            heads_of_adapter=heads_of_adapter,
            training=_check_training(fields["training"]),
            pooling=_check_pooling(fields["pooling"]),
            trained_parts=_check_parts(fields["trained_parts"], fields["backbone_in_folder"], lora),
            backbone_in_folder=fields["backbone_in_folder"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(
            f"{path}: damaged ({type(error).__name__}: {error}); copy the model folder again"
        ) from error


def resolve_model_folder(folder: str | Path) -> Path:
    """The model folder itself, the one inside a run folder, or that of a hub repository ("owner/name[@revision]").

    A folder that is there goes before a repository of the same name. Of a repository, only JSON, safetensors, the card
    and tokenizer files are fetched.

    Raises:
        CheckpointError: there is none, or a link in it leads out of it.
    """
    candidates = [Path(folder), Path(folder) / "model"]
    hub_id = parse_hub_id(folder) if isinstance(folder, str) and not Path(folder).exists() else None
    if hub_id is not None:
        candidates = [fetch_model(*hub_id)]
    for candidate in candidates:
        if (candidate / "model.json").is_file():
            _check_links(candidate)
            return candidate
    raise CheckpointError(
        f"{folder}: is no model folder (it has no model.json); give <run>/model as written by train_reward.py or "
        "train_cost.py, a folder of export.py, or its owner/name on the hub"
    )


def _check_links(folder: Path) -> None:
    """A folder of somebody else's must not have files of this machine read, or exported, as its own."""
    root = Path(os.path.realpath(folder))  # not Path.resolve, which fails on links in a circle
    inside = [root]
    if root.parent.name == "snapshots":  # the hub's cache, where files are links to blobs beside it
        inside.append(root.parents[1] / "blobs")
    for path in folder.rglob("*"):
        if path.is_symlink() and not any(Path(os.path.realpath(path)).is_relative_to(place) for place in inside):
            raise CheckpointError(f"{path}: is a link that leads out of the model folder; put the file itself there")


def load_models(
    folders: Sequence[str | Path],
    device: torch.device | str = "cpu",
    backbone_path: str | None = None,
    trust_remote_code: bool = False,
    dtype: Literal["auto", "float32", "bfloat16"] | None = None,
) -> tuple[ScoreModel, Backbone, ModelRecord]:
    """Load one or more model folders onto one backbone.

    Args:
        backbone_path: where the backbone lies here, if not where it lay in training; it must have the same weights. A
            merged model brings its own.
        trust_remote_code: whether Python code that lies beside the backbone's weights may run.
        dtype: the frozen weights' type, if not that of training.

    Returns:
        The model in evaluation mode, its backbone, and a record that joins those of all folders.

    Raises:
        CheckpointError: the folders do not fit each other or the backbone, or one lacks a tensor.
    """
    if not folders:
        raise CheckpointError("no model folder was given; give a reward folder, a cost folder or both")
    records = [read_record(folder) for folder in folders]
    first = records[0]
    for folder, record in zip(folders, records, strict=True):
        if len(folders) > 1 and (record.trained_parts or record.backbone_in_folder):
            raise CheckpointError(
                f"{folder}: changes weights of the backbone itself, so it shares no backbone with another folder; give "
                "it alone, or train both heads together (heads: [reward, cost])"
            )
    heads_of_adapter: dict[str, tuple[str, ...]] = {}
    for folder, record in zip(folders, records, strict=True):
        for what, mine, theirs in (
            ("backbone", record.backbone_fingerprint, first.backbone_fingerprint),
            ("backbone type", record.backbone.dtype, first.backbone.dtype),
            ("sampling", record.sampling, first.sampling),
            ("LoRA configuration", record.lora, first.lora),
            ("pooling", record.pooling, first.pooling),
        ):
            if mine != theirs:
                raise CheckpointError(
                    f"{folder} and {folders[0]} have different {what}s ({mine} and {theirs}); models used together "
                    "must be trained alike"
                )
        for adapter, heads in record.heads_of_adapter.items():
            taken = {head for others in heads_of_adapter.values() for head in others}
            for what, name in (("adapter", {adapter} & set(heads_of_adapter)), ("head", taken & set(heads))):
                if name:
                    raise CheckpointError(
                        f"{folder}: its {what} {min(name)} is in another of the folders too; give each once"
                    )
            heads_of_adapter[adapter] = heads
    config = first.backbone
    if first.backbone_in_folder:
        if backbone_path is not None:
            raise CheckpointError(
                f"{folders[0]}: holds its own backbone, so {backbone_path} cannot stand in for it; leave it out"
            )
        own = str(resolve_model_folder(folders[0]) / "backbone")
        config = replace(config, path=own, revision=None, initialization="pretrained")
    elif backbone_path is not None:
        config = replace(config, path=backbone_path, revision=None)
    config = replace(config, trust_remote_code=trust_remote_code, dtype=dtype or config.dtype)
    joined = replace(first, heads_of_adapter=heads_of_adapter, backbone=config)

    def build(backbone: Backbone) -> ScoreModel:
        # What is fresh will be replaced: drawing it should not change what a user draws next.
        with torch.random.fork_rng(devices=[]):
            return ScoreModel(backbone, heads_of_adapter, joined.lora, joined.pooling, joined.trained_parts)

    outline = outline_backbone(config, device)
    with torch.device("meta"):
        shapes = build(outline)
    for folder, record in zip(folders, records, strict=True):
        check_weights(shapes, record.heads_of_adapter, resolve_model_folder(folder))
    # Headers first: the backbone's files may be many gigabytes.
    outline = identify_backbone(outline)
    if outline.fingerprint:
        _check_fingerprint(outline, first.backbone_fingerprint, folders[0])
    backbone = fill_backbone(outline, device)
    _check_fingerprint(backbone, first.backbone_fingerprint, folders[0])
    model = build(backbone)
    for folder, record in zip(folders, records, strict=True):
        load_weights(model, record.heads_of_adapter, resolve_model_folder(folder))
    return model.to(device).eval(), backbone, joined


def load_weights(model: ScoreModel, heads_of_adapter: Mapping[str, tuple[str, ...]], folder: Path) -> None:
    """Fill what is trained of a model from a model folder; every tensor must be there and fit.

    Raises:
        CheckpointError: a tensor is missing, extra, or of another shape or type.
    """
    check_weights(model, heads_of_adapter, folder)
    for path, parameters in _files(model, heads_of_adapter, folder).items():
        with _open(path) as file, torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(file.get_tensor(name))


def check_weights(model: ScoreModel, heads_of_adapter: Mapping[str, tuple[str, ...]], folder: Path) -> None:
    """Check that a model folder holds just the tensors that a model needs; of its files only the headers are read.

    Args:
        model: its parameters may be on the meta device.

    Raises:
        CheckpointError: a tensor is missing, extra, or of another shape or type.
    """
    for path, parameters in _files(model, heads_of_adapter, folder).items():
        with _open(path) as file:
            names = file.keys()
            found = {name: file.get_slice(name) for name in names}
            if missing := sorted(set(parameters) - set(found)):
                raise CheckpointError(f"{path}: lacks the tensor {missing[0]}; {MISFIT}")
            if extra := sorted(set(found) - set(parameters)):
                raise CheckpointError(
                    f"{path}: has a tensor {extra[0]}, which this model on its backbone has not; {MISFIT}"
                )
            for name, parameter in parameters.items():
                shape, dtype = tuple(found[name].get_shape()), DTYPES.get(found[name].get_dtype())
                if (shape, dtype) != (tuple(parameter.shape), parameter.dtype):
                    raise CheckpointError(
                        f"{path}: {name} is {shape} {_describe(dtype)}, this model on its backbone needs "
                        f"{tuple(parameter.shape)} {_describe(parameter.dtype)}; {MISFIT}"
                    )


def _files(
    model: ScoreModel, heads_of_adapter: Mapping[str, tuple[str, ...]], folder: Path
) -> dict[Path, dict[str, Tensor]]:
    """The files of a model folder, and of each what it holds: name in it -> the model's parameter."""
    trained = model.trained()
    files: dict[Path, dict[str, Tensor]] = {}
    heads = [head for heads in heads_of_adapter.values() for head in heads]
    files[folder / "heads.safetensors"] = {
        name.removeprefix("score_heads."): one for head in heads for name, one in trained[f"head_{head}"].items()
    }
    if model.trained_parts:
        files[folder / "backbone.safetensors"] = {
            plain_name(name): one for part in model.trained_parts for name, one in trained[part].items()
        }
    if model.peft_model is not None:
        own = {name.removeprefix("backbone."): one for name, one in trained["adapter"].items()}
        for adapter in heads_of_adapter:
            files[folder / "adapters" / adapter / "adapter_model.safetensors"] = get_peft_model_state_dict(
                model.peft_model, own, adapter, save_embedding_layers=False
            )
    return files


def fingerprint_weights(folders: Sequence[str | Path]) -> str:
    """Identifies what decides the scores of some model folders, e.g. in a file of them."""
    parts = [fingerprint_model(resolve_model_folder(folder)) for folder in folders]
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:32]


def _check_fingerprint(backbone: Backbone, expected: str, folder: str | Path) -> None:
    if backbone.fingerprint != expected:
        raise CheckpointError(
            f"{backbone.config.path}: its weights ({backbone.fingerprint}) are not those that {folder} was trained on "
            f"({expected}); give the right backbone"
        )


def _read_lora(fields: Mapping[str, Any]) -> LoraConfig:
    modules = fields["target_modules"]
    if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
        raise ConfigError(f"lora.target_modules: expected a list of names, got {modules!r}")
    return LoraConfig(**{**fields, "target_modules": tuple(modules)})


def _check_training(facts: Any) -> Mapping[str, object]:
    if not isinstance(facts, dict):
        raise ConfigError(f"training: expected facts by name, got {facts!r:.40}")
    origin = facts.get("merged_from")  # not only for people: the card says what was merged
    if origin is not None:
        if not isinstance(origin["backbone_fingerprint"], str):
            raise ConfigError("training.merged_from.backbone_fingerprint: expected text")
        check_trained_parts(origin["trained_parts"], _read_lora(origin["lora"]))
    return facts


def _check_pooling(name: str) -> Pooling:
    for known in get_args(Pooling):
        if name == known:
            return known
    raise ConfigError(f"pooling: expected one of {', '.join(get_args(Pooling))}, got {name!r}")


def _check_parts(names: Sequence[str], backbone_in_folder: bool, lora: LoraConfig) -> tuple[TrainedPart, ...]:
    check_trained_parts(names, lora)
    if not isinstance(backbone_in_folder, bool) or (backbone_in_folder and (names or lora.rank)):
        raise ConfigError("backbone_in_folder: expected true or false, and false beside adapters or trained parts")
    return tuple(known for name in names for known in get_args(TrainedPart) if name == known)


def _template_hashes() -> dict[str, str]:
    return {family.template.name: family.template_hash() for family in FAMILIES.values()}


def _check_heads(heads_of_adapter: Mapping[str, tuple[str, ...]]) -> None:
    for adapter in heads_of_adapter:
        # It is the name of a folder: anything else could lead out of the model folder.
        if not adapter.isidentifier():
            raise ConfigError(f"heads_of_adapter: {adapter!r} is no name of an adapter")
    if not heads_of_adapter or not all(heads_of_adapter.values()):
        raise ConfigError("heads_of_adapter names no head")
    names = [head for heads in heads_of_adapter.values() for head in heads]
    if unknown := [name for name in names if name not in HEADS]:
        raise ConfigError(f"heads_of_adapter: there is no head {unknown[0]!r}")
    if len(set(names)) < len(names):
        raise ConfigError(f"heads_of_adapter: expected each head at most once, got {names}")


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing, so a trained part would be random; copy the model folder again")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); copy the model folder again") from error


def _describe(dtype: torch.dtype | None) -> str:
    return "of another type" if dtype is None else str(dtype).removeprefix("torch.")
