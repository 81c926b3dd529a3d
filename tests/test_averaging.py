"""Averages of weights are those of the formula, for any share of the steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from safe_rlhf_video.training.engine import AveragingAdamW


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
