"""SafeSora's three kinds of data set: the records of one config file and the place of every clip.

The classes have the methods of the `safe-sora` package; docs/data.md lists what differs.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from safe_rlhf_video.data.clip_files import copy_clips, find_unreadable
from safe_rlhf_video.data.config_files import is_config_name, read_records, write_records
from safe_rlhf_video.data.hf_export import pairs_to_hf, prompts_to_hf, videos_to_hf
from safe_rlhf_video.data.records import (
    HARM_LABELS,
    VIDEO_NAMES,
    PairSample,
    VideoSample,
    parse_pair,
    parse_prompt,
    parse_video,
)
from safe_rlhf_video.data.video_folder import VideoFolder
from safe_rlhf_video.errors import ConfigError, SampleError

if TYPE_CHECKING:
    import datasets

PathOf = Callable[[VideoSample], str]


class SafeSoraDataset:
    """What the three kinds of data set share; use one of them, or `load_any` where the kind is not known.

    Indexing gives a record in SafeSora's form, a copy: the keys of the file, unknown ones included, with every
    `video_path` made absolute.

    Attributes:
        config_file: the file the records were read from.
        videos: each video once, in the order of first appearance.
    """

    videos: list[VideoSample]

    def __init__(self, config_file: Path, records: list[Any], folder: VideoFolder) -> None:
        """Use `load`; `folder` tells where the clips lie."""
        for row, record in enumerate(records):
            kind = _kind_of(record)
            if kind is not None and not isinstance(self, kind):
                raise SampleError(
                    f"{config_file} row {row}: has the fields of {_NAME_OF[kind]}, read it with {kind.__name__}"
                )
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
        """Read a data set and check every record; no clip is opened.

        A clip lies at `video_dir/prompt_id/video_id.mp4`; without `video_dir`, at `path/videos/prompt_id/video_id.mp4`
        when `path` is a folder, and at `video_path` as written, relative to the config, when it is a file.

        Args:
            path: a folder, or a .json or .json.gz file.
            config_filename: the file's name within a folder.
            video_dir: where the clips lie.

        Raises:
            SampleError: the file is missing or damaged, or a record is wrong or of another kind; rows are counted from
                0.
        """
        config_file, folder = _find(path, config_filename, video_dir)
        return cls(config_file, read_records(config_file), folder)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record at `index`, a copy.

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
    def num_prompts(self) -> int:
        """Number of different prompts."""
        raise NotImplementedError

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
        """From now on a clip lies at `video_dir/prompt_id/video_id.mp4`."""
        self._folder = VideoFolder(Path(video_dir), True, str(self.config_file))

    def video_file(self, video: VideoSample) -> Path:
        """Absolute path of a clip, symbolic links resolved; whether it exists is left to the decoder.

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
        """Decode every frame of every clip, in child processes, with a progress bar.

        SafeSora's method of this name prints how many clips are corrupt; this one tells which and why.

        Args:
            workers: processes to decode in.
            timeout_s: seconds one clip may take.
            quarantine: a file for the result, a line `{"name": ..., "error": ...}` for each unreadable clip. It is a
                report: `data.unreadable` goes by the quarantine that lies in a frame store, and never reads this one.

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
        """Write the records as they were read, unknown fields included; this data set stays as it is.

        Clips that are copied lie at `path/videos/prompt_id/video_id.mp4`, where `load(path)` finds them. One that is
        there already, whole, is kept, so a save that was interrupted goes on when it is called again.

        Without copying, a `video_path` that leads to no clip when the new file itself is loaded (`load(FILE)`) is
        replaced by one relative to that file, wherever the clip lies in the file's folder; others stay as they were
        written. A warning tells where the result has to be loaded with `video_dir`.

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
            path_of = self._paths_seen_from(config_file, found_by_id=not is_file)
        write_records(config_file, [self._record(index, path_of) for index in range(len(self))])
        return config_file

    def to_hf(self, absolute_paths: bool = True) -> datasets.Dataset:
        """The records as a `datasets.Dataset` with typed columns, nested as in SafeSora's files.

        Harm labels are structs of 12 nullable booleans, preferences nullable strings ("video_0", "video_1", "tie");
        unknown fields stand, as one JSON text, in the column `extra` of the record they belong to, null without any.

        Args:
            absolute_paths: whether `video_path` is made absolute or stays as written.

        Raises:
            SampleError: a path that is to be made absolute leads out of the video folder.
        """
        raise NotImplementedError

    def _record(self, index: int, path_of: PathOf) -> dict[str, Any]:
        """The record at `index` with new paths for its clips; what stays is shared with this data set."""
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

    def _paths_seen_from(self, config_file: Path, found_by_id: bool) -> PathOf:
        """What `video_path` has to be in another config file; warns of clips that a load of it would not find.

        Args:
            config_file: the other file.
            found_by_id: whether it will be loaded as a folder, where `video_path` finds no clip.
        """
        folder = config_file.parent
        real_folder = os.path.realpath(folder)
        by_path = VideoFolder(folder, False, str(config_file))
        by_id = VideoFolder(folder / "videos", True, str(config_file))
        distinct = {_path_key(video): video for video in self._all_videos() if video.video_path is not None}
        videos = list(distinct.values())
        places = [[file for _, _, file in rule.locate(videos)] for rule in (self._folder, by_path, by_id)]
        new_paths: dict[tuple[str, str, str | None], str] = {}
        lost = set()
        for video, file, seen_by_path, seen_by_id in zip(videos, *places, strict=True):
            if file is None:
                continue
            is_inside = file.startswith(os.path.join(real_folder, ""))
            if is_inside and seen_by_path != file:
                new_paths[_path_key(video)] = os.path.relpath(file, real_folder)
            is_found = seen_by_id == file if found_by_id else is_inside
            if not is_found and os.path.isfile(file):
                lost.add(video.name)
        if lost:
            remedy = f"video_dir={str(self._folder.root)!r}" if self._folder.is_by_id else "the video_dir that has them"
            warnings.warn(
                f"{config_file}: {len(lost)} of {self.num_videos} clips are not where its reader looks; load it with "
                f"{remedy}, or save with copy_videos=True",
                stacklevel=3,
            )
        return lambda video: new_paths.get(_path_key(video), str(video.video_path))


class PairDataset(SafeSoraDataset):
    """Pairs of videos with preferences, SafeSora's comparisons; in a text corpus, pairs of responses.

    Attributes:
        config_file: the file the records were read from.
        pairs: one `PairSample` per row.
        videos: each video once, in the order of first appearance; where pairs say different things about a video, the
            first that knows `is_safe` is shown. The samples in `pairs` keep what their own row says, and
            `preferences.safety_signs` judges all of them.
    """

    def __init__(self, config_file: Path, records: list[Any], folder: VideoFolder) -> None:
        super().__init__(config_file, records, folder)
        name = str(config_file)
        self.pairs = [parse_pair(record, f"{name} row {row}") for row, record in enumerate(records)]
        _check_unique([pair.pair_id for pair in self.pairs], "pair_id", name)
        self._num_prompts = _count_prompts(self.pairs, name)
        _check_contents(self.pairs, name, with_paths=not folder.is_by_id)
        self.videos = _distinct_videos(self.pairs)

    @property
    def num_prompts(self) -> int:
        """Number of different prompts."""
        return self._num_prompts

    @property
    def num_pairs(self) -> int:
        """Number of pairs, the length of the data set."""
        return len(self.pairs)

    def is_complete(self) -> bool:
        """Whether all of SafeSora's fields are known: preferences, sub-preferences, `is_safe` and the generator."""
        return all(
            pair.prompt_type is not None
            and None not in pair.preferences.values()
            and all(map(_is_video_complete, (pair.video_0, pair.video_1)))
            for pair in self.pairs
        )

    def missing_preferences(self) -> dict[str, int]:
        """For each dimension and sub-dimension, the number of pairs without a preference."""
        counts: Counter[str] = Counter()
        for pair in self.pairs:
            counts.update({name: int(preferred is None) for name, preferred in pair.preferences.items()})
        return dict(counts)

    def to_hf(self, absolute_paths: bool = True) -> datasets.Dataset:
        return pairs_to_hf(self.pairs, self._exported_paths(absolute_paths))

    def _record(self, index: int, path_of: PathOf) -> dict[str, Any]:
        record: dict[str, Any] = self._records[index]
        pair = self.pairs[index]
        samples = zip(VIDEO_NAMES, (pair.video_0, pair.video_1), strict=True)
        return record | {name: _with_path(record[name], video, path_of) for name, video in samples}

    def _all_videos(self) -> Iterable[VideoSample]:
        return (video for pair in self.pairs for video in (pair.video_0, pair.video_1))


class VideoDataset(SafeSoraDataset):
    """Videos with harm labels, SafeSora-Label.

    Attributes:
        config_file: the file the records were read from.
        videos: one `VideoSample` per row.
    """

    def __init__(self, config_file: Path, records: list[Any], folder: VideoFolder) -> None:
        super().__init__(config_file, records, folder)
        name = str(config_file)
        self.videos = [parse_video(record, f"{name} row {row}") for row, record in enumerate(records)]
        _check_unique([video.name for video in self.videos], "video_id", name)
        self._num_prompts = _count_prompts(self.videos, name)

    @property
    def num_prompts(self) -> int:
        """Number of different prompts."""
        return self._num_prompts

    def is_complete(self) -> bool:
        """Whether all of SafeSora's fields are known, the 12 harm labels of prompt and video included."""
        return all(
            _is_video_complete(video) and _has_all_labels(video.harm_labels) and _has_all_labels(video.prompt_labels)
            for video in self.videos
        )

    def to_hf(self, absolute_paths: bool = True) -> datasets.Dataset:
        return videos_to_hf(self.videos, self._exported_paths(absolute_paths))

    def _record(self, index: int, path_of: PathOf) -> dict[str, Any]:
        return _with_path(self._records[index], self.videos[index], path_of)


class PromptDataset(SafeSoraDataset):
    """Prompts to generate videos from, SafeSora-Eval.

    Attributes:
        config_file: the file the records were read from.
        prompts: one `PromptSample` per row.
        videos: none.
    """

    def __init__(self, config_file: Path, records: list[Any], folder: VideoFolder) -> None:
        super().__init__(config_file, records, folder)
        name = str(config_file)
        self.prompts = [parse_prompt(record, f"{name} row {row}") for row, record in enumerate(records)]
        _check_unique([prompt.prompt_id for prompt in self.prompts], "prompt_id", name)
        self.videos = []

    @property
    def num_prompts(self) -> int:
        """Number of prompts, the length of the data set."""
        return len(self.prompts)

    @property
    def num_videos(self) -> int:
        """-1, as in SafeSora: a prompt has no video yet."""
        return -1

    def is_complete(self) -> bool:
        """Whether the type and the 12 harm labels of every prompt are known."""
        return all(prompt.prompt_type is not None and _has_all_labels(prompt.prompt_labels) for prompt in self.prompts)

    def to_hf(self, absolute_paths: bool = True) -> datasets.Dataset:
        return prompts_to_hf(self.prompts)

    def _record(self, index: int, path_of: PathOf) -> dict[str, Any]:
        record: dict[str, Any] = self._records[index]
        return record


_NAME_OF = {PairDataset: "a pair", VideoDataset: "a video", PromptDataset: "a prompt"}


def load_any(
    path: str | os.PathLike[str], config_filename: str = "config.json", video_dir: str | os.PathLike[str] | None = None
) -> PairDataset | VideoDataset | PromptDataset:
    """Read a data set of any kind, which the fields of its first record tell; arguments as those of `load`.

    Raises:
        SampleError: as `load`, or the file holds no record, or its first one is none of a pair, a video or a prompt.
    """
    config_file, folder = _find(path, config_filename, video_dir)
    records = read_records(config_file)
    if not records:
        raise SampleError(
            f"{config_file}: holds no record that tells what it is; give a file with comparisons or videos"
        )
    kind = _kind_of(records[0])
    if kind is None:
        raise SampleError(
            f"{config_file} row 0: expected the fields of a pair (pair_id, video_0, video_1), a video (video_id) or a "
            "prompt (prompt_id); convert the file to SafeSora's form"
        )
    return kind(config_file, records, folder)


def _kind_of(record: Any) -> type[PairDataset | VideoDataset | PromptDataset] | None:
    """What the fields of a record tell; None where they are those of nothing."""
    if not isinstance(record, dict):
        return None
    if "pair_id" in record or any(name in record for name in VIDEO_NAMES):
        return PairDataset
    if "video_id" in record:
        return VideoDataset
    return PromptDataset if "prompt_id" in record else None


def _find(
    path: str | os.PathLike[str], config_filename: str, video_dir: str | os.PathLike[str] | None
) -> tuple[Path, VideoFolder]:
    """The config file and where its clips lie, by the rules of `SafeSoraDataset.load`."""
    path = Path(path)
    config_file = path
    if os.path.isdir(path):
        config_file = path / config_filename
        video_dir = path / "videos" if video_dir is None else video_dir
    root = config_file.parent if video_dir is None else Path(video_dir)
    return config_file, VideoFolder(root, video_dir is not None, str(config_file))


def _with_path(record: dict[str, Any], video: VideoSample, path_of: PathOf) -> dict[str, Any]:
    if video.video_path is None:
        return record
    return record | {"video_path": path_of(video)}


def _path_of_copy(video: VideoSample) -> str:
    return f"videos/{video.prompt_id}/{video.video_id}.mp4"


def _path_key(video: VideoSample) -> tuple[str, str, str | None]:
    return video.prompt_id, video.video_id, video.video_path


def _copy_json(value: Any) -> Any:
    """A copy that shares no list or object, not even with itself; copy.deepcopy takes five times as long."""
    if isinstance(value, dict):
        return {key: _copy_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy_json(item) for item in value]
    return value


def _is_video_complete(video: VideoSample) -> bool:
    is_described = video.response_text is not None or video.video_text is not None
    return is_described and None not in (video.prompt_type, video.is_safe, video.generated_from)


def _has_all_labels(labels: Mapping[str, bool] | None) -> bool:
    return labels is not None and len(labels) == len(HARM_LABELS)


def _check_unique(ids: Sequence[str], field: str, file_name: str) -> None:
    rows: dict[str, int] = {}
    for row, value in enumerate(ids):
        first = rows.setdefault(value, row)
        if first != row:
            raise SampleError(
                f"{file_name} row {row} field {field}: {value!r} is the id of row {first} too; remove one"
            )


def _count_prompts(samples: Sequence[PairSample | VideoSample], file_name: str) -> int:
    rows: dict[str, int] = {}
    for row, sample in enumerate(samples):
        first = rows.setdefault(sample.prompt_id, row)
        if samples[first].prompt_text != sample.prompt_text:
            raise SampleError(
                f"{file_name} row {row} field prompt_text: differs from row {first} of the same prompt_id "
                f"{sample.prompt_id!r}; give different prompts different ids"
            )
    return len(rows)


def _check_contents(pairs: Sequence[PairSample], file_name: str, with_paths: bool) -> None:
    """One id, one clip or response: of two, one would be read, and the labels of the other be learned with it."""
    seen: dict[tuple[str, str], tuple[VideoSample, int]] = {}
    for row, pair in enumerate(pairs):
        if with_paths and pair.video_0.video_path is not None and pair.video_0.video_path == pair.video_1.video_path:
            raise SampleError(
                f"{file_name} row {row} field video_1.video_path: {pair.video_1.video_path!r} is that of video_0 too, "
                "and a clip compared with itself teaches nothing; remove the row"
            )
        for name, video in zip(VIDEO_NAMES, (pair.video_0, pair.video_1), strict=True):
            known, first = seen.setdefault((video.prompt_id, video.video_id), (video, row))
            if known is video:
                continue
            if known.response_text != video.response_text:
                raise SampleError(
                    f"{file_name} row {row} field {name}.response_text: differs from row {first} of the same video_id "
                    f"{video.video_id!r}; give different responses different ids"
                )
            if with_paths and known.video_path != video.video_path:
                raise SampleError(
                    f"{file_name} row {row} field {name}.video_path: {video.video_path!r} differs from "
                    f"{known.video_path!r} in row {first} of the same video_id {video.video_id!r}; give different "
                    "clips different ids"
                )


def _distinct_videos(pairs: Sequence[PairSample]) -> list[VideoSample]:
    videos: dict[tuple[str, str], VideoSample] = {}
    for pair in pairs:
        for video in (pair.video_0, pair.video_1):
            key = (video.prompt_id, video.video_id)
            known = videos.setdefault(key, video)
            if known.is_safe is None and video.is_safe is not None:
                videos[key] = video
    return list(videos.values())
