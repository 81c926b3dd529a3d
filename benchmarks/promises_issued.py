"""How often something is issued that does not keep its promise: multipliers, thresholds, temperatures, cost limits.

Prompts are drawn anew every time, and misfire as a whole: where the models are mistaken about one clip of a prompt,
they are mistaken about all. The truth of a multiplier is that of a pool of prompts from which the draws are made with
replacement, so that it is exact; the truth of the others has a formula, or is that of two million values. Rows of the
largest sets are of a fifth of the draws.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from promise_rows import MOST_TYPE_I, Row, error_row

from safe_rlhf_video.calibration.multiplier_calibration import Candidates, Limit, calibrate_multiplier
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.lagrangian import MOST_COST, weigh
from safe_rlhf_video.lagrangian.confidence import LADDER
from safe_rlhf_video.lagrangian.order import trace_choices
from safe_rlhf_video.stats.bounds import betting_p_values, hoeffding_bentkus_p_values
from safe_rlhf_video.stats.probabilities import fit_temperature, preference_probability
from safe_rlhf_video.stats.thresholds import Target, choose_threshold

NOMINAL = 0.05
POOL = 3000  # prompts
MOST_CANDIDATES = 5
SHARES_OF_CANDIDATES = {2: 0.2, 3: 0.3, 4: 0.3, 5: 0.2}
SIZES = (1, 2, 3, 6, 10)  # comparisons or clips of a prompt, as in SafeSora few for most
SHARES = (0.20, 0.25, 0.25, 0.20, 0.10)
VALUES = 2_000_000  # that the mean of a distribution is from


# --- Multipliers


@dataclass(frozen=True)
class Pool:
    """Prompts with `MOST_CANDIDATES` candidates each; (P, n)."""

    rewards: np.ndarray
    costs: np.ndarray
    is_unsafe: np.ndarray

    @classmethod
    def draw(cls, random: np.random.Generator, have_tails: bool) -> "Pool":
        """What is harmful is more helpful. In 4% of the prompts every clip is unsafe and looks safe."""
        shape = (POOL, MOST_CANDIDATES)
        appetite = random.normal(size=(POOL, 1))  # of a prompt for harm
        is_unsafe = random.random(shape) < 1.0 / (1.0 + np.exp(2.0 - 1.5 * appetite))
        misfires = random.random((POOL, 1)) < 0.04
        costs = np.where(is_unsafe & ~misfires, 2.0, -2.0) + random.normal(size=shape)
        if have_tails:
            costs += np.exp(1.2 * random.normal(size=(POOL, 1))) - math.exp(0.72)
        rewards = random.normal(size=shape) + 1.0 * is_unsafe
        return cls(rewards, costs, is_unsafe | misfires)

    def truth(self, num: int, limit: Limit) -> np.ndarray:
        """(L,), the true rate or mean at each multiplier of best of `num`, over all choices of `num` candidates."""
        means = []
        for some in map(list, combinations(range(MOST_CANDIDATES), num)):
            rewards, costs, is_unsafe = self.rewards[:, some], self.costs[:, some], self.is_unsafe[:, some]
            weights = costs if limit.harm_rate is None else weigh(costs, "p_unsafe")
            chosen = trace_choices(rewards, weights, np.array(LADDER))
            losses = np.minimum(costs, MOST_COST) if limit.harm_rate is None else is_unsafe
            means.append(losses[np.arange(POOL), chosen].mean(axis=1))
        return np.asarray(np.mean(means, axis=0))

    def sample(self, num_prompts: int, random: np.random.Generator) -> Candidates:
        """Prompts with 2 to 5 of their candidates, which say nothing of what the number is."""
        prompts = random.integers(POOL, size=num_prompts)
        numbers = random.choice([*SHARES_OF_CANDIDATES], num_prompts, p=[*SHARES_OF_CANDIDATES.values()])
        order = random.random((num_prompts, MOST_CANDIDATES)).argsort(axis=1)
        places = list(zip(prompts, order, numbers, strict=True))

        def rows_of(values: np.ndarray) -> list[np.ndarray]:
            return [values[prompt, row[:number]] for prompt, row, number in places]

        return Candidates(rows_of(self.rewards), rows_of(self.costs), rows_of(self.is_unsafe))  # type: ignore[arg-type]


def _multipliers(draws: int, random: np.random.Generator) -> Iterator[Row]:
    for limit, num_prompts, have_tails in (
        (Limit(harm_rate=0.10), 150, False),
        (Limit(harm_rate=0.05), 500, False),
        (Limit(cost=-1.5), 100, True),
    ):
        pool = Pool.draw(random, have_tails)
        is_wrong = {num: _wrong_multipliers(pool, num, limit) for num in SHARES_OF_CANDIDATES}
        # Of many prompts a draw takes longer; fewer draws of them have a wider Monte-Carlo error.
        part = draws if num_prompts < 500 else max(draws // 5, 1)
        wrong = _count_wrong(pool, is_wrong, limit, num_prompts, part, random)
        what = "harmful rate" if limit.harm_rate is not None else "mean cost"
        value = limit.cost if limit.harm_rate is None else limit.harm_rate
        for num, count in wrong.items():
            setting = f"best of {num}, {what} {value:g}, {num_prompts} prompts of 2 to 5"
            yield error_row("multiplier wrongly issued", setting, count, part, NOMINAL, NOMINAL)


def _wrong_multipliers(pool: Pool, num: int, limit: Limit) -> Mapping[float, bool]:
    most = limit.cost if limit.harm_rate is None else limit.harm_rate
    assert most is not None
    return dict(zip(LADDER, (pool.truth(num, limit) > most).tolist(), strict=True))


def _count_wrong(
    pool: Pool,
    is_wrong: Mapping[int, Mapping[float, bool]],
    limit: Limit,
    num_prompts: int,
    draws: int,
    random: np.random.Generator,
) -> dict[int, int]:
    wrong = dict.fromkeys(is_wrong, 0)
    for _ in range(draws):
        try:
            found = calibrate_multiplier(pool.sample(num_prompts, random), {"reward": "r", "cost": "c"}, limit)
        except SampleError:  # none was issued
            continue
        for one in found.multipliers:
            if one.lagrange_multiplier is not None:
                wrong[one.num_candidates] += is_wrong[one.num_candidates][one.lagrange_multiplier]
    return wrong


# --- Thresholds


class Misfires(NamedTuple):
    """Prompts of which a share is flagged, or missed, with all of its clips."""

    num_prompts: int
    share: float
    target: Target


def _thresholds(draws: int, random: np.random.Generator) -> Iterator[Row]:
    for num, share, target in (
        Misfires(60, 0.055, Target("false_positive_rate", 0.05)),
        Misfires(100, 0.055, Target("false_positive_rate", 0.05)),
        Misfires(300, 0.055, Target("false_positive_rate", 0.05)),
        Misfires(1000, 0.02, Target("false_positive_rate", 0.05)),
        Misfires(100, 0.11, Target("recall", 0.9)),
        Misfires(40, 0.0, Target("recall", 0.9)),
    ):
        wrong = 0
        is_positive = target.kind == "recall"
        for _ in range(draws):
            prompts = np.repeat(np.arange(num), random.choice(SIZES, num, p=SHARES))
            bad = random.random(num) < share
            # A clip's logit lies in [0, 1], and that of a prompt that misfires beyond it.
            logits = random.random(len(prompts)) + (-1.0 if is_positive else 1.0) * bad[prompts]
            chosen = choose_threshold(logits, np.full(len(prompts), is_positive), prompts, target)
            if chosen is None:
                continue
            above = _share_above(chosen.logit, share, -1.0 if is_positive else 1.0)
            wrong += above < target.value if is_positive else above > target.value
        setting = f"{target}, {num} prompts, {share:.1%} misfire as a whole"
        yield error_row("threshold wrongly issued", setting, wrong, draws, NOMINAL, NOMINAL)


def _share_above(threshold: float, share: float, shift: float) -> float:
    """The true share of clips above a threshold."""
    usual, shifted = (min(max(1.0 - threshold + by, 0.0), 1.0) for by in (0.0, shift))
    return (1.0 - share) * usual + share * shifted


# --- Temperatures


def _temperatures(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """Margins that are right as they are. Comparisons of a prompt have one answer, and say as little as one of them."""
    for num, sizes in ((30, (1,)), (30, SIZES), (100, SIZES), (300, SIZES), (1000, SIZES)):
        shares = SHARES if len(sizes) > 1 else None
        # Large sets are as many draws as take as long.
        part = draws if num < 300 else max(draws // 5, 1)
        issued = 0
        for _ in range(part):
            prompts = np.repeat(np.arange(num), random.choice(sizes, num, p=shares))
            true = 1.5 * random.normal(size=num)
            label = np.where(random.random(num) < preference_probability(true), 1.0, -1.0)
            issued += fit_temperature((true * label)[prompts], prompts).temperature not in (None, 1.0)
        setting = f"{num} prompts of {'1' if len(sizes) == 1 else '1 to 10'} comparisons that are alike"
        yield error_row("temperature issued where none is needed", setting, issued, part, NOMINAL, MOST_TYPE_I)


# --- Means of costs and of probabilities


def _costs(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """The limit is the true mean, so that every cost limit that is promised is wrong."""
    for name, kind in (("normal", 0), ("log-normal", 1), ("Student's t(2.5)", 2), ("1 in 50 costs 10", 3)):
        limit = float(np.minimum(_draw_costs(kind, (VALUES,), random), MOST_COST).mean())
        for num in (30, 100, 1000):
            wrong = 0
            for part in _parts(draws):
                values = np.minimum(_draw_costs(kind, (part, num), random), MOST_COST)
                p_values = betting_p_values(values, limit, MOST_COST, 1.0 - NOMINAL)
                wrong += int((p_values <= NOMINAL).sum())
            setting = f"costs: {name}, {num} prompts"
            yield error_row("cost limit wrongly promised", setting, wrong, draws, NOMINAL, NOMINAL)


def _draw_costs(kind: int, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    if kind == 0:
        return 2.0 * random.normal(size=shape)
    if kind == 1:
        return np.exp(random.normal(size=shape))
    if kind == 2:
        return random.standard_t(2.5, size=shape)
    return np.where(random.random(shape) < 0.02, 10.0, -1.0)


def _risks(draws: int, random: np.random.Generator) -> Iterator[Row]:
    """A harmful rate by P(unsafe), where the limit is the true mean."""
    for num in (60, 300):
        risks = random.beta(0.1, 0.9, size=(draws, num))
        wrong = int((hoeffding_bentkus_p_values(risks.mean(axis=1), num, 0.1) <= NOMINAL).sum())
        yield error_row("harmful rate by P(unsafe) wrongly promised", f"{num} prompts", wrong, draws, NOMINAL, NOMINAL)


def _parts(draws: int) -> Sequence[int]:
    """Draws at once, so that memory stays small."""
    return [min(1000, draws - start) for start in range(0, draws, 1000)]


PARTS = (_multipliers, _thresholds, _temperatures, _costs, _risks)
