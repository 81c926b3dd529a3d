"""Convert what other people publish to SafeSora's JSON, which the trainers read.

    python scripts/convert.py saferlhf --input PKU-Alignment/PKU-SafeRLHF --split train --out config-train.json.gz
    python scripts/convert.py saferlhf --input train.jsonl --out config-train.json.gz
    python scripts/convert.py videoalign --input videogen-rewardbench.csv --out DIR/config.json.gz

PKU-SafeRLHF comes from a .jsonl file (also .gz or .xz), a folder in the hub's layout, or the hub; its licence is
CC BY-NC 4.0. The clips of a VideoAlign CSV must be in the folder of --out or below. No label is changed unless an
argument says so. Doubtful rows are counted, and all of them are listed in a file beside --out: config.json.gz gets
config.findings.jsonl. The same input gives the same bytes.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from safe_rlhf_video.cli import Parser
from safe_rlhf_video.data.config_files import is_config_name
from safe_rlhf_video.data.sources.conversion import ConvertedFile, write_conversion
from safe_rlhf_video.data.sources.pku_saferlhf import convert_rows, is_hub_id, read_rows
from safe_rlhf_video.data.sources.video_align import convert_csv
from safe_rlhf_video.errors import ConfigError

SHOWN_ROWS = 3


def main() -> None:
    arguments = parse_arguments()
    out: Path = arguments.out
    if not is_config_name(out):
        raise ConfigError(f"out: expected a file that ends in .json or .json.gz, got {out}")
    if arguments.form == "saferlhf":
        if is_hub_id(arguments.input):
            print(f"{arguments.input}: no file or folder here, asking the hub", flush=True)
        rows = read_rows(arguments.input, arguments.name, arguments.split, arguments.revision)
        records, found = convert_rows(rows, arguments.unlabel_violations)
    else:
        records, found = convert_csv(Path(arguments.input), out.parent, arguments.video_dir)
    print_result(write_conversion(out, records, found), found)


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    forms = parser.add_subparsers(dest="form", required=True, metavar="{saferlhf,videoalign}")
    saferlhf = forms.add_parser("saferlhf", help="PKU-SafeRLHF, with or without categories and severities")
    saferlhf.add_argument("--name", help="the hub's configuration, such as alpaca-7b")
    saferlhf.add_argument("--split", help="of a folder or hub id; train unless given")
    saferlhf.add_argument("--revision", help="of a hub id, such as v0")
    saferlhf.add_argument(
        "--unlabel_violations",
        action="store_true",
        help="take the harmlessness label from rows that rank a harmful response as safer than a harmless one, and the "
        "severity from responses whose is_safe contradicts it",
    )
    videoalign = forms.add_parser("videoalign", help="VideoAlign's or VideoGen-RewardBench's CSV")
    videoalign.add_argument(
        "--video_dir", type=Path, help="what the paths in the CSV are relative to; the folder of --out unless given"
    )
    for form in (saferlhf, videoalign):
        form.add_argument("--input", required=True)
        form.add_argument("--out", type=Path, required=True, help="the .json or .json.gz file to write")
    return parser.parse_args()


def print_result(written: ConvertedFile, found: Mapping[str, Sequence[str]]) -> None:
    """Prints what the new file holds, and the first rows of each finding."""
    data = written.dataset
    things = "responses" if all(video.video_path is None for video in data.videos) else "clips"
    print(f"{data.config_file}: {data.num_pairs} comparisons, {data.num_prompts} prompts, {data.num_videos} {things}")
    if written.num_missing_clips:
        print(f"{written.num_missing_clips:>7}  clips are not there yet, expected below {data.config_file.parent}")
    for finding, rows in found.items():
        shown = ", ".join(rows[:SHOWN_ROWS]) + (", ..." if len(rows) > SHOWN_ROWS else "")
        print(f"{len(rows):>7}  {finding}: {shown}")
    if found:
        print(f"{written.findings_file}: all rows of these findings")
