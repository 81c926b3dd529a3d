"""Estimates from shapes alone, against real models: bytes after a real step, what autograd keeps, FLOPs as counted."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, launch
from memory_probe import CASES, HEADS, SETTINGS, build_config
from small_models import PROMPTS, count_kept, noise_video
from tiny_backbones import SAMPLINGS, each_family_with, write_tiny_backbone
from torch.utils.flop_counter import FlopCounterMode

from safe_rlhf_video.models.backbones import Backbone, load_backbone
from safe_rlhf_video.models.config import BackboneConfig, LoraConfig, ModelConfig, Pooling
from safe_rlhf_video.models.families import FAMILIES
from safe_rlhf_video.models.inputs import build_inputs
from safe_rlhf_video.models.score_model import ScoreModel
from safe_rlhf_video.training.estimate import (
    MicroBatch,
    count_flops,
    count_micro_batch,
    describe_memory,
    estimate_memory,
    estimate_run,
    load_on_meta,
)
from safe_rlhf_video.video.sampling import Sampling, Video, sample_video

BATCH = MicroBatch(tokens=400, videos=4, video_tokens=256, steps=8)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_backbone(tmp_path_factory.mktemp("backbones") / family, family)


def build(
    folder: Path, setting: str, pooling: Pooling = "last_token", dtype: str = "float32"
) -> tuple[Backbone, ScoreModel, ScoreModel]:
    """A backbone, a real model on it, and the same without weights."""
    rank, parts = SETTINGS[setting]
    asked = BackboneConfig(path=str(folder), dtype=dtype)  # type: ignore[arg-type]
    config = ModelConfig(asked, LoraConfig(rank=rank), pooling, parts)
    backbone = load_backbone(config.backbone)
    model = ScoreModel(backbone, {"joint": HEADS}, config.lora, config.pooling, config.trained_parts)
    return backbone, model.train(), load_on_meta(config, HEADS, "cpu")


def real_batch(backbone: Backbone, videos: Sequence[Video]) -> tuple[dict[str, torch.Tensor], MicroBatch]:
    """Clips with prompts of different lengths, so that there is padding, and the same in numbers."""
    inputs = build_inputs(backbone, PROMPTS[: len(videos)], videos, "cpu")
    family, shapes = backbone.family, [video.frames.shape[:3] for video in videos]
    return inputs, MicroBatch(
        tokens=inputs["input_ids"].numel(),
        videos=len(videos),
        video_tokens=sum(family.count_video_tokens(*shape) for shape in shapes),
        steps=sum(family.count_steps(shape[0]) for shape in shapes),
    )


def clips(family: str) -> list[Video]:
    videos = [noise_video(8, 48, 48, seed) for seed in range(3)]
    return [sample_video(video.frames, video.timestamps, SAMPLINGS[family]) for video in videos]


def test_weights_gradients_and_optimiser_state_are_those_of_a_real_step(tmp_path: Path) -> None:
    launch(Path(__file__).with_name("memory_probe.py"), tmp_path / "sizes.json")
    sizes = json.loads((tmp_path / "sizes.json").read_text())
    for name, stage in CASES:
        estimate = estimate_run(build_config(name, stage), HEADS, BATCH, 1, "cpu")
        real = sizes[f"{name}-{stage}"]
        assert real["trained_weights"] == estimate.trained_weights > 0
        assert real["frozen_weights"] == estimate.frozen_weights > 0
        if stage in (0, 3):  # else they are not kept in one place
            assert real["gradients"] == estimate.gradients
        # DeepSpeed rounds its flat copies up to a multiple of a few elements.
        slack = 0 if stage in (0, 3) else 1e-4
        assert real["optimiser_state"] == pytest.approx(estimate.optimiser_state, rel=slack)


@each_family_with("setting", SETTINGS)
def test_loading_and_saved_states_are_those_of_a_real_model(folder: Path, family: str, setting: str) -> None:
    for pooling, dtype in (("last_token", "float32"), ("query", "float32"), ("last_token", "bfloat16")):
        backbone, model, shapes = build(folder, setting, pooling, dtype)  # type: ignore[arg-type]
        inputs, batch = real_batch(backbone, clips(family))
        estimate = estimate_memory(shapes, batch, world_size=2, zero_stage=3)
        # What training builds on every rank, before DeepSpeed divides it.
        assert estimate.loading == sum(one.nbytes for one in model.parameters())
        # Of a trained projector, only what its linear layers keep is counted.
        assert estimate.saved_states == pytest.approx(
            count_kept(model, inputs)[1], rel=1e-3 if setting == "lora" else 0.04
        )


def test_checkpointing_keeps_one_state_a_layer(folder: Path, family: str) -> None:
    backbone, _, shapes = build(folder, "lora")
    _, batch = real_batch(backbone, clips(family))
    whole = estimate_memory(shapes, batch).saved_states
    checkpointed = estimate_memory(shapes, batch, gradient_checkpointing=True).saved_states
    layers = backbone.model.config.get_text_config().num_hidden_layers
    states = 4 * batch.videos * batch.length * backbone.hidden_size * layers
    assert states < checkpointed < whole
    # The tiny models have two layers, of which one is there at a time.
    assert checkpointed - states == pytest.approx(whole / layers, rel=0.2)


def test_flops_are_those_that_torch_counts(folder: Path, family: str) -> None:
    for setting in SETTINGS:
        backbone, model, shapes = build(folder, setting)
        backbone.model.set_attn_implementation("eager")  # whose backward pass computes nothing again
        inputs, batch = real_batch(backbone, clips(family))
        with FlopCounterMode(display=False) as counter:
            scores = model(inputs)
        forward = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            torch.autograd.backward([values.sum() for values in scores.values()])
        both = forward + counter.get_total_flops()
        # Eager attention multiplies what the mask leaves out too; the heads are a few FLOPs.
        flops = count_flops(shapes, batch, backward=False)
        assert flops.total + flops.attention == pytest.approx(forward, rel=0.002)
        flops = count_flops(shapes, batch)
        # The lowest trained layers need no gradient of their inputs, which is a larger share of two layers than of 36.
        assert flops.total + flops.attention == pytest.approx(both, rel=0.02)
        assert flops.total + flops.attention >= 0.999 * both


def test_zero_divides_among_ranks() -> None:
    shapes = load_on_meta(ModelConfig(), HEADS, "cuda")
    one, *others = [estimate_memory(shapes, BATCH, world_size=4, zero_stage=stage) for stage in range(4)]
    trained = one.trained_weights
    assert one.optimiser_state == 2 * trained == 2 * one.gradients
    first, second, third = others
    share = -(-trained // 16) * 4
    assert first.optimiser_state == second.optimiser_state == 3 * share
    assert first.gradients == trained + share
    assert second.gradients == third.gradients == third.trained_weights == share
    assert first.frozen_weights == second.frozen_weights == one.frozen_weights
    assert third.frozen_weights == -(-one.frozen_weights // 4)
    assert third.optimiser_state == 2 * share
    # Each rank has the whole model before it is divided; small steps then take less.
    assert {other.loading for other in others} == {one.loading} == {one.frozen_weights + trained}
    few, options = MicroBatch(tokens=10, videos=1, video_tokens=4, steps=1), {"stage3_max_live_parameters": 0}
    small = estimate_memory(shapes, few, world_size=4, zero_stage=3, zero_options=options)
    assert small.total == small.loading == one.loading > small.training
    assert one.total == one.training > one.loading
    # On CUDA the frozen weights are bfloat16.
    assert 2 * one.frozen_weights == estimate_memory(load_on_meta(ModelConfig(), HEADS, "cpu"), BATCH).frozen_weights


def test_a_counted_micro_batch_is_a_real_one(folder: Path, family: str) -> None:
    backbone = load_backbone(BackboneConfig(path=str(folder)))
    sampling, videos = SAMPLINGS[family], clips(family)
    _, batch = real_batch(backbone, videos)
    counted = count_micro_batch(backbone.family, sampling, videos[0].frames.shape[1:3], len(videos))
    assert (counted.videos, counted.video_tokens, counted.steps) == (batch.videos, batch.video_tokens, batch.steps)


def test_a_description_says_what_is_too_much() -> None:
    estimate = estimate_memory(load_on_meta(ModelConfig(), HEADS, "cpu"), BATCH)
    (line,) = describe_memory(estimate)
    assert "estimate" in line
    assert "buffers" not in line
    assert "divided" not in line
    short = describe_memory(estimate, estimate.total - 1)[1]
    assert "less than the estimate: set model.gradient_checkpointing" in short
    assert "less than the whole model, which every process loads" in describe_memory(estimate, 1000)[1]
    assert "less than" not in describe_memory(estimate, 80 * 10**9)[1]
    divided = estimate_memory(load_on_meta(ModelConfig(), HEADS, "cpu"), BATCH, world_size=4, zero_stage=3)
    assert " GB until the model is divided, then " in describe_memory(divided)[0]


def test_the_embedded_backbone_is_estimated_at_once() -> None:
    started = time.process_time()
    sampling = Sampling(8, 448 * 448, 448 * 448, 8)
    shapes = load_on_meta(ModelConfig(), HEADS, "cpu")
    estimate_memory(shapes, count_micro_batch(shapes.family, sampling, (448, 448), 4))
    assert time.process_time() - started < 2


@pytest.mark.slow
def test_the_configs_of_the_backbones_say_what_the_benchmark_derives() -> None:
    lines = launch("benchmarks/backbone_memory.py").stdout.splitlines()[1:]
    derived = dict(zip((line.split()[1] for line in lines[::2]), lines[1::2], strict=True))
    for path in sorted((ROOT / "configs" / "backbones").glob("*.yaml")):
        name = yaml.safe_load(path.read_text())["model"]["backbone"]["path"]
        total = derived[name].split(" = ")[1].split(";")[0]
        head = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
        assert f"{total} GB with 4 clips at a time" in head, path.name
