"""Launched by test_gradients.py: one update with the real engine, in several ways, on one or two ranks.

Rank 0 writes <case>.safetensors, the gradient as it stands right before the optimiser's step, and
<case>-truth.safetensors, that of the whole step's loss by plain autograd, without DeepSpeed. Arguments: a folder, and
names of cases.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed.utils import safe_get_full_grad
from safetensors.torch import save_file

from safe_rlhf_video.data.batch import collate
from safe_rlhf_video.data.preferences import PromptGroup
from safe_rlhf_video.data.prompt_hashes import hash_prompts
from safe_rlhf_video.data.records import DIMENSIONS, VideoSample
from safe_rlhf_video.kinds.targets import NUM_LABEL_COLUMNS, classes_of, label_columns
from safe_rlhf_video.models.config import LoraConfig, ModelConfig
from safe_rlhf_video.models.inputs import build_inputs
from safe_rlhf_video.models.score_model import split_thresholds
from safe_rlhf_video.responses import Response, TextResponse

from safe_rlhf_video.training import distributed, engine as engines  # isort: skip
from safe_rlhf_video.training.config import DataConfig, EngineConfig, LossConfig, OptimizationConfig, TrainConfig
from safe_rlhf_video.training.data import TrainingData
from safe_rlhf_video.training.learner import Learner, build_model
from safe_rlhf_video.training.loader import contains_clip, read_jobs, share_out
from safe_rlhf_video.training.objectives import compute_objective
from safe_rlhf_video.training.plan import plan_step
from safe_rlhf_video.training.run import Run
from safe_rlhf_video.training.sizes import Sizes, measure_groups
from safe_rlhf_video.training.steps import take_step
from safe_rlhf_video.video.sampling import Sampling, Video

SEVERITY = "severity"
HEADS = ("reward", "cost", "harm_crime", SEVERITY)
# The smallest budget that any two groups exceed: every micro-batch holds one group.
ONE_GROUP = 1
# What a case trains.
PARTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "projector": {"trained_parts": ("projector",)},
    "full": {"lora": LoraConfig(rank=0), "trained_parts": ("language_model",)},
}
# ZeRO 3 as it is on a large model: what is updated lies in several pieces, and no small weight stays whole.
PIECES = {"sub_group_size": 3000, "stage3_param_persistence_threshold": 0}


@dataclass(frozen=True)
class Case:
    """One update.

    Attributes:
        budget: tokens of a micro-batch on a rank.
        num_groups: groups of very different sizes; with one alone a second rank has nothing to do.
        mixed: every second group is text, so that one rank may have videos and the other none; ties are trained on, and
            prompts count alike.
        trained: a key of PARTS.
        pieces: whether DeepSpeed is given PIECES.
    """

    zero_stage: int = 0
    budget: int = 0
    num_groups: int = 5
    mixed: bool = False
    trained: str = "lora"
    pieces: bool = False


CASES = {
    "unequal": Case(),
    "accumulated": Case(budget=ONE_GROUP),
    "idle": Case(num_groups=1),
    "mixed": Case(mixed=True, budget=400),
    "mixed_projector": Case(mixed=True, budget=400, trained="projector"),
    **{f"zero_{stage}": Case(stage, ONE_GROUP) for stage in (1, 2, 3)},
    "zero_2_idle": Case(2, num_groups=1),
    "zero_2_mixed": Case(2, mixed=True, trained="projector"),
    "zero_3_idle": Case(3, num_groups=1),
    "zero_3_mixed": Case(3, mixed=True, trained="projector"),
    "zero_3_mixed_accumulated": Case(3, ONE_GROUP, mixed=True, trained="projector"),
    **{f"full_zero_{stage}": Case(stage, ONE_GROUP, trained="full") for stage in (0, 1, 2, 3)},
    "full_zero_3_pieces": Case(3, ONE_GROUP, trained="full", pieces=True),
}
BLANK = VideoSample("p", "", None, None, "v", None, None, None, None, None, None, {})
NUM_VIDEOS = (2, 7, 2, 3, 4)
NUM_COMPARISONS = (0, 9, 1, 2, 3)


def main() -> None:
    folder, *names = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    ranks = distributed.start()
    truths: dict[Case, dict[str, torch.Tensor]] = {}
    for name in names:
        case = CASES[name]
        config = TrainConfig(
            out="-",
            data=DataConfig(path="-"),
            sampling=Sampling(4, 1024, 1024, 8),
            model=ModelConfig(**PARTS[case.trained]),
            optimization=OptimizationConfig(micro_batch_tokens=case.budget, gradient_clipping=1e9),
            loss=LossConfig(ties="rao_kupper", unit="prompt") if case.mixed else LossConfig(),
            engine=EngineConfig(
                zero_stage=case.zero_stage,  # type: ignore[arg-type]
                deepspeed={"zero_optimization": PIECES} if case.pieces else {},
            ),
        )
        groups = build_groups(case.mixed)
        groups = groups[1:2] if case.num_groups == 1 else groups[: case.num_groups]
        gradient = engine_gradient(config, ranks, groups)
        if ranks.is_first:
            save_file(gradient, Path(folder) / f"{name}.safetensors")
            # How a step is divided does not change what it is.
            step = replace(case, zero_stage=0, budget=0, pieces=False)
            if step not in truths:
                truths[step] = true_gradient(config, ranks, groups)
            save_file(truths[step], Path(folder) / f"{name}-truth.safetensors")
    distributed.barrier()
    distributed.stop()


def engine_gradient(
    config: TrainConfig, ranks: distributed.Ranks, groups: list[PromptGroup]
) -> dict[str, torch.Tensor]:
    backbone, model, record = build_probed_model(config, ranks)
    engine = engines.build_engine(model, config, ranks.device)
    sizes = Sizes(measure_groups(backbone, groups, config.sampling), [])
    run = Run(
        config, HEADS, TrainingData(groups, [], {}, None, "", [], {}, hash_prompts([], "")), sizes, ranks, total_steps=1
    )
    plan = plan_step(range(len(groups)), groups)
    jobs = partial(share_out, config, plan, plan.groups, groups, sizes.train, ranks, contains_clip(groups))
    batches = read_jobs(jobs, lambda samples: (read_fake_video(sample) for sample in samples))
    captured: dict[str, torch.Tensor] = {}
    step = engine.step

    def probe() -> None:
        for name, parameter in engines.trainable(engine.module).items():
            captured[name] = safe_get_full_grad(parameter).detach().clone()
        step()

    engine.step = probe
    norms = take_step(run, Learner(backbone, model, engine, record), batches, 0).norms
    for part, parameters in engine.module.trained().items():
        norm = torch.stack([captured[name].norm() for name in parameters]).norm()
        assert abs(norms[part] - float(norm)) <= 1e-5 * float(norm), part
    return captured


def true_gradient(config: TrainConfig, ranks: distributed.Ranks, groups: list[PromptGroup]) -> dict[str, torch.Tensor]:
    backbone, model, _ = build_probed_model(config, ranks)
    batch = collate(groups, [read_fake_response(sample) for group in groups for sample in group.videos])
    inputs = build_inputs(backbone, batch.prompts, batch.responses, ranks.device)
    scores, thresholds = split_thresholds(model(inputs, with_thresholds=True))
    plan = plan_step(range(len(groups)), groups)
    compute_objective(scores, batch, plan, config.loss, thresholds).loss.backward()
    return {name: parameter.grad for name, parameter in engines.trainable(model).items() if parameter.grad is not None}


def build_probed_model(config: TrainConfig, ranks: distributed.Ranks) -> Any:
    backbone, model, record = build_model(config, HEADS, ranks.device)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in engines.trainable(model).items():
        if "lora_B" in name:  # zero at the start, which would leave every lora_A without a gradient
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
        elif name.endswith(".bias") and "score_heads" in name:
            # Comparisons cancel in its gradient. What is left, of regularisation, must be more than their rounding.
            parameter.data.fill_(1.0)
    return backbone, model, record


def build_groups(mixed: bool) -> list[PromptGroup]:
    generator = np.random.default_rng(0)
    groups = []
    for number, (videos, comparisons) in enumerate(zip(NUM_VIDEOS, NUM_COMPARISONS, strict=True)):
        rows = {
            name: np.array(
                [generator.choice(videos, 2, replace=False) for _ in range(max(comparisons - skipped, 0))], np.int64
            ).reshape(-1, 2)
            for skipped, name in enumerate(DIMENSIONS)
        }
        is_text = mixed and number % 2 == 1
        samples = tuple(
            replace(BLANK, prompt_id=f"p{number}", video_id=f"v{i}", response_text=f"word {i}" * i if is_text else None)
            for i in range(videos)
        )
        sign = generator.integers(-1, 2, videos)
        text = f"a prompt {'of more words ' * number}"
        ties = {name: np.array([[1, 0], [0, 1]] if mixed else [], np.int64).reshape(-1, 2) for name in rows}
        harms = generator.choice([-0.7, 0.0, 1.9], (videos, NUM_LABEL_COLUMNS)).astype(np.float32)
        # One level a response, or none.
        num_levels = len(classes_of(SEVERITY))
        levels = np.eye(num_levels + 1, num_levels)[generator.integers(num_levels + 1, size=videos)]
        harms[:, label_columns(SEVERITY)] = 1.3 * levels
        groups.append(PromptGroup(f"p{number}", text, samples, rows, ties, sign, harms))
    return groups


def read_fake_video(sample: VideoSample) -> Video:
    generator = np.random.default_rng([ord(letter) for letter in sample.prompt_id + sample.video_id])
    frames = generator.integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    return Video(frames, np.arange(4) / 4)


def read_fake_response(sample: VideoSample) -> Response:
    return read_fake_video(sample) if sample.response_text is None else TextResponse(sample.response_text)


if __name__ == "__main__":
    main()
