"""The losses against their formulas in plain float64 arithmetic, at the extremes and behind the mask."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safe_rlhf_video.heads import HEADS
from safe_rlhf_video.kinds.targets import KINDS
from safe_rlhf_video.losses import (
    LABEL_LOSSES,
    bradley_terry_loss,
    rao_kupper_loss,
    rao_kupper_tie_loss,
    safety_sign_loss,
    score_regularization,
)

MARGINS = [-700.0, -30.0, -1.0, -1e-9, 0.0, 1e-9, 1.0, 30.0, 700.0]


def negative_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-x)) if x > 0 else -x + math.log1p(math.exp(x))


def test_bradley_terry_is_the_formula_over_the_whole_range():
    chosen = torch.tensor([margin + 3.0 for margin in MARGINS], dtype=torch.float64)
    rejected = torch.full_like(chosen, 2.5)
    expected = [negative_log_sigmoid((margin + 3.0) - 2.5 - 0.5) for margin in MARGINS]

    losses = bradley_terry_loss(chosen, rejected, target_margin=0.5)

    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=0)


@given(st.floats(-50, 50), st.floats(-50, 50))
def test_bradley_terry_difference_under_swap_is_the_margin(chosen, rejected):
    # -log s(x) + log s(-x) = -x, so the loss is the log odds of one consistent probability.
    a, b = torch.tensor([chosen], dtype=torch.float64), torch.tensor([rejected], dtype=torch.float64)
    difference = bradley_terry_loss(a, b) - bradley_terry_loss(b, a)
    torch.testing.assert_close(difference, b - a, rtol=1e-12, atol=1e-12)


def test_bradley_terry_gradient_is_the_probability_of_being_wrong():
    chosen = torch.tensor([1.3, -0.4, 400.0, -400.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.zeros(4, dtype=torch.float64, requires_grad=True)

    bradley_terry_loss(chosen, rejected).sum().backward()

    wrong = [1 / (1 + math.exp(margin)) for margin in chosen.tolist()]
    torch.testing.assert_close(chosen.grad, -torch.tensor(wrong, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(rejected.grad, -chosen.grad, rtol=0, atol=0)


@given(st.floats(-30, 30), st.floats(1.01, 50))
def test_rao_kupper_win_tie_and_loss_are_one_distribution(margin, threshold):
    first, second = torch.tensor([margin], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    win, loss = rao_kupper_loss(first, second, threshold), rao_kupper_loss(second, first, threshold)
    tie = rao_kupper_tie_loss(first, second, threshold)
    total = sum(torch.exp(-part).item() for part in (win, tie, loss))
    assert total == pytest.approx(1.0, abs=1e-12)
    # The published form, as a quotient of worths.
    a = math.exp(margin)
    assert math.exp(-win.item()) == pytest.approx(a / (a + threshold), rel=1e-9)
    torch.testing.assert_close(tie, rao_kupper_tie_loss(second, first, threshold), rtol=1e-12, atol=1e-12)
    assert rao_kupper_tie_loss(second, second, threshold).item() <= tie.item() + 1e-12


def test_cost_is_pushed_below_zero_for_safe_and_above_for_unsafe():
    costs = torch.tensor([2.0, 2.0], requires_grad=True)

    losses = safety_sign_loss(costs, torch.tensor([1, -1]))
    losses.sum().backward()

    assert losses.tolist() == pytest.approx([negative_log_sigmoid(-2.0), negative_log_sigmoid(2.0)], rel=1e-6)
    assert costs.grad[0] > 0 > costs.grad[1]


@pytest.mark.parametrize("unknown_cost", [0.7, 1e30, math.inf, -math.inf, math.nan])
def test_unknown_sign_gives_exactly_no_loss_and_no_gradient(unknown_cost):
    costs = torch.tensor([0.5, unknown_cost], requires_grad=True)

    losses = safety_sign_loss(costs, torch.tensor([-1, 0], dtype=torch.int8))
    losses.sum().backward()

    assert losses[1].item() == 0.0
    assert costs.grad[1].item() == 0.0
    assert losses[0].item() == pytest.approx(negative_log_sigmoid(0.5), rel=1e-6)
    assert costs.grad[0].item() == pytest.approx(-1 / (1 + math.exp(0.5)), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_keep_dtype_and_accept_no_elements(dtype):
    for length in (0, 3):
        scores = torch.linspace(-1, 1, length, dtype=dtype)
        sign = torch.ones(length, dtype=torch.int64)
        for losses in (
            bradley_terry_loss(scores, scores, 0.1),
            safety_sign_loss(scores, sign),
            score_regularization(scores),
        ):
            assert (losses.dtype, losses.shape) == (dtype, (length,))


def test_score_regularization_squares():
    assert score_regularization(torch.tensor([-3.0, 0.0, 2.0])).tolist() == [9.0, 0.0, 4.0]


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\).*\(3, 1\)"):
        bradley_terry_loss(torch.zeros(3), torch.zeros(3, 1))
    with pytest.raises(ValueError, match="safety_sign"):
        safety_sign_loss(torch.zeros(3), torch.zeros(1))


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_label_has_a_loss_of_its_targets(name: str) -> None:
    kind, head = KINDS[name], next(head for head in HEADS.values() if head.kind == name)
    num_classes = len(kind.classes(head))
    known = np.array([-1, *range(num_classes)])
    targets = kind.encode(known, np.arange(1.0, num_classes + 1.0))
    assert targets.shape == (len(known), kind.num_columns(head))
    assert kind.decode(targets).tolist() == known.tolist()
    scores = torch.tensor([math.inf, *[0.3] * num_classes], requires_grad=True)
    losses = LABEL_LOSSES[name](scores, torch.tensor(targets), torch.arange(kind.num_thresholds(head)) + 0.0)
    losses.sum().backward()
    assert losses[0] == 0
    assert (losses[1:] > 0).all()
    assert scores.grad is not None
    assert scores.grad[0] == 0
    assert torch.isfinite(scores.grad).all()
