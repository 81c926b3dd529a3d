"""Estimates the share of harmful clips: its interval by prompt, and its correction for the classifier's errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.stats.credit import SignAccuracy

Z_95 = 1.959963984540054  # the 97.5% point of the normal distribution


@dataclass(frozen=True)
class SignRates:
    """How often the sign of the cost is right, on clips that people have labelled.

    Attributes:
        sensitivity: share of the unsafe clips whose cost is above 0.
        specificity: share of the safe clips whose cost is not.
        num_unsafe, num_safe: the number of clips behind either rate.
    """

    sensitivity: float
    specificity: float
    num_unsafe: int
    num_safe: int


def effective_size(shares: ArrayLike, num_clips: int) -> float:
    """Computes how many independent clips would estimate the mean share as precisely as these prompts do.

        n = p (1 - p) / var(p),   var(p) = sum_i (share_i - p)^2 / P^2

    With one clip a prompt it is the number of prompts, P. It is never less, and `num_clips` at most; where all shares
    are 0 or all are 1, which shows no variance, it is P. Source: the effective sample size of Korn & Graubard 1998
    (Survey Methodology 24, 193-201), with prompts as clusters; the bounds are ours.

    Args:
        shares: (P,) the share of each prompt, in [0, 1].
        num_clips: number of their clips, at least P.
    """
    row = np.asarray(shares, dtype=np.float64)
    mean, spread = float(row.mean()), float(row.var())
    if mean * (1 - mean) <= 0:
        return float(len(row))
    if spread == 0:
        return float(num_clips)
    return min(len(row) * mean * (1 - mean) / spread, float(num_clips))


def score_interval(share: float, size: float) -> tuple[float, float]:
    """Computes the 95% score interval of a share; unlike a bootstrap's it has a width where the share is 0 or 1.

    Source: Wilson 1927 (J. Am. Stat. Assoc. 22, 209-212).

    Args:
        share: in [0, 1].
        size: number of independent observations, not necessarily whole.
    """
    z2 = Z_95**2
    centre = (share + z2 / (2 * size)) / (1 + z2 / size)
    half = Z_95 / (1 + z2 / size) * math.sqrt(share * (1 - share) / size + z2 / (4 * size**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def corrected_share(share: float, size: float, rates: SignRates) -> tuple[float, tuple[float, float]]:
    """Estimates the share that is truly unsafe from the share that a classifier with known errors calls unsafe.

        true = (share + specificity - 1) / (sensitivity + specificity - 1),   cut to [0, 1]

    Sources: Rogan & Gladen 1978 (Am. J. Epidemiol. 107, 71-76); the 95% interval, which counts in that sensitivity and
    specificity are estimates too, is that of Lang & Reiczigel 2014 (Prev. Vet. Med. 113, 13-22). Both hold where the
    classifier errs on these clips as often as on those that its rates come from.

    Args:
        share: called unsafe, in [0, 1].
        size: number of independent observations of it.
        rates: better than chance, as `sign_rates` gives them.

    Returns:
        The corrected share and the ends of its interval.
    """
    estimate = (share + rates.specificity - 1) / (rates.sensitivity + rates.specificity - 1)
    # Lang and Reiczigel's adjustment: half a z^2 of each outcome to the share, one clip of each to both rates.
    z2 = Z_95**2
    n, n_unsafe, n_safe = size + z2, rates.num_unsafe + 2, rates.num_safe + 2
    p = (share * size + z2 / 2) / n
    se = (rates.sensitivity * rates.num_unsafe + 1) / n_unsafe
    sp = (rates.specificity * rates.num_safe + 1) / n_safe
    youden = se + sp - 1
    true = (p + sp - 1) / youden
    var_se, var_sp = se * (1 - se) / n_unsafe, sp * (1 - sp) / n_safe
    half = Z_95 * math.sqrt(p * (1 - p) / n + true**2 * var_se + (1 - true) ** 2 * var_sp) / youden
    centre = true + 2 * z2 * (true * var_se - (1 - true) * var_sp)
    return _cut(estimate), (_cut(centre - half), _cut(centre + half))


def sign_rates(figures: SignAccuracy | None, where: str) -> SignRates:
    """Solves for both rates from an evaluation's figures of the cost's sign.

        accuracy (U + S) = U sensitivity + S specificity,   2 balanced_accuracy = sensitivity + specificity

    Two equations determine them unless the numbers of unsafe clips (U) and of safe ones (S) are equal.

    Args:
        figures: None where the evaluation had no labelled clip.
        where: the file, for messages.

    Raises:
        ConfigError: the rates do not follow from the figures, or are no better than chance.
    """
    if figures is None or figures.accuracy is None or figures.balanced_accuracy is None:
        raise ConfigError(
            f"{where} field cost_sign: has no accuracy and balanced_accuracy, from which sensitivity and specificity "
            "follow; evaluate on comparisons with safe and unsafe clips"
        )
    num_unsafe, num_safe = figures.num_unsafe, figures.num_safe
    if num_unsafe == num_safe:
        raise ConfigError(
            f"{where} field cost_sign: {num_safe} safe and as many unsafe clips determine only the sum of sensitivity "
            "and specificity; evaluate on a test set with more clips of one kind"
        )
    total = figures.accuracy * (num_unsafe + num_safe)
    sensitivity = (total - 2 * figures.balanced_accuracy * num_safe) / (num_unsafe - num_safe)
    # Whole and half clips (a cost of 0) were counted: rounding removes the error of the subtraction.
    unsafe_right = round(2 * sensitivity * num_unsafe) / 2
    safe_right = round(2 * (2 * figures.balanced_accuracy - sensitivity) * num_safe) / 2
    is_possible = 0 <= unsafe_right <= num_unsafe and 0 <= safe_right <= num_safe
    if not is_possible or abs(unsafe_right + safe_right - total) >= 0.1:
        raise ConfigError(f"{where} field cost_sign: its figures contradict each other; run scripts/evaluate.py again")
    rates = SignRates(unsafe_right / num_unsafe, safe_right / num_safe, num_unsafe, num_safe)
    if rates.sensitivity + rates.specificity <= 1:
        raise ConfigError(
            f"{where} field cost_sign: sensitivity {rates.sensitivity:.3f} and specificity {rates.specificity:.3f} are "
            "no better than chance and cannot correct anything; leave --evaluation out"
        )
    return rates


def _cut(share: float) -> float:
    return min(1.0, max(0.0, share))
