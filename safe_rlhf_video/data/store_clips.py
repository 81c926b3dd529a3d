"""Decodes the clips of data sets into a frame store, from loose files or from an archive."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from safe_rlhf_video.data.records import PairSample
from safe_rlhf_video.data.safesora_dataset import SafeSoraDataset
from safe_rlhf_video.data.sources.archive import iterate_clips
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.files import require_path
from safe_rlhf_video.video.codec import Codec
from safe_rlhf_video.video.decoding import Backend
from safe_rlhf_video.video.frame_store import FrameStore, StoredClip, read_rows
from safe_rlhf_video.video.sampling import Sampling
from safe_rlhf_video.video.store_builder import ClipFile, StoreReport, build_store

_INCOMING = ".incoming"  # within the store: one file system has room for both, or for none


@dataclass(frozen=True)
class StorePlan:
    """What a store will hold.

    Attributes:
        clips: every clip, in the order of the data sets; one that two of them place differently comes twice.
        known: names of clips that have a row in the store already.
        num_texts: responses, which have no clip.
        needed: bytes that the other clips take at most, as raw frames.
        free: bytes that are free on the disk.
    """

    clips: tuple[ClipFile, ...]
    known: frozenset[str]
    num_texts: int
    needed: int
    free: int

    @property
    def names(self) -> set[str]:
        """Every clip's name once."""
        return {clip.name for clip in self.clips}


@dataclass(frozen=True)
class StoredClips:
    """What a build has done.

    Attributes:
        report: of the store's builder.
        others: names of the archive's members that are no clips.
        quarantined: clip of the plan that cannot be read -> reason, sorted by name.
    """

    report: StoreReport
    others: list[str]
    quarantined: dict[str, str]


def plan_store(datasets: Sequence[SafeSoraDataset], out: Path, sampling: Sampling) -> StorePlan:
    """Finds the clips of data sets and the room that their frames will take in a store.

    Raises:
        SampleError: there is no clip, or a path leads out of its video folder.
    """
    clips: dict[ClipFile, None] = {}
    for dataset in datasets:
        videos = [video for video in dataset.videos if video.video_path is not None]
        for video, path in zip(videos, dataset.video_files(videos), strict=True):
            clips[ClipFile(video.name, path)] = None
    if not clips:
        raise SampleError(f"{', '.join(str(dataset.config_file) for dataset in datasets)}: no video to prepare")
    num_texts = sum(video.video_path is None for dataset in datasets for video in dataset.videos)
    rows = read_rows(out)
    names = {clip.name for clip in clips}
    known = frozenset(name for name in names if name in rows)
    frame_bytes = 3 * max(sampling.max_pixels, sampling.size_multiple**2)
    needed = (len(names) - len(known)) * sampling.num_frames * frame_bytes
    folder = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    return StorePlan(tuple(clips), known, num_texts, needed, shutil.disk_usage(folder).free)


def store_clips(
    plan: StorePlan,
    out: Path,
    sampling: Sampling,
    *,
    codec: Codec,
    archive: Path | None = None,
    num_workers: int = 2,
    timeout_s: float = 60.0,
    backend: Backend = "pyav",
    verify: bool = False,
) -> StoredClips:
    """Builds a frame store, or goes on with one, with a progress bar; arguments and errors are those of `build_store`.

    Args:
        archive: videos.tar.gz, to read clips from in one pass; those that it lacks are read from their files.

    Raises:
        SampleError: the archive is missing, damaged or not to be trusted.
    """
    if archive is not None:
        require_path(archive, SampleError)
    clips, others = list(plan.clips), list[str]()
    if archive is not None and not verify:
        rows = read_rows(out)
        clips = [clip for clip in clips if not isinstance(rows.get(clip.name), StoredClip)]
    try:
        report = build_store(
            out,
            sampling,
            clips if archive is None else _stream_archive(archive, out / _INCOMING, clips, others),
            len(clips),
            codec=codec,
            num_workers=num_workers,
            timeout_s=timeout_s,
            backend=backend,
            verify=verify,
        )
    finally:
        # The builder has deleted what was in it; where it was refused, the folder is another builder's.
        with contextlib.suppress(OSError):
            (out / _INCOMING).rmdir()
    quarantined = FrameStore.open(out, sampling).quarantined
    return StoredClips(report, others, {name: quarantined[name] for name in sorted(plan.names & quarantined.keys())})


def count_lost(pairs: Sequence[PairSample], quarantined: Container[str]) -> dict[str, tuple[int, int]]:
    """For each labelled dimension, how many labels are lost with the clips in quarantine, and how many there are."""
    labelled: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    for pair in pairs:
        is_lost = pair.video_0.name in quarantined or pair.video_1.name in quarantined
        for dimension, preference in pair.preferences.items():
            if preference is not None:
                labelled[dimension] += 1
                lost[dimension] += is_lost
    return {name: (lost[name], count) for name, count in labelled.items()}


def _stream_archive(archive: Path, folder: Path, clips: list[ClipFile], others: list[str]) -> Iterator[ClipFile]:
    """The clips of an archive as temporary files in `folder`, then those that it lacks, which may be files.

    Names of members that are no clips are added to `others`.
    """
    # Not before now: the builder asks for the first clip when it has locked the store.
    shutil.rmtree(folder, ignore_errors=True)
    missing = {clip.name: clip for clip in clips}
    wanted = set(missing)
    if not wanted:
        return
    for name, path in iterate_clips(archive, folder, wanted, on_other=others.append):
        missing.pop(name)
        yield ClipFile(name, path, is_temporary=True)
    yield from missing.values()
