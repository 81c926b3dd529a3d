"""Decode every clip of one or several data sets once, into a frame store that runs read from.

    python scripts/prepare_videos.py --config configs/reward.yaml --out STORE
    python scripts/prepare_videos.py --data CONFIG [CONFIG ...] --out STORE --num_frames 8 --max_pixels 50176
    python scripts/prepare_videos.py --config configs/reward.yaml --out STORE --archive SafeSora/videos.tar.gz

CONFIG is a file in SafeSora's format (pairs or videos), or a folder with one. With --config, sampling and data sets are
those of a training run (with its overrides, such as --data.path); --data then adds further sets, such as the one to
evaluate on. From an archive, clips are read in one pass and never lie about as files. Interrupt it whenever you like:
the same command goes on. Give the folder to training as data.frame_store.
"""

import argparse
import contextlib
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from safe_rlhf_video.cli import Parser, parse_config
from safe_rlhf_video.data.datasets import load_any
from safe_rlhf_video.data.sources.archive import iterate_clips
from safe_rlhf_video.errors import ConfigError, SampleError
from safe_rlhf_video.training.config import DataConfig, TrainConfig
from safe_rlhf_video.video.codec import Codec
from safe_rlhf_video.video.decoding import Backend
from safe_rlhf_video.video.frame_store import FrameStore, StoredClip, read_rows
from safe_rlhf_video.video.sampling import Fit, Sampling
from safe_rlhf_video.video.store_builder import ClipFile, build_store

Source = tuple[str, str, str | None]
SAMPLING_FIELDS = ("num_frames", "min_pixels", "max_pixels", "size_multiple", "fit")
SHOWN_REASONS = 10
INCOMING = ".incoming"  # within the store: one file system has room for both, or for none


def main() -> None:
    arguments, overrides = parse_arguments()
    sampling, data, sources = read_config(arguments, overrides)
    codec = Codec(arguments.codec, arguments.jpeg_quality)
    datasets = [load_any(*source) for source in sources]
    clips = find_clips(datasets)
    num_texts = sum(video.video_path is None for dataset in datasets for video in dataset.videos)
    if num_texts:
        print(f"{num_texts} texts are passed over: they have no clip")
    if arguments.archive is not None and not arguments.archive.exists():
        raise SampleError(f"{arguments.archive}: no such archive; check the path of --archive")
    rows = read_rows(arguments.out)
    names = {clip.name for clip in clips}
    print_need(arguments.out, sampling, codec, len(names), sum(name in rows for name in names))

    started = time.monotonic()
    files: Iterable[ClipFile] = clips
    others: list[str] = []
    if arguments.archive is not None:
        if not arguments.verify:
            clips = [clip for clip in clips if not isinstance(rows.get(clip.name), StoredClip)]
        files = stream_archive(arguments.archive, arguments.out / INCOMING, clips, others)
    try:
        report = build_store(
            arguments.out,
            sampling,
            files,
            len(clips),
            codec=codec,
            num_workers=data.workers,
            timeout_s=data.timeout_s,
            backend=arguments.backend,
            verify=arguments.verify,
        )
    finally:
        # The builder has deleted what was in it; where it was refused, the folder is another builder's.
        with contextlib.suppress(OSError):
            (arguments.out / INCOMING).rmdir()
    store = FrameStore.open(arguments.out, sampling)
    minutes = (time.monotonic() - started) / 60
    print(
        f"{arguments.out}: {len(names)} clips, {report.num_decoded} of them decoded now in {minutes:.1f} min, "
        f"{show_bytes(report.num_bytes)} written"
    )
    if others:
        print(f"{len(others)} members of the archive are no clips and were passed over, such as {others[0]}")
    if report.num_replaced:
        print(f"{report.num_replaced} of them took the place of other clips of the same names")
    print_losses(datasets, {name: store.quarantined[name] for name in sorted(names) if name in store.quarantined})


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """Own arguments, and overrides of the training config's fields (--data.path)."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="TRAIN_YAML", help="a training config: sampling and data sets are taken")
    parser.add_argument("--data", nargs="+", default=[], metavar="CONFIG", help="data sets")
    parser.add_argument("--config_filename", default="config.json", help="the file's name, where --data is a folder")
    parser.add_argument("--video_dir", help="where the clips of --data lie, if not where their configs say")
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
    parser.add_argument("--backend", choices=get_args(Backend), default="pyav", help="what decodes")
    parser.add_argument("--verify", action="store_true", help="read every clip that is there, and mend damaged ones")
    arguments, overrides = parser.parse_known_args()
    if overrides and arguments.config is None:
        raise ConfigError(f"unrecognized arguments: {' '.join(overrides)}; --help lists the arguments")
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


def find_clips(datasets: list[Any]) -> list[ClipFile]:
    """Every clip, in the order of the data sets; one that two of them place differently comes twice."""
    clips: dict[ClipFile, None] = {}
    for dataset in datasets:
        videos = [video for video in dataset.videos if video.video_path is not None]
        for video, path in zip(videos, dataset.video_files(videos), strict=True):
            clips[ClipFile(video.name, path)] = None
    if not clips:
        raise SampleError(f"{', '.join(str(dataset.config_file) for dataset in datasets)}: no video to prepare")
    return list(clips)


def stream_archive(archive: Path, folder: Path, clips: list[ClipFile], others: list[str]) -> Iterator[ClipFile]:
    """The clips of an archive as temporary files in `folder`, then those that it lacks: they may lie about as files.

    Names of members that are no clips are added to `others`.
    """
    # Not before now: the builder asks for the first clip when it has locked the store.
    shutil.rmtree(folder, ignore_errors=True)
    missing = {clip.name: clip for clip in clips}
    wanted = set(missing)
    if not wanted:
        return
    for name, path in iterate_clips(archive, folder, wanted, on_other=others.append):
        missing.pop(name)
        yield ClipFile(name, path, is_temporary=True)
    yield from missing.values()


def print_need(out: Path, sampling: Sampling, codec: Codec, num_clips: int, num_known: int) -> None:
    """What there is to do, and whether the disk has room for it."""
    frame_bytes = 3 * max(sampling.max_pixels, sampling.size_multiple**2)
    needed = (num_clips - num_known) * sampling.num_frames * frame_bytes
    folder = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(folder).free
    known = f", {num_known} of them in the store already" if num_known else ""
    smaller = " as raw frames, JPEG takes a fraction" if codec.name == "jpeg" else ""
    print(f"{num_clips} clips{known}: at most {show_bytes(needed)}{smaller}; {show_bytes(free)} are free", flush=True)
    if codec.name == "raw" and needed > free:
        print("this may fill the disk: what is written then stays good, and the same command goes on", flush=True)


def print_losses(datasets: list[Any], quarantined: dict[str, str]) -> None:
    """Why clips are in quarantine, and which comparisons go with them."""
    if not quarantined:
        print("no clip is in quarantine")
        return
    print(f"clips in quarantine: {len(quarantined)} (quarantine.jsonl names them; the next run tries them again)")
    kinds = Counter(re.sub(r"(?<!mp)\d+", "N", reason) for reason in quarantined.values())
    for kind, count in kinds.most_common(SHOWN_REASONS):
        print(f"{count:>7}  {kind}")
    for dataset in datasets:
        labelled: Counter[str] = Counter()
        lost: Counter[str] = Counter()
        for pair in getattr(dataset, "pairs", ()):
            is_lost = pair.video_0.name in quarantined or pair.video_1.name in quarantined
            for dimension, preference in pair.preferences.items():
                if preference is not None:
                    labelled[dimension] += 1
                    lost[dimension] += is_lost
        if labelled:
            counts = ", ".join(f"{lost[name]} of {count} {name}" for name, count in labelled.items())
            print(f"{dataset.config_file.name}: comparisons lost with them: {counts}")


def show_bytes(num_bytes: int) -> str:
    """Bytes in MB or GB."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"
