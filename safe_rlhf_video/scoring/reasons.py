"""Says in words why a video comes first, and what its scores are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from safe_rlhf_video import lagrangian

if TYPE_CHECKING:
    from safe_rlhf_video.scoring.decisions import TradeOff

NO_ORDER = "neither a reward nor a cost model says which is better; the scores are those of other heads."


def explain_pair(
    scores: Mapping[str, Sequence[float]],
    trade_off: TradeOff | None,
    preferred: lagrangian.Choice | None,
    places: tuple[int, int] = (0, 1),
    names: tuple[str, str] = ("v1", "v2"),
    has_zero: bool = True,
) -> str:
    """Explains a choice between two videos in a sentence.

    Args:
        scores: head -> (N,).
        trade_off: what weighed the reward against the cost; None where one of them is missing.
        preferred: the choice; None where both are missing.
        places: the two, among the N.
        names: what to call the two.
        has_zero: whether the cost was trained to be above 0 for unsafe videos.
    """
    if preferred is None:
        return NO_ORDER
    pair = {head: (scores[head][places[0]], scores[head][places[1]]) for head in ("reward", "cost") if head in scores}
    if trade_off is None:
        head: Literal["reward", "cost"] = "reward" if "reward" in pair else "cost"
        return lagrangian.explain_choice_by_one(head, pair[head], preferred, names)
    multiplier, limit = trade_off.lagrange_multiplier, trade_off.cost_limit
    return lagrangian.explain_choice(
        pair["reward"], pair["cost"], multiplier, limit, preferred, names, trade_off.weighed, has_zero
    )


def explain_first(
    order: Sequence[int] | None,
    scores: Mapping[str, tuple[float, ...]],
    trade_off: TradeOff | None,
    decisive: np.ndarray | None,
    has_zero: bool = True,
) -> str:
    """Explains the first place of an order in a sentence.

    Args:
        decisive: (N,), what the order follows; None, as the order, where nothing decides.
        has_zero: as in `explain_pair`.
    """
    if order is None or decisive is None:
        return NO_ORDER
    if not order:
        return "there is no video"
    if len(order) == 1:
        text = "videos[0] is the only one."
    else:
        # The one that comes first and its runner-up, as a pair.
        first, second = order[:2]
        preferred = lagrangian.choose(float(decisive[first]), float(decisive[second]))
        names = (f"videos[{first}]", f"videos[{second}]")
        text = explain_pair(scores, trade_off, preferred, (first, second), names, has_zero)
    if trade_off is None:
        return text
    costs = scores["cost"]
    over = sum(cost > trade_off.cost_limit for cost in costs)
    if over > 0 and len(order) > 2:
        which = "all" if over == len(costs) else f"{over} of {len(costs)}"
        text = f"{text.removesuffix('.')}; {which} are above the cost limit {trade_off.cost_limit:z.2f}."
    return text


def describe_video(
    name: str,
    at: int,
    scores: Mapping[str, Sequence[float]],
    percentiles: Mapping[str, Sequence[float]] | None,
    has_zero: bool = True,
) -> str:
    """Describes the scores of one video; those in sub-dimensions only where it has no others."""
    parts = []
    for head, words in (("reward", "more helpful than"), ("cost", "more harmful than")):
        if head not in scores:
            continue
        score = scores[head][at]
        notes = [] if head == "reward" or not has_zero else ["safe" if score <= 0 else "unsafe"]
        if percentiles is not None and head in percentiles:
            notes.append(f"{words} {percentiles[head][at]:.0f}% of clips")
        shown = f"{score:.2f}" if head == "reward" else f"{score:+.2f}"
        parts.append(f"{head} {shown}" + (f" ({', '.join(notes)})" if notes else ""))
    if not parts:
        parts = [f"{head.replace('_', ' ')} {values[at]:.2f}" for head, values in scores.items()]
    return f"{name}: {', '.join(parts) or 'no score to compare'}"
