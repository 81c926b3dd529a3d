"""The comparisons of a file and the clips to score for them, each with where it is read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safe_rlhf_video.batch_scoring import ScoreRequest
from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.data.samples import PairSample
from safe_rlhf_video.errors import SampleError, VideoDecodeError
from safe_rlhf_video.responses import TextResponse
from safe_rlhf_video.video.frame_store import FrameStore


@dataclass(frozen=True)
class LabelledClips:
    """Comparisons that can be judged.

    Attributes:
        config_file: that they come from.
        files: name -> clip; text responses have none.
        store: where clips are read from in place of their files, if there is one.
        notes: lines for the user.
    """

    config_file: Path
    pairs: list[PairSample]
    files: Mapping[str, Path]
    store: FrameStore | None
    notes: list[str]

    def requests(self, pairs: Sequence[PairSample]) -> list[ScoreRequest]:
        """What to score for some of the pairs: each clip or text once, in the order of first appearance."""
        videos = {video.name: video for pair in pairs for video in (pair.video_0, pair.video_1)}
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
    """Read a config in SafeSora's format; arguments as of `PairDataset.load` and of a run's data section.

    Raises:
        SampleError: a wrong record, or no comparison is left.
        VideoDecodeError: the store lacks clips, or has them in quarantine and `unreadable` is "refuse".
    """
    dataset = PairDataset.load(data, config_filename, video_dir=video_dir)
    if not len(dataset):
        raise SampleError(f"{data}: holds no comparison")
    clips = [video for video in dataset.videos if video.response_text is None]
    files = dict(zip((video.name for video in clips), dataset.video_files(clips), strict=True))
    if frame_store is None:
        return LabelledClips(dataset.config_file, dataset.pairs, files, None, [])
    store = FrameStore(frame_store)
    pairs, notes = _readable_pairs(dataset.pairs, store, files, unreadable)
    return LabelledClips(dataset.config_file, pairs, files, store, notes)


def _readable_pairs(
    pairs: list[PairSample], store: FrameStore, files: Mapping[str, Path], unreadable: str
) -> tuple[list[PairSample], list[str]]:
    """The comparisons whose clips the store holds; those of quarantined clips are refused or dropped, and counted."""
    store.check_clips(files)
    bad = set(files) & set(store.quarantined)
    kept = [pair for pair in pairs if pair.video_0.name not in bad and pair.video_1.name not in bad]
    notes = [f"{len(files) - len(bad)} clips are read from the frame store {store.folder}, none is decoded"]
    if not bad:
        return kept, notes
    lost = f"{len(bad)} clips are in its quarantine, with {len(pairs) - len(kept)} of {len(pairs)} comparisons"
    if unreadable == "refuse":
        raise VideoDecodeError(f"{store.folder}: {lost}; replace the clips, or leave them out with --unreadable drop")
    if not kept:
        raise SampleError(f"{store.folder}: {lost}; nothing is left to judge")
    return kept, [*notes, f"{lost}, which are left out"]
