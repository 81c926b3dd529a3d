"""Finds the clips that a text-to-video model has made, and checks which of them can be read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safe_rlhf_video.errors import SampleError, VideoDecodeError
from safe_rlhf_video.files import require_path
from safe_rlhf_video.progress import progress_bar
from safe_rlhf_video.video.pool import DecodePool
from safe_rlhf_video.video.sampling import Sampling


@dataclass(frozen=True)
class Generations:
    """What a folder of generations contains.

    Attributes:
        clips: prompt id -> its clips, sorted by name; only prompts with a clip.
        without_clip: ids of the prompts without a clip.
        strays: files and folders of no prompt, and files that are no .mp4.
    """

    clips: dict[str, list[Path]]
    without_clip: list[str]
    strays: list[Path]


def find_generations(folder: Path, prompt_ids: Sequence[str]) -> Generations:
    """Looks for FOLDER/prompt_id/*.mp4 and FOLDER/prompt_id.mp4; ignores names that begin with a dot.

    Raises:
        SampleError: `folder` is not a folder, or cannot be read.
    """
    require_path(folder, SampleError, "give the folder of the generations")
    known = set(prompt_ids)
    found: dict[str, list[Path]] = {}
    strays: list[Path] = []
    for entry in _entries(folder):
        if entry.name in known and entry.is_dir():
            for clip in _entries(entry):
                if clip.suffix.lower() == ".mp4":
                    found.setdefault(entry.name, []).append(clip)
                else:
                    strays.append(clip)
        elif entry.suffix.lower() == ".mp4" and entry.stem in known:
            found.setdefault(entry.stem, []).append(entry)
        else:
            strays.append(entry)
    clips = {name: found[name] for name in prompt_ids if name in found}
    return Generations(clips, [name for name in prompt_ids if name not in found], strays)


def check_clips(clips: Iterable[Path], sampling: Sampling, description: str) -> tuple[dict[Path, str], dict[Path, str]]:
    """Decodes clips in child processes, as scoring will, and hashes them.

    This happens before scoring: the scores that a run keeps belong to a fixed list of clips.

    Returns:
        Readable clip -> SHA-256, and unreadable clip -> error.
    """
    hashes: dict[Path, str] = {}
    unreadable: dict[Path, str] = {}
    paths = list(clips)
    with DecodePool(sampling) as pool, progress_bar(len(paths), 0, description, "clip") as progress:
        for path, outcome in zip(paths, pool.attempt(paths), strict=True):
            if isinstance(outcome, VideoDecodeError):
                unreadable[path] = str(outcome)
            else:
                with path.open("rb") as file:
                    hashes[path] = hashlib.file_digest(file, "sha256").hexdigest()
            progress.update()
    return hashes, unreadable


def _entries(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in sorted(os.listdir(folder)) if not name.startswith(".")]
    except OSError as error:
        raise SampleError(f"{folder}: cannot be read as a folder of generations ({error.strerror})") from error
