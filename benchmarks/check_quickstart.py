"""Does the quick start still reach what this project promises of it? One line a bound; exit code 1 if one fails.

python benchmarks/check_quickstart.py outputs/quickstart/summary.json
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.errors import SafeRLHFVideoError

DIMENSIONS = ("helpfulness", "harmlessness")
MIN_TRUE_ORDER_ACCURACY = {"helpfulness": 0.88, "harmlessness": 0.92}


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("summary", type=Path, metavar="SUMMARY_JSON")
    path = parser.parse_args().summary
    try:
        checks = list(check(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SafeRLHFVideoError(
            f"{path}: is no summary of a quick start ({type(error).__name__}: {error}); run make quickstart"
        ) from error
    report(path, checks)


def check(summary: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    """Yield whether each bound is met, and what it says."""
    for dimension in DIMENSIONS:
        figures = summary[dimension]
        yield at_least(f"{dimension}: comparisons", figures["num_comparisons"], 3000)
        yield at_least(f"{dimension}: accuracy (0.95 x ceiling)", figures["accuracy"], 0.95 * figures["ceiling"])
        yield at_least(
            f"{dimension}: accuracy against the hidden order",
            figures["true_order_accuracy"],
            MIN_TRUE_ORDER_ACCURACY[dimension],
        )
    yield at_least("balanced accuracy of the cost's sign", summary["cost_sign"]["balanced_accuracy"], 0.93)
    for dimension in DIMENSIONS:
        value = summary["controls"]["random_backbone"][dimension]
        yield at_most(f"{dimension}: accuracy on a random backbone", value, 0.65)
    for name, by_dimension in summary["controls_expected"].items():
        for dimension, expected in by_dimension.items():
            # The labels are drawn: a fair control differs from its expectation by chance alone.
            distance = abs(summary["controls"][name][dimension] - expected)
            allowed = 4 * 0.5 / math.sqrt(summary[dimension]["num_comparisons"])
            yield at_most(f"{dimension}: {name}, distance from what the truth predicts", distance, allowed)
    free, priced = (summary["pair"][name]["preferred"] for name in ("lambda_0", "lambda_5"))
    yield free != priced, f"choice of the pair: {free} at lambda 0 and {priced} at lambda 5, must differ"
    yield at_most("seconds", summary["seconds"], 600)


def report(path: Path, checks: Sequence[tuple[bool, str]]) -> None:
    """Print a line a bound; raise SafeRLHFVideoError, naming the file that was checked, if one is not met."""
    for is_met, text in checks:
        print(f"{'ok' if is_met else 'FAILED':<6} {text}")
    if num_failed := sum(not is_met for is_met, _ in checks):
        raise SafeRLHFVideoError(f"{path}: {num_failed} of {len(checks)} bounds are not met")


def at_least(what: str, value: float, bound: float) -> tuple[bool, str]:
    return value >= bound, f"{what}: {value:.6g}, at least {bound:.6g}"


def at_most(what: str, value: float, bound: float) -> tuple[bool, str]:
    return value <= bound, f"{what}: {value:.6g}, at most {bound:.6g}"


if __name__ == "__main__":
    run_script(main)
