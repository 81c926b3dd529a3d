"""Which is better: joint or separate models, last token or query, comparisons or prompts as the unit, or pairs?

    python benchmarks/choices.py --out outputs/choices

Trains a reward and a cost in all twelve ways, three seeds each, on the quick start's world with
configs/quickstart.yaml, evaluates them on held-out prompts, and times an epoch of each way once (seconds as
benchmarks/epoch.py counts them, one rank a core). Pairwise runs have the published weighting, and about as many
comparisons a step as the others. Writes choices.json and a Markdown table. Runs go side by side, one a core;
interrupted, it goes on where it stopped.
"""

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from epoch import (
    HERE,
    Job,
    Setting,
    describe_world,
    make_world,
    mean_and_range,
    measure,
    train_and_evaluate,
)
from machine import describe_machine

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.files import write_whole

CONFIG = HERE.parent / "configs" / "quickstart.yaml"
OVERRIDES: Mapping[str, Sequence[str]] = {
    "joint": ("--heads", "[reward,cost]"),
    "separate": ("--heads", "null"),  # the one that the script is named for
    "last_token": ("--model.pooling", "last_token"),
    "query": ("--model.pooling", "query"),
    "grouped": ("--optimization.batching", "grouped"),
    "grouped, prompts": ("--optimization.batching", "grouped", "--loss.unit", "prompt"),
    # 16 prompts have 56 comparisons.
    "pairwise": ("--optimization.batching", "pairwise", "--optimization.prompts_per_step", "56"),
}
# Both sign terms stand inside the mean over pairs, as published. In a file: for a reward alone an override would be
# refused, because it has no effect.
PAIRWISE_LOSS = "\nloss:\n  sign: 2.0\n"


@dataclass(frozen=True)
class Way:
    """One row of the table."""

    models: str
    pooling: str
    batching: str

    @property
    def heads(self) -> tuple[str, ...]:
        """Of its training runs; the only one of joint models has both heads."""
        return ("reward",) if self.models == "joint" else ("reward", "cost")

    @property
    def overrides(self) -> tuple[str, ...]:
        return tuple(word for name in (self.models, self.pooling, self.batching) for word in OVERRIDES[name])

    def __str__(self) -> str:
        return f"{self.models}-{self.pooling}-{self.batching}".replace(", ", "_by_")


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/choices"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num_pairs", type=int, default=2000)
    parser.add_argument("--num_test_pairs", type=int, default=3200)
    arguments = parser.parse_args()
    out, seeds = arguments.out, arguments.seeds

    batchings = ("grouped", "grouped, prompts", "pairwise")
    ways = [Way(*names) for names in product(("joint", "separate"), ("last_token", "query"), batchings)]
    make_world(out, arguments.num_pairs, arguments.num_test_pairs, CONFIG)
    pairwise = out / "pairwise.yaml"
    write_whole(pairwise, CONFIG.read_text(encoding="utf-8") + PAIRWISE_LOSS)
    config_of = {way: pairwise if way.batching == "pairwise" else CONFIG for way in ways}
    jobs = {
        (way, seed): Job(
            way.heads, config_of[way], (*way.overrides, "--seed", str(seed)), out / str(way) / f"seed_{seed}"
        )
        for seed in seeds  # a whole table of one seed first
        for way in ways
    }
    figures = train_and_evaluate(out, jobs)
    rows = []
    for way in ways:
        timed = out / str(way) / "epoch.json"
        if not timed.exists():
            setting = Setting(os.cpu_count() or 1, 1)
            epoch = measure(way.heads, config_of[way], setting, out / "world", out / "frames", way.overrides)
            print(f"{way}: {epoch['seconds']:.1f} s an epoch", flush=True)
            write_whole(timed, json.dumps(epoch, indent=1) + "\n")
        seeds_of = {seed: figures[way, seed] for seed in seeds}
        rows.append({**asdict(way), "seeds": seeds_of, "epoch": json.loads(timed.read_text(encoding="utf-8"))})
    result = {"machine": describe_machine(), "world": describe_world(out / "world"), "rows": rows}
    table = "\n".join(format_markdown(rows)) + "\n"
    write_whole(out / "choices.json", json.dumps(result, indent=1) + "\n")
    write_whole(out / "choices.md", table)
    print(f"\n{table}\nwrote {out / 'choices.json'} and {out / 'choices.md'}")


def format_markdown(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield (
        "| models | pooling | batching | helpfulness | harmlessness | cost's sign, balanced | encodings an epoch | "
        "seconds an epoch, once |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        cells = [
            mean_and_range([figures[name] for figures in row["seeds"].values()])
            for name in ("helpfulness", "harmlessness", "cost_sign")
        ]
        epoch = row["epoch"]
        names = [row[name] for name in ("models", "pooling", "batching")]
        yield f"| {' | '.join([*names, *cells])} | {epoch['encodings']} | {epoch['seconds']:.1f} |"


if __name__ == "__main__":
    run_script(main)
