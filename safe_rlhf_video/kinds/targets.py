"""Lays out all label targets of a video in one row, and weighs their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from safe_rlhf_video.heads import HEADS, LABEL_HEADS
from safe_rlhf_video.kinds.kind import GradedKind, LabelKind

if TYPE_CHECKING:
    from safe_rlhf_video.data.records import VideoSample


def _load(kind: str) -> LabelKind:
    found: LabelKind = import_module(f"{__package__}.{kind}").KIND
    return found


# Of each kind of label in the table of heads, the module of its name.
KINDS = {kind: _load(kind) for kind in dict.fromkeys(HEADS[name].kind for name in LABEL_HEADS)}


def kind_of(head: str) -> LabelKind:
    """The kind of a head that learns from labels of single videos."""
    return KINDS[HEADS[head].kind]


def graded_kind_of(head: str) -> GradedKind:
    """The kind of a graded head."""
    kind = kind_of(head)
    assert isinstance(kind, GradedKind)
    return kind


def classes_of(head: str) -> tuple[str, ...]:
    """Names of the classes of a head's label, e.g. does_not and applies."""
    return kind_of(head).classes(HEADS[head])


def num_thresholds_of(head: str) -> int:
    """How many thresholds a head has beside its score; none if it learns from comparisons."""
    return 0 if HEADS[head].is_compared else kind_of(head).num_thresholds(HEADS[head])


def _lay_out(widths: Sequence[int]) -> tuple[dict[str, slice], int]:
    ends = [0, *accumulate(widths)]
    return {name: slice(ends[i], ends[i + 1]) for i, name in enumerate(LABEL_HEADS)}, ends[-1]


_COLUMNS, NUM_LABEL_COLUMNS = _lay_out([kind_of(name).num_columns(HEADS[name]) for name in LABEL_HEADS])
_CLASSES, _NUM_CLASSES = _lay_out([len(classes_of(name)) for name in LABEL_HEADS])


def label_columns(head: str) -> slice:
    """The columns of a head in the label targets of a video."""
    return _COLUMNS[head]


def label_targets(records: Sequence[Sequence[VideoSample]]) -> NDArray[np.float32]:
    """The label targets of some videos, each from all the records of it, with weights of 1.

    Returns:
        (N, NUM_LABEL_COLUMNS), 0 where no record of a video says it or two contradict each other.
    """
    said = np.zeros((len(records), _NUM_CLASSES), bool)
    for row, of_video in zip(said, records, strict=True):
        for video in of_video:
            for kind in KINDS.values():
                for name, place in kind.said(video):
                    row[_CLASSES[name].start + place] = True
    targets = np.zeros((len(records), NUM_LABEL_COLUMNS), np.float32)
    for name in LABEL_HEADS:
        one = said[:, _CLASSES[name]]
        known = np.where(one.sum(axis=1) == 1, one.argmax(axis=1), -1)
        targets[:, _COLUMNS[name]] = kind_of(name).encode(known, np.ones(one.shape[1]))
    return targets


def count_classes(head: str, targets: NDArray[np.floating]) -> NDArray[np.int64]:
    """How many of the videos with these targets are of each class of a head: (C,).

    Args:
        targets: (N, NUM_LABEL_COLUMNS).
    """
    known = kind_of(head).decode(targets[:, _COLUMNS[head]])
    return np.bincount(known[known >= 0], minlength=len(classes_of(head)))


def weigh_classes(counts: NDArray[np.int64], power: float) -> NDArray[np.float64]:
    """What a video of each class weighs in the loss: rare classes more, with a mean of 1 over the videos.

        weight_c = (n / n_c)^power / mean weight        n_c of n videos with a known label are of class c

    Args:
        counts: (C,), the n_c.
        power: 0 to 1; 1 is the usual inverse class frequency.
    """
    known = max(int(counts.sum()), 1)
    weights = np.power(known / np.maximum(counts, 1), power)
    scaled: NDArray[np.float64] = weights * (known / max(float((counts * weights).sum()), 1e-9))
    return scaled


def weigh_targets(targets: NDArray[np.floating], weights: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float32]:
    """The targets with the weights of their classes in place of 1.

    Args:
        targets: (N, NUM_LABEL_COLUMNS).
        weights: each of `LABEL_HEADS` -> (C,).
    """
    weighed = np.zeros(targets.shape, np.float32)
    for name, one in weights.items():
        columns = _COLUMNS[name]
        weighed[:, columns] = kind_of(name).encode(kind_of(name).decode(targets[:, columns]), one)
    # Minus zero, as ever: the fingerprint of a run's data is one of bytes, and the run must be able to go on.
    return np.where(weighed == 0, np.float32(-0.0), weighed)


def columns_of_videos() -> list[int]:
    """Columns of the labels that videos have, of which texts may have some too."""
    return _columns_that_judge("video", "both")


def columns_of_texts() -> list[int]:
    """Columns of the labels that only texts have."""
    return _columns_that_judge("text")


def _columns_that_judge(*judged: str) -> list[int]:
    heads = [name for name in LABEL_HEADS if HEADS[name].judges in judged]
    return [column for name in heads for column in range(NUM_LABEL_COLUMNS)[_COLUMNS[name]]]
