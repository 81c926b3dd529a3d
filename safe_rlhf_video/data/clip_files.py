"""Copies the clips of a data set to another folder, and decodes them to find those that cannot be read."""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from safe_rlhf_video.errors import SampleError, VideoDecodeError
from safe_rlhf_video.files import make_folder, put_in_place, write_whole
from safe_rlhf_video.progress import progress_bar
from safe_rlhf_video.video.pool import DecodePool
from safe_rlhf_video.video.sampling import Sampling

# All frames are decoded, however few are kept; tiny ones cost little to send from the child process.
_SMALL = Sampling(num_frames=2, min_pixels=1, max_pixels=32 * 32, size_multiple=1)


def copy_clips(copies: Sequence[tuple[Path, Path]]) -> None:
    """Copies clips, each written whole, with a progress bar; keeps a clip that is in its place already.

    Args:
        copies: pairs of clip and new file.

    Raises:
        SampleError: before anything is copied: a clip is missing, another one is in its place, or the disk has too
            little space; later: a file cannot be written. The next call goes on after the clips copied so far.
    """
    if missing := [source for source, _ in copies if not os.path.isfile(source)]:
        raise SampleError(
            f"{missing[0]}: no such file, {len(missing)} of {len(copies)} clips are missing; nothing was copied, put "
            "them there first"
        )
    source_of: dict[Path, Path] = {}
    for source, target in copies:
        # In an existing folder, links may make two names one file.
        if target in source_of or (os.path.lexists(target) and not _is_copy(source, target)):
            other = source_of.get(target, target)
            raise SampleError(
                f"{target}: is the place of {other} and of {source}, another clip; nothing was copied, choose a new "
                "folder"
            )
        source_of[target] = source
    todo = {target: source for target, source in source_of.items() if not target.exists()}
    _check_space(todo)
    with progress_bar(len(copies), len(copies) - len(todo), "copy clips", "clip") as bar:
        for target, source in todo.items():
            partial = target.with_name(f".{target.name}.partial")
            try:
                make_folder(target.parent)
                shutil.copy2(source, partial)
                put_in_place(partial, target)
            except OSError as error:
                partial.unlink(missing_ok=True)
                raise SampleError(
                    f"{target}: cannot be copied from {source} ({error.strerror}); check the disk, then go on with the "
                    "same command"
                ) from error
            bar.update()


def find_unreadable(
    clips: Mapping[str, Path], workers: int, timeout_s: float, quarantine: Path | None = None
) -> dict[str, str]:
    """Decodes every frame of clips in child processes, with a progress bar.

    Args:
        clips: name -> file.
        workers: processes to decode in.
        timeout_s: seconds one clip may take.
        quarantine: a file for the result, a line `{"name": ..., "error": ...}` for each unreadable clip.

    Returns:
        Name -> reason, for each clip that cannot be read.

    Raises:
        SampleError: `quarantine` cannot be written.
    """
    unreadable: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(DecodePool(_SMALL, workers, timeout_s))
        if clips:
            bar = stack.enter_context(progress_bar(len(clips), 0, "check clips", "clip"))
        for name, result in zip(clips, pool.attempt(clips.values()), strict=True):
            if isinstance(result, VideoDecodeError):
                unreadable[name] = str(result)
                bar.set_postfix_str(f"{len(unreadable)} unreadable", refresh=False)
            bar.update()
    if quarantine is not None:
        rows = (json.dumps({"name": name, "error": error}) + "\n" for name, error in unreadable.items())
        try:
            write_whole(quarantine, "".join(rows))
        except OSError as error:
            raise SampleError(f"{quarantine}: cannot be written ({error.strerror}); choose another file") from error
    return unreadable


def _is_copy(source: Path, target: Path) -> bool:
    # A copy keeps size and time of change, so files that agree in both count as equal; else all bytes are compared.
    return target.is_file() and filecmp.cmp(source, target)


def _check_space(copies: Mapping[Path, Path]) -> None:
    if not copies:
        return
    folder = next(iter(copies)).parent
    while not folder.exists():
        folder = folder.parent
    needed = sum(source.stat().st_size for source in copies.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise SampleError(
            f"{folder}: {len(copies)} clips need {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; nothing was "
            "copied, free the rest or choose another disk"
        )
