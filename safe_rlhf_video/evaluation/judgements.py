"""Defines judgements.json: labels, scores and margins of every clip and comparison, all that a report draws from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safe_rlhf_video.contracts import STRICT, parse_json, to_fields
from safe_rlhf_video.data.labelled_pairs import Scores, preference_margin
from safe_rlhf_video.data.preferences import harm_signs, safety_signs, videos_of
from safe_rlhf_video.data.records import PairSample, Preference, VideoSample
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.evaluation.labelled_clips import LabelledClips
from safe_rlhf_video.evaluation.results import Evaluation, fingerprint
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.heads import DIMENSION_OF_HEAD, LOGIT_HEADS
from safe_rlhf_video.kinds.targets import label_columns
from safe_rlhf_video.reading import read_regular

FILE_NAME = "judgements.json"
_AGAIN = "run scripts/evaluate.py again; it keeps the scores that it finds in its --out"


@dataclass(frozen=True)
class JudgedClip:
    """A clip, or a text response, with its labels and scores.

    Attributes:
        name: prompt_id/video_id, unique.
        generated_from: the generator's name; None where it is unknown.
        response_text: of a text; None for a clip.
        video_file: where the clip was read from; None for a text.
        is_safe: None where no record says it, or two contradict each other.
        labels: head of a harm label -> whether the label applies; only the known ones.
        scores: head -> score.
    """

    name: str
    prompt_id: str
    prompt_text: str
    generated_from: str | None
    response_text: str | None
    video_file: str | None
    is_safe: bool | None
    labels: Mapping[str, bool]
    scores: Mapping[str, float]


@dataclass(frozen=True)
class JudgedComparison:
    """A comparison with its labels and margins.

    Attributes:
        video_0, video_1: names of two clips.
        preferences: dimension -> 0 or 1, the preferred video, or "tie"; only the labelled ones.
        margins: head -> preference score of video_0 minus that of video_1, before any temperature: above 0 the model
            prefers video_0.
    """

    pair_id: str
    prompt_id: str
    video_0: str
    video_1: str
    preferences: Mapping[str, Preference]
    margins: Mapping[str, float]


@dataclass(frozen=True)
class Judgements:
    """What judgements.json holds.

    Attributes:
        frame_store: the folder that clips were read from in place of their files; None without one.
        clips: each clip once, those of comparisons first.
    """

    frame_store: str | None
    clips: tuple[JudgedClip, ...]
    comparisons: tuple[JudgedComparison, ...]

    __pydantic_config__ = STRICT


def collect_judgements(clips: LabelledClips, scores: Scores) -> Judgements:
    """Gathers labels, scores and margins.

    Args:
        scores: of every clip, by name.
    """
    safety, signs = safety_signs(clips.pairs, clips.videos), harm_signs(clips.pairs, clips.videos)
    samples: list[PairSample | VideoSample] = [*clips.pairs, *clips.videos]
    videos = {(video.prompt_id, video.video_id): video for sample in samples for video in videos_of(sample)}
    judged = [
        JudgedClip(
            name=video.name,
            prompt_id=video.prompt_id,
            prompt_text=video.prompt_text,
            generated_from=video.generated_from,
            response_text=video.response_text,
            video_file=None if video.response_text is not None else str(clips.files[video.name]),
            is_safe=None if safety[key] == 0 else safety[key] > 0,
            labels={head: bool(sign > 0) for head in LOGIT_HEADS if (sign := signs[key][label_columns(head).start])},
            scores=scores[video.name],
        )
        for key, video in videos.items()
    ]
    heads = next(iter(scores.values())).keys()
    margins = {head: preference_margin(clips.pairs, scores, head) for head in DIMENSION_OF_HEAD if head in heads}
    compared = [
        JudgedComparison(
            pair_id=pair.pair_id,
            prompt_id=pair.prompt_id,
            video_0=pair.video_0.name,
            video_1=pair.video_1.name,
            preferences={name: label for name, label in pair.preferences.items() if label is not None},
            margins={head: float(margin[row]) for head, margin in margins.items()},
        )
        for row, pair in enumerate(clips.pairs)
    ]
    return Judgements(None if clips.store is None else str(clips.store.folder), tuple(judged), tuple(compared))


def write_judgements(folder: Path, judgements: Judgements) -> str:
    """Writes judgements.json, whole or not at all.

    Returns:
        Its SHA-256, for `Evaluation.judgements`.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    content = json.dumps(to_fields(judgements), allow_nan=False) + "\n"
    write_whole(folder / FILE_NAME, content)
    return fingerprint(content.encode())


def read_judgements(folder: Path, evaluation: Evaluation) -> Judgements:
    """Reads the judgements that were written with an evaluation.

    Raises:
        SampleError: they are missing, damaged, or belong to another evaluation.
    """
    path = folder / FILE_NAME
    try:
        content = read_regular(path)
    except OSError as error:
        raise SampleError(f"{path}: cannot be read ({error.strerror}); {_AGAIN}") from error
    if evaluation.judgements != fingerprint(content):
        raise SampleError(f"{path}: was not written with the evaluation.json beside it; {_AGAIN}")
    return parse_json(Judgements, content, str(path), SampleError, _AGAIN)
