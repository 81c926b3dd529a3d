"""What scores mean, fitted to labels that training never saw: calibration.json in a model folder.

A temperature a head makes P(v1 preferred) = sigmoid(difference / temperature) the frequency that people show, and the
quantiles of a reference set say where a score stands among others. A harm label gets a probability and the threshold of
its flag; a reward and a cost the multiplier that holds a limit. Everything here is a pure function of scores, but for
the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
from numpy.typing import ArrayLike

from safe_rlhf_video.errors import CheckpointError, ConfigError, SampleError
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.heads import DIMENSION_OF_HEAD, LOGIT_HEADS
from safe_rlhf_video.lagrangian import (
    CONFIDENCE,
    Bound,
    ConfidentMultiplier,
    Constraint,
    Weighed,
    confident_multiplier,
    weigh,
)
from safe_rlhf_video.models.fingerprints import fingerprint_model
from safe_rlhf_video.stats.checks import MIN_COMPARISONS
from safe_rlhf_video.stats.logistic import fit_logistic
from safe_rlhf_video.stats.probabilities import fit_temperature, fit_tie_threshold
from safe_rlhf_video.stats.thresholds import Target, Threshold, choose_threshold

FILE_NAME = "calibration.json"
FORMAT_VERSION = 2
NUM_QUANTILES = 101
COMMAND = "scripts/calibrate.py"


@dataclass(frozen=True)
class Reference:
    """Scores of a head on a reference set of clips.

    Attributes:
        quantiles: from the least to the greatest score in steps of one per cent; 101, never falling.
        std: with N - 1 in the denominator; 0 for a single clip.
    """

    num: int
    mean: float
    std: float
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class HeadCalibration:
    """What a head's scores mean.

    Attributes:
        temperature: differences of scores are divided by it before the sigmoid; None where none could be fitted.
        reason: why there is none.
        num_comparisons, num_prompts: that it was fitted to; ties are not among them.
        log_loss_before, log_loss: mean -log likelihood of these at temperature 1 and at `temperature`, nats.
        tie_threshold: differences up to it are best called ties; None without ties among the comparisons.
        reference: None without clips.
    """

    temperature: float | None
    reason: str | None
    num_comparisons: int
    num_prompts: int
    log_loss_before: float | None
    log_loss: float | None
    tie_threshold: float | None
    reference: Reference | None


@dataclass(frozen=True)
class LabelCalibration:
    """What the logits of a harm label mean.

    Attributes:
        slope, intercept: P(applies) = sigmoid(slope logit + intercept); None where it could not be fitted.
        target, threshold: where the flag begins, and what it is to hold; no threshold where there were too few clips.
        reason: what is missing, and why; None if nothing is.
        num_positive, num_negative: clips with the label and without it that it was fitted to.
    """

    slope: float | None
    intercept: float | None
    target: Target
    threshold: Threshold | None
    reason: str | None
    num_positive: int
    num_negative: int

    def probability(self, logit: float) -> float | None:
        """That the label applies, at a logit."""
        if self.slope is None or self.intercept is None:
            return None
        return 0.5 * (1.0 + math.tanh(0.5 * (self.slope * logit + self.intercept)))


@dataclass(frozen=True)
class MultiplierCalibration:
    """The lambda at which choosing by reward less lambda times cost holds a limit on new prompts.

    Attributes:
        lagrange_multiplier: lambda.
        weighed: what it is the price of, as in `lagrangian.weigh`: P(unsafe) where the harmful rate is limited.
        constraint, limit, confidence, bound, num_prompts, observed, reward: as in `ConfidentMultiplier`.
        num_candidates: the least and the most candidates that one of these prompts had; the promise is about as many.
        models: "reward" and "cost" -> `fingerprint_trained` of the folder with this head; it holds for these two.
    """

    lagrange_multiplier: float
    weighed: Weighed
    constraint: Constraint
    limit: float
    confidence: float
    bound: Bound
    num_prompts: int
    num_candidates: tuple[int, int]
    observed: float
    reward: float
    models: Mapping[str, str]

    def __str__(self) -> str:
        low, high = self.num_candidates
        what = "mean cost" if self.constraint == "cost" else "harmful rate"
        return (
            f"calibrated for a {what} up to {self.limit:g} with {self.confidence:.0%} confidence, best of "
            f"{low if low == high else f'{low} to {high}'}"
        )


@dataclass(frozen=True)
class Calibration:
    """A model folder's calibration.

    Attributes:
        heads: of the heads that learn from comparisons.
        labels: of the heads of harm labels.
        data: facts about what they were fitted to, for people to read.
        multiplier: for choosing with a reward and a cost, this folder's or another's; None where none was calibrated.
    """

    heads: Mapping[str, HeadCalibration]
    labels: Mapping[str, LabelCalibration]
    data: Mapping[str, object] = field(default_factory=dict)
    multiplier: MultiplierCalibration | None = None


def calibrate_head(
    margin: ArrayLike, is_tie: ArrayLike, num_prompts: int, reference_scores: ArrayLike
) -> HeadCalibration:
    """Fit all that is stored of a head.

    Args:
        margin: (M,) chosen minus rejected, preference scores; for a tie either order.
        is_tie: (M,) whether people called it a tie; ties fit the tie threshold alone.
        num_prompts: of the comparisons that are no ties.
        reference_scores: (N,) the head's scores of the reference clips.
    """
    margins, tied = np.asarray(margin, dtype=np.float64), np.asarray(is_tie, dtype=bool)
    fitted = fit_temperature(margins[~tied])
    return HeadCalibration(
        temperature=fitted.temperature,
        reason=fitted.reason,
        num_comparisons=fitted.num,
        num_prompts=num_prompts,
        log_loss_before=fitted.log_loss_before,
        log_loss=fitted.log_loss,
        tie_threshold=fit_tie_threshold(margins, tied),
        reference=describe_reference(reference_scores),
    )


def calibrate_label(logits: ArrayLike, applies: ArrayLike, prompts: ArrayLike, target: Target) -> LabelCalibration:
    """Fit all that is stored of a harm label.

    Args:
        logits, applies, prompts: (N,) of the clips whose label is known, as for `choose_threshold`.
    """
    values, is_positive = np.asarray(logits, dtype=np.float64), np.asarray(applies, dtype=bool)
    num_positive = int(is_positive.sum())
    num_negative = len(values) - num_positive
    missing = []
    threshold = choose_threshold(values, is_positive, prompts, target)
    if threshold is None:
        names = np.asarray(prompts)
        missing.append(
            f"no threshold: {num_positive} clips of {len(np.unique(names[is_positive]))} prompts with the label and "
            f"{num_negative} of {len(np.unique(names[~is_positive]))} without are too few for a {target}"
        )
    slope = intercept = None
    if min(num_positive, num_negative) < MIN_COMPARISONS:
        missing.append(
            f"no probability: {num_positive} clips with the label and {num_negative} without, fewer than "
            f"{MIN_COMPARISONS}"
        )
    else:
        slope, intercept = fit_logistic(values, is_positive)
        if slope <= 0:
            slope = intercept = None
            missing.append("no probability: higher logits are not the likelier ones")
    reason = "; ".join(missing) or None
    return LabelCalibration(slope, intercept, target, threshold, reason, num_positive, num_negative)


def calibrate_multiplier(
    rewards: Sequence[Sequence[float]],
    costs: Sequence[Sequence[float]],
    models: Mapping[str, str],
    is_unsafe: Sequence[Sequence[int]] | None = None,
    *,
    cost_limit: float | None = None,
    harm_rate_limit: float | None = None,
    confidence: float = CONFIDENCE,
) -> MultiplierCalibration:
    """The smallest lambda that holds a limit on new prompts; see `lagrangian.confident_multiplier`.

    Args:
        rewards, costs: one row of candidates a prompt.
        models: head -> fingerprint, of the reward's and of the cost's folder.
        is_unsafe: likewise, labels 1 and 0; needed for `harm_rate_limit`.

    Raises:
        ConfigError: not exactly one limit, or one that is out of range.
        SampleError: no multiplier holds it with so many prompts.
    """
    if harm_rate_limit is not None and is_unsafe is None:
        raise ConfigError("harm_rate_limit needs safety labels of all candidates")
    weighed: Weighed = "cost" if harm_rate_limit is None else "p_unsafe"
    found: ConfidentMultiplier = confident_multiplier(
        rewards,
        [weigh(np.asarray(row, dtype=np.float64), weighed) for row in costs],
        is_unsafe if harm_rate_limit is not None else None,
        cost_limit=cost_limit,
        harm_rate_limit=harm_rate_limit,
        confidence=confidence,
    )
    if found.lagrange_multiplier is None:
        raise SampleError(str(found.reason))
    counts = [len(row) for row in rewards]
    return MultiplierCalibration(
        lagrange_multiplier=found.lagrange_multiplier,
        weighed=weighed,
        constraint=found.constraint,
        limit=found.limit,
        confidence=found.confidence,
        bound=found.bound,
        num_prompts=found.num_prompts,
        num_candidates=(min(counts), max(counts)),
        observed=found.observed,
        reward=found.reward,
        models=dict(models),
    )


def describe_reference(scores: ArrayLike) -> Reference | None:
    """Quantiles, mean and standard deviation of (N,) finite scores; None without any."""
    values = np.asarray(scores, dtype=np.float64)
    if not len(values):
        return None
    return Reference(
        num=len(values),
        mean=float(values.mean()),
        std=float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        # Sorted again: interpolation may break the order of two equal quantiles by a last bit.
        quantiles=tuple(np.sort(np.quantile(values, np.linspace(0.0, 1.0, NUM_QUANTILES))).tolist()),
    )


def percentile(score: float, reference: Reference) -> float:
    """Per cent of the reference set that scores lower, from 0 to 100; between two quantiles on the line between them.

    A score that several quantiles share stands in the middle of them.
    """
    quantiles = np.asarray(reference.quantiles)
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


def read_calibration(folder: Path) -> Calibration:
    """Read a model folder's calibration; empty if there is none.

    Args:
        folder: that holds model.json.

    Raises:
        CheckpointError: calibration.json is damaged, or belongs to other weights than lie beside it.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return Calibration({}, {})
    try:
        fields = json.loads(path.read_bytes())
        version = fields["format_version"]
        if version != FORMAT_VERSION:
            raise CheckpointError(f"{path}: format version {version}, not {FORMAT_VERSION}; run {COMMAND} again")
        heads = {head: _read_head(head, values) for head, values in fields["heads"].items()}
        labels = {head: _read_label(head, values) for head, values in fields["labels"].items()}
        weights, data = fields["weights"], dict(fields["data"])
        multiplier = _read_multiplier(found) if (found := fields.get("multiplier")) is not None else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{path}: damaged ({type(error).__name__}: {error}); run {COMMAND} again") from error
    if weights != fingerprint_model(folder):
        raise CheckpointError(f"{path}: belongs to other weights than lie beside it; run {COMMAND} again")
    return Calibration(heads, labels, data, multiplier)


def write_calibration(folder: Path, fitted: Calibration) -> Path:
    """Write or replace calibration.json in a model folder, as a whole.

    Args:
        folder: that holds model.json.

    Returns:
        The file.

    Raises:
        CheckpointError: the folder cannot be read or written.
    """
    path = folder / FILE_NAME
    fields = {
        "format_version": FORMAT_VERSION,
        "weights": fingerprint_model(folder),
        **asdict(fitted),
    }
    try:
        write_whole(path, json.dumps(fields, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror}); make the folder writable") from error
    return path


def _read_head(head: str, fields: Mapping[str, Any]) -> HeadCalibration:
    """Raises ValueError, KeyError or TypeError for what `write_calibration` would not have written."""
    if head not in DIMENSION_OF_HEAD:
        raise ValueError(f"{head!r} is no head that learns from comparisons")
    reference = fields["reference"]
    if reference is not None:
        quantiles = tuple(_number("quantiles", value) for value in reference["quantiles"])
        if len(quantiles) != NUM_QUANTILES or list(quantiles) != sorted(quantiles):
            raise ValueError(f"quantiles of {head}: expected {NUM_QUANTILES} that never fall")
        reference = Reference(
            num=_count("num", reference["num"]),
            mean=_number("mean", reference["mean"]),
            std=_number("std", reference["std"]),
            quantiles=quantiles,
        )
    temperature, reason = fields["temperature"], fields["reason"]
    if (temperature is None) == (reason is None) or not isinstance(reason, str | None):
        raise ValueError(f"temperature of {head}: expected a number, or null with a reason")
    if temperature is not None and _number("temperature", temperature) <= 0:
        raise ValueError(f"temperature of {head}: expected a positive number, got {temperature!r}")
    before, after, tie_threshold = (
        _optional(name, fields) for name in ("log_loss_before", "log_loss", "tie_threshold")
    )
    return HeadCalibration(
        temperature=None if temperature is None else float(temperature),
        reason=reason,
        num_comparisons=_count("num_comparisons", fields["num_comparisons"]),
        num_prompts=_count("num_prompts", fields["num_prompts"]),
        log_loss_before=before,
        log_loss=after,
        tie_threshold=tie_threshold,
        reference=reference,
    )


def _read_label(head: str, fields: Mapping[str, Any]) -> LabelCalibration:
    """As `_read_head`."""
    if head not in LOGIT_HEADS:
        raise ValueError(f"{head!r} is no head of a harm label")
    target, threshold = Target(**fields["target"]), fields["threshold"]
    if target.kind not in get_args(get_type_hints(Target)["kind"]) or not 0 < _number("target", target.value) < 1:
        raise ValueError(f"target of {head}: expected a rate or recall between 0 and 1")
    if threshold is not None:
        rates = (_optional(name, threshold) for name in ("false_positive_rate", "recall"))
        threshold = Threshold(_number("logit", threshold["logit"]), *rates)
    slope, intercept, reason = _optional("slope", fields), _optional("intercept", fields), fields["reason"]
    is_whole = threshold is not None and slope is not None
    if (slope is None) != (intercept is None) or not isinstance(reason, str | None) or is_whole != (reason is None):
        raise ValueError(f"{head}: expected a probability and a threshold, or null with a reason")
    counts = (_count(name, fields[name]) for name in ("num_positive", "num_negative"))
    return LabelCalibration(slope, intercept, target, threshold, reason, *counts)


def _read_multiplier(fields: Mapping[str, Any]) -> MultiplierCalibration:
    """As `_read_head`."""
    # A lambda means nothing without all that is said of it, so what is not understood is not passed over.
    if unknown := sorted(fields.keys() - {one.name for one in dataclass_fields(MultiplierCalibration)}):
        raise ValueError(f"multiplier: unknown field {unknown[0]!r}")
    low, high = (_count("num_candidates", count) for count in fields["num_candidates"])
    values = {name: _number(name, fields[name]) for name in ("lagrange_multiplier", "limit", "confidence", "reward")}
    models = fields["models"]
    if values["lagrange_multiplier"] < 0 or not 0 < values["confidence"] < 1 or not 1 <= low <= high:
        raise ValueError("multiplier: a number is out of range")
    if fields["constraint"] not in get_args(Constraint) or fields["bound"] not in get_args(Bound):
        raise ValueError("multiplier: its constraint or its bound is unknown")
    if fields["weighed"] not in get_args(Weighed):
        raise ValueError("multiplier: what it weighs is unknown")
    if not isinstance(models, dict) or models.keys() != {"reward", "cost"}:
        raise ValueError("multiplier: expected fingerprints of the reward and of the cost")
    return MultiplierCalibration(
        constraint=fields["constraint"],
        weighed=fields["weighed"],
        bound=fields["bound"],
        num_prompts=_count("num_prompts", fields["num_prompts"]),
        num_candidates=(low, high),
        observed=_number("observed", fields["observed"]),
        models={head: str(name) for head, name in models.items()},
        **values,
    )


def _optional(name: str, fields: Mapping[str, Any]) -> float | None:
    return None if fields[name] is None else _number(name, fields[name])


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value!r:.40}")
    return float(value)


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name}: expected a count, got {value!r:.40}")
    return value
