"""Computes the upper concave hull of each prompt's candidates in (weight, reward); a best choice is always on it.

The weight of a candidate is the limited quantity: its cost, or its probability of being unsafe. For any lambda, the
best r - lambda w is on the hull. As lambda falls from infinity, the choice moves along the hull from the least weight
to the most reward; it leaves a vertex when lambda falls below the slope of the next segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.intp]
Rows = Sequence[ArrayLike] | NDArray[np.generic]

# No real score comes near. Up to here no difference, product or slope of two scores overflows.
_LARGEST = 1e100


@dataclass(frozen=True)
class Hulls:
    """The hulls of P prompts; candidates are numbered through all prompts.

    Attributes:
        least: (P,) candidate with the least weight, among equals the one with the most reward.
        prompt, begin, end: (S,) prompt of a segment and the candidates at its two ends, for all segments of all prompts
            by falling slope. The segments of one prompt are in the order of its hull.
        slope: (S,) gain in reward for each unit of weight, > 0; strictly falling within a prompt.
    """

    least: IntArray
    prompt: IntArray
    begin: IntArray
    end: IntArray
    slope: FloatArray

    def choose(self, multiplier: float) -> IntArray:
        """Returns (P,) the candidate with the most r - lambda w, among equals the one with the least weight.

        Because it comes from the hulls, weight and reward never rise with lambda, whatever the rounding.
        """
        chosen = self.least.copy()
        num = int(np.searchsorted(-self.slope, -multiplier, side="left"))
        chosen[self.prompt[:num]] = self.end[:num]  # the last segment of a prompt counts
        return chosen


def flatten(name: str, rows: Rows) -> tuple[FloatArray, IntArray]:
    """Joins the candidates of all prompts into one row; also returns where each prompt's candidates begin, and the end.

    Args:
        name: name of the argument, for messages.
        rows: one row of numbers for each prompt, of any lengths >= 1; a (P, n) array works too.

    Raises:
        ValueError: there are no prompts, a prompt has no candidates, or a candidate is not a finite number.
    """
    arrays = [np.asarray(row, dtype=np.float64) for row in rows]
    if not arrays:
        raise ValueError(f"{name}: no prompts")
    for prompt, array in enumerate(arrays):
        if array.ndim != 1 or not len(array):
            raise ValueError(f"{name}: prompt {prompt} must have one row of at least one number, got {array.shape}")
    flat, offsets = np.concatenate(arrays), np.cumsum([0, *map(len, arrays)])
    if not (np.abs(flat) < _LARGEST).all():
        at = int(np.argmin(np.abs(flat) < _LARGEST))
        prompt = int(np.searchsorted(offsets, at, side="right")) - 1
        raise ValueError(f"{name}: prompt {prompt}, candidate {at - offsets[prompt]} is {flat[at]}, not a finite score")
    return flat, offsets


def check_alike(name: str, offsets: IntArray, other_name: str, other_offsets: IntArray) -> None:
    """Checks that two arguments have the same number of prompts, with as many candidates each.

    Raises:
        ValueError: they differ.
    """
    if len(offsets) != len(other_offsets):
        raise ValueError(f"{name} has {len(offsets) - 1} prompts and {other_name} {len(other_offsets) - 1}")
    if (offsets != other_offsets).any():
        prompt = int(np.argmax(np.diff(offsets) != np.diff(other_offsets)))
        num, other_num = (int(each[prompt + 1] - each[prompt]) for each in (offsets, other_offsets))
        raise ValueError(f"prompt {prompt}: {name} has {num} candidates and {other_name} {other_num}")


def make_hulls(rewards: FloatArray, weights: FloatArray, offsets: IntArray) -> Hulls:
    """Finds the hulls by Andrew's monotone chain (1979), from the least weight to the most reward of each prompt.

    Args:
        rewards, weights: (N,) of the candidates of all prompts.
        offsets: (P + 1,) where each prompt's candidates begin, and the end.
    """
    prompt_of = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((-rewards, weights, prompt_of))
    least, prompts, begins, ends, slopes = [], [], [], [], []
    ordered = list(zip(order.tolist(), rewards[order].tolist(), weights[order].tolist(), strict=True))
    starts = offsets.tolist()
    for prompt in range(len(starts) - 1):
        chain = [ordered[starts[prompt]]]
        falls: list[float] = []
        for candidate in ordered[starts[prompt] + 1 : starts[prompt + 1]]:
            _, reward, weight = candidate
            if reward <= chain[-1][1]:
                continue
            # The weight is higher here: among equal weights the most reward came first.
            slope = (reward - chain[-1][1]) / (weight - chain[-1][2])
            while falls and slope >= falls[-1]:
                chain.pop()
                falls.pop()
                slope = (reward - chain[-1][1]) / (weight - chain[-1][2])
            if slope > _LARGEST:  # nearly equal weights: no candidate of the prompt has less
                chain[-1] = candidate
                continue
            chain.append(candidate)
            falls.append(slope)
        least.append(chain[0][0])
        prompts += [prompt] * len(falls)
        begins += [candidate[0] for candidate in chain[:-1]]
        ends += [candidate[0] for candidate in chain[1:]]
        slopes += falls
    slope_row = np.array(slopes, dtype=np.float64)
    by_slope = np.argsort(-slope_row, kind="stable")
    return Hulls(
        least=np.array(least, dtype=np.intp),
        prompt=np.array(prompts, dtype=np.intp)[by_slope],
        begin=np.array(begins, dtype=np.intp)[by_slope],
        end=np.array(ends, dtype=np.intp)[by_slope],
        slope=slope_row[by_slope],
    )
