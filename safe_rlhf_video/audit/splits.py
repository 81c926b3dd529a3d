"""Loads the configs of an audit and names them for its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safe_rlhf_video.data.datasets import PairDataset, PromptDataset, VideoDataset, load_any
from safe_rlhf_video.data.preferences import normalise_prompt
from safe_rlhf_video.data.records import PairSample, PromptSample, VideoSample
from safe_rlhf_video.errors import ConfigError, SampleError
from safe_rlhf_video.files import require_path
from safe_rlhf_video.video.frame_store import StoredClip, read_header, read_index

NUM_EXAMPLES = 20

AnyDataset = PairDataset | VideoDataset | PromptDataset


@dataclass(frozen=True)
class Split:
    """One config.

    Attributes:
        name: such as "train".
        dataset: pairs, single videos or prompts.
        pairs: empty unless the data set has pairs.
        mentions: every record of a video; a video in several pairs has several.
        videos: each video once, in the order of `dataset.videos`.
        prompts: prompt id -> the first record with this id.
    """

    name: str
    dataset: AnyDataset
    pairs: Sequence[PairSample]
    mentions: Sequence[VideoSample]
    videos: Sequence[VideoSample]
    prompts: Mapping[str, VideoSample | PromptSample]

    def video_files(self) -> tuple[dict[str, Path], list[str]]:
        """Maps each video with a clip to its file; also returns the names whose path leads out of the video folder."""
        # The path of a clip can depend on its prompt's id, and `keep_apart` may have renamed that.
        videos = {
            video.name: written
            for video, written in zip(self.videos, self.dataset.videos, strict=True)
            if video.response_text is None
        }
        try:
            return dict(zip(videos, self.dataset.video_files(videos.values()), strict=True)), []
        except SampleError:
            found, refused = {}, []
            for name, video in videos.items():
                try:
                    found[name] = self.dataset.video_file(video)
                except SampleError:
                    refused.append(name)
            return found, refused


def load_splits(
    paths: Sequence[str],
    config_filename: str = "config.json",
    video_dir: str | None = None,
    names: Sequence[str] | None = None,
) -> list[Split]:
    """Reads configs of pairs, videos or prompts and names them.

    Args:
        paths, config_filename, video_dir: as in `PairDataset.load`.
        names: one for each config; by default from the file names: "config-train.json.gz" is "train".

    Raises:
        ConfigError: there is not one name for each config, or two names are equal.
        SampleError: as `load_any`.
    """
    if names is not None and len(names) != len(paths):
        raise ConfigError(f"names: {len(names)} names for {len(paths)} configs; give one for each")
    if video_dir is not None:
        require_path(video_dir, SampleError, "correct the folder of the clips")
    datasets = [load_any(path, config_filename, video_dir) for path in paths]
    if names is None:
        files = [dataset.config_file.absolute() for dataset in datasets]
        stems = [file.name.removesuffix(".gz").removesuffix(".json") for file in files]
        names = [stem.removeprefix("config-") or stem for stem in stems]
        if len(set(names)) < len(names):
            names = [f"{file.parent.name}/{name}" for file, name in zip(files, names, strict=True)]
    if len(set(names)) < len(names):
        raise ConfigError(f"names: {', '.join(names)} are not all different; name the configs with --names")
    return [make_split(name, dataset) for name, dataset in zip(names, datasets, strict=True)]


def make_split(name: str, dataset: AnyDataset) -> Split:
    """Builds a split from a loaded data set."""
    pairs = dataset.pairs if isinstance(dataset, PairDataset) else []
    mentions = [video for pair in pairs for video in (pair.video_0, pair.video_1)] or dataset.videos
    records: Sequence[VideoSample | PromptSample] = (
        dataset.prompts if isinstance(dataset, PromptDataset) else dataset.videos
    )
    prompts: dict[str, VideoSample | PromptSample] = {}
    for record in records:
        prompts.setdefault(record.prompt_id, record)
    return Split(name, dataset, pairs, mentions, dataset.videos, prompts)


def keep_apart(splits: Sequence[Split]) -> list[Split]:
    """Returns the splits with different ids for different prompts, so that they can be read as one.

    A prompt is the same in two splits if its id and its text (ignoring case and white space) are equal, and every video
    id in both means the same path or the same response. Any other prompt gets the id "split/id"; no id of a file has a
    slash.
    """
    # Prompt id -> the different prompts with this id: split of the first, text, video id -> path and response.
    kinds: dict[str, list[tuple[str, str, dict[str, tuple[str | None, str | None]]]]] = {}
    kind_of: list[dict[str, str]] = []
    for split in splits:
        contents: dict[str, dict[str, tuple[str | None, str | None]]] = {}
        for video in split.videos:
            contents.setdefault(video.prompt_id, {})[video.video_id] = (video.video_path, video.response_text)
        kind_of.append({})
        for prompt_id, record in split.prompts.items():
            text, mine = normalise_prompt(record.prompt_text), contents.get(prompt_id, {})
            for first, its_text, its_contents in kinds.setdefault(prompt_id, []):
                if its_text == text and all(its_contents.get(name, each) == each for name, each in mine.items()):
                    its_contents.update(mine)
                    kind_of[-1][prompt_id] = first
                    break
            else:
                kinds[prompt_id].append((split.name, text, dict(mine)))
                kind_of[-1][prompt_id] = split.name
    return [
        _rename(split, {name: f"{first}/{name}" for name, first in firsts.items() if len(kinds[name]) > 1})
        for split, firsts in zip(splits, kind_of, strict=True)
    ]


def _rename(split: Split, new_ids: Mapping[str, str]) -> Split:
    if not new_ids:
        return split

    def rename(video: VideoSample) -> VideoSample:
        new_id = new_ids.get(video.prompt_id)
        return video if new_id is None else replace(video, prompt_id=new_id)

    pairs = [
        replace(pair, prompt_id=new_ids[pair.prompt_id], video_0=rename(pair.video_0), video_1=rename(pair.video_1))
        if pair.prompt_id in new_ids
        else pair
        for pair in split.pairs
    ]
    return replace(
        split,
        pairs=pairs,
        mentions=[rename(video) for video in split.mentions],
        videos=[rename(video) for video in split.videos],
        prompts={new_ids.get(name, name): record for name, record in split.prompts.items()},
    )


def read_store_hashes(store: Path) -> dict[str, str]:
    """Maps each clip that a frame store could read to the SHA-256 of its file.

    Raises:
        VideoDecodeError: the folder is not a frame store, or its index is damaged.
    """
    _, _, checksum = read_header(store)
    rows = read_index(store, checksum).rows
    return {name: row.file_sha256 for name, row in rows.items() if isinstance(row, StoredClip)}
