"""Computes how likely each level of a label is, from its score and thresholds, and the figures of the likeliest one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from safe_rlhf_video.heads import Head
from safe_rlhf_video.kinds.kind import FloatArray, GradedFigures, GradedKind
from safe_rlhf_video.stats.checks import MIN_COMPARISONS, too_few_prompts
from safe_rlhf_video.stats.intervals import Interval, share_interval
from safe_rlhf_video.wording import count, figure, share, with_interval

if TYPE_CHECKING:
    from safe_rlhf_video.data.records import VideoSample


@dataclass(frozen=True)
class OrdinalFigures(GradedFigures):
    """How well the likeliest level of an ordinal head agrees with the labelled one.

    Attributes:
        kappa: Cohen's, quadratic weights.
        confusion: counts, a row for each labelled level, a column for each likeliest level.
    """

    num: int
    accuracy: float | None
    interval: Interval | None
    kappa: float | None
    reason: str | None
    confusion: tuple[tuple[int, ...], ...]

    def line(self, head: str) -> str:
        return (
            f"{head} of {self.num} texts: likeliest level right {with_interval(self.accuracy, self.interval) or '-'}, "
            f"quadratic-weighted kappa {figure(self.kappa) or '-'}" + (f" ({self.reason})" if self.reason else "")
        )

    def table(self, head: Head) -> Sequence[Sequence[str]]:
        """The confusion of levels."""
        rows = zip(head.levels, self.confusion, strict=True)
        return [
            ["labelled, by likeliest level", *head.levels],
            *([level, *(f"{num:,}" for num in nums)] for level, nums in rows),
        ]

    def sentence(self, unit: str) -> str:
        if self.accuracy is None:
            return self.reason or ""
        kappa = "." if self.kappa is None else f"; quadratic-weighted kappa {self.kappa:.3f}."
        of_all = f"{share(self.accuracy, self.interval)} of {count(self.num, unit)}"
        return f"The likeliest level is the labelled one for {of_all}{kappa}"


class Ordinal(GradedKind):
    """A label of several levels, learned by the proportional-odds model."""

    figures = OrdinalFigures
    shown = Mapping[str, float]

    def num_thresholds(self, head: Head) -> int:
        """One between two levels."""
        return len(head.levels) - 1

    def meaning(self, head: Head) -> str:
        *between, highest = head.levels[1:]
        return (
            f"the {head.name} of the harm in a text: more is more severe, above 0 is rather {', '.join(between)} or "
            f"{highest} than {head.levels[0]}; thresholds stored with the head separate these levels"
        )

    def expected(self, head: Head, video: VideoSample) -> str | None:
        """A level is one of harm: it is 0 exactly where a text is safe."""
        if not contradicts_is_safe(video.is_safe, video.grades.get(head.key)):
            return None
        levels = "0" if video.is_safe else f"1 to {len(head.levels) - 1}"
        return f"{levels} where is_safe is {video.is_safe}"

    def show(
        self, head: Head, score: float, thresholds: FloatArray | None, class_weights: Sequence[float] | None
    ) -> Mapping[str, float]:
        """level -> probability."""
        assert thresholds is not None
        found = probabilities(np.array(score), thresholds, class_weights)
        return dict(zip(head.levels, found.tolist(), strict=True))

    def judge(
        self, head: Head, targets: NDArray[np.floating], shown: Sequence[Any], prompts: NDArray[np.int64]
    ) -> OrdinalFigures:
        from sklearn.metrics import cohen_kappa_score  # slow to import

        levels, num_levels = self.decode(targets), len(head.levels)
        rows = np.flatnonzero(levels >= 0)
        labelled = levels[rows]
        likeliest = np.array([np.argmax(list(shown[int(row)].values())) for row in rows], dtype=np.int64)
        cells = np.bincount(num_levels * labelled + likeliest, minlength=num_levels**2)
        right = (labelled == likeliest).astype(float)
        is_known = len(rows) >= MIN_COMPARISONS
        kappa = None
        if is_known and len({*labelled.tolist(), *likeliest.tolist()}) > 1:  # with one level nothing is left to chance
            kappa = float(cohen_kappa_score(labelled, likeliest, weights="quadratic"))
        reason = too_few_prompts(len(np.unique(prompts[rows])))
        if not is_known:
            reason = f"{len(rows)} texts whose {head.name} is known, fewer than {MIN_COMPARISONS}"
        return OrdinalFigures(
            num=len(rows),
            accuracy=float(right.mean()) if is_known else None,
            interval=share_interval(right, prompts[rows]) if is_known else None,
            kappa=kappa,
            reason=reason,
            confusion=tuple(map(tuple, cells.reshape(num_levels, -1).tolist())),
        )


KIND = Ordinal("ordinal")


def contradicts_is_safe(is_safe: bool | None, level: int | None) -> bool:
    """Whether a response is labelled safe and harmful to some level at once, or neither."""
    return is_safe is not None and level is not None and is_safe == (level > 0)


def probabilities(
    scores: FloatArray, thresholds: FloatArray, class_weights: Sequence[float] | None = None
) -> FloatArray:
    """Computes how likely each level is, by the proportional-odds model of `losses.ordinal_loss`.

        P(level >= k) = sigmoid(score - threshold_k),   p_k = P(level >= k) - P(level >= k + 1)

    Weighing a class multiplies its odds in what is learned, so its weight is divided out again (King & Zeng 2001).

    Args:
        scores: (N,), or one score of shape ().
        thresholds: (K - 1,), rising, as `ScoreModel.thresholds` gives them.
        class_weights: (K,), what the levels weighed in training; None for equal ones.

    Returns:
        (N, K), or (K,): probabilities of the levels; a row sums to 1.
    """
    margins = np.asarray(scores, np.float64)[..., None] - thresholds
    # Each side by itself: 1 - sigmoid would lose what is small.
    above, below = (np.exp(-np.logaddexp(0.0, -sign * margins)) for sign in (1.0, -1.0))
    gaps = np.concatenate([[1.0], -np.expm1(-np.diff(thresholds)), [1.0]])
    ends = np.ones((*margins.shape[:-1], 1))
    weighted = np.concatenate([ends, above], axis=-1) * np.concatenate([below, ends], axis=-1) * gaps
    weighted = weighted / (1.0 if class_weights is None else np.asarray(class_weights))
    found: FloatArray = weighted / weighted.sum(axis=-1, keepdims=True)
    return found
