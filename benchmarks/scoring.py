"""How many clips a second get a reward and a cost: from two models, or from one that was trained jointly?

    python benchmarks/scoring.py --out outputs/scoring.json

Three sides over the same clips, in turn over several rounds, each from the files and from a frame store: two scorers,
one after the other, as two separately trained models are used elsewhere (each reads every clip and runs the vision
tower); one scorer with both adapters, which reads a clip once and runs the tower once; one scorer with a joint adapter.
Weights are random: times do not depend on them. Loading is not counted, starting the decoding processes neither.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine
from step import choose_sampling, write_world

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.models.backbones import load_backbone
from safe_rlhf_video.models.config import BackboneConfig, LoraConfig
from safe_rlhf_video.models.folder import save_model
from safe_rlhf_video.models.record import ModelRecord
from safe_rlhf_video.models.score_model import ScoreModel
from safe_rlhf_video.scoring.score_many import Source
from safe_rlhf_video.scoring.scorer import Scorer
from safe_rlhf_video.video.frame_store import FrameStore
from safe_rlhf_video.video.sampling import Sampling
from safe_rlhf_video.video.store_builder import ClipFile, build_store

MODELS: dict[str, Mapping[str, tuple[str, ...]]] = {
    "reward": {"reward": ("reward",)},
    "cost": {"cost": ("cost",)},
    "joint": {"joint": ("reward", "cost")},
}
# Each a list of scorers, and those of lists of model folders.
SIDES = {"two models": [["reward"], ["cost"]], "two adapters": [["reward", "cost"]], "joint": [["joint"]]}


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tiny", help="a checkpoint folder, a hub id, or the embedded one")
    parser.add_argument("--side", type=int, help="frames are squares of so many pixels (32 for the embedded one)")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16, help="of LoRA")
    parser.add_argument("--prompts", type=int, default=32, help="of 3.9 clips each")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--workers", type=int, default=2, help="decoding processes of each scorer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="a JSON file with every round")
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder))
    print_result(result)
    if arguments.out:
        write_whole(arguments.out, json.dumps(result, indent=1) + "\n")


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    asked = BackboneConfig(path=arguments.backbone)
    lora = LoraConfig(rank=arguments.rank, alpha=2.0 * arguments.rank)
    sampling = write_models(folder, asked, lora, arguments)
    side = int(sampling.max_pixels**0.5)
    write_world(folder / "world", arguments.prompts, max(side, 64))
    dataset = PairDataset.load(folder / "world", "config-train.json.gz")
    prompts = [video.prompt_text for video in dataset.videos]
    names = [video.name for video in dataset.videos]
    files = dataset.video_files(dataset.videos)
    clips = [ClipFile(name, path) for name, path in zip(names, files, strict=True)]
    build_store(folder / "store", sampling, clips, len(clips), num_workers=arguments.workers)
    store = FrameStore.open(folder / "store", sampling)
    sources: dict[str, list[Source]] = {"files": list(files), "store": [partial(store.read, name) for name in names]}
    rounds: list[dict[str, float]] = []
    scorers = {
        name: [load_scorer([folder / model for model in models], arguments) for models in side]
        for name, side in SIDES.items()
    }
    try:
        # Once beforehand: decoding processes start, caches fill.
        for number in range(arguments.rounds + 1):
            seconds: dict[str, float] = {}
            for source, clips_of in sources.items():
                for batch_size in arguments.batch_sizes:
                    for name, side_scorers in scorers.items():
                        score = partial(score_all, side_scorers, prompts, clips_of, batch_size)
                        seconds[f"{name}, {source}, {batch_size}"] = time_of(score, side_scorers[0].device)
            if number:
                rounds.append({name: len(prompts) / value for name, value in seconds.items()})
    finally:
        for scorer in (scorer for side_scorers in scorers.values() for scorer in side_scorers):
            scorer.close()
    return {
        "arguments": {name: str(value) for name, value in vars(arguments).items() if value is not None},
        "batch_sizes": arguments.batch_sizes,
        "machine": describe_machine(),
        "num_clips": len(prompts),
        "sampling": sampling.to_dict(),
        "clips_per_second": rounds,
    }


def write_models(folder: Path, asked: BackboneConfig, lora: LoraConfig, arguments: argparse.Namespace) -> Sampling:
    """A folder for each of `MODELS`, as training leaves them; returns how their clips are sampled."""
    for name, heads_of_adapter in MODELS.items():
        backbone = load_backbone(asked)
        sampling = choose_sampling(backbone.family, arguments.frames, arguments.side)
        model = ScoreModel(backbone, heads_of_adapter, lora)
        record = ModelRecord(asked, backbone.fingerprint, sampling, lora, heads_of_adapter)
        weights = {key: one.detach() for part in model.trained().values() for key, one in part.items()}
        save_model(model, record, folder / name, weights)
    return sampling


def load_scorer(folders: Sequence[Path], arguments: argparse.Namespace) -> Scorer:
    return Scorer.from_pretrained(*folders, device=arguments.device, workers=arguments.workers)


def score_all(scorers: Sequence[Scorer], prompts: Sequence[str], sources: Sequence[Source], batch_size: int) -> None:
    for scorer in scorers:
        for _ in scorer.iterate(prompts, sources, batch_size):
            pass


def time_of(function: Callable[[], None], device: torch.device) -> float:
    started = time.perf_counter()
    function()  # scores are read back, so the device is done at its end
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def print_result(result: dict[str, Any]) -> None:
    rounds = result["clips_per_second"]
    machine, clips = result["machine"], result["num_clips"]
    print(f"{machine['device']}; {clips} clips, {len(rounds)} rounds; reward and cost of clips/s, medians")
    print(f"{'':<18} " + " ".join(f"{name:>13}" for name in SIDES) + "   ratios to two models (least to most)")
    for source in ("files", "store"):
        for batch_size in result["batch_sizes"]:
            columns = {name: [one[f"{name}, {source}, {batch_size}"] for one in rounds] for name in SIDES}
            rates = " ".join(f"{statistics.median(column):13.1f}" for column in columns.values())
            ratios = []
            for name in ("two adapters", "joint"):
                pairs = [a / b for a, b in zip(columns[name], columns["two models"], strict=True)]
                ratios.append(f"{name} {statistics.median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})")
            print(f"{source}, batches of {batch_size:<3d} {rates}   {', '.join(ratios)}")


if __name__ == "__main__":
    run_script(main)
