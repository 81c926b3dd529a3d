"""Computes the loss of a batch from its scores, and the sums that metrics are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from safe_rlhf_video.data.batch import Batch
from safe_rlhf_video.errors import CheckpointError
from safe_rlhf_video.heads import DIMENSION_OF_HEAD, HEADS, LABEL_HEADS, preference_score
from safe_rlhf_video.kinds.targets import label_columns
from safe_rlhf_video.losses import (
    LABEL_LOSSES,
    bradley_terry_loss,
    rao_kupper_loss,
    rao_kupper_tie_loss,
    safety_sign_loss,
    score_regularization,
)
from safe_rlhf_video.stats.credit import TIE_TOLERANCE
from safe_rlhf_video.training.config import LossConfig
from safe_rlhf_video.training.plan import StepPlan

LOSS = "loss/"  # before the name of a loss term, among the sums of a step
DIVERGED = (
    "; training stopped, the last checkpoint is good: lower the rates (optimization.learning_rate and others, with a "
    "new folder as out) or look at these videos"
)

NO_THRESHOLDS: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True)
class Objective:
    """One rank's part of a step's loss, term by term, and sums for the metrics.

    Attributes:
        terms: `<term>/<head>` -> its part, with gradient.
        sums: further sums over the batch, without gradient: `credit/<head>` and `margin/<head>` over comparisons,
            `sign_credit` over known signs.
    """

    terms: Mapping[str, Tensor]
    sums: Mapping[str, Tensor]

    @property
    def loss(self) -> Tensor:
        """The sum of all terms: there is nothing else that is trained on, or that metrics call the loss."""
        return torch.stack(list(self.terms.values())).sum()


def compute_objective(
    scores: Mapping[str, Tensor],
    batch: Batch,
    plan: StepPlan,
    weights: LossConfig,
    thresholds: Mapping[str, Tensor] = NO_THRESHOLDS,
) -> Objective:
    """Computes one rank's loss terms: sums over its videos, divided by the whole step's planned counts.

    The parts of all ranks and micro-batches add up to the loss of the step on one rank, whatever their sizes. Nothing
    is read back from the device: that would stall it.

    Args:
        scores: head -> (N,).
        thresholds: head -> (K - 1,), between its K levels; of heads that have some.
    """
    device = next(iter(scores.values())).device
    terms: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}

    def on_device(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    def add(name: str, weight: float, elements: Tensor, count: int) -> None:
        # An empty sum still reaches the scores: every rank takes part in the backward pass.
        terms[name] = weight * elements.sum() / max(count, 1)

    safety_sign, counted = on_device(batch.safety_sign), on_device(batch.counted)
    num_label_heads = sum(head in LABEL_HEADS for head in scores)
    for head, values in scores.items():
        if head in LABEL_HEADS:
            columns = label_columns(head)
            targets = on_device(batch.harm_targets[:, columns])
            losses = LABEL_LOSSES[HEADS[head].kind](values, targets, thresholds.get(head))
            # No regularisation: the labels fix the level of the logits.
            add(f"harm/{head}", weights.harm / num_label_heads, losses, sum(plan.num_harms[columns]))
            continue
        dimension = HEADS[head].dimension
        chosen, rejected = on_device(batch.comparisons[dimension]).unbind(1)
        preference = preference_score(head, values)
        margin = preference[chosen] - preference[rejected]
        if weights.ties == "rao_kupper":
            first, second = on_device(batch.ties[dimension]).unbind(1)
            wins = rao_kupper_loss(preference[chosen], preference[rejected], weights.tie_threshold)
            ties = rao_kupper_tie_loss(preference[first], preference[second], weights.tie_threshold)
            losses = torch.cat([wins, ties])
        else:
            losses = bradley_terry_loss(preference[chosen], preference[rejected])
        count = plan.num_labels(dimension)
        if weights.unit == "prompt":
            count = plan.num_prompts[dimension]
            # Without ties trained on, a group has none: the weights are those of the comparisons alone.
            losses = losses * on_device(batch.label_weights[dimension])
        add(f"comparison/{head}", weights.comparison, losses, count)
        sums[f"credit/{head}"] = _credit(margin.detach()).sum()
        sums[f"margin/{head}"] = margin.detach().sum()
        if HEADS[head].kind == "cost":
            add(f"sign/{head}", weights.sign, safety_sign_loss(values, safety_sign), plan.num_signs)
            sums["sign_credit"] = torch.where(safety_sign == 0, 0.0, _credit(-values.detach() * safety_sign)).sum()
        add(f"regularization/{head}", weights.regularization, score_regularization(values) * counted, plan.num_videos)
    return Objective(terms, sums)


def _credit(margins: Tensor) -> Tensor:
    """`metrics.credit` where the margins are."""
    return torch.where(margins.abs() <= TIE_TOLERANCE, 0.5, (margins > 0).float())


class Tally:
    """Adds up the micro-batches of a step; until it is asked, nothing is read back from the device.

    Attributes:
        sums: `LOSS` + name of a loss term -> its sum, and the further sums of `Objective`.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self._names: list[tuple[str, ...]] = []
        self._is_bad: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._names)

    def add(self, scores: Mapping[str, Tensor], batch: Batch, objective: Objective) -> None:
        """Counts a micro-batch."""
        terms = {LOSS + name: term.detach() for name, term in objective.terms.items()}
        for name, value in {**terms, **objective.sums}.items():
            self.add_sum(name, value)
        finite = torch.stack([torch.isfinite(2.0 * values.detach()) for values in scores.values()])  # 2: margins too
        self._is_bad.append(torch.cat([~finite.all(dim=0), ~torch.isfinite(objective.loss.detach()).view(1)]))
        self._names.append(batch.names)

    def add_sum(self, name: str, value: Tensor) -> None:
        """Adds to one sum."""
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def check_finite(self, when: str) -> None:
        """Names the videos whose score is not finite, or the batch whose loss is not.

        Args:
            when: begins the message, e.g. "step 3".

        Raises:
            CheckpointError: a score or a loss is not finite.
        """
        all_bad = iter(torch.cat(self._is_bad).tolist())
        for names in self._names:
            bad = [name for name in names if next(all_bad)]
            loss_is_bad = next(all_bad)
            if bad:
                raise CheckpointError(f"{when}: the score is not finite for {name_some(bad)}{DIVERGED}")
            if loss_is_bad:
                raise CheckpointError(f"{when}: the loss is not finite for {name_some(names)}{DIVERGED}")


def name_some(names: Sequence[str]) -> str:
    """Up to 8 names, and how many more there are."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def summarize(
    prefix: str, totals: Mapping[str, float], plans: list[StepPlan], heads: tuple[str, ...]
) -> dict[str, float]:
    """Metrics from sums over all ranks and some steps; a figure without any label is left out.

    Returns:
        `<prefix>/loss` and its parts (means over steps), `<prefix>/accuracy`, `/margin`, `/sign_accuracy`; with several
        heads, the head's name is the last part of the metric's. Heads of harm labels have their loss
        alone, always under their name.
    """
    parts = {name.removeprefix(LOSS): one / len(plans) for name, one in totals.items() if name.startswith(LOSS)}
    metrics = {f"{prefix}/loss": sum(parts.values())}
    for head in heads:
        suffix = f"/{head}" if len(heads) > 1 or head in LABEL_HEADS else ""
        for name, part in parts.items():
            term, of_head = name.split("/")
            if of_head == head:
                metrics[f"{prefix}/{term}_loss{suffix}"] = part
        if head in LABEL_HEADS:
            continue
        if compared := sum(plan.num_comparisons[DIMENSION_OF_HEAD[head]] for plan in plans):
            metrics[f"{prefix}/accuracy{suffix}"] = totals[f"credit/{head}"] / compared
            metrics[f"{prefix}/margin{suffix}"] = totals[f"margin/{head}"] / compared
        if head == "cost" and (known := sum(plan.num_signs for plan in plans)):
            metrics[f"{prefix}/sign_accuracy"] = totals["sign_credit"] / known
    return metrics
