"""Bounds a mean from a sample: is it at most a limit, with some confidence?"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from safe_rlhf_video.stats.checks import FloatArray


def binomial_p_values(successes: NDArray[np.intp], num: int, limit: float) -> FloatArray:
    """Computes p-values of "the rate is above the limit" from counts, exactly.

        P(Binomial(num, limit) <= k), the upper end of Clopper & Pearson 1934

    Args:
        successes: any shape, the counts k of `num` trials.
    """
    return np.asarray(bdtr(successes, num, limit), dtype=np.float64)


def hoeffding_bentkus_p_values(mean: FloatArray, num: int, limit: float) -> FloatArray:
    """Computes p-values of "the expectation is above the limit" from means of `num` values in [0, 1].

        min(exp(-num KL(m, limit)), e P(Binomial(num, limit) <= ceil(num m)))

    KL is the divergence between Bernoulli distributions, 0 for m above the limit. Source: arXiv 2101.02703.
    """
    # Rounded down by less than matters, so that a whole sum is not taken for one more.
    successes = np.clip(np.ceil(mean * num - 1e-9), 0, num).astype(np.intp)
    bentkus = math.e * binomial_p_values(successes, num, limit)
    if not 0.0 < limit < 1.0:
        return bentkus
    low = np.clip(mean, 0.0, limit)
    divergence = np.where(low > 0, low * np.log(np.maximum(low, 1e-300) / limit), 0.0)
    divergence = divergence + (1 - low) * np.log((1 - low) / (1 - limit))
    return np.minimum(bentkus, np.exp(-num * np.maximum(divergence, 0.0)))


def betting_p_values(values: FloatArray, limit: float, most: float, confidence: float) -> FloatArray:
    """Computes p-values of "the expectation is above the limit" from values with an upper end and no lower one.

        1 / max over t of K_t,   K_t = prod over i <= t of (1 + b_i (limit - x_i)),   0 <= b_i <= 3 / (4 (most - limit))

    K is what a gambler has who bets against the expectation being above the limit; if it is, a capital of 20 is reached
    at any time with a chance of at most 1 in 20 (Ville's inequality), whatever the tails below. The bets b_i come from
    the mean and variance of the values before i: the predictable plug-in for a fixed number of values, one-sided.
    Source: Waudby-Smith & Ramdas 2024 (JRSS B), "Estimating means of bounded random variables by betting".

    Args:
        values: (L, n), n values in a random order, all at most `most`; a p-value for each of L rows.
        most: above the limit.
        confidence: at which the bets aim, in (0, 1).

    Returns:
        (L,).
    """
    num = values.shape[1]
    scale = most - limit
    excess = (values - limit) / scale  # at most 1
    count = np.arange(1, num + 1)
    # One imagined value at the limit, with the variance of a coin, comes first.
    mean = np.cumsum(excess, axis=1) / (count + 1)
    variance = (0.25 + np.cumsum((excess - mean) ** 2, axis=1)) / (count + 1)
    before = np.concatenate([np.full((len(values), 1), 0.25), variance[:, :-1]], axis=1)
    bets = np.minimum(np.sqrt(-2.0 * math.log(1.0 - confidence) / (num * before)), 0.75)
    capital = np.cumsum(np.log1p(-bets * excess), axis=1).max(axis=1)
    return np.asarray(np.exp(-np.maximum(capital, 0.0)), dtype=np.float64)
