"""Computes losses of scores and labels: pure functions, one value per element.

No function reduces. Under DeepSpeed a mean is only right when it is taken over the global number of elements, which
the sampler knows and a loss does not, so the caller reduces. The weighting used by default is

    reward = mean bradley_terry_loss(r_chosen, r_rejected) + 0.001 mean score_regularization(r)
    cost   = mean bradley_terry_loss(c_unsafer, c_safer)   + 0.001 mean score_regularization(c)
           + mean safety_sign_loss(c, safety_sign)

with means over comparisons, over distinct videos, and over videos with a known sign. Where ties are trained on, the
Rao-Kupper losses replace Bradley-Terry's. Sources: SafeSora (arXiv 2406.14477) for the reward, Safe RLHF
(arXiv 2310.12773) for the cost; as published, the two sign terms of a pair are inside the mean over pairs, with unit
weights.

Results have the dtype of the scores. Pass fp32 or fp64: in bf16 close scores round to exact ties and lose their margin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry_loss(chosen_scores: Tensor, rejected_scores: Tensor, target_margin: float = 0.0) -> Tensor:
    """Negative log likelihood that the chosen video wins each comparison.

        loss_m = -log sigmoid(chosen_m - rejected_m - target_margin)

    Source: Bradley & Terry 1952 for the model; Safe RLHF (arXiv 2310.12773), which trains both heads with it; Llama 2
    (arXiv 2307.09288) for the offset, which asks the chosen video to win by more than a hair.

    Args:
        chosen_scores: (M,) score of the video that the label names. For a cost head that is the *less safe* video,
            because a high cost means unsafe.
        rejected_scores: (M,) score of the other video.
        target_margin: offset in units of the score (log odds); 0 is the published loss.

    Returns:
        (M,) losses in nats; log 2 where the margin equals ``target_margin``.

    Raises:
        ValueError: the two shapes differ.
    """
    _check_same_shape("chosen_scores", chosen_scores, "rejected_scores", rejected_scores)
    return -F.logsigmoid(chosen_scores - rejected_scores - target_margin)


def rao_kupper_loss(chosen_scores: Tensor, rejected_scores: Tensor, threshold: float) -> Tensor:
    """Negative log likelihood that the chosen video wins, where people may also call the two equal.

        loss_m = -log sigmoid(chosen_m - rejected_m - ln threshold)

    Source: Rao & Kupper 1967. A threshold of 1 leaves no room for ties and is Bradley-Terry.

    Args:
        chosen_scores, rejected_scores: (M,), as for `bradley_terry_loss`.
        threshold: theta > 1; two equal videos are called equal with probability (theta - 1) / (theta + 1).

    Returns:
        (M,) losses in nats.
    """
    return bradley_terry_loss(chosen_scores, rejected_scores, target_margin=math.log(threshold))


def rao_kupper_tie_loss(first_scores: Tensor, second_scores: Tensor, threshold: float) -> Tensor:
    """Negative log likelihood that people call two videos equal.

        loss_k = -log sigmoid(D_k - ln threshold) - log sigmoid(-D_k - ln threshold) - ln(threshold^2 - 1)

    with D = first - second; lowest at D = 0. Source: Rao & Kupper 1967.

    Args:
        first_scores, second_scores: (K,); which is which makes no difference.
        threshold: theta > 1.

    Returns:
        (K,) losses in nats.
    """
    wins = rao_kupper_loss(first_scores, second_scores, threshold)
    losses = rao_kupper_loss(second_scores, first_scores, threshold)
    return wins + losses - math.log(threshold**2 - 1.0)


def safety_sign_loss(costs: Tensor, safety_sign: Tensor) -> Tensor:
    """Negative log likelihood of each video's safety label; it gives the cost its zero, which comparisons cannot.

        loss_n = -log sigmoid(-safety_sign_n * cost_n)   where the sign is known
        loss_n = 0, with zero gradient                   where safety_sign_n = 0

    Source: the sign terms of the cost model's loss in Safe RLHF (arXiv 2310.12773). There they are inside the mean
    over pairs; here each video counts once, so divide by the number of *known* signs, not by N.

    Args:
        costs: (N,) cost of each distinct video; > 0 means unsafe.
        safety_sign: (N,) +1 safe, -1 unsafe, 0 unknown, of any dtype. Values are not checked, since reading them back
            would stall an accelerator at every step.

    Returns:
        (N,) losses in nats.

    Raises:
        ValueError: the two shapes differ.
    """
    _check_same_shape("costs", costs, "safety_sign", safety_sign)
    is_known = safety_sign != 0
    # Masking only the result would let an infinite or NaN cost of an unknown video reach the gradient as 0 * inf.
    known_costs = torch.where(is_known, costs, 0.0)
    losses = -F.logsigmoid(-safety_sign.to(costs.dtype) * known_costs)
    return torch.where(is_known, losses, 0.0)


def harm_label_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log likelihood of a harm label, each video with a weight of its class.

        loss_n = -|target_n| log sigmoid(sign(target_n) * logit_n)
        loss_n = 0, with zero gradient   where target_n = 0

    Args:
        logits: (N,); above 0 the label rather applies.
        targets: (N,) the weight of the label's class, positive where it applies, negative where it does not, 0 where
            that is unknown.

    Returns:
        (N,) losses in nats.

    Raises:
        ValueError: the two shapes differ.
    """
    _check_same_shape("logits", logits, "targets", targets)
    targets = targets.to(logits.dtype)
    # As in `safety_sign_loss`: a score without a label must not reach the gradient, not even as 0 * inf.
    known_logits = torch.where(targets != 0, logits, 0.0)
    return -targets.abs() * F.logsigmoid(targets.sign() * known_logits)


def ordinal_loss(scores: Tensor, thresholds: Tensor, targets: Tensor) -> Tensor:
    """Negative log likelihood of an ordinal label by the proportional-odds model, each video with its class's weight.

        P(level >= k) = sigmoid(score - threshold_k),   k = 1 to K - 1
        loss_n = -sum_k targets_nk log P(level_n = k)
        loss_n = 0, with zero gradient                  where all targets_nk = 0

    Source: McCullagh 1980, Regression Models for Ordinal Data, with the sign of the score turned so that more is more
    severe. The chance of a level between two thresholds is a difference of sigmoids, and its logarithm

        log(sigmoid(a) - sigmoid(b)) = log sigmoid(a) + log sigmoid(-b) + log(1 - exp(b - a)),   a > b

    is exact also where both round to 0 or 1.

    Args:
        scores: (N,).
        thresholds: (K - 1,), rising.
        targets: (N, K) the weight of the video's class in the column of its level, 0 in the others; all 0 where the
            level is unknown.

    Returns:
        (N,) losses in nats.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    _check_same_shape("targets", targets, "scores by level", scores[:, None].expand(-1, len(thresholds) + 1))
    targets = targets.to(scores.dtype)
    # As in `safety_sign_loss`: a score without a label must not reach the gradient, not even as 0 * inf.
    known_scores = torch.where((targets != 0).any(dim=1), scores, 0.0)
    at_least = known_scores[:, None] - thresholds  # size = (N, K - 1)
    log_gaps = torch.log(-torch.expm1(-thresholds.diff()))
    above, below = F.pad(F.logsigmoid(at_least), (1, 0)), F.pad(F.logsigmoid(-at_least), (0, 1))
    return -(targets * (above + below + F.pad(log_gaps, (1, 1)))).sum(dim=1)


def score_regularization(scores: Tensor) -> Tensor:
    """Square of each score, which keeps the scores from drifting where the other terms do not fix their level.

        loss_n = score_n ** 2

    Source: SafeSora's released recipe (arXiv 2406.14477), with weight 0.001.

    Args:
        scores: (N,) scores of distinct videos.

    Returns:
        (N,) squares, in squared units of the score.
    """
    return scores.square()


def _check_same_shape(first_name: str, first: Tensor, second_name: str, second: Tensor) -> None:
    # (M,) against (M, 1) would broadcast to M * M losses and train on comparisons that nobody made.
    if first.shape != second.shape:
        raise ValueError(
            f"{first_name} has shape {tuple(first.shape)} but {second_name} {tuple(second.shape)}; give equal shapes"
        )


def _label_loss(scores: Tensor, targets: Tensor, thresholds: Tensor | None) -> Tensor:
    return harm_label_loss(scores, targets[:, 0])


def _ordinal_loss(scores: Tensor, targets: Tensor, thresholds: Tensor | None) -> Tensor:
    assert thresholds is not None
    return ordinal_loss(scores, thresholds, targets)


# Kind of label -> its loss: (N,) from scores (N,), the head's columns of the targets (N, C) and its thresholds, if any.
LABEL_LOSSES: Mapping[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = MappingProxyType(
    {"label": _label_loss, "ordinal": _ordinal_loss}
)
