"""Intervals and tests over prompts: by hand and by brute force, with few prompts, few errors and unequal prompts."""

import itertools
import math

import numpy as np
import pytest

from safe_rlhf_video.kinds.label import judge_label
from safe_rlhf_video.stats.checks import MIN_PROMPTS, too_few_prompts
from safe_rlhf_video.stats.intervals import (
    balanced_interval,
    difference_interval,
    effective_size,
    mean_interval,
    prompt_share_interval,
    rate_difference_interval,
    ratio_interval,
    score_interval,
    share_interval,
    student,
    two_class_difference_interval,
)
from safe_rlhf_video.stats.significance import holm, sign_flip
from safe_rlhf_video.stats.thresholds import Target


def test_no_interval_is_certain_and_few_prompts_have_none() -> None:
    right, prompts = np.ones(40), np.repeat(np.arange(10), 4)
    t2 = 2.262157**2  # of Student with 9 degrees of freedom
    assert share_interval(right, prompts) == pytest.approx((10 / (10 + t2), 1.0), abs=1e-6)
    assert share_interval(np.zeros(26), np.arange(26))[0] == 0
    assert share_interval(np.zeros(26), np.arange(26))[1] > 0.13
    assert difference_interval(np.zeros(40), prompts)[1] > 0.2
    assert ratio_interval(right, right, prompts)[0] < 0.8
    assert rate_difference_interval(np.zeros(10), np.zeros(10), 40, 40)[1] > 0.2
    few = prompts % (MIN_PROMPTS - 1)
    assert [share_interval(right, few), difference_interval(right, few), ratio_interval(right, right, few)] == [
        None
    ] * 3
    assert mean_interval(np.arange(9.0)) is prompt_share_interval(np.ones(9), 30) is None
    assert too_few_prompts(9) == "no interval: 9 prompts, fewer than 10"
    assert too_few_prompts(10) is None


def test_effective_size_by_hand() -> None:
    """Ten prompts of four, of which one is all wrong: as ten values; of single ones, as many as there are."""
    wrong_prompt = np.repeat([1.0] * 9 + [0.0], 4)
    assert effective_size(wrong_prompt, np.repeat(np.arange(10), 4)) == (pytest.approx(9), 10)  # K / (K - 1)
    alone = np.array([1.0] * 30 + [0.0] * 10)
    assert effective_size(alone, [f"p{row}" for row in range(40)]) == (pytest.approx(39), 40)
    # Wrong where it is wrong once: alike within prompts by less than chance would have it, and no more than 40 values.
    spread = np.tile([1.0, 1.0, 1.0, 0.0], 10)
    spread[:4] = 1.0
    assert effective_size(spread, np.repeat(np.arange(10), 4)) == (pytest.approx(40), 10)


def test_one_large_prompt_does_not_decide_how_sure_a_share_is() -> None:
    """Where whole prompts fail, their sizes say how uncertain a share is, and not only those that failed here."""
    sizes = np.array([30] + [1] * 29)
    prompts = np.repeat(np.arange(30), sizes)
    fails = np.isin(prompts, (5, 9))  # two of the small ones
    size, _ = effective_size(1.0 - fails, prompts)
    assert size < 8  # by the two that failed alone: 38


def test_the_end_near_one_is_not_short_of_clopper_and_pearson() -> None:
    low, high = score_interval(0.9, 10, 11)
    assert 1 - high == pytest.approx(1 - 0.975**0.1, rel=1e-6)  # the exact end of 1 of 10
    t = 2.228139
    assert low == pytest.approx((0.9 + t**2 / 20 - t * math.sqrt(0.09 / 10 + t**2 / 400)) / (1 + t**2 / 10), abs=1e-6)


def test_a_balanced_accuracy_counts_prompts_of_both_classes() -> None:
    random = np.random.default_rng(0)
    prompts = np.repeat(np.arange(60), 4)
    is_safe = np.tile([True, True, True, False], 60)
    right = (random.random(240) < np.where(is_safe, 0.9, 0.7)).astype(float)
    low, high = balanced_interval(right, is_safe, prompts)
    (a, b), (c, d) = (share_interval(right[rows], prompts[rows]) for rows in (is_safe, ~is_safe))
    middle = (right[is_safe].mean() + right[~is_safe].mean()) / 2
    assert (a + c) / 2 < low < middle < high < (b + d) / 2
    assert balanced_interval(right, np.arange(240) > 20, prompts) is None  # the first class is of 6 prompts


def test_a_difference_of_two_class_figures_is_as_sure_as_the_rarer_class() -> None:
    prompts = np.arange(100)
    differences = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 100)
    low, high = difference_interval(differences, prompts)
    narrower, wider = two_class_difference_interval(differences, prompts < 10, prompts)
    assert wider - narrower == pytest.approx((high - low) * student(10) / student(100))
    # An item that is alone in its class has no influence on what is seen to vary, and all influence on the figure.
    for rare in (prompts < 9, prompts >= 9, prompts < 0):
        assert two_class_difference_interval(differences, rare, prompts) is None


def test_a_mean_is_given_more_room_on_the_side_of_its_tail() -> None:
    values = np.random.default_rng(0).exponential(size=40)
    low, high = mean_interval(values)
    assert high - values.mean() > 1.2 * (values.mean() - low)
    half = 2.022691 * values.std(ddof=1) / math.sqrt(40)
    assert values.mean() - low == pytest.approx(half, rel=1e-6)  # Student's on the other side
    assert mean_interval(np.full(40, 0.3)) is None


def test_a_target_is_held_or_missed_by_the_whole_interval() -> None:
    prompts = np.arange(100).astype(str)
    applies = np.zeros(100, bool)

    def holds(num_flagged: int, target: Target) -> bool | None:
        flagged = np.arange(100) < num_flagged
        rows = applies if target.kind == "false_positive_rate" else ~applies
        return judge_label(flagged * 1.0, flagged, rows, prompts, target, True).holds_target

    rate, recall = Target("false_positive_rate", 0.1), Target("recall", 0.9)
    assert [holds(num, rate) for num in (1, 9, 30)] == [True, None, False]
    assert [holds(num, recall) for num in (99, 91, 70)] == [True, None, False]


def test_signs_of_whole_prompts_are_flipped() -> None:
    random = np.random.default_rng(3)
    values = np.array([0.0, 0.5, 1.0])
    for num_prompts in (2, 5, 12):
        prompts = np.concatenate([random.integers(num_prompts, size=60), np.arange(num_prompts)])
        first, second = values[random.integers(3, size=(2, len(prompts)))]
        sums = np.bincount(prompts, weights=first - second)
        flipped = [abs(np.dot(signs, sums)) for signs in itertools.product((-1, 1), repeat=num_prompts)]
        expected = np.mean([total >= abs(sums.sum()) - 1e-9 for total in flipped])
        assert sign_flip(first, second, prompts).p_value == pytest.approx(expected)
        assert sign_flip(second, first, prompts).p_value == pytest.approx(expected)


def test_comparisons_of_one_prompt_are_no_evidence_of_their_own() -> None:
    first, second = np.array([1.0] * 15 + [0.0] * 5 + [1.0] * 80), np.array([0.0] * 15 + [1.0] * 85)
    alone = sign_flip(first, second, np.arange(100))
    assert (alone.first_better, alone.second_better, alone.num) == (15.0, 5.0, 100)
    assert alone.p_value == pytest.approx(2 * sum(math.comb(20, k) for k in range(6)) / 2**20)  # the binomial test
    # All that the first wins is one prompt: a coin may give it to either.
    assert sign_flip(first, second, [0] * 15 + [1] * 5 + [2] * 80).p_value == 1.0
    assert sign_flip(first, first, np.arange(100)).p_value == 1.0
    assert 0 < sign_flip(np.ones(900), np.zeros(900), np.arange(900)).p_value < 1e-250
    assert sign_flip(np.ones(29), np.zeros(29), np.arange(29)).reason == "29 comparisons, fewer than 30"


def test_many_prompts_are_still_counted_exactly() -> None:
    random = np.random.default_rng(0)
    prompts = np.repeat(np.arange(4000), 3)
    first, second = random.integers(0, 2, size=(2, 12000)).astype(float)
    sums = np.bincount(prompts, weights=first - second)
    z = abs(sums.sum()) / math.sqrt(sums @ sums)
    assert sign_flip(first, second, prompts).p_value == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.01)


def test_holm_corrects_step_by_step() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    "call",
    [
        lambda: share_interval([1.0, 2.0], [0, 1]),
        lambda: share_interval([1.0], [0, 1]),
        lambda: share_interval([math.nan], [0]),
        lambda: difference_interval([math.inf], [0]),
        lambda: ratio_interval([1.0], [0.0], [0]),
        lambda: sign_flip([0.3], [1.0], [0]),
        lambda: sign_flip([1.0], [1.0], [0, 1]),
    ],
)
def test_what_has_no_answer_is_refused(call) -> None:
    with pytest.raises(ValueError):
        call()
