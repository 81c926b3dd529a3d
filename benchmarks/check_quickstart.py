"""Checks that the quick start reaches what this project promises of it: a line a bound, exit code 1 if one fails.

python benchmarks/check_quickstart.py outputs/quickstart/summary.json
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.contracts import OPEN
from safe_rlhf_video.data.records import DIMENSIONS
from safe_rlhf_video.errors import SafeRLHFVideoError
from safe_rlhf_video.evaluation.results import DimensionFigures, Evaluation, parse_evaluation

MIN_TRUE_ORDER_ACCURACY = {"helpfulness": 0.91, "harmlessness": 0.96}
T = TypeVar("T")


@dataclass(frozen=True)
class PairChoice:
    """The decision on the pair at one lambda, as far as it is checked."""

    preferred: Literal["v1", "v2", "tie"]
    __pydantic_config__ = OPEN


@dataclass(frozen=True)
class PairChoices:
    """The pair that the quick start shows, as far as it is checked."""

    lambda_0: PairChoice
    lambda_5: PairChoice
    __pydantic_config__ = OPEN


@dataclass(frozen=True, kw_only=True)
class Summary(Evaluation):
    """What summary.json holds: an evaluation, with the seconds of the whole quick start, and a pair."""

    pair: PairChoices


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("summary", type=Path, metavar="SUMMARY_JSON")
    path = parser.parse_args().summary
    report(path, list(check(parse_evaluation(Summary, path), path)))


def check(summary: Summary, path: Path) -> Iterator[tuple[bool, str]]:
    """Yields whether each bound is met, and what it says.

    Raises:
        SafeRLHFVideoError: a figure of a quick start is missing.
    """
    figures: dict[str, DimensionFigures] = {}
    for dimension in DIMENSIONS:
        own = figures[dimension] = known(summary.dimensions.get(dimension), path, dimension)
        yield at_least(f"{dimension}: comparisons", own.num_comparisons, 3000)
        ceiling = known(own.ceiling, path, f"{dimension}.ceiling")
        accuracy = known(own.accuracy, path, f"{dimension}.accuracy")
        yield at_least(f"{dimension}: accuracy (0.96 x ceiling)", accuracy, 0.96 * ceiling)
        yield at_least(
            f"{dimension}: accuracy against the hidden order",
            known(own.true_order_accuracy, path, f"{dimension}.true_order_accuracy"),
            MIN_TRUE_ORDER_ACCURACY[dimension],
        )
    sign = known(summary.cost_sign, path, "cost_sign")
    balanced = known(sign.balanced_accuracy, path, "cost_sign.balanced_accuracy")
    yield at_least("balanced accuracy of the cost's sign", balanced, 0.97)
    for figure in (*DIMENSIONS, "cost_sign", "cost_sign_auroc"):
        gap = known(summary.control_gaps.get(figure), path, f"control_gaps.{figure}")
        beaten = f"{gap.control}, by {gap.difference:.6g}"
        yield gap.standing == "above", f"{figure}: {gap.standing} its strongest control, {beaten}; must be above"
    for dimension in DIMENSIONS:
        value = known(summary.controls["random_backbone"].get(dimension), path, f"controls.random_backbone.{dimension}")
        yield at_most(f"{dimension}: accuracy on a random backbone", value, 0.65)
    for name, by_dimension in summary.controls_expected.items():
        for dimension, predicted in by_dimension.items():
            # The labels are drawn: a fair control differs from its expectation by chance alone.
            measured = known(summary.controls[name].get(dimension), path, f"controls.{name}.{dimension}")
            expected = known(predicted, path, f"controls_expected.{name}.{dimension}")
            allowed = 4 * 0.5 / math.sqrt(figures[dimension].num_comparisons)
            yield at_most(
                f"{dimension}: {name}, distance from what the truth predicts", abs(measured - expected), allowed
            )
    free, priced = summary.pair.lambda_0.preferred, summary.pair.lambda_5.preferred
    yield free != priced, f"choice of the pair: {free} at lambda 0 and {priced} at lambda 5, must differ"
    yield at_most("seconds", summary.seconds, 600)


def known(value: T | None, path: Path, field: str) -> T:
    """The value of a field that must be there."""
    if value is None:
        raise SafeRLHFVideoError(f"{path} field {field}: has no figure; run what this script's --help says")
    return value


def report(path: Path, checks: Sequence[tuple[bool, str]]) -> None:
    """Prints a line a bound; raises SafeRLHFVideoError, naming the file that was checked, if one is not met."""
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
