"""The options of commands that read labelled clips: where the file of --data and its clips are."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from safe_rlhf_video.cli import Parser
from safe_rlhf_video.data.config_files import is_config_name


def add_clip_source(parser: Parser) -> None:
    """Adds the options that find the file of --data and its clips, for `load_labelled_clips`."""
    parser.add_argument("--config_filename", default="config.json", help="the file's name, where --data is a folder")
    parser.add_argument("--video_dir", help="the folder of the clips, if not where the config says")
    parser.add_argument(
        "--frame_store", metavar="DIR", help="read the clips from this store of scripts/prepare_videos.py"
    )
    parser.add_argument(
        "--unreadable",
        choices=("refuse", "drop"),
        default="refuse",
        help="what to do with comparisons that have a clip in the frame store's quarantine",
    )


def check_clip_source(parser: Parser, arguments: argparse.Namespace) -> None:
    """Raises a ConfigError if an option of `add_clip_source` would have no effect."""
    check_config_filename(parser, [arguments.data])
    if arguments.frame_store is None:
        parser.refuse_unused("--unreadable", because="only a --frame_store knows which clips cannot be read")


def check_config_filename(parser: Parser, data: Sequence[str]) -> None:
    """Raises a ConfigError if --config_filename was given where all data sets are files."""
    if all(map(is_config_name, data)):
        parser.refuse_unused("--config_filename", because="--data names files and no folder")
