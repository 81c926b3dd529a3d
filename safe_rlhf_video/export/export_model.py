"""Exports a model folder: as it is, or merged with its backbone into one that needs nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from safe_rlhf_video.calibration.store import FILE_NAME as CALIBRATION_FILE
from safe_rlhf_video.calibration.store import read_calibration, write_calibration
from safe_rlhf_video.data.prompt_hashes import FILE_NAME as PROMPTS_FILE
from safe_rlhf_video.errors import CheckpointError, ConfigError
from safe_rlhf_video.evaluation.results import read_evaluation
from safe_rlhf_video.export.model_card import MergeCheck, build_card
from safe_rlhf_video.files import LOCK_NAME, lock_folder, put_in_place, remove
from safe_rlhf_video.models.backbones import Backbone, copy_settings, fingerprint_checkpoint
from safe_rlhf_video.models.config import EMBEDDED_BACKBONE
from safe_rlhf_video.models.fingerprints import fingerprint_trained
from safe_rlhf_video.models.folder import COPY_AGAIN, fingerprint_weights, load_models, save_model
from safe_rlhf_video.models.hub import PATTERNS
from safe_rlhf_video.models.inputs import build_inputs
from safe_rlhf_video.models.record import (
    MergedFrom,
    ModelRecord,
    read_record,
    resolve_model_folder,
    write_readable_json,
)
from safe_rlhf_video.models.score_model import ScoreModel
from safe_rlhf_video.models.weight_files import check_checksums, follow_umask, naming
from safe_rlhf_video.reading import load_json, read_regular
from safe_rlhf_video.responses import Response, TextResponse
from safe_rlhf_video.video.sampling import Sampling, sample_video

TOLERANCE = 1e-5  # between scores in float32, whose own rounding moves them by about a tenth of it
SHARD_SIZE = "5GB"
TEXTS_NOT_SETTINGS = ("tokenizer.json", "vocab.json", "model.safetensors.index.json")

Dtype = Literal["auto", "float32", "bfloat16"]


def export_model(
    model: str | Path,
    out: Path,
    *,
    merge: bool = False,
    dtype: Dtype = "auto",
    backbone: str | None = None,
    evaluation: Path | None = None,
) -> MergeCheck | None:
    """Writes a model folder with a card (README.md), whole or not at all; it names no path of this machine.

    Args:
        model: a model folder, a run folder or a hub id.
        out: the folder to make.
        merge: whether to merge adapters and trained parts into the backbone, and write all of it too.
        dtype: what a merged backbone is written in; "auto" is bfloat16 where the frozen weights have no more digits
            than that, else float32.
        backbone: the backbone's folder, if it moved since training; only a merge reads it.
        evaluation: an evaluation.json, whose figures go to the card.

    Returns:
        How far the merged folder, read back, is from the model; None without a merge.

    Raises:
        CheckpointError: a file is missing or damaged, there is nothing to merge, or merging moves the scores.
        ConfigError: `out` exists already, or an argument of a merge is given without one.
        SampleError: `evaluation` is not about this model, or damaged.
    """
    _check_absent(out)
    if not merge and (dtype != "auto" or backbone is not None):
        raise ConfigError("dtype and backbone are only for a merge; leave them out")
    folder = resolve_model_folder(model)
    record = read_record(folder)
    figures = read_evaluation(evaluation, fingerprint_weights([folder])) if evaluation is not None else None
    if merge:
        _check_mergeable(folder, record)
    with _appearing(out) as partial:
        if merge:
            written, check = _write_merged(folder, record, partial, dtype, backbone)
        else:
            written, check = _write_copy(folder, record, partial), None
        if (folder / PROMPTS_FILE).exists():
            with naming(partial / PROMPTS_FILE):
                shutil.copyfile(folder / PROMPTS_FILE, partial / PROMPTS_FILE)
        # The scores are the same but for rounding; the calibration needs the fingerprints of the new weights.
        if (folder / CALIBRATION_FILE).exists():
            fitted = read_calibration(folder)
            data = {**fitted.data, "data": Path(str(fitted.data.get("data"))).name}
            multiplier = fitted.multiplier
            if multiplier is not None and merge:
                # A merge has new weights, a copy has not.
                old, new = (fingerprint_trained(one) for one in (folder, partial))
                models = {head: new if name == old else name for head, name in multiplier.models.items()}
                multiplier = replace(multiplier, models=models)
            write_calibration(partial, replace(fitted, data=data, multiplier=multiplier))
        template = _read_json(partial / "model.json")["template"]
        card = build_card(written, out.name, template, has_local_backbone(written), figures, check)
        with naming(partial / "README.md"):
            (partial / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")
    return check


def has_local_backbone(record: ModelRecord) -> bool:
    """Whether a record's backbone is a folder on some machine, neither the embedded one nor one on the hub."""
    path = record.backbone.path
    is_path = path[:1] in ("/", ".", "~") or "\\" in path or path.count("/") > 1
    return path != EMBEDDED_BACKBONE and (is_path or Path(path).is_dir())


def _write_copy(folder: Path, record: ModelRecord, partial: Path) -> ModelRecord:
    names = ["heads.safetensors"]
    if record.lora.rank:
        files = ("adapter_model.safetensors", "adapter_config.json")
        names += [f"adapters/{adapter}/{file}" for adapter in record.heads_of_adapter for file in files]
    if record.trained_parts:
        names.append("backbone.safetensors")
    if record.backbone_in_folder:
        own = {path.name for path in (folder / "backbone").glob("*")} | {"config.json"}
        names += [f"backbone/{name}" for name in sorted(own) if any(fnmatch(name, pattern) for pattern in PATTERNS)]
    check_checksums(folder, record.checksums, COPY_AGAIN)
    public = _without_folders(record)
    for name in names:
        source, target = folder / name, partial / name
        if not source.is_file():
            raise CheckpointError(f"{source}: missing; copy the model folder again")
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".json" and source.name not in TEXTS_NOT_SETTINGS:
            fields = _read_json(source)
            if source.name == "adapter_config.json":
                fields["base_model_name_or_path"] = public.backbone.path
            write_readable_json(target, _last_names(fields))
        else:
            shutil.copyfile(source, target)
    fields = _read_json(folder / "model.json")
    fields["backbone"] |= {"path": public.backbone.path, "revision": public.backbone.revision}
    write_readable_json(partial / "model.json", _last_names(fields))
    return read_record(partial)


def _write_merged(
    folder: Path, record: ModelRecord, partial: Path, dtype: Dtype, backbone_path: str | None
) -> tuple[ModelRecord, MergeCheck]:
    model, backbone, loaded = load_models([folder], "cpu", backbone_path, dtype="float32")
    inputs = _made_up_inputs(record.sampling)
    expected = _score(model, backbone, inputs)
    if not np.isfinite(expected).all():
        raise CheckpointError(
            f"{folder}: scores made-up clips and texts with numbers that are not finite, so that nothing can be "
            "compared after merging; export another checkpoint of the run"
        )
    if dtype == "auto":
        dtype = "bfloat16" if all(map(_is_bfloat16, _frozen(model))) else "float32"
    _merge(model)
    difference = _difference(_score(model, backbone, inputs), expected)
    _check_close(difference, TOLERANCE * _scale(expected), folder, "merging moves a score")
    rounding, bound = None, None
    if dtype == "bfloat16":
        bound = _round_weights(model)
        rounded = _score(model, backbone, inputs)
        rounding = float((np.abs(rounded - expected) / expected.std(axis=0)).max())
        _check_close(rounding, bound, folder, "bfloat16 moves a score", " of the scores' standard deviation")
        expected = rounded

    own = partial / "backbone"
    with naming(own):
        model.backbone.to(getattr(torch, dtype)).save_pretrained(own, max_shard_size=SHARD_SIZE)  # type: ignore[operator]
    for path in own.glob("*.safetensors"):
        follow_umask(path)
    copy_settings(loaded.backbone, own)
    for path in own.glob("*.json"):
        if path.name not in TEXTS_NOT_SETTINGS:
            write_readable_json(path, _last_names(_read_json(path)))
    public = _without_folders(record)
    # What was computed in float32 still is, whatever the weights are written in.
    computed_in = dtype if record.backbone.dtype == "bfloat16" else record.backbone.dtype
    merged = replace(
        public,
        backbone=replace(public.backbone, dtype=computed_in),
        backbone_fingerprint=fingerprint_checkpoint(own),
        lora=replace(record.lora, rank=0),
        trained_parts=(),
        backbone_in_folder=True,
        training=replace(
            public.training, merged_from=MergedFrom(record.backbone_fingerprint, record.lora, record.trained_parts)
        ),
    )
    heads = {name: one.detach() for part in model.trained().values() for name, one in part.items()}
    save_model(model, merged, partial, heads)
    del model, backbone

    model, backbone, _ = load_models([partial], dtype="float32")
    read_back = _difference(_score(model, backbone, inputs), expected)
    _check_close(read_back, TOLERANCE * _scale(expected), folder, "reading the written folder moves a score")
    return merged, MergeCheck(len(inputs), dtype, max(difference, read_back), rounding, bound)


def _check_mergeable(folder: Path, record: ModelRecord) -> None:
    if record.backbone_in_folder:
        raise CheckpointError(f"{folder}: is merged already; export it without merging")
    if record.backbone.initialization == "random":
        raise CheckpointError(f"{folder}: stands on random weights and is a control; train on a pretrained backbone")
    if record.lora.rank and len(record.heads_of_adapter) > 1:
        names = ", ".join(record.heads_of_adapter)
        raise CheckpointError(
            f"{folder}: has several adapters ({names}), and weights can be merged with one only; export it without "
            "merging, or train both heads together (heads: [reward, cost])"
        )
    if not record.lora.rank and not record.trained_parts:
        raise CheckpointError(
            f"{folder}: only its heads were trained, so there is nothing to merge; export it without merging"
        )


def _frozen(model: ScoreModel) -> list[Tensor]:
    trained = {id(one) for part in model.trained().values() for one in part.values()}
    return [parameter for parameter in model.parameters() if id(parameter) not in trained]


def _is_bfloat16(tensor: Tensor) -> bool:
    return torch.equal(tensor, tensor.bfloat16().float())


def _merge(model: ScoreModel) -> None:
    peft_model = model.peft_model
    if peft_model is not None:
        model.backbone = peft_model.merge_and_unload(safe_merge=True)
    model.lora, model.trained_parts = replace(model.lora, rank=0), ()


def _round_weights(model: ScoreModel) -> float:
    """Rounds a backbone's weights to bfloat16, stored as float32.

    Returns:
        How far that may move a score, in standard deviations of the scores. A rounding moves a weight by at most 2**-8
        of itself, so the independent roundings of a matrix move what comes out of it by about that fraction, and those
        of n matrices by n**0.5 times it. The largest of a few such errors is within 4 of that: of 120 tiny models of
        all families one was not, the median reached 0.7.
    """
    num_matrices = 0
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            rounded = parameter.bfloat16().float()
            num_matrices += parameter.ndim > 1 and not torch.equal(rounded, parameter)
            parameter.copy_(rounded)
    return float(4 * 2**-8 * max(num_matrices, 1) ** 0.5)


def _made_up_inputs(sampling: Sampling) -> list[tuple[str, Response]]:
    """A few prompts with clips and texts, on which two models that are not equal differ."""
    random = np.random.default_rng(0)
    inputs: list[tuple[str, Response]] = []
    for number, prompt in enumerate(("a red kite over the sea", "two dogs that run through snow at night", "fire")):
        blocks = random.integers(0, 256, (sampling.num_frames, 6 + number, 8, 3), dtype=np.uint8)
        frames = blocks.repeat(16, axis=1).repeat(16, axis=2)
        inputs.append((prompt, sample_video(frames, np.arange(sampling.num_frames) / (2.0 + number), sampling)))
        inputs.append((prompt, TextResponse(f"{prompt}, seen {number + 1} times")))
    return inputs


def _score(model: ScoreModel, backbone: Backbone, inputs: Sequence[tuple[str, Response]]) -> np.ndarray:
    """float64 (inputs, heads)."""
    rows = []
    with torch.inference_mode():
        for prompt, response in inputs:
            scores = model(build_inputs(backbone, [prompt], [response], "cpu"))
            rows.append([float(values[0]) for values in scores.values()])
    return np.array(rows)


def _difference(scores: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(scores - expected).max())


def _scale(expected: np.ndarray) -> float:
    """Scores far from zero have coarser steps."""
    return max(1.0, float(np.abs(expected).max()))


def _check_close(difference: float, bound: float, folder: Path, what: str, unit: str = "") -> None:
    # Not "difference > bound": that a NaN would pass.
    if not difference <= bound:
        raise CheckpointError(
            f"{folder}: {what} by {difference:.2g}{unit}, at most {bound:.2g} is allowed, so nothing was written; "
            "give --dtype float32 if bfloat16 was too coarse, else report it"
        )


def _without_folders(record: ModelRecord) -> ModelRecord:
    """The record with folders of this machine reduced to their last name."""
    backbone = record.backbone
    if has_local_backbone(record):
        # With a dot it can only mean a folder, never somebody else's repository of that name.
        name = (PureWindowsPath if "\\" in backbone.path else PurePath)(backbone.path).name
        backbone = replace(backbone, path=f"./{name if name not in ('', '..') else 'backbone'}", revision=None)
    facts = record.training
    generators = tuple(map(_last_names, facts.leave_out_generators))
    return replace(
        record,
        backbone=backbone,
        training=replace(facts, data=_last_names(facts.data), leave_out_generators=generators),
    )


def _last_names(value: Any) -> Any:
    """JSON values with absolute paths reduced to their last name."""
    if isinstance(value, dict):
        return {key: _last_names(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_last_names(item) for item in value]
    if isinstance(value, str):
        for path in (PurePath(value), PureWindowsPath(value)):
            if "\n" not in value and (path.is_absolute() or value.startswith("~/")) and len(path.parts) > 2:
                return path.name
    return value


def _read_json(path: Path) -> Any:
    try:
        return load_json(read_regular(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged ({error}); copy the folder again") from error


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A hidden folder that is renamed to `out` when the block ends without an error, else removed."""
    partial = out.with_name(f".{out.name}.partial")
    try:
        with lock_folder(partial):
            for leftover in partial.iterdir():  # of an export that was killed
                if leftover.name != LOCK_NAME:
                    remove(leftover)
            try:
                _check_absent(out)  # once more: another export may have made it
                yield partial
                (partial / LOCK_NAME).unlink()
                put_in_place(partial, out)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except OSError as error:
        name = error.filename2 or error.filename or out  # of a copy, the first is what was copied
        raise CheckpointError(
            f"{name}: cannot be read or written ({error.strerror or error}), so {out} was not made; free space or "
            "check the rights"
        ) from error


def _check_absent(out: Path) -> None:
    if out.exists():
        raise ConfigError(f"{out}: exists already; give a new folder, or delete it")
