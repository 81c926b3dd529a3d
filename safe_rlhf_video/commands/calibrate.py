"""Fit what a trained model's scores mean, on comparisons or labelled clips that its training never read.

    python scripts/calibrate.py --model REWARD_DIR COST_DIR --data CONFIG [--frame_store DIR]
    python scripts/calibrate.py --model MODERATION_DIR --data CONFIG --targets false_positive_rate=0.05 crime:recall=0.9
    python scripts/calibrate.py --model REWARD_DIR COST_DIR --data CONFIG --harm_rate_limit 0.05

CONFIG is the file that the model was trained on with data.calibration_fraction; exactly the prompts that training held
out are used. A model that was trained without it takes any file of other prompts, and --train_data to make sure. Each
model folder gets a calibration.json: a temperature a head, which makes P(v1 preferred) the frequency that people show,
and the quantiles of the clips' scores; for a harm label, its probability and the threshold of its flag. With a limit,
also the lambda at which choosing among a prompt's clips keeps that limit on new prompts (docs/lagrangian.md).
Scorer.from_pretrained reads it, and has this lambda as its default.
"""

import argparse
import tempfile
from pathlib import Path

from safe_rlhf_video.cli import Parser
from safe_rlhf_video.data.datasets import load_any
from safe_rlhf_video.data.records import PairSample, VideoSample
from safe_rlhf_video.errors import CheckpointError, SampleError
from safe_rlhf_video.video.frame_store import check_sampling


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True, metavar="DIR", help="model folders, each by itself")
    parser.add_argument("--data", required=True, metavar="CONFIG", help="comparisons or clips, in SafeSora's format")
    parser.add_clip_source()
    parser.add_argument(
        "--train_data",
        nargs="+",
        metavar="FILE",
        help="what a model without held-out prompts was trained on, all of it",
    )
    parser.add_argument("--backbone", help="the backbone's folder, if it lies elsewhere than in training")
    parser.add_argument(
        "--targets",
        nargs="+",
        default=["false_positive_rate=0.05"],
        metavar="[LABEL:]KIND=VALUE",
        help="what the flags of harm labels are to hold: false_positive_rate=A or recall=B, for all labels or for one",
    )
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument("--harm_rate_limit", type=float, help="what share of the chosen may be unsafe; stores a lambda")
    limit.add_argument("--cost_limit", type=float, help="what the mean cost of the chosen may be; stores a lambda")
    parser.add_argument("--confidence", type=float, default=0.95, help="that the limit holds on new prompts")
    parser.add_argument("--batch_size", type=int, default=64, help="clips scored at once")
    calibrate_models(parser.parse_args())


def calibrate_models(arguments: argparse.Namespace) -> None:
    from safe_rlhf_video.calibration.fit import Calibration, read_calibration, write_calibration
    from safe_rlhf_video.calibration.fit_multiplier import (
        fit_multiplier,
        folders_of_choice,
        group_candidates,
        store_multiplier,
    )
    from safe_rlhf_video.calibration.fit_samples import fit_heads, fit_labels, keep_earlier, parse_targets
    from safe_rlhf_video.calibration.held_out import held_out
    from safe_rlhf_video.data.preferences import videos_of
    from safe_rlhf_video.evaluation.labelled_clips import load_labelled_clips
    from safe_rlhf_video.lagrangian import check_limit
    from safe_rlhf_video.models.record import read_record, resolve_model_folder
    from safe_rlhf_video.scoring import Scorer
    from safe_rlhf_video.scoring.score_files import score_to_file

    targets = parse_targets(arguments.targets)
    has_limit = not (arguments.harm_rate_limit is None and arguments.cost_limit is None)
    if has_limit:
        check_limit(arguments.cost_limit, arguments.harm_rate_limit)
    for folder in arguments.model:
        if not Path(folder).exists():
            raise CheckpointError(f"{folder}: no such folder; download a model before it is calibrated")
    clips = load_labelled_clips(
        arguments.data, arguments.config_filename, arguments.video_dir, arguments.frame_store, arguments.unreadable
    )
    found = folders_of_choice(arguments.model)
    folder_of = dict(found)
    if has_limit and not len(found) == len(folder_of) == 2:
        raise CheckpointError("a lambda is for one reward and one cost; give the folders of these as --model")
    train_prompts = None
    if arguments.train_data:
        train_prompts = [video.prompt_text for path in arguments.train_data for video in load_any(path).videos]
    # All folders are checked before the first is scored.
    records: list[PairSample | VideoSample] = [*clips.pairs, *clips.videos]
    samples_of = {
        folder: held_out(records, arguments.data, folder, read_record(folder).training, train_prompts)
        for folder in arguments.model
    }
    for note in clips.notes:
        print(note)
    scores_of_head: dict[str, dict[str, float]] = {}
    for folder, samples in samples_of.items():
        pairs = [sample for sample in samples if isinstance(sample, PairSample)]
        videos = [sample for sample in samples if isinstance(sample, VideoSample)]
        # Its present calibration may be stale, which is why it is made anew.
        with (
            Scorer.from_pretrained(folder, backbone=arguments.backbone, calibrated=False) as scorer,
            tempfile.TemporaryDirectory() as scratch,
        ):
            if clips.store is not None:
                check_sampling(clips.store.folder, clips.store.sampling, scorer.record.sampling)
            out = Path(scratch) / "scores.jsonl"
            scores = score_to_file(
                scorer, clips.requests(samples), out, arguments.batch_size, "calibrating", clips.store
            )
            for head in ("reward", "cost"):
                if head in scorer.heads:
                    scores_of_head[head] = {name: row[head] for name, row in scores.items()}
            heads = fit_heads(pairs, videos, scores, scorer.heads)
            labels = fit_labels(pairs, videos, scores, scorer.heads, targets)
        if not (heads or labels):
            raise SampleError(
                f"{folder}: has no head that a calibration speaks of; a severity's probabilities are as trained"
            )
        own = resolve_model_folder(folder)
        facts = {"data": str(arguments.data), "num_prompts": len({sample.prompt_id for sample in samples})}
        try:
            earlier = read_calibration(own)
        except CheckpointError:
            earlier = Calibration({}, {})  # of other weights, or damaged: made anew
        calibrated, kept = keep_earlier(Calibration(heads, labels, facts), earlier)
        for head, fitted in heads.items():
            if head in kept:
                continue
            if fitted.temperature is None:
                print(f"{head}: no temperature: {fitted.reason}")
            else:
                print(
                    f"{head}: temperature {fitted.temperature:.4f} from {fitted.num_comparisons} comparisons of "
                    f"{fitted.num_prompts} prompts, log loss {fitted.log_loss_before:.4f} -> {fitted.log_loss:.4f}"
                )
        for head, label in labels.items():
            if head in kept:
                continue
            if label.threshold is not None:
                print(
                    f"{head}: flagged above {label.threshold.logit:.4f} for {label.target}, from {label.num_positive} "
                    f"clips with the label and {label.num_negative} without"
                )
            if label.reason is not None:
                print(f"{head}: {label.reason}")
        missing = {head: fitted.reason for head, fitted in heads.items() if fitted.temperature is None}
        missing |= {
            head: label.reason for head, label in labels.items() if label.threshold is None and label.slope is None
        }
        if len(missing) == len(heads) + len(labels):
            first, reason = next(iter(missing.items()))
            others = f", and {len(missing) - 1} others as little" if len(missing) > 1 else ""
            raise SampleError(
                f"{arguments.data}: no head of {folder} can be calibrated on it ({first}: {reason}{others})"
            )
        if kept:
            print(f"kept from the calibration of before, having no label here: {', '.join(kept)}")
        print(f"wrote {write_calibration(own, calibrated)}")
    if not has_limit:
        return
    # Clips that every folder may be calibrated on.
    reward, cost = (scores_of_head[head] for head in ("reward", "cost"))
    shared = [
        sample for sample in records if all(video.name in reward and video.name in cost for video in videos_of(sample))
    ]
    candidates = group_candidates(shared, reward, cost, labelled=arguments.harm_rate_limit is not None)
    if candidates.num_unlabelled:
        print(f"lambda: {candidates.num_unlabelled} clips without a safety label are no candidates")
    if candidates.num_single:
        print(f"lambda: {candidates.num_single} prompts with a single candidate are left out")
    stored = fit_multiplier(
        candidates,
        folder_of,
        cost_limit=arguments.cost_limit,
        harm_rate_limit=arguments.harm_rate_limit,
        confidence=arguments.confidence,
    )
    what = "mean cost" if stored.constraint == "cost" else "harmful rate"
    print(
        f"lambda {stored.lagrange_multiplier:.4g}, {stored}, from {stored.num_prompts} prompts, whose chosen have a "
        f"{what} of {stored.observed:.4g}"
    )
    for path in store_multiplier(stored, folder_of):
        print(f"wrote {path}")
