"""Decode every clip of one or several data sets once, into a frame store that runs read from.

    python scripts/prepare_videos.py --config configs/reward.yaml --out STORE
    python scripts/prepare_videos.py --data CONFIG [CONFIG ...] --out STORE --num_frames 8 --max_pixels 50176
    python scripts/prepare_videos.py --config configs/reward.yaml --out STORE --archive SafeSora/videos.tar.gz

CONFIG is a file in SafeSora's format (pairs or videos), or a folder with one. With --config, sampling and data sets are
those of a training run (with its overrides, such as --data.path); --data then adds further sets, such as the one to
evaluate on. An archive is read in one pass, without unpacking its clips to files. You may interrupt it at any time: the
same command goes on. Give the folder to training as data.frame_store.
"""

import argparse
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from safe_rlhf_video.cli import Parser
from safe_rlhf_video.config_parser import parse_config
from safe_rlhf_video.data.config_files import is_config_name
from safe_rlhf_video.data.datasets import PairDataset, PromptDataset, VideoDataset, load_any
from safe_rlhf_video.data.store_clips import StoredClips, StorePlan, count_lost, plan_store, store_clips
from safe_rlhf_video.errors import ConfigError, SampleError
from safe_rlhf_video.files import require_path
from safe_rlhf_video.training.config import DataConfig, TrainConfig
from safe_rlhf_video.video.codec import Codec
from safe_rlhf_video.video.decoding import Backend
from safe_rlhf_video.video.sampling import Fit, Sampling
from safe_rlhf_video.wording import size

Source = tuple[str, str, str | None]
SAMPLING_FIELDS = ("num_frames", "min_pixels", "max_pixels", "size_multiple", "fit")
# The fields of --config that count here, beside the sampling.
DATA_FIELDS = ("data.path", "data.config_filename", "data.video_dir", "data.workers", "data.timeout_s")
SHOWN_REASONS = 10


def main() -> None:
    arguments, overrides = parse_arguments()
    sampling, data, sources = read_config(arguments, overrides)
    codec = Codec(arguments.codec, arguments.jpeg_quality)
    for _, _, video_dir in sources:
        if video_dir is not None and arguments.archive is None:
            require_path(video_dir, SampleError, "correct the folder of the clips")
    datasets = [load_any(*source) for source in sources]
    plan = plan_store(datasets, arguments.out, sampling)
    print_plan(plan, codec)
    started = time.monotonic()
    stored = store_clips(
        plan,
        arguments.out,
        sampling,
        codec=codec,
        archive=arguments.archive,
        num_workers=data.workers,
        timeout_s=data.timeout_s,
        backend=arguments.backend,
        verify=arguments.verify,
    )
    minutes = (time.monotonic() - started) / 60
    print(
        f"{arguments.out}: {len(plan.names)} clips, {stored.report.num_decoded} of them decoded now in "
        f"{minutes:.1f} min, {size(stored.report.num_bytes)} written"
    )
    print_losses(stored, datasets)


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """Own arguments, and overrides of the training config's fields (--data.path)."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="TRAIN_YAML", help="a training config: sampling and data sets are taken")
    parser.add_argument("--data", nargs="+", default=[], metavar="CONFIG", help="data sets")
    parser.add_argument("--config_filename", default="config.json", help="the file's name, where --data is a folder")
    parser.add_argument("--video_dir", help="the folder of the clips of --data, if not where their configs say")
    parser.add_argument("--archive", type=Path, help="videos.tar.gz, to read clips from instead of files")
    parser.add_argument("--out", type=Path, required=True, metavar="STORE", help="a new folder, or a store to add to")
    defaults = Sampling()
    for name in SAMPLING_FIELDS[:-1]:
        parser.add_argument(f"--{name}", type=int, help=f"without --config; {getattr(defaults, name)} unless given")
    parser.add_argument("--fit", choices=get_args(Fit), help=f"without --config; {defaults.fit} unless given")
    parser.add_argument("--codec", choices=("raw", "jpeg"), default="raw", help="raw is exact and fast, jpeg small")
    parser.add_argument("--jpeg_quality", type=int, default=95)
    parser.add_argument("--workers", type=int, help="decoding processes; those of --config, or 2")
    parser.add_argument("--timeout_s", type=float, help="seconds one clip may take; those of --config, or 60")
    parser.add_argument(
        "--backend",
        choices=get_args(Backend),
        default="pyav",
        help="what decodes; decord only mp4, mov, mkv, webm and avi (default: pyav)",
    )
    parser.add_argument("--verify", action="store_true", help="read every clip that is there, and mend damaged ones")
    arguments, overrides = parser.parse_known_args()
    for word in overrides:
        if arguments.config is None or (word.startswith("--") and "." not in word.partition("=")[0]):
            parser.error(f"unrecognized arguments: {word}")
        name = word.partition("=")[0].removeprefix("--")
        if word.startswith("--") and not (name.startswith("sampling.") or name in DATA_FIELDS):
            raise ConfigError(f"--{name}: has no effect, because only sampling and data sets are taken; leave it out")
    if arguments.codec == "raw":
        parser.refuse_unused("--jpeg_quality", because="--codec is raw")
    if not arguments.data:
        parser.refuse_unused("--video_dir", because="it is for --data; of --config, override data.video_dir")
    if all(map(is_config_name, arguments.data)):
        parser.refuse_unused(
            "--config_filename", because="--data names no folder; of --config, override data.config_filename"
        )
    return arguments, overrides


def read_config(arguments: argparse.Namespace, overrides: list[str]) -> tuple[Sampling, DataConfig, list[Source]]:
    """The sampling, how to decode, and path, config_filename and video_dir of each data set."""
    given = {name: getattr(arguments, name) for name in SAMPLING_FIELDS if getattr(arguments, name) is not None}
    sources = [(path, arguments.config_filename, arguments.video_dir) for path in arguments.data]
    if arguments.config is None:
        if not sources:
            raise ConfigError("--data: missing; name the data sets to prepare, or a training config with --config")
        sampling, data = Sampling(**given), DataConfig(path=arguments.data)
    else:
        if given:
            raise ConfigError(f"--{next(iter(given))}: the sampling is that of --config; leave one of them away")
        config = parse_config(TrainConfig, ["--config", arguments.config, *overrides], __doc__)
        sampling, data = config.sampling, config.data
        sources = [(path, data.config_filename, data.video_dir) for path in data.paths] + sources
    own = {name: getattr(arguments, name) for name in ("workers", "timeout_s") if getattr(arguments, name) is not None}
    return sampling, replace(data, **own), sources


def print_plan(plan: StorePlan, codec: Codec) -> None:
    """Prints what there is to do, and whether the disk has room for it."""
    if plan.num_texts:
        print(f"{plan.num_texts} texts are passed over: they have no clip")
    known = f", {len(plan.known)} of them in the store already" if plan.known else ""
    smaller = " as raw frames, JPEG takes a fraction" if codec.name == "jpeg" else ""
    print(
        f"{len(plan.names)} clips{known}: at most {size(plan.needed)}{smaller}; {size(plan.free)} are free", flush=True
    )
    if codec.name == "raw" and plan.needed > plan.free:
        print("this may fill the disk: what is written then stays good, and the same command goes on", flush=True)


def print_losses(stored: StoredClips, datasets: Sequence[PairDataset | VideoDataset | PromptDataset]) -> None:
    """Prints why clips are in quarantine, and which comparisons go with them."""
    if stored.others:
        print(
            f"{len(stored.others)} members of the archive are no clips and were passed over, such as {stored.others[0]}"
        )
    if stored.report.num_replaced:
        print(f"{stored.report.num_replaced} of them took the place of other clips of the same names")
    if not stored.quarantined:
        print("no clip is in quarantine")
        return
    print(
        f"clips in quarantine: {len(stored.quarantined)} (quarantine.jsonl names them; the next run tries them again)"
    )
    kinds = Counter(re.sub(r"(?<!mp)\d+", "N", reason) for reason in stored.quarantined.values())
    for kind, count in kinds.most_common(SHOWN_REASONS):
        print(f"{count:>7}  {kind}")
    for dataset in datasets:
        if isinstance(dataset, PairDataset) and (lost := count_lost(dataset.pairs, stored.quarantined)):
            counts = ", ".join(f"{gone} of {count} {name}" for name, (gone, count) in lost.items())
            print(f"{dataset.config_file.name}: comparisons lost with them: {counts}")
