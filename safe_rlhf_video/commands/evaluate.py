"""Evaluates models on labelled comparisons or clips: accuracy and its ceiling, calibration, controls, moderation.

    python scripts/evaluate.py --model REWARD_DIR COST_DIR --data CONFIG --out DIR [--train_data CONFIG]

CONFIG is a file in SafeSora's format, or a folder with one. DIR gets evaluation.json, judgements.json for the report,
and the scores of every clip. Beside a truth.json.gz (a synthetic world) the ceiling and the accuracy against the hidden
order are computed too.
"""

import argparse
from pathlib import Path

from safe_rlhf_video.cli import Parser
from safe_rlhf_video.commands.clip_source import add_clip_source, check_clip_source


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", nargs="+", required=True, metavar="DIR", help="model folders: reward, cost, moderation"
    )
    parser.add_argument(
        "--data", required=True, metavar="CONFIG", help="the test comparisons or clips, in SafeSora's format"
    )
    add_clip_source(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--train_data", metavar="FILE", help="the training comparisons, to fit the controls to")
    parser.add_argument("--random_backbone", nargs="+", metavar="DIR", help="models trained alike on a random backbone")
    parser.add_argument("--compare", nargs="+", metavar="DIR", help="another model, tested against on the same pairs")
    parser.add_argument(
        "--controls",
        nargs="+",
        default=(),
        choices=("shuffled_prompt", "reversed_frames", "single_frame"),
        help="score the clips again under other prompts, with frames reversed, or with their middle frame alone",
    )
    parser.add_argument(
        "--truth", type=Path, help="hidden utilities; default: truth.json.gz beside the file of --data, if it is there"
    )
    parser.add_argument("--backbone", help="the backbone's folder, if it moved since training")
    parser.add_argument("--batch_size", type=int, default=64, help="clips scored at once")
    parser.add_argument("--seed", type=int, default=0, help="of shuffled prompts")
    arguments = parser.parse_args()
    check_clip_source(parser, arguments)
    if "shuffled_prompt" not in arguments.controls:
        parser.refuse_unused("--seed", because="only --controls shuffled_prompt draws")

    from safe_rlhf_video.evaluation.evaluate_models import EvaluationRequest, evaluate_models
    from safe_rlhf_video.evaluation.table import format_comparison, format_table

    evaluation = evaluate_models(EvaluationRequest(**vars(arguments)))
    print(format_table(evaluation))
    if evaluation.comparison:
        print(f"compared with {', '.join(arguments.compare)}:")
        print(format_comparison(evaluation.comparison, evaluation.in_sample))
    print(f"wrote {arguments.out / 'evaluation.json'}")
