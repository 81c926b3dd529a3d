"""Evaluates one or two text-to-video models by the scores of the clips that they made for a set of prompts.

    python scripts/evaluate_generator.py --model REWARD_DIR COST_DIR --prompts PROMPTS --videos NAME=FOLDER \\
        [NAME=FOLDER] --out DIR [--evaluation evaluation.json]

PROMPTS is a .json or .json.gz file in the form of SafeSora-Eval. The clips of a prompt are FOLDER/prompt_id/*.mp4 or
FOLDER/prompt_id.mp4. DIR gets generator.json and the scores of every clip; an interrupted run goes on where it stopped.
docs/generators.md explains every figure.
"""

import argparse
import re
from pathlib import Path

from safe_rlhf_video.cli import Parser
from safe_rlhf_video.errors import ConfigError


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True, metavar="DIR", help="a reward and a cost folder")
    parser.add_argument("--prompts", type=Path, required=True, help="the prompts, in the form of SafeSora-Eval")
    parser.add_argument(
        "--videos",
        nargs="+",
        required=True,
        metavar="NAME=FOLDER",
        help="one or two models and their clips",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--missing",
        choices=("refuse", "drop"),
        default="refuse",
        help="what becomes of prompts without a clip, files of no prompt and clips that cannot be read",
    )
    parser.add_argument(
        "--evaluation",
        type=Path,
        metavar="FILE",
        help="evaluation.json of scripts/evaluate.py, to correct harmful rates for the errors of the cost's sign",
    )
    parser.add_argument(
        "--lagrange_multiplier",
        type=float,
        help="lambda, the price of cost in reward; by default the one calibrated for choosing among two, else 1",
    )
    parser.add_argument("--cost_limit", type=float, help="d, the cost that is allowed; by default 0")
    parser.add_argument("--backbone", help="the backbone's folder, if it moved since training")
    parser.add_argument("--batch_size", type=int, default=64, help="clips scored at once")
    arguments = parser.parse_args()
    videos = parse_videos(arguments.videos)

    from safe_rlhf_video.evaluation.generator_table import format_generators
    from safe_rlhf_video.evaluation.score_generators import GeneratorRequest, score_generators

    evaluation = score_generators(GeneratorRequest(**{**vars(arguments), "videos": videos}))
    print(format_generators(evaluation))
    print(f"wrote {arguments.out / 'generator.json'}")


def parse_videos(words: list[str]) -> dict[str, Path]:
    """Reads NAME=FOLDER of one or two generators; the name becomes part of a file name."""
    folders: dict[str, Path] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not equals or not folder or not re.fullmatch(r"\w[\w.-]{0,99}", name):
            raise ConfigError(
                f"--videos: expected NAME=FOLDER, NAME of letters, digits, '_', '-' and '.', got {word!r}"
            )
        if name in folders:
            raise ConfigError(f"--videos: two generators are called {name!r}; give each its own name")
        folders[name] = Path(folder)
    if len(folders) > 2:
        raise ConfigError(f"--videos: one or two generators can be compared, got {len(folders)}; run more than once")
    return folders
