"""Writes a synthetic world to a folder: its records, its clips, and its hidden utilities."""

from __future__ import annotations

import gzip
import json
import zlib
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from safe_rlhf_video.data.records import VIDEO_NAMES
from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.progress import progress_bar
from safe_rlhf_video.reading import load_json, open_unpacked
from safe_rlhf_video.worlds.text_world import TEXT_WORLD_VERSION, plan_rows
from safe_rlhf_video.worlds.video_world import WORLD_VERSION, plan_split, write_clip, write_config


def write_video_world(out: Path, num_pairs: dict[str, int], seed: int, workers: int | None = None) -> int:
    """Writes config-SPLIT.json.gz, videos/ and truth.json.gz; the same arguments give the same bytes.

    Args:
        out: the folder; an interrupted run goes on there.
        num_pairs: split, "train" or "test" -> comparisons.
        seed: of the world.
        workers: processes that draw clips; all cores unless given.

    Returns:
        The number of clips.

    Raises:
        ConfigError: the folder holds another world, or cannot be written.
    """
    _check_counts(**{f"num_pairs of {split}": count for split, count in num_pairs.items()}, seed=seed)
    if workers is not None and workers < 1:
        raise ConfigError(f"workers: expected 1 or more, got {workers}")
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
    try:
        _check_folder(out, seed)
        with ProcessPoolExecutor(workers) as executor, progress_bar(len(clips), 0, "drawing clips", "clip") as progress:
            for _ in executor.map(write_clip, clips.items(), chunksize=32):
                progress.update()
        _write_truth(out, {"format_version": WORLD_VERSION, "seed": seed, "videos": truth})
        for split, pairs in configs.items():
            write_config(out / f"config-{split}.json.gz", pairs)
    except OSError as error:
        raise _cannot_write(out, error) from error
    except BrokenProcessPool as error:
        raise ConfigError(
            f"{out}: a process that drew clips was killed; if memory is short, use fewer workers, and run it again"
        ) from error
    return len(clips)


def write_text_world(out: Path, num_pairs: dict[str, int], seed: int, severity_noise: float) -> int:
    """Writes SPLIT.jsonl in PKU-SafeRLHF's form and truth.json.gz; the same arguments give the same bytes.

    Args:
        out: the folder.
        num_pairs: split, "train" or "test" -> comparisons.
        seed: of the world.
        severity_noise: how far people disagree about a severity, in levels.

    Returns:
        The number of responses.

    Raises:
        ConfigError: the folder cannot be written.
    """
    _check_counts(
        **{f"num_pairs of {split}": count for split, count in num_pairs.items()},
        seed=seed,
        severity_noise=severity_noise,
    )
    truth: dict[str, dict[str, float]] = {}
    try:
        for split, count in num_pairs.items():
            lines = []
            for row, utilities in plan_rows(split, count, seed, severity_noise):
                lines.append(f"{json.dumps(row)}\n")
                truth |= utilities
            write_whole(out / f"{split}.jsonl", "".join(lines))
        payload = {"format_version": TEXT_WORLD_VERSION, "seed": seed, "severity_noise": severity_noise}
        _write_truth(out, payload | {"videos": truth})
    except OSError as error:
        raise _cannot_write(out, error) from error
    return len(truth)


def _check_counts(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < float("inf"):
            raise ConfigError(f"{name}: expected 0 or more, got {value}")


def _check_folder(out: Path, seed: int) -> None:
    """Refuses to mix two worlds in one folder."""
    truth = out / "truth.json.gz"
    try:
        with open_unpacked(truth) as file:
            content = load_json(file.read())
        found_version, found_seed = content["format_version"], content["seed"]
    except FileNotFoundError:
        return
    except NotADirectoryError:  # nothing can be written there: the caller says so
        raise
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{truth}: damaged ({error}); delete it, or give another folder as out") from error
    if found_version != WORLD_VERSION:
        raise ConfigError(
            f"{out}: holds a world of another version ({found_version}, this package draws {WORLD_VERSION}); "
            "delete it, or give another folder as out"
        )
    if found_seed != seed:
        raise ConfigError(f"{out}: holds a world of another seed ({found_seed}); give another folder as out")


def _write_truth(out: Path, payload: dict[str, Any]) -> None:
    write_whole(out / "truth.json.gz", gzip.compress(json.dumps(payload).encode(), mtime=0))


def _cannot_write(out: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{out}: cannot be written ({error.strerror}); give another folder as out")
