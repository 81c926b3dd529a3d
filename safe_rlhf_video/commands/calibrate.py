"""Calibrate trained models on comparisons or labelled clips that their training never read.

    python scripts/calibrate.py --model REWARD_DIR COST_DIR --data CONFIG [--frame_store DIR]
    python scripts/calibrate.py --model MODERATION_DIR --data CONFIG --targets false_positive_rate=0.05 crime:recall=0.9
    python scripts/calibrate.py --model REWARD_DIR COST_DIR --data CONFIG --harm_rate_limit 0.05

CONFIG is the file that the model was trained on with data.calibration_fraction; exactly the prompts that training held
out are used. For a model that was trained without it, give any file of other prompts; the model folder has hashes of
those that training read (a folder of an earlier release has none: name all its training files with --train_data). Each
model folder gets a calibration.json: for each head a temperature, which makes P(v1 preferred) the
frequency that people show, and the quantiles of the scores; for a harm label its probability and the threshold of its
flag. With a limit, also, for each number of candidates, the lambda at which choosing among as many clips of a prompt
keeps that limit (docs/lagrangian.md). Scorer.from_pretrained reads the file and uses these lambdas by default.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from safe_rlhf_video.cli import Parser
from safe_rlhf_video.commands.clip_source import add_clip_source, check_clip_source
from safe_rlhf_video.data.datasets import load_any
from safe_rlhf_video.errors import CheckpointError
from safe_rlhf_video.files import require_path
from safe_rlhf_video.heads import LOGIT_HEADS
from safe_rlhf_video.models.record import read_record
from safe_rlhf_video.progress import progress_bar
from safe_rlhf_video.video.frame_store import check_sampling


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True, metavar="DIR", help="model folders, calibrated one by one")
    parser.add_argument("--data", required=True, metavar="CONFIG", help="comparisons or clips, in SafeSora's format")
    add_clip_source(parser)
    parser.add_argument(
        "--train_data",
        nargs="+",
        metavar="FILE",
        help="all files that a model without held-out prompts and without prompts.json was trained on",
    )
    parser.add_argument("--backbone", help="the backbone's folder, if it has moved since training")
    parser.add_argument(
        "--targets",
        nargs="+",
        default=["false_positive_rate=0.05"],
        metavar="[LABEL:]KIND=VALUE",
        help="what the flags of harm labels have to hold: false_positive_rate=A or recall=B, for all labels or for one",
    )
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument("--harm_rate_limit", type=float, help="highest share of unsafe clips chosen; stores lambdas")
    limit.add_argument("--cost_limit", type=float, help="highest mean cost of the chosen clips; stores lambdas")
    parser.add_argument(
        "--confidence", type=float, default=0.95, help="1 less the probability that a wrong lambda is issued"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="clips scored at once")
    arguments = parser.parse_args()
    check_clip_source(parser, arguments)
    if arguments.harm_rate_limit is None and arguments.cost_limit is None:
        parser.refuse_unused("--confidence", because="no lambda is calibrated without a limit")
    for folder in arguments.model:
        require_path(folder, CheckpointError, "download a model before you calibrate it")
    _check_models(parser, arguments.model)
    run_calibration(arguments)


def _check_models(parser: Parser, folders: Sequence[str]) -> None:
    """Raises a ConfigError if an option would have no effect on these models."""
    records = [read_record(folder) for folder in folders]
    if not any(set(LOGIT_HEADS) & set(heads) for one in records for heads in one.heads_of_adapter.values()):
        parser.refuse_unused("--targets", because="no model has a head of a harm label")
    if all(one.training.calibration_fraction for one in records):
        parser.refuse_unused("--train_data", because="each model says itself which prompts its training held out")


def run_calibration(arguments: argparse.Namespace) -> None:
    from safe_rlhf_video.calibration.calibrate import Sample, calibrate
    from safe_rlhf_video.calibration.fit import parse_targets
    from safe_rlhf_video.calibration.multiplier_calibration import Limit
    from safe_rlhf_video.data.labelled_pairs import Scores
    from safe_rlhf_video.evaluation.labelled_clips import load_labelled_clips
    from safe_rlhf_video.scoring.score_many import raise_unreadable, read_from_store, score_many
    from safe_rlhf_video.scoring.scorer import Scorer

    targets = parse_targets(arguments.targets)
    limit = None
    if not (arguments.harm_rate_limit is None and arguments.cost_limit is None):
        limit = Limit(arguments.cost_limit, arguments.harm_rate_limit, arguments.confidence)
    clips = load_labelled_clips(
        arguments.data, arguments.config_filename, arguments.video_dir, arguments.frame_store, arguments.unreadable
    )
    train_prompts = None
    if arguments.train_data:
        train_prompts = [video.prompt_text for path in arguments.train_data for video in load_any(path).videos]
    for note in clips.notes:
        print(note)

    def score(folders: Sequence[str | Path], samples: Sequence[Sample]) -> Scores:
        requests = read_from_store(clips.requests(samples), clips.store)
        # The present calibration may be stale; it is about to be replaced.
        with (
            Scorer.from_pretrained(*folders, backbone=arguments.backbone, calibrated=False) as scorer,
            progress_bar(len(requests), 0, "calibrating", "clip") as progress,
        ):
            if clips.store is not None:
                check_sampling(clips.store.folder, clips.store.sampling, scorer.record.sampling)
            scores = {}
            made = raise_unreadable(score_many(scorer, requests, arguments.batch_size))
            for request, values in zip(requests, made, strict=True):
                scores[request.key] = values
                progress.update()
            return scores

    samples: list[Sample] = [*clips.pairs, *clips.videos]
    for done in calibrate(
        arguments.model, samples, arguments.data, score, targets=targets, limit=limit, train_prompts=train_prompts
    ):
        print(done)
