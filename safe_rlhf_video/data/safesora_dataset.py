"""The base of SafeSora's three kinds of data set: records of one config file, and where their clips are."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from safe_rlhf_video.data.clip_files import copy_clips, find_unreadable
from safe_rlhf_video.data.config_files import is_config_name, read_records, write_records
from safe_rlhf_video.data.records import VIDEO_NAMES, VideoSample
from safe_rlhf_video.data.saved_paths import paths_seen_from
from safe_rlhf_video.data.video_folder import VideoFolder
from safe_rlhf_video.errors import ConfigError, SampleError
from safe_rlhf_video.files import require_path

if TYPE_CHECKING:
    import datasets

PathOf = Callable[[VideoSample], str]
Kind = Literal["pair", "video", "prompt"]
CLASSES = {"pair": "PairDataset", "video": "VideoDataset", "prompt": "PromptDataset"}


class SafeSoraDataset:
    """The part that all three kinds share; use one of them, or `load_any` where the kind is not known.

    Indexing gives a copy of a record in SafeSora's form: the keys of the file, unknown ones included, with every
    `video_path` made absolute.

    Attributes:
        config_file: the file that the records were read from.
        videos: each video once, in the order of first appearance.
        num_prompts: number of different prompts.
    """

    kind: ClassVar[Kind]
    videos: list[VideoSample]
    num_prompts: int

    def __init__(self, config_file: Path, records: list[Any], folder: VideoFolder) -> None:
        """Use `load`; `folder` finds the clips."""
        for row, record in enumerate(records):
            kind = kind_of(record)
            if kind not in (None, self.kind):
                raise SampleError(f"{config_file} row {row}: has the fields of a {kind}, read it with {CLASSES[kind]}")
        self.config_file = config_file
        self._records = records
        self._folder = folder

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        config_filename: str = "config.json",
        video_dir: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Reads a data set and checks every record; no clip is opened.

        A clip is at `video_dir/prompt_id/video_id.mp4`; without `video_dir`, at `path/videos/prompt_id/video_id.mp4`
        when `path` is a folder, and at `video_path` as written, relative to the config, when it is a file.

        Args:
            path: a folder, or a .json or .json.gz file.
            config_filename: the file's name within a folder.
            video_dir: the folder of the clips.

        Raises:
            SampleError: the file is missing or damaged, or a record is wrong or of another kind; rows are counted from
                0.
        """
        config_file, folder = find_config(path, config_filename, video_dir)
        return cls(config_file, read_records(config_file), folder)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A copy of the record at `index`.

        Raises:
            SampleError: as `video_file`.
            IndexError: there are fewer records.
            TypeError: `index` is a slice.
        """
        if isinstance(index, slice):
            raise TypeError("the index of a data set is one number, no slice; write [dataset[i] for i in range(10)]")
        sample: dict[str, Any] = _copy_json(self._record(index, lambda video: str(self.video_file(video))))
        return sample

    @property
    def num_pairs(self) -> int:
        """Number of pairs; -1, as in SafeSora, for the kinds that have none."""
        return -1

    @property
    def num_videos(self) -> int:
        """Number of different videos (in a text corpus: responses); -1, as in SafeSora, for prompts alone."""
        return len(self.videos)

    def is_complete(self) -> bool:
        """Whether every record has all of SafeSora's fields and labels, none of them null."""
        raise NotImplementedError

    def set_video_dir(self, video_dir: str | os.PathLike[str]) -> None:
        """From now on a clip is at `video_dir/prompt_id/video_id.mp4`."""
        self._folder = VideoFolder(Path(video_dir).absolute(), True, str(self.config_file))

    def video_file(self, video: VideoSample) -> Path:
        """Absolute path of a clip, symbolic links resolved; the decoder finds out whether it exists.

        Raises:
            SampleError: the path leads out of the video folder, as written or by a symbolic link, or `video` is a
                response, which has no clip.
        """
        return self._folder.files([video])[0]

    def video_files(self, videos: Iterable[VideoSample]) -> list[Path]:
        """`video_file` of many videos, several times as fast."""
        return self._folder.files(videos)

    def check_video_integrity(
        self, workers: int = 2, timeout_s: float = 60.0, quarantine: str | os.PathLike[str] | None = None
    ) -> dict[str, str]:
        """Decodes every frame of every clip, in child processes, with a progress bar.

        SafeSora's method of this name prints how many clips are corrupt; this one names them, with reasons.

        Args:
            workers: processes to decode in.
            timeout_s: seconds one clip may take.
            quarantine: a file for the result, a line `{"name": ..., "error": ...}` for each unreadable clip. It is a
                report: `data.unreadable` reads the quarantine of a frame store, and never this one.

        Returns:
            `prompt_id/video_id` -> reason, for each clip that is missing or cannot be read, in the order of `videos`.

        Raises:
            SampleError: a path leads out of the video folder, or `quarantine` cannot be written.
        """
        videos = self._videos_with_clip()
        clips = dict(zip((video.name for video in videos), self.video_files(videos), strict=True))
        return find_unreadable(clips, workers, timeout_s, None if quarantine is None else Path(quarantine))

    def save(
        self, path: str | os.PathLike[str], config_filename: str = "config.json", copy_videos: bool = False
    ) -> Path:
        """Writes the records as they were read, unknown fields included; this data set stays as it is.

        Clips are copied to `path/videos/prompt_id/video_id.mp4`, where `load(path)` finds them. One that is there
        already, whole, is kept, so an interrupted save goes on when it is called again.

        Without copying, a `video_path` that would find no clip in `load(FILE)` of the new file is replaced by one
        relative to that file, if the clip is in the file's folder; others stay as they were written. A warning says
        where the result has to be loaded with `video_dir`.

        Args:
            path: a .json or .json.gz file, or a folder; made where it does not exist.
            config_filename: the file's name within a folder.
            copy_videos: copy the clips too; needs a folder.

        Returns:
            The file that was written, after all clips.

        Raises:
            SampleError: a clip is missing or another one is in its place, before anything is copied; the disk has
                not enough space; or a file cannot be written.
            ConfigError: an argument is wrong.
        """
        path = Path(path)
        is_file = is_config_name(path) and not os.path.isdir(path)
        if is_file and copy_videos:
            raise ConfigError(f"copy_videos: expected a folder to copy to as path, got the file {path}")
        if not is_file and os.path.exists(path) and not os.path.isdir(path):
            raise ConfigError(f"path: {path} is a file; expected a folder, or a file that ends in .json or .json.gz")
        if not is_config_name(config_filename) or Path(config_filename).name != config_filename:
            raise ConfigError(
                f"config_filename: expected a name that ends in .json or .json.gz, got {config_filename!r}"
            )
        config_file = path if is_file else path / config_filename
        if copy_videos:
            videos = self._videos_with_clip()
            copies = VideoFolder(path / "videos", True, str(config_file)).files(videos)
            copy_clips(list(zip(self.video_files(videos), copies, strict=True)))
            path_of: PathOf = _path_of_copy
        else:
            paths = paths_seen_from(config_file, self._all_videos(), self._folder, found_by_id=not is_file)
            path_of = paths.path_of
            if paths.lost:
                is_named = self._folder.is_by_id
                remedy = f"video_dir={str(self._folder.root)!r}" if is_named else "the video_dir that has them"
                warnings.warn(
                    f"{config_file}: {len(paths.lost)} of {self.num_videos} clips are not where its reader looks; load "
                    f"it with {remedy}, or save with copy_videos=True",
                    stacklevel=2,
                )
        write_records(config_file, [self._record(index, path_of) for index in range(len(self))])
        return config_file

    def to_hf(self, absolute_paths: bool = True) -> datasets.Dataset:
        """The records as a `datasets.Dataset` with typed columns, nested as in SafeSora's files.

        Harm labels are structs of 12 nullable booleans, preferences nullable strings ("video_0", "video_1", "tie").
        The column `extra` of a record holds its unknown fields as one JSON text, null if there are none.

        Args:
            absolute_paths: whether `video_path` is made absolute or stays as written.

        Raises:
            SampleError: a path that is to be made absolute leads out of the video folder.
        """
        raise NotImplementedError

    def _record(self, index: int, path_of: PathOf) -> dict[str, Any]:
        """The record at `index` with new paths for its clips; the rest is shared with this data set."""
        raise NotImplementedError

    def _all_videos(self) -> Iterable[VideoSample]:
        """The video samples of all records, one after the other."""
        return self.videos

    def _exported_paths(self, absolute: bool) -> Callable[[VideoSample], str | None]:
        if not absolute:
            return lambda video: video.video_path
        videos = self._videos_with_clip()
        files = dict(zip((video.name for video in videos), map(str, self.video_files(videos)), strict=True))
        return lambda video: files.get(video.name)

    def _videos_with_clip(self) -> list[VideoSample]:
        return [video for video in self.videos if video.video_path is not None]


def kind_of(record: Any) -> Kind | None:
    """The kind of a record; None where its fields fit no kind."""
    if not isinstance(record, dict):
        return None
    if "pair_id" in record or any(name in record for name in VIDEO_NAMES):
        return "pair"
    if "video_id" in record:
        return "video"
    return "prompt" if "prompt_id" in record else None


def find_config(
    path: str | os.PathLike[str], config_filename: str, video_dir: str | os.PathLike[str] | None
) -> tuple[Path, VideoFolder]:
    """The config file and where its clips lie, by the rules of `SafeSoraDataset.load`."""
    path = Path(path)
    if not is_config_name(path):
        require_path(path, SampleError)
    config_file = path
    if os.path.isdir(path):
        config_file = path / config_filename
        video_dir = path / "videos" if video_dir is None else video_dir
    root = config_file.parent if video_dir is None else Path(video_dir)
    # Clips are looked for later, maybe from another current folder.
    return config_file, VideoFolder(root.absolute(), video_dir is not None, str(config_file))


def _path_of_copy(video: VideoSample) -> str:
    return f"videos/{video.prompt_id}/{video.video_id}.mp4"


def _copy_json(value: Any) -> Any:
    """A copy that shares no list or object, not even with itself; copy.deepcopy takes five times as long."""
    if isinstance(value, dict):
        return {key: _copy_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy_json(item) for item in value]
    return value
