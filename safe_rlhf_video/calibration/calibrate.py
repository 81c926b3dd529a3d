"""Calibrates model folders on records that their training never read, and stores the result in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from safe_rlhf_video.calibration.fit import fit_heads, fit_labels, keep_earlier
from safe_rlhf_video.calibration.held_out import describe_dropped, held_out
from safe_rlhf_video.calibration.multiplier_calibration import (
    Candidates,
    Limit,
    calibrate_multiplier,
    group_candidates,
    store_multiplier,
)
from safe_rlhf_video.calibration.store import (
    Calibration,
    HeadCalibration,
    MultiplierCalibration,
    add_prompts,
    read_calibration,
    write_calibration,
)
from safe_rlhf_video.data.labelled_pairs import Scores
from safe_rlhf_video.data.preferences import videos_of
from safe_rlhf_video.data.prompt_hashes import read_trained_prompts
from safe_rlhf_video.data.records import PairSample, VideoSample
from safe_rlhf_video.errors import CheckpointError, SampleError
from safe_rlhf_video.models.fingerprints import fingerprint_trained
from safe_rlhf_video.models.record import read_record, resolve_model_folder
from safe_rlhf_video.stats.thresholds import Target

Sample: TypeAlias = PairSample | VideoSample
# Scores the clips of some records with the models of some folders.
ScoreSamples: TypeAlias = Callable[[Sequence[str | Path], Sequence[Sample]], Scores]


@dataclass(frozen=True)
class CalibratedFolder:
    """A model folder whose heads were calibrated.

    Attributes:
        calibration: what was fitted.
        kept: heads whose earlier calibration was kept, because the new data have no label for them.
        file: where it is stored.
        dropped: how many prompts were not used, and why; empty where all were.
    """

    calibration: Calibration
    kept: Sequence[str]
    file: Path
    dropped: str = ""

    def __str__(self) -> str:
        lines = [self.dropped] if self.dropped else []
        for head, fitted in self.calibration.heads.items():
            if head in self.kept:
                continue
            lines.append(f"{head}: {_describe_temperature(fitted)}")
        for head, label in self.calibration.labels.items():
            if label.threshold is not None and head not in self.kept:
                lines.append(
                    f"{head}: flagged above {label.threshold.logit:.4f} for {label.target}, from {label.num_positive} "
                    f"clips with the label and {label.num_negative} without"
                )
            if label.reason is not None and head not in self.kept:
                lines.append(f"{head}: {label.reason}")
        if self.kept:
            lines.append(f"kept from the earlier calibration, without a label here: {', '.join(self.kept)}")
        return "\n".join([*lines, f"wrote {self.file}"])


@dataclass(frozen=True)
class CalibratedMultiplier:
    """The multipliers that were calibrated, their candidates, their files, and which prompts were not used."""

    multiplier: MultiplierCalibration
    candidates: Candidates
    files: Sequence[Path]
    dropped: Sequence[str] = ()

    def __str__(self) -> str:
        lines = list(self.dropped)
        if self.candidates.num_unlabelled:
            lines.append(f"lambda: {self.candidates.num_unlabelled} clips without a safety label are no candidates")
        if self.candidates.num_single:
            lines.append(f"lambda: {self.candidates.num_single} prompts with a single candidate are left out")
        found = self.multiplier
        for one in found.multipliers:
            if one.reason is not None:
                lines.append(f"best of {one.num_candidates}: no lambda: {one.reason}")
                continue
            lines.append(
                f"best of {one.num_candidates}: lambda {one.lagrange_multiplier:.4g} from {one.num_prompts} prompts, "
                f"whose chosen clips have a {found.limited} of {one.observed:.4g}"
            )
        lines.append(
            f"promised: {found.promise}; calibrating again, other generators and models that change later spend it"
        )
        return "\n".join([*lines, *(f"wrote {file}" for file in self.files)])


def calibrate(
    folders: Sequence[str | Path],
    samples: Sequence[Sample],
    data: str,
    score: ScoreSamples,
    *,
    targets: Mapping[str, Target] | None = None,
    limit: Limit | None = None,
    train_prompts: Sequence[str] | None = None,
) -> Iterator[CalibratedFolder | CalibratedMultiplier]:
    """Fits what the scores of some model folders mean, and stores it in them.

    Args:
        folders: model folders. With `limit`, one reward and one cost among them.
        samples, data: records in SafeSora's format, and the name of their file. Only prompts that training held out are
            used (`calibration.held_out`).
        score: scores the clips of records. It gets one folder at a time, or without `targets` all of them.
        targets: head of a harm label -> what its threshold has to hold; None calibrates no head.
        limit: what the chosen clips have to hold; None calibrates no multipliers.
        train_prompts: texts that the models were trained on, if their folders do not say what was held out.

    Yields:
        What was calibrated, as soon as it is stored.

    Raises:
        SampleError: the data are too few, or no multiplier holds the limit.
        CheckpointError: a head is missing, or a folder cannot be read or written.
    """
    folder_of = find_choice(folders)
    if limit is not None and not len(folder_of) == len(set(dict(folder_of))) == 2:
        raise CheckpointError("a lambda is for one reward and one cost; give the folders of these as --model")
    # All folders are checked before the first is scored.
    samples_of, dropped = {}, {}
    for folder in folders:
        training, trained = read_record(folder).training, read_trained_prompts(resolve_model_folder(folder))
        samples_of[folder] = held_out(samples, data, folder, training, train_prompts, trained)
        dropped[folder] = describe_dropped(samples, samples_of[folder], folder, training)
    # Further folders, such as a moderation's, do not choose: what their training read may be a candidate.
    choosing = {folder for _, folder in folder_of}
    names_of = [
        {video.name for one in kept for video in videos_of(one)}
        for folder, kept in samples_of.items()
        if resolve_model_folder(folder) in choosing
    ]
    shared = [one for one in samples if all(video.name in names for names in names_of for video in videos_of(one))]
    scores_of_head: dict[str, dict[str, float]] = {}
    for scored, kept in samples_of.items() if targets is not None else ():
        scores = score([scored], kept)
        scores_of_head |= _by_head(scores)
        yield replace(_calibrate_folder(scored, kept, data, scores, targets or {}), dropped=dropped[scored])
    if limit is None:
        return
    if targets is None:
        scores_of_head = _by_head(score(folders, shared))
    candidates = group_candidates(
        shared, scores_of_head["reward"], scores_of_head["cost"], labelled=limit.harm_rate is not None
    )
    models = {head: fingerprint_trained(folder) for head, folder in folder_of}
    fitted = calibrate_multiplier(candidates, models, limit)
    files = store_multiplier(fitted, [folder for _, folder in folder_of], [one.prompt_text for one in shared])
    told = () if targets is not None else tuple(filter(None, dropped.values()))
    yield CalibratedMultiplier(fitted, candidates, files, told)


def find_choice(folders: Sequence[str | Path]) -> list[tuple[str, Path]]:
    """Finds the reward and cost heads of some model folders, each with the folder that holds its model.json."""
    return [
        (head, resolve_model_folder(folder))
        for folder in folders
        for heads in read_record(folder).heads_of_adapter.values()
        for head in heads
        if head in ("reward", "cost")
    ]


def _calibrate_folder(
    folder: str | Path, samples: Sequence[Sample], data: str, scores: Scores, targets: Mapping[str, Target]
) -> CalibratedFolder:
    pairs = [sample for sample in samples if isinstance(sample, PairSample)]
    videos = [sample for sample in samples if isinstance(sample, VideoSample)]
    heads, labels = fit_heads(pairs, videos, scores), fit_labels(pairs, videos, scores, targets)
    missing = {head: fitted.reason for head, fitted in heads.items() if fitted.fitted is None}
    missing |= {head: label.reason for head, label in labels.items() if label.threshold is None and label.slope is None}
    if not (heads or labels):
        raise SampleError(f"{folder}: has no head to calibrate; the probabilities of a severity are as trained")
    if len(missing) == len(heads) + len(labels):
        first, reason = next(iter(missing.items()))
        others = f", and {len(missing) - 1} others as little" if len(missing) > 1 else ""
        raise SampleError(f"{data}: no head of {folder} can be calibrated on it ({first}: {reason}{others})")
    own = resolve_model_folder(folder)
    facts = {"data": data, "num_prompts": len({sample.prompt_id for sample in samples})}
    try:
        earlier = read_calibration(own)
    except CheckpointError:
        earlier = Calibration({}, {})  # of other weights, or damaged: replaced
    fitted, kept = keep_earlier(Calibration(heads, labels, facts), earlier)
    if kept or fitted.multiplier is not None:
        fitted = replace(fitted, prompts=earlier.prompts)
    fitted = add_prompts(fitted, own, (sample.prompt_text for sample in samples))
    return CalibratedFolder(fitted, kept, write_calibration(own, fitted))


def _describe_temperature(head: HeadCalibration) -> str:
    if head.temperature is None:
        return f"no temperature: {head.reason}"
    source = f"from {head.num_comparisons} comparisons of {head.num_prompts} prompts"
    fitted = f"{head.fitted:.4f} (standard error {head.standard_error:.4f})"
    if head.temperature != head.fitted:
        return f"temperature 1: the fitted {fitted} {source} is not better than none"
    return f"temperature {fitted} {source}, log loss {head.log_loss_before:.4f} -> {head.log_loss:.4f}"


def _by_head(scores: Scores) -> dict[str, dict[str, float]]:
    """head -> clip -> score, of the reward and the cost."""
    found: dict[str, dict[str, float]] = {}
    for name, row in scores.items():
        for head in {"reward", "cost"} & row.keys():
            found.setdefault(head, {})[name] = row[head]
    return found
