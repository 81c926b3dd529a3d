"""The Lagrangian score against exact fractions, the choice under swap, and every kind of explanation."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.lagrangian import choose, explain_choice, lagrangian_score, net_reward
from safe_rlhf_video.stats.credit import TIE_TOLERANCE

finite = st.floats(-50, 50)
# Coarse numbers, so that equal rewards, equal costs and costs at the limit turn up often.
coarse = st.sampled_from([-1.0, -0.001, -0.0, 0.0, 0.3, 1.0, 1.0 + 1e-7]) | finite
pairs = st.tuples(coarse, coarse)
multipliers = st.sampled_from([0.0, 1e-4, 0.5, 1.0, 5.0]) | st.floats(0, 100)

MIRROR = {"v1": "v2", "v2": "v1", "tie": "tie"}


def decide(rewards, costs, multiplier, tolerance=TIE_TOLERANCE):
    """As every choice is made: by net rewards, since the limit and the division of the score round."""
    net_0, net_1 = (net_reward(r, c, multiplier) for r, c in zip(rewards, costs, strict=True))
    return choose(net_0, net_1, tolerance)


def explain(rewards, costs, multiplier=1.0, limit=0.0):
    return explain_choice(rewards, costs, multiplier, limit, decide(rewards, costs, multiplier))


@given(finite, finite, multipliers, finite)
def test_score_is_the_formula(reward, cost, multiplier, limit):
    r, c, weight, d = map(Fraction, (reward, cost, multiplier, limit))
    exact = (r - weight * (c - d)) / (1 + weight)
    assert lagrangian_score(reward, cost, multiplier, limit) == pytest.approx(float(exact), rel=1e-12, abs=1e-12)


def test_score_of_arrays_equals_score_of_floats_and_keeps_dtype():
    rewards, costs = np.array([1.9, 0.85]), np.array([2.1, -0.4])
    scores = lagrangian_score(rewards, costs, 5.0, 0.25)
    assert scores.tolist() == [lagrangian_score(r, c, 5.0, 0.25) for r, c in zip(rewards, costs, strict=True)]
    assert lagrangian_score(rewards.astype(np.float32), costs.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("multiplier", [-0.1, math.inf, -math.inf, math.nan])
def test_bad_multiplier_is_refused_in_one_line(multiplier):
    with pytest.raises(ConfigError, match=r"^lagrange_multiplier must be a finite number >= 0, got .*$"):
        lagrangian_score(1.0, 1.0, multiplier)


def test_other_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="cost_limit"):
        lagrangian_score(1.0, 1.0, 1.0, math.nan)
    with pytest.raises(ConfigError, match="tolerance"):
        choose(0.0, 1.0, tolerance=-1.0)
    with pytest.raises(ValueError, match="finite"):
        choose(math.nan, 1.0)
    with pytest.raises(ValueError, match="finite"):
        explain_choice((1.0, math.nan), (0.0, 0.0), 1.0, 0.0, "v1")


def test_tolerance_is_part_of_the_tie():
    assert choose(0.5, 0.0, tolerance=0.5) == "tie"
    assert choose(np.nextafter(0.5, 1.0), 0.0, tolerance=0.5) == "v1"
    assert choose(0.0, 0.0, tolerance=0.0) == "tie"


@given(pairs, pairs, multipliers, coarse, st.sampled_from([0.0, TIE_TOLERANCE, 1.0]))
@example((-0.001, -1.0), (-0.001, -1.0), 1.0, -0.001, 0.0)  # a tie, and two scores that differ by rounding
def test_choice_and_explanation_mirror_under_swap(rewards, costs, multiplier, limit, tolerance):
    preferred = decide(rewards, costs, multiplier, tolerance)
    swapped = decide(rewards[::-1], costs[::-1], multiplier, tolerance)
    assert swapped == MIRROR[preferred]

    sentence = explain_choice(rewards, costs, multiplier, limit, preferred)
    mirrored = explain_choice(rewards[::-1], costs[::-1], multiplier, limit, swapped)
    assert mirrored == sentence.replace("v1", "#").replace("v2", "v1").replace("#", "v2")
    assert "\n" not in sentence
    assert sentence.endswith(".")
    assert ("both are above the cost limit" in sentence) == (min(costs) > limit)


@pytest.mark.parametrize(
    ("rewards", "costs", "multiplier", "sentence"),
    [
        pytest.param(
            (1.9, 0.85), (2.1, -0.4), 5.0,
            "v2 is preferred: v1 is more helpful (reward 1.90 against 0.85) but unsafe (cost +2.10 > limit 0.00), "
            "and at lambda = 5.00 its extra cost outweighs its extra reward.",
            id="safer wins over unsafe",
        ),
        pytest.param(
            (0.85, 1.9), (0.4, 2.1), 5.0,
            "v1 is preferred: v2 is more helpful (reward 1.90 against 0.85) but less safe (cost +2.10 against +0.40), "
            "and at lambda = 5.00 its extra cost outweighs its extra reward; both are above the cost limit 0.00.",
            id="safer wins, both unsafe",
        ),
        pytest.param(
            (1.9, 0.85), (-0.1, -0.4), 1.0,
            "v1 is preferred: it is more helpful (reward 1.90 against 0.85) but less safe (cost -0.10 against -0.40), "
            "and at lambda = 1.00 its extra reward outweighs its extra cost.",
            id="more helpful wins though costlier",
        ),
        pytest.param(
            (1.9, 0.85), (0.0, -0.4), 1.0,
            "v1 is preferred: it is more helpful (reward 1.90 against 0.85) but less safe (cost +0.00 against -0.40), "
            "and at lambda = 1.00 its extra reward outweighs its extra cost.",
            id="a cost at the limit is not unsafe",
        ),
        pytest.param(
            (1.9, 0.85), (0.3, -0.4), 0.001,
            "v1 is preferred: it is more helpful (reward 1.90 against 0.85) but unsafe (cost +0.30 > limit 0.00), "
            "and at lambda = 0.001 its extra reward outweighs its extra cost.",
            id="more helpful wins though unsafe",
        ),
        pytest.param(
            (1.9, 0.85), (-0.4, 2.1), 1.0,
            "v1 is preferred: it is more helpful (reward 1.90 against 0.85) and safer (cost -0.40 against +2.10).",
            id="better on both",
        ),
        pytest.param(
            (1.0, 1.0), (0.001, -0.001), 1.0,
            "v2 is preferred: it is equally helpful (reward 1.00) and safer (cost -0.001 against +0.001).",
            id="only safer, and digits to see it",
        ),
        pytest.param(
            (1.0, 2.0), (-0.5, -0.5), 1.0,
            "v2 is preferred: it is more helpful (reward 2.00 against 1.00) and equally safe (cost -0.50).",
            id="only more helpful",
        ),
        pytest.param(
            (1.9, 0.85), (2.1, -0.4), 0.0,
            "v1 is preferred: it is more helpful (reward 1.90 against 0.85), and lambda = 0 ignores cost; "
            "it is unsafe (cost +2.10 > limit 0.00).",
            id="lambda 0",
        ),
        pytest.param(
            (1.0, 2.0), (-2.0, -1.0), 1.0,
            "neither is preferred: v2 has reward 2.00 and cost -1.00, v1 has reward 1.00 and cost -2.00, "
            "and at lambda = 1.00 their scores are equal within the tolerance.",
            id="tie by trade-off",
        ),
        pytest.param(
            (1.0, 1.0), (2.0, 2.0), 1.0,
            "neither is preferred: both have reward 1.00 and cost +2.00; both are above the cost limit 0.00.",
            id="tie of equals",
        ),
        pytest.param(
            (1.0, 1.0), (2.0, -3.0), 0.0,
            "neither is preferred: v2 has reward 1.00 and cost -3.00, v1 has reward 1.00 and cost +2.00; "
            "the rewards are equal within the tolerance, and lambda = 0 ignores cost.",
            id="tie at lambda 0",
        ),
    ],
)  # fmt: skip
def test_sentences(rewards, costs, multiplier, sentence):
    assert explain(rewards, costs, multiplier) == sentence


def test_an_explanation_never_argues_for_the_loser():
    with pytest.raises(ValueError, match="v1 does not have the higher"):
        explain_choice((0.0, 1.0), (0.0, 0.0), 1.0, 0.0, "v1")
    with pytest.raises(ValueError, match="preferred must be"):
        explain_choice((0.0, 1.0), (0.0, 0.0), 1.0, 0.0, "video_1")  # type: ignore[arg-type]
