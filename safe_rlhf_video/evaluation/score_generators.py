"""Scores the clips of one or two text-to-video models, evaluates the scores, and writes the result to a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from safe_rlhf_video.contracts import write_json
from safe_rlhf_video.data.datasets import PromptDataset
from safe_rlhf_video.data.records import PromptSample
from safe_rlhf_video.errors import ConfigError, SampleError, VideoDecodeError
from safe_rlhf_video.evaluation.generations import Generations, check_clips, find_generations
from safe_rlhf_video.evaluation.generator import ClipScores, evaluate_generators
from safe_rlhf_video.evaluation.generator_results import FILE_NAME, GeneratorEvaluation, LeftOut, RatesUsed
from safe_rlhf_video.evaluation.results import SignFigures, read_evaluation
from safe_rlhf_video.evaluation.seen_prompts import count_seen, in_sample_heads, in_sample_multiplier
from safe_rlhf_video.models.folder import fingerprint_weights
from safe_rlhf_video.models.record import read_record
from safe_rlhf_video.scoring.decisions import TradeOff
from safe_rlhf_video.scoring.score_files import score_to_file
from safe_rlhf_video.scoring.score_many import ScoreRequest
from safe_rlhf_video.scoring.scorer import Scorer
from safe_rlhf_video.stats.checks import MIN_PROMPTS
from safe_rlhf_video.stats.prevalence import SignRates

Missing = Literal["refuse", "drop"]


@dataclass(frozen=True)
class GeneratorRequest:
    """What to evaluate.

    Attributes:
        model: folders of a reward and a cost.
        prompts: the prompts, in the form of SafeSora-Eval.
        videos: name of one or two generators -> the folder of their clips.
        out: the folder for generator.json and the scores.
        missing: whether prompts without a clip, files of no prompt and unreadable clips are refused or left out.
        evaluation: an evaluation.json of the cost; harmful rates are corrected with it.
        lagrange_multiplier: lambda, the price of cost in reward; by default the one that was calibrated for choosing
            among two, as clips of two generators are compared, else 1.
        cost_limit: d, the cost that is allowed; by default 0.
        backbone: the backbone's folder, if it moved since training.
        batch_size: clips scored at once.
    """

    model: Sequence[str]
    prompts: Path
    videos: Mapping[str, Path]
    out: Path
    missing: Missing = "refuse"
    evaluation: Path | None = None
    lagrange_multiplier: float | None = None
    cost_limit: float | None = None
    backbone: str | None = None
    batch_size: int = 64


def score_generators(request: GeneratorRequest) -> GeneratorEvaluation:
    """Scores the clips, evaluates the scores, and writes generator.json to `request.out`.

    Scores that `request.out` already holds are not made again.

    Raises:
        ConfigError: an argument is wrong, or `request.out` cannot be written.
        CheckpointError: a model cannot be used.
        SampleError: the prompts or the evaluation are wrong, or clips are missing.
        VideoDecodeError: clips cannot be read.
    """
    started = time.monotonic()
    # Mistakes are reported before the first clip is decoded.
    TradeOff(request.lagrange_multiplier or 0.0, request.cost_limit or 0.0).score(0.0, 0.0)
    prompts = PromptDataset.load(request.prompts).prompts
    if not prompts:
        raise SampleError(f"{request.prompts}: holds no prompt; there is nothing to evaluate on")
    fingerprints = {folder: fingerprint_weights([folder]) for folder in request.model}
    rates = _read_rates(request, fingerprints)
    seen = {str(folder): count_seen(folder, [prompt.prompt_text for prompt in prompts]) for folder in request.model}
    in_sample = in_sample_heads(seen)
    if rates is not None and (why := read_evaluation(Path(str(request.evaluation))).in_sample.get("cost_sign")):
        in_sample["sign_rates"] = why
    found = {name: _find(folder, prompts, request.missing) for name, folder in request.videos.items()}
    _make_folder(request.out)

    scores: dict[str, ClipScores] = {}
    left_out: dict[str, LeftOut] = {}
    with Scorer.from_pretrained(*request.model, backbone=request.backbone) as scorer:
        trade_off = scorer.require_trade_off(2, request.lagrange_multiplier, request.cost_limit)
        if trade_off.is_calibrated:
            in_sample |= in_sample_multiplier(seen)
        no_zero = scorer.no_zero
        hashes = {}
        for name, own in found.items():
            hashes[name], broken = _check(name, request, own, scorer)
            left_out[name] = LeftOut(tuple(map(str, own.strays)), tuple(own.without_clip), broken)
        for name, own in found.items():
            scores[name] = _score(name, request, own, hashes[name], prompts, scorer)

    evaluation = evaluate_generators(prompts, scores, trade_off=trade_off, sign_rates=rates, no_zero=no_zero)
    evaluation = replace(
        evaluation,
        generators={
            name: replace(result, folder=str(request.videos[name]), left_out=left_out[name])
            for name, result in evaluation.generators.items()
        },
        models=fingerprints,
        prompts=str(request.prompts),
        seen_prompts=seen,
        in_sample=in_sample,
        sign_rates=None if rates is None else RatesUsed(**asdict(rates), source=str(request.evaluation)),
        seconds=round(time.monotonic() - started, 1),
    )
    path = request.out / FILE_NAME
    try:
        write_json(path, evaluation)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}), what was there stays; make room and run the same again"
        ) from error
    return evaluation


def _read_rates(request: GeneratorRequest, fingerprints: Mapping[str, str]) -> SignRates | None:
    """How often the sign of the cost is right; None without an evaluation."""
    if request.evaluation is None:
        return None
    costs = [
        folder
        for folder in request.model
        if any("cost" in heads for heads in read_record(folder).heads_of_adapter.values())
    ]
    if not costs:
        return None
    return sign_rates(read_evaluation(request.evaluation, fingerprints[costs[0]]).cost_sign, str(request.evaluation))


def sign_rates(figures: SignFigures | None, where: str) -> SignRates:
    """Takes the rates of the cost's sign from an evaluation.

    Args:
        figures: None where the evaluation had no labelled clip.
        where: the file, for messages.

    Raises:
        ConfigError: the evaluation lacks a rate or knows too little of it, or the sign is no better than chance.
    """
    sensitivity, specificity = (figures.sensitivity, figures.specificity) if figures else (None, None)
    if sensitivity is None or specificity is None:
        raise ConfigError(
            f"{where} field cost_sign: has no sensitivity and specificity; evaluate on comparisons with safe and "
            "unsafe clips"
        )
    num_prompts = min(sensitivity.num_prompts, specificity.num_prompts)
    if sensitivity.effective_size is None or specificity.effective_size is None:
        raise ConfigError(
            f"{where} field cost_sign: sensitivity or specificity is of {num_prompts} prompts, which give no interval; "
            f"evaluate on clips of at least {MIN_PROMPTS} prompts of either kind"
        )
    if sensitivity.rate + specificity.rate <= 1:
        raise ConfigError(
            f"{where} field cost_sign: sensitivity {sensitivity.rate:.3f} and specificity {specificity.rate:.3f} are "
            "no better than chance and cannot correct anything; leave --evaluation out"
        )
    return SignRates(
        sensitivity.rate, specificity.rate, sensitivity.effective_size, specificity.effective_size, num_prompts
    )


def _find(folder: Path, prompts: Sequence[PromptSample], missing: Missing) -> Generations:
    own = find_generations(folder, [prompt.prompt_id for prompt in prompts])
    strays = f"{folder}: {len(own.strays)} files or folders are no .mp4 of a prompt"
    _refuse_or_print(missing, strays, list(map(str, own.strays)), "take them away")
    lacking = f"{folder}: {len(own.without_clip)} of {len(prompts)} prompts have no clip"
    _refuse_or_print(missing, lacking, own.without_clip, "generate them")
    return own


def _check(
    name: str, request: GeneratorRequest, own: Generations, scorer: Scorer
) -> tuple[dict[Path, str], tuple[str, ...]]:
    """Readable clip -> SHA-256, and the errors of the other clips."""
    clips = [clip for paths in own.clips.values() for clip in paths]
    readable, broken = check_clips(clips, scorer.record.sampling, f"check {name}")
    what = f"{len(broken)} of {len(clips)} clips of {name} cannot be read"
    _refuse_or_print(request.missing, what, list(broken.values()), "replace them", VideoDecodeError)
    if not readable:
        raise SampleError(f"{request.videos[name]}: has no clip of a prompt that can be read; nothing is left to score")
    return readable, tuple(broken.values())


def _score(
    name: str,
    request: GeneratorRequest,
    own: Generations,
    hashes: Mapping[Path, str],
    prompts: Sequence[PromptSample],
    scorer: Scorer,
) -> ClipScores:
    # With the hash in the key, the scores of a clip are never taken for those of another clip in its place.
    requests = {
        clip: ScoreRequest(f"{clip.relative_to(request.videos[name])}@{hashes[clip][:16]}", prompt.prompt_text, clip)
        for prompt in prompts
        for clip in own.clips.get(prompt.prompt_id, ())
        if clip in hashes
    }
    path = request.out / f"scores-{name}.jsonl"
    made = score_to_file(scorer, list(requests.values()), path, request.batch_size, f"score {name}")
    return {
        prompt: [made[requests[clip].key] for clip in clips if clip in requests] for prompt, clips in own.clips.items()
    }


def _refuse_or_print(
    missing: Missing,
    what: str,
    names: Sequence[str],
    remedy: str,
    error: type[SampleError | VideoDecodeError] = SampleError,
) -> None:
    if not names:
        return
    what = f"{what} (the first: {names[0]})"
    if missing == "refuse":
        raise error(f"{what}; {remedy}, or leave them out with --missing drop")
    print(f"{what}; left out")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be made ({error.strerror}); give another folder") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"--out {folder}: cannot be written to; give another folder")
