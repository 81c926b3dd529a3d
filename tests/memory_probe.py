"""Launched by test_estimate.py: bytes of a model, its gradients and its optimiser state after a real DeepSpeed step.

Writes them as JSON to the file named in the first argument.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

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
CASES = [(name, stage) for name in SETTINGS for stage in (0, 1, 2)]


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
    sizes = {f"{name}-{stage}": measure(build_config(name, stage)) for name, stage in CASES}
    Path(out).write_text(json.dumps(sizes))
    distributed.barrier()
    distributed.stop()
    assert ranks.world_size == 1


def measure(config: TrainConfig) -> dict[str, int]:
    backbone = load_backbone(config.model.backbone)
    asked = config.model
    model = ScoreModel(backbone, {"joint": HEADS}, asked.lora, asked.pooling, asked.trained_parts)
    engine = engines.build_engine(model, config)
    scores = engine(build_inputs(backbone, PROMPTS[:2], [noise_video(4, 32, 32, seed) for seed in range(2)], "cpu"))
    engine.backward(sum(values.sum() for values in scores.values()))
    trained = [one for part in model.trained().values() for one in part.values()]
    gradients = [one.grad for one in trained if one.grad is not None]
    engine.step()
    is_divided = config.engine.zero_stage > 0
    state = (engine.optimizer.optimizer if is_divided else engine.optimizer).state
    moments = [value for values in state.values() for key, value in values.items() if key.startswith("exp_avg")]
    copies = engine.optimizer.single_partition_of_fp32_groups if is_divided else []
    return {
        "trained_weights": sum(one.nbytes for one in trained),
        "frozen_weights": sum(one.nbytes for one in model.parameters()) - sum(one.nbytes for one in trained),
        "gradients": sum(one.nbytes for one in gradients),
        "optimiser_state": sum(one.nbytes for one in (*moments, *copies)),
    }


if __name__ == "__main__":
    main()
