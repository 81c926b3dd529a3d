"""Every backbone family through the real scripts: prepared, trained, resumed, scored."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import launch, read_records, read_rows, write_training_config
from safetensors.torch import load_file
from tiny_backbones import SAMPLINGS, write_tiny_backbone

from safe_rlhf_video.models.families import FAMILIES
from safe_rlhf_video.scoring.scorer import Scorer

ADAPTERS = {"lora": {"rank": 4, "dropout": 0.1}}
IN_FULL = {"lora": {"rank": 0}, "trained_parts": ["language_model", "projector"], "gradient_checkpointing": True}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "trained", "zero_stage"), [*((family, ADAPTERS, 0) for family in FAMILIES), ("qwen3_vl", IN_FULL, 3)]
)
def test_a_family_is_prepared_trained_resumed_and_scored(
    family: str, trained: dict[str, Any], zero_stage: int, world: Path, tmp_path: Path
) -> None:
    backbone = write_tiny_backbone(tmp_path / "backbone", family)
    config = write_training_config(
        tmp_path / "run.yaml",
        world,
        heads=["reward", "cost"],
        data={"frame_store": str(tmp_path / "frames")},
        sampling=SAMPLINGS[family].to_dict(),
        model={"backbone": {"path": str(backbone)}, **trained},
        engine={"zero_stage": zero_stage},
        optimization={"max_steps": 3},
        checkpoint={"every_steps": 1, "keep_last": 3},
    )
    launch("scripts/prepare_videos.py", "--config", config, "--out", tmp_path / "frames")
    run = tmp_path / "run"
    launch("scripts/train_reward.py", "--config", config)
    rows = read_rows(run)
    parts = ("adapter",) if trained is ADAPTERS else ("language_model", "projector")
    assert all(row[f"train/grad_norm/{part}"] > 0 for row in rows for part in parts)

    # As a kill right after the second checkpoint leaves it.
    whole = {path.relative_to(run): load_file(path) for path in (run / "checkpoints" / "step_3").rglob("*.safetensors")}
    shutil.rmtree(run / "checkpoints" / "step_3")
    assert "going on at step 2 of 3" in launch("scripts/train_reward.py", "--config", config).stdout
    for path, tensors in whole.items():
        again = load_file(run / path)
        assert again.keys() == tensors.keys()
        assert all(torch.equal(again[name], tensors[name]) for name in tensors), path

    record = read_records(world)[0]
    clips = [world / "videos" / record["prompt_id"] / f"{record[v]['video_id']}.mp4" for v in ("video_0", "video_1")]
    with Scorer.from_pretrained(run) as scorer:
        judged = scorer.score_pair(record["prompt_text"], *clips)
        mirrored = scorer.score_pair(record["prompt_text"], *clips[::-1])
    assert judged.rewards == mirrored.rewards[::-1]
    assert judged.rewards[0] != judged.rewards[1]
