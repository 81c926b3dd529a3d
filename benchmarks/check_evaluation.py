"""Checks an evaluation's figures against the hidden truth of a world; exit code 1 if a bound is not met.

python scripts/evaluate.py --model MODEL --data WORLD/config-test.json.gz --train_data WORLD/config-train.json.gz \\
    --controls shuffled_prompt reversed_frames single_frame --out DIR
python benchmarks/check_evaluation.py DIR/evaluation.json

One line a bound: 5,000 comparisons of prompts that training did not have, sub-dimensions near their ceiling,
probabilities after calibration, and each control within 3 standard errors, by prompts, of what the truth predicts.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from check_quickstart import at_least, at_most, known, report

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.data.records import ALL_DIMENSIONS, SUB_DIMENSIONS
from safe_rlhf_video.evaluation.results import Evaluation, read_evaluation

MIN_COMPARISONS = 5000
MIN_FRACTION_OF_CEILING = 0.93
MAX_ECE, MAX_MEAN_ERROR = 0.03, 0.05
CONTROLS = ("generator_only", "prompt_only", "is_safe_only", "shuffled_prompt", "reversed_frames", "single_frame")
MAX_STANDARD_ERRORS = 3


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path, metavar="EVALUATION_JSON")
    path = parser.parse_args().evaluation
    report(path, list(check(read_evaluation(path), path)))


def check(evaluation: Evaluation, path: Path) -> Iterator[tuple[bool, str]]:
    """Yields whether each bound is met, and what it says.

    Raises:
        SafeRLHFVideoError: a figure is missing: not six heads, no synthetic world, or not all controls.
    """
    shared = known(evaluation.num_prompts_also_in_training, path, "num_prompts_also_in_training")
    yield at_most("test prompts also in training", shared, 0)
    for dimension in ALL_DIMENSIONS:
        figures = known(evaluation.dimensions.get(dimension), path, dimension)
        yield at_least(f"{dimension}: comparisons", figures.num_comparisons, MIN_COMPARISONS)
        if dimension in SUB_DIMENSIONS:
            fraction = known(figures.fraction_of_ceiling, path, f"{dimension}.fraction_of_ceiling")
            yield at_least(f"{dimension}: accuracy / ceiling", fraction, MIN_FRACTION_OF_CEILING)
        calibration = figures.calibration
        yield calibration.is_calibrated, f"{dimension}: temperature {calibration.temperature}, must be fitted"
        ece = known(calibration.ece, path, f"{dimension}.calibration.ece")
        yield at_most(f"{dimension}: ECE, {len(calibration.bins)} bins", ece, MAX_ECE)
        error = known(calibration.mean_absolute_error, path, f"{dimension}.calibration.mean_absolute_error")
        yield at_most(f"{dimension}: mean |P - true probability|", error, MAX_MEAN_ERROR)
    tables = {
        "controls": evaluation.controls,
        "controls_expected": evaluation.controls_expected,
        "controls_standard_error": evaluation.controls_standard_error,
    }
    for name in CONTROLS:
        for dimension in ("harmlessness",) if name == "is_safe_only" else ALL_DIMENSIONS:
            measured, expected, standard_error = (
                known(table.get(name, {}).get(dimension), path, f"{key}.{name}.{dimension}")
                for key, table in tables.items()
            )
            yield at_most(
                f"{dimension}: {name}, {measured:.4f}, less {expected:.4f}",
                abs(measured - expected),
                MAX_STANDARD_ERRORS * standard_error,
            )


if __name__ == "__main__":
    run_script(main)
