"""Metrics against plain loops and expectations against exact sums."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safe_rlhf_video.stats.checks import MIN_COMPARISONS
from safe_rlhf_video.stats.credit import (
    TIE_TOLERANCE,
    SignAccuracy,
    credit,
    expected_credit,
    sign_accuracy,
    tie_aware_credit,
)
from safe_rlhf_video.stats.logistic import fit_logistic
from safe_rlhf_video.stats.probabilities import fit_temperature, fit_tie_threshold, preference_probability, reliability
from safe_rlhf_video.stats.separation import auroc_parts, balanced_parts

margins = st.lists(st.sampled_from([-1.0, -TIE_TOLERANCE, 0.0, TIE_TOLERANCE, 2e-5]) | st.floats(-1e3, 1e3), min_size=1)


@given(margins)
def test_credit_equals_a_plain_loop(values):
    expected = [1.0 if m > TIE_TOLERANCE else 0.5 if m >= -TIE_TOLERANCE else 0.0 for m in values]
    assert credit(values).tolist() == expected
    assert (credit(values) + credit(np.negative(values)) == 1.0).all()


def test_expected_credit_is_the_mean_over_all_labels():
    predicted = np.array([3.0, -0.2, 0.0, 1e-6, 5.0, -5.0])
    true = np.array([0.7, 0.7, 0.7, -4.0, 800.0, 800.0])
    for p, t, expected in zip(predicted, true, expected_credit(predicted, true), strict=True):
        p_video_0 = 1 / (1 + math.exp(-t))
        by_label = p_video_0 * credit([p])[0] + (1 - p_video_0) * credit([-p])[0]
        assert expected == pytest.approx(by_label, abs=1e-15)


def test_expected_credit_is_greatest_for_the_truth():
    true = np.random.default_rng(0).normal(size=500)
    other = true + np.random.default_rng(1).normal(size=500)
    assert (expected_credit(true, true) >= expected_credit(other, true)).all()
    np.testing.assert_allclose(expected_credit(other, true) + expected_credit(-other, true), 1.0, atol=1e-15)


def test_sign_accuracy_counts_by_class_and_leaves_unknown_out():
    costs = np.array([-1.0, -2.0, 3.0, 0.0, 1.0, -1.0, np.nan])
    sign = np.array([1, 1, 1, 1, -1, -1, 0])
    # Safe: right, right, wrong, half = 2.5 of 4. Unsafe: right, wrong = 1 of 2.
    assert sign_accuracy(costs, sign) == SignAccuracy(3.5 / 6, (2.5 / 4 + 1 / 2) / 2, 4, 2)


def test_undefined_sign_figures_are_none():
    assert sign_accuracy([-1.0, 1.0], [1, 1]) == SignAccuracy(0.5, None, 2, 0)
    assert sign_accuracy([1.0, 1.0], [0, 0]) == SignAccuracy(None, None, 0, 0)
    assert sign_accuracy([], []) == SignAccuracy(None, None, 0, 0)


def test_parts_of_figures_of_two_classes_have_their_mean_and_their_standard_error():
    random = np.random.default_rng(0)
    is_positive = random.random(400) < 0.3
    scores = np.round(random.normal(size=400) + is_positive, 1)  # with ties
    couples = [(p > n) + 0.5 * (p == n) for p in scores[is_positive] for n in scores[~is_positive]]
    assert auroc_parts(scores, is_positive).mean() == pytest.approx(np.mean(couples))
    right = credit(np.where(is_positive, scores - 0.5, 0.5 - scores), tie_tolerance=0.0)
    by_class = (right[is_positive].mean() + right[~is_positive].mean()) / 2
    assert balanced_parts(right, is_positive).mean() == pytest.approx(by_class)
    # The parts scatter as the figure does over draws of the items.
    for parts, values in ((auroc_parts, scores), (balanced_parts, right)):
        drawn = [random.integers(400, size=400) for _ in range(1000)]
        figures = [parts(values[rows], is_positive[rows]).mean() for rows in drawn]
        assert parts(values, is_positive).std() / math.sqrt(400) == pytest.approx(np.std(figures), rel=0.1)
        with pytest.raises(ValueError, match="both classes"):
            parts(values, np.ones(400, bool))


def test_reliability_by_a_plain_loop():
    random = np.random.default_rng(0)
    margin = random.normal(size=203) + 0.3
    probability = [1 / (1 + math.exp(-m)) for m in margin]
    rows = sorted((max(p, 1 - p), float(p > 0.5)) for p in probability)
    sizes = [21] * 3 + [20] * 7
    total, start = 0.0, 0
    result = reliability(margin)
    for size, one in zip(sizes, result.bins, strict=True):
        chunk = rows[start : start + size]
        start += size
        predicted, observed = (sum(column) / size for column in zip(*chunk, strict=True))
        assert (one.predicted, one.observed, one.num) == (pytest.approx(predicted), pytest.approx(observed), size)
        total += size * abs(predicted - observed)
    assert result.ece == pytest.approx(total / 203)
    assert result.brier == pytest.approx(sum((1 - p) ** 2 for p in probability) / 203)
    assert result.log_loss == pytest.approx(-sum(map(math.log, probability)) / 203)


def test_equal_probabilities_are_one_value_in_any_order():
    assert reliability(np.zeros(100)).ece == 0.0
    margin = np.repeat([math.log(3), -math.log(3)], 50)  # confidence 0.75, right half of the time
    for seed in range(3):
        found = reliability(margin[np.random.default_rng(seed).permutation(100)])
        assert found.ece == pytest.approx(0.25)


def test_true_probabilities_are_calibrated_and_doubled_margins_are_not():
    random = np.random.default_rng(1)
    true = 2 * random.normal(size=1500)
    sign = np.where(random.random(1500) < preference_probability(true), 1.0, -1.0)
    found, doubled = reliability(true * sign), reliability(2 * true * sign)
    assert found.ece < found.perfect_ece_95 < doubled.ece > 0.05
    # What chance alone gives, by labels that are drawn here.
    redrawn = []
    for _ in range(30):
        signs = np.where(random.random(1500) < preference_probability(true), 1.0, -1.0)
        redrawn.append(reliability(true * signs).ece)
    assert found.perfect_ece == pytest.approx(np.mean(redrawn), rel=0.2)
    assert 0.005 < found.perfect_ece < 0.03


def test_temperature_is_the_minimum_and_knows_no_sides():
    random = np.random.default_rng(1)
    true = 1.5 * random.normal(size=4000)
    label = np.where(random.random(4000) < preference_probability(true), 1.0, -1.0)
    alone = np.arange(4000)
    fitted = fit_temperature(3 * true * label, alone)
    assert fitted.temperature == pytest.approx(3.0, rel=0.1)
    grid = np.linspace(1.5, 6.0, 4501)
    losses = [np.logaddexp(0, -3 * true * label / t).mean() for t in grid]
    assert fitted.temperature == pytest.approx(grid[np.argmin(losses)], abs=1e-3)
    assert fitted.log_loss == pytest.approx(min(losses), abs=1e-8)
    assert fitted.log_loss_before == pytest.approx(np.logaddexp(0, -3 * true * label).mean())
    # Sides and the order of comparisons exchanged; the second moves the sums' last bits.
    assert fit_temperature((-3 * true) * (-label), alone) == fitted
    assert fit_temperature((3 * true * label)[::-1], alone).temperature == pytest.approx(fitted.temperature, rel=1e-12)
    # In closed form: margins of one size with a share p right have T = margin / logit(p).
    two_thirds = fit_temperature([2.0] * 40 + [-2.0] * 20, range(60))
    assert two_thirds.temperature == pytest.approx(2.0 / math.log(2), rel=1e-12)
    small = fit_temperature([2e-8] * 40 + [-2e-8] * 20, range(60))
    assert small.temperature == pytest.approx(2e-8 / math.log(2), rel=1e-9)


@pytest.mark.parametrize(("num_prompts", "of_prompt"), [(30, 1), (60, 4), (100, 5)])
def test_a_temperature_is_kept_only_where_it_is_better_than_none(num_prompts, of_prompt):
    """Margins that are right as they are: every other temperature is worse. Comparisons of a prompt have one answer."""
    random = np.random.default_rng(0)
    prompts = np.repeat(np.arange(num_prompts), of_prompt)
    kept, fitted = [], []
    for _ in range(500):
        true = 1.5 * random.normal(size=num_prompts)
        label = np.where(random.random(num_prompts) < preference_probability(true), 1.0, -1.0)
        found = fit_temperature((true * label)[prompts], prompts)
        if found.fitted is None:
            continue
        kept.append(found.temperature == found.fitted)
        fitted.append((found.fitted, found.standard_error))
        if not kept[-1] and len(prompts) < 300:
            assert "do not show that the fitted" in found.reason
        elif not kept[-1]:
            assert (found.temperature, found.reason, found.log_loss) == (1.0, None, found.log_loss_before)
    assert np.mean(kept) <= 0.06 + 2 * math.sqrt(0.06 * 0.94 / 500)
    # The standard error is that of prompts; of the rare fits that are far off it is of no use.
    values, errors = np.array(fitted).T
    assert np.median(errors) == pytest.approx(np.median(np.abs(values - 1.0)) * 1.4826, rel=0.25)


def test_logistic_fit_is_the_minimum_of_its_loss():
    random = np.random.default_rng(0)
    score = 1e3 + 50.0 * random.normal(size=4000)
    outcome = random.random(4000) < 1 / (1 + np.exp(-(0.04 * score - 42.0)))
    slope, intercept = fit_logistic(score, outcome)
    assert slope == pytest.approx(0.04, rel=0.1)
    target = np.where(outcome, (outcome.sum() + 1) / (outcome.sum() + 2), 1 / ((~outcome).sum() + 2))
    residual = 1 / (1 + np.exp(-(slope * score + intercept))) - target
    assert residual.sum() == pytest.approx(0.0, abs=1e-6)
    assert (residual * (score - 1e3)).sum() == pytest.approx(0.0, abs=1e-4)
    # Scores that part the outcomes still have a finite slope, and scores of one value a slope of 0.
    assert 0 < fit_logistic([-1.0, -2.0, 1.0, 2.0], [0, 0, 1, 1])[0] < 10
    slope, intercept = fit_logistic([3.0] * 4, [0, 0, 0, 1])
    assert slope * 3.0 + intercept == pytest.approx(math.log(2 / 4), abs=0.1)
    with pytest.raises(ValueError, match="both outcomes"):
        fit_logistic([1.0, 2.0], [1, 1])


@pytest.mark.parametrize(
    ("margin", "reason"),
    [
        ([1.0, -1.0, 3.0] * 9, "27 comparisons, fewer than 30"),
        ([0.5] * 40, "predicted rightly"),
        ([0.0] * 40, "do not agree"),
        ([1.0] * 20 + [-1.0] * 20, "do not agree"),
        ([1.0] * 10 + [-1.0] * 30, "do not agree"),
        ([1.0] * 30 + [-1.0] * 10, "40 comparisons do not show that the fitted 0.91 (standard error"),
    ],
)
def test_no_temperature_has_a_reason(margin, reason):
    fitted = fit_temperature(margin, range(len(margin)))
    assert fitted.temperature is None
    assert fitted.log_loss is None
    assert reason in fitted.reason
    assert "9 prompts, fewer than 10" in fit_temperature(np.tile([1.0, -0.1], 50), np.arange(100) % 9).reason


def test_fewer_comparisons_than_the_least_have_no_figure():
    few, enough = MIN_COMPARISONS - 1, MIN_COMPARISONS
    result = reliability(np.zeros(few))
    assert (result.ece, result.brier, result.log_loss, result.bins) == (None, None, None, ())
    assert "fewer than 30" in result.reason
    assert reliability(np.zeros(enough)).brier == 0.25
    assert fit_temperature([], []).log_loss_before is None


def test_tie_aware_accuracy_and_its_threshold_by_brute_force():
    random = np.random.default_rng(2)
    for _ in range(50):
        margin = random.integers(-4, 8, size=40) / 4
        tied = random.random(40) < np.exp(-np.abs(margin))
        candidates = [0.0, *np.unique(np.abs(margin))]
        totals = []
        for threshold in candidates:
            total = sum((abs(m) <= threshold) if t else m > threshold for m, t in zip(margin, tied, strict=True))
            assert tie_aware_credit(margin, tied, threshold).sum() == total
            totals.append(total)
        assert fit_tie_threshold(margin, tied) == candidates[int(np.argmax(totals))]
    assert fit_tie_threshold([1.0, 2.0], [False, False]) is None
    assert fit_tie_threshold([1.0, 2.0], [True, True]) is None


@pytest.mark.parametrize(
    "call",
    [
        lambda: credit([math.nan]),
        lambda: credit([[1.0]]),
        lambda: expected_credit([1.0, 2.0], [1.0]),
        lambda: sign_accuracy([1.0], [2]),
        lambda: sign_accuracy([math.nan], [1]),
        lambda: preference_probability([1.0], 0.0),
        lambda: reliability([math.inf]),
        lambda: reliability([1.0] * 40, 0.0),
    ],
)
def test_what_has_no_answer_is_refused(call):
    with pytest.raises(ValueError):
        call()
