"""From scores to one loss: roles, masks, denominators, and the figures of a row."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from safe_rlhf_video.data.batch import Batch, collate
from safe_rlhf_video.data.preferences import PromptGroup
from safe_rlhf_video.data.records import DIMENSIONS, SUB_DIMENSIONS, VideoSample
from safe_rlhf_video.errors import CheckpointError
from safe_rlhf_video.heads import HEADS as ALL_HEADS
from safe_rlhf_video.heads import SUB_HEADS, preference_score
from safe_rlhf_video.kinds.targets import NUM_LABEL_COLUMNS
from safe_rlhf_video.training.config import LossConfig
from safe_rlhf_video.training.messages import warn_if_stuck
from safe_rlhf_video.training.objectives import Objective, Tally, compute_objective, name_some, summarize
from safe_rlhf_video.training.plan import StepPlan, plan_step
from safe_rlhf_video.video.sampling import Video

HEADS = ("reward", "cost")
NO_TIES = {"helpfulness": 0, "harmlessness": 0}
COMPARISONS_ONLY = LossConfig(comparison=1.0, sign=0.0, regularization=0.0)


def make_batch(helpfulness: list, harmlessness: list, sign: list[int], ties: tuple[list, list] = ([], [])) -> Batch:
    size = len(sign)
    comparisons, tied = (
        {name: np.array(rows, np.int64).reshape(-1, 2) for name, rows in zip(DIMENSIONS, labels, strict=True)}
        for labels in ((helpfulness, harmlessness), ties)
    )
    names = tuple(f"p/{i}" for i in range(size))
    # As of one prompt.
    counts = {name: len(comparisons[name]) + len(tied[name]) for name in DIMENSIONS}
    weights = {name: np.full(count, 1.0 / max(count, 1), np.float32) for name, count in counts.items()}
    nothing = (None,) * size
    harms = np.zeros((size, NUM_LABEL_COLUMNS), np.float32)
    return Batch(names, names, nothing, comparisons, tied, weights, np.array(sign), harms, np.ones(size, bool))  # type: ignore[arg-type]


def as_floats(sums: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in sums.items()}


def totals_of(*objectives: Objective) -> dict[str, float]:
    """What a step's sums are, where every objective is one of its micro-batches."""
    made = Tally()
    for objective in objectives:
        made.add({"reward": torch.zeros(1)}, make_batch([], [], [0]), objective)
    return as_floats(made.sums)


def plan_of(batch: Batch) -> StepPlan:
    comparisons = {name: len(rows) for name, rows in batch.comparisons.items()}
    ties = {name: len(rows) for name, rows in batch.ties.items()}
    prompts = {name: int(comparisons[name] + ties[name] > 0) for name in comparisons}
    shares = {name: comparisons[name] / max(comparisons[name] + ties[name], 1) for name in comparisons}
    signs = int(np.count_nonzero(batch.safety_sign))
    harms = tuple(np.count_nonzero(batch.harm_targets, axis=0).tolist())
    return StepPlan((0,), comparisons, ties, prompts, shares, signs, harms, len(batch.names))


def tally(scores: dict[str, Tensor], batch: Batch) -> Tally:
    made = Tally()
    made.add(scores, batch, compute_objective(scores, batch, plan_of(batch), LossConfig()))
    return made


def compute_loss(*arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and its terms and further sums by name."""
    objective = compute_objective(*arguments)
    terms = {name: term.detach() for name, term in objective.terms.items()}
    return objective.loss, {**terms, **objective.sums}


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_a_step_against_the_loss_moves_the_roles_apart() -> None:
    # Video 0 is the more helpful and the safer one.
    batch = make_batch([[0, 1]], [[0, 1]], [0, 0])
    scores = {head: leaf(0.0, 0.0) for head in HEADS}
    loss, _ = compute_loss(scores, batch, plan_of(batch), COMPARISONS_ONLY)
    loss.backward()
    reward, cost = (-scores[head].grad for head in HEADS)  # type: ignore[operator]
    assert reward[0] > 0 > reward[1]
    assert cost[0] < 0 < cost[1]
    torch.testing.assert_close(reward, -cost)
    assert preference_score("reward", 2.0) == 2.0
    assert preference_score("cost", 2.0) == -2.0


def test_sub_dimensions_learn_from_the_comparisons_that_have_their_label() -> None:
    """The helpfulness of both comparisons is known, the aesthetics of the second alone: each head's own mean."""
    batch = make_batch([[0, 1], [2, 1]], [], [0, 0, 0])
    rows = {name: np.zeros((0, 2), np.int64) for name in SUB_HEADS} | {"aesthetics": np.array([[1, 2]])}
    batch = replace(
        batch,
        comparisons={**batch.comparisons, **rows},
        ties={**batch.ties, **{name: np.zeros((0, 2), np.int64) for name in SUB_HEADS}},
    )
    scores = {head: leaf(0.4, -0.3, 1.1) for head in ("reward", *SUB_HEADS)}
    loss, sums = compute_loss(scores, batch, plan_of(batch), COMPARISONS_ONLY)
    loss.backward()

    def nll(margin: float) -> float:
        return math.log1p(math.exp(-margin))

    assert sums["comparison/reward"] == pytest.approx((nll(0.7) + nll(1.4)) / 2)
    assert sums["comparison/aesthetics"] == pytest.approx(nll(-1.4))
    assert sums["credit/aesthetics"] == 0.0
    gradients = {head: values.grad.tolist() for head, values in scores.items() if values.grad is not None}
    slope = 1.0 / (1.0 + math.exp(-1.4))
    assert gradients["aesthetics"] == pytest.approx([0.0, -slope, slope])
    assert gradients["correctness"] == [0.0, 0.0, 0.0]  # no label, no gradient, but part of the backward pass


def test_every_head_but_the_cost_is_higher_for_what_is_preferred() -> None:
    assert {head: preference_score(head, 1.0) for head in ALL_HEADS} == {
        head: -1.0 if head == "cost" else 1.0 for head in ALL_HEADS
    }
    assert SUB_HEADS == SUB_DIMENSIONS


def test_a_cost_counts_as_right_where_the_safer_video_costs_less() -> None:
    batch = make_batch([], [[0, 1], [1, 0]], [1, -1])
    _, sums = compute_loss({"cost": leaf(-3.0, 2.0)}, batch, plan_of(batch), LossConfig())
    assert sums["credit/cost"] == 1.0
    assert sums["sign_credit"] == 2.0
    _, sums = compute_loss({"cost": leaf(3.0, -2.0)}, batch, plan_of(batch), LossConfig())
    assert sums["sign_credit"] == 0.0


def test_loss_equals_its_formula() -> None:
    batch = make_batch([], [[0, 1], [2, 1]], [1, -1, 0])
    cost = leaf(0.3, -0.4, 1.2)
    loss, sums = compute_loss({"cost": cost}, batch, plan_of(batch), LossConfig(0.5, 2.0, 0.1))

    def nll(x: float) -> float:
        return math.log1p(math.exp(-x))

    expected = {
        "comparison/cost": 0.5 * (nll(-0.4 - 0.3) + nll(-0.4 - 1.2)) / 2,
        "sign/cost": 2.0 * (nll(-0.3) + nll(-0.4)) / 2,
        "regularization/cost": 0.1 * (0.09 + 0.16 + 1.44) / 3,
    }
    for name, value in expected.items():
        assert sums[name] == pytest.approx(value)
    assert loss.item() == pytest.approx(sum(expected.values()))


@pytest.mark.parametrize("head", HEADS)
def test_missing_labels_bring_neither_loss_nor_gradient(head: str) -> None:
    # Videos 2 and 3 are in no comparison and of unknown safety, whatever their scores.
    weights = LossConfig(regularization=0.0)
    labelled, with_unknown = make_batch([[0, 1]], [[1, 0]], [1, -1]), make_batch([[0, 1]], [[1, 0]], [1, -1, 0, 0])
    few, many = leaf(0.5, -0.2), leaf(0.5, -0.2, 700.0, -1e30)
    plan = plan_of(with_unknown)
    expected, _ = compute_loss({head: few}, labelled, plan, weights)
    loss, sums = compute_loss({head: many}, with_unknown, plan, weights)
    assert loss.item() == expected.item()
    expected.backward()
    loss.backward()
    assert few.grad is not None
    assert many.grad is not None
    assert many.grad.tolist() == [*few.grad.tolist(), 0.0, 0.0]
    assert sums[f"credit/{head}"] == 1.0


@pytest.mark.parametrize("head", HEADS)
def test_nothing_labelled_is_exactly_zero_and_still_reaches_the_scores(head: str) -> None:
    batch = replace(make_batch([], [], [0, 0]), counted=np.zeros(2, bool))
    scores = leaf(3.0, -1.0)
    loss, _ = compute_loss(
        {head: scores},
        batch,
        StepPlan((0,), {"helpfulness": 3, "harmlessness": 2}, NO_TIES, NO_TIES, {}, 4, (), 5),
        LossConfig(),
    )
    assert loss.item() == 0.0
    loss.backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [0.0, 0.0]


def test_parts_of_ranks_add_up_to_the_step() -> None:
    whole = make_batch([[0, 1], [2, 3], [4, 3]], [[1, 0], [4, 2]], [1, 0, -1, 0, 1])
    parts = (make_batch([[0, 1]], [[1, 0]], [1, 0]), make_batch([[0, 1], [2, 1]], [[2, 0]], [-1, 0, 1]))
    values = torch.tensor([0.1, -0.7, 1.3, 0.4, -0.2], dtype=torch.float64)
    plan = plan_of(whole)
    scores = dict.fromkeys(HEADS, values)
    loss, sums = compute_loss(scores, whole, plan, LossConfig())
    found = [
        compute_loss(dict.fromkeys(HEADS, part), batch, plan, LossConfig())
        for part, batch in zip((values[:2], values[2:]), parts, strict=True)
    ]
    assert sum(part.item() for part, _ in found) == pytest.approx(loss.item(), rel=1e-12)
    for name, value in sums.items():
        assert sum(part[name].item() for _, part in found) == pytest.approx(value.item(), rel=1e-12)


def test_a_row_leaves_out_what_has_no_label() -> None:
    batch = make_batch([[0, 1]], [], [0, 0])
    objective = compute_objective({head: leaf(1.0, 0.5) for head in HEADS}, batch, plan_of(batch), LossConfig())
    row = summarize("eval", totals_of(objective), [plan_of(batch)], HEADS)
    assert row["eval/accuracy/reward"] == 1.0
    assert row["eval/margin/reward"] == 0.5
    assert "eval/accuracy/cost" not in row
    assert "eval/sign_accuracy" not in row


def test_accuracy_is_over_comparisons_not_over_steps() -> None:
    batches = [make_batch([[0, 1], [0, 1], [0, 1]], [], [0, 0]), make_batch([[1, 0]], [], [0, 0])]
    plans = [plan_of(batch) for batch in batches]
    steps = [
        compute_objective({"reward": leaf(1.0, 0.0)}, batch, plan, LossConfig())
        for batch, plan in zip(batches, plans, strict=True)
    ]
    assert summarize("train", totals_of(*steps), plans, ("reward",))["train/accuracy"] == 0.75


@pytest.mark.parametrize("prefix", ["train", "eval"])
def test_a_new_term_is_part_of_the_loss_that_is_reported(prefix: str) -> None:
    """Whatever it is called: what is trained on and what chooses the checkpoint are the sum of the same terms."""
    batch = make_batch([[0, 1]], [[1, 0]], [1, -1])
    objective = compute_objective({head: leaf(1.0, 0.5) for head in HEADS}, batch, plan_of(batch), LossConfig())
    longer = Objective({**objective.terms, "spread/reward": torch.tensor(0.25, dtype=torch.float64)}, objective.sums)
    assert longer.loss.item() == pytest.approx(objective.loss.item() + 0.25)
    row = summarize(prefix, totals_of(longer), [plan_of(batch)], HEADS)
    assert row[f"{prefix}/loss"] == pytest.approx(longer.loss.item())
    assert row[f"{prefix}/spread_loss/reward"] == 0.25


@pytest.mark.parametrize("value", [math.nan, -math.inf, 3e38])  # the last is finite, but a margin of it need not be
def test_score_that_is_not_finite_is_named(value: float) -> None:
    batch = make_batch([[0, 1]], [[2, 1]], [1, 0, -1])
    scores = {"reward": torch.zeros(3), "cost": torch.tensor([0.0, value, 1.0])}
    with pytest.raises(CheckpointError, match=rf"^step 3: .*not finite for {batch.names[1]};.*learning_rate"):
        tally(scores, batch).check_finite("step 3")


def test_loss_that_is_not_finite_names_its_videos() -> None:
    batch = make_batch([[0, 1]], [], [0, 0])
    scores = {"reward": torch.tensor([1e30, 0.0])}
    with pytest.raises(CheckpointError, match=rf"the loss is not finite for {', '.join(batch.names)};"):
        tally(scores, batch).check_finite("step 3")


def test_many_names_are_cut() -> None:
    assert name_some([*"abcdefgh"]) == "a, b, c, d, e, f, g, h"
    assert name_some([*"abcdefghij"]) == "a, b, c, d, e, f, g, h and 2 more"


def warnings_for(losses: list[float], weight: float = 1.0) -> list[str]:
    said: list[str] = []
    recent = {"reward": deque[float](maxlen=20)}
    plan = StepPlan((0,), {"helpfulness": 2, "harmlessness": 0}, NO_TIES, NO_TIES, {}, 0, (), 3)
    for loss in losses:
        totals = {"loss/comparison/reward": weight * loss}
        warn_if_stuck(recent, totals, plan, LossConfig(comparison=weight), said.append)
    return said


def test_ties_join_the_mean_of_the_comparisons() -> None:
    """Float64 arithmetic by hand: one win and one tie, of a head whose preferred side is the lower one."""
    batch = make_batch([], [[0, 1]], [0, 0, 0], ties=([], [[1, 2]]))
    costs, theta = [-0.4, 0.9, 0.2], 3.0
    weights = LossConfig(ties="rao_kupper", tie_threshold=theta, sign=0.0, regularization=0.0)
    loss, sums = compute_loss({"cost": leaf(*costs)}, batch, plan_of(batch), weights)
    win = math.exp(0.4) / (math.exp(0.4) + theta * math.exp(-0.9))
    a, b = math.exp(-0.9), math.exp(-0.2)
    tie = (theta**2 - 1) * a * b / ((a + theta * b) * (b + theta * a))
    assert loss.item() == pytest.approx(-(math.log(win) + math.log(tie)) / 2, rel=1e-12)
    assert sums["credit/cost"] == 1.0  # a tie is nobody's right or wrong answer


def test_prompts_count_alike_however_many_comparisons_they_have() -> None:
    videos = [Video(np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1))] * 5
    sizes, rows = (2, 3), ([[0, 1]], [[0, 1], [1, 2], [0, 2]])
    groups = [
        PromptGroup(
            f"p{number}",
            "",
            tuple(VideoSample(f"p{number}", "", None, None, f"v{i}", None, "-", *[None] * 4, {}) for i in range(size)),
            {name: np.array(labels if name == "helpfulness" else [], int).reshape(-1, 2) for name in DIMENSIONS},
            {name: np.zeros((0, 2), int) for name in DIMENSIONS},
            np.zeros(size, int),
            np.zeros((size, NUM_LABEL_COLUMNS), np.float32),
        )
        for number, (size, labels) in enumerate(zip(sizes, rows, strict=True))
    ]
    batch, plan = collate(groups, videos), plan_step([0, 1], groups)
    scores = [0.3, -1.0, 2.0, 0.5, 0.1]
    loss, _ = compute_loss({"reward": leaf(*scores)}, batch, plan, replace(COMPARISONS_ONLY, unit="prompt"))
    expected = [
        np.mean([math.log1p(math.exp(scores[start + b] - scores[start + a])) for a, b in labels])
        for start, labels in zip((0, 2), rows, strict=True)
    ]
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-6)


def test_a_model_that_ignores_ties_is_told_from_one_that_learns() -> None:
    """Two prompts, of which the one has a comparison and a tie, the other a comparison."""
    plan = StepPlan(
        (0, 1),
        {"helpfulness": 2, "harmlessness": 0},
        {"helpfulness": 1, "harmlessness": 0},
        {"helpfulness": 2, "harmlessness": 0},
        {"helpfulness": 1.5, "harmlessness": 0.0},
        0,
        (),
        4,
    )
    batch = make_batch([[0, 1], [2, 3]], [], [0, 0, 0, 0], ties=([[0, 1]], []))
    batch.label_weights["helpfulness"][:] = [0.5, 1.0, 0.5]
    for unit in ("comparison", "prompt"):
        weights = LossConfig(unit=unit, ties="rao_kupper", tie_threshold=3.0, sign=0.0, regularization=0.0)
        equal, _ = compute_loss({"reward": leaf(0.0, 0.0, 0.0, 0.0)}, batch, plan, weights)
        recent, said = {"reward": deque[float](maxlen=20)}, list[str]()
        for _ in range(20):
            warn_if_stuck(recent, {"loss/comparison/reward": equal.item()}, plan, weights, said.append)
        assert len(said) == 1, unit


def test_warning_where_the_loss_stays_at_ln_2() -> None:
    assert not warnings_for([math.log(2)] * 19)
    assert len(warnings_for([math.log(2) + 5e-4] * 20, weight=0.5)) == 1
    assert len(warnings_for([math.log(2)] * 40)) == 2


def test_no_warning_where_the_loss_passes_ln_2() -> None:
    assert not warnings_for([0.9 - 0.01 * step for step in range(60)])
    assert not warnings_for([0.0] * 60, weight=0.0)
