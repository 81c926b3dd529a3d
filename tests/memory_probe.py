"""Launched by test_estimate.py: bytes of a model, its gradients and its optimiser state after a real DeepSpeed step.

Writes them as JSON to the file named in the first argument.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from small_models import PROMPTS, SAMPLING, noise_video

from safe_rlhf_video.models.config import LoraConfig, ModelConfig, TrainedPart
from safe_rlhf_video.models.inputs import build_inputs

from safe_rlhf_video.training import distributed, engine as engines  # isort: skip
from safe_rlhf_video.models.backbones import load_backbone
from safe_rlhf_video.models.score_model import ScoreModel
from safe_rlhf_video.training.config import DataConfig, EngineConfig, TrainConfig

HEADS = ("reward", "cost")
# What is trained besides the heads: rank of the adapters, parts in full.
SETTINGS: dict[str, tuple[int, tuple[TrainedPart, ...]]] = {
    "lora": (4, ()),
    "projector": (4, ("projector",)),
    "full": (0, ("projector", "language_model")),
}
CASES = [("projector", 0), *((name, stage) for name in ("lora", "full") for stage in (0, 1, 2, 3))]


def build_config(name: str, zero_stage: int) -> TrainConfig:
    rank, parts = SETTINGS[name]
    return TrainConfig(
        out="-",
        data=DataConfig(path="-"),
        sampling=SAMPLING,
        model=ModelConfig(lora=LoraConfig(rank=rank), trained_parts=parts),
        engine=EngineConfig(zero_stage=zero_stage, deepspeed={"zero_optimization": {"reduce_bucket_size": 1_000_000}}),
    )


def main() -> None:
    out = next(argument for argument in sys.argv[1:] if not argument.startswith("--local_rank"))
    ranks = distributed.start()
    sizes = {f"{name}-{stage}": measure(build_config(name, stage), ranks) for name, stage in CASES}
    Path(out).write_text(json.dumps(sizes))
    distributed.barrier()
    distributed.stop()
    assert ranks.world_size == 1


def measure(config: TrainConfig, ranks: distributed.Ranks) -> dict[str, int]:
    backbone = load_backbone(config.model.backbone)
    asked = config.model
    model = ScoreModel(backbone, {"joint": HEADS}, asked.lora, asked.pooling, asked.trained_parts)
    engine = engines.build_engine(model, config, ranks.device)
    scores = engine(build_inputs(backbone, PROMPTS[:2], [noise_video(4, 32, 32, seed) for seed in range(2)], "cpu"))
    engine.backward(sum(values.sum() for values in scores.values()))
    trained = [one for part in model.trained().values() for one in part.values()]
    ids = {id(one) for one in trained}
    frozen = [one for one in model.parameters() if id(one) not in ids]
    zero, stage = engine.optimizer, config.engine.zero_stage
    gradients = [zero.grad_partitions_flat_buffer] if stage == 3 else [one.grad for one in trained]
    gradient_bytes = sum(one.nbytes for one in gradients if one is not None)
    engine.step()
    state = (zero.optimizer if stage else zero).state
    moments = [value for values in state.values() for key, value in values.items() if key.startswith("exp_avg")]
    copies = zero.single_partition_of_fp32_groups if stage in (1, 2) else []
    return {
        "trained_weights": sum(_own(one).nbytes for one in trained),
        "frozen_weights": sum(_own(one).nbytes for one in frozen),
        "gradients": gradient_bytes,
        "optimiser_state": sum(one.nbytes for one in (*moments, *copies)),
    }


def _own(parameter: torch.Tensor) -> torch.Tensor:
    """This rank's part of it."""
    return getattr(parameter, "ds_tensor", parameter)


if __name__ == "__main__":
    main()
