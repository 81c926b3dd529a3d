"""An evaluation's files and the comparisons or clips that it judged, read together and checked against each other."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from safe_rlhf_video.data.labelled_pairs import Labelled, Scores, preference_margin, select_labelled
from safe_rlhf_video.data.preferences import harm_signs, safety_signs
from safe_rlhf_video.data.records import ALL_DIMENSIONS
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.evaluation.dimension_figures import HEAD_OF_DIMENSION
from safe_rlhf_video.evaluation.labelled_clips import LabelledClips
from safe_rlhf_video.heads import HEADS

RESULT_NAME, SCORES_NAME = "evaluation.json", "scores.jsonl"
_AGAIN = "run scripts/evaluate.py again into an empty folder"
_RESULT_KEYS = {*ALL_DIMENSIONS, "cost_sign", "moderation", "controls", "controls_expected", "models", "data",
                "num_prompts_also_in_training", "bootstrap_seed"}  # fmt: skip
_DIMENSION_KEYS = {
    "accuracy",
    "interval",
    "ceiling",
    "num_comparisons",
    "reason",
    "tie_aware",
    "calibration",
    "breakdown",
}


@dataclass(frozen=True)
class Judged:
    """A dimension as the models judged it.

    Attributes:
        figures: of evaluation.json.
        labelled: M comparisons with a label that is no tie.
        margin: (M,) preference score of video_0 minus that of video_1.
    """

    dimension: str
    head: str
    figures: Mapping[str, Any]
    labelled: Labelled
    margin: np.ndarray

    @property
    def temperature(self) -> float:
        """What margins are divided by before the sigmoid: 1 without a calibration."""
        return self.figures["calibration"]["temperature"] or 1.0


@dataclass(frozen=True)
class Evaluated:
    """An evaluation and what it was made of.

    Attributes:
        result: evaluation.json.
        scores: name of a clip -> head -> score.
        heads: in the order of `HEADS`.
        judged: the dimensions that have figures.
        safety: name -> +1 safe, -1 unsafe, 0 unknown.
        harms: name -> label targets, as of `harm_signs`.
    """

    result: Mapping[str, Any]
    clips: LabelledClips
    scores: Scores
    heads: tuple[str, ...]
    judged: tuple[Judged, ...]
    safety: Mapping[str, int]
    harms: Mapping[str, np.ndarray]

    @property
    def unit(self) -> str:
        """What is judged, in a word."""
        return "clip" if self.clips.files else "response"


def read_result(folder: Path) -> dict[str, Any]:
    """Read evaluation.json of a folder.

    Raises:
        SampleError: it is missing, damaged or of an older release.
    """
    path = folder / RESULT_NAME
    try:
        result = json.loads(path.read_bytes())
    except OSError as error:
        raise SampleError(
            f"{path}: cannot be read ({error.strerror}); give the folder that scripts/evaluate.py wrote as --evaluation"
        ) from error
    except ValueError as error:
        raise SampleError(f"{path}: is damaged ({error}); {_AGAIN}") from error
    lacking = _RESULT_KEYS - set(result if isinstance(result, dict) else ())
    for dimension in () if lacking else ALL_DIMENSIONS:
        lacking |= _DIMENSION_KEYS - set(result[dimension]) if result[dimension] else set()
    if lacking:
        raise SampleError(f"{path}: has no {sorted(lacking)[0]!r}, so it is of another release; {_AGAIN}")
    return result


def join(folder: Path, result: Mapping[str, Any], clips: LabelledClips) -> Evaluated:
    """Join an evaluation with the comparisons or clips that it judged.

    Args:
        folder: that scores.jsonl is read from.

    Raises:
        SampleError: the scores are missing or damaged, or the comparisons are not those that were judged.
    """
    path = folder / SCORES_NAME
    scores = _read_scores(path)
    names = [request.key for request in clips.requests([*clips.pairs, *clips.videos])]
    if missing := [name for name in names if name not in scores]:
        raise SampleError(
            f"{path}: has no score of {missing[0]}, {len(missing)} of {len(names)} are missing; give the --data and "
            "--unreadable of the evaluation"
        )
    scores = {name: scores[name] for name in names}
    heads = tuple(head for head in HEADS if head in scores[names[0]])
    judged = []
    for dimension in ALL_DIMENSIONS:
        if not (figures := result[dimension]):
            continue
        labelled = select_labelled(clips.pairs, dimension, None)
        if len(labelled.pairs) != figures["num_comparisons"]:
            raise SampleError(
                f"{clips.config_file}: has {len(labelled.pairs)} comparisons with a label of {dimension}, and "
                f"{folder / RESULT_NAME} judged {figures['num_comparisons']}; give the --data and --unreadable of the "
                "evaluation"
            )
        head = HEAD_OF_DIMENSION[dimension]
        margin = preference_margin(labelled.pairs, scores, head)
        judged.append(Judged(dimension, head, figures, labelled, margin))
    return Evaluated(
        result,
        clips,
        scores,
        heads,
        tuple(judged),
        {"/".join(key): sign for key, sign in safety_signs(clips.pairs, clips.videos).items()},
        {"/".join(key): signs for key, signs in harm_signs(clips.pairs, clips.videos).items()},
    )


def _read_scores(path: Path) -> dict[str, dict[str, float]]:
    try:
        rows = [json.loads(line) for line in path.read_bytes().splitlines()[1:]]
        scores = {row.pop("key"): row for row in rows}
        heads = rows[0].keys()
        is_whole = all(row.keys() == heads and all(map(math.isfinite, row.values())) for row in rows)
    except OSError as error:
        raise SampleError(f"{path}: cannot be read ({error.strerror}); {_AGAIN}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise SampleError(f"{path}: is no file of scores, or damaged; {_AGAIN}") from error
    if not is_whole:
        raise SampleError(f"{path}: not every row has a finite score of each head; {_AGAIN}")
    return scores
