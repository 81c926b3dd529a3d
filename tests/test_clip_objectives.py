"""Objectives of alignment equal an independent float64 reference, and what their docs derive of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from safe_rlhf_video.alignment.clip_objectives import Predictions, awm, dpo, nft, pull, rwr

B, D = 6, 20


@pytest.fixture
def predictions() -> Predictions:
    torch.manual_seed(0)
    clean = torch.randn(B, 4, 5, dtype=torch.float64)
    old, current, reference = (clean + 0.3 * torch.randn_like(clean) for _ in range(3))
    return Predictions(clean, current.requires_grad_(), old, reference, 1.0 + torch.rand(B, dtype=torch.float64))


@pytest.fixture
def advantages() -> torch.Tensor:
    return torch.tensor([-7.0, -1.0, 0.0, 0.5, 2.0, 9.0], dtype=torch.float64)


def rows(tensor: torch.Tensor) -> list[np.ndarray]:
    return list(tensor.detach().numpy().reshape(B, D))


def test_nft(predictions: Predictions, advantages: torch.Tensor) -> None:
    p, strength = predictions, 0.7
    expected = []
    for clean, current, old, advantage in zip(rows(p.clean), rows(p.current), rows(p.old), advantages, strict=True):
        r = 0.5 + min(max(float(advantage), -5), 5) / 10
        sides = [old + sign * strength * (current - old) - clean for sign in (1, -1)]
        plus, minus = [np.mean(error**2) / np.mean(abs(error)) for error in sides]
        expected.append((r * plus + (1 - r) * minus) * 5 / strength)
    assert nft(p, advantages, strength).tolist() == pytest.approx(expected)


def test_nft_is_matching_weighted_by_the_advantage_and_a_pull_to_the_old(
    predictions: Predictions, advantages: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The identity of its docstring, without the weights w."""
    p, b = predictions, 0.7
    monkeypatch.setattr(
        "safe_rlhf_video.alignment.clip_objectives._weighted_error", lambda error: error.flatten(1).square().mean(dim=1)
    )
    (gradient,) = torch.autograd.grad(nft(p, advantages, b).sum(), p.current)
    tilt = (advantages.clamp(-5, 5) / 5).view(B, 1, 1)  # 2 r - 1
    step = p.current - p.old
    derived = 5 * (2 * tilt * step * (p.old - p.clean) + b * step.square())
    (expected,) = torch.autograd.grad(derived.sum() / D, p.current)
    assert torch.allclose(gradient, expected)


def test_awm(predictions: Predictions, advantages: torch.Tensor) -> None:
    p = predictions
    expected = []
    for clean, current, old, scale, advantage in zip(
        rows(p.clean), rows(p.current), rows(p.old), p.scale.tolist(), advantages.tolist(), strict=True
    ):
        errors = [np.mean((one - clean) ** 2) * scale**2 for one in (old, current)]
        ratio = math.exp(errors[0] - errors[1])
        expected.append(max(-advantage * ratio, -advantage * min(max(ratio, 0.9), 1.1)))
    assert awm(p, advantages, 0.1).tolist() == pytest.approx(expected)


def test_rwr_and_its_limit(predictions: Predictions, advantages: torch.Tensor) -> None:
    p = predictions
    errors = np.array([np.mean((c - x) ** 2) for c, x in zip(rows(p.current), rows(p.clean), strict=True)])
    errors *= p.scale.numpy() ** 2
    weights = np.exp(advantages.numpy() / 2)
    assert rwr(p, advantages, 2.0).tolist() == pytest.approx(list(B * weights / weights.sum() * errors))
    assert rwr(p, advantages, 1e-3).tolist() == pytest.approx([0, 0, 0, 0, 0, B * errors[-1]])


def test_dpo(predictions: Predictions) -> None:
    p, strength = predictions, 3.0
    gains = []
    for clean, current, reference, scale in zip(
        rows(p.clean), rows(p.current), rows(p.reference), p.scale.tolist(), strict=True
    ):
        gains.append(scale**2 * (np.mean((current - clean) ** 2) - np.mean((reference - clean) ** 2)))
    expected = [math.log1p(math.exp(strength / 2 * (gains[one] - gains[other]))) for one, other in ((0, 3), (5, 1))]
    found = dpo(p, torch.tensor([0, 5]), torch.tensor([3, 1]), strength)
    assert found.tolist() == pytest.approx(expected)


def test_the_pull_is_the_squared_difference_of_velocities(predictions: Predictions) -> None:
    p = predictions
    expected = [np.mean(((a - b) * s) ** 2) for a, b, s in
                zip(rows(p.current), rows(p.reference), p.scale.tolist(), strict=True)]  # fmt: skip
    assert pull(p).tolist() == pytest.approx(expected)
