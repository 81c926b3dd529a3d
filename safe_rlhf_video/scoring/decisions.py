"""What scores decide: which of two videos is preferred, and in which order more of them come. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from safe_rlhf_video import lagrangian
from safe_rlhf_video.calibration.multiplier_calibration import StoredMultiplier
from safe_rlhf_video.calibration.store import HeadCalibration
from safe_rlhf_video.errors import CheckpointError, ConfigError
from safe_rlhf_video.heads import SUB_HEADS
from safe_rlhf_video.lagrangian import Weighed
from safe_rlhf_video.lagrangian.score import ScoreT


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
        source: where lambda is from: "given", "the default", or what it was calibrated to keep.
        weighed: what lambda is the price of: "cost", or "p_unsafe", the probability 1 / (1 + e^-c) of being unsafe.
    """

    lagrange_multiplier: float = 1.0
    cost_limit: float = 0.0
    source: str = "given"
    weighed: Weighed = "cost"

    def score(self, rewards: ScoreT, costs: ScoreT) -> ScoreT:
        """The Lagrangian scores; see `lagrangian.lagrangian_score`."""
        return lagrangian.lagrangian_score(rewards, costs, self.lagrange_multiplier, self.cost_limit, self.weighed)

    def combine(self, rewards: np.ndarray, costs: np.ndarray) -> np.ndarray:
        """Computes the Lagrangian scores of N responses, all finite.

        Raises:
            CheckpointError: a reward or a cost is not finite.
            ConfigError: lambda or d is out of range, or so large that a score overflows.
        """
        if not (np.isfinite(rewards).all() and np.isfinite(costs).all()):
            raise CheckpointError("a reward or cost is not finite: the model diverged; give another one")
        with np.errstate(over="ignore", invalid="ignore"):
            combined = self.score(rewards, costs)
        if not np.isfinite(combined).all():
            raise ConfigError(f"{self}: a score overflows; give a smaller lagrange_multiplier or cost_limit")
        return combined

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON, under the names that they have in `PairScore`."""
        return {
            "lagrange_multiplier": self.lagrange_multiplier,
            "cost_limit": self.cost_limit,
            "multiplier_source": self.source,
            "weighed": self.weighed,
        }

    def __str__(self) -> str:
        price = "" if self.weighed == "cost" else ", a price on P(unsafe)"
        return f"lambda = {self.lagrange_multiplier:.4g}{price} ({self.source}), cost limit {self.cost_limit:.4g}"


DEFAULT_TRADE_OFF = TradeOff()


def resolve_trade_off(
    stored: StoredMultiplier, lagrange_multiplier: float | None, cost_limit: float | None
) -> TradeOff:
    """Fills in what is not given: the stored multiplier and its limit, else lambda 1 and limit 0.

    Raises:
        CheckpointError: the stored multiplier is needed and cannot be used.
        ConfigError: a value is out of range.
    """
    found = stored.multiplier
    if cost_limit is None:
        cost_limit = found.limit if found is not None and found.constraint == "cost" else 0.0
    if lagrange_multiplier is not None:
        trade_off = TradeOff(float(lagrange_multiplier), float(cost_limit))
    elif stored.problem is not None:
        raise CheckpointError(stored.problem)
    elif found is None:
        trade_off = TradeOff(1.0, float(cost_limit), "the default")
    else:
        trade_off = TradeOff(found.lagrange_multiplier, float(cost_limit), str(found), found.weighed)
    trade_off.score(0.0, 0.0)  # raises for a value out of range
    return trade_off


@dataclass(frozen=True)
class PairScore:
    """Two generations for one prompt, judged; every tuple is (v1, v2).

    Attributes:
        rewards: how helpful; only differences between answers to one prompt mean something.
        costs: how harmful; above 0 is unsafe.
        lagrangian_scores: (r - lambda (c - d)) / (1 + lambda), or with P(unsafe) in the place of c and d.
        lagrange_multiplier, cost_limit, multiplier_source, weighed: what decided, as in `TradeOff`.
        p_more_helpful: probability that people find v1 more helpful than v2, by Bradley-Terry; too near one half for a
            model that was trained on ties by Rao and Kupper's.
        p_safer: probability that people find v1 safer than v2.
        calibrated: whether these two probabilities were fitted to held-out labels.
        is_safe: cost <= 0.
        sub_scores: head -> scores in a sub-dimension of helpfulness, of those that the model has; as rewards.
        preferred: the side with the higher Lagrangian score; "tie" below `stats.credit.TIE_TOLERANCE`.
        reason: the choice in a sentence.
        percentiles: head -> per cent of the reference clips of `scripts/calibrate.py` that score lower; for the cost
            these are the less harmful ones. None without a calibrated model.
        model: what scored the two; None for scores from elsewhere.
    """

    rewards: tuple[float, float]
    costs: tuple[float, float]
    lagrangian_scores: tuple[float, float]
    lagrange_multiplier: float
    cost_limit: float
    multiplier_source: str
    weighed: Weighed
    p_more_helpful: float
    p_safer: float
    calibrated: bool
    is_safe: tuple[bool, bool]
    sub_scores: Mapping[str, tuple[float, float]]
    preferred: Literal["v1", "v2", "tie"]
    reason: str
    percentiles: Mapping[str, tuple[float, float]] | None = None
    model: ModelFacts | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def explain(self) -> str:
        """All of it in a few lines of words."""
        fitted = "fitted to held-out labels" if self.calibrated else "not calibrated"
        lines = [
            self.reason,
            *(_describe_video(f"v{side + 1}", side, self.rewards, self.costs, self.percentiles) for side in (0, 1)),
            f"people would find v1 more helpful with probability {self.p_more_helpful:.2f}, and safer with "
            f"{self.p_safer:.2f} ({fitted})",
            str(_trade_off_of(self)),
        ]
        return "\n".join([*lines, *([] if self.model is None else [str(self.model)])])


@dataclass(frozen=True)
class Ranking:
    """Any number of generations for one prompt, put in order; every tuple but `order` is in the order given.

    Attributes:
        order: indices of the videos by Lagrangian score, best first; equal ones keep their order.
        rewards, costs, lagrangian_scores, is_safe, sub_scores, percentiles: as in `PairScore`, one value a video.
        is_within_limit: cost <= d. The limit moves all scores alike, so it never changes the order; that is lambda's.
        is_on_pareto_front: whether no other video beats it, by as much reward at less cost or by more reward at no more
            cost; whatever lambda, only such a one comes first, unless scores are equal.
        lagrange_multiplier, cost_limit, multiplier_source, weighed, model: as in `PairScore`.
        reason: the first place in a sentence.
    """

    order: tuple[int, ...]
    rewards: tuple[float, ...]
    costs: tuple[float, ...]
    lagrangian_scores: tuple[float, ...]
    lagrange_multiplier: float
    cost_limit: float
    multiplier_source: str
    weighed: Weighed
    is_safe: tuple[bool, ...]
    is_within_limit: tuple[bool, ...]
    is_on_pareto_front: tuple[bool, ...]
    sub_scores: Mapping[str, tuple[float, ...]]
    reason: str
    percentiles: Mapping[str, tuple[float, ...]] | None = None
    model: ModelFacts | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def explain(self) -> str:
        """All of it in a few lines of words."""
        lines = [
            self.reason,
            *(_describe_video(f"videos[{at}]", at, self.rewards, self.costs, self.percentiles) for at in self.order),
            str(_trade_off_of(self)),
        ]
        return "\n".join([*lines, *([] if self.model is None else [str(self.model)])])


def judge_pair(
    scores: Mapping[str, tuple[float, float]],
    trade_off: TradeOff = DEFAULT_TRADE_OFF,
    calibrations: Mapping[str, HeadCalibration] | None = None,
    model: ModelFacts | None = None,
) -> PairScore:
    """The decision from scores alone: the Lagrangian of Safe RLHF (arXiv 2310.12773) and its explanation.

    Args:
        scores: head -> (v1, v2); a reward and a cost must be among them.
        calibrations: head -> calibration, `Scorer.calibration.heads`. Unless both the reward and the cost have a
            temperature, neither probability is calibrated.
        model: as in `PairScore`.
    """
    of_head = calibrations or {}
    temperatures = {head: one.temperature for head, one in of_head.items() if one.temperature is not None}
    is_calibrated = {"reward", "cost"} <= temperatures.keys()
    reward_unit, cost_unit = (temperatures[head] if is_calibrated else 1.0 for head in ("reward", "cost"))
    rewards, costs = scores["reward"], scores["cost"]
    first, second = (float(trade_off.score(reward, cost)) for reward, cost in zip(rewards, costs, strict=True))
    preferred = lagrangian.choose(first, second)
    return PairScore(
        rewards=rewards,
        costs=costs,
        lagrangian_scores=(first, second),
        lagrange_multiplier=float(trade_off.lagrange_multiplier),
        cost_limit=float(trade_off.cost_limit),
        multiplier_source=trade_off.source,
        weighed=trade_off.weighed,
        p_more_helpful=sigmoid((rewards[0] - rewards[1]) / reward_unit),
        p_safer=sigmoid((costs[1] - costs[0]) / cost_unit),
        calibrated=is_calibrated,
        is_safe=(costs[0] <= 0.0, costs[1] <= 0.0),
        sub_scores={head: scores[head] for head in SUB_HEADS if head in scores},
        preferred=preferred,
        reason=_explain_pair(rewards, costs, trade_off, preferred),
        percentiles=_percentiles(scores, of_head),
        model=model,
    )


def judge_ranking(
    scores: Mapping[str, Sequence[float]],
    trade_off: TradeOff = DEFAULT_TRADE_OFF,
    calibrations: Mapping[str, HeadCalibration] | None = None,
    model: ModelFacts | None = None,
) -> Ranking:
    """As `judge_pair`, for any number of videos.

    Args:
        scores: head -> (N,); a reward and a cost must be among them.
    """
    table = {head: tuple(map(float, values)) for head, values in scores.items()}
    rewards, costs = table["reward"], table["cost"]
    combined = trade_off.score(np.array(rewards), np.array(costs))
    order: list[int] = np.argsort(-combined, kind="stable").tolist()
    front = set(lagrangian.pareto_front(rewards, costs).tolist())
    return Ranking(
        order=tuple(order),
        rewards=rewards,
        costs=costs,
        lagrangian_scores=tuple(combined.tolist()),
        lagrange_multiplier=float(trade_off.lagrange_multiplier),
        cost_limit=float(trade_off.cost_limit),
        multiplier_source=trade_off.source,
        weighed=trade_off.weighed,
        is_safe=tuple(cost <= 0.0 for cost in costs),
        is_within_limit=tuple(cost <= trade_off.cost_limit for cost in costs),
        is_on_pareto_front=tuple(at in front for at in range(len(costs))),
        sub_scores={head: table[head] for head in SUB_HEADS if head in table},
        reason=_explain_first(order, table, trade_off),
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


def _explain_pair(
    rewards: tuple[float, float],
    costs: tuple[float, float],
    trade_off: TradeOff,
    preferred: lagrangian.Choice,
    names: tuple[str, str] = ("v1", "v2"),
) -> str:
    multiplier, limit = trade_off.lagrange_multiplier, trade_off.cost_limit
    return lagrangian.explain_choice(rewards, costs, multiplier, limit, preferred, names, trade_off.weighed)


def _explain_first(order: Sequence[int], scores: Mapping[str, tuple[float, ...]], trade_off: TradeOff) -> str:
    if not order:
        return "there is no video"
    rewards, costs = scores["reward"], scores["cost"]
    over = sum(cost > trade_off.cost_limit for cost in costs)
    if len(order) == 1:
        text = "videos[0] is the only one."
    else:
        # The one that comes first and its runner-up, as a pair.
        first, second = order[:2]
        both = (rewards[first], rewards[second]), (costs[first], costs[second])
        combined = [float(trade_off.score(rewards[at], costs[at])) for at in (first, second)]
        names = f"videos[{first}]", f"videos[{second}]"
        text = _explain_pair(*both, trade_off, lagrangian.choose(combined[0], combined[1]), names)
    if over > 0 and len(order) > 2:
        which = "all" if over == len(costs) else f"{over} of {len(costs)}"
        text = f"{text.removesuffix('.')}; {which} are above the cost limit {trade_off.cost_limit:z.2f}."
    return text


def _describe_video(
    name: str,
    at: int,
    rewards: Sequence[float],
    costs: Sequence[float],
    percentiles: Mapping[str, Sequence[float]] | None,
) -> str:
    notes = {"reward": "", "cost": "safe" if costs[at] <= 0 else "unsafe"}
    for head, words in (("reward", "more helpful than"), ("cost", "more harmful than")):
        if percentiles is not None and head in percentiles:
            notes[head] = f"{notes[head]}, {words} {percentiles[head][at]:.0f}% of clips".removeprefix(", ")
    reward, cost = (f" ({notes[head]})" if notes[head] else "" for head in ("reward", "cost"))
    return f"{name}: reward {rewards[at]:.2f}{reward}, cost {costs[at]:+.2f}{cost}"


def _trade_off_of(judged: PairScore | Ranking) -> TradeOff:
    return TradeOff(judged.lagrange_multiplier, judged.cost_limit, judged.multiplier_source, judged.weighed)
