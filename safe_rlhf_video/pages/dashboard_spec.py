"""Lists what a dashboard shows: sections, panels, their metrics, units and reference lines. All dashboards draw this.

In a metric's name `<head>` stands for any head that learns from comparisons, `<label>` for one of a harm label and
`<part>` for any part of the model that is trained. A run of one head leaves the head out of a metric's name, so most
panels name both forms.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from safe_rlhf_video.heads import GRADED_HEADS
from safe_rlhf_video.kinds.targets import classes_of

X_NAME = "step"
X_TITLE = "optimiser step"


@dataclass(frozen=True)
class Reference:
    """A horizontal line at a value that means something."""

    value: float
    label: str


@dataclass(frozen=True)
class Panel:
    """One plot.

    Attributes:
        metrics: what it shows, as named in metrics.jsonl; of a histogram or table, in W&B alone.
        unit: of the metrics, along the vertical axis.
        kind: a line over steps, a histogram at every validation, or a table at every validation.
    """

    title: str
    metrics: tuple[str, ...]
    unit: str
    references: tuple[Reference, ...] = ()
    log_scale: bool = False
    kind: Literal["line", "histogram", "table"] = "line"


@dataclass(frozen=True)
class PanelSection:
    """Panels that answer one question."""

    title: str
    panels: tuple[Panel, ...]


NATS = "nats a comparison"
SHARE = "share of comparisons"
NOT_TOLD_APART = Reference(math.log(2.0), "ln 2: no pair told apart")
SIGN_NOT_KNOWN = Reference(math.log(2.0), "ln 2: every cost is 0")
CHANCE = Reference(0.5, "1/2: chance")


def _either(metric: str) -> tuple[str, str]:
    """A metric of a run of one head, and of one of several."""
    return metric, f"{metric}/<head>"


def _learning(prefix: str, when: str) -> tuple[Panel, ...]:
    return (
        Panel(f"Comparison loss, {when}", _either(f"{prefix}/comparison_loss"), NATS, (NOT_TOLD_APART,)),
        Panel(f"Accuracy, {when}", _either(f"{prefix}/accuracy"), SHARE, (CHANCE,)),
        Panel(f"Margin, {when}", _either(f"{prefix}/margin"), "score, chosen - rejected", (Reference(0.0, "0"),)),
        Panel(f"Accuracy of the cost's sign, {when}", (f"{prefix}/sign_accuracy",), "share of videos", (CHANCE,)),
        Panel(f"Loss of the cost's sign, {when}", (f"{prefix}/sign_loss", f"{prefix}/sign_loss/cost"), "nats a video",
              (SIGN_NOT_KNOWN,)),
        Panel(f"Loss of harm labels, {when}", (f"{prefix}/harm_loss/<label>",), "nats a video, weighted"),
    )  # fmt: skip


SECTIONS = (
    PanelSection("Does it generalise to other prompts?", _learning("eval", "validation")),
    PanelSection(
        "Does it learn at all?",
        (
            Panel("Loss", ("train/loss", "eval/loss"), "nats, all terms together"),
            *_learning("train", "training"),
            Panel("Regularisation", (*_either("train/regularization_loss"), *_either("eval/regularization_loss")),
                  "mean squared score, weighted"),
        ),
    ),
    PanelSection(
        "Is the optimisation stable?",
        (
            Panel("Gradient norm, before clipping", ("train/grad_norm/<part>",), "norm", log_scale=True),
            Panel("Learning rate", ("train/learning_rate/<part>",), "rate"),
        ),
    ),
    PanelSection(
        "How fast is it?",
        (
            Panel("Videos", ("train/videos_per_second",), "videos/s"),
            Panel("Tokens", ("train/tokens_per_second",), "tokens/s, without padding"),
            Panel("Progress", ("train/epoch",), "epochs"),
        ),
    ),
    PanelSection(
        "How are scores spread?",
        (
            Panel("Scores of chosen videos", ("eval/scores/<head>/chosen",), "score", kind="histogram"),
            Panel("Scores of rejected videos", ("eval/scores/<head>/rejected",), "score", kind="histogram"),
            Panel("Logits where a harm label applies", ("eval/scores/<label>/applies",), "logit", kind="histogram"),
            Panel("Logits where it does not", ("eval/scores/<label>/does_not",), "logit", kind="histogram"),
            *(Panel(f"Scores of the {head}", tuple(f"eval/scores/{head}/{one}" for one in classes_of(head)),
                    "score", kind="histogram") for head in GRADED_HEADS),
            Panel("Costs by safety", ("eval/scores/cost/safe", "eval/scores/cost/unsafe"), "cost", kind="histogram"),
        ),
    ),
    PanelSection("What does it see?", (Panel("Validation pairs", ("eval/pairs",), "scores", kind="table"),)),
)  # fmt: skip


def pattern(metrics: Iterable[str]) -> str:
    """A regular expression that matches, from start to end, the names that some metrics of the spec stand for."""
    return "^(" + "|".join(re.sub(r"<\w+>", "[^/]+", name) for name in metrics) + ")$"


def select(panel: Panel, names: Iterable[str]) -> list[str]:
    """Those of some metrics that a panel shows, in their own order."""
    wanted = re.compile(pattern(panel.metrics))
    return [name for name in names if wanted.match(name)]
