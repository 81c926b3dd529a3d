"""Defines the typed result of an evaluation, evaluation.json, and reads and writes it.

A figure that cannot be computed is None, never 0, and a `reason` beside it says why. Intervals are 95% intervals by
prompt. docs/evaluation.md explains every figure.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import GetPydanticSchema
from typing_extensions import TypedDict

from safe_rlhf_video.contracts import STRICT, parse_json, to_fields
from safe_rlhf_video.data.records import ALL_DIMENSIONS
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.files import require_path, write_whole
from safe_rlhf_video.heads import GRADED_HEADS
from safe_rlhf_video.kinds.kind import GradedFigures
from safe_rlhf_video.kinds.label import LabelFigures
from safe_rlhf_video.kinds.targets import graded_kind_of
from safe_rlhf_video.reading import load_json, read_regular
from safe_rlhf_video.stats.intervals import Interval
from safe_rlhf_video.stats.probabilities import ReliabilityBin

FILE_NAME = "evaluation.json"
_AGAIN = "run scripts/evaluate.py again; it keeps the scores that it finds in its --out"

Standing = Literal["above", "not clearly above", "below"]
OfDimension = Mapping[str, float | None]  # a figure of each dimension, "cost_sign", "cost_sign_auroc"


@dataclass(frozen=True)
class PartFigures:
    """Accuracy on a part of the comparisons."""

    name: str
    num_comparisons: int
    num_prompts: int
    accuracy: float | None
    interval: Interval | None
    reason: str | None


@dataclass(frozen=True)
class Breakdown:
    """Accuracy by pair of generators, by prompt type and by harm category; harm categories overlap."""

    generator_pair: tuple[PartFigures, ...]
    prompt_type: tuple[PartFigures, ...]
    harm_category: tuple[PartFigures, ...]


@dataclass(frozen=True)
class UnseenFigures:
    """Accuracy by how many of a comparison's videos come from generators that training left out.

    Attributes:
        generators: their names.
        any: one video or both.
    """

    generators: tuple[str, ...]
    any: PartFigures
    both: PartFigures
    none: PartFigures


@dataclass(frozen=True)
class TieFigures:
    """Accuracy with ties as a third answer.

    Attributes:
        threshold: the model calls a margin up to it a tie; None without a calibrated one.
    """

    accuracy: float | None
    interval: Interval | None
    threshold: float | None
    num_comparisons: int
    num_tied_labels: int
    reason: str | None


@dataclass(frozen=True)
class ProbabilityFigures:
    """How well the probability of the video that the model prefers agrees with the labels.

    Attributes:
        perfect_ece, perfect_ece_95: mean and 95% point of the ECE that true probabilities would have on as many labels.
        temperature: None, and used as 1, without a calibration.
        log_loss: in nats.
        mean_absolute_error: mean |P - true probability|; None where the truth is unknown.
    """

    is_calibrated: bool
    temperature: float | None
    ece: float | None
    perfect_ece: float | None
    perfect_ece_95: float | None
    brier: float | None
    log_loss: float | None
    mean_absolute_error: float | None
    bins: tuple[ReliabilityBin, ...]
    num_comparisons: int
    reason: str | None


@dataclass(frozen=True)
class DimensionFigures:
    """Figures of one dimension on the comparisons with a label that is not a tie.

    Attributes:
        ceiling: accuracy of the hidden order on the same labels; this and the next four need the truth of a world.
        fraction_of_ceiling: accuracy / ceiling.
        true_order_accuracy: accuracy against the hidden order.
        tie_rate: share of margins within the tie tolerance, which earn half a credit.
        mean_margin: chosen minus rejected, in log odds.
        unseen_generators: None where training left no generator out.
    """

    accuracy: float | None
    interval: Interval | None
    ceiling: float | None
    fraction_of_ceiling: float | None
    fraction_of_ceiling_interval: Interval | None
    true_order_accuracy: float | None
    num_true_ties: int | None
    tie_rate: float | None
    mean_margin: float | None
    num_comparisons: int
    num_prompts: int
    reason: str | None
    num_tied_labels: int
    tie_aware: TieFigures
    calibration: ProbabilityFigures
    breakdown: Breakdown
    unseen_generators: UnseenFigures | None = None


@dataclass(frozen=True)
class SignPart:
    """The sign of the cost on a part of the clips."""

    accuracy: float | None
    balanced_accuracy: float | None
    num_safe: int
    num_unsafe: int
    interval: Interval | None
    num_prompts: int
    reason: str | None


@dataclass(frozen=True)
class UnseenSigns:
    """The sign of the cost on clips of generators that training left out, and on the other clips."""

    generators: tuple[str, ...]
    unseen: SignPart
    seen: SignPart


@dataclass(frozen=True)
class ClassRate:
    """Share of the clips of one class whose cost has the right sign; a cost of 0 counts half.

    Attributes:
        effective_size: the number of independent clips that the share is worth.
    """

    rate: float
    interval: Interval | None
    effective_size: float | None
    num_clips: int
    num_prompts: int


@dataclass(frozen=True)
class SignFigures:
    """How well the sign of the cost separates safe from unsafe clips.

    Attributes:
        auroc: chance that an unsafe clip has a higher cost than a safe one; it knows no zero.
        sensitivity, specificity: of the unsafe and of the safe clips; balanced accuracy is their mean.
    """

    accuracy: float | None
    interval: Interval | None
    balanced_accuracy: float | None
    auroc: float | None
    balanced_interval: Interval | None
    sensitivity: ClassRate | None
    specificity: ClassRate | None
    num_safe: int
    num_unsafe: int
    reason: str | None
    unseen_generators: UnseenSigns | None = None


@dataclass(frozen=True)
class MacroFigures:
    """Means over the harm labels with enough clips of either class, without "any", and the number of these labels."""

    auroc: float | None
    num_labels_auroc: int
    average_precision: float | None
    num_labels_average_precision: int
    f1: float | None
    num_labels_f1: int


@dataclass(frozen=True)
class AgreementCell:
    """Number of clips, and how many of them are labelled unsafe and safe."""

    num: int
    num_unsafe: int
    num_safe: int


@dataclass(frozen=True)
class DifferingClips:
    """Names of some clips that only the cost, or only the flag, calls harmful."""

    cost_only: tuple[str, ...]
    any_only: tuple[str, ...]


@dataclass(frozen=True)
class Agreement:
    """Clips by who calls them harmful: the sign of the cost, the flag of any harm, both or neither."""

    both: AgreementCell
    cost_only: AgreementCell
    any_only: AgreementCell
    neither: AgreementCell
    examples: DifferingClips


_GRADED = TypedDict("_GRADED", {head: graded_kind_of(head).figures | None for head in GRADED_HEADS}, total=False)  # type: ignore[misc]


@dataclass(frozen=True)
class ModerationFigures:
    """Figures of the heads of harm labels.

    Attributes:
        labels: name of a label -> figures.
        graded: graded head -> figures of its kind; None without scores of it. In the file each stands under the head's
            name.
        cost_sign_against_any: None without a cost and a head of any harm.
    """

    labels: Mapping[str, LabelFigures]
    macro: MacroFigures
    graded: Annotated[Mapping[str, GradedFigures | None], GetPydanticSchema(lambda _, handler: handler(_GRADED))]
    cost_sign_against_any: Agreement | None = None


@dataclass(frozen=True)
class ControlGap:
    """A model against its strongest control on the same comparisons or clips.

    Attributes:
        control: the control with the highest figure of those that cannot judge the video.
        own_figure, control_figure: accuracy, balanced accuracy or AUROC of the model and of the control.
        difference: of the two.
        interval: of the difference; None with fewer than 10 prompts, of the cost's sign with fewer of one class.
        standing: "above" or "below" where the whole interval is.
    """

    control: str
    own_figure: float
    control_figure: float
    difference: float
    interval: Interval | None
    standing: Standing


@dataclass(frozen=True)
class ComparisonFigures:
    """Two models on the same comparisons of one dimension.

    Attributes:
        difference: accuracy of the first minus accuracy of the second.
        first_better: credit that the first earned and the second did not.
        p_value: of `significance.sign_flip`.
        p_value_holm: the same, corrected for the number of dimensions.
    """

    accuracy_first: float | None
    accuracy_second: float | None
    difference: float | None
    interval: Interval | None
    first_better: float
    second_better: float
    p_value: float | None
    p_value_holm: float | None
    num_comparisons: int
    reason: str | None


@dataclass(frozen=True)
class SeenPrompts:
    """How many of the evaluated prompts a model folder has seen.

    Attributes:
        heads: of the folder.
        num_prompts: different prompts of the data.
        num_trained: those that its training learned from or chose a checkpoint by; None where the folder does not say.
        num_calibrated: those that its calibration was fitted to.
    """

    heads: tuple[str, ...]
    num_prompts: int
    num_trained: int | None
    num_calibrated: int


@dataclass(frozen=True)
class Evaluation:
    """What evaluation.json holds.

    Attributes:
        dimensions: each of `ALL_DIMENSIONS` -> figures; None without a head or a label for it. In the file each stands
            under its own name, beside the other fields.
        cost_sign: None without a cost or without labels of what is safe.
        moderation: None without a head of a harm label.
        controls: control -> dimension -> accuracy; "cost_sign" -> balanced accuracy, cut at the share of unsafe clips
            in training, None where the training data were not given; "cost_sign_auroc" -> AUROC.
        controls_expected: the same as the hidden truth predicts it.
        controls_standard_error: of measured less expected, by prompt.
        control_gaps: dimension, "cost_sign", "cost_sign_auroc" or head of a harm label (by AUROC) -> the model against
            its strongest control; no entry without a figure or without a control.
        num_prompts_also_in_training: prompts that are in the given training data too; None where none were given.
        seen_prompts: folder of an evaluated, compared or control model -> what its own hashes of prompts say.
        in_sample: place of a figure in this file, such as "helpfulness.calibration" -> which model saw its prompts.
        comparison: dimension -> figures against another model; None without one.
        compared_models: model folder -> fingerprint of its weights.
        models: likewise, of the evaluated models.
        data: the evaluated file, as it was given.
        judgements: SHA-256 of judgements.json beside this file.
    """

    dimensions: Mapping[str, DimensionFigures | None]
    cost_sign: SignFigures | None
    moderation: ModerationFigures | None
    controls: Mapping[str, OfDimension]
    controls_expected: Mapping[str, OfDimension]
    controls_standard_error: Mapping[str, OfDimension]
    control_gaps: Mapping[str, ControlGap]
    num_prompts_also_in_training: int | None
    seen_prompts: Mapping[str, SeenPrompts] = field(default_factory=dict)
    in_sample: Mapping[str, str] = field(default_factory=dict)
    comparison: Mapping[str, ComparisonFigures] | None = None
    compared_models: Mapping[str, str] | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    data: str = ""
    seconds: float = 0.0
    judgements: str | None = None

    __pydantic_config__ = STRICT


E = TypeVar("E", bound=Evaluation)


def read_evaluation(path: Path, model: str | None = None) -> Evaluation:
    """Reads evaluation.json.

    Args:
        model: fingerprint of a model's weights that must be among the evaluated models.

    Raises:
        SampleError: as `parse_evaluation`, or the file is about other models.
    """
    evaluation = parse_evaluation(Evaluation, path)
    if model is not None and model not in evaluation.models.values():
        raise SampleError(
            f"{path}: is about other models ({', '.join(evaluation.models)}); evaluate this model as it is now"
        )
    return evaluation


def parse_evaluation(kind: type[E], path: Path) -> E:
    """Reads evaluation.json, or a file that has further fields.

    Raises:
        SampleError: the file cannot be read, is damaged, or has a wrong, missing or unknown field; a file of another
            release may.
    """
    require_path(path, SampleError, "give what scripts/evaluate.py wrote")
    try:
        fields = load_json(read_regular(path))
        if not isinstance(fields, dict):
            raise ValueError(f"expected an object, got {type(fields).__name__}")
    except OSError as error:
        raise SampleError(f"{path}: cannot be read ({error.strerror}); give what scripts/evaluate.py wrote") from error
    except ValueError as error:
        raise SampleError(f"{path}: is damaged or not an evaluation ({error}); {_AGAIN}") from error
    _fold(fields, "dimensions", ALL_DIMENSIONS)
    if isinstance(fields.get("moderation"), dict):
        _fold(fields["moderation"], "graded", GRADED_HEADS)
    try:
        return parse_json(kind, json.dumps(fields), str(path), SampleError, _AGAIN)
    except SampleError as error:  # names a field as the file has it
        message = str(error).replace(" field dimensions.", " field ").replace("moderation.graded.", "moderation.")
        raise SampleError(message) from error.__cause__


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Writes evaluation.json, whole or not at all.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    write_whole(path, json.dumps(evaluation_fields(evaluation), indent=2, allow_nan=False) + "\n")


def evaluation_fields(evaluation: Evaluation) -> dict[str, Any]:
    """The JSON object that evaluation.json holds."""
    fields = to_fields(evaluation)
    if fields["moderation"] is not None:
        fields["moderation"] |= fields["moderation"].pop("graded")
    return {**fields.pop("dimensions"), **fields}


def fingerprint(content: bytes) -> str:
    """SHA-256 of a file's content; it ties judgements.json to the evaluation that it was written with."""
    return hashlib.sha256(content).hexdigest()


def _fold(fields: dict[str, Any], into: str, names: tuple[str, ...]) -> None:
    """Gathers the fields of these names in one object."""
    fields[into] = {name: fields.pop(name) for name in names if name in fields}
