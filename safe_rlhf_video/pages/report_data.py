"""Reads an evaluation and its judgements, and picks out what each dimension was judged on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from safe_rlhf_video.data.records import ALL_DIMENSIONS, DIMENSIONS, TIE
from safe_rlhf_video.evaluation import results
from safe_rlhf_video.evaluation.judgements import JudgedClip, JudgedComparison, read_judgements
from safe_rlhf_video.evaluation.results import DimensionFigures, Evaluation
from safe_rlhf_video.heads import HEAD_OF_DIMENSION, HEAD_OF_LABEL, HEADS
from safe_rlhf_video.kinds.label import LabelFigures
from safe_rlhf_video.wording import words


@dataclass(frozen=True)
class JudgedDimension:
    """A dimension as the models judged it.

    Attributes:
        comparisons: M comparisons with a label that is no tie.
        sign: (M,) 1 where people prefer video_0, -1 where they prefer video_1.
        margin: (M,) preference score of video_0 minus that of video_1.
    """

    name: str
    head: str
    figures: DimensionFigures
    comparisons: Sequence[JudgedComparison]
    sign: np.ndarray
    margin: np.ndarray

    @property
    def temperature(self) -> float:
        """What margins are divided by before the sigmoid: 1 without a calibration."""
        return self.figures.calibration.temperature or 1.0


@dataclass(frozen=True)
class ReportData:
    """An evaluation with every clip and comparison that it judged.

    Attributes:
        clips: name -> clip, in the order of the data.
        heads: in the order of `HEADS`.
        dimensions: those that have figures.
        frame_store: the folder that clips were read from; None where they were read from files.
    """

    evaluation: Evaluation
    clips: Mapping[str, JudgedClip]
    comparisons: Sequence[JudgedComparison]
    heads: tuple[str, ...]
    dimensions: tuple[JudgedDimension, ...]
    frame_store: str | None

    @property
    def unit(self) -> str:
        """What is judged, in a word."""
        return "clip" if any(clip.response_text is None for clip in self.clips.values()) else "response"

    def scores(self, head: str) -> np.ndarray:
        """Scores of every clip: (N,)."""
        return np.array([clip.scores[head] for clip in self.clips.values()])

    @property
    def knows_truth(self) -> bool:
        """Whether the data are of a synthetic world, whose hidden order sets a ceiling."""
        return any(judged.figures.ceiling is not None for judged in self.dimensions)

    @property
    def num_prompts(self) -> int:
        """Number of different prompts."""
        return len({clip.prompt_id for clip in self.clips.values()})

    @property
    def labels(self) -> dict[str, LabelFigures]:
        """Head of a harm label -> figures: any harm first, S2 before S10, those of texts last."""
        moderation = self.evaluation.moderation
        found = {HEAD_OF_LABEL[label]: figures for label, figures in moderation.labels.items()} if moderation else {}
        order = sorted(found, key=lambda head: (HEADS[head].judges == "text", int(HEADS[head].code[1:] or 0)))
        return {head: found[head] for head in order}

    @property
    def unlabelled(self) -> list[str]:
        """Dimensions that have a head and no label."""
        return [name for name in ALL_DIMENSIONS
                if HEAD_OF_DIMENSION[name] in self.heads and not self.evaluation.dimensions[name]]  # fmt: skip

    @property
    def unjudged(self) -> dict[str, str]:
        """Main dimensions without a head -> the head."""
        return {name: head for name in DIMENSIONS if (head := HEAD_OF_DIMENSION[name]) not in self.heads}

    @property
    def left_out(self) -> dict[str, list[str]]:
        """Generators that training left out -> whose training: dimensions, and the sign of the cost."""
        found: dict[str, list[str]] = {}
        for judged in self.dimensions:
            if unseen := judged.figures.unseen_generators:
                found.setdefault(", ".join(unseen.generators), []).append(words(judged.name))
        sign = self.evaluation.cost_sign
        if sign and sign.unseen_generators:
            found.setdefault(", ".join(sign.unseen_generators.generators), []).append("sign of the cost, by clip")
        return found

    @property
    def safety(self) -> np.ndarray:
        """Labels of every clip: (N,) +1 safe, -1 unsafe, 0 unknown."""
        signs = {True: 1, False: -1, None: 0}
        return np.array([signs[clip.is_safe] for clip in self.clips.values()])


def read_report_data(folder: Path) -> ReportData:
    """Reads what scripts/evaluate.py wrote.

    Raises:
        SampleError: a file is missing, damaged, of another release, or does not belong to the others.
    """
    evaluation = results.read_evaluation(folder / results.FILE_NAME)
    judgements = read_judgements(folder, evaluation)
    dimensions = []
    for name in ALL_DIMENSIONS:
        if figures := evaluation.dimensions[name]:
            head = HEAD_OF_DIMENSION[name]
            judged = [one for one in judgements.comparisons if one.preferences.get(name, TIE) != TIE]
            sign = np.array([1 if one.preferences[name] == 0 else -1 for one in judged])
            margin = np.array([one.margins[head] for one in judged])
            dimensions.append(JudgedDimension(name, head, figures, judged, sign, margin))
    heads = tuple(head for head in HEADS if head in judgements.clips[0].scores)
    clips = {clip.name: clip for clip in judgements.clips}
    return ReportData(evaluation, clips, judgements.comparisons, heads, tuple(dimensions), judgements.frame_store)
