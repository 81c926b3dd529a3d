"""Evaluate a reward and a cost model on labelled comparisons, with intervals, the label ceiling and controls.

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

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.data.samples import PairSample
from safe_rlhf_video.errors import CheckpointError, SampleError, VideoDecodeError
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.responses import TextResponse
from safe_rlhf_video.video.frame_store import FrameStore, check_sampling


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", nargs="+", required=True, metavar="DIR", help="model folders: a reward, a cost or both"
    )
    parser.add_argument("--data", required=True, metavar="CONFIG", help="the test comparisons, in SafeSora's format")
    parser.add_argument("--config_filename", default="config.json", help="the file's name, where --data is a folder")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--video_dir", help="where the clips lie, if not where the config says")
    parser.add_argument("--frame_store", metavar="DIR", help="read the clips that scripts/prepare_videos.py put there")
    parser.add_argument(
        "--unreadable",
        choices=("refuse", "drop"),
        default="refuse",
        help="what becomes of comparisons with a clip in the frame store's quarantine",
    )
    parser.add_argument("--train_data", metavar="FILE", help="the training comparisons, to fit the controls to")
    parser.add_argument("--random_backbone", nargs="+", metavar="DIR", help="models trained alike on a random backbone")
    parser.add_argument(
        "--truth", type=Path, help="hidden utilities; default: truth.json.gz beside the file of --data, if it is there"
    )
    parser.add_argument("--backbone", help="the backbone's folder, if it lies elsewhere than in training")
    parser.add_argument("--batch_size", type=int, default=64, help="clips scored at once")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    arguments = parser.parse_args()
    result = evaluate_models(arguments)
    from safe_rlhf_video.evaluation.table import format_table

    print(format_table(result))
    print(f"wrote {arguments.out / 'evaluation.json'}")


def evaluate_models(arguments: argparse.Namespace) -> dict[str, Any]:
    from safe_rlhf_video.batch_scoring import ScoreRequest, score_to_file
    from safe_rlhf_video.evaluation.evaluate import evaluate
    from safe_rlhf_video.evaluation.truth import FILE_NAME, read_truth
    from safe_rlhf_video.models.checkpoint import fingerprint_weights, read_record
    from safe_rlhf_video.scoring import Scorer

    started = time.monotonic()
    for folder in arguments.random_backbone or ():
        if read_record(folder).backbone.initialization != "random":
            raise CheckpointError(
                f"{folder}: stands on a pretrained backbone and is no control; give a folder trained with "
                "--model.backbone.initialization random"
            )
    dataset = PairDataset.load(arguments.data, arguments.config_filename, video_dir=arguments.video_dir)
    if not len(dataset):
        raise SampleError(f"{arguments.data}: holds no comparison; there is nothing to evaluate on")
    train_pairs = PairDataset.load(arguments.train_data).pairs if arguments.train_data else []
    truth_path = arguments.truth or dataset.config_file.parent / FILE_NAME
    truth = read_truth(truth_path) if arguments.truth or truth_path.exists() else None
    for name, count in dataset.missing_preferences().items():
        if count and name in ("helpfulness", "harmlessness"):
            print(f"{count} of {len(dataset)} comparisons have no {name} label and do not count there")
    clips = [video for video in dataset.videos if video.response_text is None]
    files = dict(zip((video.name for video in clips), dataset.video_files(clips), strict=True))
    store = FrameStore(arguments.frame_store) if arguments.frame_store else None
    pairs = dataset.pairs if store is None else readable_pairs(dataset.pairs, store, files, arguments.unreadable)
    used = {video.name for pair in pairs for video in (pair.video_0, pair.video_1)}
    requests = [
        ScoreRequest(
            video.name,
            video.prompt_text,
            files[video.name] if video.response_text is None else TextResponse(video.response_text),
        )
        for video in dataset.videos
        if video.name in used
    ]

    def score(folders: list[str], name: str) -> dict[str, dict[str, float]]:
        with Scorer.from_pretrained(*folders, backbone=arguments.backbone) as scorer:
            if store is not None:
                check_sampling(store.folder, store.sampling, scorer.record.sampling)
            return score_to_file(scorer, requests, arguments.out / f"{name}.jsonl", arguments.batch_size, name, store)

    result = evaluate(
        pairs,
        score(arguments.model, "scores"),
        train_pairs=train_pairs,
        truth=truth,
        random_scores=score(arguments.random_backbone, "random_backbone_scores") if arguments.random_backbone else None,
        seed=arguments.seed,
    )
    result |= {
        "models": {str(folder): fingerprint_weights([folder]) for folder in arguments.model},
        "data": str(arguments.data),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_whole(arguments.out / "evaluation.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


def readable_pairs(
    pairs: list[PairSample], store: FrameStore, files: dict[str, Path], unreadable: str
) -> list[PairSample]:
    """The comparisons whose clips the store holds; those of quarantined clips are refused or dropped, and counted."""
    store.check_clips(files)
    bad = set(files) & set(store.quarantined)
    kept = [pair for pair in pairs if pair.video_0.name not in bad and pair.video_1.name not in bad]
    print(f"{len(files) - len(bad)} clips are read from the frame store {store.folder}, none is decoded")
    if not bad:
        return kept
    lost = f"{len(bad)} clips are in its quarantine, with {len(pairs) - len(kept)} of {len(pairs)} comparisons"
    if unreadable == "refuse":
        raise VideoDecodeError(f"{store.folder}: {lost}; replace the clips, or leave them out with --unreadable drop")
    if not kept:
        raise SampleError(f"{store.folder}: {lost}; nothing is left to evaluate on")
    print(f"{lost}, which are left out")
    return kept


if __name__ == "__main__":
    run_script(main)
