"""Defines what a kind of label is: all that the package asks of a head that learns from labels of single videos."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from safe_rlhf_video.heads import HEADS, Head

if TYPE_CHECKING:
    from safe_rlhf_video.data.records import VideoSample

FloatArray = NDArray[np.float64]


class LabelKind(ABC):
    """A kind of label: `KIND` of the module that has its name.

    Its loss is in `losses.LABEL_LOSSES`.
    """

    def __init__(self, name: str) -> None:
        self.heads = tuple(head for head in HEADS.values() if head.kind == name)

    @abstractmethod
    def classes(self, head: Head) -> tuple[str, ...]:
        """Names of the classes that a video can be of."""

    @abstractmethod
    def num_columns(self, head: Head) -> int:
        """How many columns of the label targets it takes."""

    def num_thresholds(self, head: Head) -> int:
        """How many thresholds are learned beside the score."""
        return 0

    @abstractmethod
    def said(self, video: VideoSample) -> Iterator[tuple[str, int]]:
        """What one record says: names of heads, and the class that each has there."""

    @abstractmethod
    def encode(self, known: NDArray[np.int64], weights: FloatArray) -> FloatArray:
        """Target columns (N, columns) of videos of some classes; 0 where the class is unknown.

        Args:
            known: (N,), the class, -1 where it is unknown.
            weights: (C,), what a video of each class weighs.
        """

    @abstractmethod
    def decode(self, targets: NDArray[np.floating]) -> NDArray[np.int64]:
        """The classes (N,) of target columns (N, columns), -1 where they are unknown."""

    @abstractmethod
    def meaning(self, head: Head) -> str:
        """What the head's score means, for a model card."""


class GradedFigures(ABC):
    """Figures of a graded head: a frozen dataclass, which evaluation.json holds under the head's name."""

    @abstractmethod
    def line(self, head: str) -> str:
        """The figures in a line for the terminal."""

    @abstractmethod
    def table(self, head: Head) -> Sequence[Sequence[str]]:
        """Rows of a table for the report, its header first."""

    @abstractmethod
    def sentence(self, unit: str) -> str:
        """What the report says below the table; `unit` is what is judged: clip or response."""


class GradedKind(LabelKind):
    """A kind whose heads say how much, not only whether a label applies: their classes are levels.

    Attributes:
        figures: what an evaluation computes for a head.
        shown: the type of what `Moderation` shows under the head's name.
    """

    figures: ClassVar[type[GradedFigures]]
    shown: ClassVar[Any]

    def classes(self, head: Head) -> tuple[str, ...]:
        """The head's levels, the lowest first."""
        return head.levels

    def num_columns(self, head: Head) -> int:
        """One a level."""
        return len(head.levels)

    def said(self, video: VideoSample) -> Iterator[tuple[str, int]]:
        """What one record says: names of heads and the level of each."""
        for head in self.heads:
            if (grade := video.grades.get(head.key)) is not None:
                yield head.name, grade

    def encode(self, known: NDArray[np.int64], weights: FloatArray) -> FloatArray:
        """The level's weight in its column, 0 in the others: (N, K)."""
        return (known[:, None] == np.arange(len(weights))) * weights

    def decode(self, targets: NDArray[np.floating]) -> NDArray[np.int64]:
        """The level whose column (N, K) is not 0."""
        return np.where(targets.any(axis=1), targets.argmax(axis=1), -1)

    def expected(self, head: Head, video: VideoSample) -> str | None:
        """What its label should be, if another label of the record contradicts it: "0 where is_safe is True"."""
        return None

    @abstractmethod
    def show(
        self, head: Head, score: float, thresholds: FloatArray | None, class_weights: Sequence[float] | None
    ) -> Any:
        """What `Moderation` shows of a score.

        Args:
            thresholds: (num_thresholds,), rising; None for a kind without any.
            class_weights: (C,), what the classes weighed in training; None for equal ones.
        """

    @abstractmethod
    def judge(
        self, head: Head, targets: NDArray[np.floating], shown: Sequence[Any], prompts: NDArray[np.int64]
    ) -> GradedFigures:
        """Compares what `show` gave with the labels of N videos.

        Args:
            targets: (N, columns).
            shown: N results of `show`; None where nothing is shown of a video.
            prompts: (N,), the prompt of each video.
        """
