"""Parts of the backbone that are trained in full, beside adapters or in their place, in every family."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import (
    COST,
    JOINT,
    LORA,
    PROMPTS,
    REWARD,
    build_score_model,
    count_kept,
    noise_video,
    one_line,
    score,
    whole_weights,
)
from tiny_backbones import SAMPLINGS, each_family_with, edit_json, write_tiny_backbone

from safe_rlhf_video.errors import CheckpointError, ConfigError
from safe_rlhf_video.models import backbones
from safe_rlhf_video.models.backbones import Backbone, load_backbone
from safe_rlhf_video.models.config import BackboneConfig, LoraConfig, ModelConfig, TrainedPart
from safe_rlhf_video.models.families import FAMILIES
from safe_rlhf_video.models.folder import load_models, save_model
from safe_rlhf_video.models.inputs import build_inputs
from safe_rlhf_video.models.record import ModelRecord, read_record
from safe_rlhf_video.models.score_model import ScoreModel
from safe_rlhf_video.responses import Response, TextResponse
from safe_rlhf_video.video.sampling import sample_video

HEADS_ONLY = replace(LORA, rank=0)
# What is trained besides the heads: adapters, parts in full.
SETTINGS: dict[str, tuple[LoraConfig, tuple[TrainedPart, ...]]] = {
    "lora": (LORA, ()),
    "lora+projector": (LORA, ("projector",)),
    "projector": (HEADS_ONLY, ("projector",)),
    "full": (HEADS_ONLY, ("projector", "language_model")),
}
CLIPS = (noise_video(4, 16, 48, 0), noise_video(1, 32, 32, 1), noise_video(3, 48, 24, 2))
ROWS = list(PROMPTS[:4])


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_backbone(tmp_path_factory.mktemp("backbones") / family, family)


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    """For inputs: no model is built on it."""
    return load_backbone(BackboneConfig(path=str(folder)))


def responses(family: str) -> list[Response]:
    clips = [sample_video(clip.frames, clip.timestamps, SAMPLINGS[family]) for clip in CLIPS]
    return [clips[0], TextResponse("a red circle"), *clips[1:]]


def build(folder: Path, setting: str, dtype: str = "float32", **options: Any) -> tuple[ScoreModel, ModelRecord]:
    lora, parts = SETTINGS[setting]
    config = BackboneConfig(path=str(folder), dtype=dtype)  # type: ignore[arg-type]
    return build_score_model(lora=lora, backbone=config, trained_parts=parts, **options)


def save(folder: Path, model: ScoreModel, record: ModelRecord) -> Path:
    save_model(model, record, folder, whole_weights(model))
    return folder


def gradients(model: ScoreModel, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    scores = model.train()(inputs)["reward"]
    (scores * torch.linspace(-1.0, 2.0, len(scores))).sum().backward()
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[name] = parameter.grad
    return found


def saved_bytes(model: ScoreModel, inputs: dict[str, torch.Tensor]) -> int:
    """What a training step keeps between forward and backward; its gradients are there afterwards."""
    scores, kept = count_kept(model, inputs)
    scores["reward"].sum().backward()
    return kept


# --- what is trained --------------------------------------------------------------------------------------------------


@each_family_with("setting", SETTINGS)
def test_trained_parts_have_gradients_and_nothing_else_has(
    folder: Path, backbone: Backbone, family: str, setting: str
) -> None:
    model, _ = build(folder, setting)
    trained = model.trained()
    assert list(trained) == ["head_reward", *["adapter"] * bool(SETTINGS[setting][0].rank), *SETTINGS[setting][1]]
    names = {name for part in trained.values() for name in part}
    assert sum(map(len, trained.values())) == len(names)
    assert names == {name for name, one in model.named_parameters() if one.requires_grad}
    found = gradients(model, build_inputs(backbone, ROWS, responses(family), "cpu"))
    assert set(found) <= names
    for part, parameters in trained.items():
        for name in parameters:
            assert torch.isfinite(found[name]).all(), name
            # A bias before a softmax or behind nothing that varies may be zero; a matrix may not.
            assert found[name].any() or name.endswith("bias"), (part, name)
    for name in trained.get("projector", {}):
        assert any(f".{module}." in name for module in FAMILIES[family].projector)


def test_parts_are_whole_modules(folder: Path, family: str) -> None:
    model, _ = build(folder, "full")
    bare = load_backbone(BackboneConfig(path=str(folder))).model
    kind = FAMILIES[family]
    expected = {
        f"backbone.{name}"
        for name, _ in bare.named_parameters()
        if name.startswith(tuple(f"{module}." for module in (kind.language_model, *kind.projector)))
    }
    parts = model.trained()
    assert {*parts["projector"], *parts["language_model"]} == expected
    frozen = {name for name, _ in bare.named_parameters()} - {name.removeprefix("backbone.") for name in expected}
    assert frozen  # the vision tower
    assert all(name.startswith((f"{kind.vision_tower}.", "image_tower.")) for name in frozen)


# --- model folders ----------------------------------------------------------------------------------------------------


@each_family_with("setting", ["lora+projector", "full"])
def test_saved_models_score_bit_equal(
    folder: Path, backbone: Backbone, family: str, tmp_path: Path, setting: str
) -> None:
    model, record = build(folder, setting)
    path = save(tmp_path / "model", model, record)
    loaded, _, joined = load_models([path])
    assert joined == record == read_record(path)
    expected = score(model, backbone, ROWS, responses(family))["reward"]
    assert np.array_equal(score(loaded, backbone, ROWS, responses(family))["reward"], expected)
    untrained, _ = build_score_model(lora=HEADS_ONLY, backbone=BackboneConfig(path=str(folder)))
    untrained.score_heads.load_state_dict(model.score_heads.state_dict())
    assert np.abs(score(untrained, backbone, ROWS, responses(family))["reward"] - expected).max() > 1e-3
    # Under the plain backbone's own names, and float32 whatever that is in.
    tensors = load_file(path / "backbone.safetensors")
    assert set(tensors) < set(dict(backbone.model.named_parameters()))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    again = save(tmp_path / "again", loaded, joined)
    assert (again / "backbone.safetensors").read_bytes() == (path / "backbone.safetensors").read_bytes()


def test_merged_model_brings_its_backbone(folder: Path, backbone: Backbone, family: str, tmp_path: Path) -> None:
    model, record = build_score_model(JOINT, HEADS_ONLY, BackboneConfig(path=str(folder)))
    record = replace(record, backbone=replace(record.backbone, path="/gone"), backbone_in_folder=True)
    path = save(tmp_path / "model", model, record)
    shutil.copytree(folder, path / "backbone")
    loaded, own, joined = load_models([path])
    assert own.config.path == str(path / "backbone")
    assert joined.backbone_in_folder
    expected = score(model, backbone, ROWS, responses(family))
    found = score(loaded, own, ROWS, responses(family))
    assert all(np.array_equal(found[head], expected[head]) for head in ("reward", "cost"))
    with one_line(CheckpointError, str(path), "its own backbone"):
        load_models([path], backbone_path=str(folder))
    shutil.rmtree(path / "backbone")
    with one_line(CheckpointError, str(path / "backbone"), "no such file or folder"):
        load_models([path])


def test_vision_is_run_as_the_backbone_runs_it(folder: Path, backbone: Backbone, family: str) -> None:
    inputs = build_inputs(backbone, ROWS, responses(family), "cpu")
    # With positions that it computes by itself.
    alone = {name: tensor for name, tensor in inputs.items() if name != "position_ids"}
    assert (len(alone) < len(inputs)) == family.startswith("qwen")
    with torch.inference_mode():
        expected = backbone.model(**alone, use_cache=False).last_hidden_state
        found = backbone.model(**backbone.family.run_vision(backbone.model, inputs), use_cache=False).last_hidden_state
    assert torch.equal(found, expected)


# --- bfloat16 ---------------------------------------------------------------------------------------------------------


@each_family_with("setting", ["lora+projector", "full"])
def test_bfloat16_backbone_trains_float32_parts(
    folder: Path, backbone: Backbone, family: str, tmp_path: Path, setting: str
) -> None:
    model, record = build(folder, setting, "bfloat16")
    inputs = build_inputs(backbone, ROWS, responses(family), "cpu")
    trained = {name for part in model.trained().values() for name in part}
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if name in trained else torch.bfloat16), name
    lower = gradients(model, inputs)
    assert {gradient.dtype for gradient in lower.values()} == {torch.float32}
    whole = gradients(build(folder, setting)[0], inputs)
    assert set(lower) == set(whole)
    flat = [torch.cat([found[name].flatten() for name in sorted(found)]) for found in (lower, whole)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.99
    loaded, own, _ = load_models([save(tmp_path / "model", model, record)])
    expected = score(model.eval(), backbone, ROWS, responses(family))["reward"]
    assert np.array_equal(score(loaded, own, ROWS, responses(family))["reward"], expected)
    # As in training: what is learned is what is scored.
    model.train()
    assert np.array_equal(model(inputs)["reward"].detach().double().numpy(), expected)


def test_bfloat16_keeps_less_for_the_backward_pass(folder: Path, backbone: Backbone, family: str) -> None:
    """Float32 adapters and language models keep no float32 copies of the states."""
    inputs = build_inputs(backbone, ROWS, responses(family), "cpu")
    for setting in ("lora", "full"):
        lower, whole = (
            saved_bytes(build(folder, setting, dtype)[0].train(), inputs) for dtype in ("bfloat16", "float32")
        )
        assert lower < 0.72 * whole, setting


# --- gradient checkpointing ------------------------------------------------------------------------------------------


@each_family_with("trained", [("lora", "float32"), ("full", "float32"), ("lora+projector", "bfloat16")])
def test_checkpointing_keeps_less_and_changes_no_gradient(
    folder: Path, backbone: Backbone, family: str, trained: tuple[str, str]
) -> None:
    setting, dtype = trained
    inputs = build_inputs(backbone, ROWS, responses(family), "cpu")
    plain, saving = (build(folder, setting, dtype, gradient_checkpointing=value)[0].train() for value in (False, True))
    assert saved_bytes(saving, inputs) < 0.25 * saved_bytes(plain, inputs)
    for (name, mine), theirs in zip(saving.named_parameters(), plain.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None) == (not mine.requires_grad), name
        if mine.grad is not None and theirs.grad is not None:
            assert (mine.grad - theirs.grad).abs().max() <= 1e-6 * theirs.grad.abs().max(), name
    # Evaluation knows nothing of it: all is kept, where gradients are asked for.
    assert saved_bytes(saving.eval(), inputs) == saved_bytes(plain.eval(), inputs)


def test_checkpointing_repeats_dropout(folder: Path, backbone: Backbone, family: str) -> None:
    inputs = build_inputs(backbone, ROWS, responses(family), "cpu")
    found = []
    for value in (False, True):
        config = BackboneConfig(path=str(folder))
        model, _ = build_score_model(lora=replace(LORA, dropout=0.5), backbone=config, gradient_checkpointing=value)
        torch.manual_seed(0)
        found.append(gradients(model, inputs))
    for name, gradient in found[0].items():
        assert (found[1][name] - gradient).abs().max() <= 1e-6 * gradient.abs().max(), name


# --- errors before any weight is read --------------------------------------------------------------------------------


def test_folders_that_do_not_fit_are_refused_before_weights_are_read(
    folder: Path, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_tiny_backbone(tmp_path / "other", family, seed=1)
    whole = {name: save(tmp_path / name, *build(folder, name)) for name in ("lora+projector", "full")}
    monkeypatch.setattr(backbones.AutoModel, "from_pretrained", lambda *a, **k: pytest.fail("weights were read"))
    with one_line(CheckpointError, str(other), "not those that", "give the right backbone"):
        load_models([whole["full"]], backbone_path=str(other))
    for name, file in (
        ("full", "heads.safetensors"),
        ("full", "backbone.safetensors"),
        ("lora+projector", "adapters/reward/adapter_model.safetensors"),
    ):
        mixed = Path(shutil.copytree(whole[name], tmp_path / f"mixed-{Path(file).name}"))
        # Of a backbone twice as wide.
        save_file({key: torch.cat([one, one], dim=-1) for key, one in load_file(mixed / file).items()}, mixed / file)
        with one_line(CheckpointError, str(mixed / file), "this model on its backbone needs"):
            load_models([mixed])
    shutil.copy(whole["full"] / "heads.safetensors", mixed / "adapters/reward/adapter_model.safetensors")
    with one_line(CheckpointError, "adapter_model.safetensors", "lacks the tensor base_model.model."):
        load_models([mixed])


# --- errors, on the embedded backbone ---------------------------------------------------------------------------------


def test_parts_that_cannot_be_trained() -> None:
    for parts, words in (
        (("vision_tower",), ("model.trained_parts", "projector and language_model")),
        ("projector", ("model.trained_parts", "a list")),
        (("projector", "projector"), ("at most once",)),
        (("language_model",), ("model.lora.rank (now 8) to 0",)),
    ):
        with one_line(ConfigError, *words):
            ModelConfig(trained_parts=parts)  # type: ignore[arg-type]
    ModelConfig(trained_parts=("language_model", "projector"), lora=HEADS_ONLY)
    for field in ("attention", "liger"):
        with one_line(ConfigError, f"model.backbone.{field}", "auto", "'x'"):
            BackboneConfig(**{field: "x"})


def test_folders_with_parts_of_the_backbone_stand_alone(tmp_path: Path) -> None:
    paths = []
    for number, (heads, parts) in enumerate(((REWARD, ("projector",)), (COST, ("projector",)), (COST, ()))):
        model, record = build_score_model(heads, trained_parts=parts)  # type: ignore[arg-type]
        paths.append(save(tmp_path / str(number), model, record))
    for pair in (paths[:2], paths[::2], paths[:1] * 2):
        with one_line(CheckpointError, str(paths[0]), "heads: [reward, cost]"):
            load_models(pair)
        load_models(pair[:1])


def test_damaged_parts(tmp_path: Path) -> None:
    model, record = build_score_model(lora=HEADS_ONLY, trained_parts=("projector",))
    path = save(tmp_path / "model", model, record)
    file = path / "backbone.safetensors"
    whole = load_file(file)
    first = min(whole)
    for tensors, words in (
        ({name: one for name, one in whole.items() if name != first}, ("lacks", first)),
        (whole | {"x": torch.ones(1)}, ("tensor x",)),
        (whole | {first: whole[first].bfloat16()}, (first, "bfloat16")),
        (whole | {first: torch.ones(3)}, (first, "(3,)")),
    ):
        save_file(tensors, file)
        with one_line(CheckpointError, str(file), *words):
            load_models([path])
    file.unlink()
    with one_line(CheckpointError, str(file), "missing"):
        load_models([path])
    for changes, words in (
        ({"trained_parts": ["visual"]}, ("trained_parts",)),
        ({"trained_parts": "projector"}, ("trained_parts",)),
        ({"backbone_in_folder": True}, ("backbone_in_folder",)),
        ({"backbone_in_folder": 1, "trained_parts": []}, ("backbone_in_folder",)),
    ):
        edit_json(path / "model.json", **{"trained_parts": ["projector"], "backbone_in_folder": False, **changes})
        with one_line(CheckpointError, "model.json", *words):
            load_models([path])
