"""What benchmarks/safety_promise.py counts: the oracle, what a multiplier does in truth, and which prompts it draws."""

from types import ModuleType

import numpy as np
import pytest
from conftest import ROOT
from scipy.optimize import linprog

from safe_rlhf_video.lagrangian import confident_multiplier, select
from safe_rlhf_video.worlds.video_world import is_held_out


@pytest.fixture
def promise(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import safety_promise

    return safety_promise


def draw_pool(promise: ModuleType, num_prompts: int, num_candidates: int) -> tuple:
    """Candidates whose more helpful ones are the more often harmful, and scores that see both with an error."""
    rng = np.random.default_rng(3)
    is_unsafe = (rng.random((num_prompts, num_candidates)) < 0.25).astype(float)
    helpfulness = rng.normal(size=is_unsafe.shape) + is_unsafe
    rewards = helpfulness + 0.5 * rng.normal(size=is_unsafe.shape)
    costs = 4.0 * is_unsafe - 2.0 + rng.normal(size=is_unsafe.shape)
    return promise.Candidates(rewards, costs, helpfulness, is_unsafe)


def test_the_oracle_is_the_optimum_of_the_linear_programme(promise: ModuleType) -> None:
    pool = draw_pool(promise, 40, 3)
    best = linprog(
        -pool.helpfulness.ravel(),
        A_ub=pool.is_unsafe.reshape(1, -1),
        b_ub=[0.05 * 40],
        A_eq=np.kron(np.eye(40), np.ones(3)),
        b_eq=np.ones(40),
    )
    assert promise.solve_oracle(pool, 0.05) == pytest.approx(-best.fun / 40, abs=1e-9)


@pytest.mark.parametrize("others_only", [False, True])
def test_multipliers_are_judged_by_the_truth_of_what_they_choose(promise: ModuleType, others_only: bool) -> None:
    pool = draw_pool(promise, 603, 4)
    rule = promise.Rule(pool, pool.costs)
    sets = list(np.arange(603).reshape(3, -1))
    # Too few to promise anything: kept is what is promised and true.
    found = promise.judge(rule, 0.05, [*sets[:2], sets[0][:20]], 1.0, 3.0, [*sets[1:], sets[1]], others_only)
    rates, gains, on_fresh = [], [], []
    for number in range(2):
        mine = sets[number]
        multiplier = confident_multiplier(
            pool.rewards[mine], pool.costs[mine], pool.is_unsafe[mine], harm_rate_limit=0.05
        ).lagrange_multiplier
        chosen = select(pool.rewards, pool.costs, multiplier)
        judged = [place for place in range(603) if not (others_only and place in mine)]
        rates.append(np.mean([pool.is_unsafe[place, chosen[place]] for place in judged]))
        gains.append((np.mean([pool.helpfulness[place, chosen[place]] for place in judged]) - 1.0) / 2.0)
        on_fresh.append([np.mean([pool.is_unsafe[i, chosen[i]] for i in one]) <= 0.05 for one in (*sets[1:], sets[1])])
    assert found["rates"] == pytest.approx(rates)
    assert found["gains"] == pytest.approx(gains)
    assert (found["num_kept"], found["num_without"]) == (sum(rate <= 0.05 for rate in rates), 1)
    assert found["num_fresh_sets_kept_by_the_first"] == sum(on_fresh[0])
    assert found["num_kept_on_a_fresh_set"] == sum([on_fresh[0][0], on_fresh[1][1]])


def test_prompts_are_new_ones_and_a_file_is_the_same_each_time(promise: ModuleType) -> None:
    drawn = promise.draw_candidates(0, 1, 2)
    assert drawn == promise.draw_candidates(0, 1, 2)
    assert drawn != promise.draw_candidates(0, 2, 2)
    assert all(is_held_out(prompt.colour, prompt.shape, prompt.motion) for prompt, _ in drawn)
    assert len({clip.seed for _, clips in drawn for clip in clips}) == 2 * len(drawn)
