"""How often the 95% intervals of an evaluation hold the true value: by simulation, without clips.

    python benchmarks/interval_coverage.py --sets 1000 --out coverage.json

Every set is drawn anew: new prompts, each with its own number of videos and comparisons, labels by Bradley-Terry from
hidden utilities, and scores whose error is shared by the videos and comparisons of a prompt. The true values are those
of one very large draw of the same kind. A set's intervals are the ones that an evaluation reports: of the accuracy
(`mean_interval`) and of its share of the label ceiling (`ratio_interval`); beside them stands what resampling
comparisons one by one, as if prompts did not matter, would cover.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.stats.credit import credit
from safe_rlhf_video.stats.intervals import mean_interval, ratio_interval

# Comparisons of a prompt: SafeSora has 51,691 of 14,711 prompts, 3.5 each, most of them few and some many.
COMPARISONS = np.array([1, 2, 3, 6, 10])
SHARES = np.array([0.20, 0.25, 0.25, 0.20, 0.10])
VIDEOS = 5
UTILITY_STD = 1.5  # logits
NOISE_STD = 1.0  # of a score, a video
CONFUSED = 0.2  # share of prompts that the model misreads: there its scores have little to do with the utilities
CHUNK = 100_000  # prompts drawn at once


class Draw(NamedTuple):
    """Comparisons: credit of the model, of the hidden order, and the prompt of each."""

    model: np.ndarray
    ceiling: np.ndarray
    prompts: np.ndarray


def draw_set(num_prompts: int, random: np.random.Generator) -> Draw:
    """An independent test set of new prompts."""
    utility = UTILITY_STD * random.normal(size=(num_prompts, VIDEOS))
    # What a prompt gets wrong it gets wrong for all of its videos: their comparisons are right or wrong together.
    is_confused = random.random(num_prompts) < CONFUSED
    slope = np.where(is_confused, -0.3, 1.0)
    score = slope[:, None] * utility + NOISE_STD * random.normal(size=utility.shape)
    prompts = np.repeat(np.arange(num_prompts), random.choice(COMPARISONS, num_prompts, p=SHARES))
    first = random.integers(VIDEOS, size=len(prompts))
    second = (first + random.integers(1, VIDEOS, size=len(prompts))) % VIDEOS
    true_margin = utility[prompts, first] - utility[prompts, second]
    sign = np.where(random.random(len(prompts)) < 0.5 * (1 + np.tanh(0.5 * true_margin)), 1.0, -1.0)
    margin = score[prompts, first] - score[prompts, second]
    return Draw(credit(margin * sign), credit(true_margin * sign), prompts)


def true_values(num_comparisons: int, random: np.random.Generator) -> tuple[float, float, int]:
    """Accuracy, its share of the ceiling, and how many comparisons they are from."""
    right = best = total = 0.0
    while total < num_comparisons:
        drawn = draw_set(CHUNK, random)
        right, best, total = right + drawn.model.sum(), best + drawn.ceiling.sum(), total + len(drawn.model)
    return right / total, right / best, int(total)


def measure(num_sets: int, num_prompts: int, num_truth: int, seed: int, num_samples: int = 2000) -> dict[str, Any]:
    """Coverage of the intervals over many sets.

    Returns:
        name of an interval -> `coverage` with its `standard_error`, `mean_width`, `true_value`.
    """
    truth_random, *randoms = (np.random.default_rng(one) for one in np.random.SeedSequence(seed).spawn(num_sets + 1))
    accuracy, share, num_drawn = true_values(num_truth, truth_random)
    true = {"mean_interval": accuracy, "ratio_interval": share, "mean_interval without prompts": accuracy}
    covered = dict.fromkeys(true, 0)
    width = dict.fromkeys(true, 0.0)
    sizes = []
    for number, random in enumerate(randoms):
        drawn = draw_set(num_prompts, random)
        sizes.append(len(drawn.model))
        alone = np.arange(len(drawn.model))
        intervals = {
            "mean_interval": mean_interval(drawn.model, drawn.prompts, num_samples, seed=number),
            "ratio_interval": ratio_interval(drawn.model, drawn.ceiling, drawn.prompts, num_samples, seed=number),
            "mean_interval without prompts": mean_interval(drawn.model, alone, num_samples, seed=number),
        }
        for name, (low, high) in intervals.items():
            covered[name] += low <= true[name] <= high
            width[name] += (high - low) / num_sets
    result: dict[str, Any] = {
        name: {
            "coverage": count / num_sets,
            "standard_error": math.sqrt(0.95 * 0.05 / num_sets),
            "mean_width": width[name],
            "true_value": true[name],
        }
        for name, count in covered.items()
    }
    return result | {
        "num_sets": num_sets,
        "num_prompts": num_prompts,
        "mean_num_comparisons": float(np.mean(sizes)),
        "num_comparisons_of_truth": num_drawn,
        "seed": seed,
    }


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=300, help="of a set")
    parser.add_argument("--truth", type=int, default=4_000_000, help="comparisons that the true values are from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    started = time.monotonic()
    result = measure(arguments.sets, arguments.prompts, arguments.truth, arguments.seed)
    result["seconds"] = round(time.monotonic() - started, 1)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        write_whole(arguments.out, text + "\n")


if __name__ == "__main__":
    run_script(main)
