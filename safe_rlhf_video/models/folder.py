"""Saves and loads model folders: what a trained score model is on disk.

    model/
      model.json                      models/record.py: format version, backbone, sampling, template, heads, training
      heads.safetensors               float32 heads
      adapters/<name>/                adapter_config.json and adapter_model.safetensors, as PEFT writes them
      backbone.safetensors            the parts of the backbone that were trained in full, float32, if any
      prompts.json                    data/prompt_hashes.py: hashes of the prompts that it was trained on
      backbone/                       of a merged model alone: its own backbone, an ordinary checkpoint folder

The backbone's frozen weights are referenced, not copied, except in a merged model. Only JSON and safetensors are read:
no pickle.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from peft import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor

from safe_rlhf_video.errors import CheckpointError
from safe_rlhf_video.models.backbones import Backbone, fill_backbone, identify_backbone, outline_backbone
from safe_rlhf_video.models.fingerprints import fingerprint_model, join_fingerprints
from safe_rlhf_video.models.record import ModelRecord, read_record, resolve_model_folder, write_record
from safe_rlhf_video.models.score_model import ScoreModel, plain_name
from safe_rlhf_video.models.weight_files import check_checksums, checksum_file, save_tensors

COPY_AGAIN = "copy the model folder again"
MISFIT = "give the backbone that it was trained on, or copy the model folder again"
# As safetensors' headers call them.
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


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
    checksums = {}
    for path, parameters in _files(model, model.heads_of_adapter, folder).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {name: weights[name_of[id(parameter)]] for name, parameter in parameters.items()}
        save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in whole.items()}, path)
        checksums[path.relative_to(folder).as_posix()] = checksum_file(path)
    if model.peft_model is not None:
        for adapter in model.heads_of_adapter:
            peft_config = copy.copy(model.peft_model.peft_config[adapter])
            # As the user named it: PEFT's own entry would be a path of this machine.
            peft_config.base_model_name_or_path = record.backbone.path
            peft_config.save_pretrained(str(folder / "adapters" / adapter))
    # Last, so that a folder with a model.json is a whole one.
    record = replace(record, checksums=checksums)
    write_record(folder, record, model.family.template.name, model.family.template_hash())


def load_models(
    folders: Sequence[str | Path],
    device: torch.device | str = "cpu",
    backbone_path: str | None = None,
    trust_remote_code: bool = False,
    dtype: Literal["auto", "float32", "bfloat16"] | None = None,
) -> tuple[ScoreModel, Backbone, ModelRecord]:
    """Load one or more model folders onto one backbone.

    Args:
        backbone_path: where the backbone is, if it has moved since training; it must have the same weights. A
            merged model brings its own.
        trust_remote_code: whether Python code beside the backbone's weights may run.
        dtype: the frozen weights' type, if not that of training.

    Returns:
        The model in evaluation mode, its backbone, and a record that joins the records of all folders.

    Raises:
        CheckpointError: the folders do not fit each other or the backbone, or one lacks a tensor.
    """
    records = [read_record(folder) for folder in folders]
    joined = _join_records(folders, records)
    config = joined.backbone
    if joined.backbone_in_folder:
        if backbone_path is not None:
            raise CheckpointError(
                f"{folders[0]}: holds its own backbone, so {backbone_path} cannot replace it; leave it out"
            )
        own = str(resolve_model_folder(folders[0]) / "backbone")
        config = replace(config, path=own, revision=None, initialization="pretrained")
    elif backbone_path is not None:
        config = replace(config, path=backbone_path, revision=None)
    config = replace(config, trust_remote_code=trust_remote_code, dtype=dtype or config.dtype)
    joined = replace(joined, backbone=config)

    def build(backbone: Backbone) -> ScoreModel:
        # What is fresh will be replaced: drawing it should not change what a user draws next.
        with torch.random.fork_rng(devices=[]):
            return ScoreModel(backbone, joined.heads_of_adapter, joined.lora, joined.pooling, joined.trained_parts)

    outline = outline_backbone(config, device)
    with torch.device("meta"):
        shapes = build(outline)
    for folder, record in zip(folders, records, strict=True):
        path = resolve_model_folder(folder)
        check_weights(shapes, record.heads_of_adapter, path)
        check_checksums(path, record.checksums, COPY_AGAIN)
    # Headers first: the backbone's files may be many gigabytes.
    outline = identify_backbone(outline)
    if outline.fingerprint:
        _check_fingerprint(outline, joined.backbone_fingerprint, folders[0])
    backbone = fill_backbone(outline, device)
    _check_fingerprint(backbone, joined.backbone_fingerprint, folders[0])
    model = build(backbone)
    for folder, record in zip(folders, records, strict=True):
        load_weights(model, record.heads_of_adapter, resolve_model_folder(folder))
    return model.to(device).eval(), backbone, joined


def _join_records(folders: Sequence[str | Path], records: Sequence[ModelRecord]) -> ModelRecord:
    """One record with the heads of all; the others must be trained like the first."""
    if not folders:
        raise CheckpointError("no model folder was given; give a reward folder, a cost folder or both")
    first = records[0]
    heads_of_adapter: dict[str, tuple[str, ...]] = {}
    for folder, record in zip(folders, records, strict=True):
        if len(folders) > 1 and (record.trained_parts or record.backbone_in_folder):
            raise CheckpointError(
                f"{folder}: changes weights of the backbone itself, so it shares no backbone with another folder; give "
                "it alone, or train both heads together (heads: [reward, cost])"
            )
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
    return replace(first, heads_of_adapter=heads_of_adapter)


def load_weights(model: ScoreModel, heads_of_adapter: Mapping[str, tuple[str, ...]], folder: Path) -> None:
    """Fill what is trained of a model from a model folder; every tensor must be there and fit.

    Raises:
        CheckpointError: a tensor is missing, extra, or of another shape or type.
    """
    files = _files(model, heads_of_adapter, folder)
    _check_files(files)
    for path, parameters in files.items():
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
    _check_files(_files(model, heads_of_adapter, folder))


def _check_files(files: Mapping[Path, Mapping[str, Tensor]]) -> None:
    for path, parameters in files.items():
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
    return join_fingerprints([fingerprint_model(resolve_model_folder(folder)) for folder in folders])


def _check_fingerprint(backbone: Backbone, expected: str, folder: str | Path) -> None:
    if backbone.fingerprint != expected:
        raise CheckpointError(
            f"{backbone.config.path}: its weights ({backbone.fingerprint}) are not those that {folder} was trained on "
            f"({expected}); give the right backbone"
        )


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing, so a trained part would be random; {COPY_AGAIN}")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {COPY_AGAIN}") from error


def _describe(dtype: torch.dtype | None) -> str:
    return "of another type" if dtype is None else str(dtype).removeprefix("torch.")
