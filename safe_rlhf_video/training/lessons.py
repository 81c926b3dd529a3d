"""Says what the heads of a run learn from, keeps what they can learn from, and checks that it is enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from safe_rlhf_video.data.preferences import PromptGroup, keep_useful
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.heads import HEADS
from safe_rlhf_video.kinds.targets import (
    NUM_LABEL_COLUMNS,
    classes_of,
    columns_of_texts,
    columns_of_videos,
    count_classes,
)
from safe_rlhf_video.training.config import LossConfig


@dataclass(frozen=True)
class Lessons:
    """What heads learn from.

    Attributes:
        dimensions: head -> dimension of its comparisons.
        labels: heads that learn from labels of single videos or texts.
        signs: whether a known `is_safe` alone makes a video useful.
        ties: whether ties are trained on.
    """

    dimensions: dict[str, str]
    labels: tuple[str, ...]
    signs: bool
    ties: bool

    @property
    def reads_text_labels(self) -> bool:
        """Whether a head learns from labels that only texts have."""
        return any(HEADS[head].judges == "text" for head in self.labels)

    def keep(self, groups: Sequence[PromptGroup]) -> list[PromptGroup]:
        """The videos that a loss term reads, and the prompts that have some."""
        columns: list[int] = []
        if any(HEADS[head].judges != "text" for head in self.labels):
            columns += columns_of_videos()
        if self.reads_text_labels:
            columns += columns_of_texts()
        return keep_useful(groups, list(self.dimensions.values()), self.signs, self.ties, columns)

    def lacking_dimension(self, groups: Sequence[PromptGroup]) -> tuple[str, str] | None:
        """The first head without any comparison or tie in its dimension, and the dimension."""
        for head, dimension in self.dimensions.items():
            if not any(group.num_labels(dimension) for group in groups):
                return head, dimension
        return None

    def check_classes(self, groups: Sequence[PromptGroup], where: str) -> None:
        """A head that has seen one answer alone would give it to everything.

        Raises:
            SampleError: a label, or `is_safe` for the cost's zero, has no example of one of its classes.
        """
        signs = np.concatenate([np.zeros(0), *(group.safety_sign for group in groups)])
        if self.signs and signs.any() and abs(signs.sum()) == np.count_nonzero(signs):
            known, lacking_sign = ("true", "unsafe") if signs.sum() > 0 else ("false", "safe")
            raise SampleError(
                f"{where}: is_safe is {known} wherever it is known, so the cost cannot learn where zero, the boundary, "
                f"is; add {lacking_sign} clips, or set loss.sign to 0: the cost then orders clips, and its zero means "
                "nothing"
            )
        targets = np.concatenate([np.zeros((0, NUM_LABEL_COLUMNS)), *(group.harm_targets for group in groups)])
        lacking: dict[str, str] = {}
        for head in self.labels:
            counts = zip(classes_of(head), count_classes(head, targets), strict=True)
            if missing := [name for name, count in counts if not count]:
                lacking[head] = f"{head} ({', '.join(missing)})"
        if lacking:
            rest = [head for head in self.labels if head not in lacking]
            raise SampleError(
                f"{where}: no training example of {', '.join(lacking.values())}, so these heads cannot learn what it "
                f"looks like; add data, or leave them out (heads: [{', '.join(rest)}])"
            )


def lessons_of(heads: Sequence[str], loss: LossConfig) -> Lessons:
    """What some heads learn from with these losses."""
    return Lessons(
        dimensions={head: HEADS[head].dimension for head in heads if HEADS[head].is_compared},
        labels=tuple(head for head in heads if not HEADS[head].is_compared),
        signs="cost" in heads and loss.sign > 0,
        ties=loss.ties == "rao_kupper",
    )
