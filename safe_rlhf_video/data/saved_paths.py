"""Finds what `video_path` has to be when records are saved to another file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safe_rlhf_video.data.records import VideoSample
from safe_rlhf_video.data.video_folder import VideoFolder

_Key = tuple[str, str, str | None]


@dataclass(frozen=True)
class SavedPaths:
    """The `video_path`s of another config file.

    Attributes:
        replaced: video -> the new path, relative to the new file; other paths stay as they were written.
        lost: names of videos whose clips are there, but not where a load of the new file looks.
    """

    replaced: Mapping[_Key, str]
    lost: frozenset[str]

    def path_of(self, video: VideoSample) -> str:
        """The `video_path` of a video in the new file."""
        return self.replaced.get(_key(video), str(video.video_path))


def paths_seen_from(
    config_file: Path, videos: Iterable[VideoSample], folder: VideoFolder, found_by_id: bool
) -> SavedPaths:
    """Finds the paths of clips as another config file sees them.

    Args:
        config_file: the other file.
        videos: with their clips; those of two records may have one id.
        folder: where the clips are now.
        found_by_id: whether the other file will be loaded as a folder, where `video_path` finds no clip.
    """
    real_folder = os.path.realpath(config_file.parent)
    by_path = VideoFolder(config_file.parent, False, str(config_file))
    by_id = VideoFolder(config_file.parent / "videos", True, str(config_file))
    distinct = {_key(video): video for video in videos if video.video_path is not None}
    places = [[file for _, _, file in rule.locate(distinct.values())] for rule in (folder, by_path, by_id)]
    replaced: dict[_Key, str] = {}
    lost = set()
    for (key, video), file, seen_by_path, seen_by_id in zip(distinct.items(), *places, strict=True):
        if file is None:
            continue
        is_inside = file.startswith(os.path.join(real_folder, ""))
        if is_inside and seen_by_path != file:
            replaced[key] = os.path.relpath(file, real_folder)
        is_found = seen_by_id == file if found_by_id else is_inside
        if not is_found and os.path.isfile(file):
            lost.add(video.name)
    return SavedPaths(replaced, frozenset(lost))


def _key(video: VideoSample) -> _Key:
    return video.prompt_id, video.video_id, video.video_path
