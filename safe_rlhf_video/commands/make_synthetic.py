"""Write a small world in SafeSora's format whose preferences are known exactly.

    python scripts/make_synthetic.py --out DIR --num_pairs 2000 --seed 0

DIR gets config-train.json.gz, config-test.json.gz, videos/ and truth.json.gz (hidden utilities, for evaluation only).
The same arguments give the same bytes; an interrupted run goes on where it stopped.
"""

import argparse
import gzip
import json
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from safe_rlhf_video.cli import Parser
from safe_rlhf_video.errors import ConfigError


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num_pairs", type=int, default=2000, help="training comparisons")
    parser.add_argument("--num_test_pairs", type=int, default=3200, help="test comparisons, of held-out prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="processes that draw clips; all cores unless given")
    arguments = parser.parse_args()
    for name in ("num_pairs", "num_test_pairs", "seed"):
        if getattr(arguments, name) < 0:
            raise ConfigError(f"{name}: expected 0 or more, got {getattr(arguments, name)}")
    if arguments.workers is not None and arguments.workers < 1:
        raise ConfigError(f"workers: expected 1 or more, got {arguments.workers}")
    num_pairs = {"train": arguments.num_pairs, "test": arguments.num_test_pairs}
    try:
        make_synthetic(arguments.out, num_pairs, arguments.seed, arguments.workers)
    except OSError as error:
        raise ConfigError(
            f"{arguments.out}: cannot be written ({error.strerror}); give another folder as out"
        ) from error


def make_synthetic(out: Path, num_pairs: dict[str, int], seed: int, workers: int | None = None) -> None:
    from safe_rlhf_video.data.records import VIDEO_NAMES
    from safe_rlhf_video.files import write_whole
    from safe_rlhf_video.progress import progress_bar
    from safe_rlhf_video.worlds.video_world import WORLD_VERSION, plan_split, write_clip, write_config

    configs: dict[str, list[dict[str, Any]]] = {}
    clips: dict[str, Any] = {}
    truth: dict[str, Any] = {}
    for split, count in num_pairs.items():
        configs[split] = []
        for pairs, new_clips, new_truth in plan_split(split, count, seed):
            configs[split] += pairs
            truth |= new_truth
            path_of = {pair[side]["video_id"]: out / pair[side]["video_path"] for pair in pairs for side in VIDEO_NAMES}
            clips |= {path_of[name]: clip for name, clip in new_clips.items()}
    check_folder(out, seed)
    with ProcessPoolExecutor(workers) as executor, progress_bar(len(clips), 0, "drawing clips", "clip") as progress:
        for _ in executor.map(write_clip, clips.items(), chunksize=32):
            progress.update()
    payload = {"format_version": WORLD_VERSION, "seed": seed, "videos": truth}
    write_whole(out / "truth.json.gz", gzip.compress(json.dumps(payload).encode(), mtime=0))
    for split, pairs in configs.items():
        write_config(out / f"config-{split}.json.gz", pairs)
    shown = ", ".join(f"{len(pairs)} {split} comparisons" for split, pairs in configs.items())
    print(f"{out}: {shown}, {len(clips)} clips")


def check_folder(out: Path, seed: int) -> None:
    """Refuse to mix two worlds in one folder."""
    from safe_rlhf_video.worlds.video_world import WORLD_VERSION

    truth = out / "truth.json.gz"
    try:
        content = json.loads(gzip.decompress(truth.read_bytes()))
        found_version, found_seed = content["format_version"], content["seed"]
    except FileNotFoundError:
        return
    except (gzip.BadGzipFile, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{truth}: damaged ({error}); delete it, or give another folder as out") from error
    if found_version != WORLD_VERSION:
        raise ConfigError(
            f"{out}: holds a world of another version ({found_version}, this package draws {WORLD_VERSION}); "
            "delete it, or give another folder as out"
        )
    if found_seed != seed:
        raise ConfigError(f"{out}: holds a world of another seed ({found_seed}); give another folder as out")
