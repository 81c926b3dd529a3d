"""What accuracy do so many encodings, or seconds of processor, buy: for a reward, a cost, both at once, and a peer?

    python benchmarks/time_to_accuracy.py --out outputs/time_to_accuracy
    python benchmarks/time_to_accuracy.py --out outputs/time_to_accuracy --peer ms-swift=outputs/ms_swift
    python benchmarks/time_to_accuracy.py --world text --out outputs/text_to_accuracy --peer trl=outputs/trl

Trains on all 2,000 training comparisons of the quick start's world, or of a world of texts, anew for each way, number
of epochs and seed, and scores 3,200 comparisons of held-out prompts. A peer's folder has its scores of the same clips
or texts in HEAD_SEED.json, as the commands in benchmarks/peers/README.md write them from OUT/world. Seconds are those
of the processor, of whole training processes with one thread each. Writes time_to_accuracy.json, tables in Markdown and
a picture. Runs go side by side, one a core; interrupted, it goes on where it stopped.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
from epoch import HERE, make_world, run
from machine import describe_machine
from matplotlib.figure import Figure

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.data.labelled_pairs import preference_margin, select_labelled
from safe_rlhf_video.data.preferences import safety_signs
from safe_rlhf_video.errors import ConfigError, SafeRLHFVideoError
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.heads import DIMENSION_OF_HEAD
from safe_rlhf_video.pages.figures import COLOUR, page_style, standalone_svg
from safe_rlhf_video.progress import progress_bar
from safe_rlhf_video.stats.credit import credit, sign_accuracy
from safe_rlhf_video.stats.intervals import Interval, difference_interval

CONFIGS = {name: HERE.parent / "configs" / f"{file}.yaml" for name, file in [("video", "quickstart"), ("text", "text")]}
HEADS = ("reward", "cost")
SUB_DIMENSIONS = ("instruction_following", "correctness", "informativeness", "aesthetics")
# Way -> the heads of each of its training runs. Texts have no labels in sub-dimensions.
WAYS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "separate": (("reward",), ("cost",)),
    "joint": (("reward", "cost"),),
    "joint with sub-dimensions": (("reward", "cost", *SUB_DIMENSIONS),),
}
LOOKS = (("blue", "o"), ("orange", "s"), ("green", "^"), ("purple", "D"), ("red", "v"), ("olive", "P"))


@dataclass(frozen=True)
class Job:
    """A training run and its evaluation.

    Attributes:
        changes: fields of the config that have another value, as FIELD=VALUE.
    """

    world: str
    heads: tuple[str, ...]
    changes: tuple[str, ...]
    epochs: int
    seed: int
    out: Path

    @property
    def folder(self) -> Path:
        """Named for all that the run depends on."""
        words = (*self.heads, *map(shorten, self.changes), self.epochs, self.seed)
        return self.out / re.sub(r"[^\w.-]+", "_", "_".join(map(str, words)))


@dataclass(frozen=True)
class Point:
    """A way to train both heads, with so many epochs.

    Attributes:
        encodings: passes of the language model over a clip or text in training.
        cpu_seconds: of training, the mean over seeds.
        right: head -> (seeds, M) credit of each test comparison.
        balanced: balanced accuracy of the cost's sign, a value a seed; empty for a cost without a zero.
    """

    name: str
    epochs: int
    encodings: int
    cpu_seconds: float
    right: Mapping[str, np.ndarray]
    balanced: Sequence[float] = ()


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--world", choices=tuple(CONFIGS), default="video")
    parser.add_argument("--ways", choices=tuple(WAYS), nargs="+", default=["separate", "joint"])
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--changes",
        nargs="+",
        default=[""],
        metavar="'FIELD=VALUE ...'",
        help="of the config; a row for each, '' is none",
    )
    parser.add_argument("--peer", nargs="+", default=[], metavar="NAME=FOLDER", help="of one number of epochs each")
    parser.add_argument("--only_world", action="store_true", help="draw the world, which a peer needs too, and end")
    arguments = parser.parse_args()
    if arguments.world == "text" and "joint with sub-dimensions" in arguments.ways:
        raise ConfigError("--ways: texts have no labels in sub-dimensions")
    out = arguments.out
    if arguments.world == "text":
        make_text_world(out / "world")
    else:
        make_world(out, 2000, 3200, CONFIGS["video"])
    if arguments.only_world:
        return
    jobs = {
        (way, changes, epochs): [
            [Job(arguments.world, heads, tuple(shlex.split(changes)), epochs, seed, out) for heads in WAYS[way]]
            for seed in arguments.seeds
        ]
        for way, changes, epochs in product(arguments.ways, arguments.changes, arguments.epochs)
    }
    train_all(out, [job for seeds in jobs.values() for runs in seeds for job in runs])
    train, test = (PairDataset.load(out / "world" / f"config-{split}.json.gz") for split in ("train", "test"))
    points = [
        measure(
            ", ".join([way, *map(shorten, shlex.split(changes))]) if len(arguments.changes) > 1 else way,
            runs,
            train,
            test,
        )
        for (way, changes, _), runs in jobs.items()
    ]
    peers = [read_peer(*split_name(text), train, test) for text in arguments.peer]
    table = format_table([*points, *peers], peers, test)
    print(table)
    result = {"machine": describe_machine(), "seeds": arguments.seeds, "points": [*map(to_fields, [*points, *peers])]}
    write_whole(out / "time_to_accuracy.json", json.dumps(result, indent=2) + "\n")
    write_whole(out / "time_to_accuracy.md", table + "\n")
    with page_style():
        write_whole(out / "time_to_accuracy.svg", standalone_svg(draw([*points, *peers]), "accuracy against encodings"))


def make_text_world(world: Path) -> None:
    """Draws comparisons of texts; what is there already is kept."""
    files = {split: world / f"config-{split}.json.gz" for split in ("train", "test")}
    if all(file.exists() for file in files.values()):
        return
    run("scripts/make_synthetic_text.py", "--out", world, "--num_pairs", 2000, "--num_test_pairs", 3200)
    for split, file in files.items():
        run("scripts/convert.py", "saferlhf", "--input", world / f"{split}.jsonl", "--out", file)


def train_all(out: Path, jobs: Sequence[Job]) -> None:
    """Trains and scores what is not done, as many runs at a time as there are cores."""
    waiting = [job for job in jobs if not (job.folder / "cpu_seconds").exists()]

    def work(job: Job) -> None:
        job.folder.mkdir(parents=True, exist_ok=True)
        log = job.folder / "log.txt"
        store = out / "frames" if job.world == "video" else None  # texts have no frames
        seconds = run_and_time(
            f"scripts/train_{job.heads[0]}.py", "--config", CONFIGS[job.world], "--heads", f"[{','.join(job.heads)}]",
            "--out", job.folder / "run", "--data.path", out / "world" / "config-train.json.gz",
            *(["--data.frame_store", store] if store else []), "--data.validation_fraction", 0, "--seed", job.seed,
            "--optimization.epochs", job.epochs, "--tracking.wandb", "disabled",
            *[f"--{change}" for change in job.changes], log=log,
        )  # fmt: skip
        run("scripts/evaluate.py", "--model", job.folder / "run", "--data", out / "world" / "config-test.json.gz",
            *(["--frame_store", store] if store else []), "--out", job.folder, log=log)  # fmt: skip
        write_whole(job.folder / "cpu_seconds", f"{seconds}\n")

    with ThreadPoolExecutor(os.cpu_count()) as executor, progress_bar(len(waiting), 0, "training", "run") as progress:
        for _ in executor.map(work, waiting):
            progress.update()


def run_and_time(*command: object, log: Path) -> float:
    """Runs a script of this project with one thread; returns the seconds of processor that it and its children took."""
    with log.open("a") as file:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        words = [sys.executable, *map(str, command)]
        process = subprocess.Popen(words, env=environment, stdout=file, stderr=file)
        _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SafeRLHFVideoError(f"{command[0]} ended with exit code {os.waitstatus_to_exitcode(status)}; see {log}")
    return usage.ru_utime + usage.ru_stime


def measure(name: str, seeds: Sequence[Sequence[Job]], train: PairDataset, test: PairDataset) -> Point:
    """The figures of a way, from its runs by seed."""
    right: dict[str, list[np.ndarray]] = {head: [] for head in HEADS}
    balanced, seconds = [], []
    for runs in seeds:
        seconds.append(sum(float((job.folder / "cpu_seconds").read_text()) for job in runs))
        for job in runs:
            rows = (job.folder / "scores.jsonl").read_text().splitlines()[1:]
            scores = {row["key"]: row for row in map(json.loads, rows)}
            for head in set(HEADS) & set(job.heads):
                right[head].append(judge(head, scores, test))
            if "cost" in job.heads:
                balanced.append(judge_sign(scores, test))
    return Point(
        name=name,
        epochs=seeds[0][0].epochs,
        encodings=len(seeds[0]) * seeds[0][0].epochs * len(train.videos),
        cpu_seconds=float(np.mean(seconds)),
        right={head: np.array(rows) for head, rows in right.items()},
        balanced=balanced,
    )


def shorten(change: str) -> str:
    """From `optimization.final_fraction=0.5` to `final_fraction 0.5`."""
    field, _, value = change.partition("=")
    return f"{field.rpartition('.')[2]} {value}"


def read_peer(name: str, folder: Path, train: PairDataset, test: PairDataset) -> Point:
    """The figures of a peer that encodes both sides of every comparison, for each head."""
    right: dict[str, np.ndarray] = {}
    seconds = encodings = 0.0
    epochs = 1
    for head in HEADS:
        found = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{head}_*.json"))]
        if not found:
            raise ConfigError(f"{folder}: has no {head}_SEED.json; benchmarks/peers/README.md says how to make them")
        right[head] = np.array(
            [judge(head, {clip: {head: score} for clip, score in one["scores"].items()}, test) for one in found]
        )
        seconds += float(np.mean([one["cpu_seconds"] for one in found]))
        epochs = found[0].get("epochs", 1)
        encodings += 2 * epochs * len(select_labelled(train.pairs, DIMENSION_OF_HEAD[head], None).pairs)
    return Point(name, epochs, int(encodings), seconds, right)


def judge(head: str, scores: Mapping[str, Mapping[str, float]], test: PairDataset) -> np.ndarray:
    """(M,): the credit of each test comparison that has a label."""
    labelled = select_labelled(test.pairs, DIMENSION_OF_HEAD[head], None)
    return credit(preference_margin(labelled.pairs, scores, head) * labelled.sign)


def judge_sign(scores: Mapping[str, Mapping[str, float]], test: PairDataset) -> float:
    """The balanced accuracy of the cost's sign."""
    signs = safety_signs(test.pairs)
    costs = [scores[f"{prompt}/{video}"]["cost"] for prompt, video in signs]
    found = sign_accuracy(np.array(costs), np.array(list(signs.values()))).balanced_accuracy
    assert found is not None
    return found


def compare(one: Point, other: Point, head: str, test: PairDataset) -> tuple[float, Interval | None]:
    """The difference of two mean accuracies over seeds, with its interval by prompt, on the same comparisons."""
    difference = one.right[head].mean(axis=0) - other.right[head].mean(axis=0)
    prompts = select_labelled(test.pairs, DIMENSION_OF_HEAD[head], None).prompts
    return float(difference.mean()), difference_interval(difference, prompts)


def format_table(points: Sequence[Point], peers: Sequence[Point], test: PairDataset) -> str:
    """A row a point: means over seeds, with the least and the greatest, and the differences from each peer."""
    titles = [
        "both heads",
        "epochs",
        "encodings",
        "CPU seconds",
        "helpfulness",
        "harmlessness",
        "cost's sign, balanced",
    ]
    titles += [f"less {peer.name}, points: {DIMENSION_OF_HEAD[head]}" for peer in peers for head in HEADS]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for point in points:
        cells = [point.name, str(point.epochs), f"{point.encodings:,}", f"{point.cpu_seconds:.0f}"]
        cells += [show(point.right[head].mean(axis=1)) for head in HEADS]
        cells.append(show(point.balanced) if len(point.balanced) else "")
        for peer, head in product(peers, HEADS):
            difference, interval = compare(point, peer, head, test)
            ends = "" if interval is None else f" [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]"
            cells.append("" if point is peer else f"{100 * difference:+.2f}{ends}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def show(values: Sequence[float] | np.ndarray) -> str:
    return f"{np.mean(values):.4f} ({np.min(values):.4f} to {np.max(values):.4f})"


def to_fields(point: Point) -> dict[str, Any]:
    accuracy = {DIMENSION_OF_HEAD[head]: rows.mean(axis=1).tolist() for head, rows in point.right.items()}
    return {"name": point.name, "epochs": point.epochs, "encodings": point.encodings,
            "cpu_seconds": point.cpu_seconds, "accuracy": accuracy, "balanced": list(point.balanced)}  # fmt: skip


def draw(points: Sequence[Point]) -> Figure:
    """Mean accuracy against encodings, a panel a dimension, a line a way; bars from the least seed to the greatest."""
    figure = Figure(figsize=(9 * 100 / 72, 4.5 * 100 / 72), dpi=72, layout="constrained")
    names = list(dict.fromkeys(point.name for point in points))
    for axes, head in zip(figure.subplots(1, len(HEADS)), HEADS, strict=True):
        for number, (name, (colour, marker)) in enumerate(zip(names, cycle(LOOKS), strict=False)):
            own = [point for point in points if point.name == name]
            seeds = 100 * np.stack([point.right[head].mean(axis=1) for point in own])  # size = (epochs, seeds)
            means = seeds.mean(axis=1)
            bars = [means - seeds.min(axis=1), seeds.max(axis=1) - means]
            places = [point.encodings + 80 * number for point in own]  # or bars would hide one another
            axes.errorbar(places, means, bars, color=COLOUR[colour], marker=marker, label=name)
        axes.set(xlabel="encodings, for both heads", ylabel=f"accuracy in {DIMENSION_OF_HEAD[head]}, %")
        axes.set_xlim(left=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def split_name(text: str) -> tuple[str, Path]:
    name, is_there, folder = text.partition("=")
    if not is_there:
        raise ConfigError(f"--peer {text}: expected NAME=FOLDER")
    return name, Path(folder)


if __name__ == "__main__":
    run_script(main)
