"""Reads and writes calibration.json, which says what the scores of a model folder mean.

A temperature per head makes P(v1 preferred) = sigmoid(difference / temperature) the frequency that people show, and the
quantiles of a reference set place a score among others. A harm label gets a probability and the threshold of its flag.
A reward and a cost get the multipliers that hold a limit, one for each number of candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from safe_rlhf_video.contracts import STRICT, read_json, write_json
from safe_rlhf_video.data.prompt_hashes import PromptHashes, hash_prompts
from safe_rlhf_video.errors import CheckpointError
from safe_rlhf_video.heads import DIMENSION_OF_HEAD, LOGIT_HEADS
from safe_rlhf_video.lagrangian import MOST_COST, Bound, Constraint, Weighed
from safe_rlhf_video.models.fingerprints import fingerprint_model, fingerprint_trained
from safe_rlhf_video.stats.thresholds import Target, Threshold

FILE_NAME = "calibration.json"
FORMAT_VERSION: Literal[3] = 3
NUM_QUANTILES = 101
COMMAND = "scripts/calibrate.py"

Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class ReferenceScores:
    """The distribution of a head's scores on a reference set of clips.

    Attributes:
        num: number of clips.
        std: with N - 1 in the denominator; 0 for a single clip.
        quantiles: 101 scores in steps of one per cent, from the lowest to the highest.
    """

    __pydantic_config__ = STRICT

    num: Annotated[int, Field(ge=1)]
    mean: float
    std: Annotated[float, Field(ge=0)]
    quantiles: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.quantiles) != NUM_QUANTILES or list(self.quantiles) != sorted(self.quantiles):
            raise ValueError(f"expected {NUM_QUANTILES} quantiles in ascending order")

    def percentile(self, score: float) -> float:
        """Returns the per cent of the reference scores that are lower, from 0 to 100, interpolated linearly.

        A score that several quantiles share gets the middle of their range.
        """
        quantiles = np.asarray(self.quantiles)
        below, up_to = (int(np.searchsorted(quantiles, score, side=side)) for side in ("left", "right"))
        step = 100.0 / (len(quantiles) - 1)
        if up_to == 0:
            return 0.0
        if below == len(quantiles):
            return 100.0
        if below < up_to:
            return 0.5 * (below + up_to - 1) * step
        low, high = quantiles[below - 1], quantiles[below]
        return float(below - 1 + (score - low) / (high - low)) * step


@dataclass(frozen=True)
class HeadCalibration:
    """What the scores of a head mean that learns from comparisons.

    Attributes:
        temperature: divides differences of scores before the sigmoid; 1 where the fitted one is no better than none,
            None where too few comparisons can tell.
        fitted, standard_error: the temperature of maximum likelihood, and its standard error by prompts.
        reason: why there is no temperature.
        num_comparisons, num_prompts: used for the fit, without ties.
        log_loss_before, log_loss: mean -log likelihood of the comparisons at temperature 1 and at `temperature`, nats.
        tie_threshold: differences up to it are best called ties; None if the comparisons have no ties.
        reference: None without clips.
    """

    __pydantic_config__ = STRICT

    temperature: Annotated[float, Field(gt=0)] | None
    fitted: Annotated[float, Field(gt=0)] | None
    standard_error: Annotated[float, Field(ge=0)] | None
    reason: str | None
    num_comparisons: Count
    num_prompts: Count
    log_loss_before: float | None
    log_loss: float | None
    tie_threshold: float | None
    reference: ReferenceScores | None

    def __post_init__(self) -> None:
        if (self.temperature is None) == (self.reason is None):
            raise ValueError("expected a temperature, or null with a reason")
        if self.temperature is not None and (self.fitted is None or self.temperature not in (1.0, self.fitted)):
            raise ValueError("temperature: expected what was fitted, or 1")


@dataclass(frozen=True)
class LabelCalibration:
    """What the logits of a harm label mean.

    Attributes:
        slope, intercept: P(applies) = sigmoid(slope logit + intercept); None where it could not be fitted.
        target: what the threshold is meant to hold.
        threshold: where the flag begins; None where there were too few clips.
        reason: what is missing, and why; None if nothing is.
        num_positive, num_negative: clips with and without the label, used for the fit.
    """

    __pydantic_config__ = STRICT

    slope: float | None
    intercept: float | None
    target: Target
    threshold: Threshold | None
    reason: str | None
    num_positive: Count
    num_negative: Count

    def __post_init__(self) -> None:
        is_whole = self.threshold is not None and self.slope is not None
        if (self.slope is None) != (self.intercept is None) or is_whole != (self.reason is None):
            raise ValueError("expected slope, intercept and threshold, or null with a reason")

    def probability(self, logit: float) -> float | None:
        """Returns the probability that the label applies at a logit."""
        if self.slope is None or self.intercept is None:
            return None
        return 0.5 * (1.0 + math.tanh(0.5 * (self.slope * logit + self.intercept)))


@dataclass(frozen=True)
class MultiplierOfN:
    """The lambda for choosing among n candidates, or why there is none.

    Attributes:
        num_candidates: n.
        lagrange_multiplier: lambda; None where none was issued.
        reason: why none was issued; else None.
        num_prompts: the prompts that it was tested on, each with n candidates.
        observed, reward: as in `ConfidentMultiplier`.
    """

    __pydantic_config__ = STRICT

    num_candidates: Annotated[int, Field(ge=2)]
    lagrange_multiplier: Annotated[float, Field(ge=0)] | None
    reason: str | None
    num_prompts: Count
    observed: float
    reward: float

    def __post_init__(self) -> None:
        if (self.lagrange_multiplier is None) == (self.reason is None):
            raise ValueError("expected a lagrange_multiplier, or null with a reason")


@dataclass(frozen=True)
class MultiplierCalibration:
    """The lambdas at which choosing by reward minus lambda times cost holds a limit, one for each number of candidates.

    Attributes:
        weighed: what lambda is the price of, as in `lagrangian.weigh`: P(unsafe) where the harmful rate is limited.
        constraint, limit, confidence, bound: as in `ConfidentMultiplier`.
        multipliers: by number of candidates, rising; one of them at least was issued.
        models: "reward" and "cost" -> `fingerprint_trained` of the folder with this head; lambda is for these two.
    """

    __pydantic_config__ = STRICT

    weighed: Weighed
    constraint: Constraint
    limit: float
    confidence: Annotated[float, Field(gt=0, lt=1)]
    bound: Bound
    multipliers: tuple[MultiplierOfN, ...]
    models: Mapping[str, str]

    def __post_init__(self) -> None:
        numbers = [one.num_candidates for one in self.multipliers]
        if numbers != sorted(set(numbers)) or not self.issued:
            raise ValueError("multipliers: expected rising numbers of candidates, and one lagrange_multiplier at least")
        if self.models.keys() != {"reward", "cost"}:
            raise ValueError("models: expected the fingerprints of a reward and a cost")

    @property
    def limited(self) -> str:
        """What the limit is about, in words."""
        return "mean cost" if self.constraint == "cost" else "harmful rate"

    @property
    def promise(self) -> str:
        """What is promised of each multiplier, exactly."""
        return (
            f"a {self.limited} up to {self.limit:g} of what is chosen for prompts and clips like these"
            f"{f' (costs above {MOST_COST:g} count as that)' if self.constraint == 'cost' else ''}; for each "
            f"number of candidates, the probability that a wrong multiplier is issued is at most "
            f"{100.0 * (1.0 - self.confidence):.3g}%"
        )

    @property
    def issued(self) -> tuple[int, ...]:
        """The numbers of candidates that have a multiplier."""
        return tuple(one.num_candidates for one in self.multipliers if one.reason is None)

    def find(self, num_candidates: int) -> MultiplierOfN | None:
        """Returns what was found for exactly this number of candidates; None where nothing was tested."""
        return next((one for one in self.multipliers if one.num_candidates == num_candidates), None)

    def __str__(self) -> str:
        return f"calibrated for a {self.limited} up to {self.limit:g}, best of {', '.join(map(str, self.issued))}"


@dataclass(frozen=True)
class Calibration:
    """The calibration of a model folder.

    Attributes:
        heads: of the heads that learn from comparisons.
        labels: of the heads of harm labels.
        data: facts about the data of the fit, for people to read.
        multiplier: for choosing with a reward and a cost, of which this folder has one or both; None without one.
        prompts: hashes of the prompts that any of these were fitted to; None where nothing was.
    """

    heads: Mapping[str, HeadCalibration]
    labels: Mapping[str, LabelCalibration]
    data: Mapping[str, object] = field(default_factory=dict)
    multiplier: MultiplierCalibration | None = None
    prompts: PromptHashes | None = None


@dataclass(frozen=True)
class CalibrationFile:
    """The content of calibration.json; `weights` is the `fingerprint_model` of its folder."""

    __pydantic_config__ = STRICT

    format_version: Literal[3]
    weights: str
    heads: Mapping[str, HeadCalibration]
    labels: Mapping[str, LabelCalibration]
    data: Mapping[str, object]
    multiplier: MultiplierCalibration | None = None
    prompts: PromptHashes | None = None

    def __post_init__(self) -> None:
        for found, known, what in (
            (self.heads, DIMENSION_OF_HEAD, "heads that learn from comparisons"),
            (self.labels, LOGIT_HEADS, "heads of harm labels"),
        ):
            if unknown := sorted(set(found) - set(known)):
                raise ValueError(f"expected {what}, got {unknown[0]!r}")


def read_calibration(folder: Path, fingerprint: Callable[[Path], str] = fingerprint_model) -> Calibration:
    """Reads the calibration of a model folder; empty if there is none.

    Args:
        folder: the folder that holds model.json.
        fingerprint: computes the fingerprint of the folder; called only if there is a calibration.

    Raises:
        CheckpointError: calibration.json is damaged, or belongs to other weights than those in the folder.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return Calibration({}, {})
    found = read_json(CalibrationFile, path, CheckpointError, f"run {COMMAND} again")
    if found.weights != fingerprint(folder):
        raise CheckpointError(f"{path}: belongs to other weights than those in its folder; run {COMMAND} again")
    return Calibration(found.heads, found.labels, found.data, found.multiplier, found.prompts)


def join_calibrations(found: Iterable[Calibration]) -> Calibration:
    """Joins the calibrations of several model folders, without their multipliers."""
    heads: dict[str, HeadCalibration] = {}
    labels: dict[str, LabelCalibration] = {}
    for one in found:
        heads, labels = heads | dict(one.heads), labels | dict(one.labels)
    return Calibration(heads, labels)


def add_prompts(fitted: Calibration, folder: Path, prompts: Iterable[str]) -> Calibration:
    """Adds hashes of prompts that a calibration was fitted to.

    Args:
        folder: the model folder; its weights decide the salt of the first hashes.
    """
    known = fitted.prompts or hash_prompts((), salt=fingerprint_trained(folder))
    return replace(fitted, prompts=known.joined(prompts))


def write_calibration(folder: Path, fitted: Calibration) -> Path:
    """Writes or replaces calibration.json in a model folder, as a whole.

    Args:
        folder: the folder that holds model.json.

    Returns:
        The path of the file.

    Raises:
        CheckpointError: the folder cannot be read or written.
    """
    path = folder / FILE_NAME
    weights = fingerprint_model(folder)
    content = CalibrationFile(
        FORMAT_VERSION, weights, fitted.heads, fitted.labels, fitted.data, fitted.multiplier, fitted.prompts
    )
    try:
        write_json(path, content)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror}); make the folder writable") from error
    return path
