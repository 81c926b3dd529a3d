"""Writes the lines of a run for its user: what is trained, what does not learn, what to do without memory."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from safe_rlhf_video.errors import DeviceMemoryError
from safe_rlhf_video.heads import DIMENSION_OF_HEAD
from safe_rlhf_video.models.score_model import ScoreModel
from safe_rlhf_video.training.config import LossConfig, TrainConfig
from safe_rlhf_video.training.objectives import LOSS
from safe_rlhf_video.training.plan import StepPlan

LN_2 = math.log(2.0)


def report_trainable(model: ScoreModel, say: Callable[[str], None]) -> None:
    """How many parameters are trained, in which part."""
    total = sum(parameter.numel() for parameter in model.parameters())
    counts = {part: sum(map(torch.numel, parameters.values())) for part, parameters in model.trained().items()}
    listed = ", ".join(f"{part} {count:,}" for part, count in counts.items())
    say(f"trainable: {sum(counts.values()):,} of {total:,} parameters ({listed})")


def report_gradients(norms: Mapping[str, float], say: Callable[[str], None]) -> None:
    """Gradient norms of the first step: a part without a gradient does not learn."""
    say("gradient norm at step 1: " + ", ".join(f"{group} {norm:.3g}" for group, norm in norms.items()))
    for group, norm in norms.items():
        # A fresh LoRA adapter has a gradient in its B matrices from the first step on.
        if norm == 0.0:
            say(f"warning: {group} gets no gradient and will not learn")


def warn_if_stuck(
    recent_losses: Mapping[str, deque[float]],
    totals: Mapping[str, float],
    plan: StepPlan,
    weights: LossConfig,
    say: Callable[[str], None],
) -> None:
    """Warns of a model that scores all pairs as equal: its loss is ln 2; every recent step near it is no accident.

    A mean over steps would not do: that of a run which learns passes ln 2 on its way down.

    Args:
        recent_losses: head -> what the last steps' comparison losses were above that level; this step's is added.
        totals: this step's sums over all ranks.
    """
    for head, losses in recent_losses.items():
        dimension = DIMENSION_OF_HEAD[head]
        if not plan.num_labels(dimension) or not weights.comparison:
            continue
        losses.append(
            totals[f"{LOSS}comparison/{head}"] / weights.comparison - _indifferent_loss(plan, dimension, weights)
        )
        if len(losses) == losses.maxlen and all(abs(loss) < 1e-3 for loss in losses):
            level = "ln 2" if weights.ties == "leave_out" else "that of equal scores"
            say(
                f"warning: the {head}'s comparison loss has stayed within 0.001 of {level}, as if no pair could be "
                "told apart; are the rates too small, or chosen and rejected the same?"
            )
            losses.clear()


def _indifferent_loss(plan: StepPlan, dimension: str, weights: LossConfig) -> float:
    """A step's comparison loss when all scores are equal."""
    if weights.ties == "leave_out":
        return LN_2
    theta = weights.tie_threshold
    win, tie = math.log(1.0 + theta), math.log((theta + 1.0) / (theta - 1.0))
    if weights.unit == "prompt":
        share = plan.comparison_shares[dimension] / plan.num_prompts[dimension]
    else:
        share = plan.num_comparisons[dimension] / plan.num_labels(dimension)
    return share * win + (1.0 - share) * tie


def describe(metrics: Mapping[str, float], prefix: str) -> str:
    """The figures that a reader of the log wants, in one line."""
    wanted = ("loss", "accuracy", "margin", "sign_accuracy")
    short = {name.removeprefix(prefix): value for name, value in metrics.items()}
    return ", ".join(f"{name} {value:.4f}" for name, value in short.items() if name.split("/")[0] in wanted)


@contextmanager
def memory_hint(config: TrainConfig, when: str, num_prompts: int = 0) -> Iterator[None]:
    """Say what to do where a device's memory does not suffice.

    Args:
        when: begins the message: the step, and what is done there.
        num_prompts: of the micro-batch; 0 before there is one.

    Raises:
        DeviceMemoryError: in the place of torch's own error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        advice = {
            "a lower optimization.micro_batch_tokens": num_prompts > 1,
            "model.gradient_checkpointing true": num_prompts > 0 and not config.model.gradient_checkpointing,
            "on several devices a higher engine.zero_stage": num_prompts > 0 and config.engine.zero_stage < 3,
            "a lower sampling.max_pixels": num_prompts > 0,
            "a smaller model.backbone": num_prompts == 0,  # every process first has all of it on its device
            "less in model.trained_parts": num_prompts == 0 and bool(config.model.trained_parts),
        }
        wanted = " or ".join(name for name, helps in advice.items() if helps)
        raise DeviceMemoryError(f"{when} the device is out of memory; try {wanted}") from error
