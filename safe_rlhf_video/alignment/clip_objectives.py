"""What a generator learns from clips of its own and their advantages: pure functions, one value a clip or pair.

All need final clips alone: no stochastic sampler, no likelihood, no stored trajectory, and any judge of clips. A clip
is noised anew, and the objectives compare clean clips that the network predicts from it. With x_t = (1 - t) x_0 + t e
and the velocity v = e - x_0, a prediction of v is one of x_0 = x_t - t v, so errors of velocities are those of clean
clips divided by t; a family of generators states that factor for its own schedule (`Predictions.scale`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

LEAST_ERROR = 1e-5  # of the weights in nft: a clip that is predicted exactly must not divide by zero


@dataclass(frozen=True)
class Predictions:
    """Clips, and what the generator takes them for after noise was added.

    Attributes:
        clean: (B, ...), the clips themselves.
        current: (B, ...), predicted with the weights in training; with gradient.
        old: (B, ...), with the weights that the clips were drawn from, or their average.
        reference: (B, ...), with the generator as it was before all training.
        scale: (B,), turns the error of a clean clip into that of a velocity.
    """

    clean: Tensor
    current: Tensor
    old: Tensor
    reference: Tensor
    scale: Tensor


def nft(predictions: Predictions, advantages: Tensor, strength: float, most_advantage: float = 5.0) -> Tensor:
    """DiffusionNFT's loss (Zheng et al. 2025, arXiv 2509.16117): (B,).

    With r = 1/2 + clip(A, +-a) / 2a, and predictions that go `strength` b beyond the old one and to its other side,
    x+- = x_old +- b (x_current - x_old), it is (r |x+ - x_0|^2 / w+ + (1 - r) |x- - x_0|^2 / w-) a / b, where w+- is
    the mean absolute error, without gradient. Without w it is, but for a constant, a (2 (2r - 1) <d, x_old - x_0> +
    b |d|^2) with d = x_current - x_old: matching weighted by the advantage, and a pull to the old prediction that
    bounds it from below.

    Args:
        advantages: (B,), normalised.
        strength: b > 0.
    """
    likely = 0.5 + advantages.clamp(-most_advantage, most_advantage) / (2.0 * most_advantage)
    step = predictions.current - predictions.old
    towards = _weighted_error(predictions.old + strength * step - predictions.clean)
    away = _weighted_error(predictions.old - strength * step - predictions.clean)
    return (likely * towards + (1.0 - likely) * away) * most_advantage / strength


def awm(predictions: Predictions, advantages: Tensor, clip: float) -> Tensor:
    """Advantage-weighted matching, with PPO's clipped ratio (Xue et al. 2025, arXiv 2509.25050): (B,).

    The errors of velocities l stand in for negative log likelihoods, so the ratio is exp(l_old - l_current).

    Args:
        advantages: (B,), normalised.
        clip: how far the ratio counts from 1.
    """
    ratio = (velocity_error(predictions.old, predictions) - velocity_error(predictions.current, predictions)).exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1.0 - clip, 1.0 + clip))


def rwr(predictions: Predictions, advantages: Tensor, temperature: float) -> Tensor:
    """Reward-weighted regression (Lee et al. 2023, arXiv 2302.12192): (B,), the weights have the mean 1.

    Fine-tuning on the best of n is its limit for a temperature of 0.

    Args:
        advantages: (B,), of all clips that are to be weighed against each other.
        temperature: more than 0.
    """
    weights = len(advantages) * (advantages / temperature).softmax(dim=0)
    return weights * velocity_error(predictions.current, predictions)


def dpo(predictions: Predictions, chosen: Tensor, rejected: Tensor, strength: float) -> Tensor:
    """Flow-DPO with a constant strength (Liu et al. 2025, arXiv 2501.13918): (P,), a value a pair.

    Args:
        chosen, rejected: (P,), indices into the clips.
        strength: the divergence's weight, beta.
    """
    gain = velocity_error(predictions.current, predictions) - velocity_error(predictions.reference, predictions)
    return -logsigmoid(-0.5 * strength * (gain[chosen] - gain[rejected]))


def pull(predictions: Predictions) -> Tensor:
    """How far the velocities are from the reference's: (B,), the mean squared difference."""
    difference = (predictions.current - predictions.reference).flatten(1)
    return difference.square().mean(dim=1) * predictions.scale.square()


def velocity_error(predicted: Tensor, predictions: Predictions) -> Tensor:
    """The mean squared error of the velocities that predicted clean clips mean: (B,)."""
    return (predicted - predictions.clean).flatten(1).square().mean(dim=1) * predictions.scale.square()


def _weighted_error(error: Tensor) -> Tensor:
    flat = error.flatten(1)
    return flat.square().mean(dim=1) / flat.detach().abs().mean(dim=1).clamp_min(LEAST_ERROR)
