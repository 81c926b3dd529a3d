"""SafeSora's three kinds of data set: pairs, videos and prompts.

The classes have the methods of the `safe-sora` package; docs/data.md lists the differences.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_rlhf_video.data.config_files import read_records
from safe_rlhf_video.data.contradictions import check_contents, check_unique, count_prompts
from safe_rlhf_video.data.hf_export import pairs_to_hf, prompts_to_hf, videos_to_hf
from safe_rlhf_video.data.record_fields import PAGE, described_in
from safe_rlhf_video.data.records import (
    HARM_LABELS,
    VIDEO_NAMES,
    PairSample,
    VideoSample,
    parse_pair,
    parse_prompt,
    parse_video,
)
from safe_rlhf_video.data.safesora_dataset import Kind, PathOf, SafeSoraDataset, find_config, kind_of
from safe_rlhf_video.data.video_folder import VideoFolder
from safe_rlhf_video.errors import SampleError

if TYPE_CHECKING:
    import datasets


class PairDataset(SafeSoraDataset):
    """Pairs of videos with preferences, SafeSora's comparisons; in a text corpus, pairs of responses.

    Attributes:
        pairs: one `PairSample` per row.
        videos: each video once, in the order of first appearance; where pairs say different things about a video, the
            first that knows `is_safe`. The samples in `pairs` keep what their own row says, and
            `preferences.safety_signs` judges all of them.
    """

    kind = "pair"

    def __init__(self, config_file: Path, records: list[Any], folder: VideoFolder) -> None:
        super().__init__(config_file, records, folder)
        self._read(records, str(config_file))

    @described_in("comparisons")
    def _read(self, records: list[Any], name: str) -> None:
        self.pairs = [parse_pair(record, f"{name} row {row}") for row, record in enumerate(records)]
        check_unique([pair.pair_id for pair in self.pairs], "pair_id", name)
        self.num_prompts = count_prompts(self.pairs, name)
        check_contents(self.pairs, name, with_paths=not self._folder.is_by_id)
        self.videos = _distinct_videos(self.pairs)

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
    """Videos with harm labels, SafeSora-Label; `videos` has one `VideoSample` per row."""

    kind = "video"

    def __init__(self, config_file: Path, records: list[Any], folder: VideoFolder) -> None:
        super().__init__(config_file, records, folder)
        self._read(records, str(config_file))

    @described_in("videos")
    def _read(self, records: list[Any], name: str) -> None:
        self.videos = [parse_video(record, f"{name} row {row}") for row, record in enumerate(records)]
        check_unique([video.name for video in self.videos], "video_id", name)
        self.num_prompts = count_prompts(self.videos, name)

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
    """Prompts to generate videos from, SafeSora-Eval; `prompts` has one `PromptSample` per row, `videos` is empty."""

    kind = "prompt"

    def __init__(self, config_file: Path, records: list[Any], folder: VideoFolder) -> None:
        super().__init__(config_file, records, folder)
        self._read(records, str(config_file))

    @described_in("prompts")
    def _read(self, records: list[Any], name: str) -> None:
        self.prompts = [parse_prompt(record, f"{name} row {row}") for row, record in enumerate(records)]
        check_unique([prompt.prompt_id for prompt in self.prompts], "prompt_id", name)
        self.num_prompts = len(self.prompts)
        self.videos = []

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


def load_any(
    path: str | os.PathLike[str], config_filename: str = "config.json", video_dir: str | os.PathLike[str] | None = None
) -> PairDataset | VideoDataset | PromptDataset:
    """Reads a data set of any kind, which the fields of its first record show; arguments are those of `load`.

    Raises:
        SampleError: as `load`, or the file holds no record, or its first one is not a pair, a video or a prompt.
    """
    config_file, folder = find_config(path, config_filename, video_dir)
    records = read_records(config_file)
    if not records:
        raise SampleError(
            f"{config_file}: holds no record that shows what it is; give a file with comparisons or videos"
        )
    kind = kind_of(records[0])
    if kind is None:
        raise SampleError(
            f"{config_file} row 0: expected the fields of a pair (pair_id, video_0, video_1), a video (video_id) or a "
            f"prompt (prompt_id); convert the file to SafeSora's form, see {PAGE}#files-that-are-read"
        )
    kinds: dict[Kind, Any] = {"pair": PairDataset, "video": VideoDataset, "prompt": PromptDataset}
    dataset: PairDataset | VideoDataset | PromptDataset = kinds[kind](config_file, records, folder)
    return dataset


def _with_path(record: dict[str, Any], video: VideoSample, path_of: PathOf) -> dict[str, Any]:
    if video.video_path is None:
        return record
    return record | {"video_path": path_of(video)}


def _is_video_complete(video: VideoSample) -> bool:
    is_described = video.response_text is not None or video.video_text is not None
    return is_described and None not in (video.prompt_type, video.is_safe, video.generated_from)


def _has_all_labels(labels: Mapping[str, bool] | None) -> bool:
    return labels is not None and len(labels) == len(HARM_LABELS)


def _distinct_videos(pairs: Sequence[PairSample]) -> list[VideoSample]:
    videos: dict[tuple[str, str], VideoSample] = {}
    for pair in pairs:
        for video in (pair.video_0, pair.video_1):
            key = (video.prompt_id, video.video_id)
            known = videos.setdefault(key, video)
            if known.is_safe is None and video.is_safe is not None:
                videos[key] = video
    return list(videos.values())
