"""Predicts preferences without pixels: a model must beat these controls before its accuracy says anything about videos.

Each returns margins for comparisons (video_0 minus video_1, 0 = tie) or logits for videos, to be given to the same
functions of `stats.credit` as a model's scores. They learn from training labels only.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from safe_rlhf_video.stats.checks import FloatArray
from safe_rlhf_video.stats.logistic import fit_weights

_STRENGTH_RIDGE = 1e-3


def generator_only(
    train_generators: Sequence[tuple[str, str]],
    train_label: ArrayLike,
    test_generators: Sequence[tuple[str, str]],
) -> FloatArray:
    """Prefers the video whose generator won more often in training.

        P(video_0 preferred) = sigmoid(strength[generator_0] - strength[generator_1])

    Strengths maximise the likelihood of the training labels. A tiny ridge keeps them finite for a generator that always
    wins, and centres them: a generator unseen in training gets strength 0, the average. Source: Bradley & Terry
    1952.

    Args:
        train_generators: (M, 2) names of the generators of video_0 and video_1.
        train_label: (M,) index of the preferred video, 0 or 1.
        test_generators: (M', 2) names, as ``train_generators``.

    Returns:
        (M',) difference of strengths in log odds; exactly 0 for two videos of one generator.

    Raises:
        ValueError: the lengths differ or a label is neither 0 nor 1.
    """
    label = np.asarray(train_label)
    if len(label) != len(train_generators):
        raise ValueError(f"train_generators has {len(train_generators)} entries but train_label has {len(label)}")
    if not np.isin(label, (0, 1)).all():
        raise ValueError("train_label must hold only 0 (video_0 preferred) and 1 (video_1 preferred)")

    names = sorted({name for pair in train_generators for name in pair})
    column = {name: index for index, name in enumerate(names)}
    indicators = np.zeros((len(label), len(names)))  # (M, G): +1 for the generator of video_0, -1 for that of video_1
    for row, (generator_0, generator_1) in enumerate(train_generators):
        indicators[row, column[generator_0]] += 1
        indicators[row, column[generator_1]] -= 1
    fitted = fit_weights(indicators, (label == 0).astype(np.float64), _STRENGTH_RIDGE)

    strength = dict(zip(names, fitted, strict=True))
    return np.array([strength.get(g0, 0.0) - strength.get(g1, 0.0) for g0, g1 in test_generators], dtype=np.float64)


def prompt_only(test_prompts: Sequence[str]) -> FloatArray:
    """Ties everywhere: both videos of a comparison share their prompt, so the prompt alone cannot order them.

    Its accuracy is 0.5 by construction, for any prompt model: the floor for all other figures of a table.

    Args:
        test_prompts: (M',) prompt of each comparison.

    Returns:
        (M',) zeros.
    """
    return np.zeros(len(test_prompts))


def prompt_only_unsafe(
    train_texts: Sequence[str],
    train_safety_sign: ArrayLike,
    test_texts: Sequence[str],
    max_words: int = 300,
    ridge: float = 1.0,
) -> FloatArray:
    """Guesses a video's safety from the words of its prompt, by ridge logistic regression on a bag of words.

        P(unsafe) = sigmoid(bias + sum of weight[word] over the distinct words of the prompt)

    Most unsafe videos come from unsafe prompts, so a cost model's sign accuracy means little below this control.

    Args:
        train_texts: (N,) prompt of each training video.
        train_safety_sign: (N,) +1 safe, -1 unsafe, 0 unknown; unknown videos are left out.
        test_texts: (N',) prompt of each test video.
        max_words: number of words used, those in most training prompts first.
        ridge: weight of half the squared norm of the weights, against a log likelihood summed over videos.

    Returns:
        (N',) logits in log odds: > 0 is likelier unsafe than safe. 0 everywhere if no training sign is known. To call
        videos unsafe, cut them at `cut_at_prevalence`.

    Raises:
        ValueError: the lengths differ, a sign is not -1, 0 or +1, or ``ridge`` is not positive.
    """
    sign = np.asarray(train_safety_sign)
    if len(sign) != len(train_texts):
        raise ValueError(f"train_texts has {len(train_texts)} entries but train_safety_sign has {len(sign)}")
    if not np.isin(sign, (-1, 0, 1)).all():
        raise ValueError("train_safety_sign must hold only +1 (safe), -1 (unsafe) and 0 (unknown)")
    if not ridge > 0:
        raise ValueError(f"ridge must be positive, got {ridge}")

    is_known = sign != 0
    known_texts = [text for text, known in zip(train_texts, is_known, strict=True) if known]
    vocabulary = _frequent_words(known_texts, max_words)
    weights = fit_weights(_bag_of_words(known_texts, vocabulary), (sign[is_known] == -1).astype(np.float64), ridge)
    return _bag_of_words(test_texts, vocabulary) @ weights


def cut_at_prevalence(logits: ArrayLike, train_safety_sign: ArrayLike) -> FloatArray:
    """Moves logits of being unsafe so that 0 lies at the share of unsafe videos in training, in place of one half.

        logit - ln(num_unsafe / num_safe)

    With few unsafe videos a weak predictor seldom finds one likelier unsafe than safe. Cut at one half it calls nearly
    everything safe and its balanced accuracy is near that of guessing, whatever it knows. Cut here it calls unsafe what
    is likelier unsafe than a training video is, which for true probabilities maximises balanced accuracy.

    Args:
        logits: (N',) log odds that a video is unsafe, fitted to the training labels without weights of classes.
        train_safety_sign: (N,) +1 safe, -1 unsafe, 0 unknown, of the training videos.

    Returns:
        (N',) logits that read like a cost: > 0 predicts unsafe.

    Raises:
        ValueError: the training labels have one class alone.
    """
    sign = np.asarray(train_safety_sign)
    num_safe, num_unsafe = np.count_nonzero(sign == 1), np.count_nonzero(sign == -1)
    if not (num_safe and num_unsafe):
        raise ValueError("train_safety_sign must hold both +1 (safe) and -1 (unsafe)")
    return np.asarray(logits, dtype=np.float64) - math.log(num_unsafe / num_safe)


def is_safe_only(safety_sign_0: ArrayLike, safety_sign_1: ArrayLike) -> FloatArray:
    """Prefers the video labelled safe over the one labelled unsafe; reads the test labels, never the video.

    Its accuracy shows how much of the harmlessness order the safety labels alone explain.

    Args:
        safety_sign_0: (M',) +1 safe, -1 unsafe, 0 unknown, of video_0.
        safety_sign_1: (M',) the same of video_1.

    Returns:
        (M',) +1 where only video_0 is safe, -1 where only video_1 is, 0 where the labels agree or one is unknown.

    Raises:
        ValueError: the shapes differ or a sign is not -1, 0 or +1.
    """
    sign_0, sign_1 = np.asarray(safety_sign_0), np.asarray(safety_sign_1)
    if sign_0.shape != sign_1.shape:
        raise ValueError(f"safety_sign_0 has shape {sign_0.shape} but safety_sign_1 has {sign_1.shape}")
    if not (np.isin(sign_0, (-1, 0, 1)).all() and np.isin(sign_1, (-1, 0, 1)).all()):
        raise ValueError("safety signs must hold only +1 (safe), -1 (unsafe) and 0 (unknown)")
    # Opposite known labels multiply to -1; equal ones to +1 and unknown ones to 0.
    return np.where(sign_0 * sign_1 == -1, sign_0, 0).astype(np.float64)


def _frequent_words(texts: Sequence[str], max_words: int) -> dict[str, int]:
    """Words in most texts, each with its column; equal counts go by alphabet, so the order of texts never matters."""
    counts = Counter(word for text in texts for word in _words(text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return {word: index for index, word in enumerate(ranked[:max_words])}


def _bag_of_words(texts: Sequence[str], vocabulary: dict[str, int]) -> FloatArray:
    """(N, words + 1): 1 where a text holds a word; the last column is 1 everywhere, the bias."""
    bag = np.zeros((len(texts), len(vocabulary) + 1))
    bag[:, -1] = 1.0
    for row, text in enumerate(texts):
        for word in _words(text):
            if word in vocabulary:
                bag[row, vocabulary[word]] = 1.0
    return bag


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
