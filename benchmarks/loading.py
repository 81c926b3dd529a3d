"""Seconds to load a config file of SafeSora's size, to look up all of its clips, to save it and to make it a table.

    python benchmarks/loading.py --out /tmp/loading.json

Writes a file of 46,500 pairs in the form of the released one (64 hexadecimal digits an id, 12 harm labels and the
prompt with every video, 200 MB, 20 MB compressed), then takes each step `--rounds` times in a process of its own.
Prints medians: seconds, and GB of memory at the peak and after loading (Linux); writes all rounds as JSON.
"""

import argparse
import gzip
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.data.records import DIMENSIONS, HARM_LABELS, SUB_DIMENSIONS, VIDEO_NAMES
from safe_rlhf_video.files import write_whole


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_pairs", type=int, default=46_500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file with the seconds of every round")
    arguments = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config-train.json.gz"
        write_config(config, arguments.num_pairs)
        size = config.stat().st_size
        print(f"{arguments.num_pairs} pairs, {size / 1e6:.1f} MB compressed")
        for _ in range(arguments.rounds):
            done = subprocess.run([sys.executable, __file__, str(config)], capture_output=True, text=True, check=True)
            rounds.append(json.loads(done.stdout))
    for name in rounds[0]:
        print(f"{name:>20}: {statistics.median(row[name] for row in rounds):7.2f}")
    report = {"num_pairs": arguments.num_pairs, "compressed_bytes": size, "rounds": rounds}
    if arguments.out is not None:
        write_whole(arguments.out, json.dumps(report, indent=1) + "\n")


def measure(config: Path) -> dict[str, float]:
    """Seconds of every step, one after the other in this process, and the memory it held."""
    result = {}
    started = time.perf_counter()
    dataset = PairDataset.load(config.parent, config.name)
    result["load_s"] = time.perf_counter() - started
    result["load_peak_gb"] = _peak_gb()
    result["load_held_gb"] = _held_gb()
    started = time.perf_counter()
    dataset.video_files(dataset.videos)
    result["video_files_s"] = time.perf_counter() - started
    started = time.perf_counter()
    dataset.save(config.parent / "saved", config.name)
    result["save_s"] = time.perf_counter() - started
    import datasets  # noqa: F401  # its import is no part of the step

    started = time.perf_counter()
    dataset.to_hf()
    result["to_hf_s"] = time.perf_counter() - started
    result["all_peak_gb"] = _peak_gb()
    return result


def write_config(path: Path, num_pairs: int) -> None:
    records = list(_records(num_pairs))
    path.write_bytes(gzip.compress(json.dumps(records, indent=4).encode(), compresslevel=6, mtime=0))


def _records(num_pairs: int) -> Iterator[dict[str, Any]]:
    """Pairs of 3.9 videos a prompt, 3.5 pairs a prompt, as SafeSora has them."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("etaoinshrdlu"), rng.integers(2, 9))) for _ in range(20_000)]
    count = 0
    while count < num_pairs:
        prompt = {
            "prompt_id": rng.bytes(32).hex(),
            "prompt_text": _text(rng, words),
            "prompt_type": "safety_critical" if rng.random() < 0.5 else "safety_neutral",
        }
        videos = [_video(rng, words, prompt) for _ in range(rng.choice([3, 4, 5], p=[0.3, 0.5, 0.2]))]
        sides = list(combinations(range(len(videos)), 2))
        chosen = rng.permutation(len(sides))[: rng.choice([3, 4])]
        for first, second in (sides[number] for number in chosen[: num_pairs - count]):
            count += 1
            yield {
                "pair_id": rng.bytes(32).hex(),
                **prompt,
                "video_0": videos[first],
                "video_1": videos[second],
                **{name: VIDEO_NAMES[rng.integers(2)] for name in DIMENSIONS},
                "sub_preferences": {name: VIDEO_NAMES[rng.integers(2)] for name in SUB_DIMENSIONS},
            }


def _video(rng: np.random.Generator, words: list[str], prompt: dict[str, Any]) -> dict[str, Any]:
    video_id = rng.bytes(32).hex()
    labels = {name: bool(rng.random() < 0.08) for name in HARM_LABELS}
    return {
        **prompt,
        "video_id": video_id,
        "video_text": _text(rng, words),
        "video_path": f"videos/{prompt['prompt_id']}/{video_id}",
        "is_safe": not any(labels.values()),
        "video_labels": labels,
        "generated_from": f"generator {rng.integers(5)}",
    }


def _text(rng: np.random.Generator, words: list[str]) -> str:
    return " ".join(words[int(len(words) * draw**2)] for draw in rng.random(rng.integers(20, 100)))


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _held_gb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e9


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json.gz"):
        print(json.dumps(measure(Path(sys.argv[1]))))
    else:
        run_script(main)
