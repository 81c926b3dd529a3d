"""How often each interval holds the true value, and how often the test of two models finds what is not there.

Prompts are drawn anew every time. `alike` is the correlation of the answers of a prompt: 0 for independent ones, 1 for
prompts that are right or wrong as a whole. Sizes of prompts:

- equal: 4 comparisons each
- skewed: 1, 2, 3, 6 or 10, 3.5 on average as in SafeSora
- heavy: log-normal, mostly 1 to 4, some over 20

The reference of a width is the interval that is told the true spread: of shares, ratios and differences the same
formula with the true effective size (that of the estimate's variance over all draws; the number of prompts where a draw
shows no variance at all), of others Student's t times the true standard deviation.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from promise_rows import MOST_TYPE_I, Row, coverage_row, error_row
from scipy.special import ndtr, ndtri

from safe_rlhf_video.kinds.label import is_held
from safe_rlhf_video.stats.credit import credit
from safe_rlhf_video.stats.intervals import (
    Interval,
    balanced_interval,
    difference_interval,
    effective_size,
    mean_interval,
    paired_interval,
    prompt_effective_size,
    prompt_share_interval,
    rate_difference_interval,
    ratio_interval,
    score_interval,
    share_interval,
    student,
    sum_interval,
    two_class_difference_interval,
)
from safe_rlhf_video.stats.prevalence import SignRates, corrected_share
from safe_rlhf_video.stats.probabilities import preference_probability, reliability
from safe_rlhf_video.stats.separation import auroc_parts
from safe_rlhf_video.stats.significance import sign_flip
from safe_rlhf_video.stats.thresholds import Target

Sizes = np.ndarray  # (K,) comparisons of each prompt


@dataclass(frozen=True)
class Prompts:
    """Where prompts come from: their number, how many comparisons each has, and how alike the answers of one are."""

    num: int
    sizes: str
    alike: float

    def __str__(self) -> str:
        return f"{self.num} prompts, {self.sizes}, alike {self.alike:g}"

    def draw_sizes(self, random: np.random.Generator) -> Sizes:
        if self.sizes == "equal":
            return np.full(self.num, 4)
        if self.sizes == "skewed":
            return random.choice([1, 2, 3, 6, 10], self.num, p=[0.20, 0.25, 0.25, 0.20, 0.10])
        return np.ceil(random.lognormal(0.7, 1.0, self.num)).astype(np.int64)

    def draw_chances(self, random: np.random.Generator, *shares: float) -> np.ndarray:
        """(K, C) chances of the C answers with these mean shares, which sum to 1, for each prompt."""
        means = np.array(shares)
        if self.alike == 0:
            return np.tile(means, (self.num, 1))
        if self.alike == 1:
            return random.multinomial(1, means, size=self.num).astype(float)
        # Dirichlet; shape 0 would be refused.
        gamma = random.gamma(np.maximum(means * (1 / self.alike - 1), 1e-12), size=(self.num, len(means))) + 1e-300
        return np.asarray(gamma / gamma.sum(axis=1, keepdims=True))

    def draw_right(self, random: np.random.Generator, share: float) -> tuple[np.ndarray, np.ndarray]:
        """Credits of comparisons and the prompt of each."""
        prompts = np.repeat(np.arange(self.num), self.draw_sizes(random))
        chances = self.draw_chances(random, share, 1 - share)[:, 0]
        return (random.random(len(prompts)) < chances[prompts]).astype(float), prompts


def _shares(draws: int, random: np.random.Generator) -> Iterator[Row]:
    for num in (10, 30, 100, 1000):
        for sizes in ("equal", "skewed", "heavy") if num < 1000 else ("skewed",):
            for alike in (0, 0.3, 1):
                for share in (0.80, 0.95, 0.99):
                    prompts = Prompts(num, sizes, alike)
                    drawn = [prompts.draw_right(random, share) for _ in range(draws)]
                    means = np.array([right.mean() for right, _ in drawn])
                    size = share * (1 - share) / max(means.var(), 1e-12)
                    told = [score_interval(mean, size if 0 < mean < 1 else num, num) for mean in means]
                    found = [share_interval(right, of) for right, of in drawn]
                    yield _covers("share", f"{prompts}, {share:g}", share, found, _mean_width(told))


def _differences(draws: int, random: np.random.Generator) -> Iterator[Row]:
    for num in (10, 30, 100, 300):
        for sizes in ("skewed", "heavy"):
            for alike in (0, 0.3, 1):
                for better, worse in ((0.1, 0.1), (0.05, 0.01), (0.15, 0.0)):
                    prompts = Prompts(num, sizes, alike)
                    drawn = [_draw_gains(prompts, better, worse, random) for _ in range(draws)]
                    means = np.array([gains.mean() for gains, _ in drawn])
                    size = (better + worse - (better - worse) ** 2) / max(means.var(), 1e-12)
                    told = [paired_interval(gains.mean(), np.mean(gains**2), size if gains.any() else num, num)
                            for gains, _ in drawn]  # fmt: skip
                    found = [difference_interval(gains, of) for gains, of in drawn]
                    setting = f"{prompts}, +{better:g} -{worse:g}"
                    yield _covers("difference of two models", setting, better - worse, found, _mean_width(told))


def _type_one(draws: int, random: np.random.Generator) -> Iterator[Row]:
    for num in (10, 30, 100, 300):
        for sizes in ("skewed", "heavy"):
            for alike in (0, 0.3, 1):
                for differ in (0.04, 0.3):
                    prompts, wrong = Prompts(num, sizes, alike), 0
                    for _ in range(draws):
                        gains, of = _draw_gains(prompts, differ / 2, differ / 2, random)
                        p_value = sign_flip(np.maximum(gains, 0), np.maximum(-gains, 0), of).p_value
                        wrong += p_value is not None and p_value <= 0.05
                    setting = f"{prompts}, {differ:g} differ"
                    yield error_row("two equal models found different", setting, wrong, draws, 0.05, MOST_TYPE_I)


def _draw_gains(
    prompts: Prompts, better: float, worse: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """+1 where only the first of two models is right, -1 where only the second is, and the prompt of each."""
    of = np.repeat(np.arange(prompts.num), prompts.draw_sizes(random))
    chances = prompts.draw_chances(random, better, worse, 1 - better - worse)[of]
    place = random.random(len(of))
    wins, losses = place < chances[:, 0], place >= 1 - chances[:, 1]
    return wins.astype(float) - losses, of


VIDEOS = 5
UTILITY_STD = 1.5  # logits


def _ratios(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """Labels by Bradley-Terry from hidden utilities; a model that misreads some prompts with all of their videos."""
    for noise, misread in ((0.3, 0.0), (1.0, 0.2), (4.0, 0.5)):
        many = _draw_ratio(Prompts(200_000, "skewed", 0), noise, misread, random)
        true = many[0].sum() / many[1].sum()
        for num in (10, 30, 100, 1000):
            prompts = Prompts(num, "skewed", 0)
            drawn = [_draw_ratio(prompts, noise, misread, random) for _ in range(draws)]
            errors = [right - right.sum() / best.sum() * best for right, best, _ in drawn]
            squares = [float(np.mean(error**2)) for error in errors]
            ceilings = [float(best.mean()) for _, best, _ in drawn]
            size = np.mean(squares) / np.var([(right - true * best).mean() for right, best, _ in drawn])
            told = [paired_interval(0.0, square, size if square else num, num) for square in squares]
            reference = float(np.mean([(high - low) / best for (low, high), best in zip(told, ceilings, strict=True)]))
            found = [ratio_interval(*one) for one in drawn]
            yield _covers("accuracy / ceiling", f"{num} prompts, skewed, {true:.3f}", true, found, reference)


def _draw_ratio(
    prompts: Prompts, noise: float, misread: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    utility = UTILITY_STD * random.normal(size=(prompts.num, VIDEOS))
    slope = np.where(random.random(prompts.num) < misread, -0.3, 1.0)
    score = slope[:, None] * utility + noise * random.normal(size=utility.shape)
    of = np.repeat(np.arange(prompts.num), prompts.draw_sizes(random))
    first = random.integers(VIDEOS, size=len(of))
    second = (first + random.integers(1, VIDEOS, size=len(of))) % VIDEOS
    true_margin = utility[of, first] - utility[of, second]
    sign = np.where(random.random(len(of)) < 0.5 * (1 + np.tanh(0.5 * true_margin)), 1.0, -1.0)
    return credit((score[of, first] - score[of, second]) * sign), credit(true_margin * sign), of


def _draw_clips(
    prompts: Prompts, unsafe: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which clips are unsafe, mostly those of some prompts; an effect of their prompt, N(0, 1); and their prompts."""
    of = np.repeat(np.arange(prompts.num), prompts.draw_sizes(random))
    chances = random.beta(unsafe * 2, (1 - unsafe) * 2, prompts.num)
    effect = random.normal(size=prompts.num)
    return random.random(len(of)) < chances[of], effect[of], of


def _costs(
    separation: float, alike: float, is_unsafe: np.ndarray, effect: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    own = random.normal(size=len(effect))
    return np.where(is_unsafe, separation, -separation) + alike**0.5 * effect + (1 - alike) ** 0.5 * own


def _balanced(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """The sign of a cost; the true balanced accuracy is P(N(0, 1) < separation) for any share of unsafe clips."""
    for num in (30, 100, 1000):
        for true in (0.8, 0.95):
            for alike in (0, 0.5):
                found, figures, prompts = [], [], Prompts(num, "skewed", alike)
                for _ in range(draws):
                    is_unsafe, effect, of = _draw_clips(prompts, 0.25, random)
                    costs = _costs(float(ndtri(true)), alike, is_unsafe, effect, random)
                    right = credit(np.where(is_unsafe, costs, -costs), 0.0)
                    ends = balanced_interval(right, is_unsafe, of)
                    if ends is not None:
                        found.append(ends)
                        figures.append((right[is_unsafe].mean(), right[~is_unsafe].mean()))
                reference = _told_sum(np.array(figures), (true, true), num) / 2
                yield _covers("balanced accuracy", f"{prompts}, {true:g}", true, found, reference)


def _auroc_gaps(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """A model less its control, both of which a prompt's effect moves."""
    for num in (30, 100, 300):
        for separations in ((0.8, 0.8), (1.2, 0.4)):
            found, figures, prompts = [], [], Prompts(num, "skewed", 0.5)
            # Costs of safe and unsafe clips are N(-+separation, 1).
            true = float(-np.diff(ndtr(np.sqrt(2) * np.array(separations)))[0])
            for _ in range(draws):
                is_unsafe, effect, of = _draw_clips(prompts, 0.25, random)
                if is_unsafe.all() or not is_unsafe.any():
                    continue
                own, control = (
                    auroc_parts(_costs(each, 0.5, is_unsafe, effect, random), is_unsafe) for each in separations
                )
                figures.append((own - control).mean())
                found.append(two_class_difference_interval(own - control, is_unsafe, of))
            reference = 2 * student(num) * np.std(figures)
            yield _covers("difference of AUROC", f"{prompts}, {true:.3f}", true, found, reference)


def _rates(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """Mean of prompts' shares: harmful rates and win rates of generators."""
    for num in (30, 100, 600):
        for clips in (1, 4):
            for alike in (0, 0.3, 1):
                for share in (0.02, 0.2, 0.5):
                    prompts = Prompts(num, f"{clips} clips each", alike)
                    shares = [_draw_rates(prompts, clips, share, random) for _ in range(draws)]
                    means = np.array([one.mean() for one in shares])
                    size = share * (1 - share) / max(means.var(), 1e-12)
                    told = [score_interval(mean, size if 0 < mean < 1 else num, num) for mean in means]
                    found = [prompt_share_interval(one, num * clips) for one in shares]
                    yield _covers("rate of a generator", f"{prompts}, {share:g}", share, found, _mean_width(told))


def _draw_rates(prompts: Prompts, clips: int, share: float, random: np.random.Generator) -> np.ndarray:
    chances = prompts.draw_chances(random, share, 1 - share)[:, 0]
    return np.asarray(random.binomial(clips, np.minimum(chances, 1.0)) / clips)


def _rate_gaps(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """Two generators on the same prompts: where one is harmful, the other is more often so too."""
    for num in (30, 100, 600):
        for clips in (1, 4):
            for first, second in ((0.2, 0.2), (0.4, 0.1), (0.05, 0.02)):
                found, figures = [], []
                for _ in range(draws):
                    level = random.random(num)
                    shares = []
                    for share in (first, second):
                        own = random.random((num, clips))
                        rank = np.where(random.random((num, clips)) < 0.5, level[:, None], own)
                        shares.append((rank < share).mean(axis=1))
                    figures.append((shares[0].mean(), shares[1].mean()))
                    found.append(rate_difference_interval(shares[0], shares[1], num * clips, num * clips))
                setting = f"{num} prompts, {clips} clips each, {first:g} and {second:g}"
                told = np.array(figures) * (1, -1)
                yield _covers("difference of two rates", setting, first - second, found,
                              _told_sum(told, (first, -second), num))  # fmt: skip


def _told_sum(means: np.ndarray, shares: tuple[float, float], num: int) -> float:
    """Mean width of the interval of a sum of two shares, (draws, 2), that knows both sizes and their correlation.

    A share that is taken off is below 0.
    """
    sizes = [
        abs(share) * (1 - abs(share)) / max(column.var(), 1e-12) for share, column in zip(shares, means.T, strict=True)
    ]
    correlation = float(np.corrcoef(means.T)[0, 1])
    widths = []
    for one, other in means:
        ends = []
        for mean, size in zip((one, abs(other)), sizes, strict=True):
            low, high = score_interval(mean, size if 0 < mean < 1 else num, num)
            ends.append((low, high))
        if shares[1] < 0:
            ends[1] = (-ends[1][1], -ends[1][0])
        low, high = sum_interval(one, ends[0], other, ends[1], correlation)
        widths.append(high - low)
    return float(np.mean(widths))


def _means(draws: int, random: np.random.Generator) -> Iterator[Row]:
    kinds: dict[str, tuple[Callable[[int], np.ndarray], float]] = {
        "normal": (lambda num: random.normal(size=num), 0.0),
        "exponential": (lambda num: random.exponential(size=num), 1.0),
        "one in ten 8 deviations off": (lambda num: random.normal(size=num) + 8 * (random.random(num) < 0.1), 0.8),
    }
    for num in (30, 100, 1000):
        for kind, (draw, true) in kinds.items():
            drawn = [draw(num) for _ in range(draws)]
            reference = 2 * student(num) * np.std([one.mean() for one in drawn])
            found = [mean_interval(one) for one in drawn]
            yield _covers("mean reward or cost", f"{num} prompts, {kind}", true, found, reference)


def _corrected(draws: int, random: np.random.Generator) -> Iterator[Row]:
    for num, labelled in ((30, 10), (100, 30), (600, 150)):
        for alike in (0, 0.5):
            for true, sensitivity, specificity in ((0.05, 0.95, 0.98), (0.2, 0.85, 0.9), (0.5, 0.75, 0.9)):
                called = true * sensitivity + (1 - true) * (1 - specificity)
                found, figures = [], []
                for _ in range(draws):
                    shares = _draw_rates(Prompts(num, "", alike), 2, called, random)
                    rates, sizes = [], []
                    for share, prompts in ((sensitivity, labelled), (specificity, 3 * labelled)):
                        right, of = Prompts(prompts, "skewed", alike).draw_right(random, share)
                        rates.append(float(right.mean()))
                        sizes.append(effective_size(right, of))
                    size, many = prompt_effective_size(shares, 2 * num), [one[0] for one in sizes if one]
                    if size is None or sum(rates) <= 1:
                        continue
                    figure, ends = corrected_share(
                        float(shares.mean()), *size, SignRates(rates[0], rates[1], many[0], many[1], labelled)
                    )
                    figures.append(figure)
                    found.append(ends)
                reference = 2 * student(labelled) * np.std(figures)
                setting = (
                    f"{num} prompts, rates of {labelled} and {3 * labelled}, alike {alike:g}, {true:g} unsafe, "
                    f"sensitivity {sensitivity:g}"
                )
                yield _covers("corrected rate", setting, true, found, reference)


def _calibration(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """True probabilities: how often their ECE is above what is printed as its 95% point."""
    some = min(draws, 2000)  # each draws two thousand sets of labels itself
    for num in (60, 300):
        for spread in (0.5, 3.0):
            above = 0
            for _ in range(some):
                margin = spread * random.normal(size=num)
                found = reliability(np.where(random.random(num) < preference_probability(margin), margin, -margin))
                assert found.ece is not None
                assert found.perfect_ece_95 is not None
                above += found.ece > found.perfect_ece_95
            setting = f"{num} comparisons, margins of {spread:g} logits"
            yield error_row("ECE of true probabilities above its 95% point", setting, above, some, 0.05, MOST_TYPE_I)


def _targets(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """A target that the truth just misses is called kept, or one that it just keeps missed."""
    for num in (10, 30, 100):
        for alike in (0, 0.3, 1):
            for target in (Target("false_positive_rate", 0.05), Target("recall", 0.9)):
                prompts, wrong = Prompts(num, "skewed", alike), {True: 0, False: 0}
                for _ in range(draws):
                    held = is_held(target, share_interval(*prompts.draw_right(random, target.value)))
                    if held is not None:
                        wrong[held] += 1
                for held, count in wrong.items():
                    name = "a target that is just " + ("missed, called kept" if held else "kept, called missed")
                    yield error_row(name, f"{prompts}, {target}", count, draws, 0.025, 0.05)


def _covers(
    promise: str, setting: str, true: float, intervals: Sequence[Interval | None], reference_width: float
) -> Row:
    """The row of all draws that have an interval."""
    found = [one for one in intervals if one is not None]
    covered = sum(low <= true <= high for low, high in found)
    return coverage_row(promise, setting, covered, len(found), _mean_width(found) / reference_width)


def _mean_width(intervals: Sequence[Interval]) -> float:
    return float(np.mean([high - low for low, high in intervals]))


PARTS = (
    _shares,
    _differences,
    _type_one,
    _ratios,
    _balanced,
    _auroc_gaps,
    _rates,
    _rate_gaps,
    _means,
    _corrected,
    _calibration,
    _targets,
)
