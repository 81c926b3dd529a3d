"""Do other training seeds, and a test set of another world seed, give the same picture as the quick start?

    python benchmarks/seeds.py --out outputs/seeds

Trains a reward and a cost for each seed on the quick start's world, evaluates both on its test set and on that of a
world drawn with --world_seed, and writes seeds.json and a Markdown table. Interrupted, it goes on where it stopped.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.errors import SafeRLHFVideoError

COLUMNS = ("accuracy", "ceiling", "fraction_of_ceiling", "true_order_accuracy")


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/seeds"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--world_seed", type=int, default=12345, help="of the second test set")
    parser.add_argument("--num_pairs", type=int, default=2000)
    parser.add_argument("--num_test_pairs", type=int, default=3200)
    arguments = parser.parse_args()
    out = arguments.out

    counts = ["--num_test_pairs", arguments.num_test_pairs]
    run("scripts/make_synthetic.py", "--out", out / "data", "--num_pairs", arguments.num_pairs, *counts, "--seed", 0)
    run("scripts/make_synthetic.py", "--out", out / "other", "--num_pairs", 0, *counts, "--seed", arguments.world_seed)
    results = {}
    for seed in arguments.seeds:
        folder = out / f"seed_{seed}"
        for head in ("reward", "cost"):
            run(f"scripts/train_{head}.py", "--config", "configs/quickstart.yaml", "--heads", f"[{head}]",
                "--out", folder / head, "--data.path", out / "data", "--seed", seed)  # fmt: skip
        for world in ("data", "other"):
            run("scripts/evaluate.py", "--model", folder / "reward", folder / "cost", "--out", folder / world,
                "--data", out / world / "config-test.json.gz",
                "--train_data", out / "data" / "config-train.json.gz")  # fmt: skip
            results[f"{seed}/{world}"] = json.loads((folder / world / "evaluation.json").read_text())
    (out / "seeds.json").write_text(json.dumps(results, indent=2) + "\n")
    print(format_markdown(results, arguments.world_seed))


def run(*command: object) -> None:
    if code := subprocess.run([sys.executable, *map(str, command)], check=False).returncode:
        raise SafeRLHFVideoError(f"{command[0]} ended with exit code {code}; see above")


def format_markdown(results: dict[str, dict], world_seed: int) -> str:
    titles = ("training seed", "test set", "dimension", "accuracy", "ceiling", "of ceiling", "hidden order",
              "cost sign, balanced")  # fmt: skip
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for name, result in results.items():
        seed, world = name.split("/")
        test_set = "seed 0" if world == "data" else f"seed {world_seed}"
        for dimension in ("helpfulness", "harmlessness"):
            figures = " | ".join(f"{result[dimension][column]:.4f}" for column in COLUMNS)
            sign = f"{result['cost_sign']['balanced_accuracy']:.4f}" if dimension == "harmlessness" else ""
            lines.append(f"| {seed} | {test_set} | {dimension} | {figures} | {sign} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
