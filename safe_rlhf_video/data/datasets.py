"""SafeSora's data sets: the records of one config file and the place of every clip."""

import copy
import gzip
import json
import os
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from safe_rlhf_video.data.samples import VIDEO_NAMES, PairSample, VideoSample, parse_pair
from safe_rlhf_video.errors import SampleError

CONFIG_SUFFIXES = (".json", ".json.gz")


class PairDataset:
    """Pairs of videos with preferences; `load` reads one from its file.

    Indexing gives a record in SafeSora's form: the keys of the file, unknown ones included, with the `video_path` of
    both videos made absolute.

    Attributes:
        config_file: the file the records were read from.
        pairs: one `PairSample` per row.
        videos: each video once, in the order of first appearance; where pairs say different things about a video, the
            first that knows `is_safe` is shown. The samples in `pairs` keep what their own row says, and
            `preferences.safety_signs` judges all of them.
    """

    def __init__(self, config_file: Path, records: list[dict[str, Any]], video_root: Path, is_root_by_id: bool) -> None:
        """Use `load`; `is_root_by_id` tells that clips lie at `video_root/prompt_id/video_id.mp4`."""
        self.config_file = config_file
        self.pairs = [parse_pair(record, f"{config_file.name} row {row}") for row, record in enumerate(records)]
        _check_pair_ids(self.pairs, config_file.name)
        self._num_prompts = _count_prompts(self.pairs, config_file.name)
        if not is_root_by_id:
            _check_video_paths(self.pairs, config_file.name)
        self.videos = _distinct_videos(self.pairs)
        self._records = records
        self._video_root = video_root
        self._real_video_root = os.path.realpath(video_root)
        self._is_root_by_id = is_root_by_id

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        config_filename: str = "config.json",
        video_dir: str | os.PathLike[str] | None = None,
    ) -> "PairDataset":
        """Read a data set and check every record; no clip is opened.

        A clip lies at `video_dir/prompt_id/video_id.mp4`; without `video_dir`, at `path/videos/prompt_id/video_id.mp4`
        when `path` is a folder, and at `video_path` as written, relative to the config, when it is a file.

        Args:
            path: a folder, or a .json or .json.gz file.
            config_filename: the file's name within a folder.
            video_dir: where the clips lie.

        Raises:
            SampleError: the file is missing or damaged, or a record is wrong; rows are counted from 0.
        """
        path = Path(path)
        config_file = path
        if path.is_dir():
            config_file = path / config_filename
            video_dir = path / "videos" if video_dir is None else video_dir
        records = _read_records(config_file)
        return cls(
            config_file=config_file,
            records=records,
            video_root=config_file.parent if video_dir is None else Path(video_dir),
            is_root_by_id=video_dir is not None,
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record at `index`, a copy; raises SampleError like `video_file`, IndexError past the end."""
        pair = self.pairs[index]
        sample = copy.deepcopy(self._records[index])
        for name, video in zip(VIDEO_NAMES, (pair.video_0, pair.video_1), strict=True):
            sample[name]["video_path"] = str(self.video_file(video))
        return sample

    @property
    def num_prompts(self) -> int:
        """Number of different prompts."""
        return self._num_prompts

    @property
    def num_pairs(self) -> int:
        """Number of pairs, the length of the data set."""
        return len(self.pairs)

    @property
    def num_videos(self) -> int:
        """Number of different videos."""
        return len(self.videos)

    def missing_preferences(self) -> dict[str, int]:
        """For each dimension and sub-dimension, the number of pairs without a preference."""
        counts: Counter[str] = Counter()
        for pair in self.pairs:
            counts.update({name: int(preferred is None) for name, preferred in pair.preferences.items()})
        return dict(counts)

    def video_file(self, video: VideoSample) -> Path:
        """Absolute path of a clip, symbolic links resolved; whether it exists is left to the decoder.

        Raises:
            SampleError: the path leads out of the video folder, as written or by a symbolic link.
        """
        if self._is_root_by_id:
            written = os.path.join(video.prompt_id, f"{video.video_id}.mp4")
        else:
            written = video.video_path
            # SafeSora's own rule for this field, videos/prompt_id/video_id, has no ending; its files do.
            if not Path(written).suffix and not (self._video_root / written).is_file():
                written += ".mp4"
        real = os.path.realpath(self._video_root / written)
        if os.path.commonpath((real, self._real_video_root)) != self._real_video_root:
            raise SampleError(
                f"{self.config_file.name} video {video.video_id} of prompt {video.prompt_id} field video_path: "
                f"{written!r} leads out of the video folder {self._video_root}; move the clip into it or pass video_dir"
            )
        return Path(real)


def _read_records(config_file: Path) -> list[dict[str, Any]]:
    """The list in a config file; its items are still unchecked."""
    if not config_file.name.endswith(CONFIG_SUFFIXES):
        raise SampleError(f"{config_file}: expected a file that ends in .json or .json.gz, or a folder with one")
    try:
        content = config_file.read_bytes()
        if config_file.name.endswith(".gz"):
            content = gzip.decompress(content)
        records = json.loads(content)
    except FileNotFoundError:
        raise SampleError(f"{config_file}: no such file; {_describe_configs(config_file.parent)}") from None
    except json.JSONDecodeError as error:
        position = f"line {error.lineno} column {error.colno}"
        raise SampleError(f"{config_file}: not valid JSON at {position} ({error.msg}); correct it there") from error
    except UnicodeDecodeError as error:
        raise SampleError(f"{config_file}: not UTF-8 text at byte {error.start}; save it as UTF-8") from error
    except RecursionError as error:
        raise SampleError(f"{config_file}: nested too deeply, expected a list of pairs") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SampleError(f"{config_file}: not a whole gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise SampleError(f"{config_file}: cannot be read ({error.strerror}); check the file and its rights") from error
    if not isinstance(records, list):
        raise SampleError(f"{config_file}: expected a list of pairs, got JSON of type {type(records).__name__}")
    return records


def _describe_configs(folder: Path) -> str:
    if not folder.is_dir():
        return f"the folder {folder} does not exist either"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(CONFIG_SUFFIXES))
    if not names:
        return f"{folder} holds no .json or .json.gz file"
    return f"{folder} holds {', '.join(names)}: name one of them, as path or config_filename"


def _check_pair_ids(pairs: list[PairSample], file_name: str) -> None:
    rows: dict[str, int] = {}
    for row, pair in enumerate(pairs):
        first = rows.setdefault(pair.pair_id, row)
        if first != row:
            raise SampleError(
                f"{file_name} row {row} field pair_id: {pair.pair_id!r} is the id of row {first} too; remove one"
            )


def _count_prompts(pairs: list[PairSample], file_name: str) -> int:
    rows: dict[str, int] = {}
    for row, pair in enumerate(pairs):
        first = rows.setdefault(pair.prompt_id, row)
        if pairs[first].prompt_text != pair.prompt_text:
            raise SampleError(
                f"{file_name} row {row} field prompt_text: differs from row {first} of the same prompt_id "
                f"{pair.prompt_id!r}; give different prompts different ids"
            )
    return len(rows)


def _check_video_paths(pairs: list[PairSample], file_name: str) -> None:
    """One video, one clip: of two paths, only one would be opened, and labels of the other be learned with it."""
    seen: dict[tuple[str, str], tuple[str, int]] = {}
    for row, pair in enumerate(pairs):
        for name, video in zip(VIDEO_NAMES, (pair.video_0, pair.video_1), strict=True):
            path, first = seen.setdefault((video.prompt_id, video.video_id), (video.video_path, row))
            if path != video.video_path:
                raise SampleError(
                    f"{file_name} row {row} field {name}.video_path: {video.video_path!r} differs from {path!r} in row "
                    f"{first} of the same video_id {video.video_id!r}; give different clips different ids"
                )


def _distinct_videos(pairs: list[PairSample]) -> list[VideoSample]:
    videos: dict[tuple[str, str], VideoSample] = {}
    for pair in pairs:
        for video in (pair.video_0, pair.video_1):
            key = (video.prompt_id, video.video_id)
            known = videos.setdefault(key, video)
            if known.is_safe is None and video.is_safe is not None:
                videos[key] = video
    return list(videos.values())
