"""Which comparisons a model may be calibrated on, and what is fitted to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from safe_rlhf_video.calibration import HeadCalibration, calibrate_head
from safe_rlhf_video.data.preferences import is_for_calibration, normalise_prompt
from safe_rlhf_video.data.samples import TIE, PairSample
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.evaluation.evaluate import Scores, preference_margin
from safe_rlhf_video.heads import DIMENSION_OF_HEAD


def held_out_pairs(
    pairs: Sequence[PairSample],
    data: str,
    folder: str | Path,
    training: Mapping[str, Any],
    train_pairs: Sequence[PairSample] | None = None,
) -> list[PairSample]:
    """The comparisons whose prompts a model's training did not read, neither to learn nor to choose a checkpoint.

    Args:
        pairs, data: those of a file, and its name.
        folder, training: the model folder and its training facts. With a `calibration_fraction` above 0 these say which
            prompts were held out, and exactly those are taken.
        train_pairs: for a model that was trained without one, all that its training was given; `pairs` must share no
            prompt with them.

    Raises:
        SampleError: it cannot be told, a prompt was trained on, or nothing is left.
    """
    fraction, seed = training.get("calibration_fraction", 0), training.get("seed")
    if isinstance(fraction, float) and fraction > 0 and isinstance(seed, int):
        kept = [pair for pair in pairs if is_for_calibration(pair.prompt_text, fraction, seed)]
        if not kept:
            raise SampleError(
                f"{data}: has none of the prompts that the training of {folder} held out (data.calibration_fraction "
                f"{fraction:g}); give the file that it was trained on"
            )
        return kept
    if train_pairs is None:
        raise SampleError(
            f"{folder}: was trained without data.calibration_fraction, so nothing says that it has not seen the "
            f"prompts of {data}; name the comparisons that it was trained on with --train_data"
        )
    seen = {normalise_prompt(pair.prompt_text) for pair in train_pairs}
    shared = {text: None for pair in pairs if (text := normalise_prompt(pair.prompt_text)) in seen}
    if shared:
        raise SampleError(
            f"{data}: {len(shared)} of its prompts were trained on, the first is {next(iter(shared))[:60]!r}; give "
            "comparisons for other prompts"
        )
    return list(pairs)


def fit_heads(pairs: Sequence[PairSample], scores: Scores, heads: Sequence[str]) -> dict[str, HeadCalibration]:
    """Fit a calibration of each head that learns from comparisons; the reference set are their distinct clips.

    Args:
        scores: of every clip in them, by name.
    """
    names = dict.fromkeys(video.name for pair in pairs for video in (pair.video_0, pair.video_1))
    fitted = {}
    for head in heads:
        if head not in DIMENSION_OF_HEAD:
            continue
        dimension = DIMENSION_OF_HEAD[head]
        labelled = [pair for pair in pairs if pair.preferences.get(dimension) is not None]
        label = [pair.preferences[dimension] for pair in labelled]
        sign = np.array([-1.0 if one == 1 else 1.0 for one in label])
        is_tie = np.array([one == TIE for one in label], dtype=bool)
        fitted[head] = calibrate_head(
            preference_margin(labelled, scores, head) * sign,
            is_tie,
            len({pair.prompt_id for pair, tied in zip(labelled, is_tie, strict=True) if not tied}),
            [scores[name][head] for name in names],
        )
    return fitted
