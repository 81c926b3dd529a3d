"""Metrics against plain loops, expectations against exact sums, and intervals against brute-force resampling."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safe_rlhf_video.lagrangian import TIE_TOLERANCE
from safe_rlhf_video.metrics import (
    SignAccuracy,
    credit,
    expected_credit,
    mean_interval,
    ratio_interval,
    sign_accuracy,
)

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
    ],
)
def test_what_has_no_answer_is_refused(call):
    with pytest.raises(ValueError):
        call()
