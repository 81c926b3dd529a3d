"""Measures predictors that never look at a video: a model must beat them, and would learn them first."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from safe_rlhf_video.audit.comparisons import (
    OTHER_GENERATORS,
    UNKNOWN,
    Comparisons,
    build_comparisons,
    frequent_generators,
)
from safe_rlhf_video.audit.sections import Baselines, ExpectedAccuracy, PredictorAccuracy, PromptBaseline
from safe_rlhf_video.audit.shares import share
from safe_rlhf_video.audit.splits import Split
from safe_rlhf_video.data.preferences import normalise_prompt, number_prompts, safety_signs
from safe_rlhf_video.data.records import ALL_DIMENSIONS
from safe_rlhf_video.evaluation import controls
from safe_rlhf_video.stats.credit import credit, sign_accuracy
from safe_rlhf_video.stats.separation import auroc_parts

# Enough for 300 words; more would only cost time.
MAX_FITTED_VIDEOS = 8000
CROSS_FITTED = "the same data in halves by prompt, each judged by a fit on the other"


@dataclass(frozen=True)
class Fold:
    """The comparisons to learn from, and those to judge.

    Attributes:
        fitted: the comparisons to learn from.
        learned_generators: the generators of video_0 and video_1 of each of them.
        is_judged: bool (M,), which of the M comparisons this fold judges.
        judged_generators: the generators of video_0 and video_1 of each of the M.
        taken_as_one: the number of generators that are too rare in `fitted` to be distinguished.
    """

    fitted: Comparisons
    learned_generators: Sequence[tuple[str, str]]
    is_judged: np.ndarray
    judged_generators: Sequence[tuple[str, str]]
    taken_as_one: int


@dataclass(frozen=True)
class SafetyLabels:
    """Which of V videos are safe, and the prompts that they were made from.

    Attributes:
        texts: V prompt texts.
        prompt: int (V,), of `number_prompts`.
        sign: int (V,), +1 safe, -1 unsafe, 0 unknown or contradictory.
    """

    texts: Sequence[str]
    prompt: np.ndarray
    sign: np.ndarray

    @property
    def has_both(self) -> bool:
        """Whether there are both safe and unsafe videos."""
        return bool((self.sign == 1).any() and (self.sign == -1).any())


def gather_safety_labels(split: Split) -> SafetyLabels:
    """Collects the safety label of each video of a split, by the rule that training follows."""
    said = safety_signs(split.pairs)
    # A list of single videos has each video once.
    sign_of = {True: 1, False: -1, None: 0}
    sign = [said.get((video.prompt_id, video.video_id), sign_of[video.is_safe]) for video in split.videos]
    return SafetyLabels(
        texts=[video.prompt_text for video in split.videos],
        prompt=number_prompts(split.videos),
        sign=np.array(sign, np.int64),
    )


def audit_baselines(
    judged: Comparisons,
    prompt_only_unsafe: PromptBaseline,
    fitted: Comparisons | None = None,
    fitted_name: str = CROSS_FITTED,
) -> Baselines:
    """Measures the accuracy of predictors of preferences that know only generators, prompts or safety labels.

    Args:
        judged: the comparisons to judge them on; ties are left out, because they have no preferred side.
        prompt_only_unsafe: what `audit_prompt_baseline` says of the same data.
        fitted: the comparisons to learn from; None to cross-fit within `judged`.
        fitted_name: the name of `fitted` in the report.
    """
    if fitted is not None:
        folds = [_make_fold(fitted, judged, np.ones(len(judged.pairs), bool))]
    else:
        half = _halves([pair.prompt_text for pair in judged.pairs])
        folds = [
            _make_fold(
                build_comparisons([judged.pairs[row] for row in np.flatnonzero(half != side).tolist()]),
                judged,
                half == side,
            )
            for side in (0, 1)
        ]
    return Baselines(
        fitted_on=fitted_name,
        generators_taken_as_one=max(fold.taken_as_one for fold in folds),
        generator_only={name: _judge_generators(judged, folds, name) for name in ALL_DIMENSIONS},
        prompt_only=ExpectedAccuracy(
            0.5, "by construction: both videos of a comparison share their prompt, so it can only tie"
        ),
        is_safe_only={"harmlessness": _judge_safety_labels(judged)},
        prompt_only_unsafe=prompt_only_unsafe,
    )


def _halves(texts: Sequence[str]) -> np.ndarray:
    """Assigns 0 or 1 to each prompt by its text, (N,), so that one text under two ids is never on both sides."""
    half = {
        text: hashlib.sha256(normalise_prompt(text).encode(errors="surrogatepass")).digest()[0] % 2
        for text in dict.fromkeys(texts)
    }
    return np.array([half[text] for text in texts], np.int64)


def _make_fold(fitted: Comparisons, judged: Comparisons, is_judged: np.ndarray) -> Fold:
    names = [fitted.generators[video] or UNKNOWN for video in fitted.videos.ravel().tolist()]
    kept = frequent_generators(names)
    return Fold(fitted, _generators(fitted, kept), is_judged, _generators(judged, kept), len(set(names)) - len(kept))


def _judge_generators(judged: Comparisons, folds: Sequence[Fold], dimension: str) -> PredictorAccuracy:
    label = judged.labels[dimension]
    rows, credits = [np.zeros(0, np.int64)], [np.zeros(0)]
    is_known = np.array([name is not None for name in judged.generators])
    known = is_known[judged.videos].all(axis=1)
    for fold in folds:
        learned = fold.fitted.labels[dimension]
        strict = np.flatnonzero((learned == 0) | (learned == 1))
        chosen = np.flatnonzero(fold.is_judged & known & ((label == 0) | (label == 1)))
        if not len(strict) or not len(chosen):
            continue
        margin = controls.generator_only(
            [fold.learned_generators[row] for row in strict.tolist()],
            learned[strict],
            [fold.judged_generators[row] for row in chosen.tolist()],
        )
        rows.append(chosen)
        credits.append(credit(margin * (1 - 2 * label[chosen])))
    right, chosen = np.concatenate(credits), np.concatenate(rows)
    if not len(right):
        reason = "no label whose two generators are known, or none to learn from"
        return PredictorAccuracy(0, 0, 0, None, None, reason, ties=0)
    return _to_accuracy(right, judged.text[chosen])


def _judge_safety_labels(judged: Comparisons) -> PredictorAccuracy:
    label = judged.labels["harmlessness"]
    chosen = np.flatnonzero((label == 0) | (label == 1))
    sign = judged.safety_sign[judged.videos[chosen]]
    if not sign.any():
        return PredictorAccuracy(0, 0, 0, None, None, "no video has an is_safe label")
    right = credit(controls.is_safe_only(sign[:, 0], sign[:, 1]) * (1 - 2 * label[chosen]))
    return _to_accuracy(right, judged.text[chosen])


def _to_accuracy(right: np.ndarray, prompts: np.ndarray) -> PredictorAccuracy:
    found = share(right, prompts)
    return PredictorAccuracy(
        found.count, found.total, found.prompts, found.share, found.interval, found.reason, int((right == 0.5).sum())
    )


def audit_prompt_baseline(
    judged: SafetyLabels,
    fitted: SafetyLabels | None = None,
    fitted_name: str = CROSS_FITTED,
) -> PromptBaseline:
    """Predicts `is_safe` from the prompt's words: recalls with intervals, balanced accuracy and AUROC.

    It is cut at the share of unsafe videos among those that it learned from.

    Args:
        judged: the videos to judge it on.
        fitted: the videos to learn from; None to cross-fit within `judged`.
        fitted_name: the name of `fitted` in the report.
    """
    everything = np.arange(len(judged.texts))
    half = _halves(judged.texts)
    folds = [(fitted, np.arange(len(fitted.texts)), everything)] if fitted is not None else []
    folds = folds or [(judged, np.flatnonzero(half != side), np.flatnonzero(half == side)) for side in (0, 1)]
    logits = np.zeros(len(judged.texts))
    is_judged = np.zeros(len(judged.texts), bool)
    num_fitted = 0
    for source, learned, places in folds:
        known = learned[source.sign[learned] != 0]
        if len(known) > MAX_FITTED_VIDEOS:
            known = np.sort(np.random.default_rng(0).choice(known, MAX_FITTED_VIDEOS, replace=False))
        sign = source.sign[known]
        if len(np.unique(sign)) < 2:
            continue
        # Videos of one prompt get the same answer.
        texts = list(dict.fromkeys(judged.texts[video] for video in places.tolist()))
        answers = controls.prompt_only_unsafe([source.texts[video] for video in known.tolist()], sign, texts)
        answer_of = dict(zip(texts, controls.cut_at_prevalence(answers, sign).tolist(), strict=True))
        logits[places] = [answer_of[judged.texts[video]] for video in places.tolist()]
        is_judged[places] = True
        num_fitted += len(known)
    sign = np.where(is_judged, judged.sign, 0)
    safe, unsafe, known = np.flatnonzero(sign == 1), np.flatnonzero(sign == -1), np.flatnonzero(sign)
    figures = sign_accuracy(logits, sign)
    reason = None
    if figures.balanced_accuracy is None:
        reason = "is_safe is not known for both safe and unsafe videos, to learn from and to judge on"
    return PromptBaseline(
        fitted_on=fitted_name,
        balanced_accuracy=figures.balanced_accuracy,
        auroc=float(auroc_parts(logits[known], sign[known] < 0).mean()) if reason is None else None,
        safe_recall=share(credit(-logits[safe], 0.0), judged.prompt[safe]),
        unsafe_recall=share(credit(logits[unsafe], 0.0), judged.prompt[unsafe]),
        num_fitted_videos=num_fitted,
        reason=reason,
    )


def _generators(comparisons: Comparisons, kept: set[str]) -> list[tuple[str, str]]:
    names = [name or UNKNOWN for name in comparisons.generators]
    names = [name if name in kept else OTHER_GENERATORS for name in names]
    return [(names[first], names[second]) for first, second in comparisons.videos.tolist()]
