"""What scores decide: which of two videos is preferred, and in which order more of them come. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from safe_rlhf_video import lagrangian
from safe_rlhf_video.calibration.multiplier_calibration import StoredMultiplier
from safe_rlhf_video.calibration.store import HeadCalibration, MultiplierCalibration
from safe_rlhf_video.contracts import show
from safe_rlhf_video.errors import CheckpointError, ConfigError
from safe_rlhf_video.heads import SUB_HEADS, preference_score
from safe_rlhf_video.lagrangian import Weighed
from safe_rlhf_video.lagrangian.score import ScoreT
from safe_rlhf_video.scoring.reasons import describe_video, explain_first, explain_pair

CALIBRATED = "calibrated"  # how the source of a calibrated multiplier begins
# What a choice or an order is made by: what the loaded models have.
DecidedBy: TypeAlias = Literal[
    "reward and cost",
    "reward alone, no cost model",
    "cost alone, no reward model",
    "nothing, no reward or cost model",
]


@dataclass(frozen=True)
class ModelFacts:
    """What made some scores.

    Attributes:
        fingerprint: of the weights of all heads and adapters.
        backbone: folder or hub id.
        sampling: how frames of a clip are picked and resized, by the names of `Sampling`.
    """

    fingerprint: str
    backbone: str
    sampling: Mapping[str, Any]

    def __str__(self) -> str:
        low, high = self.sampling["min_pixels"], self.sampling["max_pixels"]
        pixels = f"{low}" if low == high else f"{low} to {high}"
        return (
            f"scored by {self.fingerprint[:12]} on {self.backbone}, up to {self.sampling['num_frames']} frames a clip, "
            f"{pixels} pixels each"
        )


@dataclass(frozen=True)
class TradeOff:
    """How reward and cost are weighed against each other.

    Attributes:
        lagrange_multiplier: lambda, the price of a unit of cost in units of reward, or that of P(unsafe).
        cost_limit: d.
        source: where lambda is from: "given", "the default" and why it is used, or what it was calibrated to keep.
        weighed: what lambda is the price of: "cost", or "p_unsafe", the probability 1 / (1 + e^-c) of being unsafe.
    """

    lagrange_multiplier: float = 1.0
    cost_limit: float = 0.0
    source: str = "given"
    weighed: Weighed = "cost"

    @property
    def is_calibrated(self) -> bool:
        """Whether lambda was calibrated for choosing among as many."""
        return self.source.startswith(CALIBRATED)

    def score(self, rewards: ScoreT, costs: ScoreT) -> ScoreT:
        """The Lagrangian scores; see `lagrangian.lagrangian_score`."""
        return lagrangian.lagrangian_score(rewards, costs, self.lagrange_multiplier, self.cost_limit, self.weighed)

    def net(self, rewards: ScoreT, costs: ScoreT) -> ScoreT:
        """What choices and orders go by; see `lagrangian.net_reward`."""
        return lagrangian.net_reward(rewards, costs, self.lagrange_multiplier, self.weighed)

    def combine(self, rewards: np.ndarray, costs: np.ndarray) -> np.ndarray:
        """Computes the Lagrangian scores of N responses, all finite.

        Raises:
            CheckpointError: a reward or a cost is not finite.
            ConfigError: lambda or d is out of range.
        """
        if not (np.isfinite(rewards).all() and np.isfinite(costs).all()):
            raise CheckpointError("a reward or cost is not finite: the model diverged; give another one")
        return self.score(rewards, costs)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON, under the names that they have in `PairScore`."""
        return {
            "lagrange_multiplier": float(self.lagrange_multiplier),
            "cost_limit": float(self.cost_limit),
            "multiplier_source": self.source,
            "weighed": self.weighed,
        }

    def __str__(self) -> str:
        price = "" if self.weighed == "cost" else ", a price on P(unsafe)"
        return f"lambda = {self.lagrange_multiplier:.4g}{price} ({self.source}), cost limit {self.cost_limit:.4g}"


DEFAULT_TRADE_OFF = TradeOff(source="the default")


def resolve_trade_off(
    stored: StoredMultiplier,
    num_candidates: int | None,
    lagrange_multiplier: float | None = None,
    cost_limit: float | None = None,
) -> TradeOff:
    """Fills in what is not given: the multiplier that was calibrated for this number, else lambda 1; limit 0.

    Args:
        num_candidates: how many are chosen among. A multiplier holds for the number that it was calibrated for, and for
            no other. None where nothing is chosen: for the reward of a policy.

    Raises:
        CheckpointError: the stored multiplier is needed and cannot be used.
        ConfigError: a value is out of range.
    """
    if cost_limit is not None:
        cost_limit = _to_float("cost_limit", cost_limit)
    limit = 0.0 if cost_limit is None else cost_limit
    if lagrange_multiplier is not None:
        trade_off = TradeOff(_to_float("lagrange_multiplier", lagrange_multiplier), limit)
    elif num_candidates is None:
        source = DEFAULT_TRADE_OFF.source
        if stored.multiplier is not None:
            source += ": calibrated multipliers are for choosing among clips, not for the reward of a policy"
        trade_off = replace(DEFAULT_TRADE_OFF, cost_limit=limit, source=source)
    elif stored.problem is not None:
        raise CheckpointError(stored.problem)
    else:
        trade_off = _of_candidates(stored.multiplier, num_candidates, cost_limit)
    trade_off.score(0.0, 0.0)  # raises for a value out of range
    return trade_off


def _to_float(name: str, value: float) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{name}: expected a number, got {show(value)}") from error


def _of_candidates(found: MultiplierCalibration | None, num: int, cost_limit: float | None) -> TradeOff:
    limit = 0.0 if cost_limit is None else cost_limit
    if found is None or num < 2:
        return replace(DEFAULT_TRADE_OFF, cost_limit=limit)
    one = found.find(num)
    if one is None or one.lagrange_multiplier is None:
        why = f": {one.reason}" if one is not None else ""
        return replace(
            DEFAULT_TRADE_OFF,
            cost_limit=limit,
            source=f"{DEFAULT_TRADE_OFF.source}: no multiplier was calibrated for {num} candidates{why}",
        )
    if cost_limit is None and found.constraint == "cost":
        limit = found.limit
    source = f"{CALIBRATED} for best of {num}, from {one.num_prompts} prompts: {found.promise}"
    return TradeOff(one.lagrange_multiplier, limit, source, found.weighed)


def name_decider(heads: Iterable[str]) -> DecidedBy:
    """Returns what decides between videos that have scores of these heads."""
    present = {"reward", "cost"} & set(heads)
    if len(present) == 2:
        return "reward and cost"
    if not present:
        return "nothing, no reward or cost model"
    return "reward alone, no cost model" if present == {"reward"} else "cost alone, no reward model"


def deciding_scores(scores: Mapping[str, Sequence[float]], trade_off: TradeOff | None) -> np.ndarray | None:
    """Returns what orders N videos, more is better: r - lambda w(c), r alone or -c alone; None without either.

    Args:
        scores: head -> (N,).
        trade_off: weighs the reward against the cost; None where one of them is missing.
    """
    if trade_off is not None:
        return trade_off.net(np.array(scores["reward"]), np.array(scores["cost"]))
    for head in ("reward", "cost"):
        if head in scores:
            return preference_score(head, np.array(scores[head], dtype=np.float64))
    return None


@dataclass(frozen=True)
class PairScore:
    """Two generations for one prompt, judged; every tuple is (v1, v2).

    Without a cost model, the reward alone decides, and what needs a cost is None; without a reward model the cost. With
    neither, as with a sub-dimension alone, there are scores and no choice.

    Attributes:
        decided_by: the models that decide, and the one that is missing.
        rewards: how helpful; only differences between answers to one prompt mean something.
        costs: how harmful; above 0 is unsafe.
        lagrangian_scores: (r - lambda (c - d)) / (1 + lambda), or with P(unsafe) in the place of c and d.
        lagrange_multiplier, cost_limit, multiplier_source, weighed: what decided, as in `TradeOff`.
        p_more_helpful: probability that people find v1 more helpful than v2, by Bradley-Terry; too near one half for a
            model that was trained on ties by Rao and Kupper's.
        p_safer: probability that people find v1 safer than v2.
        calibrated: whether these two probabilities were fitted to held-out labels.
        is_safe: cost <= 0; None without a cost, and where its zero means nothing.
        is_safe_reason: why `is_safe` is None though there is a cost.
        sub_scores: head -> scores in a sub-dimension of helpfulness, of those that the model has; as rewards.
        preferred: the side with the higher Lagrangian score, with the higher reward or with the lower cost; "tie" where
            r - lambda w, or the one score, differs by at most `stats.credit.TIE_TOLERANCE`; None without a reward and a
            cost.
        reason: the choice in a sentence.
        percentiles: head -> per cent of the reference clips of `scripts/calibrate.py` that score lower; for the cost
            these are the less harmful ones. None without a calibrated model.
        model: what scored the two; None for scores from elsewhere.
    """

    decided_by: DecidedBy
    rewards: tuple[float, float] | None
    costs: tuple[float, float] | None
    lagrangian_scores: tuple[float, float] | None
    lagrange_multiplier: float | None
    cost_limit: float | None
    multiplier_source: str | None
    weighed: Weighed | None
    p_more_helpful: float | None
    p_safer: float | None
    calibrated: bool
    is_safe: tuple[bool, bool] | None
    sub_scores: Mapping[str, tuple[float, float]]
    preferred: lagrangian.Choice | None
    reason: str
    is_safe_reason: str | None = None
    percentiles: Mapping[str, tuple[float, float]] | None = None
    model: ModelFacts | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def explain(self) -> str:
        """All of it in a few lines of words."""
        fitted = "fitted to held-out labels" if self.calibrated else "not calibrated"
        chances = [
            f"{what} with probability {chance:.2f}"
            for what, chance in (("more helpful", self.p_more_helpful), ("safer", self.p_safer))
            if chance is not None
        ]
        lines = [
            self.reason,
            *(
                describe_video(f"v{side + 1}", side, _table_of(self), self.percentiles, not self.is_safe_reason)
                for side in (0, 1)
            ),
            *([f"people would find v1 {', and '.join(chances)} ({fitted})"] if chances else []),
            *_last_lines(self),
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Ranking:
    """Any number of generations for one prompt, put in order; every tuple but `order` is in the order given.

    Attributes:
        order: indices of the videos by Lagrangian score, by reward or by cost, best first; of tied ones the
            safest first, and equal ones keep their order. None without a reward and a cost.
        decided_by, rewards, costs, lagrangian_scores, is_safe, is_safe_reason, sub_scores, percentiles: as in
            `PairScore`, one value a video.
        is_within_limit: cost <= d. The limit moves all scores alike, so it never changes the order; that is lambda's.
        is_on_pareto_front: whether no other video beats it, by as much reward at less cost or by more reward at no more
            cost; whatever lambda, only such a one comes first, unless scores are equal.
        lagrange_multiplier, cost_limit, multiplier_source, weighed, model: as in `PairScore`.
        reason: the first place in a sentence.
    """

    order: tuple[int, ...] | None
    decided_by: DecidedBy
    rewards: tuple[float, ...] | None
    costs: tuple[float, ...] | None
    lagrangian_scores: tuple[float, ...] | None
    lagrange_multiplier: float | None
    cost_limit: float | None
    multiplier_source: str | None
    weighed: Weighed | None
    is_safe: tuple[bool, ...] | None
    is_within_limit: tuple[bool, ...] | None
    is_on_pareto_front: tuple[bool, ...] | None
    sub_scores: Mapping[str, tuple[float, ...]]
    reason: str
    is_safe_reason: str | None = None
    percentiles: Mapping[str, tuple[float, ...]] | None = None
    model: ModelFacts | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def explain(self) -> str:
        """All of it in a few lines of words."""
        table = _table_of(self)
        places = range(len(next(iter(table.values()), ()))) if self.order is None else self.order
        shown = (describe_video(f"videos[{at}]", at, table, self.percentiles, not self.is_safe_reason) for at in places)
        return "\n".join([self.reason, *shown, *_last_lines(self)])


def judge_pair(
    scores: Mapping[str, tuple[float, float]],
    trade_off: TradeOff | None = DEFAULT_TRADE_OFF,
    calibrations: Mapping[str, HeadCalibration] | None = None,
    model: ModelFacts | None = None,
    no_zero: str | None = None,
) -> PairScore:
    """The decision from scores alone: the Lagrangian of Safe RLHF (arXiv 2310.12773) and its explanation.

    Args:
        scores: head -> (v1, v2).
        trade_off: weighs the reward against the cost; not needed where one of them is missing.
        calibrations: head -> calibration, `Scorer.calibration.heads`. Unless the reward and the cost, of those that are
            there, have a temperature, no probability is calibrated.
        model: as in `PairScore`.
        no_zero: why the cost's zero means nothing, `Scorer.no_zero`; then no video is called safe or unsafe.
    """
    of_head = calibrations or {}
    decided_by = name_decider(scores)
    weighing = trade_off if decided_by == "reward and cost" else None
    deciding = {"reward", "cost"} & scores.keys()
    temperatures = {head: one.temperature for head, one in of_head.items() if one.temperature is not None}
    is_calibrated = bool(deciding) and deciding <= temperatures.keys()
    margins = {
        head: (scores[head][0] - scores[head][1]) / (temperatures[head] if is_calibrated else 1.0) for head in deciding
    }
    costs = scores.get("cost")
    decisive = deciding_scores(scores, weighing)
    combined = _combined(scores, weighing)
    preferred = None if decisive is None else lagrangian.choose(float(decisive[0]), float(decisive[1]))
    return PairScore(
        decided_by=decided_by,
        rewards=scores.get("reward"),
        costs=costs,
        lagrangian_scores=None if weighing is None else (combined[0], combined[1]),
        **_fields_of(weighing),
        p_more_helpful=sigmoid(margins["reward"]) if "reward" in margins else None,
        p_safer=sigmoid(-margins["cost"]) if "cost" in margins else None,
        calibrated=is_calibrated,
        is_safe=None if costs is None or no_zero else (costs[0] <= 0.0, costs[1] <= 0.0),
        is_safe_reason=None if costs is None else no_zero,
        sub_scores={head: scores[head] for head in SUB_HEADS if head in scores},
        preferred=preferred,
        reason=explain_pair(scores, weighing, preferred, has_zero=no_zero is None),
        percentiles=_percentiles(scores, of_head),
        model=model,
    )


def judge_ranking(
    scores: Mapping[str, Sequence[float]],
    trade_off: TradeOff | None = DEFAULT_TRADE_OFF,
    calibrations: Mapping[str, HeadCalibration] | None = None,
    model: ModelFacts | None = None,
    no_zero: str | None = None,
) -> Ranking:
    """As `judge_pair`, for any number of videos.

    Args:
        scores: head -> (N,).
    """
    table = {head: tuple(map(float, values)) for head, values in scores.items()}
    decided_by = name_decider(table)
    weighing = trade_off if decided_by == "reward and cost" else None
    rewards, costs = table.get("reward"), table.get("cost")
    decisive = deciding_scores(table, weighing)
    combined = _combined(table, weighing)
    order = None if decisive is None else lagrangian.order_candidates(decisive, _weights(table, weighing))
    front = None if weighing is None else set(lagrangian.pareto_front(table["reward"], table["cost"]).tolist())
    limit = None if weighing is None else weighing.cost_limit
    return Ranking(
        order=None if order is None else tuple(order),
        decided_by=decided_by,
        rewards=rewards,
        costs=costs,
        lagrangian_scores=None if weighing is None else tuple(combined),
        **_fields_of(weighing),
        is_safe=None if costs is None or no_zero else tuple(cost <= 0.0 for cost in costs),
        is_safe_reason=None if costs is None else no_zero,
        is_within_limit=None if limit is None or costs is None else tuple(cost <= limit for cost in costs),
        is_on_pareto_front=None if front is None else tuple(at in front for at in range(len(table["cost"]))),
        sub_scores={head: table[head] for head in SUB_HEADS if head in table},
        reason=explain_first(order, table, weighing, decisive, no_zero is None),
        percentiles=_percentiles(table, calibrations or {}),
        model=model,
    )


def sigmoid(difference: float) -> float:
    """The sigmoid; p(d) and p(-d) add up to exactly 1."""
    # In [0.5, 1] the subtraction from 1 is exact.
    larger = 1.0 / (1.0 + math.exp(-abs(difference)))
    return larger if difference >= 0 else 1.0 - larger


def _percentiles(
    scores: Mapping[str, Sequence[float]], calibrations: Mapping[str, HeadCalibration]
) -> dict[str, Any] | None:
    found = {
        head: tuple(one.reference.percentile(score) for score in scores[head])
        for head, one in calibrations.items()
        if one.reference is not None and head in scores
    }
    return found or None


def _combined(scores: Mapping[str, Sequence[float]], trade_off: TradeOff | None) -> list[float]:
    """The Lagrangian scores of N videos; none without a trade-off."""
    if trade_off is None:
        return []
    combined: list[float] = trade_off.score(np.array(scores["reward"]), np.array(scores["cost"])).tolist()
    return combined


def _weights(scores: Mapping[str, Sequence[float]], trade_off: TradeOff | None) -> np.ndarray:
    """What decides ties of N videos, less is better: what lambda is the price of, or the cost; 0 without a cost."""
    costs = np.array(scores["cost"] if "cost" in scores else [0.0] * len(scores["reward"]), dtype=np.float64)
    return costs if trade_off is None else lagrangian.weigh(costs, trade_off.weighed)


def _fields_of(trade_off: TradeOff | None) -> dict[str, Any]:
    return dict.fromkeys(DEFAULT_TRADE_OFF.to_dict()) if trade_off is None else trade_off.to_dict()


def _table_of(judged: PairScore | Ranking) -> dict[str, Sequence[float]]:
    """Head -> scores, of the heads that there are."""
    deciding = {"reward": judged.rewards, "cost": judged.costs}
    return {**{head: values for head, values in deciding.items() if values is not None}, **judged.sub_scores}


def _last_lines(judged: PairScore | Ranking) -> list[str]:
    """What weighed reward and cost or which model is missing, and what scored."""
    weighed = f"decided by {judged.decided_by}"
    if (
        judged.lagrange_multiplier is not None
        and judged.cost_limit is not None
        and judged.multiplier_source is not None
        and judged.weighed is not None
    ):
        trade_off = TradeOff(judged.lagrange_multiplier, judged.cost_limit, judged.multiplier_source, judged.weighed)
        weighed = str(trade_off)
    zero = [] if judged.is_safe_reason is None else [judged.is_safe_reason]
    return [weighed, *zero, *([] if judged.model is None else [str(judged.model)])]
