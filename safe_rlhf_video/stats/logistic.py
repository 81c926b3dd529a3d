"""Fits logistic regressions by maximum likelihood."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from safe_rlhf_video.stats.checks import FloatArray, check_same_length, finite_row


def fit_weights(features: FloatArray, target: FloatArray, ridge: float) -> FloatArray:
    """Finds the weights (F,) that minimise a ridge-penalised logistic loss.

        minimise over w:   sum_n log(1 + exp(x_n w)) - t_n x_n w + ridge / 2 |w|^2

    The ridge makes the minimum unique. It holds a bias column down like any other weight, so that targets of one class
    have a finite fit too.

    Args:
        features: (N, F), the x_n.
        target: (N,), the t_n, in [0, 1].
        ridge: above 0.
    """
    from scipy.optimize import minimize  # only fits need it

    num = len(target)

    def loss(weights: FloatArray) -> float:
        logits = features @ weights
        return float(np.sum(np.logaddexp(0.0, logits) - target * logits) + 0.5 * ridge * weights @ weights) / num

    def gradient(weights: FloatArray) -> FloatArray:
        return np.asarray(features.T @ (expit(features @ weights) - target) + ridge * weights) / num

    def curvature(weights: FloatArray) -> FloatArray:
        probability = expit(features @ weights)
        of_data = (features.T * (probability * (1.0 - probability))) @ features
        return np.asarray(of_data + ridge * np.eye(len(weights))) / num

    start = np.zeros(features.shape[1])
    if not num:
        return start
    near = minimize(loss, start, method="trust-exact", jac=gradient, hess=curvature, options={"gtol": 1e-8}).x
    # So near the minimum one Newton step is exact to rounding; the loss is too flat there to guide a search.
    return np.asarray(near - np.linalg.solve(curvature(near), gradient(near)))


def fit_logistic(score: ArrayLike, outcome: ArrayLike) -> tuple[float, float]:
    """Fits P = sigmoid(slope score + intercept), the probability of an outcome.

    Maximum likelihood with the outcomes drawn in a little, to (N1 + 1) / (N1 + 2) and 1 / (N0 + 2), so that scores
    that separate the two perfectly still have a finite slope. Source: Platt 1999; Lin, Lin & Weng 2007 (Machine
    Learning 68, 267-276).

    Args:
        score: (N,).
        outcome: (N,) 1 where it came true, else 0; both occur.

    Returns:
        Slope and intercept.

    Raises:
        ValueError: the outcomes are all alike, an outcome is neither 0 nor 1, or the lengths differ.
    """
    scores, outcomes = finite_row("score", score), np.asarray(outcome)
    check_same_length("score", scores, "outcome", outcomes)
    if not np.isin(outcomes, (0, 1)).all():
        raise ValueError("outcome must hold only 0 and 1")
    num_true = int(np.count_nonzero(outcomes))
    num_false = len(scores) - num_true
    if not (num_true and num_false):
        raise ValueError("a logistic fit needs both outcomes")
    target = np.where(outcomes == 1, (num_true + 1.0) / (num_true + 2.0), 1.0 / (num_false + 2.0))
    if scores.max() == scores.min():
        return 0.0, math.log(target.mean() / (1.0 - target.mean()))
    # In standard units the tolerance of the fit means the same for any scores.
    centre, unit = float(scores.mean()), float(scores.std())
    weights = fit_weights(np.stack([(scores - centre) / unit, np.ones_like(scores)], axis=1), target, ridge=1e-12)
    slope = float(weights[0]) / unit
    return slope, float(weights[1]) - slope * centre
