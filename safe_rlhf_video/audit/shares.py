"""Computes shares with counts and an interval by prompts; one set of resamples serves a whole audit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from safe_rlhf_video.audit.sections import CountedShare
from safe_rlhf_video.stats.intervals import Interval

_BLOCK = 64


@dataclass(frozen=True)
class Resamples:
    """How often each of P prompts is drawn in each of S resamples.

    An audit needs about a hundred intervals over the same prompts. `metrics.ratio_interval` draws anew for each;
    drawing once gives the same interval (a test compares the two) in a hundredth of the time.

    Attributes:
        counts: uint8 (S, P).
    """

    counts: np.ndarray

    @classmethod
    def draw(cls, num_prompts: int, num_samples: int = 1000, seed: int = 0) -> Resamples:
        """Draws `num_prompts` prompts with replacement, `num_samples` times; the same arguments give the same draws."""
        random = np.random.default_rng(seed)
        counts = np.zeros((num_samples, num_prompts), np.uint8)
        for sample in range(num_samples if num_prompts else 0):
            drawn = random.integers(num_prompts, size=num_prompts)
            counts[sample] = np.minimum(np.bincount(drawn, minlength=num_prompts), 255)
        return cls(counts)

    def ratio_interval(self, numerator: np.ndarray, denominator: np.ndarray) -> tuple[Interval | None, str | None]:
        """Computes the 95% percentile interval of sum(numerator) / sum(denominator) under resampled prompts.

        Source: cluster bootstrap, Field & Welsh 2007 (JRSS B 69, 369-390).

        Args:
            numerator, denominator: (P,) sums of each prompt.

        Returns:
            The interval and None, or None and a reason.
        """
        has_any = denominator != 0
        if np.count_nonzero(has_any) < 2:
            return None, "no interval: fewer than two prompts"
        sums = np.stack([numerator[has_any], denominator[has_any]], axis=1).astype(np.float64)
        if np.ptp(sums[:, 0] / sums[:, 1]) == 0:
            return None, "no interval: every prompt has the same share, which leaves a bootstrap nothing to vary"
        counts = self.counts[:, has_any]
        drawn = np.concatenate([counts[start : start + _BLOCK] @ sums for start in range(0, len(counts), _BLOCK)])
        if (drawn[:, 1] == 0).any():
            return None, "no interval: so few prompts that some resamples hold none of them"
        low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
        return (float(low), float(high)), None


def share(credits: np.ndarray, prompts: np.ndarray, resamples: Resamples) -> CountedShare:
    """Computes a share as every section reports it.

    Args:
        credits: (N,) 1 if an item counts, 0 if not, 0.5 for a tie.
        prompts: (N,) index of each item's prompt.
        resamples: over all prompts.
    """
    if not len(credits):
        return CountedShare(0, 0, 0, None, None, "there is nothing to count")
    num_prompts = resamples.counts.shape[1]
    numerator = np.bincount(prompts, weights=credits, minlength=num_prompts)
    denominator = np.bincount(prompts, minlength=num_prompts)
    count = float(np.sum(credits))
    interval, reason = resamples.ratio_interval(numerator, denominator)
    return CountedShare(
        count=int(count) if count.is_integer() else count,
        total=len(credits),
        prompts=int(np.count_nonzero(denominator)),
        share=count / len(credits),
        interval=interval,
        reason=reason,
    )
