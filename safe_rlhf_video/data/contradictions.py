"""Checks that the records of one file do not contradict each other."""

from __future__ import annotations

from collections.abc import Sequence

from safe_rlhf_video.data.records import VIDEO_NAMES, PairSample, VideoSample
from safe_rlhf_video.errors import SampleError


def check_unique(ids: Sequence[str], field: str, file_name: str) -> None:
    """Checks that no two rows have one id.

    Raises:
        SampleError: two rows do.
    """
    rows: dict[str, int] = {}
    for row, value in enumerate(ids):
        first = rows.setdefault(value, row)
        if first != row:
            raise SampleError(
                f"{file_name} row {row} field {field}: {value!r} is the id of row {first} too; remove one"
            )


def count_prompts(samples: Sequence[PairSample | VideoSample], file_name: str) -> int:
    """Counts the different prompts.

    Raises:
        SampleError: one prompt_id has two texts.
    """
    rows: dict[str, int] = {}
    for row, sample in enumerate(samples):
        first = rows.setdefault(sample.prompt_id, row)
        if samples[first].prompt_text != sample.prompt_text:
            raise SampleError(
                f"{file_name} row {row} field prompt_text: differs from row {first} of the same prompt_id "
                f"{sample.prompt_id!r}; give different prompts different ids"
            )
    return len(rows)


def check_contents(pairs: Sequence[PairSample], file_name: str, with_paths: bool) -> None:
    """Checks that one id means one clip or response: else only one of two is read, with the labels of both.

    Args:
        with_paths: whether `video_path` is what finds a clip, so that it has to agree as well.

    Raises:
        SampleError: one id has two clips or responses, or a clip is compared with itself.
    """
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
