"""Generators sample as their official pipelines do, and predict clean clips from noisy ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler
from safetensors.torch import save_file
from small_generators import build_pipeline, write_folder

from safe_rlhf_video.alignment.config import GeneratorConfig
from safe_rlhf_video.alignment.generate import generate_clips
from safe_rlhf_video.alignment.generators import FAMILIES, ClipShape
from safe_rlhf_video.alignment.generators.load_generator import LORA_NAME
from safe_rlhf_video.errors import CheckpointError, ConfigError, SampleError
from safe_rlhf_video.video.decoding import read_video
from safe_rlhf_video.video.sampling import Sampling

SHAPE = ClipShape(num_frames=9, height=32, width=32)
PROMPTS = ["a red circle moving left at night", "by the sea, a white ring is growing"]
NUM_STEPS = 5


@pytest.mark.parametrize("family", ["wan", "ltx", "ltx_timed", "cogvideox"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@torch.no_grad()
def test_samples_equal_the_official_pipelines(family: str, guidance: float) -> None:
    pipeline = build_pipeline(family)
    pipeline.set_progress_bar_config(disable=True)
    generator = FAMILIES[type(pipeline).__name__](pipeline, SHAPE)
    noise = generator.draw_noise([1, 2])
    clips = generator.decode(generator.sample(generator.encode(PROMPTS), noise, NUM_STEPS, guidance))
    tokens = generator.text_tokens
    official = pipeline(
        PROMPTS, height=32, width=32, num_frames=9, num_inference_steps=NUM_STEPS, guidance_scale=guidance,
        latents=noise, max_sequence_length=tokens, output_type="np",
    ).frames  # fmt: skip
    assert clips.shape == official.shape
    assert clips.std() > 1
    assert np.abs(clips - 255.0 * official).max() <= 0.51


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    records = [
        {"prompt_id": f"p{number}", "prompt_text": text, "prompt_type": "safety_neutral"}
        for number, text in enumerate(PROMPTS)
    ]
    (tmp_path / "prompts.json").write_text(json.dumps(records))
    return tmp_path / "prompts.json"


def generate(folder: Path, prompts: Path, out: Path, **changes: Any) -> int:
    settings = {"num_frames": 9, "height": 32, "width": 32, "num_steps": 2, "guidance": 1.0, "path": str(folder)}
    options = {"clips_per_prompt": 2, "seed": 0, "batch_size": 3}
    config = GeneratorConfig(**settings | {name: value for name, value in changes.items() if name not in options})
    return generate_clips(config, prompts, out, **options | {k: v for k, v in changes.items() if k in options})


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.mp4")}


def test_clips_depend_on_their_prompt_number_and_seed_alone(tmp_path: Path, prompts: Path) -> None:
    folder = write_folder("wan", tmp_path / "model")
    assert generate(folder, prompts, tmp_path / "one") == 4
    whole = read_all(tmp_path / "one")
    assert sorted(whole) == ["p0/000.mp4", "p0/001.mp4", "p1/000.mp4", "p1/001.mp4"]
    assert len(set(whole.values())) == 4
    assert generate(folder, prompts, tmp_path / "one") == 0
    (tmp_path / "one" / "p1" / "000.mp4").unlink()
    assert generate(folder, prompts, tmp_path / "one") == 1
    assert read_all(tmp_path / "one") == whole
    records = json.loads(prompts.read_text())
    prompts.write_text(json.dumps(records[::-1]))
    assert generate(folder, prompts, tmp_path / "two", batch_size=1) == 4
    clips = [read_video(tmp_path / name / "p0" / "001.mp4", Sampling(num_frames=4)) for name in ("one", "two")]
    # In batches of another size, sums are in another order.
    assert np.abs(clips[0].frames.astype(int) - clips[1].frames).max() <= 8
    with pytest.raises(ConfigError, match="holds clips made with seed 0, not 1"):
        generate(folder, prompts, tmp_path / "one", seed=1)
    prompts.write_text(json.dumps([records[0], records[1] | {"prompt_text": "another"}]))
    with pytest.raises(ConfigError, match="holds clips of another text for prompt p1"):
        generate(folder, prompts, tmp_path / "one")
    (tmp_path / "one" / ".generation.json").unlink()
    with pytest.raises(ConfigError, match=r"mp4: was not made by this command"):
        generate(folder, prompts, tmp_path / "one")
    with pytest.raises(ConfigError, match=r"prompts.json: cannot be written"):
        generate(folder, prompts, prompts)


def test_a_prompt_too_long_is_named(tmp_path: Path, prompts: Path) -> None:
    records = json.loads(prompts.read_text())
    records[1]["prompt_text"] = "a red circle " * 400
    prompts.write_text(json.dumps(records))
    with pytest.raises(SampleError, match=r"prompt p1: has \d+ tokens, the generator reads 512; shorten it"):
        generate(write_folder("wan", tmp_path / "model"), prompts, tmp_path / "out")


@pytest.mark.parametrize("name", ["../p0", "/p0", "..", ".p0", "a/b", "p" * 201])
def test_no_clip_is_written_outside_its_folder(tmp_path: Path, prompts: Path, name: str) -> None:
    records = json.loads(prompts.read_text())
    records[1]["prompt_id"] = name
    prompts.write_text(json.dumps(records))
    with pytest.raises(SampleError, match=r"expected a plain name|cannot name a folder"):
        generate(tmp_path / "none", prompts, tmp_path / "out")


def test_times_of_a_scheduler_of_higher_order_fall_to_zero() -> None:
    pipeline = build_pipeline("wan")
    flow = {"use_flow_sigmas": True, "flow_shift": 3.0}
    pipeline.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", **flow)
    generator = FAMILIES["WanPipeline"](pipeline, SHAPE)
    times = generator.times(NUM_STEPS)
    assert len(times) == NUM_STEPS + 1
    assert times[0] == pytest.approx(1.0, abs=1e-3)
    assert times[-1] == 0
    assert (times.diff() < 0).all()
    clip = generator.sample(generator.encode(PROMPTS), generator.draw_noise([1, 2]), NUM_STEPS)
    assert clip.isfinite().all()
    pipeline.scheduler = UniPCMultistepScheduler(prediction_type="epsilon", **flow)
    with pytest.raises(ConfigError, match="prediction_type 'epsilon' is not supported here, only 'flow_prediction'"):
        FAMILIES["WanPipeline"](pipeline, SHAPE)


def test_two_experts_are_refused() -> None:
    pipeline = build_pipeline("wan")
    pipeline.transformer_2 = pipeline.transformer
    with pytest.raises(ConfigError, match=r"a Wan 2\.2 of two experts is not supported"):
        FAMILIES["WanPipeline"](pipeline, SHAPE)


def test_what_cannot_be_used_is_said_in_one_line(tmp_path: Path, prompts: Path) -> None:
    folder = write_folder("wan", tmp_path / "model")
    index = folder / "model_index.json"
    with pytest.raises(ConfigError, match=r"10 frames of 32 x 32 do not fit .*; it would make 9 frames of 32 x 32"):
        generate(folder, prompts, tmp_path / "out", num_frames=10)
    with pytest.raises(ConfigError, match="more than the network has places for"):
        generate(folder, prompts, tmp_path / "out", width=1024)
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        generate(tmp_path / "nowhere", prompts, tmp_path / "out")
    content = json.loads(index.read_text())
    index.write_text(json.dumps(content | {"_class_name": "StableVideoDiffusionPipeline"}))
    with pytest.raises(CheckpointError, match=r"'StableVideoDiffusionPipeline' are not supported; supported: WanPipe"):
        generate(folder, prompts, tmp_path / "out")
    index.write_text(json.dumps(content | {"vae": ["diffusers", "NoSuchClass"]}))
    with pytest.raises(CheckpointError, match="cannot be loaded as a pipeline"):
        generate(folder, prompts, tmp_path / "out")
    index.unlink()
    with pytest.raises(CheckpointError, match="is no pipeline of diffusers"):
        generate(folder, prompts, tmp_path / "out")


def lora_of(names: Sequence[str], width: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        f"transformer.{name}.lora_{side}.weight": torch.randn((2, width) if side == "A" else (width, 2))
        for name in names
        for side in "AB"
    }


def test_a_lora_changes_the_clips_and_one_of_another_generator_is_refused(tmp_path: Path, prompts: Path) -> None:
    folder, lora = write_folder("wan", tmp_path / "model"), tmp_path / "lora"
    lora.mkdir()
    fitting = ["blocks.0.attn1.to_v", "blocks.1.attn1.to_v"]
    save_file(lora_of(fitting, 24), lora / LORA_NAME)
    generate(folder, prompts, tmp_path / "with", lora=str(lora))
    generate(folder, prompts, tmp_path / "without")
    clips, others = read_all(tmp_path / "with"), read_all(tmp_path / "without")
    assert all(clips[name] != others[name] for name in others)
    for tensors in (
        lora_of(fitting, 32),
        lora_of([*fitting, "blocks.9.attn1.to_v"], 24),
        {"transformer.blocks.0.attn1.to_v.lora_A.weight": torch.zeros(2, 24)},
        lora_of(["single_blocks.0.linear"], 24),
    ):
        save_file(tensors, lora / LORA_NAME)
        with pytest.raises(CheckpointError, match=f"{LORA_NAME}: cannot be laid over .*; is it"):
            generate(folder, prompts, tmp_path / "out", lora=str(lora))
    (lora / LORA_NAME).write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=f"{LORA_NAME}: cannot be laid over"):
        generate(folder, prompts, tmp_path / "out", lora=str(lora))
