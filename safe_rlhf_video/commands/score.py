"""Score generations: pairs get a choice, lists of candidates an order, single clips their scores.

    python scripts/score.py --model REWARD_DIR COST_DIR --input pairs.jsonl --out scores.jsonl
    deepspeed --num_gpus 8 scripts/score.py --model REWARD_DIR COST_DIR --input pairs.parquet --out scores.parquet

The input is JSON lines or Parquet with `prompt`, and `v1` and `v2`, `videos` or `video` (paths, relative to the file),
or a SafeSora config (.json, .json.gz) of pairs or of videos. The output is in the order of the input, JSON lines or
Parquet by the ending of its name. Every clip is scored once, in OUT.parts. An interrupted run continues where it
stopped, with any number of processes. See docs/scoring.md.
"""

import argparse
import sys
from pathlib import Path

from safe_rlhf_video.cli import Parser

# The exit code where rows were left out, as --bad_rows drop allows.
ROWS_LEFT_OUT = 2


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True, metavar="DIR", help="a reward and a cost folder")
    parser.add_argument("--input", type=Path, required=True, help="rows.jsonl, rows.parquet or a SafeSora config")
    parser.add_argument("--out", type=Path, required=True, help="scores.jsonl or scores.parquet")
    parser.add_argument(
        "--video_dir",
        help="what the paths are relative to, if not the file's folder; of a SafeSora config, where its clips are",
    )
    parser.add_argument(
        "--bad_rows",
        choices=("refuse", "drop"),
        default="refuse",
        help="rows with a wrong field or an unreadable clip: stop with an error, or leave them out, list them in "
        "OUT.bad.jsonl and exit with code 2",
    )
    parser.add_argument(
        "--lagrange_multiplier",
        type=float,
        help="lambda, the price of cost in reward; by default the one calibrated for as many candidates, else 1",
    )
    parser.add_argument(
        "--cost_limit",
        type=float,
        help="d, the cost that is allowed; by default what that lambda keeps, else 0",
    )
    parser.add_argument("--backbone", help="the backbone's folder, if it has moved since training")
    parser.add_argument("--batch_size", type=int, default=64, help="clips scored at once, in each process")
    parser.add_argument("--workers", type=int, default=2, help="decoding processes of each process")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # from launchers; the environment says the same
    arguments = parser.parse_args()
    del arguments.local_rank

    from safe_rlhf_video.scoring.score_rows import RowScoring, score_rows

    done = score_rows(RowScoring(**vars(arguments)))
    print(done.message)
    if done.num_left_out:
        sys.stdout.flush()
        sys.exit(ROWS_LEFT_OUT)
