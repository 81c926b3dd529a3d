"""Exports a model folder with a card, merged with its backbone if asked.

    python scripts/export.py --model RUN_OR_MODEL_DIR --out FOLDER [--merge true]

FOLDER can go to the hub as it is (docs/models.md) and names no path of this machine. Without --merge it refers to its
backbone; with it, adapters and trained parts are merged into the backbone, the whole is written, read back, and its
scores are compared with those of the model: FOLDER then needs nothing else.
"""

import argparse
from pathlib import Path

from safe_rlhf_video.cli import Parser


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="DIR", help="a run or model folder, or owner/name on the hub")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the folder to make")
    parser.add_argument(
        "--merge",
        nargs="?",
        choices=("true", "false"),
        const="true",
        default="false",
        help="whether the folder gets its own, merged backbone",
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of merged weights; auto: bfloat16 where the backbone's are no finer, else float32",
    )
    parser.add_argument("--backbone", help="the backbone's folder, if it moved since training (for --merge)")
    parser.add_argument("--evaluation", type=Path, metavar="FILE", help="an evaluation.json, for the card")
    arguments = parser.parse_args()
    if arguments.merge == "false":
        parser.refuse_unused("--dtype", "--backbone", because="no backbone is written without --merge")

    from safe_rlhf_video.export.export_model import export_model

    check = export_model(
        arguments.model,
        arguments.out,
        merge=arguments.merge == "true",
        dtype=arguments.dtype,
        backbone=arguments.backbone,
        evaluation=arguments.evaluation,
    )
    if check is not None:
        print(check.describe())
    print(f"wrote {arguments.out}; read its README.md and write a license into it before you hand it on")
