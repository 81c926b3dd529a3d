"""Estimates label noise from cycles: three videos of which each beats the next.

A consistent annotator makes no cycle. Suppose each prompt has a hidden strict order of its videos and every label is
flipped with probability f, independently. Of the 8 possible label patterns of a triangle, 2 are cyclic: one results
from flipping only the label between best and worst, the other from flipping the other two, so

    P(cyclic) = f (1 - f)^2 + f^2 (1 - f) = f (1 - f)        f = (1 - sqrt(1 - 4 P(cyclic))) / 2

and no predictor can agree with more than 1 - f of such labels. Derived here; `tests/test_audit.py` enumerates it.

People flip close pairs more often than clear ones, and only a flip of the clearest pair makes a cycle by itself. Cycles
are then rarer than the mean f suggests, so this ceiling is an upper end. The other figure assumes Bradley-Terry labels
of normally distributed utilities of unknown spread, finds the spread that gives as many cycles, and computes how often
the better video wins there. Both figures come from a model of the labels; they are not measurements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np

from safe_rlhf_video.audit.comparisons import MISSING, TIED, Comparisons
from safe_rlhf_video.audit.sections import TriangleFigures
from safe_rlhf_video.stats.checks import too_few_prompts
from safe_rlhf_video.stats.intervals import share_interval

FEW_TRIANGLES = 30
NO_CYCLE = "labels that were made from a ranking cannot have a cycle, so nothing shows a ceiling"


def flip_rate(cyclic_share: float) -> float:
    """Computes the probability f <= 1/2 that a label is flipped, from the share of closed triangles that are cyclic.

    Shares above 1/4, more cycles than coin flips give, return 1/2.
    """
    return (1.0 - math.sqrt(max(0.0, 1.0 - 4.0 * cyclic_share))) / 2.0


def flip_rate_of_repeats(disagreement: float) -> float:
    """Computes the same f from pairs that were labelled twice: two labels disagree with probability 2 f (1 - f)."""
    return flip_rate(disagreement / 2.0)


def bradley_terry_ceiling(cyclic_share: float) -> float:
    """Computes the mean probability that the better video wins, from the share of closed triangles that are cyclic.

    Labels follow P(i beats j) = sigmoid(u_i - u_j) (Bradley & Terry 1952) with independent normal utilities u. Their
    spread is the one at which the labels of three videos are cyclic as often as observed. Shares of 1/4 and above
    return 1/2.
    """
    # For a wide spread, the root of the share and 1 - ceiling both fall as 1 / spread, so interpolation is linear.
    shares, ceilings = _bradley_terry_curve()
    return float(np.interp(math.sqrt(cyclic_share), np.sqrt(shares), ceilings))


def count_triangles(comparisons: Comparisons, dimension: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Counts closed and cyclic triangles of each prompt, by its text.

    A pair that was compared several times counts with its first label that is not a tie, so that f stays the rate of a
    single label. A triangle with a pair whose labels are all ties has no order to contradict: it is not closed.

    Returns:
        int (P,) closed, int (P,) cyclic, and the number of triangles left out because of a tie.
    """
    wins = _first_labels(comparisons, dimension)
    num_texts = len(np.unique(comparisons.text_of_video))
    closed, cyclic = np.zeros(num_texts, np.int64), np.zeros(num_texts, np.int64)
    num_tied = 0
    for low, middle, high in _triangles(wins):
        first, second, outer = wins[low, middle], wins[middle, high], wins[low, high]
        if first is None or second is None or outer is None:
            num_tied += 1
            continue
        prompt = comparisons.text_of_video[low]
        closed[prompt] += 1
        cyclic[prompt] += first == second != outer
    return closed, cyclic, num_tied


def audit_triangles(comparisons: Comparisons, dimension: str) -> TriangleFigures:
    """Reports counts, share of cyclic triangles, implied flip rate and accuracy ceiling, with intervals by prompt."""
    closed, cyclic, num_tied = count_triangles(comparisons, dimension)
    num_closed, num_cyclic = int(closed.sum()), int(cyclic.sum())
    figures = TriangleFigures(num_closed, num_cyclic, num_tied, int(np.count_nonzero(closed)))
    if not num_closed:
        nothing = (
            "no closed triangle, so no cycle is possible: no three videos of a prompt were all compared with one "
            "another"
        )
        return replace(figures, reason=nothing)
    observed = num_cyclic / num_closed
    # One value a triangle, in the order of prompts.
    of_prompt = np.repeat(np.arange(len(closed)), closed)
    place = np.arange(num_closed) - np.repeat(np.cumsum(closed) - closed, closed)
    interval = share_interval(place < cyclic[of_prompt], of_prompt)
    reason = too_few_prompts(figures.prompts)
    figures = replace(figures, cyclic_share=observed, cyclic_share_interval=interval)
    if not num_cyclic:
        return replace(figures, reason=f"no cycle in {num_closed} closed triangles: {NO_CYCLE}")
    if interval is not None and interval[0] > 0.25:
        reason = (
            f"{observed:.0%} of the triangles are cyclic, where coin flips give 25%: the labels do not follow one "
            "hidden order with random errors"
        )
        return replace(figures, reason=reason)
    if num_closed < FEW_TRIANGLES and reason is None:
        reason = f"only {num_closed} closed triangles: the interval is wide and itself uncertain"
    figures = replace(
        figures,
        flip_rate=flip_rate(observed),
        ceiling=1.0 - flip_rate(observed),
        ceiling_bradley_terry=bradley_terry_ceiling(observed),
        reason=reason,
    )
    if interval is None:
        return figures
    # All are monotone in the share, so its ends give theirs.
    low, high = interval
    return replace(
        figures,
        flip_rate_interval=(flip_rate(low), flip_rate(high)),
        ceiling_interval=(1.0 - flip_rate(high), 1.0 - flip_rate(low)),
        ceiling_bradley_terry_interval=(bradley_terry_ceiling(high), bradley_terry_ceiling(low)),
    )


@cache
def _bradley_terry_curve() -> tuple[np.ndarray, np.ndarray]:
    """Returns shares of cyclic triangles in ascending order, and the ceiling at each."""
    nodes = np.arange(-6.0, 6.0, 0.06)
    weights = np.exp(-0.5 * nodes**2)
    weights /= weights.sum()
    # The three differences of three independent unit normals span a plane; x and y are its axes.
    x, y = np.meshgrid(nodes, nodes)
    differences = np.stack(
        [x * math.sqrt(2), (-x + y * math.sqrt(3)) / math.sqrt(2), (-x - y * math.sqrt(3)) / math.sqrt(2)]
    )
    shares, ceilings = [0.0], [1.0]
    for spread in np.geomspace(10.0, 0.02, 80):
        wins = _sigmoid(spread * differences)
        cyclic = wins.prod(axis=0) + (1.0 - wins).prod(axis=0)
        shares.append(float(weights @ cyclic @ weights))
        ceilings.append(float(weights @ _sigmoid(spread * math.sqrt(2) * np.abs(nodes))))
    return np.array([*shares, 0.25]), np.array([*ceilings, 0.5])


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * logits))


def _first_labels(comparisons: Comparisons, dimension: str) -> dict[tuple[int, int], bool | None]:
    """Maps two compared videos, lower index first, to whether the lower one is preferred; None if all labels tie."""
    label = comparisons.labels[dimension]
    wins: dict[tuple[int, int], bool | None] = {}
    rows = np.flatnonzero(label != MISSING)
    for (video_0, video_1), preferred in zip(comparisons.videos[rows].tolist(), label[rows].tolist(), strict=True):
        key = (video_0, video_1) if video_0 < video_1 else (video_1, video_0)
        if wins.get(key) is None:
            wins[key] = None if preferred == TIED else (preferred == 0) == (video_0 < video_1)
    return wins


def _triangles(wins: dict[tuple[int, int], bool | None]) -> Iterator[tuple[int, int, int]]:
    above: dict[int, set[int]] = {}
    for low, high in wins:
        above.setdefault(low, set()).add(high)
    for low, middle in wins:
        for high in above[low] & above.get(middle, set()):
            yield low, middle, high
