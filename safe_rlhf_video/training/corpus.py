"""Reads the records of a run and leaves out those that it must not see; each step says what it left out."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safe_rlhf_video.data.datasets import PairDataset, PromptDataset, load_any
from safe_rlhf_video.data.preferences import is_for_calibration, names_of_generators, videos_of
from safe_rlhf_video.data.records import VIDEO_NAMES, PairSample, VideoSample
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.files import require_path
from safe_rlhf_video.heads import GRADED_HEADS, HEADS
from safe_rlhf_video.kinds.targets import graded_kind_of
from safe_rlhf_video.training.config import DataConfig


@dataclass(frozen=True)
class Corpus:
    """The records of all files of a run.

    Attributes:
        name: of the files, for messages.
        pairs: comparisons.
        videos: labelled videos or texts outside comparisons.
        clip_files: name of a video -> its clip; text responses have none.
    """

    name: str
    pairs: list[PairSample]
    videos: list[VideoSample]
    clip_files: dict[str, Path]

    def __bool__(self) -> bool:
        return bool(self.pairs or self.videos)


def read_corpus(config: DataConfig, heads: Sequence[str]) -> Corpus:
    """Reads and joins the records of all files.

    Args:
        heads: what is trained; labels of graded heads must not contradict other labels of their record.

    Raises:
        SampleError: a wrong record, or two files use one id for different things.
    """
    if config.video_dir is not None and config.frame_store is None:
        require_path(config.video_dir, SampleError, "correct the folder of the clips")
    corpus = Corpus(", ".join(config.paths), [], [], {})
    graded = [head for head in GRADED_HEADS if head in heads]
    text_of: dict[str, tuple[str, str]] = {}
    content_of: dict[str, tuple[Path | str, str]] = {}
    for path in config.paths:
        dataset = load_any(path, config.config_filename, config.video_dir)
        if isinstance(dataset, PromptDataset):
            raise SampleError(f"{path}: holds prompts without videos; there is nothing to train on")
        earlier = {pair.pair_id for pair in corpus.pairs}
        rows: Sequence[PairSample | VideoSample] = dataset.videos
        if isinstance(dataset, PairDataset):
            rows = dataset.pairs
            corpus.pairs.extend(dataset.pairs)
        else:
            corpus.videos.extend(dataset.videos)
        for row, sample in enumerate(rows):
            text, first = text_of.setdefault(sample.prompt_id, (sample.prompt_text, path))
            if isinstance(sample, PairSample) and sample.pair_id in earlier:
                raise SampleError(f"{path} row {row} field pair_id: {sample.pair_id!r} is in an earlier config too")
            if text != sample.prompt_text:
                raise SampleError(
                    f"{path} row {row} field prompt_text: differs from that of the same prompt_id in {first}; give "
                    "different prompts different ids"
                )
            if graded:
                _check_grades(sample, graded, f"{path} row {row}")
        videos = [video for video in dataset.videos if video.response_text is None]
        files = dict(zip((video.name for video in videos), dataset.video_files(videos), strict=True))
        for video in dataset.videos:
            content = files.get(video.name, video.response_text or "")
            known, first = content_of.setdefault(video.name, (content, path))
            # One name, one content: of two, only one would be seen, and labels of the other be learned with it.
            if known != content and not _is_same_clip(known, content):
                raise SampleError(
                    f"{path} video {video.name}: is another clip or text than in {first}; give different ones "
                    "different ids"
                )
        for name, file in files.items():
            corpus.clip_files.setdefault(name, file)
    return corpus


def leave_out_generators(corpus: Corpus, generators: Sequence[str]) -> tuple[Corpus, list[str]]:
    """Leaves out every record with a clip of these generators.

    Returns:
        The others, and a line that says how many were left out.

    Raises:
        SampleError: a generator made no clip, or nothing is left.
    """
    if not generators:
        return corpus, []
    videos = [*corpus.videos, *(video for pair in corpus.pairs for video in videos_of(pair))]
    known = sorted({video.generated_from for video in videos if video.generated_from})
    if unknown := sorted(set(generators) - set(known)):
        raise SampleError(
            f"data.leave_out_generators: {unknown[0]!r} made no clip of {corpus.name}; known are "
            f"{', '.join(known) or 'none, generated_from is given nowhere'}"
        )
    names = names_of_generators(videos, set(generators))
    kept = replace(
        corpus,
        pairs=[pair for pair in corpus.pairs if not any(video.name in names for video in videos_of(pair))],
        videos=[video for video in corpus.videos if video.name not in names],
    )
    made_by = ", ".join(sorted(generators))
    if not kept:
        raise SampleError(
            f"data.leave_out_generators: every record of {corpus.name} has a clip of {made_by}; name fewer, or add data"
        )
    counts = (
        (len(corpus.pairs), len(kept.pairs), "comparisons"),
        (len(corpus.videos), len(kept.videos), "labelled videos"),
    )
    lost = " and ".join(f"{before - after} of {before} {what}" for before, after, what in counts if before)
    return kept, [f"{lost} have a clip of {made_by} and are left out (data.leave_out_generators)"]


def hold_out_prompts(corpus: Corpus, fraction: float, seed: int) -> tuple[Corpus, list[str]]:
    """Leaves out about `fraction` of the prompts, on which scores can be calibrated.

    Returns:
        The other records, and a line that says how many were left out.

    Raises:
        SampleError: nothing is left, or nothing was left out.
    """
    if not fraction:
        return corpus, []
    kept = replace(
        corpus,
        pairs=[pair for pair in corpus.pairs if not is_for_calibration(pair.prompt_text, fraction, seed)],
        videos=[video for video in corpus.videos if not is_for_calibration(video.prompt_text, fraction, seed)],
    )
    num_held_out = len(corpus.pairs) - len(kept.pairs) + len(corpus.videos) - len(kept.videos)
    if not num_held_out or not kept:
        raise SampleError(
            f"{corpus.name}: has too few prompts to hold out {fraction:.0%} of them; add data or set "
            "data.calibration_fraction to 0"
        )
    return kept, [f"{num_held_out} further records are held out for calibration"]


def _check_grades(sample: PairSample | VideoSample, graded: Sequence[str], where: str) -> None:
    sides = [f"{name}." for name in VIDEO_NAMES] if isinstance(sample, PairSample) else [""]
    for side, video in zip(sides, videos_of(sample), strict=True):
        for head in graded:
            key = HEADS[head].key
            if expected := graded_kind_of(head).expected(HEADS[head], video):
                raise SampleError(
                    f"{where} field {side}{key}: expected {expected}, got {video.grades[key]}; correct one of them "
                    "or set it to null (convert.py saferlhf --unlabel_violations does)"
                )


def _is_same_clip(one: Path | str, other: Path | str) -> bool:
    """Whether two files are there with the same bytes."""
    if isinstance(one, str) or isinstance(other, str) or not (os.path.isfile(one) and os.path.isfile(other)):
        return False
    return filecmp.cmp(one, other, shallow=False)
