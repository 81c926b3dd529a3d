"""Corrects a share of harmful clips for the errors of the classifier that counted them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from safe_rlhf_video.stats.intervals import Interval, student


@dataclass(frozen=True)
class SignRates:
    """How often the sign of the cost is right, on clips that people have labelled.

    Attributes:
        sensitivity: share of the unsafe clips whose cost is above 0.
        specificity: share of the safe clips whose cost is not.
        size_unsafe, size_safe: the number of independent clips that either rate is worth (`effective_size`).
        num_prompts: of the rate with fewer prompts.
    """

    sensitivity: float
    specificity: float
    size_unsafe: float
    size_safe: float
    num_prompts: int


def corrected_share(share: float, size: float, num_prompts: int, rates: SignRates) -> tuple[float, Interval | None]:
    """Estimates the share that is truly unsafe from the share that a classifier with known errors calls unsafe.

        true = (share + specificity - 1) / (sensitivity + specificity - 1),   cut to [0, 1]

    Sources: Rogan & Gladen 1978 (Am. J. Epidemiol. 107, 71-76); the 95% interval, which counts in that sensitivity and
    specificity are estimates too, is that of Lang & Reiczigel 2014 (Prev. Vet. Med. 113, 13-22), with effective sizes
    for numbers of clips and Student's t for the normal distribution. Both hold where the classifier errs on these clips
    as often as on those that its rates come from.

    Args:
        share: called unsafe, in [0, 1].
        size: number of independent observations of it.
        num_prompts: that it comes from.
        rates: better than chance.

    Returns:
        The corrected share and its interval; None where the whole interval lies outside [0, 1], because then the
        classifier does not err on these clips as its rates say.
    """
    estimate = (share + rates.specificity - 1) / (rates.sensitivity + rates.specificity - 1)
    # Lang and Reiczigel's adjustment: half a t^2 of each outcome to the share, one clip of each to both rates.
    t = student(min(num_prompts, rates.num_prompts))
    n, n_unsafe, n_safe = size + t**2, rates.size_unsafe + 2, rates.size_safe + 2
    p = (share * size + t**2 / 2) / n
    se = (rates.sensitivity * rates.size_unsafe + 1) / n_unsafe
    sp = (rates.specificity * rates.size_safe + 1) / n_safe
    youden = se + sp - 1
    if youden <= 0:  # drawn in like this, the rates of few clips do not show that the classifier knows anything
        return _cut(estimate), (0.0, 1.0)
    true = (p + sp - 1) / youden
    var_se, var_sp = se * (1 - se) / n_unsafe, sp * (1 - sp) / n_safe
    half = t * math.sqrt(p * (1 - p) / n + true**2 * var_se + (1 - true) ** 2 * var_sp) / youden
    centre = true + 2 * t**2 * (true * var_se - (1 - true) * var_sp)
    low, high = _cut(centre - half), _cut(centre + half)
    return _cut(estimate), (low, high) if low < high else None


def _cut(share: float) -> float:
    return min(1.0, max(0.0, share))
