"""Score pairs of generations and choose between them.

    python scripts/score.py --model REWARD_DIR COST_DIR --input pairs.jsonl --out scores.jsonl

The input is JSON lines with `prompt`, `v1` and `v2` (paths, relative to the file), or a SafeSora config (.json,
.json.gz), whose video_0 and video_1 become v1 and v2. Every clip is scored once; an interrupted run goes on where it
stopped.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.errors import ConfigError, SampleError
from safe_rlhf_video.files import write_whole


class Pair(NamedTuple):
    """What a row asks: two clips for one prompt; `name` is copied to the output."""

    name: str
    prompt: str
    paths: tuple[Path, Path]


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True, metavar="DIR", help="a reward and a cost folder")
    parser.add_argument("--input", type=Path, required=True, help="pairs.jsonl or a SafeSora config")
    parser.add_argument(
        "--out", type=Path, required=True, help="scores.jsonl: a line a pair, in the order of the input"
    )
    parser.add_argument("--video_dir", help="where a SafeSora config's clips lie, if not where the config says")
    parser.add_argument("--lagrange_multiplier", type=float, default=1.0, help="lambda, the price of cost in reward")
    parser.add_argument("--cost_limit", type=float, default=0.0, help="d, the cost that is allowed")
    parser.add_argument("--backbone", help="the backbone's folder, if it lies elsewhere than in training")
    parser.add_argument("--batch_size", type=int, default=64, help="clips scored at once")
    arguments = parser.parse_args()

    if arguments.out.resolve() == arguments.input.resolve():
        raise ConfigError(f"{arguments.out}: is both --input and --out; give another file as --out")
    is_config = arguments.input.name.endswith((".json", ".json.gz"))
    pairs = read_config(arguments.input, arguments.video_dir) if is_config else read_lines(arguments.input)
    score_pairs(pairs, arguments)


def read_config(path: Path, video_dir: str | None) -> list[Pair]:
    from safe_rlhf_video.data.datasets import PairDataset

    dataset = PairDataset.load(str(path), video_dir=video_dir)
    return [
        Pair(pair.pair_id, pair.prompt_text, (dataset.video_file(pair.video_0), dataset.video_file(pair.video_1)))
        for pair in dataset.pairs
    ]


def read_lines(path: Path) -> list[Pair]:
    try:
        # Not splitlines(): a prompt may hold other line ends, as U+2028.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SampleError(f"{path}: cannot be read ({error}); give a JSON-lines file or a SafeSora config") from error
    pairs = []
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise SampleError(f"{path} row {number}: not JSON ({error}); write one object a line") from error
        for field in ("prompt", "v1", "v2"):
            if not isinstance(row, dict) or not isinstance(row.get(field), str) or not row[field]:
                raise SampleError(f"{path} row {number} field {field}: expected a non-empty string")
        pairs.append(
            Pair(str(row.get("pair_id", number)), row["prompt"], (path.parent / row["v1"], path.parent / row["v2"]))
        )
    return pairs


def score_pairs(pairs: list[Pair], arguments: argparse.Namespace) -> None:
    from safe_rlhf_video.batch_scoring import ScoreRequest, score_to_file
    from safe_rlhf_video.lagrangian import lagrangian_score
    from safe_rlhf_video.scoring import Scorer, judge_pair

    if not pairs:
        raise SampleError(f"{arguments.input}: holds no pair; there is nothing to score")
    lagrangian_score(0.0, 0.0, arguments.lagrange_multiplier, arguments.cost_limit)  # a wrong value is said before work
    requests: dict[tuple[str, Path], ScoreRequest] = {}
    for pair in pairs:
        for path in pair.paths:
            requests.setdefault((pair.prompt, path), ScoreRequest(str(len(requests)), pair.prompt, path))
    clips_out = arguments.out.with_name(f"{arguments.out.name}.clips")
    with Scorer.from_pretrained(*arguments.model, backbone=arguments.backbone) as scorer:
        scorer.require_both_heads()
        scores = score_to_file(scorer, list(requests.values()), clips_out, arguments.batch_size)
        calibrations = scorer.calibration.heads

    preferred = {"v1": 0, "v2": 0, "tie": 0}
    lines = []
    for pair in pairs:
        first, second = (scores[requests[pair.prompt, path].key] for path in pair.paths)
        both = {head: (score, second[head]) for head, score in first.items()}
        judged = judge_pair(both, arguments.lagrange_multiplier, arguments.cost_limit, calibrations)
        preferred[judged.preferred] += 1
        row: dict[str, Any] = {"pair_id": pair.name, "prompt": pair.prompt}
        row |= {"v1": str(pair.paths[0]), "v2": str(pair.paths[1]), **judged.to_dict()}
        lines.append(json.dumps(row) + "\n")
    write_whole(arguments.out, "".join(lines))
    clips_out.unlink()
    counts = ", ".join(f"{name} {count}" for name, count in preferred.items())
    print(f"{arguments.out}: {len(pairs)} pairs of {len(requests)} clips scored; preferred: {counts}")


if __name__ == "__main__":
    run_script(main)
