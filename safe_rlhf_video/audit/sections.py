"""Defines the typed result of an audit, audit.json, and writes it; docs/audit.md explains every figure.

A figure that cannot be computed is None, and a `reason` beside it says why. Examples are names of videos, prompts or
comparisons, at most `splits.NUM_EXAMPLES`. Mappings are by name of a split, dimension, harm or generator.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safe_rlhf_video.files import write_whole
from safe_rlhf_video.stats.intervals import Interval

# Figures that only some predictors have: where they are None, audit.json does not have them either.
_NOT_OF_ALL = ("ties", "generators_taken_as_one")


@dataclass(frozen=True)
class CountedShare:
    """The share of `total` items that count; a tie counts half."""

    count: float
    total: int
    prompts: int
    share: float | None
    interval: Interval | None
    reason: str | None


@dataclass(frozen=True)
class Finding:
    """A sentence about the data.

    Attributes:
        mark: ok, look or problem.
        section: name of the section with the figures.
    """

    mark: str
    section: str
    text: str


@dataclass(frozen=True)
class OverlapExamples:
    """Shared prompts, as the ids of each split, and names of shared videos."""

    prompt_ids: Sequence[Mapping[str, Sequence[str]]]
    videos: Sequence[str]


@dataclass(frozen=True)
class Overlap:
    """What two splits share; prompts are counted by their text unless a name says otherwise."""

    splits: tuple[str, str]
    prompts: Mapping[str, int]
    prompts_by_text: int
    prompts_by_text_under_other_ids: int
    prompts_by_id: int
    prompt_ids_with_other_text: int
    share_of_prompts: Mapping[str, float | None]
    videos: int
    video_names_of_other_videos: int
    compared_pairs: int
    examples: OverlapExamples


@dataclass(frozen=True)
class PromptIds:
    """Prompts whose text has several ids; an example is these ids."""

    prompts_under_several_ids: int
    examples: Sequence[Sequence[str]]


@dataclass(frozen=True)
class UnknownField:
    """How many records have a field that nobody knows, and the known field that its name resembles."""

    records: int
    resembles: str | None


@dataclass(frozen=True)
class FieldCoverage:
    """What the reader let pass: nested unknown fields have a dot, those of a video begin with "video."."""

    unknown: Mapping[str, UnknownField]
    blank_prompts: int
    examples: Sequence[str]


@dataclass(frozen=True)
class IdenticalPairs:
    """Comparisons of one content with itself."""

    count: int
    examples: Sequence[str]


@dataclass(frozen=True)
class ClipChecks:
    """Clips of equal content.

    Attributes:
        present: videos whose clip is there; `present`, `missing` and `refused` make the whole.
        compared: videos whose content is known.
        refused: names of videos whose path leads out of the video folder.
        unreadable: names of videos.
        hashed: files that were read; `from_store` counts those whose hash a frame store has.
        duplicates: groups of names with one content.
        across_splits: the groups whose names are in different splits.
        reason: why no content was compared.
    """

    present: int
    missing: int
    compared: int
    refused: Sequence[str]
    unreadable: Sequence[str]
    hashed: int
    from_store: int
    duplicates: Sequence[Sequence[str]] | None
    across_splits: Sequence[Sequence[str]] | None
    identical_pairs: IdenticalPairs | None
    reason: str | None


@dataclass(frozen=True)
class ResponseChecks:
    """Responses that are equal word for word; the groups are examples."""

    responses: int
    num_duplicates: int
    num_across_splits: int
    duplicates: Sequence[Sequence[str]]
    across_splits: Sequence[Sequence[str]]
    identical_pairs: IdenticalPairs


@dataclass(frozen=True)
class RepeatedPairs:
    """Pairs of videos that were compared more than once.

    Attributes:
        tie_and_preference: pairs with both a tie and a preference.
        disagreement: share of all couples of preferences of one pair that differ.
        flip_rate: the probability of a wrong label that makes as many differ.
    """

    pairs: int
    comparisons: int
    contradictory: int
    tie_and_preference: int
    disagreement: float | None
    flip_rate: float | None
    reason: str | None
    examples: Sequence[str]


@dataclass(frozen=True)
class Contradictions:
    """Videos with a label, and those of which two records say different things."""

    videos: int
    contradictory: int
    examples: Sequence[str]


@dataclass(frozen=True)
class HarmExamples:
    """Names of videos, as `HarmContradictions` counts them."""

    contradictory: Sequence[str]
    safe_with_harm: Sequence[str]
    unsafe_without_harm: Sequence[str]


@dataclass(frozen=True)
class HarmContradictions:
    """Videos whose harm labels contradict one another or `is_safe`."""

    videos: int
    contradictory: int
    safe_with_harm: int
    unsafe_without_harm: int
    examples: HarmExamples


@dataclass(frozen=True)
class SafetyOrder:
    """Comparisons of a safe and an unsafe video; `contradicting` prefer the unsafe one in harmlessness."""

    safe_unsafe_pairs: int
    without_label: int
    tied: int
    contradicting: CountedShare
    examples: Sequence[str]


@dataclass(frozen=True)
class Conflicts:
    """Labels that contradict one another."""

    repeated_pairs: Mapping[str, RepeatedPairs]
    is_safe: Contradictions
    generators: Contradictions
    harm_labels: HarmContradictions
    harmlessness_against_is_safe: SafetyOrder


@dataclass(frozen=True)
class TriangleFigures:
    """Noise of the labels of one dimension: counts of triangles, and what follows from the share of cyclic ones."""

    closed: int
    cyclic: int
    with_tie: int
    prompts: int
    cyclic_share: float | None = None
    cyclic_share_interval: Interval | None = None
    flip_rate: float | None = None
    flip_rate_interval: Interval | None = None
    ceiling: float | None = None
    ceiling_interval: Interval | None = None
    ceiling_bradley_terry: float | None = None
    ceiling_bradley_terry_interval: Interval | None = None
    reason: str | None = None


@dataclass(frozen=True)
class PredictorAccuracy:
    """How many labels a predictor gets right; a tie is half right.

    Attributes:
        ties: labels that it cannot decide; None where it knows nothing.
    """

    count: float
    total: int
    prompts: int
    accuracy: float | None
    interval: Interval | None
    reason: str | None
    ties: int | None = None


@dataclass(frozen=True)
class ExpectedAccuracy:
    """An accuracy that needs no measurement, and why."""

    accuracy: float
    reason: str


@dataclass(frozen=True)
class PromptBaseline:
    """How well the words of a prompt predict `is_safe`."""

    fitted_on: str
    balanced_accuracy: float | None
    auroc: float | None
    safe_recall: CountedShare
    unsafe_recall: CountedShare
    num_fitted_videos: int
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """Predictors that see no video, on one split; without comparisons, `prompt_only_unsafe` alone."""

    fitted_on: str | None = None
    generators_taken_as_one: int | None = None
    generator_only: Mapping[str, PredictorAccuracy] | None = None
    prompt_only: ExpectedAccuracy | None = None
    is_safe_only: Mapping[str, PredictorAccuracy] | None = None
    reason: str | None = None
    prompt_only_unsafe: PromptBaseline


@dataclass(frozen=True)
class SideCounts:
    """Labels of one dimension by preferred side."""

    video_0: int
    video_1: int
    tie: int
    missing: int
    share_video_0: CountedShare

    @property
    def labelled(self) -> int:
        """Comparisons with a label; a tie is one."""
        return self.video_0 + self.video_1 + self.tie


@dataclass(frozen=True)
class FlagCounts:
    """Videos by what their records say of a flag; `contradictory` is true in one record and false in another."""

    true: int
    false: int
    contradictory: int
    unknown: int
    share_true: float | None


@dataclass(frozen=True)
class HarmCounts:
    """Videos or prompts by what their records say of one harm."""

    code: str
    name: str
    true: int
    false: int
    contradictory: int
    unknown: int
    share_true: float | None


@dataclass(frozen=True)
class GeneratorCounts:
    """Videos of a generator, and the share of comparisons with other generators' videos that it wins, by dimension."""

    videos: int
    share: float
    win_rate: Mapping[str, CountedShare]


@dataclass(frozen=True)
class Balance:
    """How often each label occurs; preferences are None without comparisons."""

    preferences: Mapping[str, SideCounts] | None
    is_safe: FlagCounts
    harm_labels: Mapping[str, HarmCounts]
    prompt_harm_labels: Mapping[str, HarmCounts]
    prompt_types: Mapping[str, int]
    generators: Mapping[str, GeneratorCounts]
    generators_taken_as_one: int


@dataclass(frozen=True)
class Components:
    """Connected groups of videos: `sizes` is size -> number of groups."""

    number: int
    sizes: Mapping[str, int]
    prompts: int
    prompts_with_several: int


@dataclass(frozen=True)
class Distribution:
    """Whole numbers: value -> how often it occurs."""

    mean: float | None
    distribution: Mapping[str, int]


@dataclass(frozen=True)
class SamePromptPairs:
    """Couples of videos of one prompt: all, compared, and joined by some chain of comparisons."""

    total: int
    compared: int
    connected: int
    share_connected: float | None


@dataclass(frozen=True)
class Resistances:
    """Effective resistances; q05 is the 5% quantile, `histogram` lower end of a bin -> number."""

    number: int
    mean: float
    median: float
    q05: float
    q25: float
    q75: float
    q95: float
    max: float
    histogram: Mapping[str, int]


@dataclass(frozen=True)
class FosterSum:
    """The sum of the resistances of all comparisons, and what Foster's theorem says that it is."""

    sum: float
    expected: int


@dataclass(frozen=True)
class GraphResistance:
    """Resistances of the comparisons, and of all couples of videos that are joined."""

    compared: Resistances | None
    same_prompt: Resistances | None
    foster: FosterSum
    components_too_large: int
    reason: str | None


@dataclass(frozen=True)
class GraphFigures:
    """The shape of the graph that the labels of one dimension, or of any, make of the videos."""

    comparisons: int
    compared_pairs: int
    videos: int
    uncompared_videos: int
    components: Components
    comparisons_per_video: Distribution
    videos_per_prompt: Distribution
    same_prompt_pairs: SamePromptPairs
    resistance: GraphResistance


@dataclass(frozen=True)
class AuditCounts:
    """What was audited; `pairs_in_several_splits` are copies that do not count."""

    pairs: int
    pairs_in_several_splits: int
    prompts: int
    videos: int


@dataclass(frozen=True)
class LabelAudit:
    """What the labels of one split, or of all together, are worth; `reason` says why some sections are None."""

    counts: AuditCounts
    conflicts: Conflicts
    triangles: Mapping[str, TriangleFigures] | None
    balance: Balance
    graph: Mapping[str, GraphFigures] | None  # by dimension, and "overall"
    reason: str | None


@dataclass(frozen=True)
class SplitAudit(LabelAudit):
    """One split by itself."""

    config: str
    prompt_ids: PromptIds
    fields: FieldCoverage


@dataclass(frozen=True)
class Audit:
    """What audit.json holds: `counts` to `reason` are a `LabelAudit` of all splits together.

    Attributes:
        unit: what is compared: "video", "response", or "item" if there are both.
        responses: None if no record has a response.
    """

    format_version: int
    names: Sequence[str]
    unit: str
    findings: Sequence[Finding]
    overlap: Sequence[Overlap]
    clips: ClipChecks
    responses: ResponseChecks | None
    baselines: Mapping[str, Baselines]
    counts: AuditCounts
    conflicts: Conflicts
    triangles: Mapping[str, TriangleFigures] | None
    balance: Balance
    graph: Mapping[str, GraphFigures] | None
    reason: str | None
    splits: Mapping[str, SplitAudit]


def write_audit(path: Path, result: Audit) -> None:
    """Writes audit.json, whole or not at all.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    # Pydantic would replace the lone surrogates that names of unknown fields may have.
    write_whole(path, json.dumps(asdict(result, dict_factory=_known), indent=2, allow_nan=False) + "\n")


def _known(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in fields if value is not None or name not in _NOT_OF_ALL}
