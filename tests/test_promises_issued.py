"""What benchmarks/promises_issued.py takes for true, and that it runs."""

from types import ModuleType

import numpy as np
import pytest
from conftest import ROOT

from safe_rlhf_video.calibration.multiplier_calibration import Limit
from safe_rlhf_video.lagrangian import select, weigh
from safe_rlhf_video.lagrangian.confidence import LADDER


@pytest.fixture
def issued(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import promises_issued

    monkeypatch.setattr(promises_issued, "POOL", 40)
    return promises_issued


def test_the_truth_of_a_multiplier_is_what_its_choices_do(issued: ModuleType) -> None:
    pool = issued.Pool.draw(np.random.default_rng(0), have_tails=False)
    truth = pool.truth(4, Limit(harm_rate=0.1))
    for at in (0, 300, 801):
        rates = []
        for left_out in range(5):
            some = [place for place in range(5) if place != left_out]
            weights = weigh(pool.costs[:, some], "p_unsafe")
            chosen = select(pool.rewards[:, some], weights, LADDER[at])
            rates.append(np.mean(pool.is_unsafe[:, some][np.arange(40), chosen]))
        assert truth[at] == pytest.approx(np.mean(rates), abs=1e-12)
    drawn = pool.sample(30, np.random.default_rng(1))
    assert {len(row) for row in drawn.rewards} == {2, 3, 4, 5}
    assert [len(row) for row in drawn.costs] == [len(row) for row in drawn.is_unsafe]


def test_the_true_share_above_a_threshold_is_counted(issued: ModuleType) -> None:
    random = np.random.default_rng(0)
    logits = random.random(200_000) + np.where(random.random(200_000) < 0.1, 1.0, 0.0)
    for threshold in (0.4, 1.3):
        assert issued._share_above(threshold, 0.1, 1.0) == pytest.approx((logits > threshold).mean(), abs=0.005)


@pytest.mark.slow
def test_every_row_is_made(issued: ModuleType) -> None:
    rows = [row for number, part in enumerate(issued.PARTS) for row in part(20, np.random.default_rng(number))]
    assert len({(row.promise, row.setting) for row in rows}) == len(rows) > 30
    assert all(row.ok for row in rows)
