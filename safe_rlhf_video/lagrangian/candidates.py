"""Compares the candidates of one prompt: their Pareto front, and cautious scores of an ensemble of heads."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.heads import preference_score


def pareto_front(rewards: ArrayLike, costs: ArrayLike) -> NDArray[np.intp]:
    """Finds the candidates that no other beats: none has as much reward at less cost, or more reward at no more cost.

    For any lambda and limit, a best candidate is among them. Equal candidates stay together.

    Args:
        rewards, costs: (N,) of the candidates of one prompt.

    Returns:
        (F,) indices by rising cost and thus by rising reward; equal ones by index.

    Raises:
        ValueError: the arguments are not two finite rows of one length.
    """
    reward, cost = np.asarray(rewards, dtype=np.float64), np.asarray(costs, dtype=np.float64)
    if reward.ndim != 1 or reward.shape != cost.shape:
        raise ValueError(f"rewards and costs must be two rows of one length, got {reward.shape} and {cost.shape}")
    if not (np.isfinite(reward).all() and np.isfinite(cost).all()):
        raise ValueError("rewards and costs must be finite")
    order = np.lexsort((-reward, cost))
    reward, cost = reward[order], cost[order]
    best = np.maximum.accumulate(reward)
    # The least cost of a candidate with the best reward so far.
    rises = np.concatenate([[True], best[1:] > best[:-1]])[: len(best)]
    cheapest = np.maximum.accumulate(np.where(rises, np.arange(len(best)), 0))
    return order[(reward == best) & (cost == cost[cheapest])]


def ensemble_scores(
    scores: ArrayLike,
    head: Literal["reward", "cost"],
    how: Literal["worst", "mean_minus_std"] = "worst",
    k: float = 1.0,
) -> NDArray[np.floating[Any]]:
    """Combines the scores of several heads that were trained alike into one cautious score for each candidate.

        worst:           reward min_e r_e,              cost max_e c_e
        mean_minus_std:  reward mean_e r_e - k std_e,   cost mean_e c_e + k std_e

    Choosing the best of many by one head favours the candidates that it overrates. Source: Coste et al. 2023 (arXiv
    2310.02743): its worst case, and its uncertainty weighting with the standard deviation in place of the variance, so
    that the units stay those of the scores. The standard deviation has K - 1 in the denominator and is 0 for one head.

    Args:
        scores: (K, ...) of K heads, K >= 1.
        head: the kind of the scores; a cautious cost is a high one.
        k: >= 0; only for "mean_minus_std".

    Returns:
        (...) in units of the scores.

    Raises:
        ConfigError: `head` or `how` is unknown, or k is negative or not finite.
        ValueError: there is no head, or a score is not finite.
    """
    if head not in ("reward", "cost") or how not in ("worst", "mean_minus_std"):
        raise ConfigError(f"head must be reward or cost and how worst or mean_minus_std, got {head!r} and {how!r}")
    if not (math.isfinite(k) and k >= 0):
        raise ConfigError(f"k must be a finite number >= 0, got {k}")
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim < 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"scores must be finite, of at least one head, got shape {values.shape}")
    preferred = preference_score(head, values)
    if how == "worst":
        return preference_score(head, preferred.min(axis=0))
    spread = preferred.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1:])
    return preference_score(head, preferred.mean(axis=0) - k * spread)
