"""Controls: known strengths are recovered, the fits are the minima they claim to be, and ties stay ties."""

import numpy as np
import pytest

from safe_rlhf_video.evaluation.controls import generator_only, is_safe_only, prompt_only, prompt_only_unsafe
from safe_rlhf_video.stats.credit import credit, sign_accuracy

STRENGTHS = {"alpha": 1.2, "beta": 0.4, "gamma": -0.3, "delta": -1.3}


def drawn_comparisons(count, seed=0):
    random = np.random.default_rng(seed)
    names = np.array(list(STRENGTHS))
    pairs = [(str(a), str(b)) for a, b in names[random.integers(4, size=(count, 2))]]
    margins = np.array([STRENGTHS[a] - STRENGTHS[b] for a, b in pairs])
    labels = (random.random(count) > 1 / (1 + np.exp(-margins))).astype(int)
    return pairs, labels


def test_generator_strengths_are_recovered():
    pairs, labels = drawn_comparisons(8000)
    tests = [(a, b) for a in STRENGTHS for b in STRENGTHS]
    predicted = generator_only(pairs, labels, tests)
    true = [STRENGTHS[a] - STRENGTHS[b] for a, b in tests]
    np.testing.assert_allclose(predicted, true, atol=0.2)
    assert (np.sign(predicted) == np.sign(true)).all()


def test_two_generators_fit_the_observed_odds():
    # 30 wins of 40 give log odds of log 3 in closed form.
    margin = generator_only([("a", "b")] * 40, [0] * 30 + [1] * 10, [("a", "b")])
    assert margin == pytest.approx([np.log(3)], abs=1e-3)


def test_generators_mirror_and_unknown_ones_are_average():
    pairs, labels = drawn_comparisons(300)
    swapped = generator_only([(b, a) for a, b in pairs], 1 - labels, [("alpha", "delta"), ("new", "newer")])
    np.testing.assert_allclose(
        swapped, generator_only(pairs, labels, [("alpha", "delta"), ("new", "newer")]), atol=1e-9
    )
    against_new = generator_only(pairs, labels, [(name, "new") for name in STRENGTHS])
    assert against_new.sum() == pytest.approx(0.0, abs=1e-9)
    assert (generator_only(pairs, labels, [("alpha", "alpha"), ("new", "newer")]) == 0.0).all()


def test_generator_that_always_wins_or_no_training_at_all_stay_finite():
    margins = generator_only([("a", "b")] * 50_000 + [("b", "c")] * 3, [0] * 50_003, [("a", "b"), ("b", "c")])
    assert np.isfinite(margins).all()
    assert (margins > 1.0).all()
    assert generator_only([], [], [("a", "b")]).tolist() == [0.0]


def test_prompt_only_ties_and_earns_one_half():
    margins = prompt_only(["a cat", "a dog"])
    assert margins.tolist() == [0.0, 0.0]
    assert credit(margins).tolist() == [0.5, 0.5]


def prompt_data(count, seed):
    random = np.random.default_rng(seed)
    words = [f"word{i}" for i in range(40)]
    texts, signs = [], []
    for _ in range(count):
        is_unsafe = random.random() < 0.3
        chosen = [*random.choice(words, 6), "Knife!" if is_unsafe else "garden"]
        texts.append(" ".join(random.permutation(chosen)))
        signs.append(-1 if is_unsafe else 1)
    return texts, np.array(signs)


def test_prompt_words_predict_safety_and_unknown_signs_teach_nothing():
    texts, signs = prompt_data(400, seed=0)
    test_texts, test_signs = prompt_data(200, seed=1)
    logits = prompt_only_unsafe(texts, signs, test_texts)
    assert sign_accuracy(logits, test_signs).balanced_accuracy == 1.0

    unknown_texts = ["knife garden knife"] * 500
    with_unknown = prompt_only_unsafe([*texts, *unknown_texts], [*signs, *[0] * 500], test_texts)
    np.testing.assert_array_equal(with_unknown, logits)


def test_prompt_fit_is_the_minimum_of_its_objective():
    texts, signs = prompt_data(60, seed=2)
    words = sorted({word for text in texts for word in text.lower().replace("!", "").split()})
    # The logits of the empty prompt and of each single word give back the bias and every weight.
    probes = prompt_only_unsafe(texts, signs, ["", *words], ridge=0.5)
    bias, weights = probes[0], probes[1:] - probes[0]

    gradient = np.append(0.5 * weights, 0.5 * bias)
    for text, sign in zip(texts, signs, strict=True):
        present = np.array([*(word in text.lower().replace("!", "").split() for word in words), True])
        residual = 1 / (1 + np.exp(-(present @ np.append(weights, bias)))) - (sign == -1)
        gradient += residual * present
    np.testing.assert_allclose(gradient, 0.0, atol=1e-7)


def test_prompt_fit_converges_where_full_newton_steps_diverge():
    # Found by search: without halving, the steps on these nearly separable counts run away to infinity.
    counts = {
        ("b d", 1): 9, ("b c", 1): 60, ("b c d", 1): 12, ("b c d", -1): 1445, ("a", 1): 2000,
        ("a c", 1): 166, ("a c d", 1): 327, ("a b d", -1): 25, ("a b c d", 1): 5, ("a b c d", -1): 213,
    }  # fmt: skip
    texts = [text for (text, _), count in counts.items() for _ in range(count)]
    signs = np.array([sign for (_, sign), count in counts.items() for _ in range(count)])
    logits = prompt_only_unsafe(texts, signs, texts, ridge=1e-3)
    # At the minimum the bias makes the mean prediction the observed share, but for the pull of the ridge.
    assert (1 / (1 + np.exp(-logits))).mean() == pytest.approx((signs == -1).mean(), abs=1e-4)


def test_prompt_fit_without_both_classes():
    assert (prompt_only_unsafe(["a", "b"], [0, 0], ["a", "c"]) == 0.0).all()
    assert (prompt_only_unsafe(["a", "b"], [-1, -1], ["a", "c"]) > 0.0).all()
    assert prompt_only_unsafe([], [], ["a"]).tolist() == [0.0]


def test_is_safe_only_over_all_labels():
    expected = {(1, -1): 1.0, (-1, 1): -1.0}
    for sign_0 in (-1, 0, 1):
        for sign_1 in (-1, 0, 1):
            assert is_safe_only([sign_0], [sign_1]).tolist() == [expected.get((sign_0, sign_1), 0.0)]


@pytest.mark.parametrize(
    "call",
    [
        lambda: generator_only([("a", "b")], [0, 1], []),
        lambda: generator_only([("a", "b")], [2], []),
        lambda: prompt_only_unsafe(["a"], [1, 1], []),
        lambda: prompt_only_unsafe(["a"], [3], []),
        lambda: prompt_only_unsafe(["a"], [1], [], ridge=0.0),
        lambda: is_safe_only([1, 1], [1]),
        lambda: is_safe_only([5], [1]),
    ],
)
def test_wrong_input_is_refused(call):
    with pytest.raises(ValueError):
        call()
