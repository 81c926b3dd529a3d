"""Launched by test_zero.py: 20 real steps at every ZeRO stage, with adapters and with the whole language model.

Arguments: a training config and a folder. Rank 0 writes <folder>/<case>/model and <folder>/<case>/losses.json, the loss
of every step and the scores that the engine, with averaged weights, gives to the clips of the first validation prompt.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import torch

from safe_rlhf_video.config_parser import parse_config
from safe_rlhf_video.data.batch import collate
from safe_rlhf_video.models.backbones import load_reader
from safe_rlhf_video.models.folder import save_model
from safe_rlhf_video.models.inputs import build_inputs

from safe_rlhf_video.training import distributed, engine as engines  # isort: skip
from safe_rlhf_video.training.config import TrainConfig
from safe_rlhf_video.training.data import load_data
from safe_rlhf_video.training.learner import start_learner
from safe_rlhf_video.training.loader import open_clips, read_jobs, training_jobs
from safe_rlhf_video.training.objectives import LOSS
from safe_rlhf_video.training.run import Run
from safe_rlhf_video.training.sizes import measure_data
from safe_rlhf_video.training.steps import take_step

HEADS = ("reward", "cost")
STEPS = 20
STAGES = (0, 1, 2, 3)
TRAINED = {
    "lora": [],
    "full": ["--model.lora.rank", "0", "--model.trained_parts", "[language_model,projector]"],
}


def main() -> None:
    path, out = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    ranks = distributed.start()
    for trained, overrides in TRAINED.items():
        for stage in STAGES:
            config = parse_config(TrainConfig, ["--config", path, "--engine.zero_stage", str(stage), *overrides], "")
            train(config, ranks, Path(out) / f"{trained}_{stage}")
    distributed.barrier()
    distributed.stop()


def train(config: TrainConfig, ranks: distributed.Ranks, folder: Path) -> None:
    data = load_data(config, HEADS)
    sizes = measure_data(load_reader(config.model.backbone), data, config.sampling)
    run = Run(config, HEADS, data, sizes, ranks, STEPS)
    learner = start_learner(run)
    engine = learner.engine
    losses = []
    with open_clips(config, data) as clips:
        batches = read_jobs(partial(training_jobs, run), clips)
        for step in range(STEPS):
            engines.set_learning_rates(engine, config, 1.0)
            totals = take_step(run, learner, batches, step).totals
            losses.append(sum(value for name, value in totals.items() if name.startswith(LOSS)))
        group = data.validation[0]
        batch = collate([group], list(clips(group.videos)))
    weights, _ = engines.split_averages(engines.gather_weights(engine), engines.gather_moments(engine))
    inputs = build_inputs(learner.backbone, batch.prompts, batch.responses, ranks.device)
    engine.eval()
    with torch.no_grad():
        before = engine(inputs)
        with engines.averages_in_place(engine):
            scores = engine(inputs)
        after = engine(inputs)
    assert all(torch.equal(before[head], after[head]) for head in HEADS)
    if ranks.is_first:
        save_model(learner.model, learner.record, folder / "model", weights)
        found = {"losses": losses, "scores": {head: values.tolist() for head, values in scores.items()}}
        (folder / "losses.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
