"""Scores labelled comparisons or clips with models, evaluates the scores, and writes the result to a folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from safe_rlhf_video.data.datasets import PairDataset, load_any
from safe_rlhf_video.data.labelled_pairs import Scores
from safe_rlhf_video.data.records import DIMENSIONS
from safe_rlhf_video.errors import CheckpointError, SampleError
from safe_rlhf_video.evaluation.changed_inputs import SHUFFLED_PROMPT, ChangedFramesScorer, shuffle_prompts
from safe_rlhf_video.evaluation.compare import compare
from safe_rlhf_video.evaluation.evaluate import evaluate
from safe_rlhf_video.evaluation.judgements import collect_judgements, write_judgements
from safe_rlhf_video.evaluation.labelled_clips import LabelledClips, load_labelled_clips
from safe_rlhf_video.evaluation.results import FILE_NAME, Evaluation, write_evaluation
from safe_rlhf_video.evaluation.seen_prompts import count_seen, mark_in_sample
from safe_rlhf_video.heads import DIMENSION_OF_HEAD
from safe_rlhf_video.models.folder import fingerprint_weights
from safe_rlhf_video.models.record import read_record
from safe_rlhf_video.responses import TextResponse
from safe_rlhf_video.scoring.model_scorer import ModelScorer
from safe_rlhf_video.scoring.score_files import score_to_file
from safe_rlhf_video.scoring.score_many import BatchScorer, ScoreRequest
from safe_rlhf_video.scoring.scorer import Scorer
from safe_rlhf_video.video.frame_store import check_sampling
from safe_rlhf_video.worlds import truth as truth_file


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate.

    Attributes:
        model: folders of the models: reward, cost, moderation.
        data: test comparisons or clips, in SafeSora's format.
        out: the folder for evaluation.json, judgements.json and the scores.
        config_filename, video_dir, frame_store, unreadable: as of `load_labelled_clips`.
        train_data: the training data; the controls are fitted to it.
        random_backbone: folders of the same heads trained on a randomly initialised backbone.
        compare: folders of another model, tested on the same comparisons.
        controls: of `changed_inputs.CONTROLS`; each costs a pass of scoring.
        truth: hidden utilities; by default truth.json.gz beside the data, if it exists.
        backbone: the backbone's folder, if it moved since training.
        batch_size: clips scored at once.
        seed: of the shuffled prompts.
    """

    model: Sequence[str]
    data: str
    out: Path
    config_filename: str = "config.json"
    video_dir: str | None = None
    frame_store: str | None = None
    unreadable: Literal["refuse", "drop"] = "refuse"
    train_data: str | None = None
    random_backbone: Sequence[str] | None = None
    compare: Sequence[str] | None = None
    controls: Sequence[str] = ()
    truth: Path | None = None
    backbone: str | None = None
    batch_size: int = 64
    seed: int = 0


def evaluate_models(request: EvaluationRequest) -> Evaluation:
    """Scores the clips, evaluates the scores, and writes evaluation.json and judgements.json to `request.out`.

    Scores that `request.out` already holds are not made again.

    Raises:
        CheckpointError: a model cannot be used as asked.
        SampleError: the data are wrong, or do not fit a request.
    """
    started = time.monotonic()
    _check_models(request)
    clips = load_labelled_clips(
        request.data, request.config_filename, request.video_dir, request.frame_store, request.unreadable
    )
    _check_clips(request, clips)
    training = load_any(request.train_data) if request.train_data else None
    is_paired = isinstance(training, PairDataset) and bool(training.pairs)
    truth_path = request.truth or clips.config_file.parent / truth_file.FILE_NAME
    truth = truth_file.read_truth(truth_path) if request.truth or truth_path.exists() else None
    _print_notes(clips)
    prompts = [pair.prompt_text for pair in clips.pairs] + [video.prompt_text for video in clips.videos]
    folders = (*request.model, *(request.compare or ()), *(request.random_backbone or ()))
    seen = {str(folder): count_seen(folder, prompts) for folder in folders}
    requests = clips.requests([*clips.pairs, *clips.videos])

    with Scorer.from_pretrained(*request.model, backbone=request.backbone) as scorer:
        scores = _score(scorer, request, clips, requests, "scores")
        calibrations, no_zero = scorer.calibration.heads, scorer.no_zero
        unseen = {
            head: record.training.leave_out_generators
            for record in scorer.records
            for heads in record.heads_of_adapter.values()
            for head in heads
        }
        texts = {one.key for one in requests if isinstance(one.response, TextResponse)}
        moderations = {
            name: scorer.judge_harms(row, name in texts) for name, row in scores.items() if scorer.can_moderate
        }
        changed_scores = {name: _score_changed(scorer, name, request, clips, requests) for name in request.controls}
    random_scores = comparison = None
    if request.random_backbone:
        random_scores = _score_with(request.random_backbone, request, clips, requests, "random_backbone_scores")
    if request.compare:
        other = _score_with(request.compare, request, clips, requests, "compared_scores")
        comparison = compare(clips.pairs, scores, other)
    evaluation = evaluate(
        clips.pairs,
        scores,
        videos=clips.videos,
        train_pairs=training.pairs if isinstance(training, PairDataset) else (),
        train_videos=() if training is None or is_paired else training.videos,
        truth=truth,
        random_scores=random_scores,
        calibrations=calibrations,
        changed_scores=changed_scores,
        moderations=moderations,
        unseen_generators=unseen,
        no_zero=no_zero,
    )
    evaluation = replace(
        evaluation,
        comparison=comparison,
        compared_models=_fingerprints(request.compare) if request.compare else None,
        models=_fingerprints(request.model),
        seen_prompts=seen,
        data=str(request.data),
        judgements=write_judgements(request.out, collect_judgements(clips, scores)),
        seconds=round(time.monotonic() - started, 1),
    )
    marks = mark_in_sample(evaluation, seen, tuple(map(str, request.compare or ())))
    evaluation = replace(evaluation, in_sample=marks)
    write_evaluation(request.out / FILE_NAME, evaluation)
    return evaluation


def _check_models(request: EvaluationRequest) -> None:
    for folder in request.random_backbone or ():
        if read_record(folder).backbone.initialization != "random":
            raise CheckpointError(
                f"{folder}: has a pretrained backbone and is no control; give a folder trained with "
                "--model.backbone.initialization random"
            )
    if request.compare:
        heads, others = (
            {head for folder in folders for heads in read_record(folder).heads_of_adapter.values() for head in heads}
            for folders in (request.model, request.compare)
        )
        if not heads & others & set(DIMENSION_OF_HEAD):
            raise CheckpointError(
                f"--compare: {request.compare[0]} has no head in common with {request.model[0]} that learns from "
                "comparisons; compare a reward with a reward, or a cost with a cost"
            )


def _check_clips(request: EvaluationRequest, clips: LabelledClips) -> None:
    if clips.store is not None:
        for folder in (*request.model, *(request.random_backbone or ()), *(request.compare or ())):
            check_sampling(clips.store.folder, clips.store.sampling, read_record(folder).sampling)
    if request.compare and not clips.pairs:
        raise SampleError(f"{request.data}: holds no comparison, on which two models could be compared; give some")
    if set(request.controls) - {SHUFFLED_PROMPT} and not clips.files:
        raise SampleError(
            f"{request.data}: holds only texts, which have no frames; of --controls only {SHUFFLED_PROMPT} fits"
        )


def _print_notes(clips: LabelledClips) -> None:
    for name in DIMENSIONS if clips.pairs else ():
        if count := sum(pair.preferences[name] is None for pair in clips.pairs):
            print(f"{count} of {len(clips.pairs)} comparisons have no {name} label and do not count there")
    for note in clips.notes:
        print(note)


def _score_changed(
    scorer: ModelScorer,
    control: str,
    request: EvaluationRequest,
    clips: LabelledClips,
    requests: Sequence[ScoreRequest],
) -> Scores:
    """Scores of the evaluated models on changed inputs."""
    name = f"{control}_scores"
    if control == SHUFFLED_PROMPT:
        return _score(scorer, request, clips, shuffle_prompts(requests, request.seed), name)
    return _score(ChangedFramesScorer(scorer, control), request, clips, requests, name)


def _score_with(
    folders: Sequence[str],
    request: EvaluationRequest,
    clips: LabelledClips,
    requests: Sequence[ScoreRequest],
    name: str,
) -> Scores:
    with ModelScorer.from_pretrained(*folders, backbone=request.backbone) as scorer:
        return _score(scorer, request, clips, requests, name)


def _score(
    scorer: BatchScorer, request: EvaluationRequest, clips: LabelledClips, requests: Sequence[ScoreRequest], name: str
) -> Scores:
    """Scores by name, kept in NAME.jsonl so that an interrupted evaluation goes on where it stopped."""
    return score_to_file(scorer, requests, request.out / f"{name}.jsonl", request.batch_size, name, clips.store)


def _fingerprints(folders: Sequence[str]) -> dict[str, str]:
    return {str(folder): fingerprint_weights([folder]) for folder in folders}
