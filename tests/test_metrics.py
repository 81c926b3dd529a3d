"""Metrics against plain loops, expectations against exact sums, and intervals against brute-force resampling."""

import itertools
import math

import numpy as np
import pytest
from conftest import ROOT
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
from safe_rlhf_video.stats.intervals import mean_interval, ratio_interval
from safe_rlhf_video.stats.logistic import fit_logistic
from safe_rlhf_video.stats.probabilities import fit_temperature, fit_tie_threshold, preference_probability, reliability
from safe_rlhf_video.stats.separation import auroc_parts, balanced_parts
from safe_rlhf_video.stats.significance import holm, mcnemar

margins = st.lists(st.sampled_from([-1.0, -TIE_TOLERANCE, 0.0, TIE_TOLERANCE, 2e-5]) | st.floats(-1e3, 1e3), min_size=1)


def clustered_data(num_clusters=60, seed=0):
    """Values that share a strong effect inside each cluster, as comparisons of one prompt do."""
    random = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(num_clusters), random.integers(1, 9, num_clusters))
    difficulty = random.normal(size=num_clusters)[clusters]
    numerator = 2.0 + 0.5 * difficulty + 0.1 * random.normal(size=len(clusters))
    denominator = 3.0 + 0.6 * difficulty + 0.1 * random.normal(size=len(clusters))
    return numerator, denominator, clusters


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


def test_mean_interval_equals_brute_force_resampling_of_rows():
    values, _, clusters = clustered_data()
    random = np.random.default_rng(7)
    rows = [np.flatnonzero(clusters == c) for c in range(60)]
    means = [values[np.concatenate([rows[c] for c in random.integers(60, size=60)])].mean() for _ in range(4000)]

    low, high = mean_interval(values, clusters, num_samples=4000, level=0.9)

    # Each end carries Monte Carlo noise of about 1.5% of the interval's width.
    noise = 0.05 * (high - low)
    assert [low, high] == pytest.approx(list(np.quantile(means, [0.05, 0.95])), abs=noise)
    assert low < values.mean() < high


def test_interval_covers_the_truth_as_often_as_it_says():
    covered = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        clusters = np.repeat(np.arange(80), 3)
        values = random.normal(size=80)[clusters] + 0.3 * random.normal(size=240)
        low, high = mean_interval(values, clusters, num_samples=200, seed=seed, level=0.9)
        covered += low <= 0.0 <= high
    assert 0.84 <= covered / 200 <= 0.96
    # Blind to clusters, the interval is too narrow: the error this function is there to avoid.
    blind_low, blind_high = mean_interval(values, np.arange(240), num_samples=200, level=0.9)
    assert blind_high - blind_low < 0.75 * (high - low)


def test_paired_ratio_is_narrower_than_unpaired():
    numerator, denominator, clusters = clustered_data()
    low, high = ratio_interval(numerator, denominator, clusters)

    random = np.random.default_rng(3)
    num_sums, den_sums, sizes = (np.bincount(clusters, weights=w) for w in (numerator, denominator, None))
    unpaired = []
    for _ in range(2000):
        a, b = random.integers(60, size=(2, 60))
        unpaired.append((num_sums[a].sum() / sizes[a].sum()) / (den_sums[b].sum() / sizes[b].sum()))
    unpaired_low, unpaired_high = np.quantile(unpaired, [0.025, 0.975])

    assert high - low < 0.5 * (unpaired_high - unpaired_low)
    assert low < numerator.mean() / denominator.mean() < high


def test_intervals_are_deterministic_and_know_constants():
    values, _, clusters = clustered_data()
    names = np.array([f"prompt-{c:03d}" for c in clusters])
    assert mean_interval(values, clusters, seed=5) == mean_interval(values, names, seed=5)
    assert mean_interval(values, clusters, seed=5) != mean_interval(values, clusters, seed=6)
    assert mean_interval(np.full(len(clusters), 0.25), clusters) == pytest.approx((0.25, 0.25), abs=1e-15)
    assert ratio_interval(values, values, clusters) == (1.0, 1.0)


def test_reliability_by_a_plain_loop():
    random = np.random.default_rng(0)
    probability = random.random(203)
    outcome = (random.random(203) < probability**2).astype(int)
    rows = sorted(zip(probability, outcome, strict=True))
    sizes = [21] * 3 + [20] * 7
    total, start = 0.0, 0
    result = reliability(probability, outcome)
    for size, one in zip(sizes, result.bins, strict=True):
        chunk = rows[start : start + size]
        start += size
        predicted, observed = (sum(column) / size for column in zip(*chunk, strict=True))
        assert (one.predicted, one.observed, one.num) == (pytest.approx(predicted), pytest.approx(observed), size)
        total += size * abs(predicted - observed)
    assert result.ece == pytest.approx(total / 203)
    assert result.brier == pytest.approx(sum((p - y) ** 2 for p, y in rows) / 203)
    assert result.log_loss == pytest.approx(-sum(math.log(p if y else 1 - p) for p, y in rows) / 203)


def test_equal_probabilities_are_one_value_in_any_order():
    outcome = np.array([0] * 50 + [1] * 50)
    assert reliability(np.full(100, 0.5), outcome).ece == 0.0
    probability = np.repeat([0.25, 0.75], 50)
    for shuffled in (np.random.default_rng(seed).permutation(100) for seed in range(3)):
        assert reliability(probability[shuffled], outcome[shuffled]).ece == pytest.approx(0.25)


def test_true_probabilities_are_calibrated_and_doubled_margins_are_not():
    random = np.random.default_rng(0)
    margin = 2 * random.normal(size=50_000)
    outcome = random.random(50_000) < preference_probability(margin)
    assert reliability(preference_probability(margin), outcome).ece < 0.01
    assert reliability(preference_probability(2 * margin), outcome).ece > 0.05


def test_temperature_is_the_minimum_and_knows_no_sides():
    random = np.random.default_rng(1)
    true = 1.5 * random.normal(size=4000)
    label = np.where(random.random(4000) < preference_probability(true), 1.0, -1.0)
    fitted = fit_temperature(3 * true * label)
    assert fitted.temperature == pytest.approx(3.0, rel=0.1)
    grid = np.linspace(1.5, 6.0, 4501)
    losses = [np.logaddexp(0, -3 * true * label / t).mean() for t in grid]
    assert fitted.temperature == pytest.approx(grid[np.argmin(losses)], abs=1e-3)
    assert fitted.log_loss == pytest.approx(min(losses), abs=1e-8)
    assert fitted.log_loss_before == pytest.approx(np.logaddexp(0, -3 * true * label).mean())
    # Sides and the order of comparisons exchanged; the second moves the sums' last bits.
    assert fit_temperature((-3 * true) * (-label)) == fitted
    assert fit_temperature((3 * true * label)[::-1]).temperature == pytest.approx(fitted.temperature, rel=1e-12)
    # In closed form: margins of one size with a share p right have T = margin / logit(p).
    two_thirds = fit_temperature([2.0] * 40 + [-2.0] * 20)
    assert two_thirds.temperature == pytest.approx(2.0 / math.log(2), rel=1e-12)
    assert fit_temperature([2e-8] * 40 + [-2e-8] * 20).temperature == pytest.approx(2e-8 / math.log(2), rel=1e-9)


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
        ([0.0] * 40, "predicted rightly"),
        ([1.0] * 20 + [-1.0] * 20, "do not agree"),
        ([1.0] * 10 + [-1.0] * 30, "do not agree"),
    ],
)
def test_no_temperature_has_a_reason(margin, reason):
    fitted = fit_temperature(margin)
    assert fitted.temperature is None
    assert fitted.log_loss is None
    assert reason in fitted.reason


def test_fewer_comparisons_than_the_least_have_no_figure():
    few, enough = MIN_COMPARISONS - 1, MIN_COMPARISONS
    result = reliability(np.full(few, 0.5), np.ones(few))
    assert (result.ece, result.brier, result.log_loss, result.bins) == (None, None, None, ())
    assert "fewer than 30" in result.reason
    assert reliability(np.full(enough, 0.5), np.ones(enough)).brier == 0.25
    assert mcnemar(np.ones(few), np.zeros(few)).p_value is None
    assert mcnemar(np.ones(enough), np.zeros(enough)).p_value == pytest.approx(2.0**-29)
    assert fit_temperature([]).log_loss_before is None


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


def test_mcnemar_over_all_sign_flips():
    random = np.random.default_rng(3)
    unequal = np.array([(1, 0), (0, 1), (1, 0.5), (0.5, 1), (0.5, 0), (0, 0.5)])
    for num_unequal in (0, 1, 5, 12):
        first, second = np.concatenate([np.ones((30, 2)), unequal[random.integers(6, size=num_unequal)]]).T
        differences = (first - second)[30:]
        sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=num_unequal)]
        expected = np.mean([total >= abs(differences.sum()) - 1e-9 for total in sums])
        assert mcnemar(first, second).p_value == pytest.approx(expected)
        assert mcnemar(second, first).p_value == pytest.approx(expected)


def test_mcnemar_without_ties_is_the_binomial_test():
    first = np.array([1.0] * 15 + [0.0] * 5 + [1.0] * 80)
    second = np.array([0.0] * 15 + [1.0] * 5 + [1.0] * 80)
    result = mcnemar(first, second)
    assert (result.first_better, result.second_better, result.num) == (15.0, 5.0, 100)
    assert result.p_value == pytest.approx(2 * sum(math.comb(20, k) for k in range(6)) / 2**20)
    assert mcnemar(first, first).p_value == 1.0
    assert 0 < mcnemar(np.ones(900), np.zeros(900)).p_value < 1e-250


def test_holm_corrects_step_by_step():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_intervals_cover_the_truth_of_many_test_sets(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from interval_coverage import measure

    result = measure(num_sets=150, num_prompts=150, num_truth=1_000_000, seed=1, num_samples=400)
    for name in ("mean_interval", "ratio_interval"):
        # 150 sets: two binomial standard errors about the 93% to 97% of the whole run (docs/evaluation.md).
        assert 0.89 <= result[name]["coverage"] <= 1.0
    assert result["mean_interval without prompts"]["coverage"] < result["mean_interval"]["coverage"]


@pytest.mark.parametrize(
    "call",
    [
        lambda: credit([math.nan]),
        lambda: credit([[1.0]]),
        lambda: expected_credit([1.0, 2.0], [1.0]),
        lambda: sign_accuracy([1.0], [2]),
        lambda: sign_accuracy([math.nan], [1]),
        lambda: mean_interval([1.0, 2.0], ["a", "a"]),
        lambda: mean_interval([1.0, 2.0], ["a", "b"], level=95),
        lambda: mean_interval([1.0, 2.0], ["a", "b"], num_samples=0),
        lambda: ratio_interval([1.0, 2.0], [0.0, 1.0], ["a", "b"]),
        lambda: preference_probability([1.0], 0.0),
        lambda: reliability([0.5], [0.5]),
        lambda: reliability([1.5], [1]),
        lambda: reliability([0.5], [1, 0]),
        lambda: mcnemar([0.3], [1.0]),
    ],
)
def test_what_has_no_answer_is_refused(call):
    with pytest.raises(ValueError):
        call()
