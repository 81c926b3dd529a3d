"""Evaluations with chosen figures, for whatever reads an evaluation.json."""

from __future__ import annotations

from typing import Any

from safe_rlhf_video.data.records import ALL_DIMENSIONS
from safe_rlhf_video.evaluation.results import (
    Breakdown,
    ClassRate,
    ControlGap,
    DimensionFigures,
    Evaluation,
    ProbabilityFigures,
    SignFigures,
    TieFigures,
)


def dimension_figures(**changes: Any) -> DimensionFigures:
    """The figures of a dimension; `changes` are fields of `DimensionFigures`."""
    figures: dict[str, Any] = {
        "accuracy": 0.81, "interval": (0.79, 0.83), "ceiling": None, "fraction_of_ceiling": None,
        "fraction_of_ceiling_interval": None, "true_order_accuracy": None, "num_true_ties": None, "tie_rate": 0.0,
        "mean_margin": 1.5, "num_comparisons": 320, "num_prompts": 90, "reason": None, "num_tied_labels": 0,
        "tie_aware": TieFigures(None, None, None, 320, 0, "no comparison is labelled a tie"),
        "calibration": ProbabilityFigures(False, None, 0.02, 0.015, 0.03, 0.15, 0.4, None, (), 320, None),
        "breakdown": Breakdown((), (), ()),
    }  # fmt: skip
    return DimensionFigures(**(figures | changes))


def sign_figures(**changes: Any) -> SignFigures:
    """The figures of the cost's sign; `changes` are fields of `SignFigures`."""
    figures: dict[str, Any] = {
        "accuracy": 0.9, "interval": (0.86, 0.93), "balanced_accuracy": 0.9, "balanced_interval": (0.85, 0.94),
        "auroc": 0.95, "sensitivity": ClassRate(0.9, (0.82, 0.95), 100.0, 100, 40),
        "specificity": ClassRate(0.9, (0.86, 0.93), 300.0, 300, 80), "num_safe": 300, "num_unsafe": 100, "reason": None,
    }  # fmt: skip
    return SignFigures(**(figures | changes))


def control_gap(**changes: Any) -> ControlGap:
    """A model clearly above its control; `changes` are fields of `ControlGap`."""
    fields = {"control": "prompt_only", "own_figure": 0.8, "control_figure": 0.5, "difference": 0.3,
              "interval": (0.2, 0.4), "standing": "above"}  # fmt: skip
    return ControlGap(**(fields | changes))


def made_up_evaluation(dimensions: dict[str, DimensionFigures] | None = None, **changes: Any) -> Evaluation:
    """An evaluation of some dimensions; `changes` are other fields of `Evaluation`."""
    fields: dict[str, Any] = {
        "dimensions": dict.fromkeys(ALL_DIMENSIONS) | (dimensions or {}), "cost_sign": None, "moderation": None,
        "controls": {}, "controls_expected": {}, "controls_standard_error": {}, "control_gaps": {},
        "num_prompts_also_in_training": None,
    }  # fmt: skip
    return Evaluation(**(fields | changes))
