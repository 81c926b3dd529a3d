"""Finds the clips of a data set, and refuses paths that lead out of its video folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safe_rlhf_video.data.records import VideoSample
from safe_rlhf_video.errors import SampleError


@dataclass(frozen=True)
class VideoFolder:
    """The rule that finds a record's clip.

    Attributes:
        root: the folder that all clips are in.
        is_by_id: a clip is at `root/prompt_id/video_id.mp4`; else at its `video_path`, relative to `root`.
        config_name: path of the config file, for messages.
    """

    root: Path
    is_by_id: bool
    config_name: str

    def files(self, videos: Iterable[VideoSample]) -> list[Path]:
        """Absolute paths of clips, symbolic links resolved; the decoder finds out whether they exist.

        Raises:
            SampleError: a path leads out of the folder, as written or by a symbolic link, or a sample is a response,
                which has no clip.
        """
        files = []
        for video, written, file in self.locate(videos):
            if file is None:
                raise SampleError(
                    f"{self.config_name} video {video.video_id} of prompt {video.prompt_id} field video_path: "
                    f"{written!r} leads out of the video folder {self.root}; move the clip into it or pass video_dir"
                )
            files.append(Path(file))
        return files

    def locate(self, videos: Iterable[VideoSample]) -> Iterator[tuple[VideoSample, str, str | None]]:
        """Yields (video, path relative to `root`, absolute path or None where it leads out); raises for a response."""
        # One realpath per folder and one lstat per clip, instead of one realpath per clip. Kept for this call only: the
        # next one sees a folder that has become a link.
        real_folders: dict[str, str | None] = {}
        root = os.fspath(self.root)
        prefix = os.path.join(os.path.realpath(root), "")
        for video in videos:
            written = self._written(video, root)
            folder, name = os.path.split(os.path.join(root, written))
            if folder not in real_folders:
                real_folders[folder] = _resolve(folder)
            real_folder = real_folders[folder]
            file = None if real_folder is None else os.path.join(real_folder, name)
            if file is None or name in ("", ".", "..") or os.path.islink(file):
                file = _resolve(os.path.join(folder, name))
            # The folder itself is not a clip either.
            is_inside = file is not None and file.startswith(prefix) and file != prefix
            yield video, written, file if is_inside else None

    def _written(self, video: VideoSample, root: str) -> str:
        if video.video_path is None:
            raise SampleError(
                f"{self.config_name} video {video.video_id} of prompt {video.prompt_id}: has a response_text and no "
                "clip; leave it out where clips are needed"
            )
        if self.is_by_id:
            return os.path.join(video.prompt_id, f"{video.video_id}.mp4")
        return with_ending(root, video.video_path)


def with_ending(root: str, written: str) -> str:
    """The path of a clip, relative to `root`: a `video_path` without an ending gets ".mp4", unless it is a file.

    SafeSora writes videos/prompt_id/video_id in this field, without the ending that its files have.
    """
    has_ending = "." in written and (Path(written).suffix or os.path.basename(written) in (".", ".."))
    return written if has_ending or os.path.isfile(os.path.join(root, written)) else f"{written}.mp4"


def _resolve(path: str) -> str | None:
    """The path without symbolic links, or None where links lead in a circle.

    At a circle `realpath` gives up and drops the part before a "..": "circle/../link" would pass as "link", unresolved.
    """
    real = os.path.realpath(path)
    return real if os.path.realpath(real) == real else None
