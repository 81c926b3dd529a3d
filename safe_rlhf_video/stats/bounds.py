"""Bounds a mean from a sample: is it at most a limit, with some confidence?"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, stdtrit

from safe_rlhf_video.stats.checks import FloatArray

# With fewer, the mean of values without bounds is too far from a normal distribution.
MIN_SIZE = 30


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


def student_upper_bound(mean: FloatArray, variance: FloatArray, num: int, confidence: float) -> FloatArray:
    """Computes upper bounds of expectations: m + t(num - 1) s / sqrt(num), Student's t.

    Values without bounds have no exact one: this is right only as `num` grows. Infinite below `MIN_SIZE`.

    Args:
        mean, variance: any shape, of `num` values; the variance has num - 1 in the denominator.
        confidence: in (0, 1).
    """
    if num < MIN_SIZE:
        return np.full(np.shape(mean), np.inf)
    return np.asarray(mean + stdtrit(num - 1, confidence) * np.sqrt(variance / num), dtype=np.float64)
