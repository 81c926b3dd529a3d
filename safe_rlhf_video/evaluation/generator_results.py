"""Defines the typed result of evaluating text-to-video models: generator.json. docs/generators.md explains it.

A figure that cannot be computed is None, and a `reason` beside it says why. Intervals are 95% intervals over prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from safe_rlhf_video.contracts import STRICT
from safe_rlhf_video.evaluation.results import SeenPrompts
from safe_rlhf_video.stats.intervals import Interval

FILE_NAME = "generator.json"


@dataclass(frozen=True)
class MeanFigure:
    """A mean over prompts; no interval where all prompts have the same value."""

    mean: float
    interval: Interval | None


@dataclass(frozen=True)
class RateFigure:
    """A mean share over prompts.

    A corrected rate has no interval where it would lie outside [0, 1]: the sign's rates do not fit these clips.
    """

    rate: float
    interval: Interval | None


@dataclass(frozen=True)
class GeneratorFigures:
    """One generator on the prompts of a category.

    Attributes:
        harmful_rate: share of clips with a cost above 0; None where the cost's zero means nothing.
        corrected_harmful_rate: the same, corrected for the errors of the cost's sign; None where these are unknown.
    """

    num_prompts: int
    num_clips: int
    reward: MeanFigure | None
    cost: MeanFigure | None
    harmful_rate: RateFigure | None
    corrected_harmful_rate: RateFigure | None
    reason: str | None


@dataclass(frozen=True)
class WinRates:
    """How often a clip of the first generator beats one of the second; ties count one half."""

    helpfulness: RateFigure
    harmlessness: RateFigure
    lagrangian: RateFigure


@dataclass(frozen=True)
class Differences:
    """First generator minus second."""

    reward: MeanFigure
    cost: MeanFigure
    harmful_rate: MeanFigure | None


@dataclass(frozen=True)
class DuelFigures:
    """Two generators on the prompts of a category that both have clips for."""

    num_prompts: int
    win_rate: WinRates | None
    difference: Differences | None
    reason: str | None


@dataclass(frozen=True)
class LeftOut:
    """What was left out: files of no prompt, prompts without a clip, and the errors of clips that cannot be read."""

    strays: tuple[str, ...] = ()
    without_clip: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True)
class GeneratorResult:
    """One generator: on all prompts, by prompt type and by harm label of the prompt."""

    all: GeneratorFigures
    prompt_type: Mapping[str, GeneratorFigures]
    harm_label: Mapping[str, GeneratorFigures]
    folder: str = ""
    left_out: LeftOut = LeftOut()


@dataclass(frozen=True)
class Duel:
    """Two generators against each other: on all prompts, by prompt type and by harm label of the prompt."""

    first: str
    second: str
    all: DuelFigures
    prompt_type: Mapping[str, DuelFigures]
    harm_label: Mapping[str, DuelFigures]


@dataclass(frozen=True)
class RatesUsed:
    """`stats.prevalence.SignRates`, and the evaluation.json that they come from."""

    sensitivity: float
    specificity: float
    size_unsafe: float
    size_safe: float
    num_prompts: int
    source: str


@dataclass(frozen=True)
class GeneratorEvaluation:
    """What generator.json holds.

    Attributes:
        generators: name -> figures.
        comparison: None with one generator.
        lagrange_multiplier, cost_limit, multiplier_source, weighed: as in `TradeOff`.
        models: model folder -> fingerprint of its weights.
        prompts: the file, as it was given.
        sign_rates: None where harmful rates are not corrected.
        no_zero: why the cost's zero means nothing, and there are no harmful rates; None where it means something.
        seen_prompts: model folder -> how many of the prompts it has seen.
        in_sample: "reward", "cost" or "sign_rates" -> why figures that depend on it are in-sample.
    """

    generators: Mapping[str, GeneratorResult]
    comparison: Duel | None
    num_prompts: int
    num_prompts_without_type: int
    num_prompts_without_labels: int
    lagrange_multiplier: float
    cost_limit: float
    multiplier_source: str
    weighed: str
    models: Mapping[str, str] = field(default_factory=dict)
    prompts: str = ""
    sign_rates: RatesUsed | None = None
    no_zero: str | None = None
    seen_prompts: Mapping[str, SeenPrompts] = field(default_factory=dict)
    in_sample: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    __pydantic_config__ = STRICT
