"""Puts candidates in order by r - lambda w: the one rule by which pairs, rankings and best-of-n are decided.

Differences up to the tolerance are ties, and of tied candidates the one with the least weight, the safest, comes first.
The tolerance applies before the division by 1 + lambda: after it, a price of 1e4 would tie what differs by 0.1.
"""

from __future__ import annotations

from itertools import takewhile

import numpy as np

from safe_rlhf_video.lagrangian.hulls import FloatArray, IntArray
from safe_rlhf_video.stats.credit import TIE_TOLERANCE


def order_candidates(net_rewards: FloatArray, weights: FloatArray) -> list[int]:
    """Orders the candidates of one prompt, best first; equal ones keep their order.

    Whatever is better than another by more than the tolerance comes before it. Those that tie with the best of the
    rest come next, by rising weight.

    Args:
        net_rewards: (N,), r - lambda w.
        weights: (N,), w: the cost, or P(unsafe).
    """
    left = np.lexsort((weights, -net_rewards)).tolist()
    order: list[int] = []
    while left:
        best = net_rewards[left[0]]
        tied = list(takewhile(lambda at, best=best: best - net_rewards[at] <= TIE_TOLERANCE, left))  # type: ignore[misc]
        order += sorted(tied, key=lambda at: (weights[at], -net_rewards[at], at))
        left = left[len(tied) :]
    return order


def trace_choices(rewards: FloatArray, weights: FloatArray, multipliers: FloatArray) -> IntArray:
    """Finds what `order_candidates` puts first, for many prompts and multipliers at once.

    By rising weight, a candidate is first from the lambda on at which no heavier one beats it,

        lambda >= max over the heavier j of (r_j - r_i - tolerance) / (w_j - w_i),

    as far as no lighter one is. So the weight of what is chosen never rises with lambda, whatever the rounding.

    Args:
        rewards, weights: (P, n).
        multipliers: (L,), falling.

    Returns:
        (L, P), indices of candidates.
    """
    by_reward = np.argsort(-rewards, axis=1, kind="stable")
    by_weight = np.argsort(np.take_along_axis(weights, by_reward, axis=1), axis=1, kind="stable")
    order = np.take_along_axis(by_reward, by_weight, axis=1)
    reward, weight = (np.take_along_axis(values, order, axis=1) for values in (rewards, weights))
    num_prompts, num_candidates = order.shape
    place = np.zeros((len(multipliers), num_prompts), dtype=np.intp)
    first_from = np.full(num_prompts, np.inf)
    steps = np.arange(len(multipliers))[:, None]
    for at in range(num_candidates - 1):
        heavier = weight[:, at + 1 :] - weight[:, at, None]
        gain = reward[:, at + 1 :] - reward[:, at, None] - TIE_TOLERANCE
        # Of equal weights, the one with the most reward is earlier.
        slope = np.divide(gain, heavier, out=np.full_like(gain, -np.inf), where=heavier > 0)
        first_from = np.minimum(first_from, slope.max(axis=1))
        place += steps >= np.searchsorted(-multipliers, -first_from, side="right")
    return np.take_along_axis(order, place.T, axis=1).T
