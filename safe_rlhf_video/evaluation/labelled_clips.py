"""Loads the labelled comparisons or clips of a file, and the source of every clip that they need scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from safe_rlhf_video.data.datasets import PairDataset, PromptDataset, load_any
from safe_rlhf_video.data.preferences import videos_of
from safe_rlhf_video.data.records import PairSample, VideoSample
from safe_rlhf_video.errors import SampleError, VideoDecodeError
from safe_rlhf_video.files import require_path
from safe_rlhf_video.responses import TextResponse
from safe_rlhf_video.scoring.score_many import ScoreRequest
from safe_rlhf_video.video.frame_store import FrameStore

Sample = TypeVar("Sample", PairSample, VideoSample)


@dataclass(frozen=True)
class LabelledClips:
    """Comparisons, or clips with labels of their own, to evaluate on.

    Attributes:
        config_file: their file.
        pairs: empty for a file of clips.
        videos: empty for a file of comparisons.
        files: name -> file of a clip; text responses have none.
        store: frames that are read in place of the files; None without a store.
        notes: lines for the user.
    """

    config_file: Path
    pairs: list[PairSample]
    videos: list[VideoSample]
    files: Mapping[str, Path]
    store: FrameStore | None
    notes: list[str]

    def requests(self, samples: Sequence[PairSample | VideoSample]) -> list[ScoreRequest]:
        """Lists what to score for some pairs or videos: each clip or text once, in the order of first appearance."""
        videos = {video.name: video for sample in samples for video in videos_of(sample)}
        return [
            ScoreRequest(
                name,
                video.prompt_text,
                self.files[name] if video.response_text is None else TextResponse(video.response_text),
            )
            for name, video in videos.items()
        ]


def load_labelled_clips(
    data: str,
    config_filename: str = "config.json",
    video_dir: str | None = None,
    frame_store: str | None = None,
    unreadable: Literal["refuse", "drop"] = "refuse",
) -> LabelledClips:
    """Reads a config in SafeSora's format; arguments as of `load_any` and of a run's data section.

    Raises:
        SampleError: a wrong record, or nothing is left.
        VideoDecodeError: the store lacks clips, or has them in quarantine and `unreadable` is "refuse".
    """
    if video_dir is not None and frame_store is None:
        require_path(video_dir, SampleError, "correct the folder of the clips")
    dataset = load_any(data, config_filename, video_dir=video_dir)
    if isinstance(dataset, PromptDataset):
        raise SampleError(f"{data}: holds only prompts; give comparisons, or clips with labels")
    if not len(dataset):
        raise SampleError(f"{data}: holds no comparison and no clip")
    clips = [video for video in dataset.videos if video.response_text is None]
    files = dict(zip((video.name for video in clips), dataset.video_files(clips), strict=True))
    pairs, videos = (dataset.pairs, []) if isinstance(dataset, PairDataset) else ([], dataset.videos)
    if frame_store is None:
        return LabelledClips(dataset.config_file, pairs, videos, files, None, [])
    store = FrameStore(frame_store)
    store.check_clips(files)
    bad = set(files) & set(store.quarantined)
    notes = [f"{len(files) - len(bad)} clips are read from the frame store {store.folder}, none is decoded"]
    kept_pairs, kept_videos = _without(pairs, bad), _without(videos, bad)
    if bad:
        lost = f"{len(bad)} clips are in its quarantine"
        if pairs:
            lost += f", with {len(pairs) - len(kept_pairs)} of {len(pairs)} comparisons"
        if unreadable == "refuse":
            raise VideoDecodeError(
                f"{store.folder}: {lost}; replace the clips, or leave them out with --unreadable drop"
            )
        if not (kept_pairs or kept_videos):
            raise SampleError(f"{store.folder}: {lost}; nothing is left to judge")
        notes.append(f"{lost}, which are left out")
    return LabelledClips(dataset.config_file, kept_pairs, kept_videos, files, store, notes)


def _without(samples: list[Sample], bad: set[str]) -> list[Sample]:
    return [sample for sample in samples if not any(video.name in bad for video in videos_of(sample))]
