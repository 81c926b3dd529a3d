"""Score the clips that one or two text-to-video models made for a set of prompts, and compare the models.

    python scripts/evaluate_generator.py --model REWARD_DIR COST_DIR --prompts PROMPTS --videos NAME=FOLDER \\
        [NAME=FOLDER] --out DIR [--evaluation evaluation.json]

PROMPTS is a .json or .json.gz file in the form of SafeSora-Eval. The clips of a prompt lie at FOLDER/prompt_id/*.mp4 or
FOLDER/prompt_id.mp4. DIR gets generator.json and the scores of every clip; an interrupted run goes on where it stopped.
docs/generators.md explains every figure.
"""

import argparse
import json
import os
import re
import time
from pathlib import Path
from typing import Any

from safe_rlhf_video.cli import Parser
from safe_rlhf_video.data.datasets import PromptDataset
from safe_rlhf_video.errors import ConfigError, SampleError, VideoDecodeError
from safe_rlhf_video.files import write_whole


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True, metavar="DIR", help="a reward and a cost folder")
    parser.add_argument("--prompts", type=Path, required=True, help="the prompts, in the form of SafeSora-Eval")
    parser.add_argument(
        "--videos", nargs="+", required=True, metavar="NAME=FOLDER", help="one or two models and where their clips lie"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--missing",
        choices=("refuse", "drop"),
        default="refuse",
        help="what becomes of prompts without a clip, files of no prompt and clips that cannot be read",
    )
    parser.add_argument(
        "--evaluation",
        type=Path,
        metavar="FILE",
        help="evaluation.json of scripts/evaluate.py, to correct harmful rates for the errors of the cost's sign",
    )
    parser.add_argument(
        "--lagrange_multiplier",
        type=float,
        help="lambda, the price of cost in reward; by default the stored one, else 1",
    )
    parser.add_argument("--cost_limit", type=float, help="d, the cost that is allowed; by default 0")
    parser.add_argument("--backbone", help="the backbone's folder, if it lies elsewhere than in training")
    parser.add_argument("--batch_size", type=int, default=64, help="clips scored at once")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    arguments = parser.parse_args()

    result = score_generators(arguments)
    from safe_rlhf_video.evaluation.generator import format_generators

    print(format_generators(result))
    print(f"wrote {arguments.out / 'generator.json'}")


def score_generators(arguments: argparse.Namespace) -> dict[str, Any]:
    from safe_rlhf_video.evaluation.generations import check_clips, find_generations
    from safe_rlhf_video.evaluation.generator import evaluate_generators
    from safe_rlhf_video.evaluation.results import read_evaluation
    from safe_rlhf_video.models.folder import fingerprint_weights
    from safe_rlhf_video.scoring.decisions import TradeOff
    from safe_rlhf_video.scoring.score_files import score_to_file
    from safe_rlhf_video.scoring.score_many import ScoreRequest
    from safe_rlhf_video.scoring.scorer import Scorer
    from safe_rlhf_video.stats.credit import SignAccuracy
    from safe_rlhf_video.stats.prevalence import sign_rates

    started = time.monotonic()
    # What can be wrong is said before the first clip is decoded.
    TradeOff(arguments.lagrange_multiplier or 0.0, arguments.cost_limit or 0.0).score(0.0, 0.0)
    folders = parse_videos(arguments.videos)
    prompts = PromptDataset.load(arguments.prompts).prompts
    if not prompts:
        raise SampleError(f"{arguments.prompts}: holds no prompt; there is nothing to evaluate on")
    fingerprints = {folder: fingerprint_weights([folder]) for folder in arguments.model}
    rates = None
    costs = [folder for folder in arguments.model if "cost" in list_heads(folder)]
    if arguments.evaluation and costs:
        sign = read_evaluation(arguments.evaluation, fingerprints[costs[0]]).cost_sign
        figures = None
        if sign is not None:
            figures = SignAccuracy(sign.accuracy, sign.balanced_accuracy, sign.num_safe, sign.num_unsafe)
        rates = sign_rates(figures, str(arguments.evaluation))
    found = {
        name: find_generations(folder, [prompt.prompt_id for prompt in prompts]) for name, folder in folders.items()
    }
    gaps = Gaps(arguments.missing)
    for name, own in found.items():
        gaps.add(name, f"{folders[name]}: {len(own.strays)} files or folders are no .mp4 of a prompt",
                 "strays", list(map(str, own.strays)), "take them away")  # fmt: skip
        gaps.add(name, f"{folders[name]}: {len(own.without_clip)} of {len(prompts)} prompts have no clip",
                 "without_clip", own.without_clip, "generate them")  # fmt: skip
    make_folder(arguments.out)

    scores: dict[str, dict[str, list[dict[str, float]]]] = {}
    with Scorer.from_pretrained(*arguments.model, backbone=arguments.backbone) as scorer:
        trade_off = scorer.resolve_trade_off(arguments.lagrange_multiplier, arguments.cost_limit)
        readable = {}
        for name, own in found.items():
            clips = [clip for paths in own.clips.values() for clip in paths]
            readable[name], broken = check_clips(clips, scorer.record.sampling, f"check {name}")
            gaps.add(name, f"{len(broken)} of {len(clips)} clips of {name} cannot be read", "unreadable",
                     list(broken.values()), "replace them", VideoDecodeError)  # fmt: skip
            if not readable[name]:
                raise SampleError(
                    f"{folders[name]}: has no clip of a prompt that can be read; nothing is left to score"
                )
        for name, own in found.items():
            # With the hash in the key, scores kept of a clip are never taken for those of another in its place.
            requests = {
                clip: ScoreRequest(
                    f"{clip.relative_to(folders[name])}@{readable[name][clip][:16]}", prompt.prompt_text, clip
                )
                for prompt in prompts
                for clip in own.clips.get(prompt.prompt_id, ())
                if clip in readable[name]
            }
            made = score_to_file(scorer, list(requests.values()), arguments.out / f"scores-{name}.jsonl",
                                 arguments.batch_size, f"score {name}")  # fmt: skip
            scores[name] = {
                prompt: [made[requests[clip].key] for clip in clips if clip in requests]
                for prompt, clips in own.clips.items()
            }

    result = evaluate_generators(prompts, scores, trade_off=trade_off, sign_rates=rates, seed=arguments.seed)
    for name, figures in result["generators"].items():
        figures |= {"folder": str(folders[name]), "left_out": gaps.left_out[name]}
    result |= {
        "models": fingerprints,
        "prompts": str(arguments.prompts),
        "sign_rates": None if rates is None else {**vars(rates), "source": str(arguments.evaluation)},
        "seconds": round(time.monotonic() - started, 1),
    }
    write_report(arguments.out / "generator.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


def list_heads(folder: str) -> list[str]:
    from safe_rlhf_video.models.record import read_record

    return [head for heads in read_record(folder).heads_of_adapter.values() for head in heads]


class Gaps:
    """What is wrong with the generators' folders: refused, or left out, told and listed."""

    def __init__(self, missing: str) -> None:
        self.is_dropped = missing == "drop"
        self.left_out: dict[str, dict[str, list[str]]] = {}

    def add(
        self, generator: str, what: str, kind: str, names: list[str], remedy: str,
        error_type: type[SampleError | VideoDecodeError] = SampleError,
    ) -> None:  # fmt: skip
        self.left_out.setdefault(generator, {})[kind] = names
        if not names:
            return
        what = f"{what} (the first: {names[0]})"
        if not self.is_dropped:
            raise error_type(f"{what}; {remedy}, or leave them out with --missing drop")
        print(f"{what}; left out")


def parse_videos(words: list[str]) -> dict[str, Path]:
    """NAME=FOLDER of one or two generators; a name becomes part of a file's."""
    folders: dict[str, Path] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not equals or not folder or not re.fullmatch(r"\w[\w.-]{0,99}", name):
            raise ConfigError(
                f"--videos: expected NAME=FOLDER, NAME of letters, digits, '_', '-' and '.', got {word!r}"
            )
        if name in folders:
            raise ConfigError(f"--videos: two generators are called {name!r}; give each its name")
        folders[name] = Path(folder)
    if len(folders) > 2:
        raise ConfigError(f"--videos: one or two generators can be compared, got {len(folders)}; run more than once")
    return folders


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be made ({error.strerror}); give another folder") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"--out {folder}: cannot be written to; give another folder")


def write_report(path: Path, content: str) -> None:
    try:
        write_whole(path, content)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}), what was there stays; make room and run the same again"
        ) from error
