"""Convert what other people publish to SafeSora's JSON, which the trainers read.

    python scripts/convert.py saferlhf --input PKU-Alignment/PKU-SafeRLHF --split train --out config-train.json.gz
    python scripts/convert.py saferlhf --input train.jsonl --out config-train.json.gz
    python scripts/convert.py videoalign --input videogen-rewardbench.csv --out DIR/config.json.gz

PKU-SafeRLHF comes from a .jsonl file (also .gz or .xz), a folder in the hub's layout, or the hub; its licence is
CC BY-NC 4.0. The clips of a VideoAlign CSV must lie in the folder of --out or below. No label is changed unless an
argument says so; what is doubtful is counted, and all its rows are listed beside --out: config.json.gz has
config.findings.jsonl. The same input gives the same bytes.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from safe_rlhf_video.cli import Parser
from safe_rlhf_video.errors import ConfigError, SampleError

SHOWN_ROWS = 3


def main() -> None:
    arguments = parse_arguments()
    out: Path = arguments.out
    from safe_rlhf_video.data.config_files import is_config_name

    if not is_config_name(out):
        raise ConfigError(f"out: expected a file that ends in .json or .json.gz, got {out}")
    if arguments.form == "saferlhf":
        records, found = convert_saferlhf(arguments)
    else:
        records, found = convert_videoalign(arguments)
    if not records:
        raise SampleError(f"{arguments.input}: holds no comparison; nothing was written")
    write_checked(out, records, found)


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
        "--video_root", type=Path, help="what the paths in the CSV are relative to; the folder of --out unless given"
    )
    for form in (saferlhf, videoalign):
        form.add_argument("--input", required=True)
        form.add_argument("--out", type=Path, required=True, help="the .json or .json.gz file to write")
    return parser.parse_args()


def convert_saferlhf(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    from safe_rlhf_video.data.sources.pku_saferlhf import convert_rows, could_be_hub_id, read_rows

    path = arguments.input
    for name in ("name", "split", "revision") if os.path.isfile(path) else ("revision",) if os.path.isdir(path) else ():
        if getattr(arguments, name) is not None:
            raise ConfigError(f"{name}: means nothing for {path}, which lies here; leave it out")
    if could_be_hub_id(path) and not os.path.exists(path):
        import datasets
        import huggingface_hub

        print(f"{path}: no file or folder here, asking the hub", flush=True)
        # What they have to say stands in the one line of an error; half a minute of warnings would come before it.
        datasets.logging.set_verbosity_error()
        huggingface_hub.logging.set_verbosity_error()
    rows = read_rows(arguments.input, arguments.name, arguments.split or "train", arguments.revision)
    return convert_rows(rows, arguments.unlabel_violations)


def convert_videoalign(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    from safe_rlhf_video.data.sources.video_align import convert_csv

    return convert_csv(Path(arguments.input), arguments.out.parent, arguments.video_root)


def write_checked(out: Path, records: list[dict[str, Any]], found: dict[str, list[str]]) -> None:
    """Check the records as training will, then write them with the findings; say what is in them."""
    from safe_rlhf_video.data.config_files import write_records
    from safe_rlhf_video.data.datasets import PairDataset
    from safe_rlhf_video.data.video_folder import VideoFolder
    from safe_rlhf_video.files import write_whole

    dataset = PairDataset(out, records, VideoFolder(out.parent, False, str(out)))
    videos = [video for video in dataset.videos if video.video_path is not None]
    missing = sum(not os.path.isfile(file) for file in dataset.video_files(videos))
    findings_file = out.with_name(f"{out.name.removesuffix('.gz').removesuffix('.json')}.findings.jsonl")
    lines = [json.dumps({"where": where, "finding": finding}) for finding, rows in found.items() for where in rows]
    write_records(out, records)
    try:
        write_whole(findings_file, "".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise SampleError(
            f"{findings_file}: cannot be written ({error.strerror}); check the disk and rights"
        ) from error
    things = "clips" if videos else "responses"
    print(f"{out}: {dataset.num_pairs} comparisons, {dataset.num_prompts} prompts, {dataset.num_videos} {things}")
    if missing:
        print(f"{missing:>7}  clips are not there yet, expected below {out.parent}")
    for finding, rows in found.items():
        shown = ", ".join(rows[:SHOWN_ROWS]) + (", ..." if len(rows) > SHOWN_ROWS else "")
        print(f"{len(rows):>7}  {finding}: {shown}")
    if lines:
        print(f"{findings_file}: all rows of these findings")
