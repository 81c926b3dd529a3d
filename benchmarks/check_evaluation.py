"""Do an evaluation's figures mean what they say? Holds them to the hidden truth of a world; exit code 1 if one fails.

python scripts/evaluate.py --model MODEL --data WORLD/config-test.json.gz --train_data WORLD/config-train.json.gz \\
    --controls shuffled_prompt reversed_frames single_frame --out DIR
python benchmarks/check_evaluation.py DIR/evaluation.json

One line a bound: 5,000 comparisons of prompts that training did not have, sub-dimensions near their ceiling,
probabilities after calibration, and each control within 3 standard errors, by prompts, of what the truth predicts.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from check_quickstart import at_least, at_most, report

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.data.records import ALL_DIMENSIONS, SUB_DIMENSIONS
from safe_rlhf_video.errors import SafeRLHFVideoError

MIN_COMPARISONS = 5000
MIN_FRACTION_OF_CEILING = 0.93
MAX_ECE, MAX_MEAN_ERROR = 0.03, 0.05
CONTROLS = ("generator_only", "prompt_only", "is_safe_only", "shuffled_prompt", "reversed_frames", "single_frame")
MAX_STANDARD_ERRORS = 3


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path, metavar="EVALUATION_JSON")
    path = parser.parse_args().evaluation
    try:
        checks = list(check(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SafeRLHFVideoError(
            f"{path}: is no evaluation of six heads on a synthetic world with all controls ({type(error).__name__}: "
            f"{error}); run scripts/evaluate.py as this script's --help says"
        ) from error
    report(path, checks)


def check(result: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    """Yield whether each bound is met, and what it says."""
    yield at_most("test prompts also in training", result["num_prompts_also_in_training"], 0)
    for dimension in ALL_DIMENSIONS:
        figures = result[dimension]
        yield at_least(f"{dimension}: comparisons", figures["num_comparisons"], MIN_COMPARISONS)
        if dimension in SUB_DIMENSIONS:
            yield at_least(f"{dimension}: accuracy / ceiling", figures["fraction_of_ceiling"], MIN_FRACTION_OF_CEILING)
        calibration = figures["calibration"]
        yield calibration["is_calibrated"], f"{dimension}: temperature {calibration['temperature']}, must be fitted"
        yield at_most(f"{dimension}: ECE, {len(calibration['bins'])} bins", calibration["ece"], MAX_ECE)
        error = calibration["mean_absolute_error"]
        yield at_most(f"{dimension}: mean |P - true probability|", error, MAX_MEAN_ERROR)
    for name in CONTROLS:
        for dimension in ("harmlessness",) if name == "is_safe_only" else ALL_DIMENSIONS:
            measured, expected = (result[key][name][dimension] for key in ("controls", "controls_expected"))
            allowed = MAX_STANDARD_ERRORS * result["controls_standard_error"][name][dimension]
            yield at_most(
                f"{dimension}: {name}, {measured:.4f}, less {expected:.4f}", abs(measured - expected), allowed
            )


if __name__ == "__main__":
    run_script(main)
