"""How fast are clips read: decord against PyAV in this process, and the pool of child processes, on the same files.

    python benchmarks/decoding.py --num_clips 400

Prints clips a second and ratios, the two sides taken in turn over several rounds.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.data.synthetic import GENERATORS, draw_clip, draw_prompt, write_clip
from safe_rlhf_video.video.decoding import read_video
from safe_rlhf_video.video.pool import DecodePool
from safe_rlhf_video.video.sampling import Sampling

SAMPLING = Sampling(num_frames=4, min_pixels=1024, max_pixels=1024, size_multiple=8)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_clips", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        paths = [Path(folder) / f"{number}.mp4" for number in range(arguments.num_clips)]
        for path in paths:
            write_clip((path, draw_clip(rng, draw_prompt(rng, False), GENERATORS[0], False)))
        with DecodePool(SAMPLING, num_workers=2) as pool:
            pool.read(paths[:4])  # start the workers
            sides: dict[str, Callable[[], object]] = {
                "decord": lambda: [read_video(path, SAMPLING, "decord") for path in paths],
                "pyav": lambda: [read_video(path, SAMPLING, "pyav") for path in paths],
                "pool of 2": lambda: list(pool.iterate(paths)),
            }
            rates: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(arguments.rounds):
                for name, side in sides.items():
                    started = time.perf_counter()
                    side()
                    rates[name].append(len(paths) / (time.perf_counter() - started))
    for name, values in rates.items():
        ratios = [value / base for value, base in zip(values, rates["pyav"], strict=True)]
        print(f"{name:>10}: {statistics.median(values):7.0f} clips/s, {statistics.median(ratios):.2f} x pyav")
    print(json.dumps(rates))


if __name__ == "__main__":
    run_script(main)
