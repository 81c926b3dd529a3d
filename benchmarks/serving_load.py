"""Measures the server under load from many clients, and checks every answer against the scorer's.

    python benchmarks/serving_load.py --model REWARD COST --video_root CLIPS --out outputs/serving_load.json

Every request has its own prompt and one of the clips under the root, so that an answer sent to the wrong client is
noticed. The same clips and prompts are scored offline before and after, with as many decoding processes and the same
batch size, by `Scorer.iterate` as in scripts. The clients run in another process; its processor time is reported beside
the server's. Memory is the resident sets of the server and the decoding processes, as the kernel counts them. The exit
code is 1 if an answer is lost or sent to another client, or if memory grows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from check_quickstart import at_least, at_most, report
from machine import describe_machine

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.errors import ConfigError, SafeRLHFVideoError
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.scoring.scorer import Scorer

HERE = Path(__file__).resolve().parent
HEAD = b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
TOLERANCE = 1e-5  # what batching moves
SAMPLE_S = 0.2
MAX_GROWTH = 0.05  # of memory, from the first quarter of the measured time to its last
NUM_OFFLINE_WARM = 64


@dataclass(frozen=True)
class Job:
    prompt: str
    path: str  # relative to the video root


def main() -> None:
    if sys.argv[1:] == ["clients"]:
        run_clients()
        return
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True, metavar="DIR", help="a reward and a cost folder")
    parser.add_argument("--video_root", type=Path, required=True, help="a folder with .mp4 files, at any depth")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--warm_up", type=int, default=2000, help="requests before those that are measured")
    parser.add_argument("--workers", type=int, default=2, help="decoding processes, offline and of the server")
    parser.add_argument("--batch_size", type=int, default=32, help="offline and of the server")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="a JSON file with all figures")
    arguments = parser.parse_args()
    result = measure(arguments)
    checks = list(check(result))
    print_result(result)
    if arguments.out:
        write_whole(arguments.out, json.dumps(result, indent=1) + "\n")
    report(arguments.out or Path("the load test"), checks)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    root = arguments.video_root
    paths = sorted(str(path.relative_to(root)) for path in root.rglob("*.mp4"))
    if not paths:
        raise ConfigError(f"--video_root {root}: has no .mp4 file")
    jobs = [
        Job(f"a red circle moving left at night, number {number}", paths[number % len(paths)])
        for number in range(arguments.warm_up + arguments.requests)
    ]
    measured = jobs[arguments.warm_up :]
    with Scorer.from_pretrained(*arguments.model, device=arguments.device, workers=arguments.workers) as scorer:
        offline = [score_offline(scorer, measured, root, arguments.batch_size)]
        expected = offline[0].pop("scores")
        scorer.close()
        served, answers = score_served(jobs, arguments)
        offline.append(score_offline(scorer, measured, root, arguments.batch_size))
        del offline[1]["scores"]
    return {
        "machine": describe_machine(),
        "requests": arguments.requests,
        "clients": arguments.clients,
        "distinct_clips": min(len(paths), len(measured)),
        "workers": arguments.workers,
        "batch_size": arguments.batch_size,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "offline": offline,
        "served": served,
        "answers": compare(answers, expected),
        "rate_to_offline": served["clips_per_s"] / statistics.mean(one["clips_per_s"] for one in offline),
    }


def score_offline(scorer: Scorer, jobs: Sequence[Job], root: Path, batch_size: int) -> dict[str, Any]:
    """Returns the scores of each request, and clips a second once all processes run."""

    def score(some: Sequence[Job]) -> list[dict[str, float]]:
        return list(scorer.iterate([job.prompt for job in some], [root / job.path for job in some], batch_size))

    score(jobs[:NUM_OFFLINE_WARM])
    started_s, used = time.monotonic(), os.times()
    scores = score(jobs)
    seconds = time.monotonic() - started_s
    now = os.times()
    return {
        "clips_per_s": len(jobs) / seconds,
        "own_cpu_s": now.user + now.system - used.user - used.system,
        "scores": scores,
    }


def score_served(jobs: Sequence[Job], arguments: argparse.Namespace) -> tuple[dict[str, Any], list[Any]]:
    """Returns figures of the measured requests, and the status and scores of each."""
    with running_server(arguments) as (address, process_id):
        ask(jobs[: arguments.warm_up], address, arguments.clients)
        before = read_batches(address)
        cpu = {name: cpu_seconds(processes) for name, processes in split_processes(process_id).items()}
        with MemoryWatch(process_id) as memory:
            outcome = ask(jobs[arguments.warm_up :], address, arguments.clients)
        cpu = {name: cpu_seconds(processes) - cpu[name] for name, processes in split_processes(process_id).items()}
        batches, clips = (late - early for late, early in zip(read_batches(address), before, strict=True))
    latencies = sorted(one[2] for one in outcome["answers"])
    all_cpu = sum(cpu.values()) + outcome["cpu_s"]
    figures = {
        "clips_per_s": len(latencies) / outcome["seconds"],
        "seconds": outcome["seconds"],
        "latency_s": {name: latencies[int(part * (len(latencies) - 1))] for name, part in
                      (("median", 0.5), ("p95", 0.95), ("p99", 0.99), ("most", 1.0))},
        "clips_a_batch": clips / batches,
        "cpu_s": {**cpu, "clients": outcome["cpu_s"]},
        "clients_share_of_cpu": outcome["cpu_s"] / all_cpu,
        "clients_share_of_a_core": outcome["cpu_s"] / outcome["seconds"],
        "memory_mb": memory.quarters(),
    }  # fmt: skip
    return figures, outcome["answers"]


@contextmanager
def running_server(arguments: argparse.Namespace) -> Iterator[tuple[str, int]]:
    command = [
        *(sys.executable, HERE.parent / "scripts" / "serve.py", "--model", *arguments.model, "--port", 0),
        *("--video_root", arguments.video_root, "--workers", arguments.workers, "--batch_size", arguments.batch_size),
        *("--queue_size", 2 * arguments.clients, "--device", arguments.device, "--timeout_s", 300),
    ]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("http://"):
            raise SafeRLHFVideoError("the server did not start; what it printed says why")
        yield line.split()[0].removesuffix("/"), process.pid
    finally:
        process.terminate()
        process.wait()


def ask(jobs: Sequence[Job], address: str, num_clients: int) -> dict[str, Any]:
    """Runs the clients in another process; its answers are status, scores and seconds of each request, in order."""
    order = {"address": address, "clients": num_clients, "jobs": [asdict(job) for job in jobs]}
    done = subprocess.run(
        [sys.executable, __file__, "clients"], input=json.dumps(order), stdout=subprocess.PIPE, text=True, check=True
    )
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def run_clients() -> None:
    order = json.load(sys.stdin)
    port = int(order["address"].rpartition(":")[2])
    answers: list[Any] = [None] * len(order["jobs"])
    todo = iter(enumerate(order["jobs"]))

    async def client() -> None:
        """One connection, on which requests follow one another."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for place, job in todo:
            content = json.dumps({"prompt": job["prompt"], "video": {"path": job["path"]}}).encode()
            started_s = time.monotonic()
            writer.write(HEAD % len(content) + content)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
            length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))
            answer = json.loads(await reader.readexactly(length))
            answers[place] = (int(lines[0].split()[1]), answer.get("scores"), time.monotonic() - started_s)
        writer.close()

    async def all_clients() -> None:
        await asyncio.gather(*(client() for _ in range(order["clients"])))

    before, started_s = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    asyncio.run(all_clients())
    seconds, after = time.monotonic() - started_s, resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    json.dump({"answers": answers, "seconds": seconds, "cpu_s": cpu_s}, sys.stdout)


def compare(answers: Sequence[Any], expected: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Counts answers that are missing, are errors, or belong to another request."""
    errors = []
    num_crossed = 0
    for answer, scores in zip(answers, expected, strict=True):
        if answer is None or answer[0] != 200:
            continue
        error = max(abs(answer[1][head] - score) for head, score in scores.items())
        errors.append(error)
        num_crossed += error > TOLERANCE
    distinct = [abs(one["reward"] - other["reward"]) > 2 * TOLERANCE for one, other in pairwise(expected)]
    return {
        "statuses": dict(Counter("none" if answer is None else str(answer[0]) for answer in answers)),
        "lost": len(expected) - len(errors),
        "crossed": num_crossed,
        "largest_difference": max(errors, default=None),
        "neighbours_distinct": sum(distinct) / len(distinct),
    }


class MemoryWatch:
    """Samples the memory of the server and its children while the block runs."""

    def __init__(self, process_id: int) -> None:
        self._process_id = process_id
        self._samples: list[int] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def quarters(self) -> list[float]:
        """Returns the medians of the four quarters of the time, in 10^6 bytes."""
        num = len(self._samples)
        parts = [self._samples[place * num // 4 : (place + 1) * num // 4] for place in range(4)]
        return [statistics.median(part) / 1e6 for part in parts]

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            processes = [one for group in split_processes(self._process_id).values() for one in group]
            pages = [int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in processes]
            self._samples.append(sum(pages) * resource.getpagesize())


def split_processes(process_id: int) -> dict[str, list[int]]:
    children: list[int] = []
    for task in Path(f"/proc/{process_id}/task").iterdir():
        children += map(int, (task / "children").read_text().split())
    return {"server": [process_id], "decoding": children}


def cpu_seconds(processes: Sequence[int]) -> float:
    ticks = 0
    for one in processes:
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # user and system
    return ticks / os.sysconf("SC_CLK_TCK")


def read_batches(address: str) -> tuple[float, float]:
    """Returns the numbers of batches and clips that the model has scored."""
    with urllib.request.urlopen(f"{address}/metrics") as answer:
        lines = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[:1] != "#")
    return tuple(float(lines[f"safe_rlhf_video_batch_clips_{name}"]) for name in ("count", "sum"))  # type: ignore[return-value]


def check(result: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    """Yields for each bound whether it is met, and a line about it."""
    answers, memory = result["answers"], result["served"]["memory_mb"]
    yield at_most("requests without an answer of 200", answers["lost"], 0)
    yield at_most("answers that belong to another request", answers["crossed"], 0)
    yield at_least("share of requests whose scores differ from the next one's", answers["neighbours_distinct"], 0.99)
    yield at_most("growth of memory after warm-up", memory[3] / memory[0] - 1, MAX_GROWTH)


def print_result(result: dict[str, Any]) -> None:
    served, offline = result["served"], result["offline"]
    rows = [
        ("offline, before and after", " and ".join(f"{one['clips_per_s']:.1f}" for one in offline) + " clips/s"),
        ("served", f"{served['clips_per_s']:.1f} clips/s, {result['rate_to_offline']:.2f} of offline"),
        ("latency", ", ".join(f"{name} {value:.2f} s" for name, value in served["latency_s"].items())),
        ("clips a batch", f"{served['clips_a_batch']:.1f}"),
        ("processor time", ", ".join(f"{name} {value:.1f} s" for name, value in served["cpu_s"].items())),
        ("clients' share of it", f"{served['clients_share_of_cpu']:.1%}"),
        ("clients' share of a core", f"{served['clients_share_of_a_core']:.1%}"),
        ("memory by quarters", ", ".join(f"{value:.0f}" for value in served["memory_mb"]) + " MB"),
        ("largest difference", f"{result['answers']['largest_difference']:.2g}"),
    ]  # fmt: skip
    for name, text in rows:
        print(f"{name:<28} {text}")


if __name__ == "__main__":
    run_script(main)
