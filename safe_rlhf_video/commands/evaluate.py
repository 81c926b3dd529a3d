"""Evaluate models on labelled comparisons or clips: intervals, calibration, the label ceiling, controls, moderation.

    python scripts/evaluate.py --model REWARD_DIR COST_DIR --data CONFIG --out DIR [--train_data CONFIG]

CONFIG is a file in SafeSora's format, or a folder with one. DIR gets evaluation.json and the scores of every clip.
Where a truth.json.gz lies beside the file (a synthetic world), the ceiling and the accuracy against the hidden order
are computed from it.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from safe_rlhf_video.cli import Parser
from safe_rlhf_video.data.datasets import PairDataset, load_any
from safe_rlhf_video.data.records import DIMENSIONS
from safe_rlhf_video.errors import CheckpointError, SampleError
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.video.frame_store import check_sampling


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", nargs="+", required=True, metavar="DIR", help="model folders: reward, cost, moderation"
    )
    parser.add_argument(
        "--data", required=True, metavar="CONFIG", help="the test comparisons or clips, in SafeSora's format"
    )
    parser.add_clip_source()
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--train_data", metavar="FILE", help="the training comparisons, to fit the controls to")
    parser.add_argument("--random_backbone", nargs="+", metavar="DIR", help="models trained alike on a random backbone")
    parser.add_argument("--compare", nargs="+", metavar="DIR", help="another model, tested against on the same pairs")
    parser.add_argument(
        "--controls",
        nargs="+",
        default=(),
        choices=("shuffled_prompt", "reversed_frames", "single_frame"),
        help="score the clips again under other prompts, with frames reversed, or with their middle frame alone",
    )
    parser.add_argument(
        "--truth", type=Path, help="hidden utilities; default: truth.json.gz beside the file of --data, if it is there"
    )
    parser.add_argument("--backbone", help="the backbone's folder, if it lies elsewhere than in training")
    parser.add_argument("--batch_size", type=int, default=64, help="clips scored at once")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap and of shuffled prompts")
    arguments = parser.parse_args()
    result = evaluate_models(arguments)
    from safe_rlhf_video.evaluation.table import format_comparison, format_table

    print(format_table(result))
    if "comparison" in result:
        print(f"compared with {', '.join(arguments.compare)}:\n{format_comparison(result['comparison'])}")
    print(f"wrote {arguments.out / 'evaluation.json'}")


def evaluate_models(arguments: argparse.Namespace) -> dict[str, Any]:
    from safe_rlhf_video.data.held_out import unseen_generators
    from safe_rlhf_video.data.labelled_pairs import Scores
    from safe_rlhf_video.evaluation.changed_inputs import SHUFFLED_PROMPT, ChangedFramesScorer, shuffle_prompts
    from safe_rlhf_video.evaluation.compare import compare
    from safe_rlhf_video.evaluation.evaluate import evaluate
    from safe_rlhf_video.evaluation.labelled_clips import load_labelled_clips
    from safe_rlhf_video.heads import DIMENSION_OF_HEAD, LABEL_HEADS
    from safe_rlhf_video.models.folder import fingerprint_weights, read_record
    from safe_rlhf_video.responses import TextResponse
    from safe_rlhf_video.scoring import Scorer, judge_harms, load_calibration
    from safe_rlhf_video.scoring.score_files import score_to_file
    from safe_rlhf_video.scoring.score_many import ScoreRequest
    from safe_rlhf_video.worlds.truth import FILE_NAME, read_truth

    started = time.monotonic()
    for folder in arguments.random_backbone or ():
        if read_record(folder).backbone.initialization != "random":
            raise CheckpointError(
                f"{folder}: stands on a pretrained backbone and is no control; give a folder trained with "
                "--model.backbone.initialization random"
            )
    if arguments.compare:
        heads, others = (
            {head for folder in folders for heads in read_record(folder).heads_of_adapter.values() for head in heads}
            for folders in (arguments.model, arguments.compare)
        )
        if not heads & others & set(DIMENSION_OF_HEAD):
            raise CheckpointError(
                f"--compare: {arguments.compare[0]} has no head in common with {arguments.model[0]} that learns from "
                "comparisons; compare a reward with a reward, or a cost with a cost"
            )
    clips = load_labelled_clips(
        arguments.data, arguments.config_filename, arguments.video_dir, arguments.frame_store, arguments.unreadable
    )
    pairs, videos, store = clips.pairs, clips.videos, clips.store
    if arguments.compare and not pairs:
        raise SampleError(f"{arguments.data}: holds no comparison, on which two models could be compared; give some")
    training = load_any(arguments.train_data) if arguments.train_data else None
    train_pairs = training.pairs if isinstance(training, PairDataset) else []
    train_videos = training.videos if training is not None and not train_pairs else []
    truth_path = arguments.truth or clips.config_file.parent / FILE_NAME
    truth = read_truth(truth_path) if arguments.truth or truth_path.exists() else None
    for name in DIMENSIONS if pairs else ():
        if count := sum(pair.preferences[name] is None for pair in pairs):
            print(f"{count} of {len(pairs)} comparisons have no {name} label and do not count there")
    for note in clips.notes:
        print(note)
    requests = clips.requests([*pairs, *videos])
    if set(arguments.controls) - {SHUFFLED_PROMPT} and not clips.files:
        raise SampleError(
            f"{arguments.data}: holds texts alone, which have no frames; of --controls only shuffled_prompt fits"
        )

    thresholds_of: dict[str, Any] = {}  # name of scores -> thresholds of their scorer

    def score(folders: list[str], name: str, requests: list[ScoreRequest], change: str = "") -> Scores:
        kind = ChangedFramesScorer if change else Scorer
        with kind.from_pretrained(*folders, backbone=arguments.backbone) as scorer:
            if isinstance(scorer, ChangedFramesScorer):
                scorer.use(change)
            if store is not None:
                check_sampling(store.folder, store.sampling, scorer.record.sampling)
            thresholds_of[name] = scorer.thresholds
            return score_to_file(scorer, requests, arguments.out / f"{name}.jsonl", arguments.batch_size, name, store)

    fitted = load_calibration(arguments.model)
    records = [read_record(folder) for folder in arguments.model]
    unseen_of_head = {
        head: unseen_generators(record.training)
        for record in records
        for heads in record.heads_of_adapter.values()
        for head in heads
    }
    scores = score(arguments.model, "scores", requests)
    changed_scores = {}
    for name in arguments.controls:
        if name == SHUFFLED_PROMPT:
            changed_scores[name] = score(arguments.model, f"{name}_scores", shuffle_prompts(requests, arguments.seed))
        else:
            changed_scores[name] = score(arguments.model, f"{name}_scores", requests, name)
    random_scores = None
    if arguments.random_backbone:
        random_scores = score(arguments.random_backbone, "random_backbone_scores", requests)
    moderations = None
    if any(head in LABEL_HEADS for record in records for heads in record.heads_of_adapter.values() for head in heads):
        texts = {request.key for request in requests if isinstance(request.response, TextResponse)}
        moderations = {
            name: judge_harms(row, records, name in texts, fitted.labels, thresholds_of["scores"])
            for name, row in scores.items()
        }
    result = evaluate(
        pairs,
        scores,
        videos=videos,
        train_pairs=train_pairs,
        train_videos=train_videos,
        truth=truth,
        random_scores=random_scores,
        calibrations=fitted.heads,
        changed_scores=changed_scores,
        moderations=moderations,
        unseen_generators=unseen_of_head,
        seed=arguments.seed,
    )
    if arguments.compare:
        result["comparison"] = compare(pairs, scores, score(arguments.compare, "compared_scores", requests),
                                       arguments.seed)  # fmt: skip
        result["compared_models"] = {str(folder): fingerprint_weights([folder]) for folder in arguments.compare}
    result |= {
        "models": {str(folder): fingerprint_weights([folder]) for folder in arguments.model},
        "data": str(arguments.data),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_whole(arguments.out / "evaluation.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result
