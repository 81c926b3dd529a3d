"""Checks the arguments of statistics, and whether there are enough comparisons for a figure."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

MIN_COMPARISONS = 30
"""With fewer, a calibration or a figure of a part is None: its interval would span most of what is possible."""

MIN_PROMPTS = 10
"""With fewer, nobody can tell from the data how alike the comparisons of a prompt are: there is no interval."""


def too_few(num_comparisons: int) -> str | None:
    """Says why a figure of so few comparisons is None; None where there are enough."""
    if num_comparisons >= MIN_COMPARISONS:
        return None
    return f"{num_comparisons} comparisons, fewer than {MIN_COMPARISONS}"


def too_few_prompts(num_prompts: int) -> str | None:
    """Says why a figure of so few prompts has no interval; None where there are enough."""
    if num_prompts >= MIN_PROMPTS:
        return None
    return f"no interval: {num_prompts} {'prompt' if num_prompts == 1 else 'prompts'}, fewer than {MIN_PROMPTS}"


def finite_row(name: str, values: ArrayLike) -> FloatArray:
    """The values as one row of float64.

    Raises:
        ValueError: they have another shape, or one is not finite.
    """
    row = np.asarray(values, dtype=np.float64)
    if row.ndim != 1:
        raise ValueError(f"{name} must have one dimension, got shape {row.shape}")
    if not np.isfinite(row).all():
        raise ValueError(f"{name} holds NaN or infinite values")
    return row


def check_same_length(
    first_name: str, first: NDArray[np.generic], second_name: str, second: NDArray[np.generic]
) -> None:
    """Raises ValueError where two rows differ in length."""
    if len(first) != len(second):
        raise ValueError(f"{first_name} has {len(first)} entries but {second_name} has {len(second)}")
