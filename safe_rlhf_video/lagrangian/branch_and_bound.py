"""Finds the best deterministic selection: branch and bound from a choice at the optimal multiplier.

The loss of a selection against the dual value is a sum over prompts, loss = lambda dw - dr >= 0 for each prompt that
departs from a choice that is best at lambda*, plus lambda times the slack that it leaves. So the search needs only
departures that lose less than the best known selection, a few hundred of many thousands. It tries them prompt by
prompt, those with the least loss first. It drops a partial selection when another one of no more weight has at least
its reward. It also drops one when the remaining prompts cannot bring it to the limit, from above or below, without
losing too much even at their best rate of loss for each unit of weight (the linear relaxation, with that rate for all).

Source: the expanding core of Pisinger 1995 ("A minimal algorithm for the multiple-choice knapsack problem", EJOR 83),
with real weights: states are kept as a Pareto front, not in a table.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from safe_rlhf_video.lagrangian.hulls import FloatArray, IntArray

# Rewards that differ by less, relative to the whole gap, count as equal.
_ROUNDING = 1e-12


class _Departures(NamedTuple):
    """Candidates other than those of the first selection, prompts with the least loss first."""

    prompts: list[IntArray]
    weight: FloatArray
    reward: FloatArray
    loss: FloatArray
    least_loss: list[float]


class _Layer(NamedTuple):
    """The partial selections kept after a prompt.

    Attributes:
        parent: the partial selection that each continues.
        candidate: the candidate that continues it; -1 is no departure.
    """

    parent: IntArray
    candidate: IntArray


class _Bounds(NamedTuple):
    """The best that the prompts from each one onwards can do."""

    least_weight: FloatArray
    """The weight that they add, <= 0."""
    off: FloatArray
    """The loss for each unit of weight that they remove."""
    on: FloatArray
    """The loss for each unit of slack that they use or leave."""


def improve(
    reward: FloatArray,
    weight: FloatArray,
    offsets: IntArray,
    start: IntArray,
    multiplier: float,
    slack: float,
    tolerance: float,
    node_limit: int,
) -> tuple[IntArray, bool]:
    """Finds the selection with the most reward that adds no more than the slack to the weight of the first one.

    Args:
        reward, weight: (N,) of the candidates of all prompts.
        offsets: (P + 1,) where each prompt's candidates begin, and the end.
        start: (P,) candidates with the most r - lambda* w, within the limit.
        multiplier: lambda*.
        slack: the weight that `start` leaves unused, summed over prompts, >= 0.
        tolerance: weight above the limit that counts as within, summed over prompts.
        node_limit: the most partial selections to examine.

    Returns:
        (P,) candidates, and whether it is certain that no selection has more reward.
    """
    chosen = start
    gained, nodes_left = 0.0, node_limit
    departures = _find_departures(reward, weight, offsets, start, multiplier, multiplier * slack)
    # A narrow search finds good selections fast, and each one leaves fewer departures for the next search.
    width = 64
    while True:
        found, gained, num_nodes, is_complete = _search(
            departures, multiplier, slack, tolerance, gained, width, nodes_left
        )
        if found:
            chosen = start.copy()
            prompt_of = np.searchsorted(offsets, found, side="right") - 1
            chosen[prompt_of] = found
        nodes_left -= num_nodes
        if is_complete or nodes_left <= 0:
            return chosen, is_complete
        width *= 8


def _find_departures(
    reward: FloatArray, weight: FloatArray, offsets: IntArray, start: IntArray, multiplier: float, gap: float
) -> _Departures:
    """Finds the departures that lose less than the gap."""
    prompt_of = np.repeat(np.arange(len(start)), np.diff(offsets))
    added_weight, added_reward = weight - weight[start][prompt_of], reward - reward[start][prompt_of]
    loss = np.maximum(multiplier * added_weight - added_reward, 0.0)
    is_open = (loss < gap) & (np.arange(len(reward)) != start[prompt_of])
    candidates = np.flatnonzero(is_open)
    _, starts = np.unique(prompt_of[candidates], return_index=True)
    groups = np.split(candidates, starts[1:]) if len(candidates) else []
    least_loss = [float(loss[group].min()) for group in groups]
    order = np.argsort(least_loss, kind="stable")
    return _Departures([groups[k] for k in order], added_weight, added_reward, loss, [least_loss[k] for k in order])


def _search(
    departures: _Departures,
    multiplier: float,
    slack: float,
    tolerance: float,
    gained: float,
    width: int,
    nodes_left: int,
) -> tuple[list[int], float, int, bool]:
    """Searches for a reward gain above `gained`, keeping up to `width` partial selections after each prompt.

    Returns:
        Departures of the best selection found (none if there is no better one), the reward that it gains, the number of
        partial selections examined, and whether no possibly better one was dropped.
    """
    layers: list[_Layer] = []
    weight, reward = np.zeros(1), np.zeros(1)
    best: tuple[int, int] | None = None
    num_nodes, is_complete = 0, True
    bounds = _bound_rest(departures, multiplier)
    for depth, group in enumerate(departures.prompts):
        gap = multiplier * slack - gained
        enough = gap - _ROUNDING * max(1.0, multiplier * slack)
        if departures.least_loss[depth] >= enough:
            break
        group = group[departures.loss[group] < enough]
        if num_nodes + len(weight) * (1 + len(group)) > nodes_left:
            return _trace(layers, best), gained, nodes_left, False
        options = np.append(-1, group)
        weight = (weight[:, None] + np.append(0.0, departures.weight[group])).ravel()
        reward = (reward[:, None] + np.append(0.0, departures.reward[group])).ravel()
        num_nodes += len(weight)
        over = weight - slack
        loss = multiplier * weight - reward
        loss += np.where(over > 0, bounds.off[depth + 1] * (over - tolerance), -bounds.on[depth + 1] * over)
        kept = np.flatnonzero((loss < enough) & (over + bounds.least_weight[depth + 1] <= tolerance))
        kept = kept[np.lexsort((-reward[kept], weight[kept]))]
        best_before = np.append(-np.inf, np.maximum.accumulate(reward[kept])[:-1])[: len(kept)]
        kept = kept[reward[kept] > best_before]
        if len(kept) > width:
            is_complete = False
            kept = kept[np.lexsort((np.abs(over[kept]), loss[kept]))[:width]]
        layers.append(_Layer(kept // len(options), options[kept % len(options)]))
        weight, reward = weight[kept], reward[kept]
        within = np.flatnonzero(weight <= slack + tolerance)
        if len(within):
            top = int(within[np.argmax(reward[within])])
            if reward[top] > gained:
                gained, best = float(reward[top]), (depth, top)
        if not len(weight):
            break
    return _trace(layers, best), gained, num_nodes, is_complete


def _bound_rest(departures: _Departures, multiplier: float) -> _Bounds:
    least_weight, off, on = [0.0], [math.inf], [multiplier]
    for group in reversed(departures.prompts):
        weight, loss = departures.weight[group], departures.loss[group]
        lighter, heavier = weight < 0, weight > 0
        least_weight.append(least_weight[-1] + min(0.0, float(weight.min())))
        with np.errstate(over="ignore"):  # an infinite rate binds nothing
            off.append(min([off[-1], *(loss[lighter] / -weight[lighter]).tolist()]))
            on.append(min([on[-1], *(loss[heavier] / weight[heavier]).tolist()]))
    # If nothing can be removed, only the least weight decides.
    finite_off = [0.0 if math.isinf(rate) else rate for rate in off]
    return _Bounds(np.array(least_weight[::-1]), np.array(finite_off[::-1]), np.array(on[::-1]))


def _trace(layers: list[_Layer], best: tuple[int, int] | None) -> list[int]:
    if best is None:
        return []
    depth, at = best
    found = []
    for layer in reversed(layers[: depth + 1]):
        if layer.candidate[at] >= 0:
            found.append(int(layer.candidate[at]))
        at = int(layer.parent[at])
    return found
