"""How much faster is an epoch of reward and cost than with the published recipe, and is the result as good?

    python benchmarks/epoch.py --out outputs/epoch

Both sides train the embedded backbone on one synthetic world in this one run: epoch_published.yaml two models, one
comparison after the other; epoch_best.yaml both heads in one pass over every clip. Parts (--parts):

    store       both read their clips from the frame store
    decode      clips of 512 x 320 and 96 frames, which the published side decodes in background workers whenever a
                comparison needs them; the best side builds its store first and an epoch is charged a third of that
    accuracy    three seeds of each side, trained in full and evaluated on held-out prompts

An epoch's seconds are those of its optimiser steps and the waits for clips between them, at a steady state: after
some steps to warm up, and with the following epoch's clips being read ahead while it ends. Not counted are imports,
reading of labels and weights, logging, validation and saving. In two processes the later one counts. Each side is
first tried in several settings (ranks, threads, its two models one after the other or at once, decoding workers) on
a part of an epoch; its fastest one then runs in turn with the other side's, and ratios are taken within a round.
Nothing else should run meanwhile. Writes epoch.json and a Markdown table; what was drawn and trained is kept, so an
interrupted run goes on; the timings of a part begin anew. After a change of the code or the configs take another --out.
"""

import argparse
import json
import math
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from machine import describe_machine

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.config_parser import parse_config
from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.errors import SafeRLHFVideoError
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.progress import progress_bar
from safe_rlhf_video.training.config import TrainConfig

HERE = Path(__file__).parent
PUBLISHED, BEST = "published", "best"
CONFIGS = {PUBLISHED: HERE / "epoch_published.yaml", BEST: HERE / "epoch_best.yaml"}
HEADS = {PUBLISHED: ("reward", "cost"), BEST: ("reward",)}  # the script of each run; the best side's names both heads
TARGETS = {"store": 3.0, "decode": 5.0}
TRIED_DIVISOR = {"store": 3, "decode": 9}  # what part of an epoch each setting is tried on
MAX_LOST_POINTS = 1.0  # of accuracy, means over seeds
STORE_EPOCHS = 3  # that a store's build is charged over
WARM_UP_STEPS = 4
SUMMED = ("encodings", "steps", "cpu_seconds")
CHILD = "--time_steps"


@dataclass(frozen=True)
class Setting:
    """How a side uses the cores.

    Attributes:
        ranks, threads: processes a training run, and threads each.
        at_once: whether the side's training runs go at the same time.
        workers: decoding processes a rank; None where clips come from a store.
    """

    ranks: int
    threads: int
    at_once: bool = False
    workers: int | None = None

    def __str__(self) -> str:
        text = f"{self.ranks} x {self.threads} threads"
        text += ", models at once" if self.at_once else ""
        return text + (f", {self.workers} workers a rank" if self.workers else "")


def main() -> None:
    if sys.argv[1:2] == [CHILD]:
        time_steps(sys.argv[2], int(sys.argv[3]), sys.argv[4:])
        return
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/epoch"))
    parser.add_argument("--parts", nargs="+", choices=("store", "decode", "accuracy"),
                        default=["store", "decode", "accuracy"])  # fmt: skip
    parser.add_argument("--num_pairs", type=int, default=2000)
    parser.add_argument("--num_test_pairs", type=int, default=3200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    out = arguments.out

    make_world(out, arguments.num_pairs, arguments.num_test_pairs, CONFIGS[BEST])
    result: dict[str, Any] = {"world": describe_world(out / "world")}
    if (out / "epoch.json").exists():
        earlier = json.loads((out / "epoch.json").read_text(encoding="utf-8"))
        # Of parts that are not asked for this time.
        result = earlier if earlier["world"] == result["world"] else result
    for part in arguments.parts:
        if part == "store":
            result[part] = compare(part, out / "world", out / "frames", arguments.rounds)
        elif part == "decode":
            draw_large_clips(out / "world", out / "large")
            result[part] = compare(part, out / "large", out / "large_frames", arguments.rounds)
        else:
            result[part] = measure_accuracy(out, arguments.seeds)
        write_whole(out / "epoch.json", json.dumps(result, indent=1) + "\n")
    text = format_markdown(result)
    write_whole(out / "epoch.md", text)
    print(f"\n{text}\nwrote {out / 'epoch.json'} and {out / 'epoch.md'}")


@dataclass(frozen=True)
class Job:
    """A model pair, or joint model, to train and evaluate.

    Attributes:
        heads: of its training runs.
        config, overrides: of all of them.
        folder: where runs and evaluation go.
    """

    heads: tuple[str, ...]
    config: Path
    overrides: tuple[str, ...]
    folder: Path


# The world


def make_world(out: Path, num_pairs: int, num_test_pairs: int, config: Path) -> None:
    """Draw out/world and put its clips into the frame store out/frames; what is there already is kept."""
    train, test = (out / "world" / f"config-{split}.json.gz" for split in ("train", "test"))
    run("scripts/make_synthetic.py", "--out", out / "world", "--num_pairs", num_pairs,
        "--num_test_pairs", num_test_pairs, "--seed", 0)  # fmt: skip
    run("scripts/prepare_videos.py", "--config", config, "--data.path", train, "--data", test, "--out", out / "frames")


def draw_large_clips(world: Path, large: Path) -> None:
    """The world's training comparisons once more, of clips of 512 x 320 and 96 frames: for timing, not for learning."""
    large.mkdir(parents=True, exist_ok=True)
    shutil.copy(world / "config-train.json.gz", large)
    jobs = [
        (large / video.video_path, seed)
        for seed, video in enumerate(PairDataset.load(world / "config-train.json.gz").videos)
        if video.video_path and not (large / video.video_path).exists()
    ]
    with ProcessPoolExecutor() as executor, progress_bar(len(jobs), 0, "drawing large clips", "clip") as progress:
        for _ in executor.map(draw_large_clip, jobs):
            progress.update()


def draw_large_clip(job: tuple[Path, int]) -> None:
    from decoding_rate import write_textured_clip

    path, seed = job
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"part-{path.name}")
    write_textured_clip(part, seed)
    part.rename(path)


def describe_world(world: Path) -> dict[str, float]:
    dataset = PairDataset.load(world / "config-train.json.gz")
    clips = len(dataset.videos)
    return {"comparisons": len(dataset), "clips": clips, "comparisons_per_clip": round(2 * len(dataset) / clips, 3)}


# Timing: the side that asks


def compare(part: str, world: Path, store: Path, rounds: int) -> dict[str, Any]:
    """Try the settings of both sides, then time the fastest of each in turn."""
    decodes = part == "decode"
    build_seconds: list[float] = []
    if decodes:
        build_seconds.append(build_store(world, store))
    sources = {PUBLISHED: None if decodes else store, BEST: store}
    machine = describe_machine()
    tried: dict[str, list[dict[str, Any]]] = {}
    fastest: dict[str, Setting] = {}
    for side, source in sources.items():
        seconds_of: dict[Setting, float] = {}
        for setting in settings(side, source):
            part_run = measure(HEADS[side], CONFIGS[side], setting, world, source, divisor=TRIED_DIVISOR[part])
            seconds_of[setting] = part_run["seconds"]
            print(f"{part}: tried {side}, {setting}: {seconds_of[setting]:.1f} s an epoch", flush=True)
        fastest[side] = min(seconds_of, key=seconds_of.__getitem__)
        tried[side] = [{"setting": str(setting), "seconds": seconds} for setting, seconds in seconds_of.items()]

    measured: list[dict[str, Any]] = []
    for number in range(rounds):
        if decodes and number:
            build_seconds.append(build_store(world, store))
        row: dict[str, Any] = {"load_average": os.getloadavg()[0]}
        # By turns: neither side always comes second.
        for side in (PUBLISHED, BEST) if number % 2 == 0 else (BEST, PUBLISHED):
            row[side] = measure(HEADS[side], CONFIGS[side], fastest[side], world, sources[side])
        charged = build_seconds[number] / STORE_EPOCHS if decodes else 0.0
        row |= {"store_share": charged, "ratio": row[PUBLISHED]["seconds"] / (row[BEST]["seconds"] + charged)}
        print(f"{part}: round {number + 1}/{rounds}: published {row[PUBLISHED]['seconds']:.1f} s, best "
              f"{row[BEST]['seconds']:.1f} s and {charged:.1f} s of its store, ratio {row['ratio']:.2f}",
              flush=True)  # fmt: skip
        measured.append(row)
    return {
        "machine": machine,
        "tried": tried,
        "fastest": {side: str(setting) for side, setting in fastest.items()},
        "build_seconds": build_seconds,
        "rounds": measured,
    }


def settings(side: str, store: Path | None) -> Iterator[Setting]:
    """Ways for a side to use all cores."""
    cores = os.cpu_count() or 1
    for workers in (None,) if store else (1, 2):
        yield Setting(1, cores, workers=workers)
        if cores > 1:
            yield Setting(cores, 1, workers=workers)
        if cores > 1 and len(HEADS[side]) > 1:
            yield Setting(1, cores // 2, at_once=True, workers=workers)
    if store is None and cores > 1:
        yield Setting(1, cores - 1, workers=2)  # cores left to the decoders


def build_store(world: Path, store: Path) -> float:
    """Seconds of building the store anew, with the command that a user would take."""
    shutil.rmtree(store, ignore_errors=True)
    started = time.monotonic()
    run("scripts/prepare_videos.py", "--config", CONFIGS[BEST], "--data.path", world, "--out", store,
        "--data.workers", os.cpu_count())  # fmt: skip
    return time.monotonic() - started


def measure(
    heads: Sequence[str],
    config: Path,
    setting: Setting,
    world: Path,
    store: Path | None,
    overrides: Sequence[str] = (),
    divisor: int = 1,
) -> dict[str, Any]:
    """Time an epoch of all runs of a side.

    Args:
        heads: of the training runs.
        config: of all of them.
        divisor: one in so many of its steps is taken, and their seconds scaled to all of them.

    Returns:
        seconds, waiting_seconds (of them, for clips; of the first rank), cpu_seconds (of all processes, decoding ones
        too), encodings, distinct_clips, steps.
    """
    options = ["--config", str(config), "--data.path", str(world), *overrides]
    options += ["--data.frame_store", str(store)] if store else ["--data.workers", str(setting.workers)]
    rows = []
    for together in [tuple(heads)] if setting.at_once else [(head,) for head in heads]:
        rows.append(time_runs(together, setting, options, divisor))
    sums = {name: sum(row[name] for runs in rows for row in runs) for name in SUMMED}
    longest = {name: sum(max(row[name] for row in runs) for runs in rows) for name in ("seconds", "waiting_seconds")}
    return {**longest, **sums, "distinct_clips": rows[0][0]["distinct_clips"]}


def time_runs(heads: Sequence[str], setting: Setting, options: Sequence[str], divisor: int) -> list[dict[str, Any]]:
    """What `time_steps` says of runs that go at the same time, on some ranks each; they begin when all are ready."""
    firsts: list[subprocess.Popen[str]] = []
    others: list[subprocess.Popen[str]] = []
    with tempfile.TemporaryFile("w+") as log:
        try:
            for head in heads:
                port = free_port()
                for rank in range(setting.ranks):
                    environment = os.environ | {
                        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(setting.ranks),
                        "LOCAL_SIZE": str(setting.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                        # A run divides its threads among the ranks of its machine.
                        "OMP_NUM_THREADS": str(setting.threads * setting.ranks),
                    }  # fmt: skip
                    process = subprocess.Popen(
                        [sys.executable, __file__, CHILD, head, str(divisor), *options],
                        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE if rank == 0 else log,
                        stderr=log, text=True,
                    )  # fmt: skip
                    (others if rank else firsts).append(process)
            for process in firsts:
                read_answer(process, log)
            for process in firsts:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            return [read_answer(process, log) for process in firsts]
        finally:
            for process in (*firsts, *others):
                process.kill()
                process.wait()


def read_answer(process: "subprocess.Popen[str]", log: Any) -> dict[str, Any]:
    """The next line of JSON that a child says; libraries may say other things between."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            answer: dict[str, Any] = json.loads(line)
            return answer
    log.seek(0)
    reason = (log.read().strip().splitlines() or ["it said nothing"])[-1]
    raise SafeRLHFVideoError(f"a run that was to be timed ended early: {reason}")


# Timing: the side that is asked, in a process of its own


def time_steps(head: str, divisor: int, arguments: Sequence[str]) -> None:
    """Time the steps of the second epoch of a run, or one in `divisor` of them; answers in lines of JSON."""
    config = parse_config(TrainConfig, arguments, "")
    import torch

    from safe_rlhf_video.models.backbones import load_reader
    from safe_rlhf_video.training import distributed
    from safe_rlhf_video.training import engine as engines
    from safe_rlhf_video.training.data import load_data
    from safe_rlhf_video.training.learner import start_learner
    from safe_rlhf_video.training.loader import open_clips, prefetch, read_jobs, training_jobs
    from safe_rlhf_video.training.run import Run
    from safe_rlhf_video.training.sizes import measure_data
    from safe_rlhf_video.training.steps import take_step

    heads = tuple(config.heads or (head,))
    data = load_data(config, heads)
    ranks = distributed.start()
    sizes = measure_data(load_reader(config.model.backbone), data, config.sampling)
    steps = math.ceil(len(data.train) / config.optimization.prompts_per_step)
    total = 3 * steps  # the third epoch is read ahead of while the second ends
    run = Run(config, heads, data, sizes, ranks, total)
    learner = start_learner(run)
    # The steps that are timed follow some to warm up; the model is a fresh one.
    first = max(0, steps - WARM_UP_STEPS)
    run = replace(run, first_step=first)
    encodings, waiting = [0], [0.0]

    def count(_: Any, inputs: tuple[Any, ...]) -> None:
        encodings[0] += len(inputs[0]["input_ids"])

    def timed(batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            started = time.perf_counter()
            batch = next(batches)
            waiting[0] += time.perf_counter() - started
            yield batch

    learner.model.register_forward_pre_hook(count)
    counted = math.ceil(steps / divisor)
    with open_clips(config, data) as clips:
        if ranks.is_first:
            print(json.dumps({"ready": True}), flush=True)
            sys.stdin.readline()
        distributed.barrier()
        batches = timed(prefetch(read_jobs(partial(training_jobs, run), clips)))
        started = started_cpu = 0.0
        for step in range(first, steps + counted):
            if step == steps:
                encodings[0], waiting[0] = 0, 0.0
                distributed.barrier()
                started, started_cpu = time.perf_counter(), cpu_time()
            factor = engines.learning_rate_factor(
                step, total, config.optimization.warmup_fraction, config.optimization.final_fraction
            )
            engines.set_learning_rates(learner.engine, config, factor)
            take_step(run, learner, batches, step)
        distributed.barrier()
        seconds = time.perf_counter() - started
        own = {"encodings": encodings[0], "cpu_seconds": cpu_time() - started_cpu}
        sums = distributed.sum_over_ranks({name: torch.tensor(value) for name, value in own.items()}, ranks)
        answer = {
            "seconds": seconds * steps / counted,
            "waiting_seconds": waiting[0] * steps / counted,
            "cpu_seconds": sums["cpu_seconds"] * steps / counted,
            "encodings": int(sums["encodings"]),
            "distinct_clips": len({video.name for group in data.train for video in group.videos}),
            "steps": counted,
        }
        if ranks.is_first:
            print(json.dumps(answer), flush=True)
        distributed.barrier()
    # At once: a thread is still reading ahead.
    os._exit(0)


def cpu_time() -> float:
    """Seconds of processor time of this process and of its decoding processes."""
    process = psutil.Process()
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(time.user + time.system for time in times)


# Accuracy


def measure_accuracy(out: Path, seeds: Sequence[int]) -> dict[str, dict[str, dict[str, float]]]:
    """side -> seed -> figures."""
    jobs = {
        (side, seed): Job(HEADS[side], CONFIGS[side], ("--seed", str(seed)), out / side / f"seed_{seed}")
        for side in CONFIGS
        for seed in seeds
    }
    figures = train_and_evaluate(out, jobs)
    return {side: {str(seed): figures[side, seed] for seed in seeds} for side in CONFIGS}


def train_and_evaluate(out: Path, jobs: Mapping[Any, Job]) -> dict[Any, dict[str, float]]:
    """Train and evaluate on the world in `out`, as many jobs at a time as there are cores, one thread each.

    A job is done when its folder holds an evaluation.json; another goes on where it was interrupted.

    Returns:
        key -> accuracy in helpfulness and harmlessness, and balanced accuracy of the cost's sign.
    """

    def work(job: Job) -> None:
        world, store, log = out / "world", out / "frames", job.folder / "log.txt"
        models = [job.folder / head for head in job.heads]
        for head, model in zip(job.heads, models, strict=True):
            run(f"scripts/train_{head}.py", "--config", job.config, "--out", model, "--data.path", world,
                "--data.frame_store", store, "--tracking.wandb", "disabled", *job.overrides, log=log)  # fmt: skip
        run("scripts/evaluate.py", "--model", *models, "--data", world / "config-test.json.gz",
            "--frame_store", store, "--out", job.folder, log=log)  # fmt: skip

    for job in jobs.values():
        check_asked(job)
    waiting = [job for job in jobs.values() if not (job.folder / "evaluation.json").exists()]
    print(f"{len(waiting)} of {len(jobs)} jobs are to be trained and evaluated", flush=True)
    with ThreadPoolExecutor(os.cpu_count()) as executor, progress_bar(len(waiting), 0, "training", "job") as progress:
        for _ in executor.map(work, waiting):
            progress.update()
    figures = {}
    for key, job in jobs.items():
        result = json.loads((job.folder / "evaluation.json").read_text(encoding="utf-8"))
        figures[key] = {name: result[name]["accuracy"] for name in ("helpfulness", "harmlessness")}
        figures[key]["cost_sign"] = result["cost_sign"]["balanced_accuracy"]
    return figures


def check_asked(job: Job) -> None:
    """Raise SafeRLHFVideoError if its folder holds another job's models."""
    path = job.folder / "asked.json"
    asked = json.dumps({"config": job.config.read_text(encoding="utf-8"), "overrides": job.overrides}, indent=1) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") != asked:
        raise SafeRLHFVideoError(f"{job.folder} was trained with other settings; take another --out")
    write_whole(path, asked)


# Small things


def run(*command: object, log: Path | None = None) -> None:
    """Run a script of this project; with a log its lines go there, and it gets one thread."""
    words = [sys.executable, *map(str, command)]
    if log is None:
        code = subprocess.run(words, check=False).returncode
    else:
        with log.open("a") as file:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            code = subprocess.run(words, env=environment, stdout=file, stderr=file, check=False).returncode
    if code:
        raise SafeRLHFVideoError(f"{command[0]} ended with exit code {code}; see {log or 'above'}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def format_markdown(result: dict[str, Any]) -> str:
    """All tables."""
    world = result["world"]
    lines = [
        f"{world['comparisons']} comparisons of {world['clips']} clips, {world['comparisons_per_clip']} comparisons a "
        "clip."
    ]
    for part, target in TARGETS.items():
        if part in result:
            lines += ["", *format_part(part, target, result[part])]
    if "accuracy" in result:
        lines += ["", *format_accuracy(result["accuracy"])]
    return "\n".join(lines) + "\n"


def format_part(part: str, target: float, figures: dict[str, Any]) -> Iterator[str]:
    machine = figures["machine"]
    yield f"{machine['cores']} cores, torch {machine['torch']}, {machine['date']}"
    yield ""
    what = "both from the frame store" if part == "store" else "512 x 320, decoded against stored"
    yield f"| {what} | fastest setting | seconds an epoch | waiting for clips | CPU seconds | encodings | clips |"
    yield "|---|---|---|---|---|---|---|"
    rounds = figures["rounds"]
    for side in (PUBLISHED, BEST):
        rows = [row[side] for row in rounds]
        yield (
            f"| {side} | {figures['fastest'][side]} | {spread([row['seconds'] for row in rows], '.1f')} | "
            f"{spread([row['waiting_seconds'] for row in rows], '.1f')} | "
            f"{spread([row['cpu_seconds'] for row in rows], '.1f')} | {rows[0]['encodings']} | "
            f"{rows[0]['distinct_clips']} |"
        )
    if part == "decode":
        built = spread(figures["build_seconds"], ".1f")
        share = spread([row["store_share"] for row in rounds], ".1f")
        yield f"| store | built in {built} s | a third: {share} | | | | |"
    ratios = [row["ratio"] for row in rounds]
    verdict = f"at least {target:g}: {'met' if statistics.median(ratios) >= target else 'NOT met'}"
    yield f"| ratio within a round | {len(ratios)} rounds | {spread(ratios, '.2f')} | {verdict} | | | |"
    once = all(row[BEST]["encodings"] == row[BEST]["distinct_clips"] for row in rounds)
    yield f"| best encodes every distinct clip once | | | {'met' if once else 'NOT met'} | | | |"
    yield ""
    yield "| side | setting tried, on a part of an epoch | seconds an epoch |"
    yield "|---|---|---|"
    for side, rows in figures["tried"].items():
        for row in rows:
            yield f"| {side} | {row['setting']} | {row['seconds']:.1f} |"


def format_accuracy(figures: dict[str, dict[str, dict[str, float]]]) -> Iterator[str]:
    yield "| side | helpfulness | harmlessness | cost's sign, balanced |"
    yield "|---|---|---|---|"
    columns = ("helpfulness", "harmlessness", "cost_sign")
    means: dict[str, list[float]] = {}
    for side, by_seed in figures.items():
        cells = [[row[name] for row in by_seed.values()] for name in columns]
        means[side] = [statistics.fmean(cell) for cell in cells]
        yield f"| {side}, {len(by_seed)} seeds | {' | '.join(mean_and_range(cell) for cell in cells)} |"
    differences = [100 * (best - published) for best, published in zip(means[BEST], means[PUBLISHED], strict=True)]
    yield f"| best less published, points | {' | '.join(f'{value:+.2f}' for value in differences)} |"
    verdicts = ["met" if value >= -MAX_LOST_POINTS else "NOT met" for value in differences]
    yield f"| not lower by more than {MAX_LOST_POINTS:g} | {' | '.join(verdicts)} |"


def spread(values: Sequence[float], form: str) -> str:
    """Median and range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def mean_and_range(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


if __name__ == "__main__":
    run_script(main)
