"""Averages of weights are those of the formula, for any share of the steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from safe_rlhf_video.training.engine import AveragingAdamW


def take_steps(share: float, moves: np.ndarray) -> float:
    """The average of a weight that begins at 1 and moves so."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = AveragingAdamW([{"params": [weight], "lr": 0.0}], share)
    weight.grad = torch.zeros(1)
    for move in moves:
        with torch.no_grad():
            weight += float(move)
        optimizer.step()
    return float(optimizer.state[weight]["average"])


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_an_average_follows_a_weight_that_moves_slowly(share: float) -> None:
    """The increments of a plain float32 average would be rounded away: at 1.0, 5e-4 would be missing here."""
    moves = np.full(20_000, 1e-3 / 20_000)
    moves[::2] = 0.0  # by two at a time, which float32 can hold near 1
    moves *= 2
    steps = np.arange(1, 20_001)
    average = 0.0
    weight = np.float32(1.0)
    for step, move in zip(steps, moves, strict=True):
        weight = np.float32(weight + np.float32(move))
        average += (float(weight) - average) / (1 - share + share * step)
    assert take_steps(share, moves) == pytest.approx(average, abs=2e-5)


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_averages_equal_a_float64_reference(share: float) -> None:
    torch.manual_seed(0)
    one, other = (torch.nn.Parameter(torch.randn(size)) for size in (5, 3))
    plain = torch.nn.Parameter(one.detach().clone())
    averaging = AveragingAdamW([{"params": [one], "lr": 0.1}, {"params": [other], "lr": 0.1}], share)
    adamw = torch.optim.AdamW([plain], lr=0.1)
    history = []
    for _ in range(40):
        gradient = torch.randn(5)
        one.grad, other.grad, plain.grad = gradient, torch.randn(3), gradient.clone()
        averaging.step()
        adamw.step()
        assert torch.equal(one, plain)
        history.append(np.concatenate([one.detach().double(), other.detach().double()]))
    # Shamir and Zhang (2013), written out: the weight of step t in the average of T steps.
    eta = 1 / share - 1
    newest = (eta + 1) / (np.arange(1, 41) + eta)
    weights = np.array([newest[t] * np.prod(1 - newest[t + 1 :]) for t in range(40)])
    assert weights.sum() == pytest.approx(1)
    found = np.concatenate([averaging.state[parameter]["average"] for parameter in (one, other)])
    assert found == pytest.approx(weights @ np.array(history), abs=1e-5)
    if share == 1.0:
        assert weights == pytest.approx(np.full(40, 1 / 40))
